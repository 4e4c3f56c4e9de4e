"""safetensors: a JSON header, then the arrays one after the other."""

import gc
import json
import math
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np

from wgtrain.errors import FileError
from wgtrain.files.source import Data, Source, read_range, shown, source_name, source_size

MAX_HEADER = 4 << 20  # bytes; forty thousand tensors
MAX_CONTAINERS = 1 << 21  # of one JSON text; the largest tokenizer.json of today has half a million

_DTYPES = {
    "BOOL": "?",
    "U8": "u1",
    "I8": "i1",
    "U16": "<u2",
    "I16": "<i2",
    "U32": "<u4",
    "I32": "<i4",
    "U64": "<u8",
    "I64": "<i8",
    "F16": "<f2",
    "F32": "<f4",
    "F64": "<f8",
    "BF16": "<u2",  # widened to float32 when read
}
_NAMES = {np.dtype(code): name for name, code in _DTYPES.items() if name != "BF16"}


@dataclass(frozen=True)
class Entry:
    """One tensor of a file: `begin` and `end` in bytes from the start of the file."""

    dtype: str  # a key of _DTYPES
    shape: tuple[int, ...]
    begin: int
    end: int


def read_safetensors(data: Data, name: str = "file") -> dict[str, np.ndarray]:
    """All arrays of a file, read-only views of `data`; BF16 becomes a float32 copy.

    FileError unless the arrays fill the data exactly: each in bounds, no overlap, no gap.
    """
    view = memoryview(data).cast("B")
    length = _header_length(view[:8], view.nbytes, name)
    entries = parse_header(view[8 : 8 + length], view.nbytes, name)
    return {key: _array(view[e.begin : e.end], e.dtype, e.shape) for key, e in entries.items()}


async def read_header(source: Source) -> bytes:
    """The JSON in front of a file's arrays."""
    name, size = source_name(source), source_size(source)
    first = await read_range(source, 0, min(8, size))
    return bytes(await read_range(source, 8, _header_length(first, size, name)))


def _header_length(first: Data, size: int, name: str) -> int:
    """Bytes of the header of a file of `size` bytes that begins with `first`."""
    if size < 8:
        raise FileError(f"{name}: {size} bytes; a safetensors file begins with 8 of length")
    length = int.from_bytes(first, "little")
    if length > min(size - 8, MAX_HEADER):
        raise FileError(
            f"{name}: byte 0: header of {length} bytes; {size - 8} are left in the file, "
            f"at most {MAX_HEADER} are read"
        )
    return length


def parse_header(data: Data, size: int, name: str) -> dict[str, Entry]:
    """What the header says of a file of `size` bytes; FileError as in `read_safetensors`."""
    header = json_object(data, f"{name}: header")
    start = 8 + len(data)
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise FileError(f"{name}: __metadata__ is {shown(metadata)}, an object of strings expected")
    entries: dict[str, Entry] = {}
    for key, entry in header.items():
        where = f"{name}: tensor {shown(key)}"
        dtype, shape, begin, end = _entry(entry, where)
        nbytes = math.prod(shape) * np.dtype(_DTYPES[dtype]).itemsize
        if end - begin != nbytes:
            raise FileError(
                f"{where}: data_offsets {begin} to {end} hold {end - begin} bytes, "
                f"{nbytes} needed for {dtype} {shown(shape)}"
            )
        if math.prod(max(n, 1) for n in shape) >= 1 << 59:  # of an empty one; numpy cannot hold it
            raise FileError(f"{where}: shape {shown(shape)} is too large")
        if start + end > size:
            raise FileError(
                f"{where}: data_offsets end at {end}, the file's data at {size - start}"
            )
        entries[key] = Entry(dtype, shape, start + begin, start + end)
    at = start
    for key, e in sorted(entries.items(), key=lambda item: (item[1].begin, item[1].end, item[0])):
        if e.begin != at:
            problem = "overlaps the tensor before it" if e.begin < at else "leaves a gap before it"
            raise FileError(
                f"{name}: tensor {shown(key)}: offset {e.begin - start} {problem}, "
                f"{at - start} expected"
            )
        at = e.end
    if at != size:
        raise FileError(f"{name}: byte {at}: {size - at} bytes after the last tensor")
    return entries


