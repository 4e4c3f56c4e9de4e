"""Bytes -> JSON objects with the line each begins at: JSONL, or one JSON array; strict, and it
says where.
"""

import json
import math
import re
from collections.abc import Iterator
from typing import Any, NoReturn

from wgtrain.errors import FileError
from wgtrain.files.source import shown

DEEPEST = 64  # levels of lists and objects within one row
_BOM = b"\xef\xbb\xbf"
_BLANK = b" \t\r\n"
_BLANKS = re.compile(r"[ \t\r\n]*")


class RowError(ValueError):
    """What is wrong with one row; the reader of the file adds its name and the line."""


def read_records(data: bytes, name: str) -> Iterator[tuple[int, Any]]:
    """(line number from 1, value) of each row of a JSONL file, or of each element of a JSON array.

    A byte order mark and blank lines are skipped. FileError names the line of what is no JSON.
    """
    start = len(_BOM) if data.startswith(_BOM) else 0
    head = data[start : start + 4096].lstrip(_BLANK) or data[start:].lstrip(_BLANK)[:1]
    records = _array(data, start, name) if head[:1] == b"[" else _lines(data, start, name)
    n = 0
    for record in records:
        n += 1
        yield record
    if n == 0:
        raise FileError(f"{name}: no rows in it")


def _lines(data: bytes, at: int, name: str) -> Iterator[tuple[int, Any]]:
    line = 0
    while at < len(data):
        end = data.find(b"\n", at)
        end = len(data) if end < 0 else end
        line += 1
        raw = data[at:end].strip(_BLANK)
        at = end + 1
        if raw:
            try:
                yield line, _parse(_text(raw))
            except RowError as error:
                raise FileError(f"{name} line {line}: {error}") from None


def _array(data: bytes, start: int, name: str) -> Iterator[tuple[int, Any]]:
    """The elements one after the other, so that an error has its line."""
    line, counted = 1, 0
    text = ""

    def fail(at: int, problem: str) -> NoReturn:
        where = line + text.count("\n", counted, at)
        raise FileError(f"{name} line {where}: {problem}") from None

    try:
        text = data[start:].decode()
    except UnicodeDecodeError as error:
        line += data.count(b"\n", 0, start + error.start)
        fail(0, _not_utf8(error))
    at = _skip(text, 0) + 1
    closed = False
    while not closed:
        at = _skip(text, at)
        if text[at : at + 1] == "]":  # of an empty array, or behind a last comma
            break
        try:
            value, end = _parse_at(text, at)
        except RowError as error:
            fail(at, str(error))
        line += text.count("\n", counted, at)
        counted = at
        yield line, value
        at = _skip(text, end)
        closed = text[at : at + 1] == "]"
        if not closed and text[at : at + 1] != ",":
            fail(at, "the JSON array is not closed: expected ',' or ']'")
        at += not closed
    rest = _skip(text, at + 1)
    if rest < len(text):
        fail(rest, f"{shown(text[rest : rest + 20])} after the end of the JSON array")


def _skip(text: str, at: int) -> int:
    match = _BLANKS.match(text, at)
    return match.end() if match else at


def _text(raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise RowError(_not_utf8(error)) from None


def _not_utf8(error: UnicodeDecodeError) -> str:
    hint = "; UTF-16 is not read" if error.object[error.start] in (0xFE, 0xFF) else ""
    return f"byte 0x{error.object[error.start]:02x} is no UTF-8 ({error.reason}){hint}"


def _parse(text: str) -> Any:
    value, end = _parse_at(text, 0)
    if end < len(text):
        raise RowError(f"{shown(text[end : end + 20])} after the JSON object")
    return value


def _parse_at(text: str, at: int) -> tuple[Any, int]:
    """One JSON value from `at`, and where it ends."""
    try:
        value, end = _DECODER.raw_decode(text, at)
    except json.JSONDecodeError as error:
        raise RowError(
            f"no JSON: {error.msg} at {shown(text[error.pos : error.pos + 20])}"
        ) from None
    except RecursionError:
        raise RowError(f"no usable JSON: deeper than {DEEPEST} levels") from None
    except ValueError as error:  # Python's own bound on the digits of a number
        if isinstance(error, RowError):
            raise
        raise RowError(f"no usable JSON: {error}") from None
    if text.count("[", at, end) + text.count("{", at, end) > DEEPEST:
        check_depth(value)
    return value, end


def check_depth(value: Any) -> None:
    """RowError for lists and objects nested deeper than DEEPEST."""
    level = [value]
    for _ in range(DEEPEST + 1):
        level = [
            item
            for parent in level
            if isinstance(parent, dict | list)
            for item in (parent.values() if isinstance(parent, dict) else parent)
            if isinstance(item, dict | list)
        ]
        if not level:
            return
    raise RowError(f"no usable JSON: deeper than {DEEPEST} levels")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    out = dict(pairs)
    if len(out) != len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for i, key in enumerate(keys) if key in keys[:i])
        raise RowError(f"field {shown(twice)} stands twice in an object")
    return out


def _constant(text: str) -> NoReturn:
    raise RowError(f"no JSON: {text} is no number of JSON")


def _float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise RowError(f"no usable JSON: {shown(text)} is too large")
    return value


_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_constant, parse_float=_float)
