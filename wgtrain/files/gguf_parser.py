"""Parsing the front of a GGUF file that trusts nothing in it.

Each count is compared with the bytes that are left before a loop or an array is made of it; each
message names the file, the key or tensor, the byte, the value and what is allowed. Format: ggml's
docs/gguf.md.
"""

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, TypeVar, overload

import numpy as np

from wgtrain.errors import FileError
from wgtrain.files.blocks import BLOCKS_BY_ID, Block
from wgtrain.files.source import Data, shown

METADATA_LIMIT = 64 << 20  # bytes; the largest vocabularies of today take 25 MB
MAX_ENTRIES = 1 << 16  # metadata entries, or tensors
MAX_ITEMS = 1 << 21  # strings in arrays; vocabulary and merges have under a million
_ARRAY_ITEMS = 32  # for how many strings an array in an array counts, by the time it takes
ALIGNMENT = 32  # bytes, where general.alignment does not say otherwise
MAX_KEY = 65_535  # bytes, by the specification
MAX_TENSOR_NAME = 63  # bytes, as llama.cpp has it
MAX_DIMS = 4
MAX_DEPTH = 4  # of arrays in arrays

# Numbers of configurations and adapters, apart from their sign: a GPU computes with normal f32.
F32_MIN, F32_MAX = float(np.finfo(np.float32).tiny), float(np.finfo(np.float32).max)

STRING, ARRAY, BOOL = 8, 9, 7
# Value type id -> (name, little-endian numpy type)
_NUMBERS: dict[int, tuple[str, np.dtype]] = {
    0: ("u8", np.dtype("<u1")),
    1: ("i8", np.dtype("<i1")),
    2: ("u16", np.dtype("<u2")),
    3: ("i16", np.dtype("<i2")),
    4: ("u32", np.dtype("<u4")),
    5: ("i32", np.dtype("<i4")),
    6: ("f32", np.dtype("<f4")),
    7: ("bool", np.dtype("?")),
    10: ("u64", np.dtype("<u8")),
    11: ("i64", np.dtype("<i8")),
    12: ("f64", np.dtype("<f8")),
}
_TYPE_NAMES = {**{i: name for i, (name, _) in _NUMBERS.items()}, STRING: "string", ARRAY: "array"}
TYPE_IDS = {dtype: i for i, (_, dtype) in _NUMBERS.items()}
_U32, _U64 = struct.Struct("<I"), struct.Struct("<Q")
# The fewest bytes one element can take: an array has an item type and a count, a string its length.
_SMALLEST = {**{i: dtype.itemsize for i, (_, dtype) in _NUMBERS.items()}, STRING: 8, ARRAY: 12}
_SMALLEST_ENTRY = 8 + 1 + 4 + 1
_SMALLEST_TENSOR = 8 + 1 + 4 + 8 + 4 + 8

T = TypeVar("T")
Row = tuple[tuple[int, ...], Block, int]  # shape, type, offset from the start of the data
_REQUIRED: Any = object()
_SHORT = ": was it downloaded whole?"


@dataclass(frozen=True)
class TensorInfo:
    """Where one tensor lies: `shape` as numpy has it, (rows, row length)."""

    name: str
    shape: tuple[int, ...]
    type: str  # a key of BLOCKS
    offset: int  # bytes, from the start of the file
    nbytes: int


@dataclass(frozen=True)
class GGUF:
    """What stands in front of a model's weights.

    Values are int, float, bool, str, list[str], a numpy array, or a tuple of arrays in an array.
    `notes`: what a person should be told of the file; `numbers`: the content of tensors that are
    part of the configuration, by name; `kinds`: the types in which the file has its scalar
    numbers, by key.
    """

    name: str
    version: int
    metadata: dict[str, Any]
    tensors: dict[str, TensorInfo]
    notes: tuple[str, ...] = ()
    numbers: Mapping[str, np.ndarray] = field(default_factory=dict)
    kinds: dict[str, np.dtype] = field(default_factory=dict)

    @overload
    def get(self, key: str, kind: type[T]) -> T: ...
    @overload
    def get(self, key: str, kind: type[T], default: None) -> T | None: ...
    @overload
    def get(self, key: str, kind: type[T], default: T) -> T: ...
    def get(self, key: str, kind: type[T], default: Any = _REQUIRED) -> Any:
        """The value of `key` as `kind`: int, float, bool, str, list or np.ndarray.

        A float is finite, and an integer will do. FileError when the key is missing and no default
        is given, or the value is of another kind.
        """
        if key not in self.metadata:
            if default is _REQUIRED:
                raise FileError(f"{self.name}: key {key!r} is missing, {kind.__name__} expected")
            return default
        value = self.metadata[key]
        found = type(value)
        if kind is not float and found is kind:  # exactly: True is no integer here
            return value
        if kind is float and found in (int, float) and math.isfinite(value):
            return float(value)
        raise FileError(
            f"{self.name}: key {key!r} is {shown(value)} ({type(value).__name__}), "
            f"{'finite float' if kind is float else kind.__name__} expected"
        )


