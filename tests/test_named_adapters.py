"""What people name as adapters: a file, a folder of PEFT, a run, a checkpoint; with a scale."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import broken_adapters
import fake_learner
import numpy as np
import pytest
from fake_learner import FakeModel, write_rows

from wgtrain import api
from wgtrain.errors import FileError, OptionError
from wgtrain.files import write_adapter_gguf, write_adapter_peft
from wgtrain.runs import session
from wgtrain.runs.adapters import NamedAdapter, adapter_path, model_of_run, parse_adapter


@pytest.mark.parametrize(
    ("text", "path", "scale"),
    [
        ("a.gguf", "a.gguf", 1.0),
        ("a.gguf:0.5", "a.gguf", 0.5),
        ("runs/x:-1", "runs/x", -1.0),
        ("a.gguf:0", "a.gguf", 0.0),
        ("a.gguf:1e-2", "a.gguf", 0.01),
        ("b:2.gguf:3", "b:2.gguf", 3.0),
        ("C:\\a.gguf", "C:\\a.gguf", 1.0),
        ("C:/a.gguf:0.25", "C:/a.gguf", 0.25),
        ("here:0.5", "here:0.5", 1.0),  # there as it stands
        ("here:0.5:2", "here:0.5", 2.0),
    ],
)
def test_a_path_and_a_scale(
    text: str, path: str, scale: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("here:0.5").write_bytes(b"")
    assert parse_adapter(text) == NamedAdapter(path, scale)


@pytest.mark.parametrize(
    "text", ["", "a:x", "a:", ":0.5", "a:nan", "a:inf", "a:1e999", "a:1_0", "a:0x1", "a\0:x"]
)
def test_other_forms_are_refused(text: str) -> None:
    with pytest.raises(OptionError, match="adapter = .*: allowed is PATH or PATH:SCALE") as error:
        parse_adapter(text)
    assert text[:1].replace("\0", "") in str(error.value)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a finished run of a toy, `run`."""
    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        fake_learner.install(patch.setattr)
        write_rows(folder / "rows.jsonl", 12)
        (folder / "base.gguf").write_bytes(b"toy")
        (folder / "own.jinja").write_text("{{ messages[0].content }}")
        settings = {
            "model": "base.gguf",
            "data": "rows.jsonl",
            "out": "run",
            "rank": 2,
            "target_modules": "q_proj",
            "batch_size": 2,
            "save_every": 2,
            "iters": 4,
            "precision": "f16",
            "quantize_base": "nf4",
            "chat_template": "own.jinja",
            "template_args": '{"thinking": false}',
            "system": "merge",
        }
        assert session.start(settings, lambda text: None)
        yield folder


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    """A copy of it that may be spoiled."""
    shutil.copytree(made / "run", tmp_path / "run")
    return tmp_path / "run"


def spoil(checkpoint: Path) -> None:
    data = bytearray((checkpoint / "adapter.gguf").read_bytes())
    data[-1] ^= 1
    (checkpoint / "adapter.gguf").write_bytes(data)


def b_of(adapter: Any) -> np.ndarray:
    values: np.ndarray = next(iter(adapter.tensors.values()))[1]
    return values


def test_a_run_is_its_result_or_its_newest_whole_checkpoint(run: Path) -> None:
    model: Any = FakeModel()
    first, last = run / "checkpoints" / "step-000002", run / "checkpoints" / "step-000004"
    assert adapter_path(run) == run / "adapter.gguf"
    result = b_of(api.load_adapter(run, model))
    (run / "adapter.gguf").unlink()
    assert adapter_path(run) == run / "adapter_model.safetensors"
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        (run / name).unlink()
    assert adapter_path(run) == last / "adapter.gguf" == adapter_path(last)
    assert np.array_equal(b_of(api.load_adapter(run, model)), result)
    assert not np.array_equal(b_of(api.load_adapter(first, model)), result)
    spoil(last)
    heard: list[str] = []
    assert adapter_path(run, heard.append) == first / "adapter.gguf"
    (line,) = heard
    assert "step-000004" in line and line.endswith(
        "damaged, its contents are not what was written; using step-000002 instead"
    )
    with pytest.raises(FileError, match="step-000004/adapter.gguf: damaged"):
        adapter_path(last)
    spoil(first)
    with pytest.raises(FileError, match="run: no checkpoint that is whole"):
        adapter_path(run)
    shutil.rmtree(run / "checkpoints")
    with pytest.raises(FileError, match=r"run: a run that has neither adapter.gguf nor a check"):
        adapter_path(run)


