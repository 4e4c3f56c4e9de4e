"""Which adapters a request names, and how: in the model's name, by name or number, by number."""

import math
from dataclasses import dataclass
from typing import Any

from wgtrain.files.source import shown
from wgtrain.serve.fields import Fields, json_object, listed, number, text, whole
from wgtrain.serve.refusals import wrong_field

MOST_ADAPTERS = 64


@dataclass(frozen=True)
class Choice:
    """`model` is the name that was asked for. `named`: an adapter's name or number, and its scale
    (None = the usual one), in order; `numbered`: llama.cpp's `lora`, scales by number.
    """

    model: str | None = None
    named: list[tuple[str | int, float | None]] | None = None
    numbered: dict[int, float] | None = None


def read_choice(fields: Fields) -> Choice:
    """The fields `model`, `lora_adapters` and `lora`; Refused names what is wrong."""
    model = fields.take("model", text, None)
    named = fields.take("lora_adapters", listed(_named, MOST_ADAPTERS), None)
    numbered = fields.take("lora", read_scales, None)
    if named is not None and numbered is not None:
        raise wrong_field("lora_adapters says which adapters are to be used", "lora")
    return Choice(model, named, numbered)


def read_scales(value: Any, name: str) -> dict[int, float]:
    """Scales by the numbers of adapters: llama.cpp's [{"id": 0, "scale": 0.5}, ...]."""
    pairs = listed(_numbered, MOST_ADAPTERS)(value, name)
    scales = dict(pairs)
    if len(scales) < len(pairs):
        raise wrong_field("an id stands there twice", name)
    return scales


def _numbered(value: Any, name: str) -> tuple[int, float]:
    fields = Fields(json_object(value, name), f"{name}.")
    found = fields.take("id", whole(0), -1)
    if found < 0:
        raise wrong_field("the id of an adapter is needed", f"{name}.id")
    scale = fields.take("scale", number, 0.0)
    fields.end({})
    return found, scale


def _named(value: Any, name: str) -> tuple[str | int, float | None]:
    fields = Fields(json_object(value, name), f"{name}.")
    if "path" in value:
        raise wrong_field(
            "adapters are named over HTTP, as /v1/models and /lora-adapters list them",
            f"{name}.path",
        )
    by_name = fields.take("name", text, "")
    by_id = fields.take("id", whole(0), -1)
    scale = fields.take("scale", number, math.nan)
    fields.end({})
    if bool(by_name) == (by_id >= 0):
        raise wrong_field(f"{shown(value)}; either a name or an id is needed", name)
    return by_name or by_id, None if math.isnan(scale) else scale