class NeedMore(Exception):
    """The window ends too early; bytes up to `end` are needed at least."""

    def __init__(self, end: int) -> None:
        self.end = end


class Parser:
    """Reads a window `data` that begins at byte `base`; `run` goes on where the last one left off:
    after an entry, or after a string of an array that is too long for a window.
    """

    def __init__(self, name: str, size: int) -> None:
        self.name, self.size = name, size
        self.data: Data = b""
        self.base = 0
        self.pos = 0  # where reading stands, as all positions from the start of the file
        self.items = 0  # strings in arrays so far, arrays in arrays as _ARRAY_ITEMS each
        self.done = 0, 0  # pos and items where the next run begins
        self.key, self.value_at = "", 0  # of the entry being read
        self.cut: tuple[int, list[str]] | None = None  # count and first strings of its array
        self.what = "the header"  # what is being read, for messages
        self.counts: tuple[int, int, int] | None = None  # version, tensors, keys
        self.metadata: dict[str, Any] = {}
        self.kinds: dict[str, np.dtype] = {}
        self.rows: dict[str, Row] = {}

    def run(self) -> GGUF:
        self.pos, self.items = self.done
        if self.counts is None:
            self.counts = self.header()
            self.done = self.pos, self.items
        version, n_tensors, n_keys = self.counts
        while len(self.metadata) < n_keys:
            if self.cut is None:
                self.what = f"metadata entry {len(self.metadata)} of {n_keys}"
                value = self.entry()
            else:
                value = self.strings(*self.cut, True)
            self.check_alignment(value)
            self.metadata[self.key] = value
            self.cut = None
            self.done = self.pos, self.items
        while len(self.rows) < n_tensors:
            self.what = f"tensor entry {len(self.rows)} of {n_tensors}"
            name, row = self.tensor()
            self.rows[name] = row
            self.done = self.pos, self.items
        return GGUF(self.name, version, self.metadata, self.place(), kinds=self.kinds)

    def fail(self, problem: str, at: int | None = None) -> FileError:
        at = self.pos if at is None else at
        return FileError(f"{self.name}: {self.what}, byte {at}: {problem}")

    def need(self, n: int, each: str) -> None:
        """Makes sure that `n` more bytes are there; `each` names what they are for."""
        end = self.pos + n
        if end > self.size:
            raise self.fail(f"{each} needs {n} bytes, {self.size - self.pos} are left in the file")
        if end > METADATA_LIMIT:
            raise self.fail(
                f"{each} needs {n} bytes, at most {METADATA_LIMIT} of metadata are read"
            )
        if end > self.base + len(self.data):
            raise NeedMore(end)

    def u32(self, each: str) -> int:
        self.need(4, each)
        self.pos += 4
        return _U32.unpack_from(self.data, self.pos - 4 - self.base)[0]

    def u64(self, each: str) -> int:
        self.need(8, each)
        self.pos += 8
        return _U64.unpack_from(self.data, self.pos - 8 - self.base)[0]

    def string(self, each: str, limit: int | None = None) -> str:
        start = self.pos
        n = self.u64(f"the length of {each}")
        if limit is not None and not 1 <= n <= limit:
            raise self.fail(f"{each} of {n} bytes, 1 to {limit} allowed", start)
        self.need(n, each)
        start, self.pos = self.pos, self.pos + n
        return self.utf8(start, self.pos, each)

    def utf8(self, start: int, end: int, each: str) -> str:
        try:
            return str(self.data[start - self.base : end - self.base], "utf-8")
        except UnicodeDecodeError as error:
            at = start + error.start
            byte = self.data[at - self.base]
            raise self.fail(f"{each} is no valid UTF-8: {byte:#04x} ({error.reason})", at) from None

    def header(self) -> tuple[int, int, int]:
        self.need(4, "the magic number")
        magic = bytes(self.data[:4])
        if magic != b"GGUF":
            what = _instead(bytes(self.data[:64]), self.name)
            raise self.fail(f"begins with {magic!r}, a GGUF file with b'GGUF'{what}")
        self.pos = 4
        version = self.u32("the version")
        if version & 0xFFFF == 0:
            raise self.fail("a big-endian GGUF file; only little-endian ones are read", 4)
        if version not in (2, 3):
            raise self.fail(f"GGUF version {version}; 2 and 3 are read", 4)
        counts = []
        for each, least in (("tensors", _SMALLEST_TENSOR), ("metadata entries", _SMALLEST_ENTRY)):
            n = self.u64(f"the count of {each}")
            self.fits(n, least, each, self.pos - 8, MAX_ENTRIES)
            counts.append(n)
        return version, counts[0], counts[1]

    def fits(self, n: int, least: int, each: str, at: int, most: int | None = None) -> None:
        """Refuses a count whose elements, at `least` bytes each, cannot lie in what is left."""
        left = self.size - self.pos
        if n > left // least:
            raise self.fail(
                f"{n} {each} of at least {least} bytes each, {left} bytes are left in the file", at
            )
        if most is not None and n > most:
            raise self.fail(f"{n} {each}, at most {most} are read", at)

    def entry(self) -> Any:
        """The value of a key, which is kept."""
        start = self.pos
        self.key = self.string("a key", MAX_KEY)
        self.what = f"key {shown(self.key)}"
        if self.key in self.metadata:
            raise self.fail("a second time in this file", start)
        self.value_at = self.pos
        kind = self.u32("the value's type")
        return self.array(1) if kind == ARRAY else self.scalar(kind, self.value_at)

    def check_alignment(self, value: Any) -> None:
        if self.key == "general.alignment" and (
            type(value) is not int or value < 1 or value & (value - 1)
        ):
            what = f"alignment {shown(value)}, a power of two expected"
            raise self.fail(what, self.value_at + 4)

    def scalar(self, kind: int, at: int) -> Any:
        if kind == STRING:
            return self.string("a string")
        if kind not in _NUMBERS:
            raise self.fail(f"value type {kind}, known are {_known(_TYPE_NAMES)}", at)
        self.kinds[self.key] = _NUMBERS[kind][1]
        return self.numbers(kind, 1, "a value")[0].item()

    def numbers(self, kind: int, n: int, each: str) -> np.ndarray:
        dtype = _NUMBERS[kind][1]
        self.need(n * dtype.itemsize, each)
        raw = np.uint8 if kind == BOOL else dtype
        values = np.frombuffer(self.data, raw, n, self.pos - self.base)
        if kind == BOOL and n and values.max() > 1:
            worst = int(np.argmax(values > 1))
            raise self.fail(f"bool {values[worst]}, 0 or 1 allowed", self.pos + worst)
        self.pos += values.nbytes
        return values.astype(dtype.newbyteorder("="))  # a copy, which lets the window go

    def array(self, depth: int) -> Any:
        start = self.pos
        kind = self.u32("the array's type")
        if kind not in _TYPE_NAMES:
            raise self.fail(f"array of type {kind}, known are {_known(_TYPE_NAMES)}", start)
        n = self.u64("the array's count")
        weight = {STRING: 1, ARRAY: _ARRAY_ITEMS}.get(kind, 0)
        most = (MAX_ITEMS - self.items) // weight if weight else None
        self.fits(n, _SMALLEST[kind], f"{_TYPE_NAMES[kind]} elements", start + 4, most)
        self.items += n * weight
        if kind == STRING:
            return self.strings(n, [], depth == 1)
        if kind == ARRAY:
            if depth == MAX_DEPTH:
                raise self.fail(f"arrays nested deeper than {MAX_DEPTH}", start)
            return tuple(self.array(depth + 1) for _ in range(n))
        return self.numbers(kind, n, f"{n} {_TYPE_NAMES[kind]} elements")

    def strings(self, n: int, out: list[str], whole: bool) -> list[str]:
        """`out` with the strings that lack to `n`; the one loop that runs hundreds of thousands of
        times. `whole`: they are an entry's value, so that the next run can go on within it.
        """
        data, have, pos, length = self.data, len(self.data), self.pos - self.base, _U64.unpack_from
        append = out.append
        try:
            while len(out) < n:
                start = pos + 8
                end = start + length(data, pos)[0]
                if end > have:
                    break
                append(str(data[start:end], "utf-8"))
                pos = end
        except (struct.error, UnicodeDecodeError):
            pass
        self.pos = pos + self.base
        if len(out) < n:
            if whole:
                self.cut, self.done = (n, out), (self.pos, self.items)
            self.string(f"string {len(out)} of {n}")  # raises what is wrong with this one
        return out

    def tensor(self) -> tuple[str, Row]:
        start = self.pos
        name = self.string("a tensor name", MAX_TENSOR_NAME)
        self.what = f"tensor {shown(name)}"
        if name in self.rows:
            raise self.fail("a second time in this file", start)
        n_dims = self.u32("the number of dimensions")
        if not 1 <= n_dims <= MAX_DIMS:
            raise self.fail(f"{n_dims} dimensions, 1 to {MAX_DIMS} allowed", self.pos - 4)
        dims = [self.u64("a dimension") for _ in range(n_dims)]
        kind = self.u32("the tensor's type")
        if kind not in BLOCKS_BY_ID:
            known = _known({i: block.name for i, block in BLOCKS_BY_ID.items()})
            raise self.fail(f"tensor type {kind}, known are {known}", self.pos - 4)
        block = BLOCKS_BY_ID[kind]
        shape = tuple(reversed(dims))
        elements = math.prod(shape)  # Python's integers cannot overflow
        if not elements or elements // block.size * block.nbytes > self.size:
            at = self.pos - 4 - 8 * n_dims
            text = f"shape {shape} of {block.name} in a file of {self.size} bytes{_SHORT}"
            raise self.fail(text, at)
        if shape[-1] % block.size:
            raise self.fail(
                f"rows of {shape[-1]} elements, a multiple of {block.size} needed for {block.name}"
            )
        return name, (shape, block, self.u64("the tensor's offset"))

    def place(self) -> dict[str, TensorInfo]:
        """Absolute offsets; every tensor inside the file, aligned, and apart from the others."""
        alignment = self.metadata.get("general.alignment", ALIGNMENT)
        base = -(-self.pos // alignment) * alignment
        infos: dict[str, TensorInfo] = {}
        for name, (shape, block, relative) in self.rows.items():
            self.what = f"tensor {shown(name)}"
            offset, nbytes = base + relative, math.prod(shape[:-1]) * block.row_nbytes(shape[-1])
            if relative % alignment:
                raise self.fail(f"not at a multiple of the alignment {alignment}", offset)
            if offset + nbytes > self.size:
                text = f"its {nbytes} bytes end outside the file of {self.size}{_SHORT}"
                raise self.fail(text, offset)
            infos[name] = TensorInfo(name, shape, block.name, offset, nbytes)
        ordered = sorted(infos.values(), key=lambda info: info.offset)
        for before, after in pairwise(ordered):
            if before.offset + before.nbytes > after.offset:
                self.what = f"tensor {shown(after.name)}"
                end = f"{shown(before.name)}, which ends at {before.offset + before.nbytes}"
                raise self.fail(f"overlaps tensor {end}", after.offset)
        return infos


def _instead(front: bytes, name: str) -> str:
    """What a file that is no GGUF seems to be, and what to do."""
    if front.startswith(b"version https://git-lfs"):
        return "; it is a pointer of Git LFS: git lfs pull fetches the file itself"
    if front.lstrip()[:5].lower() in (b"<!doc", b"<html"):
        return "; it is a web page: download the file itself"
    if name.endswith((".safetensors", ".bin", ".pth", ".json")):
        return "; of a model of Hugging Face, name its folder"
    return ""


def _known(names: dict[int, str]) -> str:
    return ", ".join(f"{i} {name}" for i, name in sorted(names.items()))
