"""How far something with parts is, on standard error: a bar in a terminal, else a line now and
then.
"""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from wgtrain.errors import printable
from wgtrain.runs.progress import LINE_SECONDS, clock

Advance = Callable[[str], None]  # begins a part, by its name
Moved = Callable[[int, int], None]  # bytes done, bytes in all
SHOWN_FROM = 64 << 20  # bytes: what is smaller is moved before anybody could read of it


@contextmanager
def progress(parts: int, what: str = "") -> Iterator[Advance]:
    """Shows which part was begun, how many are done, and the time left; first says `what` it is."""
    if what:
        print(what, file=sys.stderr, flush=True)
    done = -1
    with counted() as show:

        def advance(name: str) -> None:
            nonlocal done
            done += 1
            show(name, done, parts)

        yield advance


@contextmanager
def transfer(what: str) -> Iterator[Moved]:
    """Shows how many bytes of a large model are moved, and the time left; `what` is done to it:
    "loading" or "writing".
    """
    began = time.monotonic()
    with ExitStack() as stack:
        show: Moved | None = None

        def moved(done: int, total: int) -> None:
            nonlocal show
            if total >= SHOWN_FROM:
                if show is None:
                    how = (
                        _bytes_bar(what, total)
                        if sys.stderr.isatty()
                        else _bytes_lines(what, began)
                    )
                    show = stack.enter_context(how)
                show(done, total)

        yield moved


@contextmanager
def _bytes_lines(what: str, began: float) -> Iterator[Moved]:
    shown = began

    def show(done: int, total: int) -> None:
        nonlocal shown
        now = time.monotonic()
        if now - shown >= LINE_SECONDS:
            left = (now - began) / done * (total - done)
            text = f"{what} {done / 2**20:,.0f} of {total / 2**20:,.0f} MiB  left {clock(left)}"
            print(text, file=sys.stderr, flush=True)
            shown = now

    yield show


@contextmanager
def _bytes_bar(what: str, total: int) -> Iterator[Moved]:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn(what),
        BarColumn(),
        DownloadColumn(binary_units=True),  # as sizes are told elsewhere
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as shown:
        task = shown.add_task("", total=total)
        yield lambda done, total: shown.update(task, completed=done)


@contextmanager
def counted() -> Iterator[Callable[[str, int, int], None]]:
    """Shows how many of something are done, and of what, as (name, done, all)."""
    began = shown = time.monotonic()

    def line(name: str, done: int, total: int) -> None:
        nonlocal shown
        now = time.monotonic()
        if now - shown >= LINE_SECONDS and done:
            left = (now - began) / done * (total - done)
            text = f"{name}: {done:,} of {total:,}  left {clock(left)}"
            print(printable(text), file=sys.stderr, flush=True)
            shown = now

    if not sys.stderr.isatty():
        yield line
        return
    with _counts() as bar:
        yield bar


@contextmanager
def _counts() -> Iterator[Callable[[str, int, int], None]]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as shown:
        task = shown.add_task("", total=None)

        def bar(name: str, done: int, total: int) -> None:
            shown.update(task, completed=done, total=total, description=printable(name))

        yield bar
