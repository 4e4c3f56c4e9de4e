"""A JSON configuration of adapters, and the stack of them that a command keeps for a model."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wgtrain.errors import FileError
from wgtrain.runs.adapters import NamedAdapter
from wgtrain.runs.paths import read_input


@dataclass(frozen=True)
class AdapterConfig:
    """A JSON configuration."""

    model: dict[str, Any]
    adapters: tuple[NamedAdapter, ...]
    on_error: str


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
