"""What a run shows: a bar in a terminal, plain lines elsewhere."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from wgtrain.train.results import StepResult
    from wgtrain.train.trainer import Trainer

Show = Callable[["StepResult"], None]
LINE_SECONDS = 10.0


def line(result: "StepResult", trainer: "Trainer", seconds_left: float) -> str:
    """One step in words."""
    parts = [
        f"step {result.step}/{trainer.total_steps}",
        f"epoch {result.epoch:.2f}",
        f"loss {result.loss:.4f}",
        f"lr {result.learning_rate:.2e}",
        f"grad {result.grad_norm:.3g}",
        f"{result.tokens_per_second:,.0f} tok/s",
        f"left {clock(seconds_left)}",
    ]
    if result.eval_loss is not None:
        parts.append(f"validation {result.eval_loss:.4f}")
    return "  ".join(parts)


def clock(seconds: float) -> str:
    """75 -> "1:15", 3700 -> "1:01:40"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


@contextmanager
def lines(trainer: "Trainer", write: Callable[[str], None]) -> Iterator[Show]:
    """A line for the first and last step, each validation, and every twentieth or ten seconds."""
    every = max(trainer.total_steps // 20, 1)
    first = trainer.step
    start = shown = time.monotonic()

    def show(result: "StepResult") -> None:
        nonlocal shown
        now = time.monotonic()
        due = result.step % every == 0 or now - shown >= LINE_SECONDS
        ends = result.step in (first + 1, trainer.total_steps)
        if due or ends or result.eval_loss is not None:
            left = (now - start) / (result.step - first) * (trainer.total_steps - result.step)
            write(line(result, trainer, left))
            shown = now

    yield show


@contextmanager
def bar(trainer: "Trainer") -> Iterator[Show]:
    """A bar with loss, speed and time left, on standard error."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("training"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]}"),
        TextColumn("{task.fields[speed]} tok/s"),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[validation]}"),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(
            "",
            total=trainer.total_steps,
            completed=trainer.step,
            loss="-",
            speed="-",
            validation="",
        )

        def show(result: "StepResult") -> None:
            progress.update(
                task,
                completed=result.step,
                loss=f"{result.loss:.4f}",
                speed=f"{result.tokens_per_second:,.0f}",
            )
            if result.eval_loss is not None:
                progress.update(task, validation=f"validation {result.eval_loss:.4f}")

        yield show
