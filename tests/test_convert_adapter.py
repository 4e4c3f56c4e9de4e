"""`wgtrain convert` of adapters: there and back is the same; the base decides what fits."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import random_adapter, tiny

from wgtrain.cli import main as cli
from wgtrain.files.adapters import (
    CONFIG_FILE,
    TENSOR_FILE,
    Adapter,
    read_adapter_gguf,
    write_adapter_gguf,
    write_adapter_peft,
)

TARGETS = ("attn_q", "attn_k", "attn_output", "ffn_up")


def convert(capsys: pytest.CaptureFixture[str], *arguments: Any) -> tuple[int, str]:
    with pytest.raises(SystemExit) as exit:
        cli.main(["convert", *map(str, arguments)])
    captured = capsys.readouterr()
    return int(exit.value.code or 0), captured.out + captured.err


def base_and_adapter(folder: Path, name: str) -> tuple[Path, Path]:
    model, path = folder / f"{name}.gguf", folder / "adapter.gguf"
    model.write_bytes(tiny(name).gguf)
    names = [f"blk.{layer}.{target}" for layer in (0, 1) for target in TARGETS]
    adapter = Adapter(name, 3, 5.5, random_adapter(tiny(name).spec, names, 3, 1))
    path.write_bytes(write_adapter_gguf(adapter))
    return model, path


@pytest.mark.parametrize("name", ["llama", "qwen2"])
def test_there_and_back(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, path = base_and_adapter(tmp_path, name)
    adapter, spec = read_adapter_gguf(path.read_bytes()), tiny(name).spec
    folder, back = tmp_path / "peft", tmp_path / "back.gguf"
    status, said = convert(capsys, path, "--model", model, "--out", folder)
    assert status == 0 and f"rank {adapter.rank}" in said
    made = {file.name: file.read_bytes() for file in folder.iterdir()}
    assert made == write_adapter_peft(
        adapter, base_name=None, n_head=spec.heads, n_head_kv=spec.kv_heads, n_layer=spec.layers
    )
    for source in (folder, folder / CONFIG_FILE, folder / TENSOR_FILE):
        status, _ = convert(capsys, source, "--model", model, "--out", back, "--force")
        found = read_adapter_gguf(back.read_bytes())
        assert status == 0 and (found.rank, found.alpha) == (adapter.rank, adapter.alpha)
        for base, pair in adapter.tensors.items():
            assert all(map(np.array_equal, found.tensors[base], pair)), base
        assert len(found.tensors) == len(adapter.tensors)


def test_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, path = base_and_adapter(tmp_path, "llama")
    other = tmp_path / "other.gguf"
    other.write_bytes(tiny("qwen2").gguf)
    out = tmp_path / "out"
    for arguments, words in [
        ((path, "--out", out), "--model names its base"),
        ((path, "--out", out, "--model", other), "this one is 'qwen2'"),
        ((path, "--out", out, "--model", model, "--type", "f16"), "adapters are written in f32"),
        ((path, "--out", tmp_path / "x.gguf", "--model", model), "becomes a folder"),
        ((path, "--out", path, "--model", model, "--force"), "becomes a folder"),
        ((model, "--out", out, "--model", model), "wgtrain quantize"),
        ((tmp_path, "--out", out, "--model", model), f"a PEFT folder with {CONFIG_FILE}"),
        ((path, "--out", tmp_path / "no" / "out", "--model", model), "No such file"),
    ]:
        status, said = convert(capsys, *arguments)
        assert status == 2 and words in said, said
    assert not out.exists()
    assert convert(capsys, path, "--out", out, "--model", model)[0] == 0
    before = {file: file.read_bytes() for file in out.iterdir()}
    status, said = convert(capsys, path, "--out", out, "--model", model)
    assert status == 2 and "exists already" in said
    assert convert(capsys, path, "--out", out, "--model", model, "--force")[0] == 0
    assert before == {file: file.read_bytes() for file in out.iterdir()}
    for read in (model, out / CONFIG_FILE, out / TENSOR_FILE):
        content = read.read_bytes()
        status, said = convert(capsys, out, "--out", read, "--model", model, "--force")
        assert status == 2 and "the output is also the input" in said
        assert read.read_bytes() == content
    (out / TENSOR_FILE).unlink()
    status, said = convert(capsys, out, "--out", tmp_path / "back.gguf", "--model", model)
    assert status == 2 and TENSOR_FILE in said
