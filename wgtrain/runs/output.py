"""A file or folder that a command makes: under a temporary name until it is whole, and never over
another unless that was asked for.
"""

import os
import shutil
import stat
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from wgtrain.errors import FileError
from wgtrain.files.gguf_writer import Planned, gguf_chunks, planned_nbytes
from wgtrain.files.source import Data
from wgtrain.gpu import run
from wgtrain.runs import disk
from wgtrain.runs.parts import transfer
from wgtrain.runs.paths import unusable
from wgtrain.runs.sources import MODEL_FILES


def check_output(path: Path, force: bool, *inputs: Path) -> None:
    """Raises FileError where a file cannot be made, or is one of those that are read: `inputs`, and
    of a folder among them those of a model.
    """
    try:
        if path.is_dir():
            raise FileError(f"{path}: a folder; the name of a file is needed")
        if not path.absolute().parent.is_dir():
            raise FileError(f"{path}: there is no folder {path.absolute().parent}")
        try:
            mode = os.lstat(path).st_mode
            exists = True
            if not stat.S_ISREG(mode) and not stat.S_ISLNK(mode):  # a link as such is replaced
                raise FileError(f"{path}: a device, FIFO or socket; the name of a file is needed")
        except FileNotFoundError:
            exists = False
        listed = [
            file
            for given in inputs
            for file in (given.iterdir() if given.is_dir() else [given])
            if file is given or file.suffix in MODEL_FILES
        ]
        for file in listed:
            if path.exists() and file.exists() and os.path.samefile(path, file):
                raise FileError(f"{path}: the output is also the input")
    except (OSError, ValueError) as error:
        raise unusable(path, error) from None
    if exists and not force:
        raise FileError(f"{path}: exists already; --force replaces it")


def write_model(
    path: Path, metadata: dict[str, Any], tensors: Sequence[Planned], force: bool = False
) -> int:
    """Writes a GGUF in pieces, shows how far it is, and returns its bytes."""
    total = planned_nbytes(metadata, tensors)
    return write_output(path, gguf_chunks(metadata, tensors), force, total)


def write_output(
    path: Path, chunks: AsyncIterator[Data], force: bool = False, total: int = 0
) -> int:
    """Writes the chunks of a source that never waits, and returns their bytes; whatever goes
    wrong, nothing is left and what stood at `path` is as it was. `total` bytes to come are shown
    as they are written.
    """
    check_output(path, force)
    new = path.with_name(f".new-{os.getpid()}-{path.name}")

    async def write() -> int:
        written = 0
        with open(new, "xb") as file, transfer("writing") as shown:
            async for chunk in chunks:
                written += file.write(chunk)
                shown(written, total)
            file.flush()
            os.fsync(file.fileno())
        return written

    try:
        try:
            written: int = run(write())
            if force:
                os.replace(new, path)
            else:
                disk.publish(new, path)
        except FileExistsError:
            raise FileError(f"{path}: exists already; --force replaces it") from None
        except OSError as error:
            raise FileError(f"{path}: {error.strerror or error}") from None
    finally:
        new.unlink(missing_ok=True)
    return written


def check_folder(path: Path) -> None:
    """Raises FileError where a folder cannot be made: something is there that is not an empty one,
    or there is no place for it.
    """
    try:
        if not path.absolute().parent.is_dir():
            raise FileError(f"{path}: there is no folder {path.absolute().parent}")
        try:
            os.lstat(path)
        except FileNotFoundError:
            return
        if not path.is_dir():
            raise FileError(f"{path}: a file; the name of a folder is needed")
        if any(path.iterdir()):
            raise FileError(f"{path}: exists already, and a folder is not replaced; name another")
    except (OSError, ValueError) as error:
        raise unusable(path, error) from None


def write_folder(
    path: Path,
    made: Mapping[str, tuple[int, Callable[[], AsyncIterator[Data]]]],
    copies: Mapping[str, Path],
) -> int:
    """Writes a folder of files made, given as bytes to come and their chunks, and of copies;
    returns its bytes. Whatever goes wrong, nothing is left. An empty folder that is there is
    filled: it may be where somebody stands, a link or the root of a disk.
    """
    check_folder(path)
    fills = path.is_dir()
    name = f".new-{os.getpid()}"
    new = path / name if fills else path.with_name(f"{name}-{path.name}")
    written = 0

    async def write(file: Path, chunks: AsyncIterator[Data], moved: Callable[[int], None]) -> None:
        nonlocal written
        with open(file, "xb") as opened:
            async for chunk in chunks:
                written += opened.write(chunk)
                moved(written)
            opened.flush()
            os.fsync(opened.fileno())

    try:
        new.mkdir()
        total = sum(nbytes for nbytes, _ in made.values())
        with transfer("writing") as shown:
            for name, (_, chunks) in made.items():
                run(write(new / name, chunks(), lambda done: shown(done, total)))
        for name, source in copies.items():
            (new / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(source, new / name)
            written += (new / name).stat().st_size
        if fills:
            _move_up(new)
        else:
            new.rename(path)
    except OSError as error:
        copied = [source for source in copies.values() if os.fspath(source) == error.filename]
        raise FileError(f"{[*copied, path][0]}: {error.strerror or error}") from None
    finally:
        disk.remove(new)
    return written


def _move_up(folder: Path) -> None:
    """Moves all that is in a folder into the one it is in, or nothing."""
    names = os.listdir(folder)
    try:
        for name in names:
            (folder / name).rename(folder.parent / name)
    except BaseException:
        for name in names:
            disk.remove(folder.parent / name)
        raise
