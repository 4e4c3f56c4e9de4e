"""The fields of a request's body: each is read by what it may be, and what is left is neutral."""

import json
import math
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from wgtrain.data import messages
from wgtrain.data.records import RowError
from wgtrain.errors import printable
from wgtrain.files.source import shown
from wgtrain.serve.refusals import Refused, by_field, wrong_field

T = TypeVar("T")
D = TypeVar("D")
Reader = Callable[[Any, str], T]

_ANY = object()
# Fields of OpenAI, llama.cpp and vLLM with the values that ask for nothing beyond what is done.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "best_of": (1,),
    "echo": (False,),
    "suffix": ("",),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "logit_bias": ({},),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "parallel_tool_calls": (True,),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "store": (False,),
    "service_tier": ("auto", "default"),
    "verbosity": ("medium",),
    "user": (_ANY,),
    "metadata": (_ANY,),
    "safety_identifier": (_ANY,),
    "prompt_cache_key": (_ANY,),
    "prompt_cache_retention": (_ANY,),
    "cache_prompt": (_ANY,),
    "id_slot": (-1,),
    "typical_p": (1,),
    "dynatemp_range": (0,),
    "mirostat": (0,),
    "xtc_probability": (0,),
    "dry_multiplier": (0,),
    "ignore_eos": (False,),
    "grammar": ("",),
    "min_tokens": (0,),
    "length_penalty": (1,),
    "use_beam_search": (False,),
    "stop_token_ids": ([],),
    "skip_special_tokens": (True,),
    "spaces_between_special_tokens": (True,),
    "add_generation_prompt": (True,),
    "continue_final_message": (False,),
}


class Fields:
    """A JSON object's fields; `where` stands before their names in messages. What nobody took is
    refused by `end`, unless it is neutral. Null is as good as nothing.
    """

    def __init__(self, values: dict[str, Any], where: str = ""):
        self._where = where
        self._left = {name: value for name, value in values.items() if value is not None}

    def take(self, name: str, read: Reader[T], default: D) -> T | D:
        """A field's value; Refused where `read` does not take it."""
        if name not in self._left:
            return default
        return read(self._left.pop(name), f"{self._where}{name}")

    def end(self, neutral: Mapping[str, Any] = NEUTRAL) -> None:
        """Refused, naming it, for a field that asks for something that is not done."""
        for name, value in self._left.items():
            where = printable(f"{self._where}{name[:100]}")
            if name not in neutral:
                raise Refused(
                    f"'{where}': no such field here", param=where, code="unknown_parameter"
                )
            if not any(one is _ANY or _same(one, value) for one in neutral[name]):
                words = " or ".join(json.dumps(one) for one in neutral[name])
                raise Refused(
                    f"{where} = {shown(value)}: only {words} is supported",
                    param=where,
                    code="unsupported_parameter",
                )


def _same(one: Any, value: Any) -> bool:
    """Equality that tells 1 and 1.0 from true."""
    return isinstance(one, bool) == isinstance(value, bool) and bool(one == value)


def text(value: Any, name: str) -> str:
    """A text of whole characters."""
    try:
        return messages.text(value, name)
    except RowError as error:
        raise by_field(error) from None


def flag(value: Any, name: str) -> bool:
    """True or false."""
    if not isinstance(value, bool):
        raise wrong_field(f"{shown(value)} is not true or false", name)
    return value


def number(value: Any, name: str) -> float:
    """A finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise wrong_field(f"{shown(value)} is not a number", name)
    try:
        found = float(value)
    except OverflowError:
        found = math.inf
    if not math.isfinite(found):
        raise wrong_field(f"{shown(value)} is too large", name)
    return found


def whole(least: int, most: int | None = None) -> Reader[int]:
    """A reader of whole numbers from `least` to `most`; 3.0 is one, as JavaScript writes it."""

    def read(value: Any, name: str) -> int:
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        fine = isinstance(value, int) and not isinstance(value, bool)
        if not fine or value < least or (most is not None and value > most):
            upto = "on" if most is None else f"to {most}"
            raise wrong_field(
                f"{shown(value)}; a whole number from {least} {upto} is allowed", name
            )
        return int(value)

    return read


def one_of(*allowed: str) -> Reader[str]:
    """A reader of one of some texts."""

    def read(value: Any, name: str) -> str:
        if not isinstance(value, str) or value not in allowed:
            raise wrong_field(f"{shown(value)}; {' or '.join(map(repr, allowed))} is allowed", name)
        return value

    return read


def listed(read: Reader[T], most: int) -> Reader[list[T]]:
    """A reader of lists of what `read` takes."""

    def read_all(value: Any, name: str) -> list[T]:
        if not isinstance(value, list):
            raise wrong_field(f"{shown(value)} is not a list", name)
        if len(value) > most:
            raise wrong_field(f"{len(value)} of them; {most} are allowed", name)
        return [read(item, f"{name}[{i}]") for i, item in enumerate(value)]

    return read_all


def json_object(value: Any, name: str) -> dict[str, Any]:
    """An object, with whatever is in it."""
    if not isinstance(value, dict):
        raise wrong_field(f"{shown(value)} is not an object", name)
    try:
        messages.free_form([value], name)
    except RowError as error:
        raise by_field(error) from None
    return value
