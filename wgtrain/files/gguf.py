"""GGUF files: metadata and a table of tensors in front of the tensors' bytes.

The reader sees a file through byte ranges, a window that moves over what stands in front of the
tensors.
"""

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from wgtrain.errors import FileError
from wgtrain.files.blocks import BLOCKS
from wgtrain.files.gguf_parser import (
    ALIGNMENT,
    ARRAY,
    F32_MAX,
    F32_MIN,
    GGUF,
    MAX_DIMS,
    MAX_KEY,
    MAX_TENSOR_NAME,
    METADATA_LIMIT,
    STRING,
    TYPE_IDS,
    NeedMore,
    Parser,
    TensorInfo,
)
from wgtrain.files.source import Data, Source, read_range, shown, source_name, source_size

__all__ = [
    "GGUF",
    "NUMBERS",
    "Raw",
    "TensorInfo",
    "gguf_head",
    "parse_gguf",
    "read_gguf",
    "with_numbers",
    "write_gguf",
]

# Tensors that are part of the configuration: what rotary frequencies are divided by.
NUMBERS = ("rope_freqs.weight", "rope_factors_short.weight", "rope_factors_long.weight")
_MOST = 4096  # bytes of one
READ = 1 << 20  # bytes at a time


@dataclass(frozen=True)
class Raw:
    """A tensor for `write_gguf` whose bytes are encoded already; `shape` in numpy order."""

    type: str  # a key of BLOCKS
    shape: tuple[int, ...]
    data: Data


async def read_gguf(source: Source) -> GGUF:
    """Metadata and tensor table of a GGUF file, version 2 or 3, reading no more than its front, and
    `NUMBERS`.
    """
    parser = Parser(source_name(source), source_size(source))
    need = 0
    while True:
        await _move(parser, source, need)
        try:
            return await with_numbers(parser.run(), source)
        except NeedMore as more:
            need = more.end


async def with_numbers(gguf: GGUF, source: Source) -> GGUF:
    """The same with the content of `NUMBERS`, from the source of its tensors; FileError for one
    that is not a row of positive F32.
    """
    found = {}
    for tensor in _number_tensors(gguf):
        found[tensor.name] = _numbers(
            gguf, tensor, await read_range(source, tensor.offset, tensor.nbytes)
        )
    return replace(gguf, numbers=found) if found else gguf


def _number_tensors(gguf: GGUF) -> list[TensorInfo]:
    found = [gguf.tensors[name] for name in NUMBERS if name in gguf.tensors]
    for tensor in found:
        if tensor.type != "F32" or len(tensor.shape) != 1 or tensor.nbytes > _MOST:
            raise FileError(
                f"{gguf.name}: tensor {tensor.name} is {tensor.type} {tensor.shape}; F32 and a "
                f"row of up to {_MOST // 4} are needed"
            )
    return found


def _numbers(gguf: GGUF, tensor: TensorInfo, data: Data) -> np.ndarray:
    values = np.frombuffer(data, "<f4")
    if not ((values >= F32_MIN) & (values <= F32_MAX)).all():
        at = int(np.flatnonzero(~((values >= F32_MIN) & (values <= F32_MAX)))[0])
        raise FileError(
            f"{gguf.name}: tensor {tensor.name}[{at}] is {values[at]}; a number above 0 is needed"
        )
    return values


def parse_gguf(data: Data, name: str = "file") -> GGUF:
    """As `read_gguf`, over a file that is in memory as a whole."""
    view = memoryview(data).cast("B")
    parser = Parser(name, view.nbytes)
    parser.data = view
    gguf = parser.run()
    found = {
        tensor.name: _numbers(gguf, tensor, view[tensor.offset : tensor.offset + tensor.nbytes])
        for tensor in _number_tensors(gguf)
    }
    return replace(gguf, numbers=found) if found else gguf


def typed_metadata(gguf: GGUF) -> dict[str, Any]:
    """Its metadata with each number of the type that the file has, for a file that keeps them."""
    kinds = gguf.kinds
    return {
        key: kinds[key].type(value) if key in kinds and type(value) in (int, float, bool) else value
        for key, value in gguf.metadata.items()
    }


async def _move(parser: Parser, source: Source, need: int) -> None:
    """The window from where the next run begins to at least `need`; of an entry that is longer
    than a window it doubles.
    """
    have, begin = parser.base + len(parser.data), parser.done[0]
    parser.data = parser.data[begin - parser.base :]
    parser.base = begin
    upto = min(max(have + max(READ, len(parser.data)), need), parser.size, METADATA_LIMIT)
    parser.data = b"".join((parser.data, await read_range(source, have, upto - have)))


