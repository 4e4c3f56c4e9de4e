"""`wgtrain convert` of folders: the file is whole, llama.cpp takes it, and it computes what the
folder does.
"""

import hashlib
import json
import struct
from pathlib import Path
from typing import Any

import needs
import numpy as np
import pytest
import test_huggingface as folders
import tiny
import vocabs

import wgtrain as package
from wgtrain import api, gpu
from wgtrain.cli import main as cli
from wgtrain.data.gguf_tokenizer import looks_special
from wgtrain.data.pre_hashes import NAMES, TEXT
from wgtrain.data.sentencepiece_model import read_pieces
from wgtrain.errors import FileError
from wgtrain.files import GGUF, BytesSource, parse_gguf
from wgtrain.files.floats import float_bytes
from wgtrain.files.gguf_writer import gguf_chunks
from wgtrain.model.convert import Conversion, plan_conversion
from wgtrain.model.folder import Folder, open_folder


def convert(folder: Path, kind: str | None = None) -> Conversion:
    files = {path.name: BytesSource(path.read_bytes(), path.name) for path in folder.iterdir()}
    conversion: Conversion = gpu.run(plan_conversion(files, str(folder), kind))
    return conversion


def bytes_of(conversion: Conversion) -> bytes:
    async def whole() -> bytes:
        chunks = gguf_chunks(conversion.metadata, conversion.tensors)
        return b"".join([bytes(chunk) async for chunk in chunks])

    data: bytes = gpu.run(whole())
    return data


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model with a tokenizer of fewer pieces than it has rows."""
    path = folders.by_hand(tmp_path / "base", "llama-tied")
    folders.add_tokenizer(path)
    return path


def wgtrain(capsys: pytest.CaptureFixture[str], *arguments: Any) -> tuple[int, str]:
    with pytest.raises(SystemExit) as exit:
        cli.main(["convert", *map(str, arguments)])
    captured = capsys.readouterr()
    return int(exit.value.code or 0), captured.out + captured.err


@pytest.mark.gpu
@pytest.mark.oracle
@pytest.mark.parametrize(("kind", "bound"), [("f32", 1e-5), ("f16", 1e-2), ("bf16", 3e-2)])
def test_llama_cpp_computes_the_same(kind: str, bound: float, folder: Path) -> None:
    from llama_cpp_oracle import LlamaCpp

    data = bytes_of(convert(folder, kind))
    ours = folders.logits(data)
    judge = LlamaCpp(data)
    theirs = judge.logits(np.array(folders.TOKENS))
    judge.close()
    assert np.abs(ours - theirs).max() < bound * np.ptp(theirs)
    if kind == "f32":
        np.testing.assert_array_equal(ours, folders.logits(folder))


def test_types(folder: Path) -> None:
    """Norms stay f32, matrices take the type, rounded as the gguf package rounds."""
    quants = needs.package("gguf.quants")
    types = needs.package("gguf").GGMLQuantizationType
    whole = parse_gguf(bytes_of(convert(folder)))
    assert {t.type for t in whole.tensors.values()} == {"F32"}
    assert whole.metadata["general.file_type"] == 0
    base = bytes_of(convert(folder, "f32"))
    for kind, number in (("f16", 1), ("bf16", 32)):
        data = bytes_of(convert(folder, kind))
        made = parse_gguf(data)
        assert made.metadata["general.file_type"] == number
        for name, info in made.tensors.items():
            plain = whole.tensors[name]
            before = np.frombuffer(base, "<f4", plain.nbytes // 4, plain.offset)
            if len(info.shape) == 1:
                assert info.type == "F32"
                expected = before.tobytes()
            else:
                assert info.type == kind.upper()
                expected = quants.quantize(before.reshape(info.shape), types[info.type]).tobytes()
            assert data[info.offset : info.offset + info.nbytes] == expected, name


def test_rounding() -> None:
    """Ties, subnormals, infinities and what is no number."""
    quants = needs.package("gguf.quants")
    types = needs.package("gguf").GGMLQuantizationType
    bits = np.random.default_rng(0).integers(0, 1 << 32, 4096, np.uint32)
    bits[:8] = [0x3F808000, 0x3F818000, 0x7F7FFFFF, 0x7F800000, 0xFF800000, 0x7FC00001, 1, 1 << 31]
    values = bits.view(np.float32)
    with np.errstate(all="ignore"):
        assert float_bytes(values, "BF16") == quants.quantize(values, types.BF16).tobytes()
        assert float_bytes(values, "F16") == quants.quantize(values, types.F16).tobytes()


@pytest.mark.gpu
def test_half_precision_stays(tmp_path: Path) -> None:
    base = tiny.tiny("qwen2")
    half = {name: w.astype(np.float16) for name, w in base.weights.items()}
    folders.write(tmp_path, folders.config(base.spec), half)
    folders.add_tokenizer(tmp_path)
    made = convert(tmp_path)
    assert made.type == "F16"
    np.testing.assert_array_equal(folders.logits(bytes_of(made)), folders.logits(tmp_path))


def test_too_large_for_f16(folder: Path) -> None:
    weights = dict(tiny.tiny("llama-tied").weights)
    weights["model.layers.1.mlp.up_proj.weight"] = weights["model.layers.1.mlp.up_proj.weight"] * 1
    weights["model.layers.1.mlp.up_proj.weight"][3, 5] = 1e5
    folders.write(folder, folders.config(tiny.SPECS["llama-tied"]), weights)
    with pytest.raises(FileError, match=r"blk.1.ffn_up.weight\[3, 5\] is 100000, which F16 cannot"):
        bytes_of(convert(folder, "f16"))
    bytes_of(convert(folder, "bf16"))


def test_what_a_gguf_cannot_hold(folder: Path) -> None:
    settings = json.loads((folder / "config.json").read_text())
    yarn = {"rope_type": "yarn", "factor": 2.0, "beta_fast": 4.0, "truncate": False}
    settings["rope_scaling"] = yarn
    (folder / "config.json").write_text(json.dumps(settings))
    with pytest.raises(FileError, match="cannot hold all of this model") as caught:
        convert(folder)
    assert "beta_fast 4, beta_slow 1: llama.cpp takes 32 and 1" in str(caught.value)
    assert "truncate false" in str(caught.value)


def test_command(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "made.gguf"
    code, said = wgtrain(capsys, folder, "--out", out, "--type", "BF16")
    assert (code, "made.gguf: llama, BF16" in said) == (0, True), said
    found = parse_gguf(out.read_bytes())
    assert found.metadata["general.name"] == "base"
    assert not [key for key in found.metadata if str(tmp_path) in str(found.metadata[key])]
    for arguments, message in (
        ((folder, "--out", out), "exists already; --force replaces it"),
        (
            (folder, "--out", out, "--force", "--type", "q3"),
            "type: 'q3' is not one of f32, f16, bf16; wgtrain",
        ),
        ((tmp_path / "no", "--out", out), "No such file"),
        ((out, "--out", tmp_path / "x.gguf"), "for GGUFs of models there is wgtrain quantize"),
        ((folder, "--out", tmp_path), "a folder; the name of a file is needed"),
        ((folder, "--out", folder / "model.safetensors", "--force"), "is also the input"),
    ):
        code, said = wgtrain(capsys, *arguments)
        assert (code, message in said) == (2, True), said
    assert out.read_bytes() == bytes_of(convert(folder, "bf16"))
    (folder / "tokenizer.json").unlink()
    code, said = wgtrain(capsys, folder, "--out", out, "--force")
    assert (code, "tokenizer.json is missing" in said) == (2, True), said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "made.gguf"]


def varint(n: int) -> bytes:
    out = b""
    while n > 127:
        out, n = out + bytes([n & 127 | 128]), n >> 7
    return out + bytes([n])


def sentencepiece(gguf: GGUF) -> bytes:
    """A tokenizer.model with the pieces of a GGUF, and fields that nobody here needs."""
    out = b""
    for text, score, kind in zip(
        gguf.metadata["tokenizer.ggml.tokens"],
        gguf.metadata["tokenizer.ggml.scores"].tolist(),
        gguf.metadata["tokenizer.ggml.token_type"].tolist(),
        strict=True,
    ):
        data = text.encode()
        piece = b"\x0a" + varint(len(data)) + data + b"\x15" + struct.pack("<f", score)
        piece += b"\x18" + varint(kind) if kind != 1 else b""
        out += b"\x0a" + varint(len(piece)) + piece
    trainer = b"\x18\x02\x98\x02\x01"  # merges pairs, and falls back on bytes
    return out + b"\x12" + varint(len(trainer)) + trainer + b"\x79" + bytes(8)


def opened_folder(path: Path) -> Folder:
    return gpu.run(
        open_folder({p.name: BytesSource(p.read_bytes()) for p in path.iterdir()}, str(path))
    )


def test_a_model_of_sentencepiece(tmp_path: Path) -> None:
    """Pieces, scores and types of tokenizer.model, tokens added to it, rows that have none."""
    stories = parse_gguf((needs.data() / "stories260K.gguf").read_bytes())
    base = folders.by_hand(tmp_path / "base", "llama-tied")
    weights = dict(tiny.tiny("llama-tied").weights)
    table = weights["model.embed_tokens.weight"]
    weights["model.embed_tokens.weight"] = np.resize(table, (517, table.shape[1]))
    settings = folders.config(tiny.SPECS["llama-tied"]) | {"vocab_size": 517}
    folders.write(base, settings | {"bos_token_id": 1, "eos_token_id": 2}, weights)
    (base / "tokenizer.model").write_bytes(sentencepiece(stories))
    added = {"512": ("<|end|>", False), "513": ("<x>", True), "514": ("\u2581\u2581y", False)}
    decoder = {i: {"content": text, "special": special} for i, (text, special) in added.items()}
    (base / "tokenizer_config.json").write_text(
        json.dumps({"added_tokens_decoder": decoder, "chat_template": "{{ messages }}"})
    )
    made = parse_gguf(bytes_of(convert(base))).metadata
    before = {key: stories.metadata[f"tokenizer.ggml.{key}"] for key in ("tokens", "scores")}
    assert made["tokenizer.ggml.tokens"][:512] == before["tokens"]
    np.testing.assert_array_equal(made["tokenizer.ggml.scores"][:512], before["scores"])
    assert made["tokenizer.ggml.tokens"][512:] == ["<|end|>", "<x>", "  y", "[PAD515]", "[PAD516]"]
    assert made["tokenizer.ggml.token_type"][512:].tolist() == [3, 3, 4, 5, 5]
    assert made["tokenizer.ggml.scores"][512:].tolist() == [-1000] * 3 + [-10000] * 2
    types = stories.metadata["tokenizer.ggml.token_type"]
    np.testing.assert_array_equal(made["tokenizer.ggml.token_type"][:512], types)
    ids = [made[f"tokenizer.ggml.{key}_token_id"] for key in ("bos", "eos")]
    assert (ids, made["tokenizer.ggml.model"]) == ([1, 2], "llama")
    assert made["tokenizer.chat_template"] == "{{ messages }}"
    text = "Once upon a time, there was a little girl."
    ours = package.load_tokenizer(bytes_of(convert(base)))
    theirs = package.load_tokenizer((needs.data() / "stories260K.gguf").read_bytes())
    assert ours.encode(text, special=False) == theirs.encode(text, special=False)
    opened = api.base_tokenizer(opened_folder(base))
    assert opened.encode(text) == ours.encode(text)
    assert (opened.pieces, opened.bos_id, opened.add_bos) == (ours.pieces, 1, True)
    (base / "tokenizer.model").write_bytes(b"")
    with pytest.raises(FileError, match=r"base/tokenizer.model: no pieces of SentencePiece"):
        api.base_tokenizer(opened_folder(base))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "no pieces"),
        (b"\x0a", "no protocol buffer"),
        (b"\x0a\x05\x0a\x01", "no protocol buffer"),
        (b"\x0a\xff\xff\xff\xff\x0f", "no protocol buffer"),
        (b"\xff" * 30, "no protocol buffer"),
        (b"\x0f\x00", "no protocol buffer"),
        (b"\x0a\x03\x0a\x01\xff", "piece 0 is no valid UTF-8"),
    ],
)
def test_what_is_none(data: bytes, message: str) -> None:
    with pytest.raises(FileError, match=message):
        read_pieces(data)


def test_looks_special() -> None:
    texts = ["<|im_end|>", "<unused3>", "<pad>", "<｜end▁of▁sentence｜>", "<think>", "x", "<|x"]
    assert [looks_special(text) for text in texts] == [True] * 4 + [False] * 3


def test_special_tokens(folder: Path) -> None:
    """Ids by the texts of tokenizer_config.json; what stands in front and behind a text."""

    def made(settings: dict[str, Any], single: list[str], extra: tuple[str, ...]) -> dict[str, Any]:
        spec = json.loads((folder / "tokenizer.json").read_text())
        spec["added_tokens"] = [t for t in spec["added_tokens"] if t["id"] == 0]
        n = len(spec["model"]["vocab"])
        for i, text in enumerate(extra):
            spec["added_tokens"].append(spec["added_tokens"][0] | {"id": n + i, "content": text})
        parts = [
            {"Sequence": {"id": "A", "type_id": 0}}
            if text == "A"
            else {"SpecialToken": {"id": text, "type_id": 0}}
            for text in single
        ]
        spec["post_processor"] = {
            "type": "TemplateProcessing",
            "single": parts,
            "pair": [*parts, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {
                text: {"id": text, "ids": [n + extra.index(text)], "tokens": [text]}
                for text in single
                if text != "A"
            },
        }
        (folder / "tokenizer.json").write_text(json.dumps(spec))
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
        found = convert(folder).metadata
        names = ("bos", "eos", "padding", "eot", "unknown")
        return (
            {name: found.get(f"tokenizer.ggml.{name}_token_id") for name in names}
            | {
                name: found.get(f"tokenizer.ggml.add_{name}_token")
                for name in ("add_bos", "add_eos")
            }
            | {"bos+": found.get("tokenizer.ggml.add_bos_token")}
        )

    texts = {"bos_token": "<s>", "eos_token": {"content": "</s>"}, "pad_token": "</s>"}
    found = made(texts, ["<s>", "A"], ("<s>", "</s>"))
    n = found["bos"]
    assert (found["eos"], found["padding"], found["eot"]) == (n + 1, n + 1, None)
    assert found["bos+"] is True
    found = made({"eos_token": "<|endoftext|>", "add_bos_token": False}, ["A"], ("<s>",))
    assert (found["eos"], found["bos"], found["bos+"]) == (0, None, False)


@pytest.mark.parametrize(("name", "first"), [("llama-bpe", [128000]), ("qwen2", []), ("gpt-2", [])])
def test_the_name_of_a_pre_tokenizer(name: str, first: list[int]) -> None:
    """As the converter finds it, by what the model's own tokenizer makes of one text."""
    ids = first + vocabs.tokenizer(name).encode(TEXT, special=False)
    assert NAMES[hashlib.sha256(str(ids).encode()).hexdigest()[:16]] == name
