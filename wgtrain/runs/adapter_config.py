"""A model and the adapters on it as a JSON file says it, in the form of wasi-nn back ends:

{"model": {"path": ...}, "lora_adapters": [{"path": ..., "scale": 1.0}, ...], "on_error": "skip"}

`lora_adapters` may stand at three levels, of which the later replaces the earlier: the outermost
object (all of a process), within `model`, and a request. Paths are relative to the file.
"""

import codecs
import math
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

from wgtrain.data.templates import CHATML, looks_like_source
from wgtrain.errors import DeviceError, FileError, OptionError, WgtrainError
from wgtrain.files.safetensors import json_object
from wgtrain.files.source import shown
from wgtrain.infer.model import Model
from wgtrain.runs.adapters import NamedAdapter, adapter_path
from wgtrain.runs.paths import native, read_input
from wgtrain.train.config import RunConfig
from wgtrain.train.settings import said, setting_of
from wgtrain.train.spellings import nearest

ADAPTERS, ON_ERROR, MODEL, PATH = "lora_adapters", "on_error", "model", "path"
ON_ERRORS = ("skip", "error")
# What `model` may say of itself beside its path, as settings of a run.
SETTINGS = (
    *("precision", "quantize_base", "adapter_index", "gpu_memory"),
    *("chat_template", "template_args", "system"),
)
MOST_BYTES = 1 << 20
Say = Callable[[str], None]
T = TypeVar("T")


@dataclass(frozen=True)
class AdapterConfig:
    """What such a file holds: settings of the model by their names in `RunConfig` (its path is
    `model`), adapters in order, and whether those that cannot be used are left out, "skip", or end
    it, "error".
    """

    model: dict[str, Any]
    adapters: tuple[NamedAdapter, ...]
    on_error: str = "skip"


def read_config(path: str | os.PathLike[str]) -> AdapterConfig:
    """The configuration in a file; FileError names the place in it and what is allowed there."""
    data, name = read_input(Path(path)), str(path)
    if len(data) > MOST_BYTES:
        raise FileError(
            f"{name}: {len(data):,} bytes; a configuration takes at most {MOST_BYTES:,}"
        )
    values = json_object(data.removeprefix(codecs.BOM_UTF8), name)  # Windows' editors write one
    _check_keys(values, (MODEL, ADAPTERS, ON_ERROR), name)
    folder = Path(path).parent
    model = values.get(MODEL, {})
    where = f"{name}: {MODEL}"
    if not isinstance(model, dict):
        raise FileError(f'{where} = {said(model)}: allowed is an object, as {{"path": "..."}}')
    _check_keys(model, (PATH, *SETTINGS, ADAPTERS), where)
    adapters = read_adapters(values.get(ADAPTERS, []), f"{name}: {ADAPTERS}", folder)
    if ADAPTERS in model:
        adapters = read_adapters(model[ADAPTERS], f"{where}.{ADAPTERS}", folder)
    on_error = values.get(ON_ERROR, "skip")
    if on_error not in ON_ERRORS:
        raise FileError(
            f"{name}: {ON_ERROR} = {said(on_error)}: allowed is {' or '.join(ON_ERRORS)}"
        )
    return AdapterConfig(_settings(model, where, folder), adapters, on_error)


