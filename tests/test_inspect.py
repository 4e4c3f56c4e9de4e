"""`wgtrain inspect` of models, adapters and rows: text, JSON, and what would be refused."""

import gzip
import json
import re
from pathlib import Path
from typing import Any

import broken_adapters
import numpy as np
import pytest
import test_huggingface as folders
from tiny import random_adapter, tiny

from wgtrain.cli import main as cli
from wgtrain.files import parse_gguf, write_gguf
from wgtrain.files.adapters import Adapter, write_adapter_gguf, write_adapter_peft
from wgtrain.model.base import plan_base

ROWS = [
    {"text": "one two three", "id": 1},
    {"prompt": "a", "completion": "b"},
    {"prompt": "a", "completion": "bcd", "source": None},
]


def inspect(capsys: pytest.CaptureFixture[str], *arguments: Any) -> tuple[int, str]:
    with pytest.raises(SystemExit) as exit:
        cli.main(["inspect", *map(str, arguments)])
    captured = capsys.readouterr()
    return int(exit.value.code or 0), captured.out + captured.err


def facts(capsys: pytest.CaptureFixture[str], *arguments: Any) -> dict[str, Any]:
    status, said = inspect(capsys, *arguments, "--json")
    assert status == 0, said
    found: dict[str, Any] = json.loads(said)
    return found


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "base.gguf"
    path.write_bytes(tiny("qwen2", "Q8_0").gguf)
    return path


