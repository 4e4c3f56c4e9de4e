"""Our GGUF reader and writer against the gguf package's, in both directions."""

import asyncio
import struct
from pathlib import Path
from typing import Any

import broken
import gguf as oracle
import numpy as np
import pytest

from wgtrain.errors import FileError, OptionError
from wgtrain.files import (
    ARCHITECTURES,
    BLOCKS,
    GGUF,
    LINEARS,
    Architecture,
    BytesSource,
    Raw,
    gguf_tensor,
    hf_module,
    parse_gguf,
    permute_rows,
    read_gguf,
    read_range,
    resolve_targets,
    split_tensor,
    tensor_name,
    unpermute_rows,
    write_gguf,
)

METADATA: dict[str, Any] = {
    "general.architecture": "llama",
    "a.u8": np.uint8(255),
    "a.i8": np.int8(-128),
    "a.u16": np.uint16(65535),
    "a.i16": np.int16(-5),
    "a.u32": np.uint32(7),
    "a.i32": np.int32(-7),
    "a.u64": np.uint64(2**64 - 1),
    "a.i64": np.int64(-(2**63)),
    "a.f32": np.float32(1e-5),
    "a.f64": np.float64(0.1),
    "a.true": True,
    "a.false": np.bool_(False),
    "a.empty": "",
    "a.text": "▁héllo\n{% for %}\0",
    "a.int": 2**32 - 1,
    "a.long": 2**32,
    "a.negative": -1,
    "a.unsigned": 2**63,
    "a.float": 0.1,
    "l.words": ["", "a", "▁the", "\U0001f600" * 3],
    "l.none": [],
    "l.u8": np.arange(5, dtype=np.uint8),
    "l.i16": np.arange(-3, 4, dtype=np.int16),
    "l.i32": np.arange(-3, 4, dtype=np.int32),
    "l.u64": np.array([0, 2**64 - 1], np.uint64),
    "l.f32": np.linspace(-1, 1, 13, dtype=np.float32),
    "l.f64": np.linspace(-1, 1, 3),
    "l.bool": np.array([True, False, True]),
    "l.zero": np.zeros(0, np.float32),
}
# What the reader gives for the ones whose type the writer chose or numpy carried.
READ_BACK = {key: x.item() for key, x in METADATA.items() if isinstance(x, np.generic)} | {
    "a.float": float(np.float32(0.1))
}


def tensors() -> dict[str, np.ndarray | Raw]:
    rng = np.random.default_rng(1)
    made: dict[str, np.ndarray | Raw] = {
        "vector": rng.standard_normal(5).astype(np.float32),
        "matrix": rng.standard_normal((3, 7)).astype(np.float32),
        "half": rng.standard_normal((2, 3, 5)).astype(np.float16),
        "strided": rng.standard_normal((4, 6)).astype(np.float32).T,
        "wide": rng.integers(-9, 9, (1, 2, 3, 4)),
        "bytes": np.arange(-3, 4, dtype=np.int8),
    }
    for name, block in BLOCKS.items():
        row = block.row_nbytes(2 * block.size)
        made[f"raw.{name}"] = Raw(name, (3, 2 * block.size), rng.bytes(3 * row))
    return made


def contents(tensor: np.ndarray | Raw) -> bytes:
    return bytes(tensor.data) if isinstance(tensor, Raw) else tensor.tobytes()


def check_same(found: Any, wanted: Any) -> None:
    if isinstance(wanted, np.ndarray):
        assert isinstance(found, np.ndarray) and found.dtype == wanted.dtype
        np.testing.assert_array_equal(found, wanted)
    else:
        assert found == wanted and type(found) is type(wanted)


def drive(coroutine: Any) -> Any:
    try:
        coroutine.send(None)
    except StopIteration as done:
        return done.value
    raise AssertionError("waits")


def test_blocks_agree_with_the_package() -> None:
    ours = {block.ggml_id: (block.name, block.size, block.nbytes) for block in BLOCKS.values()}
    theirs = {int(t): (t.name, *sizes) for t, sizes in oracle.GGML_QUANT_SIZES.items()}
    assert theirs.items() <= ours.items()
    assert all(name == block.name for name, block in BLOCKS.items())