def _entry(entry: Any, where: str) -> tuple[str, tuple[int, ...], int, int]:
    """dtype, shape, begin and end of one tensor's header entry."""
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise FileError(f"{where}: {shown(entry)}; dtype, shape and data_offsets expected")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _DTYPES:
        raise FileError(f"{where}: dtype {shown(dtype)}, known are {', '.join(_DTYPES)}")
    if not _counts(shape) or len(shape) > 8:
        raise FileError(f"{where}: shape {shown(shape)}, at most 8 integers from 0 expected")
    if not _counts(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise FileError(f"{where}: data_offsets {shown(offsets)}, [begin, end] expected")
    return dtype, tuple(shape), offsets[0], offsets[1]


def _counts(values: Any) -> bool:
    return isinstance(values, list) and all(type(v) is int and 0 <= v < 1 << 63 for v in values)


def _array(raw: memoryview, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    if dtype == "BF16":
        wide = np.frombuffer(raw, "<u2").astype(np.uint32) << np.uint32(16)
        return wide.view(np.float32).reshape(shape)
    if dtype == "BOOL":  # any byte but 0 is true, and numpy must not see others than 0 and 1
        return (np.frombuffer(raw, np.uint8) != 0).reshape(shape)
    return np.frombuffer(raw, _DTYPES[dtype]).reshape(shape)


def write_safetensors(tensors: dict[str, np.ndarray], metadata: dict[str, str]) -> bytes:
    """A file of the arrays, widest types first, then by name: same input, same bytes."""
    header: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    body, at = [], 0
    for key in sorted(tensors, key=lambda key: (-tensors[key].dtype.itemsize, key)):
        array = tensors[key]
        dtype = array.dtype.newbyteorder("<")
        if dtype not in _NAMES:
            raise TypeError(f"tensor {key!r}: safetensors cannot hold {array.dtype}")
        data = array.astype(dtype, copy=False).tobytes()
        header[key] = {
            "dtype": _NAMES[dtype],
            "shape": list(array.shape),
            "data_offsets": [at, at + len(data)],
        }
        body.append(data)
        at += len(data)
    head = json.dumps(header, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)
    return b"".join([len(head).to_bytes(8, "little"), head, *body])


def json_object(data: Data, where: str) -> dict[str, Any]:
    """A JSON object without repeated keys; FileError for anything else."""

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(items)
        if len(found) != len(items):
            twice = Counter(key for key, _ in items).most_common(1)[0][0]
            raise FileError(f"{where}: {shown(twice)} stands there twice")
        return found

    collects = gc.isenabled()
    gc.disable()  # JSON has no cycles to look for, and half a million lists take as long again
    try:
        text = str(data, "utf-8")
        del data
        if text.count("{") + text.count("[") > MAX_CONTAINERS:  # each takes 30 times its bytes
            raise FileError(f"{where}: more than {MAX_CONTAINERS} objects and arrays")
        value = json.loads(text, object_pairs_hook=pairs)
    except UnicodeDecodeError as error:
        raise FileError(f"{where}: no valid UTF-8 at its byte {error.start}") from None
    except json.JSONDecodeError as error:
        raise FileError(
            f"{where}: no valid JSON at line {error.lineno}, column {error.colno}: {error.msg}"
        ) from None
    except (ValueError, RecursionError) as error:  # a number of 5000 digits, a thousand brackets
        raise FileError(f"{where}: no usable JSON: {error}") from None
    finally:
        if collects:
            gc.enable()
    if not isinstance(value, dict):
        raise FileError(f"{where}: {shown(value)}, a JSON object expected")
    return value
