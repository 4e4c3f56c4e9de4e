"""Learning rate of each optimizer step: warm-up, then constant, linear, cosine or restarts."""

import math
from dataclasses import dataclass
from decimal import Decimal

from wgtrain.train.config import TrainConfig


@dataclass(frozen=True)
class Schedule:
    """Steps count from 1 to `total`; `period` is the steps from one restart to the next."""

    kind: str
    base: float
    total: int
    warmup: int
    period: int

    def __call__(self, step: int) -> float:
        """The learning rate of step `step`.

        base * step / warmup up to the end of the warm-up; then by progress p, which is 0 at the
        first step after it: base, base (1 - p), or base (1 + cos(pi p)) / 2.
        """
        if step <= self.warmup:
            return self.base * step / self.warmup
        after = step - 1 - self.warmup
        if self.kind == "constant":
            return self.base
        if self.kind == "cosine-restarts":
            p = after % self.period / self.period
        else:
            p = min(after / max(self.total - self.warmup, 1), 1.0)
        if self.kind == "linear":
            return self.base * (1 - p)
        return self.base * (1 + math.cos(math.pi * p)) / 2


def make_schedule(config: TrainConfig, total: int, steps_per_epoch: int) -> Schedule:
    """The schedule of a run of `total` steps; restarts come every `lr_period` steps or epoch."""
    if config.warmup_steps is not None:
        warmup = config.warmup_steps
    else:
        # the decimal number a person wrote: 0.07 * 100 is above 7 in binary and would give 8
        warmup = math.ceil(Decimal(repr(config.warmup_ratio)) * total)
    period = config.lr_period or max(steps_per_epoch, 1)
    return Schedule(config.lr_schedule, config.learning_rate, total, warmup, period)