def test_links_in_a_run_are_not_followed(run: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere.gguf").write_bytes((run / "adapter.gguf").read_bytes())
    for name in ("adapter.gguf", "adapter_model.safetensors", "adapter_config.json"):
        (run / name).unlink()
    (run / "adapter.gguf").symlink_to(tmp_path / "elsewhere.gguf")
    assert adapter_path(run) == run / "checkpoints" / "step-000004" / "adapter.gguf"


def test_files_folders_and_what_is_none(tmp_path: Path) -> None:
    adapter = broken_adapters.adapter()
    file, folder = tmp_path / "a.gguf", tmp_path / "peft"
    file.write_bytes(write_adapter_gguf(adapter))
    folder.mkdir()
    for name, data in write_adapter_peft(adapter, base_name=None, n_head=2, n_head_kv=1).items():
        (folder / name).write_bytes(data)
    assert adapter_path(file) == file
    tensors = folder / "adapter_model.safetensors"
    assert adapter_path(folder) == tensors == adapter_path(folder / "adapter_config.json")
    assert adapter_path(tensors) == tensors
    with pytest.raises(FileError, match="no adapter_model.safetensors is in it; there is 'a.gguf'"):
        adapter_path(tmp_path)
    for text in ("x\0y", "n" * 5000, tmp_path / "none"):
        assert adapter_path(text) == Path(text)  # whoever reads it says what is wrong


def test_the_model_of_a_run(run: Path, made: Path) -> None:
    wanted = {
        "model": str(made / "base.gguf"),
        "precision": "f16",
        "quantize_base": "nf4",
        "chat_template": str(run / "chat_template.jinja"),
        "template_args": '{"thinking": false}',
        "system": "merge",
    }
    checkpoint = run / "checkpoints" / "step-000002"
    inside = [run, run / "adapter.gguf", run / "adapter_model.safetensors", checkpoint]
    for path in (*inside, checkpoint / "adapter.gguf"):
        assert model_of_run(path) == wanted
    for path in (made, made / "base.gguf", run / "loss.svg", run / "checkpoints", made / "none"):
        assert model_of_run(path) is None


def test_the_model_of_a_run_may_have_moved_with_it(run: Path, tmp_path: Path) -> None:
    text = (run / "summary.json").read_text()
    summary = json.loads(text)
    summary["inputs"]["model"]["path"] = str(tmp_path / "gone" / "base.gguf")
    (run / "summary.json").write_text(json.dumps(summary))
    with pytest.raises(
        FileError, match=r"model of the run in .*gone/base.gguf: No such file.*--mo"
    ):
        model_of_run(run)
    (tmp_path / "base.gguf").write_bytes(b"toy")
    found = model_of_run(run)
    assert found is not None and found["model"] == str(tmp_path / "base.gguf")
    (run / "summary.json").unlink()
    found = model_of_run(run)
    assert found is not None and found["model"].endswith("base.gguf")  # as config.yaml has it
    (run / "summary.json").write_text(text.replace('"path"', '"pith"'))
    with pytest.raises(FileError, match=r"summary.json: damaged \(KeyError"):
        model_of_run(run)
    (run / "config.yaml").write_text("rank: many\n")
    with pytest.raises(FileError, match="config.yaml: not the settings of a run: .*rank = many"):
        model_of_run(run)
    (run / "config.yaml").write_text("")  # as a full disk leaves it
    with pytest.raises(FileError, match="config.yaml: not the settings of a run: model: needed"):
        model_of_run(run)
