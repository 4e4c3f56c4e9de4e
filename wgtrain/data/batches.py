"""Rows -> batches: streams of tokens in which each row knows where it begins and ends, in a
seeded order.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from wgtrain.data.jsonl import Row
from wgtrain.errors import OptionError
from wgtrain.random import key, permutation


@dataclass(frozen=True)
class Batch:
    """T tokens of whole rows behind one another. `lines` are the rows' lines in their file."""

    tokens: np.ndarray  # uint32 (T,)
    targets: np.ndarray  # int32 (T,), -1 where not learnt
    starts: np.ndarray  # uint32 (T,), where the token's row begins
    ends: np.ndarray  # uint32 (T,), where it ends, exclusive
    lines: tuple[int, ...] = ()


def make_batch(rows: Sequence[Row]) -> Batch:
    """Rows put behind one another; T is the sum of their lengths."""
    sizes = np.array([len(row.tokens) for row in rows], np.intp)  # what `repeat` takes anywhere
    ends = np.cumsum(sizes, dtype=np.uint32)
    return Batch(
        tokens=np.concatenate([row.tokens for row in rows], dtype=np.uint32),
        targets=np.concatenate([row.targets for row in rows], dtype=np.int32),
        starts=np.repeat(ends - sizes.astype(np.uint32), sizes),
        ends=np.repeat(ends, sizes),
        lines=tuple(row.line for row in rows),
    )


def in_batches(rows: Sequence[Row], size: int) -> Iterator[Batch]:
    """Rows in their order, `size` a batch."""
    for i in range(0, len(rows), size):
        yield make_batch(rows[i : i + size])


class Batches:
    """The batches of every epoch: functions of (rows, settings, seed, epoch), so a resumed run
    can jump anywhere.

    Rows come in file order, or shuffled by the stream (seed, "shuffle", epoch). Without packing
    each `batch_size` rows make a batch and the last may be short. With packing a batch takes
    rows in that order until the next one would pass batch_size * seq_len tokens, and that one
    begins the next batch.
    """

    def __init__(
        self,
        rows: Sequence[Row],
        batch_size: int,
        shuffle: bool = True,
        seed: int = 42,
        packing: bool = False,
        seq_len: int = 512,
    ) -> None:
        if not rows or batch_size < 1:
            raise OptionError(f"{len(rows)} rows in batches of {batch_size}: nothing to train on")
        self.rows = rows
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.seed = seed
        self.packing = packing
        self.room = batch_size * seq_len  # tokens of a packed batch
        self._sizes = [len(row.tokens) for row in rows]
        self._last: tuple[int, list[list[int]]] | None = None

    def per_epoch(self, epoch: int) -> list[list[int]]:
        """The row indices of each batch of an epoch, counted from 0."""
        if self._last is None or self._last[0] != epoch:
            self._last = (epoch, self._group(self._order(epoch)))
        return self._last[1]

    def _order(self, epoch: int) -> list[int]:
        n = len(self.rows)
        if not self.shuffle:
            return list(range(n))
        return permutation(key(self.seed, "shuffle", epoch), n).tolist()

    def _group(self, order: list[int]) -> list[list[int]]:
        if not self.packing:
            return [order[i : i + self.batch_size] for i in range(0, len(order), self.batch_size)]
        groups: list[list[int]] = []
        filled = self.room
        for i in order:
            if filled + self._sizes[i] > self.room:
                groups.append([])
                filled = 0
            groups[-1].append(i)
            filled += self._sizes[i]
        return groups
