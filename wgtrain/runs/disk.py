"""Files of a run folder, which may be damaged or come from somebody else.

Links in it are not followed and what is no plain file is refused, so that nothing outside is read,
written or deleted and nothing waits; each file appears as a whole.
"""

import errno
import importlib
import os
import shutil
import stat
from pathlib import Path
from typing import IO, Any

from wgtrain.errors import FileError

WINDOWS = os.name == "nt"
_LOCKED_BYTE = 2**31 - 2
# Not everywhere: what a system lacks, it has no such files for, or `lstat` finds them just before.
_CAREFUL = (
    getattr(os, "O_NOFOLLOW", 0)
    | getattr(os, "O_NONBLOCK", 0)
    | getattr(os, "O_CLOEXEC", 0)
    | getattr(os, "O_BINARY", 0)
)


def is_file(path: Path) -> bool:
    """Whether a plain file is there; a link is none."""
    return _kind(path) == stat.S_IFREG


def is_folder(path: Path) -> bool:
    """Whether a folder is there; a link is none."""
    return _kind(path) == stat.S_IFDIR


def _kind(path: Path) -> int | None:
    try:
        return stat.S_IFMT(os.lstat(path).st_mode)
    except (OSError, ValueError):
        return None


def read_file(path: Path) -> bytes:
    """A whole plain file; FileError for anything else."""
    try:
        with _opened(path, os.O_RDONLY, "rb") as file:
            data: bytes = file.read()
            return data
    except OSError as error:
        raise FileError(f"{path}: {error.strerror or error}") from None
    except MemoryError:  # a file full of holes may claim any size
        raise FileError(f"{path}: too large for the memory of this machine") from None


def open_append(path: Path, **options: Any) -> IO[str]:
    """A text file to append to, made where there is none; FileError for what is no plain file, or
    has a second name somewhere else.
    """
    try:
        file = _opened(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, "a", **options)
    except OSError as error:
        raise FileError(f"{path}: {error.strerror or error}") from None
    if os.fstat(file.fileno()).st_nlink > 1:
        file.close()
        raise FileError(f"{path}: a hard link, what is written would change another file too")
    return file


def _opened(path: Path, flags: int, mode: str, **options: Any) -> IO[Any]:
    try:
        found = _kind(path)
        if found in (None, stat.S_IFREG):
            descriptor = os.open(path, flags | _CAREFUL, 0o666)
            if stat.S_ISREG(os.fstat(descriptor).st_mode):
                return open(descriptor, mode, **options)
            os.close(descriptor)
    except ValueError as error:  # a NUL in a name
        raise FileError(f"{str(path)!r}: {error}") from None
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
    raise FileError(
        f"{path}: {'a link, which is not followed here' if path.is_symlink() else 'no plain file'}"
    )


def write_file(path: Path, data: bytes) -> None:
    """Replaces a file as a whole: whoever reads it sees the old or the new contents."""
    new = path.with_name(f".new-{path.name}")
    new.unlink(missing_ok=True)
    try:
        write_new(new, data)
        os.replace(new, path)
    except BaseException:  # a full disk, Ctrl-C
        new.unlink(missing_ok=True)
        raise


def write_new(path: Path, data: bytes) -> None:
    """Writes a file that must not exist yet, down to the disk."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _CAREFUL, 0o666)
        with open(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:  # of a write it does not name the file
        raise OSError(error.errno, error.strerror, str(path)) from None


def publish(new: Path, path: Path) -> None:
    """Gives a file its name; FileExistsError if that name is taken, also at the same moment."""
    if WINDOWS:
        os.rename(new, path)  # refuses there to replace
        return
    try:
        os.link(new, path)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS):
            raise
        write_new(path, new.read_bytes())  # a file system without links
    new.unlink(missing_ok=True)


def sync_folder(path: Path) -> None:
    """Brings the names in a folder to the disk."""
    if not WINDOWS:  # there a folder cannot be opened
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def remove(path: Path) -> None:
    """Removes a file, a folder with all in it, or a link as such; nothing where nothing is."""
    if is_folder(path):
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def lock(file: IO[Any]) -> None:
    """Holds a file for this process, OSError if another does; the system lets go when it ends."""
    if WINDOWS:
        msvcrt: Any = importlib.import_module("msvcrt")
        # A byte far behind the end: nobody could write one that is locked.
        before = os.lseek(file.fileno(), 0, os.SEEK_CUR)
        os.lseek(file.fileno(), _LOCKED_BYTE, os.SEEK_SET)
        try:
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        finally:
            os.lseek(file.fileno(), before, os.SEEK_SET)
    else:
        import fcntl

        fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