def write_gguf(metadata: dict[str, Any], tensors: dict[str, np.ndarray | Raw]) -> bytes:
    """A GGUF v3 file, alignment 32, entries in the order given; same input, same bytes.

    numpy scalars and arrays keep their type; int becomes u32, or i64 or u64 where it does not fit,
    float f32 or f64, list[str] an array of strings, a tuple an array of arrays. ValueError or
    TypeError for what GGUF cannot hold.
    """
    raws = {n: t if isinstance(t, Raw) else _raw(n, t) for n, t in tensors.items()}
    head = gguf_head(metadata, {name: (raw.type, raw.shape) for name, raw in raws.items()})
    body: list[Data] = []
    for name, raw in raws.items():
        data, nbytes = memoryview(raw.data).cast("B"), tensor_nbytes(raw.type, raw.shape)
        if not nbytes or data.nbytes != nbytes:
            raise ValueError(f"tensor {name!r}: {data.nbytes} bytes, {nbytes} for {raw.shape}")
        body += [data, bytes(-nbytes % ALIGNMENT)]
    return b"".join([head, *body])


def gguf_head(
    metadata: dict[str, Any], tensors: Mapping[str, tuple[str, tuple[int, ...]]]
) -> bytes:
    """All that stands before the tensors, given as (type, shape), whose bytes then follow in this
    order, each padded to the alignment.
    """
    if metadata.get("general.alignment", ALIGNMENT) != ALIGNMENT:
        raise ValueError(f"files are written with an alignment of {ALIGNMENT}")
    head = [b"GGUF", struct.pack("<IQQ", 3, len(tensors), len(metadata))]
    for key, value in metadata.items():
        if not 1 <= len(key.encode()) <= MAX_KEY:
            raise ValueError(f"key {shown(key)}: 1 to {MAX_KEY} bytes allowed")
        head += [_text(key), _value(key, value)]
    offset = 0
    for name, (type_, shape) in tensors.items():
        if not 1 <= len(name.encode()) <= MAX_TENSOR_NAME:
            raise ValueError(f"tensor name {shown(name)}: 1 to {MAX_TENSOR_NAME} bytes allowed")
        if not 1 <= len(shape) <= MAX_DIMS or shape[-1] % BLOCKS[type_].size:
            raise ValueError(f"tensor {name!r}: shape {shape} cannot be {type_}")
        dims = struct.pack(f"<I{len(shape)}Q", len(shape), *reversed(shape))
        head += [_text(name), dims, struct.pack("<IQ", BLOCKS[type_].ggml_id, offset)]
        offset += -(-tensor_nbytes(type_, shape) // ALIGNMENT) * ALIGNMENT
    head.append(bytes(-sum(map(len, head)) % ALIGNMENT))
    return b"".join(head)


def tensor_nbytes(type_: str, shape: tuple[int, ...]) -> int:
    """Bytes of a tensor of a type of BLOCKS; its rows are whole blocks."""
    return math.prod(shape[:-1]) * BLOCKS[type_].row_nbytes(shape[-1])


def _raw(name: str, array: np.ndarray) -> Raw:
    # "float32" -> "F32", "int8" -> "I8"
    kind = f"{array.dtype.kind.upper()}{array.dtype.itemsize * 8}"
    if kind not in BLOCKS:
        raise TypeError(f"tensor {name!r}: {array.dtype} has no GGUF tensor type")
    flat = np.ascontiguousarray(array, array.dtype.newbyteorder("<")).reshape(-1)
    return Raw(kind, array.shape, flat.view(np.uint8).data)


def _text(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _value(key: str, value: Any) -> bytes:
    """Type id and bytes of one metadata value."""
    if isinstance(value, str):
        return struct.pack("<I", STRING) + _text(value)
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return struct.pack("<IIQ", ARRAY, STRING, len(value)) + b"".join(map(_text, value))
    if isinstance(value, tuple) and all(isinstance(v, list | tuple | np.ndarray) for v in value):
        items = [
            _value(key, item)[4:] for item in value
        ]  # each without its own type, which is array
        return struct.pack("<IIQ", ARRAY, ARRAY, len(value)) + b"".join(items)
    if isinstance(value, bool):
        value = np.bool_(value)
    elif isinstance(value, int):
        if not -(1 << 63) <= value < 1 << 64:
            raise ValueError(f"key {key!r}: {value} needs more than 64 bits")
        small, signed = 0 <= value < 1 << 32, value < 1 << 63
        value = (np.uint32 if small else np.int64 if signed else np.uint64)(value)
    elif isinstance(value, float) and not isinstance(value, np.generic):
        wide = F32_MAX < abs(value) < math.inf
        value = np.float64(value) if wide else np.float32(value)
    if not isinstance(value, (np.generic, np.ndarray)) or value.ndim > 1:
        raise TypeError(f"key {key!r}: GGUF cannot hold {shown(value)} ({type(value).__name__})")
    dtype = value.dtype.newbyteorder("<")
    if dtype not in TYPE_IDS:
        raise TypeError(f"key {key!r}: GGUF cannot hold {dtype}")
    kind, data = TYPE_IDS[dtype], value.astype(dtype).tobytes()
    if value.ndim:
        return struct.pack("<IIQ", ARRAY, kind, value.size) + data
    return struct.pack("<I", kind) + data
