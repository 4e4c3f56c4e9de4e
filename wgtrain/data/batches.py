"""Rows into streams: which rows make a batch, and the arrays of one."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from wgtrain import random

if TYPE_CHECKING:
    from wgtrain.data.jsonl import Row


@dataclass(frozen=True)
class Batch:
    """Rows one after the other as a stream of T tokens; there is no padding.

    tokens uint32 (T,); targets int32 (T,), -1 = not trained; starts and ends uint32 (T,): where each token's row
    begins and ends in the stream (exclusive). `lines`: the rows' lines in their file.
    """

    tokens: np.ndarray
    targets: np.ndarray
    starts: np.ndarray
    ends: np.ndarray
    lines: tuple[int, ...] = ()


def make_batch(rows: Sequence["Row"]) -> Batch:
    """Concatenates rows."""
    lengths = np.array([len(row.tokens) for row in rows])
    ends = np.repeat(np.cumsum(lengths), lengths)
    starts = ends - np.repeat(lengths, lengths)
    return Batch(
        tokens=np.concatenate([row.tokens for row in rows]).astype(np.uint32),
        targets=np.concatenate([row.targets for row in rows]).astype(np.int32),
        starts=starts.astype(np.uint32),
        ends=ends.astype(np.uint32),
        lines=tuple(row.line for row in rows),
    )


class Batches:
    """Which rows go into which batch: a pure function of seed and epoch, so that a resumed run can begin anywhere.

    Without packing a batch has `batch_size` rows, an epoch's last one perhaps fewer. With packing rows are taken in
    order as long as the next one still fits into batch_size * seq_len tokens.
    """

    def __init__(
        self,
        rows: Sequence["Row"],
        batch_size: int,
        shuffle: bool = True,
        seed: int = 42,
        packing: bool = False,
        seq_len: int = 512,
    ):
        self._lengths = [len(row.tokens) for row in rows]
        self._batch_size, self._shuffle, self._seed = batch_size, shuffle, seed
        self._room = batch_size * seq_len if packing else None

    def per_epoch(self, epoch: int) -> list[list[int]]:
        """The batches of an epoch (from 0), each a list of row numbers."""
        n = len(self._lengths)
        order = list(range(n))
        if self._shuffle:
            order = random.permutation(random.key(self._seed, "shuffle", epoch), n).tolist()
        if self._room is None:
            return [order[i : i + self._batch_size] for i in range(0, n, self._batch_size)]
        batches: list[list[int]] = []
        used = self._room
        for row in order:
            if not batches or used + self._lengths[row] > self._room:
                batches.append([])
                used = 0
            batches[-1].append(row)
            used += self._lengths[row]
        return batches

    def steps_per_epoch(self, epoch: int) -> int:
        """Batches of an epoch; under packing it depends on the order."""
        return len(self.per_epoch(epoch))
