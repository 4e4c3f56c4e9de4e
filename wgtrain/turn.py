"""Whose turn it is: one thread at a time works with an object, and one call of it at a time."""

import os
import sys
import threading
import time
from types import FrameType

from wgtrain.errors import DeviceError, DeviceLostError, OptionError

_POLL = 0.001  # seconds


class Turn:
    """`with turn():` around what must not meet itself. Whoever comes meanwhile gets an OptionError,
    or with `wait=True` waits for calls of other threads.

    A loop that works between pauses names itself in each turn: `with turn(loop):`. In its pauses
    its own thread is welcome, others are not, until `leave(loop)` or the thread's end.

    A turn is over with its call, also where an interrupt kept it from saying so: what counts is
    whether the call is on its thread's stack.
    """

    def __init__(self, what: str):
        self._what, self._process = what, os.getpid()
        self._mutex = threading.RLock()
        self._holder: tuple[int, FrameType] | None = None
        self._loop: tuple[int, object] | None = None
        self._closed = ""

    def __call__(self, loop: object = None, *, wait: bool = False) -> "_Taken":
        """For a `with` statement, which takes the turn."""
        return _Taken(self, loop, wait)

    def take(self, frame: FrameType, loop: object, wait: bool) -> None:
        """Gives the turn to the call of a frame; DeviceLostError once closed, DeviceError in a
        forked process.
        """
        if os.getpid() != self._process:
            raise DeviceError(
                f"{self._what} was opened in another process, and a GPU is not shared through a "
                "fork: open the model in this one (multiprocessing: start method 'spawn')"
            )
        while not self._try(frame, loop):
            if not wait or self._is_ours():
                raise OptionError(f"{self._what} is running: this call has to wait for its end")
            time.sleep(_POLL)

    def leave(self, loop: object) -> None:
        """A loop has ended."""
        if self._loop and self._loop[1] is loop:
            self._loop = None

    def end(self) -> None:
        """The call is done."""
        self._holder = None

    def close(self, why: str) -> bool:
        """Lets nobody in from now on, with DeviceLostError saying `why`, and waits for the call
        that another thread is in. False in a forked process, which owns nothing; OptionError within
        such a call.
        """
        if os.getpid() != self._process:
            return False
        if self._is_ours():
            raise OptionError(f"{self._what} is running: it can be closed between its steps")
        self._closed = why
        while self._is_held():
            time.sleep(_POLL)
        return True

    def _try(self, frame: FrameType, loop: object) -> bool:
        own = threading.get_ident()
        with self._mutex:
            if self._closed:
                raise DeviceLostError(self._closed)
            if self._is_held() or self._loops_elsewhere(loop):
                return False
            self._holder = own, frame
            if loop is not None:
                self._loop = own, loop
            return True

    def _loops_elsewhere(self, loop: object) -> bool:
        if self._loop is None or self._loop[1] is loop:
            return False
        thread = self._loop[0]
        return thread != threading.get_ident() and thread in sys._current_frames()

    def _is_ours(self) -> bool:
        return self._is_held() and bool(self._holder and self._holder[0] == threading.get_ident())

    def _is_held(self) -> bool:
        holder = self._holder
        if holder is None or sys.platform == "emscripten":  # there a call that waits has no stack
            return holder is not None
        frame = sys._current_frames().get(holder[0])
        while frame is not None and frame is not holder[1]:
            frame = frame.f_back
        return frame is not None


class _Taken:
    def __init__(self, turn: Turn, loop: object, wait: bool):
        self._turn, self._loop, self._wait = turn, loop, wait

    def __enter__(self) -> None:
        self._turn.take(sys._getframe(1), self._loop, self._wait)

    def __exit__(self, *exception: object) -> None:
        self._turn.end()
