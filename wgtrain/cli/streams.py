"""The standard streams of a command, whatever is at their other ends."""

import contextlib
import io
import os
import sys

from wgtrain.errors import printable


def prepare() -> None:
    """Puts something in the place of closed streams: the next file opened would get their number,
    and with it all that a driver writes to standard error. A name that the console cannot write is
    escaped.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def complain(message: str) -> None:
    """Writes a message to standard error, where somebody reads it."""
    if sys.stderr is None:
        return
    with contextlib.suppress(OSError, ValueError):
        print(printable(message), file=sys.stderr, flush=True)


def settle() -> None:
    """Empties the streams; where nobody reads them any more, without a word at the end."""
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except (OSError, ValueError):
            with contextlib.suppress(OSError, ValueError):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, stream.fileno())
                os.close(nowhere)
