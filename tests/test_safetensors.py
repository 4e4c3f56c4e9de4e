"""Our safetensors reader and writer against the safetensors package's, in both directions."""

import json

import numpy as np
import pytest
import safetensors.numpy as oracle

from wgtrain.errors import FileError
from wgtrain.files import read_safetensors, write_safetensors

KINDS = "? u1 i1 u2 i2 u4 i4 u8 i8 f2 f4 f8".split()


def arrays() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    made = {f"{kind}/x": rng.integers(0, 2, (3, 5)).astype(kind) for kind in KINDS}
    made |= {f"{kind}/odd": rng.integers(0, 99, 7).astype(kind) for kind in KINDS}
    return made | {
        "scalar": np.array(1.5, np.float32),
        "none": np.zeros((3, 0, 2), np.float32),
        "é\n": rng.standard_normal((2, 3, 4)).astype(np.float32),
        "transposed": rng.standard_normal((4, 6)).T,
    }


def check(found: dict[str, np.ndarray]) -> None:
    assert set(found) == set(arrays())
    for key, value in arrays().items():
        assert found[key].dtype == value.dtype and found[key].shape == value.shape, key
        np.testing.assert_array_equal(found[key], value)


def test_round_trip() -> None:
    data = write_safetensors(arrays(), {"format": "pt"})
    turned = dict(reversed(arrays().items()))
    assert data == write_safetensors(turned, {"format": "pt"})  # whatever the order
    check(read_safetensors(data, "x"))
    check(read_safetensors(memoryview(bytearray(data)), "x"))


def test_the_package_reads_what_we_write() -> None:
    check(oracle.load(write_safetensors(arrays(), {"format": "pt"})))
    assert oracle.load(write_safetensors({}, {})) == {}


def test_we_read_what_the_package_writes() -> None:
    contiguous = {key: np.ascontiguousarray(value) for key, value in arrays().items()}
    contiguous["scalar"] = arrays()["scalar"]  # that made it (1,)
    check(read_safetensors(oracle.save(contiguous, {"format": "pt", "a": "b"})))
    assert read_safetensors(oracle.save({})) == {}


def test_same_bytes_as_the_package() -> None:
    """Widest first, then by name: what the package does too, where no two types are as wide."""
    made = {"b": np.ones((2, 3), np.float32), "a": np.ones(3, np.float16), "c": np.ones(1, "f4")}
    assert write_safetensors(made, {"format": "pt"}) == oracle.save(made, {"format": "pt"})


def test_bf16_becomes_float32() -> None:
    exact = np.array([[0.0, -1.0, 1.5], [2.0**100, -(2.0**-126), np.inf]], np.float32)
    bits = (exact.view(np.uint32) >> 16).astype("<u2").tobytes()
    entry = {"dtype": "BF16", "shape": [2, 3], "data_offsets": [0, 12]}
    head = json.dumps({"x": entry}).encode()
    found = read_safetensors(len(head).to_bytes(8, "little") + head + bits)["x"]
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, exact)


def test_arrays_are_views() -> None:
    data = write_safetensors({"x": np.ones(1000, np.float32)}, {})
    found = read_safetensors(data)["x"]
    assert not found.flags.writeable
    assert np.shares_memory(found, np.frombuffer(data, np.uint8))


def test_what_cannot_be_written() -> None:
    for value in (np.ones(2, np.complex64), np.array(["a"])):
        with pytest.raises(TypeError, match="tensor 'x': safetensors cannot hold"):
            write_safetensors({"x": value}, {})


def test_too_short() -> None:
    with pytest.raises(FileError, match="m: 5 bytes; a safetensors file begins with 8"):
        read_safetensors(b"12345", "m")
