"""`wgtrain quantize` beside llama.cpp's: the types it chooses, metadata, values; refusals."""

import ctypes
import sys
from pathlib import Path
from typing import Any

import gguf as oracle
import numpy as np
import pytest
from random_blocks import dequantised, encoded
from specs import Spec
from tiny import random_weights, write

import wgtrain as package
from wgtrain.cli import main as cli
from wgtrain.errors import FileError, OptionError
from wgtrain.files import GGUF, BytesSource, Raw, TensorInfo, parse_gguf, write_gguf
from wgtrain.files.encoding import decoded
from wgtrain.files.file_types import TARGETS, choose_types
from wgtrain.files.gguf_writer import gguf_chunks
from wgtrain.gpu import run
from wgtrain.model.quantise_file import plan_quantisation

# Every K-quant fits but in k and v; nothing fits but in ffn_down; not even blocks of 32 fit.
SPECS = {
    "wide": Spec("llama", 256, 4, 1, 64, 256, 8, 97, tied=False, tokenizer="spm"),
    "narrow": Spec("qwen2", 96, 4, 2, 24, 256, 9, 290, tied=True),
    "odd": Spec("llama", 40, 2, 2, 20, 64, 2, 97, tied=False, tokenizer="spm"),
}
PURE = ("Q4_K", "Q5_K")
F32 = oracle.GGMLQuantizationType.F32


def write_base(folder: Path, name: str, kind: str = "F32") -> Path:
    spec, path = SPECS[name], folder / f"{name}-{kind}.gguf"
    if not path.exists():
        type_ = oracle.GGMLQuantizationType[kind]
        weights = {
            key: (w, F32) if w.ndim == 1 else (encoded(w, kind) if kind != "F32" else w, type_)
            for key, w in random_weights(spec, 3).items()
        }
        path.write_bytes(write(spec, weights))
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("quantize")


def quantize(capsys: pytest.CaptureFixture[str], *arguments: Any) -> tuple[int, str]:
    with pytest.raises(SystemExit) as exit:
        cli.main(["quantize", *map(str, arguments)])
    captured = capsys.readouterr()
    return int(exit.value.code or 0), captured.out + captured.err


def read(path: Path) -> tuple[GGUF, bytes]:
    data = path.read_bytes()
    return parse_gguf(data, path.name), data


def values_of(gguf: GGUF, data: bytes, name: str) -> np.ndarray:
    info = gguf.tensors[name]
    return decoded(data[info.offset : info.offset + info.nbytes], info.type, info.shape[-1])


