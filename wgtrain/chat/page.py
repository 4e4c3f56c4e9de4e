"""A template in a page, which has no processes: whoever owns the worker can end that."""

import json
from collections import deque
from collections.abc import Callable
from importlib import import_module
from typing import Any

from wgtrain.chat import bounds
from wgtrain.chat.child import answer, make, timed


class Page:
    """Runs a template right here, and tells the worker's module `wgtrain_watch` before and after.

    Its `rendering(seconds)` is called with what the next row may take by the clock, and with 0
    when it is done. The page ends a worker that takes longer; without the module nobody does.
    """

    def __init__(self, settings: dict[str, Any]) -> None:
        try:
            self._tell: Callable[[float], Any] = import_module("wgtrain_watch").rendering
        except ImportError:
            self._tell = lambda seconds: None
        self._template = self._watched(make, settings, bounds.COMPILING)
        self.variables = self._template.variables
        self._rows: deque[str] = deque()

    def send(self, rows: list[str]) -> None:
        """Keeps rows, as JSON."""
        self._rows += rows

    def receive(self) -> Any:
        """The answer to the next row, with the `seconds` it took."""
        row = self._rows.popleft()
        seconds = bounds.row_seconds(len(row))

        def run(value: Any) -> Any:
            return answer(self._template, value)

        return self._watched(lambda value: timed(run, value), json.loads(row), seconds)

    def close(self) -> None:
        """Forgets the rows."""
        self._rows.clear()

    def _watched(self, function: Callable[[Any], Any], value: Any, seconds: float) -> Any:
        self._tell(bounds.PATIENCE * seconds)
        try:
            return function(value)
        finally:
            self._tell(0)