def test_round_trip() -> None:
    data = write_gguf(METADATA, tensors())
    assert data == write_gguf(METADATA, tensors())
    assert len(data) % 32 == 0
    found = parse_gguf(data, "x")
    assert (found.name, found.version) == ("x", 3)
    assert [*found.metadata] == [*METADATA]
    for key, value in (METADATA | READ_BACK).items():
        check_same(found.metadata[key], value)
    assert [*found.tensors] == [*tensors()]
    for name, tensor in tensors().items():
        info = found.tensors[name]
        assert (info.name, info.shape, info.offset % 32) == (name, tensor.shape, 0)
        assert data[info.offset : info.offset + info.nbytes] == contents(tensor)
        if isinstance(tensor, Raw):
            assert info.type == tensor.type
    types = {name: found.tensors[name].type for name in ("vector", "half", "wide", "bytes")}
    assert types == {"vector": "F32", "half": "F16", "wide": "I64", "bytes": "I8"}


def test_the_package_reads_what_we_write(tmp_path: Path) -> None:
    path = tmp_path / "ours.gguf"
    path.write_bytes(write_gguf(METADATA, tensors()))
    reader = oracle.GGUFReader(path)
    fields = {k: f for k, f in reader.fields.items() if not k.startswith("GGUF.")}
    assert [*fields] == [*METADATA]
    for key, value in (METADATA | READ_BACK).items():
        if np.size(value) or isinstance(value, str):  # it cannot tell what empty arrays hold
            np.testing.assert_array_equal(fields[key].contents(), value)
    names = {key: field.types[-1].name for key, field in fields.items() if key[:2] == "a."}
    for key in ("a.u8", "a.i8", "a.u16", "a.i16", "a.u32", "a.i32", "a.u64", "a.i64"):
        assert names[key] == key[2:].replace("u", "UINT").replace("i", "INT")
    assert [names[f"a.{key}"] for key in ("f32", "f64", "float")] == [
        "FLOAT32",
        "FLOAT64",
        "FLOAT32",
    ]
    assert [names[f"a.{key}"] for key in ("int", "long", "negative", "unsigned")] == [
        *("UINT32", "INT64", "INT64", "UINT64")
    ]
    assert [t.name for t in reader.tensors] == [*tensors()]
    for theirs, (name, ours) in zip(reader.tensors, tensors().items(), strict=True):
        assert tuple(reversed(theirs.shape.tolist())) == ours.shape, name
        assert theirs.data.tobytes() == contents(ours), name


def test_we_read_what_the_package_writes(tmp_path: Path) -> None:
    path = tmp_path / "theirs.gguf"
    writer = oracle.GGUFWriter(path, "qwen2")
    writer.add_uint32("qwen2.block_count", 3)
    writer.add_float32("qwen2.eps", 1e-6)
    writer.add_bool("some.flag", True)
    writer.add_array("tokenizer.ggml.tokens", ["a", "▁b", "c"])
    writer.add_array("tokenizer.ggml.scores", [0.5, -1.5])
    writer.add_array("tokenizer.ggml.token_type", [1, 2, 3])
    writer.add_array("nested", [[1, 2], [3]])
    matrix = np.random.default_rng(0).standard_normal((5, 64)).astype(np.float32)
    writer.add_tensor("matrix", matrix)
    quantised = {}
    for kind in ("Q8_0", "Q4_0", "BF16", "F16"):
        type_ = oracle.GGMLQuantizationType[kind]
        quantised[kind] = oracle.quants.quantize(matrix, type_)
        writer.add_tensor(kind, quantised[kind], raw_dtype=type_)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    data = path.read_bytes()
    found = parse_gguf(data)
    assert found.metadata["general.architecture"] == "qwen2"
    assert found.get("qwen2.block_count", int) == 3
    assert found.get("qwen2.eps", float) == np.float32(1e-6)
    assert found.get("some.flag", bool) is True
    assert found.get("tokenizer.ggml.tokens", list) == ["a", "▁b", "c"]
    check_same(found.get("tokenizer.ggml.scores", np.ndarray), np.array([0.5, -1.5], np.float32))
    check_same(found.metadata["tokenizer.ggml.token_type"], np.array([1, 2, 3], np.int32))
    assert [part.tolist() for part in found.metadata["nested"]] == [[1, 2], [3]]
    for name, array in {"matrix": matrix, **quantised}.items():
        info = found.tensors[name]
        assert info.shape == (5, 64)
        assert info.type == ("F32" if name == "matrix" else name)
        assert data[info.offset : info.offset + info.nbytes] == array.tobytes()