def test_model(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gguf, spec = parse_gguf(model.read_bytes()), tiny("qwen2", "Q8_0").spec
    found = facts(capsys, model)
    infos = gguf.tensors.values()
    assert (found["kind"], found["architecture"], found["refused"]) == ("model", "qwen2", None)
    assert found["parameters"] == sum(int(np.prod(info.shape)) for info in infos)
    assert sum(found["types"].values()) == len(infos) and set(found["types"]) == {"Q8_0", "F32"}
    assert sum(found["type_bytes"].values()) == found["bytes"] == sum(i.nbytes for i in infos)
    assert (found["layers"], found["width"], found["vocabulary"]) == (
        spec.layers,
        spec.dim,
        spec.vocab,
    )
    assert (found["context"], found["tokenizer"]) == (spec.context, "gpt2 qwen2")
    assert found["gpu_bytes"] == plan_base(gguf).weights.nbytes
    assert found["metadata"]["qwen2.block_count"] == spec.layers
    assert found["metadata"]["tokenizer.ggml.tokens"] == f"{spec.vocab} values"
    status, said = inspect(capsys, model)
    assert status == 0 and f"{found['parameters']:,}" in said and "training       possible" in said
    for words in ("Q8_0", "qwen2", f"{spec.layers} blocks of width {spec.dim}", "GPU memory"):
        assert words in said


def test_what_would_be_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Told, with all else that is known, and no error."""
    path = tmp_path / "experts.gguf"
    metadata = {"general.architecture": "qwen2moe", "qwen2moe.expert_count": 8}
    path.write_bytes(write_gguf(metadata, {"blk.0.x.weight": np.ones((2, 3), np.float32)}))
    found = facts(capsys, path)
    assert found["parameters"] == 6 and "qwen2moe" in found["refused"]
    assert found["tokenizer"] is None and "tokenizer" in found["tokenizer_refused"]
    assert "layers" not in found
    status, said = inspect(capsys, path)
    assert status == 0 and "training" in said and "refused: " in said
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "mamba"}')
    assert "mamba" in facts(capsys, folder)["refused"]
    for content, words in ((b"GGUF\3\0", "version"), (b"", "magic"), (b"<html>", "web page")):
        path.write_bytes(content)
        status, said = inspect(capsys, path)
        assert status == 2 and "experts.gguf" in said and words in said
    for name in ("config.json", "model-00001-of-00002.safetensors"):
        (folder / name).write_bytes(b"{}")
        status, said = inspect(capsys, folder / name)
        assert status == 2 and f"name its folder, {folder}\n" in said


@pytest.mark.parametrize("key", ["general.type", "general.architecture", "general.name"])
@pytest.mark.parametrize("value", [np.zeros(0, np.int32), np.full(3, np.nan), ([], ["a"]), 1])
def test_values_of_a_wrong_kind(
    key: str, value: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(write_gguf({"general.architecture": "llama", key: value}, {}))
    inspect(capsys, path)
    found = facts(capsys, path)
    assert found["kind"] == "model" and key in found["refused"]
    assert (found["architecture"], found["name"]) == (
        None if key == "general.architecture" else "llama",
        None,
    )


def test_an_adapter_of_wrong_kinds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    deep: Any = []
    for _ in range(700):
        deep = [deep]
    files = broken_adapters.peft_files()
    config = {"r": float("nan"), "target_modules": [1, None], "lora_alpha": [float("inf")]}
    files["adapter_config.json"] = json.dumps(config | {"deep": deep}).encode()
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    assert "1, None" in inspect(capsys, tmp_path)[1]
    found = facts(capsys, tmp_path)
    assert (found["rank"], found["alpha"], found["targets"]) == ("nan", ["inf"], [1, None])


def test_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = folders.by_hand(tmp_path / "base", "llama-tied")
    found = facts(capsys, path)
    assert (found["kind"], found["architecture"], found["refused"]) == ("model", "llama", None)
    assert found["tied_head"] and "tokenizer.json" in found["tokenizer_refused"]
    said = inspect(capsys, path)[1]
    assert "only from Python, with rows of tokens" in said and "possible" not in said


def test_adapters(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = tiny("qwen2", "Q8_0").spec
    names = [f"blk.{layer}.{name}" for layer in (0, 1) for name in ("attn_q", "ffn_down")]
    tensors = random_adapter(spec, names, 3, 1)
    adapter = Adapter("qwen2", 3, 6.0, tensors, {"base.name": "something"})
    path, folder = tmp_path / "adapter.gguf", tmp_path / "peft"
    path.write_bytes(write_adapter_gguf(adapter))
    folder.mkdir()
    heads = {"n_head": spec.heads, "n_head_kv": spec.kv_heads}
    for name, data in write_adapter_peft(adapter, base_name="org/base", **heads).items():
        (folder / name).write_bytes(data)
    parameters = sum(a.size + b.size for a, b in tensors.values())
    found = facts(capsys, path)
    assert (found["kind"], found["architecture"], found["form"]) == ("adapter", "qwen2", "GGUF")
    assert (found["rank"], found["alpha"], found["base"]) == (3, 6.0, "something")
    assert (found["targets"], found["layers"]) == (["attn_q", "ffn_down"], [0, 1])
    assert found["parameters"] == parameters and "fits" not in found
    found = facts(capsys, folder)
    assert (found["kind"], found["form"], found["base"]) == ("adapter", "PEFT folder", "org/base")
    assert (found["rank"], found["parameters"]) == (3, parameters)
    assert sorted(found["targets"]) == ["down_proj", "q_proj"]
    other = tmp_path / "other.gguf"
    for name, data in write_adapter_peft(adapter, base_name="", **heads).items():
        (folder / name).write_bytes(data)
    assert not facts(capsys, folder)["base"]
    (folder / "config.yaml").write_text("model: m.gguf\ndata: rows.jsonl\n")
    assert facts(capsys, folder)["base"] == "m.gguf", "that of the run"
    other.write_bytes(tiny("llama").gguf)
    for source in (path, folder, folder / "adapter_config.json"):
        assert facts(capsys, source, "--model", model)["fits"] is True
        found = facts(capsys, source, "--model", other)
        assert found["fits"] is False and found["refused"]
    status, said = inspect(capsys, path, "--model", other)
    assert status == 0 and "no: " in said and "'qwen2'" in said
    assert re.search(r"^alpha +6$", said, re.MULTILINE)
    status, said = inspect(capsys, model, "--model", other)
    assert status == 2 and "--model goes with adapters and rows" in said


def test_rows(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    found = facts(capsys, path)
    assert (found["kind"], found["rows"], found["problems"]) == ("data", 3, [])
    assert found["kinds"] == {"text": 1, "prompt": 2}
    assert found["columns"] == {"text": 1, "id": 1, "prompt": 2, "completion": 2, "source": 1}
    assert found["first"] == ROWS[0] and "tokens" not in found
    counted = facts(capsys, path, "--model", model)
    lengths = counted["lengths"]
    assert lengths["min"] <= lengths["median"] <= lengths["p95"] <= lengths["max"]
    assert lengths["min"] + lengths["median"] + lengths["max"] == counted["tokens"]
    assert 0 < counted["trained_tokens"] < counted["tokens"]
    status, said = inspect(capsys, path, "--model", model)
    assert status == 0 and f"{counted['tokens']:,}, of which" in said and "one two three" in said
    path.write_text(json.dumps({"text": "a", "a_long_name_of_a_field": 1}) + "\n")
    status, said = inspect(capsys, path)
    assert {len(line) for line in said.splitlines()[2:5]} == {len(said.splitlines()[2])}
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (tmp_path / "set").mkdir()
    packed = tmp_path / "set" / "train.jsonl"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    for source in (packed, packed.parent):
        again = facts(capsys, source)
        assert (again["rows"], again["kinds"]) == (3, found["kinds"])


def test_rows_that_are_wrong(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "rows.jsonl"
    rows = [*ROWS, {"instruction": "x"}, 7, {"text": "a", "prompt": "b", "completion": "c"}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = facts(capsys, path)
    assert found["rows"] == 6 and found["kinds"] == {"text": 1, "prompt": 2}
    assert [problem[:7] for problem in found["problems"]] == ["line 4:", "line 5:", "line 6:"]
    assert "'output' is missing" in found["problems"][0] and "2 kinds" in found["problems"][2]
    assert "line 4" in facts(capsys, path, "--model", model)["refused"]
    path.write_text('{"text": 1}\n{"te')
    status, said = inspect(capsys, path)
    assert status == 2 and "line 2" in said
    status, said = inspect(capsys, tmp_path / "none")
    assert status == 2 and "No such file" in said
    (tmp_path / "empty").mkdir()
    status, said = inspect(capsys, tmp_path / "empty")
    assert status == 2 and "no model (config.json)" in said
