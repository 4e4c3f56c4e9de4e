"""What a run shows: a bar in a terminal, plain lines elsewhere."""

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from wgtrain.errors import printable
from wgtrain.runs.samples import in_words

if TYPE_CHECKING:
    from wgtrain.train.results import StepResult
    from wgtrain.train.trainer import Trainer

Show = Callable[["StepResult"], None]
LINE_SECONDS = 10.0
BEAT_SECONDS = 10.0


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
    """A line for the first and last step, each validation, and every twentieth or ten seconds, also
    while no step ends for so long; and the samples.
    """
    every = max(trainer.total_steps // 20, 1)
    first = trainer.step
    start = shown = time.monotonic()

    def show(result: "StepResult") -> None:
        nonlocal shown
        now = time.monotonic()
        due = result.step % every == 0 or now - shown >= LINE_SECONDS
        ends = result.step in (first + 1, trainer.total_steps)
        if due or ends or result.eval_loss is not None or result.samples:
            left = (now - start) / (result.step - first) * (trainer.total_steps - result.step)
            write(line(result, trainer, left))
            shown = now
        if result.samples:
            write(in_words(result))

    with beats(trainer, write, show) as beating:
        yield beating


@contextmanager
def beats(trainer: "Trainer", write: Callable[[str], None], show: Show) -> Iterator[Show]:
    """`show`, and meanwhile a line to `write` whenever no step ends for ten seconds."""
    woken, ended = threading.Event(), False
    last, began = trainer.step, time.monotonic()

    def beat() -> None:
        while not ended:
            if woken.wait(BEAT_SECONDS):
                woken.clear()
            elif last < trainer.total_steps:
                write(f"{under_way(trainer, last)}: {clock(time.monotonic() - began)} so far")

    def beating(result: "StepResult") -> None:
        nonlocal last, began
        show(result)
        last, began = result.step, time.monotonic()
        woken.set()

    thread = threading.Thread(target=beat, daemon=True)
    with contextlib.suppress(RuntimeError):  # a page has no threads
        thread.start()
    try:
        yield beating
    finally:
        ended = True
        woken.set()
        if thread.ident is not None:
            thread.join()


def under_way(trainer: "Trainer", last: int) -> str:
    """What follows after the results up to step `last`."""
    step, total, every = last + 1, trainer.total_steps, trainer.config.eval_every
    if trainer.valid is not None and last == 0 and not trainer.evaluations:
        return "validation before the first step"
    validated = step == total or (every > 0 and step % every == 0)
    more = " and its validation" if trainer.valid is not None and validated else ""
    often = trainer.config.sample_every or 0
    if trainer.config.samples and (step == total or (often > 0 and step % often == 0)):
        more += " and its samples"
    return f"step {step}/{total}{more}"


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
        TextColumn("{task.fields[beat]}"),
    )
    screen = Console(file=_Deaf(sys.stderr))  # type: ignore[arg-type]
    with Progress(*columns, console=screen) as progress:
        task = progress.add_task(
            "",
            total=trainer.total_steps,
            completed=trainer.step,
            loss="-",
            speed="-",
            validation="",
            beat="",
        )

        def show(result: "StepResult") -> None:
            progress.update(
                task,
                completed=result.step,
                loss=f"{result.loss:.4f}",
                speed=f"{result.tokens_per_second:,.0f}",
                beat="",
            )
            if result.eval_loss is not None:
                progress.update(task, validation=f"validation {result.eval_loss:.4f}")
            if result.samples:
                text = printable(in_words(result))
                progress.console.print(text, markup=False, highlight=False)

        with beats(trainer, lambda text: progress.update(task, beat=text), show) as beating:
            yield beating


class _Deaf:
    """A terminal that may hang up while a run goes on."""

    def __init__(self, stream: Any):
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> None:
        """Writes, where somebody still reads."""
        with contextlib.suppress(OSError, ValueError):
            self._stream.write(text)

    def flush(self) -> None:
        """Flushes, where somebody still reads."""
        with contextlib.suppress(OSError, ValueError):
            self._stream.flush()
