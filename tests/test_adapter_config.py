"""The JSON configuration of adapters: its levels, its errors, and what is left out or ends it."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny

import wgtrain
from wgtrain.cli.using import opened
from wgtrain.errors import FileError, OptionError, WgtrainError
from wgtrain.files import Adapter, write_adapter_gguf
from wgtrain.runs.adapter_config import AdapterConfig, load_adapters, read_adapters, read_config
from wgtrain.runs.adapters import NamedAdapter

TOKENS = [1, 2, 3, 4]
A, B = {"path": "a.gguf"}, {"path": "b.gguf", "scale": 0.5}


def write(folder: Path, values: Any, name: str = "config.json") -> Path:
    path = folder / name
    path.write_text(values if isinstance(values, str) else json.dumps(values))
    return path


def named(folder: Path, *adapters: dict[str, Any]) -> tuple[NamedAdapter, ...]:
    return tuple(NamedAdapter(str(folder / a["path"]), a.get("scale", 1.0)) for a in adapters)


def test_the_form_of_wasi_nn(tmp_path: Path) -> None:
    path = write(tmp_path, {"model": {"path": "base.gguf"}, "lora_adapters": [A, B]})
    wanted = AdapterConfig({"model": str(tmp_path / "base.gguf")}, named(tmp_path, A, B), "skip")
    assert read_config(path) == wanted
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())  # as editors on Windows save it
    assert read_config(path) == wanted
    assert read_config(write(tmp_path, {})) == AdapterConfig({}, (), "skip")


@pytest.mark.parametrize(
    ("process", "model", "wanted"),
    [([A], None, [A]), ([A], [B], [B]), (None, [B], [B]), ([A], [], []), (None, None, [])],
)
def test_the_later_level_replaces_the_earlier(
    process: Any, model: Any, wanted: Any, tmp_path: Path
) -> None:
    values: dict[str, Any] = {"model": {} if model is None else {"lora_adapters": model}}
    if process is not None:
        values["lora_adapters"] = process
    assert read_config(write(tmp_path, values)).adapters == named(tmp_path, *wanted)


def test_settings_of_the_model(tmp_path: Path) -> None:
    (tmp_path / "own.jinja").write_text("{{ messages }}")
    model = {
        "path": str(tmp_path / "elsewhere" / "base.gguf"),
        "precision": "f16",
        "quantize_base": "nf4",
        "gpu_memory": "6GiB",
        "adapter_index": 0,
        "chat_template": "own.jinja",
        "template_args": {"enable_thinking": False},
        "system": "merge",
    }
    assert read_config(write(tmp_path, {"model": model})).model == {
        "model": model["path"],
        "precision": "f16",
        "quantize_base": "nf4",
        "gpu_memory": 6 << 30,
        "adapter_index": 0,
        "chat_template": str(tmp_path / "own.jinja"),
        "template_args": '{"enable_thinking": false}',
        "system": "merge",
    }
    for template in ("chatml", "{% for m in messages %}{{ m }}{% endfor %}"):
        found = read_config(write(tmp_path, {"model": {"chat_template": template}}))
        assert found.model == {"chat_template": template}
    assert read_config(write(tmp_path, {"model": {"precision": None}})).model == {}


ERRORS: list[tuple[Any, str]] = [
    ("{", r"config.json: no valid JSON at line 1, column 2"),
    ("[]", r"config.json: \[\], a JSON object expected"),
    ('{"model": {}, "model": {}}', r"config.json: 'model' stands there twice"),
    ({"lora-adapters": []}, "config.json: unknown 'lora-adapters'; did you mean 'lora_adapters'?"),
    ({"model": "a.gguf"}, r"config.json: model = a.gguf: allowed is an object, as {\"path\""),
    ({"model": {"pth": "a"}}, r"config.json: model: unknown 'pth'; did you mean 'path'\?"),
    ({"model": {"path": 5}}, r"model.path = 5: allowed is a text, the path of a file or folder"),
    ({"model": {"path": ""}}, r"model.path = : allowed is a text, the path of a file or folder"),
    ({"model": {"precision": "f8"}}, r"model.precision = f8: allowed is f32 or f16"),
    ({"model": {"quantize_base": 4}}, r"model.quantize_base = 4: allowed is nf4 or"),
    ({"model": {"gpu_memory": "much"}}, r"model.gpu_memory = much: allowed is bytes, or a number"),
    ({"model": {"adapter_index": -1}}, r"adapter_index = -1: allowed is a whole number, at least"),
    ({"model": {"template_args": []}}, r"model.template_args = \[\]: allowed is an object of JSON"),
    ({"model": {"rank": 4}}, r"config.json: model: unknown 'rank'; allowed are path, "),
    ({"lora_adapters": {}}, r"lora_adapters = {}: allowed is a list, as \[{\"path\""),
    ({"lora_adapters": None}, r"lora_adapters = None: allowed is a list"),
    ({"lora_adapters": ["a"]}, r"lora_adapters\[0\] = a: allowed is an object, as {\"path\""),
    ({"lora_adapters": [A, {}]}, r"lora_adapters\[1\]: path is missing"),
    ({"lora_adapters": [{"path": None}]}, r"lora_adapters\[0\].path = None: allowed is a text"),
    ({"lora_adapters": [{"path": "a\0"}]}, r"lora_adapters\[0\].path = .*: allowed is a text"),
    ({"lora_adapters": [{**A, "scal": 1}]}, r"adapters\[0\]: unknown 'scal'; did you mean 'scale'"),
    ({"lora_adapters": [{**A, "scale": "1"}]}, r"\[0\].scale = 1: allowed is a finite number"),
    ({"lora_adapters": [{**A, "scale": True}]}, r"\[0\].scale = True: allowed is a finite number"),
    ('{"lora_adapters": [{"path": "a", "scale": NaN}]}', r"\[0\].scale = nan: allowed is a finite"),
    ({"lora_adapters": [{**A, "scale": 10**400}]}, r"scale = .*: allowed is a finite number"),
    ({"lora_adapters": [{**A, "name": 5}]}, r"\[0\].name = 5: allowed is a text"),
    ({"model": {"lora_adapters": 5}}, r"config.json: model.lora_adapters = 5: allowed is a list"),
    ({"on_error": "ignore"}, r"config.json: on_error = ignore: allowed is skip or error"),
    ({"on_error": []}, r"config.json: on_error = \[\]: allowed is skip or error"),
]


@pytest.mark.parametrize(("values", "message"), ERRORS, ids=range(len(ERRORS)))
def test_what_is_wrong_in_the_file(values: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(FileError, match=message) as error:
        read_config(write(tmp_path, values))
    assert len(str(error.value)) < 600


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="none.json: No such file"):
        read_config(tmp_path / "none.json")
    large = write(tmp_path, '{"model": {}}' + " " * (1 << 20))
    with pytest.raises(FileError, match="a configuration takes at most 1,048,576"):
        read_config(large)


def test_the_adapters_of_a_request_are_a_list_of_the_same_form() -> None:
    assert read_adapters([A, B], "lora_adapters") == (
        NamedAdapter("a.gguf"),
        NamedAdapter("b.gguf", 0.5),
    )
    with pytest.raises(FileError, match=r"request\[0\]: path is missing"):
        read_adapters([{"scale": 1}], "request")


# --- adapters that cannot be used ---------------------------------------------------------------


def adapter(architecture: str = "llama", outputs: int = 0, seed: int = 0) -> Adapter:
    rng = np.random.default_rng(seed)
    shapes = tiny.tiny("llama")
    name = "blk.0.ffn_up.weight"
    rows, columns = shapes.spec.ff + outputs, shapes.spec.dim
    pair = rng.standard_normal((3, columns), np.float32), rng.standard_normal((rows, 3), np.float32)
    return Adapter(architecture, 3, 6.0, {name: pair})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "base.gguf").write_bytes(tiny.tiny("llama").gguf)
    for name, data in {
        "a.gguf": write_adapter_gguf(adapter()),
        "b.gguf": write_adapter_gguf(adapter(seed=1)),
        "unreadable.gguf": b"GGUF and no more",
        "architecture.gguf": write_adapter_gguf(adapter("qwen2")),
        "shape.gguf": write_adapter_gguf(adapter(outputs=1)),
    }.items():
        (tmp_path / name).write_bytes(data)
    return tmp_path


UNUSABLE = [
    ("missing.gguf", "No such file or directory"),
    ("unreadable.gguf", "the header, byte 4: GGUF version"),
    ("architecture.gguf", "does not fit the model: made for 'qwen2' models, this one is 'llama'"),
    ("shape.gguf", "does not fit the model: 'blk.0.ffn_up.weight': made for"),
    ("./a.gguf", "an adapter is named twice; a scale makes it stronger"),
    (".", "no adapter_model.safetensors is in it"),
]


@pytest.mark.gpu
@pytest.mark.parametrize(("name", "why"), UNUSABLE)
def test_one_is_left_out_or_ends_it(name: str, why: str, folder: Path) -> None:
    values = {"model": {"path": "base.gguf"}, "lora_adapters": [A, {"path": name}, B]}
    heard: list[str] = []
    with opened({"config_file": str(write(folder, values))}, heard.append) as using:
        (line,) = heard
        assert line.startswith(f"warning: the adapter {folder / name} is skipped: ")
        assert [*using.model.adapters] == [("a", 1.0), ("b", 0.5)]
        both = [(folder / "a.gguf", 1.0), (folder / "b.gguf", 0.5)]
        want = using.model.logits(TOKENS, both)
        np.testing.assert_array_equal(using.model.logits(TOKENS), want)
        assert not np.array_equal(want, using.model.logits(TOKENS, []))
    config = str(write(folder, {**values, "on_error": "error"}))
    with pytest.raises(WgtrainError, match=why) as error, opened({"config_file": config}):
        pass
    assert Path(name).name in str(error.value) and type(error.value) in (FileError, OptionError)
    assert str(error.value).removeprefix(f"{folder / name}").lstrip(": ") in line


@pytest.fixture
def model(folder: Path) -> Iterator[Any]:
    with wgtrain.load_model(folder / "base.gguf") as found:
        yield found


@pytest.mark.gpu
def test_failures_of_the_device_are_never_passed_over(
    model: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(*_: Any) -> None:
        raise wgtrain.DeviceLostError("gone")

    monkeypatch.setattr(model.adapters, "load", lost)
    with pytest.raises(wgtrain.DeviceLostError):
        load_adapters(model, [NamedAdapter(str(folder / "a.gguf"))], True, lambda text: None)
