"""Which rows each optimizer step trains on: a place in the data that can be found again."""

from typing import NamedTuple

from wgtrain.data import Batch, Batches, Dataset, make_batch
from wgtrain.errors import OptionError
from wgtrain.train.config import TrainConfig

_MOST_COUNTED = 20_000_000  # rows packed before a run begins, to know its steps: some seconds


class At(NamedTuple):
    """The window that comes next: number `position` of `epoch`, both from 0."""

    epoch: int = 0
    position: int = 0


START = At()


class Windows:
    """Accumulation windows, `grad_accum` batches each; they end with their epoch, maybe early.

    What a window holds is a function of rows, settings and seed: nothing here moves.
    """

    def __init__(self, rows: Dataset, config: TrainConfig):
        self._rows, self._size = rows.rows, config.grad_accum
        self._batches = Batches(
            rows.rows,
            batch_size=config.batch_size,
            shuffle=config.shuffle,
            seed=config.seed,
            packing=config.packing,
            seq_len=rows.seq_len,
        )
        self.per_epoch = len(self._starts(0))
        epochs = config.epochs or 0
        if config.packing and epochs * (len(self._rows) + 100) > _MOST_COUNTED:
            raise OptionError(
                f"epochs = {epochs}: with packing the steps of each are counted before the start, "
                f"which takes too long for {len(self._rows)} rows; give iters instead"
            )
        self.total = config.iters or (
            sum(len(self._starts(epoch)) for epoch in range(epochs))
            if config.packing
            else epochs * self.per_epoch
        )

    def window(self, at: At) -> tuple[list[Batch], At]:
        """The batches of a window, and where the one behind it is."""
        epoch, position = at
        if position == len(self._starts(epoch)):
            epoch, position = epoch + 1, 0
        start = self._starts(epoch)[position]
        groups = self._batches.per_epoch(epoch)[start : start + self._size]
        batches = [make_batch([self._rows[i] for i in group]) for group in groups]
        return batches, At(epoch, position + 1)

    def place(self, step: int) -> At:
        """The window after `step` of the run's steps."""
        epoch = 0
        if not self._batches.packing:
            epoch = max(step - 1, 0) // self.per_epoch
            return At(epoch, step - epoch * self.per_epoch)
        while step > len(self._starts(epoch)):
            step -= len(self._starts(epoch))
            epoch += 1
        return At(epoch, step)

    def passed(self, at: At) -> float:
        """Epochs trained before a window, with the fraction of the one under way."""
        return at.epoch + at.position / len(self._starts(at.epoch))

    def _starts(self, epoch: int) -> range:
        return range(0, len(self._batches.per_epoch(epoch)), self._size)
