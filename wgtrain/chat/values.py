"""What chat templates make and keep: weighed, written as JSON, and the two kinds they may make."""

import json
from typing import Any

from jinja2.exceptions import SecurityError
from jinja2.runtime import Undefined
from jinja2.utils import Namespace

CHARACTERS = 4_000_000  # that one rendering may make, its own values and its output


def weigh(value: Any, strict: bool = False) -> int:
    """About how many characters a value of texts, lists and dicts holds when written out.

    With `strict` other objects are refused, since writing them out may run anything.
    """
    if isinstance(value, str):
        return len(value)
    if value is None or isinstance(value, bool | float | Undefined):
        return 8
    total = 0
    open_ = [value]
    while open_:
        value = open_.pop()
        total += 8
        if isinstance(value, str):
            total += len(value)
        elif isinstance(value, dict):
            open_ += value.keys()
            open_ += value.values()
        elif isinstance(value, list | tuple):
            open_ += value
        elif isinstance(value, int) and not -(1 << 256) < value < 1 << 256:
            raise SecurityError("a number grows too large")
        elif strict and not isinstance(value, int | float | None | Undefined):
            raise SecurityError(f"a {type(value).__name__} is no text")
        if total > 64 * CHARACTERS or len(open_) > CHARACTERS:
            raise SecurityError("a value grows too large")
    return total


class Dict:
    """`dict` as Transformers offers it: its call and `fromkeys`."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        """`dict.fromkeys`."""
        return dict.fromkeys(*args)


class Names(Namespace):
    """`namespace` as Transformers offers it: no name in it begins with `_`."""

    def __init__(*args: Any, **kwargs: Any) -> None:  # so that one may be called `self`
        self, *given = args
        values = dict(*given, **kwargs)
        for name in values:
            _check_name(name)
        Namespace.__init__(self, values)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a namespace keeps no name that begins with _, as {name!r}")


def tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """As Transformers defines it: no escapes for HTML."""
    weigh(value, strict=True)
    if indent is not None and not (isinstance(indent, int) and 0 <= indent <= 16):
        raise SecurityError("an indent beyond 16")
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
        default=_plain,
    )


def _plain(value: Any) -> Any:
    if isinstance(value, Undefined):
        raise SecurityError(value._undefined_message)
    raise SecurityError(f"a {type(value).__name__} is no JSON")
