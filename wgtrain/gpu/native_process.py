"""The GPU belongs to the process that first asked for it.

In a child forked from it the threads that driver and library wait for do not exist: each call would
hang, also those that free memory while Python ends.
"""

import ctypes
import os
from typing import Protocol
from weakref import WeakSet

from wgtrain.errors import DeviceError
from wgtrain.gpu import native_library

_ADVICE = "open models in one of the two alone, or start processes by 'spawn' instead of 'fork'"


class Opened(Protocol):
    """What this process holds open."""

    def lose(self, reason: str) -> None:
        """Makes each later call raise, for this reason, and calls the library no more."""


_opened: "WeakSet[Opened]" = WeakSet()
_owner = 0  # the process whose GPU it is; 0 before the first use


def claim() -> None:
    """To be called before any use; DeviceError in a child of the process that came first."""
    global _owner
    if _owner not in (0, os.getpid()):
        raise DeviceError(
            f"the GPU is in use by process {_owner}, from which this one was forked: {_ADVICE}"
        )
    _owner = os.getpid()


def keep(opened: Opened) -> None:
    """Has `opened` told when it finds itself in a child."""
    _opened.add(opened)


def _in_child() -> None:
    if _owner:
        native_library.disconnect()
        _skip_exit_handlers()
        for opened in _opened:
            opened.lose(f"the model was opened in another process, {_owner}: {_ADVICE}")


def _skip_exit_handlers() -> None:
    """Ends this process as `_exit(status)` once Python is done: drivers' handlers would crash."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "on_exit"):  # glibc
        libc.on_exit(ctypes.cast(libc._exit, ctypes.c_void_p), None)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)
