"""The pieces of a `tokenizer.model`, SentencePiece's own file: a protocol buffer."""

import struct
from dataclasses import dataclass

from wgtrain.data.special_tokens import NORMAL
from wgtrain.errors import FileError
from wgtrain.files.source import Data, shown

MAX_PIECES = 1 << 21
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5  # wire types


@dataclass(frozen=True)
class Piece:
    """One piece; `type` as in a GGUF."""

    text: str
    score: float
    type: int


def read_pieces(data: Data, name: str = "tokenizer.model") -> list[Piece]:
    """All pieces in the order of their ids; FileError for what is no such file."""
    raw = bytes(data)
    pieces: list[Piece] = []
    for number, wire, value in _fields(raw, name):
        if (number, wire) == (1, _BYTES):
            pieces.append(_piece(raw[value[0] : value[1]], len(pieces), name))
            if len(pieces) > MAX_PIECES:
                raise FileError(f"{name}: more than {MAX_PIECES} pieces")
    if not pieces:
        raise FileError(f"{name}: no pieces of SentencePiece are in it")
    return pieces


def _piece(data: bytes, i: int, name: str) -> Piece:
    text, score, kind = "", 0.0, NORMAL
    for number, wire, value in _fields(data, f"{name}: piece {i}"):
        if (number, wire) == (1, _BYTES):
            try:
                text = data[value[0] : value[1]].decode("utf-8")
            except UnicodeDecodeError:
                what = shown(data[value[0] : value[1]])
                raise FileError(f"{name}: piece {i} is no valid UTF-8: {what}") from None
        elif (number, wire) == (2, _FIXED32):
            score = struct.unpack("<f", data[value[0] : value[1]])[0]
        elif (number, wire) == (3, _VARINT):
            kind = value[0]
    return Piece(text, score, kind)


def _fields(data: bytes, name: str) -> list[tuple[int, int, tuple[int, int]]]:
    """(number, wire type, begin and end of the value; of a varint the value itself, and 0)."""
    found, at = [], 0
    while at < len(data):
        key, at = _varint(data, at, name)
        number, wire = key >> 3, key & 7
        if wire == _VARINT:
            value, at = _varint(data, at, name)
            found.append((number, wire, (value, 0)))
            continue
        size = {_FIXED64: 8, _FIXED32: 4}.get(wire)
        if wire == _BYTES:
            size, at = _varint(data, at, name)
        if size is None or at + size > len(data):
            raise FileError(f"{name}: byte {at}: no protocol buffer of SentencePiece")
        found.append((number, wire, (at, at + size)))
        at += size
    return found


def _varint(data: bytes, at: int, name: str) -> tuple[int, int]:
    value = shift = 0
    while at < len(data) and shift < 64:
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
        shift += 7
    raise FileError(f"{name}: byte {at}: no protocol buffer of SentencePiece")
