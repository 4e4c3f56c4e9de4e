"""A live loss chart under the cell, while `trainer.fit()` runs in Jupyter."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from wgtrain.runs.progress import Show, line
from wgtrain.runs.samples import as_table

if TYPE_CHECKING:
    from wgtrain.train.results import StepResult
    from wgtrain.train.trainer import Trainer

DRAW_SECONDS = 1.0


def running() -> bool:
    """Whether this is a kernel of Jupyter."""
    if "IPython" not in sys.modules:
        return False
    from IPython import get_ipython

    shell = get_ipython()
    return shell is not None and "IPKernelApp" in shell.config


@contextmanager
def chart(trainer: "Trainer") -> Iterator[Show]:
    """Redraws the curve at most once a second, and at the end; below it the last samples."""
    from IPython.display import SVG, display

    from wgtrain.runs.chart import loss_svg

    losses: list[tuple[int, float]] = []
    start, first, drawn = time.monotonic(), trainer.step, 0.0
    tables: list[Any] = []  # one, once there are samples
    handle = display(SVG(loss_svg([])), display_id=True)

    def show(result: "StepResult") -> None:
        nonlocal drawn
        losses.append((result.step, result.loss))
        if result.samples:
            from IPython.display import HTML

            table = HTML(as_table(result.step, result.samples))
            if tables:
                tables[0].update(table)
            else:
                tables.append(display(table, display_id=True))
        now = time.monotonic()
        if now - drawn >= DRAW_SECONDS or result.step == trainer.total_steps:
            drawn = now
            left = (now - start) / (result.step - first) * (trainer.total_steps - result.step)
            evaluations = [(e.step, e.loss) for e in trainer.evaluations]
            handle.update(SVG(loss_svg(losses, evaluations, line(result, trainer, left))))

    yield show
