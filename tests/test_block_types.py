"""Every block type, bit for bit as the `gguf` package decodes it, from the file to the kernels."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import random_model as rm
from random_blocks import SCALES, dequantised, random_blocks, set_scales

from wgtrain import gpu
from wgtrain.engine.weight import FORMATS, plan_weight
from wgtrain.errors import FileError
from wgtrain.files import BLOCKS, BytesSource, Raw, TensorInfo
from wgtrain.gpu import Device, Limits
from wgtrain.model.weights import Weights, load_weights

pytestmark = pytest.mark.gpu
BLOCK_TYPES = [name for name in FORMATS if BLOCKS[name].size > 1]
# f16 below 2^-14 and just above 1, of both signs, zero of both, then 2^-14, the largest
EDGES = np.array(
    [0x0001, 0x03FF, 0x3C01, 0x8001, 0x83FF, 0xBC01, 0x8000, 0x0000, 0x0400, 0x8400, 0x7BFF, 0x2E66]
)


class Table:
    """As much of a file as `load_weights` asks for."""

    def __init__(self, tensors: dict[str, TensorInfo]):
        self.tensors = tensors


def load(device: Device, raws: dict[str, tuple[str, np.ndarray]], limits: Limits) -> Weights:
    """Loads rows (rows, bytes) of types by name."""
    data, tensors, matrices = b"", {}, {}
    for name, (type_, raw) in raws.items():
        columns = raw.shape[1] // BLOCKS[type_].nbytes * BLOCKS[type_].size
        tensors[name] = TensorInfo(name, (len(raw), columns), type_, len(data), raw.nbytes)
        matrices[name] = plan_weight(name, type_, len(raw), columns, limits)
        data += raw.tobytes() + bytes(-raw.nbytes % 32)
    weights = Weights(matrices, {}, {})
    table: Any = Table(tensors)
    gpu.run(load_weights(device, BytesSource(data, "made.gguf"), table, weights))
    return weights


def free(device: Device, weights: Weights) -> None:
    for storage in weights.storages:
        assert storage.buffer is not None
        device.free(storage.buffer)


def assert_bits(got: np.ndarray, want: np.ndarray) -> None:
    """Equal in every bit, zeros with their signs too."""
    wrong = np.argwhere(got.view(np.uint32) != want.view(np.uint32))
    assert not len(wrong), (wrong[0], got[tuple(wrong[0])], want[tuple(wrong[0])], len(wrong))


@pytest.mark.parametrize("type_", BLOCK_TYPES)
def test_random_blocks_decode_bit_for_bit(device: Device, type_: str) -> None:
    """One block, rows of an odd number of them, and rows of several segments."""
    rng = np.random.default_rng(1)
    block = BLOCKS[type_].size
    widths = (256, 512, 768) if block == 256 else (32, 96, 256, 512)
    raws = {f"{type_} {n}": (type_, random_blocks(rng, type_, 3, n)) for n in widths}
    raws["split"] = type_, random_blocks(rng, type_, 130, widths[1])
    whole = plan_weight("split", type_, 130, widths[1], device.limits).nbytes
    limits = replace(device.limits, binding=whole * 2 // 3, buffer=whole * 2 // 3)
    weights = load(device, raws, limits)
    assert len(weights.matrices["split"].segments) > 1
    for name, weight in weights.matrices.items():
        assert_bits(rm.decoded(device, weight), dequantised(raws[name][1], type_))
    free(device, weights)


@pytest.mark.parametrize("type_", sorted(SCALES))
def test_scales_of_any_size_decode_bit_for_bit(device: Device, type_: str) -> None:
    """Those of subnormal f16 too, which hardware may flush."""
    rng = np.random.default_rng(2)
    raw = random_blocks(rng, type_, 26, 2 * BLOCKS[type_].size)
    set_scales(raw, type_, EDGES)
    weights = load(device, {"w": (type_, raw)}, device.limits)
    want = dequantised(raw, type_)
    flushed = raw.copy()
    set_scales(flushed, type_, np.where(EDGES & 0x7C00, EDGES, 0))
    assert np.count_nonzero(dequantised(flushed, type_) != want) > want.size // 4
    assert_bits(rm.decoded(device, weights.matrices["w"]), want)
    free(device, weights)


def test_every_finite_f16_decodes_bit_for_bit(device: Device) -> None:
    raw = np.arange(1 << 16, dtype="<u2")
    raw = raw[(raw & 0x7C00) != 0x7C00].reshape(62, 1024).view(np.uint8)
    weights = load(device, {"w": ("F16", raw)}, device.limits)
    assert_bits(rm.decoded(device, weights.matrices["w"]), dequantised(raw, "F16"))
    free(device, weights)


def test_exponents_of_any_size_decode_bit_for_bit(device: Device) -> None:
    """All of MXFP4 that are finite. Those of 0 and 1 stand for subnormal f32, which may be zero."""
    raw = random_blocks(np.random.default_rng(3), "MXFP4", 253, 64)
    raw.reshape(-1, 17)[:, 0] = np.arange(2 * 253) // 2
    weights = load(device, {"w": ("MXFP4", raw)}, device.limits)
    got, want = rm.decoded(device, weights.matrices["w"]), dequantised(raw, "MXFP4")
    assert_bits(got[2:], want[2:])
    small = got[:2].view(np.uint32) == want[:2].view(np.uint32)
    assert np.all(small | (got[:2] == 0))
    free(device, weights)


@pytest.mark.parametrize("type_", FORMATS)
def test_what_is_not_finite_is_refused_by_name(device: Device, type_: str) -> None:
    rng = np.random.default_rng(4)
    for bits in (0x7C00, 0xFC00, 0x7E01):
        if type_ in SCALES:
            raw = random_blocks(rng, type_, 3, 2 * BLOCKS[type_].size)
            at = SCALES[type_][-1]
            raw[1, BLOCKS[type_].nbytes + at :][:2] = np.array([bits], "<u2").view(np.uint8)
        elif type_ == "MXFP4":
            raw = random_blocks(rng, type_, 3, 64)
            raw[2, 17] = 253 + bits % 2
        else:
            values = rng.standard_normal((3, 7)).astype(np.float32)
            values[1, 4] = np.array([bits], "<u2").view("<f2")[0]
            encoded = rm.encode(values, type_)
            raw = np.frombuffer(
                bytes(encoded.data if isinstance(encoded, Raw) else encoded.tobytes()), np.uint8
            ).reshape(3, -1)
        before = device.allocated
        with pytest.raises(FileError, match=r"^made.gguf: bad: values that are infinite or NaN$"):
            load(device, {"good": good(rng), "bad": (type_, raw)}, device.limits)
        assert device.allocated == before


def good(rng: np.random.Generator) -> tuple[str, np.ndarray]:
    return "Q8_0", random_blocks(rng, "Q8_0", 4, 64)


@pytest.mark.parametrize("type_", FORMATS)
def test_gpu_memory_is_at_most_an_eighth_above_the_file(type_: str) -> None:
    for columns in (64, 96, 256, 320, 2048):
        if columns % BLOCKS[type_].size:
            continue
        weight = plan_weight("w", type_, 1000, columns, Limits())
        in_file = 1000 * BLOCKS[type_].row_nbytes(columns)
        assert weight.nbytes <= 1.12 * in_file, (columns, weight.nbytes / in_file)