def read_adapters(values: Any, where: str, folder: Path | None = None) -> tuple[NamedAdapter, ...]:
    """The adapters of a list as `lora_adapters`; paths are relative to `folder`. FileError names
    the place and what is allowed there.
    """
    if not isinstance(values, list):
        allowed = 'a list, as [{"path": "adapter.gguf", "scale": 1.0}]'
        raise FileError(f"{where} = {said(values)}: allowed is {allowed}")
    found = []
    for number, value in enumerate(values):
        at = f"{where}[{number}]"
        if not isinstance(value, dict):
            raise FileError(f'{at} = {said(value)}: allowed is an object, as {{"path": "..."}}')
        _check_keys(value, (PATH, "scale", "name"), at)
        if PATH not in value:
            raise FileError(f"{at}: {PATH} is missing, the text that names an adapter")
        path, scale, name = value[PATH], value.get("scale", 1.0), value.get("name", "")
        if isinstance(scale, bool) or not isinstance(scale, int | float) or not _finite(scale):
            raise FileError(f"{at}.scale = {said(scale)}: allowed is a finite number")
        if not isinstance(name, str):
            raise FileError(f"{at}.name = {said(name)}: allowed is a text")
        found.append(NamedAdapter(_beside(folder, path, f"{at}.{PATH}"), float(scale), name))
    return tuple(found)


def _finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def _check_keys(values: Mapping[str, Any], known: tuple[str, ...], where: str) -> None:
    wrong = []
    for key in (key for key in values if key not in known):
        near = nearest(key, known)
        hint = f"did you mean {near!r}?" if near else f"allowed are {', '.join(known)}"
        wrong.append(f"unknown {shown(key)}; {hint}")
    if wrong:
        raise FileError("\n".join(f"{where}: {text}" for text in wrong))


def _beside(folder: Path | None, path: Any, where: str) -> str:
    """A path in the file, as seen from here."""
    try:
        if not isinstance(path, str) or not path or "\0" in path:
            raise ValueError
        found = native(path)
    except ValueError:
        raise FileError(
            f"{where} = {said(path)}: allowed is a text, the path of a file or folder"
        ) from None
    return str(found if folder is None else folder / found)


def _settings(model: Mapping[str, Any], where: str, folder: Path) -> dict[str, Any]:
    """The settings in `model`, checked."""
    declared = {f.name: setting_of(f) for f in fields(RunConfig)}
    found: dict[str, Any] = {}
    for name, value in model.items():
        if name == ADAPTERS or value is None:
            continue
        if name == PATH:
            found[MODEL] = _beside(folder, value, f"{where}.{PATH}")
            continue
        try:
            found[name] = declared[name].read(value)
        except (ValueError, TypeError, KeyError, OverflowError, OptionError) as error:
            custom = declared[name].convert is not None and error.args
            allowed = error.args[0] if custom else declared[name].allowed()
            raise FileError(f"{where}.{name} = {said(value)}: allowed is {allowed}") from None
    template = found.get("chat_template", CHATML)
    if template != CHATML and not looks_like_source(template):
        found["chat_template"] = str(folder / template)
    return found


def load_adapters(model: Model, adapters: Iterable[NamedAdapter], skip: bool, say: Say) -> None:
    """Puts adapters on a model's default stack, in order, as `each_usable` goes through them."""

    def load(adapter: NamedAdapter, file: Path) -> None:
        model.adapters.load(file, adapter.scale, adapter.name or None)

    each_usable(adapters, load, skip, say)


def each_usable(
    adapters: Iterable[NamedAdapter],
    use: Callable[[NamedAdapter, Path], T],
    skip: bool,
    say: Say,
) -> list[T]:
    """What `use` makes of adapters and the files they are in, in order. One that cannot be read, is
    named twice, or is refused by `use`, raises; with `skip` it is left out, and `say` hears which,
    and why.
    """
    found: dict[str, T] = {}
    for adapter in adapters:
        file = Path(adapter.path)
        try:
            file = adapter_path(adapter.path, say)
            place = os.path.realpath(file)
            if place in found:
                raise OptionError(
                    f"{adapter.path}: an adapter is named twice; a scale makes it stronger"
                )
            found[place] = use(adapter, file)
        except DeviceError:
            raise
        except WgtrainError as error:
            if not skip:
                raise
            reason = str(error).removeprefix(str(file)).removeprefix(adapter.path).lstrip(": ")
            say(f"warning: the adapter {adapter.path} is skipped: {reason}")
    return list(found.values())
