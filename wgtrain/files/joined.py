"""Ranges of several files seen as one file, changed on the way where a GGUF holds something else
than a folder: rows in another order, norms with 1 added.
"""

from bisect import bisect_right
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from wgtrain.files.floats import FLOATS, as_float32
from wgtrain.files.names import permute_rows
from wgtrain.files.source import Data, Source, read_range


class Part(Protocol):
    """A range of the file."""

    @property
    def nbytes(self) -> int:
        """Its bytes, as they are handed out."""

    async def read(self, offset: int, n: int) -> Data:
        """`n` bytes from `offset` in the part."""


@dataclass(frozen=True)
class Plain:
    """The bytes from `begin` in `source`, as they are."""

    source: Source
    begin: int
    nbytes: int

    async def read(self, offset: int, n: int) -> Data:
        """`n` bytes from `offset` in the part."""
        return await read_range(self.source, self.begin + offset, n)


@dataclass(frozen=True)
class Permuted:
    """Rows of `row` bytes, those of a head, `head` bytes, in GGUF's order."""

    source: Source
    begin: int
    nbytes: int
    row: int
    head: int

    async def read(self, offset: int, n: int) -> Data:
        """`n` bytes from `offset` in the part; whole heads are read."""
        first, last = offset // self.head, -(-(offset + n) // self.head)
        size = (last - first) * self.head
        data = await read_range(self.source, self.begin + first * self.head, size)
        rows = np.frombuffer(data, np.uint8).reshape(-1, self.row)
        ordered = permute_rows(rows, last - first).reshape(-1)
        return ordered[offset - first * self.head :][:n].data


@dataclass(frozen=True)
class Shifted:
    """Numbers of one of safetensors' types with 1 added, as float32."""

    source: Source
    begin: int
    count: int
    type: str  # F32, F16 or BF16

    @property
    def nbytes(self) -> int:
        """Of float32."""
        return 4 * self.count

    async def read(self, offset: int, n: int) -> Data:
        """`n` bytes from `offset` in the part; whole numbers are read."""
        size = FLOATS[self.type]
        first, last = offset // 4, -(-(offset + n) // 4)
        data = await read_range(self.source, self.begin + size * first, size * (last - first))
        shifted = as_float32(data, self.type) + np.float32(1)
        return shifted.view(np.uint8)[offset - 4 * first :][:n].data


class JoinedSource:
    """The bytes of the file: its parts, one after the other."""

    def __init__(self, name: str, parts: list[Part]) -> None:
        self.name = name
        self._parts = parts
        ends = np.cumsum([part.nbytes for part in parts], dtype=np.int64).tolist()
        self._starts = [0, *ends[:-1]]
        self.size: int = ends[-1]

    async def read_range(self, offset: int, n: int) -> Data:
        """The `n` bytes from `offset`."""
        pieces: list[Data] = []
        while n > 0:
            i = bisect_right(self._starts, offset) - 1
            at = offset - self._starts[i]
            size = min(n, self._parts[i].nbytes - at)
            pieces.append(await self._parts[i].read(at, size))
            offset, n = offset + size, n - size
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)
