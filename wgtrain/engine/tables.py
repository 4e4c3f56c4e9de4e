"""Tuning tables in files: as plain data, and what of one is believed."""

from typing import Any

from wgtrain.engine.candidates import is_listed
from wgtrain.engine.tuning import Choice, Tuning

_LONGEST = 500  # characters of an origin that come from a file


def of_this_version(tuning: Tuning) -> Tuning:
    """What of a table from a file this version has; `origin` says how much it has not."""
    table = {family: c for family, c in tuning.table.items() if is_listed(c, family)}
    missing, origin = len(tuning.table) - len(table), tuning.origin
    if missing:
        origin += f"; {missing} kernels not of this version are replaced: numbers may differ"
    return Tuning(table, origin)


def to_json(tuning: Tuning) -> dict[str, Any]:
    """Plain data: {"origin": text, "table": {family: {"kernel": name, constant: value, ...}}}."""
    table = {family: choice_to_json(choice) for family, choice in tuning.table.items()}
    return {"origin": tuning.origin, "table": table}


def from_json(data: Any) -> Tuning:
    """The inverse of `to_json`; ValueError for anything else. Its choices may be any: see
    `of_this_version`.
    """
    try:
        table = {family: choice_from_json(entry) for family, entry in data["table"].items()}
        origin = "".join(c if c.isprintable() else "?" for c in data["origin"][:_LONGEST])
    except (AttributeError, KeyError, TypeError):
        raise ValueError("not a tuning table") from None
    return Tuning(table, origin)


def choice_to_json(choice: Choice) -> dict[str, Any]:
    """Plain data: {"kernel": name, constant: value, ...}."""
    return {"kernel": choice.kernel, **dict(choice.constants)}


def choice_from_json(entry: Any) -> Choice:
    """The inverse of `choice_to_json`; ValueError for anything else."""
    if not isinstance(entry, dict) or not isinstance(entry.get("kernel"), str):
        raise ValueError("not a choice of a kernel")
    constants = {name: value for name, value in entry.items() if name != "kernel"}
    if not all(name.isidentifier() and type(n) is int for name, n in constants.items()):
        raise ValueError("constants of a kernel are whole numbers")
    if not entry["kernel"].isidentifier():
        raise ValueError("not the name of a kernel")
    return Choice(entry["kernel"], tuple(constants.items()))