def test_alignment_and_version_2() -> None:
    align = broken.entry("general.alignment", broken.U32, struct.pack("<I", 64))
    data = broken.gguf([align], [broken.tensor(offset=64)], 256, version=2)
    found = parse_gguf(data)
    assert found.version == 2
    front = data.index(b"x" + struct.pack("<I", 2)) + 1 + 4 + 16 + 4 + 8
    assert found.tensors["x"].offset == -(-front // 64) * 64 + 64


@pytest.mark.parametrize(
    ("front", "says"),
    [
        (b"GGML" + bytes(60), "begins with b'GGML'"),
        (b"", "the magic number needs 4 bytes, 0 are left"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "a pointer of Git LFS: git lfs pull"),
        (b"\n<!DOCTYPE html><html>", "it is a web page: download the file itself"),
        (b"GGUF" + struct.pack("<IQQ", 1, 0, 0), "GGUF version 1; 2 and 3 are read"),
        (b"GGUF" + struct.pack("<IQQ", 4, 0, 0), "GGUF version 4; 2 and 3 are read"),
        (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "a big-endian GGUF file"),
    ],
)
def test_other_files_are_refused_by_name(front: bytes, says: str) -> None:
    with pytest.raises(FileError, match=says):
        parse_gguf(front)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "pytorch_model.bin"])
def test_files_of_a_folder_point_to_the_folder(name: str) -> None:
    with pytest.raises(FileError, match="of a model of Hugging Face, name its folder$"):
        parse_gguf(b"{   }", name)


def test_a_file_that_is_cut_short() -> None:
    data = write_gguf({"a": 1}, {"x": np.ones((4, 64), np.float32), "y": np.ones(4, np.float32)})
    assert parse_gguf(data).tensors
    for length in (len(data) - 48, len(data) - 400):
        with pytest.raises(FileError, match="was it downloaded whole"):
            parse_gguf(data[:length])


class Slow:
    """A source that really waits, counts what is read, and can lie."""

    def __init__(self, data: bytes, short: int = 0, name: str = "slow") -> None:
        self.data, self.size, self.name, self.short = data, len(data), name, short
        self.asked: list[tuple[int, int]] = []

    async def read_range(self, offset: int, n: int) -> bytes:
        self.asked.append((offset, n))
        await asyncio.sleep(0)
        return self.data[offset : offset + n - self.short]


def test_only_the_front_is_read() -> None:
    words = [f"word {i}" * 20 for i in range(20_000)]
    weights = np.zeros((1 << 20, 5), np.float32)
    data = write_gguf({"k": 1, "words": words, "last": "x"}, {"w": weights})
    source = Slow(data)
    found = asyncio.run(read_gguf(source))
    assert found.metadata == {"k": 1, "words": words, "last": "x"}
    ends = [offset + n for offset, n in source.asked]
    assert [offset for offset, _ in source.asked] == [0, *ends[:-1]]  # no byte twice
    assert {n for _, n in source.asked} == {1 << 20}
    assert ends[-1] < found.tensors["w"].offset + (1 << 20) < len(data) // 2
    assert found == drive(read_gguf(BytesSource(data, "slow")))


def test_ranges_are_checked() -> None:
    whole = BytesSource(b"0123456789", "digits")
    assert bytes(drive(read_range(whole, 3, 4))) == b"3456"
    for offset, n in ((0, 11), (10, 1), (-1, 2), (3, -1), (2**64, 1)):
        with pytest.raises(FileError, match="digits: bytes .* the file has 10"):
            drive(read_range(whole, offset, n))
    with pytest.raises(FileError, match="slow: 7 bytes at 0 instead of 8"):
        asyncio.run(read_gguf(Slow(b"GGUF1234", short=1)))

    class Unreadable:  # and without a name
        size = 5

        def read_range(self, offset: int, n: int) -> bytes:
            raise OSError("bad sector")

    with pytest.raises(FileError, match="file: cannot read 5 bytes at 0: bad sector"):
        drive(read_gguf(Unreadable()))  # type: ignore[arg-type]


