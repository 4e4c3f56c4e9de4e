"""Rows of tokens that a model has read: how they are read further, and what is read again."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Protocol
from weakref import WeakValueDictionary

import numpy as np

from wgtrain.infer.cached import Sequences


class Reader(Protocol):
    """A row that is being answered: its tokens so far."""

    ids: list[int]


class Places:
    """The sequences that a model keeps, and what stands in them: rows, each with the `key` of the
    stack of adapters under which it was read.
    """

    def __init__(self, key: bytes, sequences: Sequences) -> None:
        self.key, self.sequences = key, sequences
        self._keys = [key] * sequences.places
        self._held: list[list[int]] = [[] for _ in range(sequences.places)]
        # A row that nobody is after any more is gone by itself, and its place is free.
        self._readers: WeakValueDictionary[int, Reader] = WeakValueDictionary()
        self.widest = False  # memory had no room for more places

    def allow(self, places: int, room: int) -> bool:
        """Whether they serve for so many rows of so many tokens."""
        return self.sequences.places >= places and self.sequences.room >= room

    def under(self, key: bytes) -> None:
        """From here on rows are read under this stack: of what was read under another one nothing
        is used.
        """
        self.key = key

    def seat(self, rows: Sequence[Reader]) -> dict[Reader, int]:
        """A place for each row: the one it has, or one that holds much of what it begins with."""
        seats = {row: place for place, row in self._readers.items() if row in rows}
        free = [place for place in range(self.sequences.places) if place not in seats.values()]
        for row in rows:
            if row not in seats:
                seats[row] = max(free, key=partial(self._rank, row))
                self._readers[seats[row]] = row
                free.remove(seats[row])
        return seats

    def others(self, rows: Sequence[Reader]) -> int:
        """How many rows are under way here that are none of these."""
        return sum(row not in rows for row in self._readers.values())

    def _rank(self, row: Reader, place: int) -> tuple[bool, int, int, int]:
        """How well a place suits a row: not taken from another one, with much of what the row
        begins with, and with little else.
        """
        held = self._held[place]
        alike = common(held, row.ids) if self._keys[place] == self.key else 0
        return place not in self._readers, alike, -len(held), -place

    async def read(self, rows: Mapping[int, Sequence[int]]) -> dict[int, np.ndarray]:
        """Makes places hold these rows, of which only what is not there is read; logits float32
        (V,) after the last token of each.
        """
        new: dict[int, Sequence[int]] = {}
        for place, ids in rows.items():
            if self._keys[place] != self.key:
                self._cut(place, 0)
                self._keys[place] = self.key
            held = self._held[place]
            known = min(common(held, ids), len(ids) - 1)  # the logits after the last are wanted
            if known < self.sequences.length(place):  # more than `held` after an interrupt
                self._cut(place, known)
            new[place] = ids[known:]
        try:
            logits = await self.sequences.extend(new)
        except BaseException:  # also an interrupt, after which nobody knows what was read
            for place in rows:
                self._cut(place, 0)
            raise
        for place, more in new.items():
            self._held[place] += more
        return logits

    def _cut(self, place: int, length: int) -> None:
        del self._held[place][length:]
        self.sequences.truncate(place, length)


def common(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens two rows begin with alike."""
    n = min(len(a), len(b))
    if a[:n] == b[:n]:
        return n
    return next(i for i in range(n) if a[i] != b[i])
