"""What a person names as an adapter, for the commands that load adapters upon a model."""

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wgtrain.api import adapter_file
from wgtrain.errors import FileError, OptionError
from wgtrain.files.source import shown
from wgtrain.runs.folder import CONFIG, TEMPLATE
from wgtrain.runs.paths import read_input
from wgtrain.runs.yaml_file import read_yaml
from wgtrain.train.settings import number


@dataclass(frozen=True)
class NamedAdapter:
    """An adapter that was named, and how strong it is to be."""

    path: str
    scale: float = 1.0
    name: str = ""


@dataclass(frozen=True)
class AdapterConfig:
    """A JSON configuration."""

    model: dict[str, Any]
    adapters: tuple[NamedAdapter, ...]
    on_error: str


def parse_adapter(text: str) -> NamedAdapter:
    """The adapter in "PATH" or "PATH:SCALE"; a path that is there as it stands is meant whole."""
    head, colon, tail = text.rpartition(":")
    if not colon or os.path.lexists(text):
        return NamedAdapter(text)
    try:
        scale = number(tail)
        if not head or not math.isfinite(scale):
            raise ValueError
    except (ValueError, OverflowError):
        raise OptionError(f"adapter = {shown(text)}: allowed is PATH or PATH:SCALE") from None
    return NamedAdapter(head, scale)


def adapter_path(path: str | os.PathLike[str]) -> Path:
    """What `load_adapter` reads of a GGUF, a folder of PEFT or a run."""
    return adapter_file(path)


def model_of_run(path: str | os.PathLike[str]) -> dict[str, Any] | None:
    """The settings of a run that say what its base is and how it is asked; None for no run."""
    folder = Path(path)
    if not (folder / CONFIG).is_file():
        return None
    settings = read_yaml(folder / CONFIG)
    names = ("model", "quantize_base", "precision", "chat_template", "template_args", "system")
    found = {name: settings[name] for name in names if settings.get(name) is not None}
    if "chat_template" in found:
        found["chat_template"] = str(folder / TEMPLATE)
    return found


def read_config(path: str | os.PathLike[str]) -> AdapterConfig:
    """A JSON configuration: `model`, `lora_adapters`, `on_error`."""
    try:
        values = json.loads(read_input(Path(path)))
        model = dict(values.get("model", {}))
        named = model.pop("lora_adapters", values.get("lora_adapters", []))
        adapters = tuple(NamedAdapter(a["path"], float(a.get("scale", 1.0))) for a in named)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise FileError(f"{path}: {error}") from None
    return AdapterConfig(model, adapters, values.get("on_error", "skip"))