def test_typed_values() -> None:
    values = {"i": 3, "f": 0.5, "b": True, "s": "x", "l": ["x"], "a": np.arange(2, dtype=np.int8)}
    values |= {"nan": float("nan")}
    found = GGUF("m.gguf", 3, values, {})
    kinds = {"i": int, "f": float, "b": bool, "s": str, "l": list, "a": np.ndarray}
    for key, kind in kinds.items():
        assert found.get(key, kind) is values[key]
        for other, wrong in kinds.items():
            if other != key and (key, wrong) != ("i", float):
                with pytest.raises(FileError, match=rf"m\.gguf: key '{key}' is .* expected"):
                    found.get(key, wrong)
    assert type(found.get("i", float)) is float
    assert found.get("none", int, None) is None and found.get("none", int, 4) == 4
    with pytest.raises(FileError, match=r"m\.gguf: key 'none' is missing, int expected"):
        found.get("none", int)
    with pytest.raises(FileError, match="key 'nan' is nan .float., finite float expected"):
        found.get("nan", float)


@pytest.mark.parametrize(
    ("metadata", "made"),
    [
        ({"k": 2**64}, {}),
        ({"k": None}, {}),
        ({"k": [1, 2]}, {}),
        ({"k": ["a", 1]}, {}),
        ({"k": np.zeros((2, 2))}, {}),
        ({"k": np.float16(1)}, {}),
        ({"": 1}, {}),
        ({"k" * 65536: 1}, {}),
        ({"general.alignment": 64}, {}),
        ({}, {"x": np.zeros(3, np.uint8)}),
        ({}, {"x" * 64: np.zeros(3, np.float32)}),
        ({}, {"x": np.zeros((1, 1, 1, 1, 1), np.float32)}),
        ({}, {"x": np.zeros((0, 3), np.float32)}),
        ({}, {"x": np.float32(1)}),
        ({}, {"x": Raw("Q8_0", (2, 33), bytes(68))}),
        ({}, {"x": Raw("Q8_0", (2, 32), bytes(67))}),
    ],
)
def test_what_gguf_cannot_hold_is_not_written(metadata: dict, made: dict) -> None:
    with pytest.raises((ValueError, TypeError)):
        write_gguf(metadata, made)


def test_real_files_agree_with_the_package(data_dir: Path) -> None:
    paths = [data_dir / "stories260K.gguf", data_dir / "vocab" / "ggml-vocab-llama-spm.gguf"]
    for path in paths:
        found, reader = parse_gguf(path.read_bytes()), oracle.GGUFReader(path)
        fields = {k: f for k, f in reader.fields.items() if not k.startswith("GGUF.")}
        assert [*fields] == [*found.metadata]
        for key, field in fields.items():
            np.testing.assert_array_equal(found.metadata[key], field.contents())
        ours = [(i.name, i.shape, i.type, i.offset, i.nbytes) for i in found.tensors.values()]
        assert ours == [
            (t.name, tuple(t.shape[::-1]), t.tensor_type.name, t.data_offset, t.n_bytes)
            for t in reader.tensors
        ]


# --- names ----------------------------------------------------------------------------------------


def test_targets() -> None:
    llama, phi3 = (ARCHITECTURES[name].linears for name in ("llama", "phi3"))
    seven = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
    assert resolve_targets("all-linear", llama) == seven
    assert resolve_targets("all-linear, lm_head", llama) == (*seven, "output")
    assert resolve_targets("all-linear") == (*seven[:3], "attn_qkv", *seven[3:]) == tuple(LINEARS)
    assert resolve_targets("all-linear", phi3) == ("attn_qkv", "attn_output", "ffn_up", "ffn_down")
    assert resolve_targets("gate_up_proj,qkv_proj", phi3) == ("attn_qkv", "ffn_up")
    assert resolve_targets("c_fc", ARCHITECTURES["starcoder2"].linears) == ("ffn_up",)
    for name, place in (("attn_q", "attn_qkv"), ("v_proj", "attn_qkv"), ("gate_proj", "ffn_up")):
        with pytest.raises(OptionError, match=f"module '{name}' .this model has it in '{place}'"):
            resolve_targets(name, phi3)
    with pytest.raises(OptionError, match="unknown module 'qkv_proj'.*all-linear, attn_q/q_proj"):
        resolve_targets("qkv_proj", llama)
    assert resolve_targets("lm_head,q_proj,attn_v, q_proj") == ("attn_q", "attn_v", "output")
    assert resolve_targets(["mlp.down_proj", "o_proj", "output"]) == (
        *("attn_output", "ffn_down", "output"),
    )
    for bad, near in (("q_prj", "q_proj"), ("attn_x", "attn_"), ("all-linera", "all-linear")):
        with pytest.raises(
            OptionError, match=f"unknown module '{bad}'.*did you mean '{near}.*ffn_up"
        ):
            resolve_targets(f"attn_q,{bad}")
    for empty in ("", "attn_q,,attn_k", []):
        with pytest.raises(OptionError, match="target_modules"):
            resolve_targets(empty)


