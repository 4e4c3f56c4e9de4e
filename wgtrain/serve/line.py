"""The line before the GPU: one request at a time is worked on, in the order in which they came."""

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")

Work = Callable[[], Generator[T, None, None]]


class Full(Exception):
    """No place is left in the line."""


@dataclass(frozen=True)
class _End:
    error: BaseException | None = None


class Place(Generic[T]):
    """A request's place in the line, for the event loop that took it: what the work yields comes
    out of `async for`, and an error of it is raised there. `leave` gives the place back.
    """

    def __init__(self, line: "Line", work: Work[T]):
        self._line, self._work = line, work
        self._loop = asyncio.get_running_loop()
        self._made: asyncio.Queue[T | _End] = asyncio.Queue()
        self._left = False

    def leave(self) -> None:
        """Ends the work, after what it is at; whoever waits for more gets none."""
        if not self._left:
            self._line.drop(self)
            self.abandon()
            self._made.put_nowait(_End())

    def abandon(self) -> None:
        """Ends the work, after what it is at; from any thread."""
        self._left = True

    def __aiter__(self) -> "Place[T]":
        return self

    async def __anext__(self) -> T:
        item = await self._made.get()
        if not isinstance(item, _End):
            return item
        self._made.put_nowait(_End())
        if item.error is not None:
            raise item.error
        raise StopAsyncIteration

    def work(self) -> None:
        """Works, in the thread of the line."""
        end = _End()
        try:
            with closing(self._work()) as made:
                for item in made:
                    if self._left or not self._tell(item):
                        break
        except BaseException as error:
            end = _End(error)
        self._tell(end)

    def _tell(self, item: T | _End) -> bool:
        """False where the loop is over, with the server."""
        try:
            self._loop.call_soon_threadsafe(self._made.put_nowait, item)
        except RuntimeError:
            return False
        return True


class Line:
    """At most `most` requests: one at work, in a thread, the others waiting."""

    def __init__(self, most: int):
        self._most = most
        self._waiting: deque[Place] = deque()
        self._at_work: Place | None = None
        self._closed = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._serve, name="generation", daemon=True)
        self._thread.start()

    def __len__(self) -> int:
        """Requests in the line."""
        with self._changed:
            return len(self._waiting) + (self._at_work is not None)

    def join(self, work: Work[T]) -> Place[T]:
        """A place at the end; `Full` where there is none. `work` runs in the line's thread."""
        place = Place(self, work)
        with self._changed:
            if self._closed or len(self._waiting) + (self._at_work is not None) >= self._most:
                raise Full
            self._waiting.append(place)
            self._changed.notify()
        return place

    def drop(self, place: Place) -> None:
        """Gives the place of one that waits to the next."""
        with self._changed:
            if place in self._waiting:
                self._waiting.remove(place)

    def close(self, seconds: float) -> bool:
        """Ends all; whether the work that was going on did so in time."""
        with self._changed:
            self._closed = True
            for place in (*self._waiting, self._at_work):
                if place is not None:
                    place.abandon()
            self._waiting.clear()
            self._changed.notify()
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def _serve(self) -> None:
        while True:
            with self._changed:
                self._at_work = None
                self._changed.wait_for(lambda: self._waiting or self._closed)
                if self._closed:
                    return
                self._at_work = self._waiting.popleft()
            self._at_work.work()
