"""Which rows each optimizer step trains on: a place in the data that can be found again."""

from collections.abc import Iterator

from wgtrain.data import Batch, Batches, Dataset, make_batch
from wgtrain.train.config import TrainConfig


class Windows:
    """Accumulation windows, `grad_accum` batches each; they end with their epoch, maybe early.

    `epoch` and `position` are those of the next window: functions of rows, settings and seed.
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
        self.total = config.iters or (
            sum(len(self._starts(epoch)) for epoch in range(epochs))
            if config.packing
            else epochs * self.per_epoch
        )
        self.epoch, self.position = 0, 0
        lengths = sorted((len(row.tokens) for row in self._rows), reverse=True)
        self.max_row = lengths[0]
        self.max_tokens = sum(lengths[: config.batch_size])
        if config.packing:
            self.max_tokens = min(config.batch_size * rows.seq_len, sum(lengths))

    def next(self) -> list[Batch]:
        """The batches of the next window."""
        if self.position == len(self._starts(self.epoch)):
            self.epoch, self.position = self.epoch + 1, 0
        start = self._starts(self.epoch)[self.position]
        self.position += 1
        groups = self._batches.per_epoch(self.epoch)[start : start + self._size]
        return [make_batch([self._rows[i] for i in group]) for group in groups]

    def passed(self) -> float:
        """Epochs trained so far, with the fraction of the one under way."""
        return self.epoch + self.position / len(self._starts(self.epoch))

    def _starts(self, epoch: int) -> range:
        return range(0, len(self._batches.per_epoch(epoch)), self._size)


def in_batches(rows: Dataset, size: int) -> Iterator[Batch]:
    """Rows in their order, `size` a batch."""
    for i in range(0, len(rows.rows), size):
        yield make_batch(rows.rows[i : i + size])