@pytest.mark.parametrize("row", ARCHITECTURES.values(), ids=list(ARCHITECTURES))
def test_names_there_and_back(row: Architecture) -> None:
    assert hf_module("blk.12.attn_output.weight", row) == "model.layers.12.self_attn.o_proj"
    assert hf_module("output.weight", row) == "lm_head"
    assert split_tensor("blk.12.ffn_up.weight") == (12, "ffn_up")
    assert split_tensor("output.weight") == (-1, "output")
    for target in (*row.linears, "output"):
        name = tensor_name(target, 7)
        assert gguf_tensor(hf_module(name, row) or "", row) == name
    for stem in ("token_embd", "output_norm", "output", *(f"blk.3.{norm}" for norm in row.norms)):
        assert row.gguf_stem(row.hf_module(stem) or "") == stem
    for other in (
        "blk.1.attn_norm.weight",
        "blk.01.attn_q.weight",
        "token_embd.weight",
        "blk.1.attn_q",
    ):
        assert hf_module(other, row) is None and split_tensor(other) is None
    for other in (
        "model.layers.0.mlp.q_proj",
        "model.layers.x.mlp.up_proj",
        "model.embed_tokens",
        "",
    ):
        assert gguf_tensor(other, row) is None


def test_rows_differ_where_models_do() -> None:
    llama, qwen2, qwen3 = (ARCHITECTURES[name] for name in ("llama", "qwen2", "qwen3"))
    assert [llama.heads(name, 6, 2) for name in ("attn_q", "attn_k", "attn_v")] == [6, 2, 0]
    assert qwen2.heads("attn_q", 6, 2) == qwen3.heads("attn_k", 6, 2) == 0
    q = "model.layers.2.self_attn.q_"
    assert qwen2.gguf_tensor(f"{q}proj.bias") == "blk.2.attn_q.bias"
    assert llama.gguf_tensor(f"{q}proj.bias") == "blk.2.attn_q.bias"
    assert qwen3.gguf_tensor(f"{q}proj.bias") is None
    assert qwen3.gguf_tensor(f"{q}norm.weight") == "blk.2.attn_q_norm.weight"
    assert llama.gguf_tensor(f"{q}norm.weight") is None
    assert llama.gguf_tensor("model.norm.weight") == "output_norm.weight"
    after = "blk.2.post_attention_norm", "blk.2.ffn_norm"
    names = {row.gguf_stem("model.layers.2.post_attention_layernorm") for row in (llama, qwen3)}
    assert names == {after[1]}
    assert all(
        ARCHITECTURES[name].gguf_stem("model.layers.2.post_attention_layernorm") == after[0]
        for name in ("gemma2", "gemma3", "olmo2")
    )


@pytest.mark.parametrize(("heads", "half", "width"), [(1, 1, 1), (3, 5, 2), (4, 8, 7)])
def test_row_order(heads: int, half: int, width: int) -> None:
    """Row j of half i of a head comes to 2 j + i: the index formula, apart from any reshape."""
    rows = np.arange(heads * 2 * half * width).reshape(-1, width)
    file = permute_rows(rows, heads)
    for h in range(heads):
        for i in range(2):
            for j in range(half):
                there, here = h * 2 * half + 2 * j + i, h * 2 * half + i * half + j
                np.testing.assert_array_equal(file[there], rows[here])
    np.testing.assert_array_equal(unpermute_rows(file, heads), rows)
