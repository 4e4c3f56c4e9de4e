"""Whose turn it is: one thread at a time works with an object, and one call of it at a time."""

import contextlib
import os
import sys
import threading
from inspect import CO_GENERATOR
from types import FrameType
from typing import Any

from wgtrain.errors import DeviceError, DeviceLostError, OptionError

_HELPERS = contextlib.__file__
_LOOK = 0.05  # seconds between looks whether the call that is waited for still runs

Claim = tuple[int, FrameType]  # a thread, and the call that wants the turn


def _call() -> FrameType:
    """The call that a `with` stands in, maybe by generators that are context managers."""
    frame = sys._getframe(2)
    while frame.f_code.co_flags & CO_GENERATOR or frame.f_code.co_filename == _HELPERS:
        assert frame.f_back is not None
        frame = frame.f_back
    return frame


class Turn:
    """`with turn():` around what must not meet itself. Whoever comes meanwhile gets an OptionError,
    or with `wait=True` waits for calls of other threads.

    A loop that works between pauses names itself in each turn: `with turn(loop):`. In its pauses
    its own thread is welcome, others are not, until `leave(loop)` or the thread's end.

    A turn is over with its call, also where an interrupt kept it from saying so: what counts is
    whether the call is on its thread's stack. For the same reason nothing here is held: each
    change is one operation of a list.
    """

    def __init__(self, what: str):
        self._what, self._process = what, os.getpid()
        self._claims: list[Claim] = []  # the first one has the turn, if it is at work
        self._loop: tuple[int, object] | None = None
        self._closed = ""
        self._waiting = False  # whether any call ever had to
        self._ended = threading.Lock()  # taken until a call ends: what waits tries to take it
        self._ended.acquire()

    def __call__(self, loop: object = None, *, wait: bool = False, nest: bool = False) -> "_Taken":
        """For a `with` statement, which gives the turn to the call it stands in: see `take`."""
        return _Taken(self, loop, wait, nest)

    def take(
        self, frame: FrameType, loop: object = None, wait: bool = False, nest: bool = False
    ) -> bool:
        """Gives the turn to the call of a frame. With `nest`, False where it came into another call
        of its own thread, as signal handlers do.

        DeviceLostError once closed, DeviceError in a forked process.
        """
        if os.getpid() != self._process:
            raise DeviceError(
                f"{self._what} was opened in another process, and a GPU is not shared through a "
                "fork: open the model in this one (multiprocessing: start method 'spawn')"
            )
        while not self._try(frame, loop):
            ours = self._is_ours()
            if ours and nest:
                return False
            if ours or not wait:
                raise OptionError(f"{self._what} is running: this call has to wait for its end")
            self._wait()
        return True

    def _wait(self) -> None:
        self._waiting = True
        self._ended.acquire(timeout=_LOOK)

    def end(self, frame: FrameType) -> None:
        """The call of a frame is done."""
        self._drop((threading.get_ident(), frame))
        if self._waiting and self._ended.locked():
            try:
                self._ended.release()
            except RuntimeError:  # another call has just ended too
                return

    def leave(self, loop: object) -> None:
        """A loop has ended."""
        if self._loop and self._loop[1] is loop:
            self._loop = None

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
        while any(map(_at_work, self._claims[:1])):
            self._wait()
        return True

    def _try(self, frame: FrameType, loop: object) -> bool:
        if not self._is_open_to(loop):
            return False
        mine = threading.get_ident(), frame
        self._claims.append(mine)
        while (first := self._claims[0]) is not mine:
            if _at_work(first):
                self._drop(mine)
                return False
            self._drop(first)
        # Asked again: a thread that closes or loops since then did not see this claim.
        try:
            served = self._is_open_to(loop)
        except DeviceLostError:
            self._drop(mine)
            raise
        if not served:
            self._drop(mine)
        elif loop is not None:
            self._loop = mine[0], loop
        return served

    def _is_open_to(self, loop: object) -> bool:
        """Whether no loop of another thread is under way; DeviceLostError once closed."""
        if self._closed:
            raise DeviceLostError(self._closed)
        return self._loop is None or not self._loops_elsewhere(loop)

    def _drop(self, claim: Claim) -> None:
        try:
            self._claims.remove(claim)
        except ValueError:  # another thread saw that it is over
            return

    def _loops_elsewhere(self, loop: object) -> bool:
        thread, other = self._loop or (0, loop)
        if other is loop:
            return False
        return thread != threading.get_ident() and thread in sys._current_frames()

    def _is_ours(self) -> bool:
        own = threading.get_ident()
        return any(claim[0] == own and _at_work(claim) for claim in self._claims[:1])


def _at_work(claim: Claim) -> bool:
    """Whether a call is on its thread's stack; in a page, where one that waits has none, always."""
    if sys.platform == "emscripten":
        return True
    frame = sys._current_frames().get(claim[0])
    while frame is not None and frame is not claim[1]:
        frame = frame.f_back
    return frame is not None


class _Taken:
    def __init__(self, turn: Turn, *how: Any):
        self._turn, self._how = turn, how

    def __enter__(self) -> bool:
        self._frame = _call()
        self._fresh = self._turn.take(self._frame, *self._how)
        return self._fresh

    def __exit__(self, *exception: object) -> None:
        if self._fresh:
            self._turn.end(self._frame)
