"""What is at a path that a person named: links are followed, devices are refused."""

import errno
import os
import select
import stat
import time
from pathlib import Path

from wgtrain.errors import FileError

_WRITER_SECONDS = 2.0  # in which somebody must begin to write to a FIFO


def native(text: str) -> Path:
    """A path out of a file that was perhaps written where names are encoded in another way."""
    try:
        os.fsencode(text)
    except UnicodeEncodeError:
        text = os.fsdecode(text.encode("utf-8", "surrogateescape"))
    return Path(text)


def is_pipe(path: Path) -> bool:
    """Whether a path is a FIFO, as a shell's `<(...)` is: it can be read once."""
    try:
        return stat.S_ISFIFO(os.stat(path).st_mode)
    except (OSError, ValueError):
        return False


def check_path(path: Path) -> None:
    """Raises FileError where no file, folder or FIFO is."""
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError) as error:
        raise _unusable(path, error) from None
    usable = stat.S_ISREG(mode) or stat.S_ISDIR(mode) or stat.S_ISFIFO(mode)
    if not usable and not os.path.samefile(path, os.devnull):
        raise FileError(f"{path}: a device or socket, no file")


def read_input(path: Path) -> bytes:
    """All bytes of a file or FIFO; FileError naming it for anything else."""
    check_path(path)
    try:
        return _read_pipe(path) if is_pipe(path) else path.read_bytes()
    except (OSError, ValueError) as error:
        raise _unusable(path, error) from None


def _unusable(path: Path, error: Exception) -> FileError:
    if isinstance(error, OSError):
        return FileError(f"{path}: {error.strerror or error}")
    return FileError(f"{str(path)!r}: {error}")


def _read_pipe(path: Path) -> bytes:
    """All of a FIFO; FileError if nobody writes to it."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        parts: list[bytes] = []
        patience = time.monotonic() + _WRITER_SECONDS
        while True:
            try:
                part = os.read(descriptor, 1 << 20)
            except BlockingIOError:  # a writer is there, and at work
                patience = 0.0
                select.select([descriptor], [], [])
                continue
            if part:
                parts.append(part)
            elif parts or time.monotonic() > patience:
                break
            else:
                time.sleep(0.01)
        if not parts and patience:
            raise FileError(f"{path}: a FIFO that nobody writes to")
        return b"".join(parts)
    except OSError as error:
        raise OSError(error.errno or errno.EIO, error.strerror, str(path)) from None
    finally:
        os.close(descriptor)
