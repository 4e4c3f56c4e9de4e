"""The tensors of folders in a GGUF's places: what moves, what is added, what is left out."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import test_huggingface as folders

from wgtrain import gpu
from wgtrain.errors import FileError
from wgtrain.files import BytesSource, read_range, read_safetensors
from wgtrain.files.huggingface import FolderModel, open_folder_model
from wgtrain.files.safetensors import write_safetensors

WIDTH, HEADS, KV, HEAD, LAYERS, ROWS = 12, 3, 1, 4, 2, 11
RNG = np.random.default_rng(0)


def numbers(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype(np.float32)


def settings(kind: str, **more: Any) -> dict[str, Any]:
    return {
        "model_type": kind,
        "hidden_size": WIDTH,
        "intermediate_size": 20,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV,
        "vocab_size": ROWS,
        "tie_word_embeddings": True,
        **more,
    }


def opened(folder: Path) -> FolderModel:
    files = {p.name: BytesSource(p.read_bytes(), p.name) for p in folder.iterdir()}
    model: FolderModel = gpu.run(open_folder_model(files, "x"))
    return model


def tensor(model: FolderModel, name: str) -> np.ndarray:
    """A tensor, whole, and the same in pieces."""
    info = model.gguf.tensors[name]
    whole = bytes(gpu.run(read_range(model.source, info.offset, info.nbytes)))
    for _ in range(20):
        first, last = np.sort(RNG.integers(0, info.nbytes + 1, 2)).tolist()
        part = gpu.run(read_range(model.source, info.offset + first, last - first))
        assert bytes(part) == whole[first:last], (name, first, last)
    return np.frombuffer(whole, "<f4" if info.type == "F32" else "<f2").reshape(info.shape)


def permuted(x: np.ndarray, heads: int) -> np.ndarray:
    return np.stack([x.reshape(heads, 2, -1, *x.shape[1:])[:, i] for i in (0, 1)], 2).reshape(
        x.shape
    )


def test_biases_move_with_their_rows(tmp_path: Path) -> None:
    tensors = {"model.embed_tokens.weight": numbers(ROWS, WIDTH)}
    for name, n in (("q", 12), ("k", 4), ("v", 4), ("o", 12)):
        tensors[f"model.layers.1.self_attn.{name}_proj.weight"] = numbers(n, WIDTH)
        tensors[f"model.layers.1.self_attn.{name}_proj.bias"] = numbers(n)
    folders.write(tmp_path, settings("llama", attention_bias=True), tensors)
    model = opened(tmp_path)
    for name, heads in (("q", HEADS), ("k", KV)):
        for kind in ("weight", "bias"):
            moved = permuted(tensors[f"model.layers.1.self_attn.{name}_proj.{kind}"], heads)
            np.testing.assert_array_equal(tensor(model, f"blk.1.attn_{name}.{kind}"), moved)
    for ours, theirs in (("attn_v", "v_proj"), ("attn_output", "o_proj")):
        plain = tensors[f"model.layers.1.self_attn.{theirs}.bias"]
        np.testing.assert_array_equal(tensor(model, f"blk.1.{ours}.bias"), plain)


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16"])
def test_norms_of_gemma(kind: str, tmp_path: Path) -> None:
    """1 + w in f32, whatever the file has; matrices keep their type."""
    names = {
        "model.norm": "output_norm",
        "model.layers.0.input_layernorm": "blk.0.attn_norm",
        "model.layers.0.post_feedforward_layernorm": "blk.0.post_ffw_norm",
        "model.layers.1.self_attn.q_norm": "blk.1.attn_q_norm",
    }
    tensors = {f"{name}.weight": numbers(WIDTH) for name in names}
    tensors["model.embed_tokens.weight"] = numbers(ROWS, WIDTH)
    if kind != "F32":
        tensors = {name: x.astype(np.float16) for name, x in tensors.items()}
    data = write_safetensors(tensors, {})
    values = {name: x.astype(np.float32) for name, x in tensors.items()}
    if kind == "BF16":  # the same bits, read as another type
        n = int.from_bytes(data[:8], "little")
        head = data[8 : 8 + n].replace(b'"F16"', b'"BF16"')
        data = len(head).to_bytes(8, "little") + head + data[8 + n :]
        values = read_safetensors(data)
    folders.write(tmp_path, settings("gemma3_text", head_dim=WIDTH), tensors)
    (tmp_path / "model.safetensors").write_bytes(data)
    model = opened(tmp_path)
    for theirs, ours in names.items():
        assert model.gguf.tensors[f"{ours}.weight"].type == "F32"
        expected = np.float32(1) + values[f"{theirs}.weight"]
        np.testing.assert_array_equal(tensor(model, f"{ours}.weight"), expected)
    assert model.gguf.tensors["token_embd.weight"].type == kind


def test_norms_by_head(tmp_path: Path) -> None:
    """One a head in the folder, one tensor in a GGUF; a missing one is told."""
    tensors = {"model.embed_tokens.weight": numbers(ROWS, WIDTH)}
    for head in reversed(range(12)):
        key = f"model.layers.0.self_attn.q_layernorm.norms.{head}.weight"
        tensors[key] = numbers(HEAD)
    config = settings("stablelm", partial_rotary_factor=0.5, qk_layernorm=True)
    folders.write(tmp_path, config, tensors)
    stacked = np.stack(
        [tensors[f"model.layers.0.self_attn.q_layernorm.norms.{h}.weight"] for h in range(12)]
    )
    np.testing.assert_array_equal(tensor(opened(tmp_path), "blk.0.attn_q_norm.weight"), stacked)
    del tensors["model.layers.0.self_attn.q_layernorm.norms.7.weight"]
    folders.write(tmp_path, config, tensors)
    with pytest.raises(FileError, match="blk.0.attn_q_norm.weight: the norms of its heads are not"):
        opened(tmp_path)


SPELLINGS = ("model.language_model.", "language_model.model.", "model.")


@pytest.mark.parametrize("prefix", SPELLINGS)
def test_parts_that_are_not_text(prefix: str, tmp_path: Path) -> None:
    """Three spellings of the text part; whatever else there is is left out, in one line."""
    head = "language_model.lm_head" if prefix == SPELLINGS[1] else "lm_head"
    tensors = {
        f"{prefix}embed_tokens.weight": numbers(ROWS, WIDTH),
        f"{prefix}layers.1.mlp.up_proj.weight": numbers(20, WIDTH),
        f"{head}.weight": numbers(ROWS, WIDTH),
        "vision_tower.layers.0.q_proj.weight": numbers(4, 4),
        "model.multi_modal_projector.linear.weight": numbers(4, 4),
        "visual.blocks.0.attn.qkv.weight": numbers(2, 2),
    }
    text = settings("mistral", sliding_window=None)
    whole = {"model_type": "mistral3", "text_config": text, "tie_word_embeddings": False}
    folders.write(tmp_path, whole, tensors)
    model = opened(tmp_path)
    names = {"token_embd.weight", "blk.1.ffn_up.weight", "output.weight"}
    assert model.gguf.tensors.keys() == names
    assert [note for note in model.gguf.notes if "3 tensors of its vision part" in note]
    assert model.gguf.metadata["wgtrain.whole_modules"] is True
    assert model.gguf.metadata["general.architecture"] == "mistral3"
    text["architectures"] = ["MistralForCausalLM"]
    (tmp_path / "config.json").write_text(json.dumps(whole))
    assert opened(tmp_path).gguf.metadata["general.architecture"] == "llama"
    tensors["audio_tower.x.weight"] = numbers(2, 2)
    folders.write(tmp_path, whole, tensors)
    with pytest.raises(
        FileError, match=r"'audio_tower.x.weight' of model.safetensors is not known"
    ):
        opened(tmp_path)


def test_dropout_is_told(tmp_path: Path) -> None:
    tensors = {"model.embed_tokens.weight": numbers(ROWS, WIDTH)}
    folders.write(tmp_path, settings("starcoder2", residual_dropout=0.1), tensors)
    assert opened(tmp_path).gguf.notes == (
        "residual_dropout = 0.1: dropout within the base model is not applied",
    )
