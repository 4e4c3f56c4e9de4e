"""The demo's model on the command line: a run on it, and what a command said."""

import io
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from wgtrain.cli.demo import BASE, FILES
from wgtrain.runs import session

RUN = {"model": str(BASE), "data": str(FILES / "test.jsonl"), "seq_len": 128, "rank": 2}


def train(out: Path, say: Callable[[str], Any] = lambda line: None, **settings: Any) -> Path:
    """A short run, after which the model answers in another way."""
    settings = {**RUN, "iters": 4, "batch_size": 2, "learning_rate": 0.03, **settings}
    assert session.start({**settings, "out": str(out)}, say)
    return out


class Terminal(io.StringIO):
    """A stream that says it is one."""

    def isatty(self) -> bool:
        return True


def type_in(monkeypatch: Any, text: str | bytes) -> None:
    """Puts something on standard input."""
    data = text.encode() if isinstance(text, str) else text
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
