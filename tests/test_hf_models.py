"""Folders of every model type beside transformers, and as files in llama.cpp; adapters in PEFT."""

import json
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import hf_models
import needs
import numpy as np
import pytest
import test_convert
import test_huggingface

import wgtrain
from wgtrain import gpu
from wgtrain.errors import FileError
from wgtrain.files import BytesSource, parse_gguf, read_range, write_adapter_peft
from wgtrain.files.huggingface import class_modules, read_folder

pytestmark = [pytest.mark.gpu, pytest.mark.oracle]
# Whose mathematics a GGUF cannot carry.
REFUSED = ("llama-yarn", "gemma2-scalar")
TOKENS = np.random.default_rng(0).integers(0, 293, 50).tolist()


def relative(ours: np.ndarray, reference: np.ndarray) -> float:
    return float(np.linalg.norm(ours - reference) / np.linalg.norm(reference))


def reference(model: Any, tokens: list[int] = TOKENS) -> np.ndarray:
    import torch

    with torch.no_grad():
        logits: np.ndarray = model(input_ids=torch.tensor([tokens])).logits[0].double().numpy()
    return logits


ADAPTED = (
    *("llama-linear", "phi3-long", "granite", "glm4", "starcoder2", "olmo2", "ministral3"),
    *("gemma3-whole", "qwen2_5_vl", "granite4"),
)


@pytest.mark.parametrize("name", ADAPTED)
def test_adapters(name: str, tmp_path: Path) -> None:
    """PEFT puts an adapter's folder on the modules of the class, and finds all of them."""
    peft = needs.package("peft")
    model = hf_models.save(name, tmp_path / "base")
    plain = reference(model)
    rng = np.random.default_rng(1)
    with wgtrain.load_model(tmp_path / "base", limits="default") as opened:
        config = opened.config
        pairs = {
            tensor: (
                rng.normal(0, n_in**-0.5, (3, n_in)).astype(np.float32),
                rng.normal(0, 0.2, (n_out, 3)).astype(np.float32),
            )
            for tensor, (n_out, n_in) in config.linears().items()
        }
        adapter = wgtrain.Adapter(config.architecture, 3, 3.0, pairs)
        files = write_adapter_peft(
            adapter,
            base_name=None,
            n_head=config.n_head,
            n_head_kv=config.n_head_kv,
            n_layer=config.n_layer,
            **class_modules(opened.gguf),
        )
        folder = tmp_path / "adapter"
        folder.mkdir()
        for file, data in files.items():
            (folder / file).write_bytes(data)
        ours = opened.logits(TOKENS, adapters=[(folder, 1.0)])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", UserWarning)  # PEFT only warns of keys it does not find
        adapted = peft.PeftModel.from_pretrained(model, folder).eval().double()
    expected = reference(adapted)
    assert relative(expected, plain) > 0.05
    assert relative(ours, expected) < 1e-5


@pytest.mark.parametrize("name", hf_models.MODELS)
def test_folder(name: str, tmp_path: Path) -> None:
    """This program computes of a folder what transformers does, in rows longer than any window;
    llama.cpp takes the file made of it, and computes the same.
    """
    from llama_cpp_oracle import LlamaCpp

    folder = tmp_path / "base"  # a file's name would say something of Phi-3's tokenizer
    model = hf_models.save(name, folder).double()
    test_huggingface.add_tokenizer(folder)
    with wgtrain.load_model(folder, limits="default") as opened:
        assert relative(opened.logits(TOKENS), reference(model)) < 1e-5
    if name in REFUSED:
        with pytest.raises(FileError, match="a GGUF cannot hold all of this model"):
            test_convert.convert(folder)
        return
    data = test_convert.bytes_of(test_convert.convert(folder))
    tokens = TOKENS[: hf_models.same_in_llama_cpp(name)]
    expected = reference(model, tokens)
    judge = LlamaCpp(data)
    found = judge.logits(np.array(tokens))
    judge.close()
    bound = 1e-3 if name.startswith(("gemma", "starcoder2")) else 1e-5  # by its table of GELU
    assert np.abs(found - expected).max() < bound * np.ptp(expected)
    # This program reads of the file what it reads of the folder.
    files = {path.name: BytesSource(path.read_bytes(), path.name) for path in folder.iterdir()}
    source, seen = gpu.run(read_folder(files, "x"))
    made = parse_gguf(data)
    assert made.tensors.keys() == seen.tensors.keys()
    for key, value in seen.metadata.items():
        if not key.startswith(("general.", "wgtrain.")):
            np.testing.assert_array_equal(made.metadata[key], value, key)
    for key, info in seen.tensors.items():
        held = gpu.run(read_range(source, info.offset, info.nbytes))
        there = made.tensors[key]
        assert data[there.offset : there.offset + there.nbytes] == bytes(held), key


def test_keys_of_granite_4(tmp_path: Path) -> None:
    """Files of its models without states have keys of states, and of experts that are not there."""
    hf_models.save("granite", tmp_path)
    test_huggingface.add_tokenizer(tmp_path)
    made = test_convert.convert(tmp_path)
    more: dict[str, Any] = {
        "granite.attention.head_count_kv": np.full(8, 2, np.int32),
        "granite.expert_count": 0,
        "granite.expert_shared_feed_forward_length": 100,
        "granite.ssm.conv_kernel": 4,
        "granite.ssm.inner_size": 128,
        "granite.rope.scaling.finetuned": True,
    }
    logits = []
    for metadata in (made.metadata, made.metadata | more):
        data = test_convert.bytes_of(replace(made, metadata=metadata))
        with wgtrain.load_model(data, limits="default") as opened:
            logits.append(opened.logits(TOKENS))
    np.testing.assert_array_equal(*logits)


def test_granite_4_without_rotations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As its class is by itself; a file says so, and llama.cpp reads it."""
    from llama_cpp_oracle import LlamaCpp

    kind, given = hf_models.MODELS["granite4"]
    still = {key: value for key, value in given.items() if key != "position_embedding_type"}
    monkeypatch.setitem(hf_models.MODELS, "still", (kind, still))
    expected = reference(hf_models.save("still", tmp_path).double())
    test_huggingface.add_tokenizer(tmp_path)
    with wgtrain.load_model(tmp_path, limits="default") as opened:
        assert relative(opened.logits(TOKENS), expected) < 1e-5
    judge = LlamaCpp(test_convert.bytes_of(test_convert.convert(tmp_path)))
    found = judge.logits(np.array(TOKENS))
    judge.close()
    assert np.abs(found - expected).max() < 1e-5 * np.ptp(expected)
    settings = hf_models.read(tmp_path)
    assert settings["position_embedding_type"] is None
    turned = {**settings, "position_embedding_type": "rope"}
    (tmp_path / "config.json").write_text(json.dumps(turned))
    with wgtrain.load_model(tmp_path, limits="default") as opened:
        assert relative(opened.logits(TOKENS), expected) > 1e-4
    assert wgtrain.plan(turned).frozen == sum(
        map(np.prod, opened.config.matrices().values())
    ) + sum(opened.config.vectors().values())
