"""Bytes -> JSON objects with the line each begins at: JSONL, objects over several lines, or one
JSON array, also as gzip; strict, and it says where.
"""

import gzip
import io
import json
import math
import re
import zlib
from collections import Counter
from collections.abc import Iterator
from typing import Any, NoReturn

from wgtrain.errors import FileError
from wgtrain.files.source import shown

DEEPEST = 64  # levels of lists and objects within one row
_BOM = b"\xef\xbb\xbf"
_BLANK = b" \t\r\n"
_BLANKS = re.compile(r"[ \t\r\n]*")
_FILLED = re.compile(rb"[^ \t\r\n]")
# A gzip file may hold this many bytes, and this many times its own size more.
MOST_UNPACKED, MOST_RATIO = 1 << 26, 100
_PACKED = {
    b"PK\x03\x04": "a zip archive",
    b"\x28\xb5\x2f\xfd": "a zstandard file",
    b"BZh": "a bzip2 file",
    b"\xfd7zXZ\0": "an xz file",
    b"PAR1": "a Parquet file",
    b"GGUF": "a GGUF file",
}
_TABLES = (".csv", ".tsv", ".csv.gz", ".tsv.gz")


class RowError(ValueError):
    """What is wrong with one row; the reader of the file adds its name and the line."""


def read_records(data: bytes, name: str) -> Iterator[tuple[int, Any]]:
    """(line number from 1, value) of each row of a JSONL file, or of each element of a JSON array.

    A byte order mark and blank lines are skipped. FileError names the line of what is no JSON.
    """
    data = _unpacked(data, name)
    start = len(_BOM) if data.startswith(_BOM) else 0
    head = data[start : start + 4096].lstrip(_BLANK) or data[start:].lstrip(_BLANK)[:1]
    if name.lower().endswith(_TABLES) and head[:1] not in (b"{", b"[", b""):
        raise FileError(
            f"{name}: a table, where JSON objects are read, one a line; pandas makes them: "
            "read_csv(...).to_json('rows.jsonl', orient='records', lines=True)"
        )
    if head[:1] == b"[":
        records = _array(_Whole(data, start, name))
    elif _spread(data, start):
        records = _objects(_Whole(data, start, name))
    else:
        records = _lines(data, start, name)
    n = 0
    for record in records:
        n += 1
        yield record
    if n == 0:
        raise FileError(f"{name}: no rows in it")


def _unpacked(data: bytes, name: str) -> bytes:
    """What a gzip file holds, other data as it is; FileError for other kinds of packed files."""
    for begin, what in _PACKED.items():
        if data.startswith(begin):
            raise FileError(f"{name}: this is {what}; JSONL, plain or as gzip, is read")
    if not data.startswith(b"\x1f\x8b"):
        return data
    most = MOST_UNPACKED + MOST_RATIO * len(data)
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(data)) as file:
            out = file.read(most + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise FileError(f"{name}: this is gzip, and damaged: {error}") from None
    if len(out) > most:
        raise FileError(f"{name}: this gzip file holds more than {most:,} bytes; unpack it first")
    return out


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
                yield line, read_value(raw)
            except RowError as error:
                raise FileError(f"{name} line {line}: {error}") from None


def _spread(data: bytes, at: int) -> bool:
    """Whether the first object goes over several lines: then a line is no row."""
    try:
        begin = next(match.start() for match in _FILLED.finditer(data, at))
        end = data.find(b"\n", begin)
        if end < 0 or data[begin : begin + 1] != b"{":
            return False
        try:
            json.loads(data[begin:end])
        except json.JSONDecodeError as error:
            return error.pos >= len(error.doc.rstrip())  # the line is right as far as it goes
    except (StopIteration, ValueError, RecursionError):
        pass
    return False


class _Whole:
    """A text of which values are read one behind the other, so that an error has its line."""

    def __init__(self, data: bytes, start: int, name: str) -> None:
        self._name, self._line, self._counted, self.text = name, 1, 0, ""
        try:
            self.text = data[start:].decode()
        except UnicodeDecodeError as error:
            self._line += data.count(b"\n", 0, start + error.start)
            self.fail(0, _not_utf8(error))

    def fail(self, at: int, problem: str) -> NoReturn:
        """FileError with the line of a place in the text."""
        where = self._line + self.text.count("\n", self._counted, at)
        raise FileError(f"{self._name} line {where}: {problem}") from None

    def value(self, at: int) -> tuple[int, Any, int]:
        """The line of the value at a place, that value, and where it ends."""
        try:
            value, end = _parse_at(self.text, at)
        except RowError as error:
            self.fail(at, str(error))
        self._line += self.text.count("\n", self._counted, at)
        self._counted = at
        return self._line, value, end


def _objects(whole: _Whole) -> Iterator[tuple[int, Any]]:
    """Objects behind one another, each over as many lines as it likes."""
    at = _skip(whole.text, 0)
    while at < len(whole.text):
        line, value, end = whole.value(at)
        yield line, value
        at = _skip(whole.text, end)


def _array(whole: _Whole) -> Iterator[tuple[int, Any]]:
    text = whole.text
    at = _skip(text, 0) + 1
    closed = False
    while not closed:
        at = _skip(text, at)
        if text[at : at + 1] == "]":  # of an empty array, or behind a last comma
            break
        line, value, end = whole.value(at)
        yield line, value
        at = _skip(text, end)
        closed = text[at : at + 1] == "]"
        if not closed and text[at : at + 1] != ",":
            whole.fail(at, "the JSON array is not closed: expected ',' or ']'")
        at += not closed
    rest = _skip(text, at + 1)
    if rest < len(text):
        whole.fail(rest, f"{shown(text[rest : rest + 20])} after the end of the JSON array")


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


def read_value(raw: bytes) -> Any:
    """One JSON value, with no blanks around it; RowError for what is none."""
    text = _text(raw)
    value, end = _parse_at(text, 0)
    if end < len(text):
        raise RowError(f"{shown(text[end : end + 20])} after the JSON object")
    return value


def _parse_at(text: str, at: int) -> tuple[Any, int]:
    """One JSON value from `at`, and where it ends."""
    try:
        value, end = _DECODER.raw_decode(text, at)
    except json.JSONDecodeError as error:
        rest = text[error.pos : error.pos + 20]
        where = shown(rest) if rest else "the end; an object that is cut short, or not in one line"
        raise RowError(f"no JSON: {error.msg} at {where}") from None
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
        twice = next(key for key, n in Counter(key for key, _ in pairs).items() if n > 1)
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
