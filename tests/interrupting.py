"""KeyboardInterrupt at a given line of the package, as if Ctrl-C came just there."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import wgtrain

PACKAGE = str(Path(wgtrain.__file__).parent)


class Lines:
    """Counts the lines of the package that run, and interrupts at a given one."""

    def __init__(self, at: int | None = None):
        self.at, self.seen = at, 0

    def _trace(self, frame: Any, event: str, argument: Any) -> Any:
        if event == "call":
            return self._trace if frame.f_code.co_filename.startswith(PACKAGE) else None
        if event == "line":
            self.seen += 1
            if self.seen == self.at:
                sys.settrace(None)
                raise KeyboardInterrupt
        return self._trace

    @contextmanager
    def watched(self) -> Iterator[None]:
        before = sys.gettrace()
        sys.settrace(self._trace)
        try:
            yield
        finally:
            sys.settrace(before)