@pytest.mark.oracle
@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("target", TARGETS)
def test_as_llama_cpp(
    name: str, target: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Types, metadata and, where the `gguf` package encodes, every byte; K types to 2 % of its
    error. Q4_K and Q5_K are what `--pure` gives.
    """
    from llama_cpp_oracle import llama_cpp

    source, ours, theirs = (
        write_base(folder, name),
        folder / f"{name}-{target}-ours.gguf",
        folder / f"{name}-{target}-theirs.gguf",
    )
    assert quantize(capsys, source, "--type", target, "--out", ours)[0] == 0
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.nthread, params.pure = TARGETS[target].number, 1, target in PURE
    names = [str(path).encode() for path in (source, theirs)]
    assert llama_cpp.llama_model_quantize(*names, ctypes.byref(params)) == 0
    (mine, my_bytes), (other, their_bytes) = read(ours), read(theirs)
    plain, plain_bytes = read(source)
    types = {key: info.type for key, info in mine.tensors.items()}
    assert types == {key: info.type for key, info in other.tensors.items()}
    assert list(mine.tensors) == list(plain.tensors)
    assert mine.kinds == other.kinds
    assert {k: str(v) for k, v in mine.metadata.items()} == {
        k: str(v) for k, v in other.metadata.items()
    }
    for key, info in mine.tensors.items():
        a = my_bytes[info.offset : info.offset + info.nbytes]
        b = their_bytes[other.tensors[key].offset :][: info.nbytes]
        if not info.type.endswith("_K"):
            assert a == b, (key, info.type)
        else:
            x = values_of(plain, plain_bytes, key)
            errors = [
                np.sqrt(np.mean((decoded(data, info.type, x.shape[1]) - x) ** 2)) for data in (a, b)
            ]
            assert errors[0] <= 1.02 * errors[1], (key, info.type)


@pytest.mark.oracle
@pytest.mark.gpu
@pytest.mark.parametrize(("name", "target"), [("wide", "Q4_K_M"), ("narrow", "Q5_K_M")])
def test_logits(name: str, target: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Ours on the file beside llama.cpp's on the same numbers in F32; llama.cpp takes it, too."""
    from llama_cpp_oracle import LlamaCpp

    base = write_base(folder, name)
    path, plain = folder / "logits.gguf", folder / "logits-f32.gguf"
    assert quantize(capsys, base, "--type", target, "--out", path, "--force")[0] == 0
    assert quantize(capsys, path, "--type", "F32", "--out", plain, "--force")[0] == 0
    tokens = np.random.default_rng(0).integers(3, 97, 24).astype(np.uint32)
    with package.load_model(path) as model:
        ours = model.logits(tokens)
    theirs = LlamaCpp(plain).logits(tokens)
    assert np.abs(ours - theirs).max() / np.ptp(theirs) < 1e-5
    assert np.isfinite(LlamaCpp(path).logits(tokens)).all()
    before = LlamaCpp(base).logits(tokens)  # negative control: it does not compare with itself
    assert np.abs(ours - before).max() / np.ptp(theirs) > 1e-3


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q8_0", "Q4_K", "IQ4_XS"])
def test_sources_of_any_type(
    kind: str, folder: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """The values of the file, in F32; a type again only if asked for."""
    source = write_base(folder, "wide", kind)
    out = tmp_path / "out.gguf"
    status, said = quantize(capsys, source, "--type", "f32", "--out", out)
    assert status == 0
    (gguf, data), (before, old) = read(out), read(source)
    assert {info.type for info in gguf.tensors.values()} == {"F32"}
    for name in gguf.tensors:
        if before.tensors[name].type == "F32":
            assert np.array_equal(values_of(gguf, data, name), values_of(before, old, name))
        else:
            raw = np.frombuffer(old, np.uint8)[before.tensors[name].offset :]
            info = before.tensors[name]
            rows = raw[: info.nbytes].reshape(info.shape[0], -1)
            assert np.array_equal(values_of(gguf, data, name), dequantised(rows, kind))
    quantised = kind not in ("F16", "BF16")
    assert ("what that lost stays lost" in said) == quantised
    status, said = quantize(capsys, source, "--type", "Q5_0", "--out", tmp_path / "again.gguf")
    if not quantised:
        assert status == 0
        return
    assert status == 2 and "token_embd.weight" in said and "--allow-requantize" in said
    assert not (tmp_path / "again.gguf").exists()
    arguments = [source, "--type", "Q5_0", "--out", tmp_path / "again.gguf"]
    assert quantize(capsys, *arguments, "--allow-requantize")[0] == 0
    assert read(tmp_path / "again.gguf")[0].tensors["blk.0.ffn_up.weight"].type == "Q5_0"


def small(metadata: dict[str, Any], tensors: dict[str, Any]) -> BytesSource:
    plain = {"general.architecture": "llama", "llama.block_count": 1}
    return BytesSource(write_gguf(plain | metadata, tensors), "small.gguf")


def plan(source: BytesSource, target: str = "Q8_0", requantise: bool = False) -> Any:
    data = source.read_range(0, source.size)
    return plan_quantisation(source, parse_gguf(data, source.name), target, requantise)


def bytes_of(conversion: Any) -> bytes:
    async def whole() -> bytes:
        chunks = gguf_chunks(conversion.metadata, conversion.tensors)
        return b"".join([bytes(chunk) async for chunk in chunks])

    data: bytes = run(whole())
    return data


def test_metadata_keeps_its_types() -> None:
    """Each number as wide as it was, also one that a 32-bit one could hold."""
    numbers = [np.dtype(t) for t in ("u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f4", "f8")]
    metadata: dict[str, Any] = {f"x.{dtype}": dtype.type(7) for dtype in numbers}
    metadata |= {f"y.{dtype}": np.array([1, 2], dtype) for dtype in numbers}
    metadata |= {"z": True, "text": "ß", "texts": ["a", ""], "none": np.zeros(0, np.int16)}
    metadata |= {"split.count": np.uint16(1), "general.file_type": 1, "f": np.float64(0.1)}
    matrix = {"blk.0.ffn_up.weight": np.ones((2, 32), np.float32)}
    made = parse_gguf(bytes_of(plan(small(metadata, matrix))))
    assert made.metadata["f"] == 0.1 and made.metadata["z"] is True
    for key, value in metadata.items():
        if isinstance(value, np.generic) and key != "split.count":
            assert made.kinds[key] == value.dtype and made.metadata[key] == value
        if isinstance(value, np.ndarray):
            assert made.metadata[key].dtype == value.dtype
            assert np.array_equal(made.metadata[key], value)
    assert (made.metadata["text"], made.metadata["texts"]) == ("ß", ["a", ""])
    assert made.metadata["general.file_type"] == 7
    assert made.metadata["general.quantization_version"] == 2
    assert "split.count" not in made.metadata


def test_seventy_thousand_million() -> None:
    """attn_v of the models that have 80 layers and share heads goes one size up."""
    infos = [
        TensorInfo(f"blk.{i}.{name}.weight", (256, 256), "F16", 0, 131072)
        for i in range(80)
        for name in ("attn_v", "attn_q", "ffn_down")
    ]
    plain, wide = choose_types(infos, "Q4_K_M", 80), choose_types(infos, "Q4_K_M", 80, True)
    changed = {key: (plain[key], wide[key]) for key in plain if plain[key] != wide[key]}
    assert set(changed.values()) == {("Q4_K", "Q5_K")} and all("attn_v" in key for key in changed)
    assert len(changed) == 80 - sum(plain[f"blk.{i}.attn_v.weight"] == "Q6_K" for i in range(80))
    shape = np.ones((2, 32), np.float32)
    heads = {"llama.block_count": 80, "llama.attention.head_count": 8}
    for shared, kind in ((8, "Q4_K"), (1, "Q5_K")):
        source = small(
            heads | {"llama.attention.head_count_kv": shared},
            {
                **{f"blk.{i}.attn_v.weight": np.ones((2, 256), np.float32) for i in range(80)},
                "output.weight": shape,
            },
        )
        types = {tensor.name: tensor.type for tensor in plan(source, "Q4_K_M").tensors}
        assert types["blk.10.attn_v.weight"] == kind


NAN = np.ones((3, 32), np.float32)
NAN[2, 5] = np.nan
LARGE = np.ones((3, 32), np.float32)
LARGE[1, 7] = 1e20


@pytest.mark.parametrize(
    ("metadata", "matrix", "target", "words"),
    [
        ({}, LARGE, "Q3_K", ["'Q3_K'", *TARGETS]),
        ({"general.type": "adapter"}, LARGE, "F16", ["an adapter, not a base model"]),
        ({"general.type": "mmproj"}, LARGE, "F16", ["projector"]),
        ({"llama.expert_count": np.ones(2, np.int32)}, LARGE, "Q8_0", ["llama.expert_count"]),
        ({"llama.expert_count": 8}, LARGE, "Q8_0", ["experts", "F32, F16, BF16"]),
        ({"general.architecture": "falcon", "falcon.block_count": 1}, LARGE, "Q4_K", ["falcon"]),
        ({}, NAN, "Q8_0", ["blk.0.ffn_up.weight[2, 5] is nan"]),
        ({}, LARGE, "F16", ["rows 0 to 2", "1e+20", "F16 cannot hold it"]),
        ({}, LARGE, "Q8_0", ["blk.0.ffn_up.weight, rows 0 to 2", "beyond f16", "Q8_0"]),
        ({}, np.full((1, 2, 32), 3, np.int32), "Q8_0", ["blk.0.ffn_up.weight", "I32"]),
    ],
)
def test_refused(
    metadata: dict[str, Any], matrix: np.ndarray, target: str, words: list[str]
) -> None:
    source = small(metadata, {"blk.0.ffn_up.weight": matrix})
    with pytest.raises((FileError, OptionError)) as error:
        bytes_of(plan(source, target))
    assert all(word in str(error.value) for word in words), error.value


def test_an_overflow_of_q4_k_is_told() -> None:
    matrix = np.full((2, 256), 1e20, np.float32)
    with pytest.raises(FileError, match=r"rows 0 to 1: a scale is beyond f16; Q4_K"):
        bytes_of(plan(small({}, {"blk.0.ffn_up.weight": matrix}), "Q4_K"))


def test_slices_of_a_tensor(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tensor that is read in slices of odd numbers of rows is what it is at once."""
    matrix = np.random.default_rng(0).standard_normal((7, 64)).astype(np.float32)
    source = small({}, {"blk.0.ffn_up.weight": matrix, "blk.0.ffn_norm.weight": matrix[0]})
    whole = bytes_of(plan(source))
    monkeypatch.setattr("wgtrain.model.quantise_file._VALUES", 3 * 64 + 5)
    assert bytes_of(plan(source)) == whole
    raw = oracle.quants.quantize(matrix, oracle.GGMLQuantizationType.Q8_0)
    info = parse_gguf(whole).tensors["blk.0.ffn_up.weight"]
    assert whole[info.offset : info.offset + info.nbytes] == raw.tobytes()


def test_what_stays(folder: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Files: a folder is no model, the input is not written over, nor another without --force."""
    source = write_base(folder, "odd")
    before = source.read_bytes()
    for out, words in [
        (write_base(folder, "wide"), "exists already"),
        (tmp_path / "no" / "x.gguf", "there is no folder"),
        (tmp_path, "a folder; the name of a file is needed"),
    ]:
        status, said = quantize(capsys, source, "--type", "F16", "--out", out)
        assert status == 2 and words in said
    status, said = quantize(capsys, source, "--type", "F16", "--out", source, "--force")
    assert status == 2 and "the output is also the input" in said
    assert source.read_bytes() == before
    status, said = quantize(capsys, tmp_path, "--type", "F16", "--out", tmp_path / "x.gguf")
    assert status == 2 and "wgtrain convert" in said
    out = tmp_path / "x.gguf"
    status, said = quantize(capsys, source, "--type", "f16", "--out", out)
    assert status == 0 and "16 F16" in said and "5 F32" in said and "MiB" in said


def test_what_is_quantised_already_is_copied() -> None:
    raw = oracle.quants.quantize(np.ones((3, 32), np.float32), oracle.GGMLQuantizationType.Q8_0)
    source = small({}, {"blk.0.ffn_up.weight": Raw("Q8_0", (3, 32), raw.tobytes())})
    made = plan(source)
    assert made.notes == [] and raw.tobytes() in bytes_of(made)


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a page that did not load it: K types and floats need none."""
    source = small({}, {"blk.0.ffn_up.weight": np.ones((2, 256), np.float32)})
    monkeypatch.setitem(sys.modules, "gguf", None)
    for target in ("F16", "Q4_K", "Q6_K"):
        assert bytes_of(plan(source, target))
    with pytest.raises(FileError, match=r"pip install gguf \(in a page: await micropip"):
        bytes_of(plan(source, "Q8_0"))
