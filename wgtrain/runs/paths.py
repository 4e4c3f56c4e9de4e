"""What is at a path that a person named: links are followed, devices are refused."""

import errno
import os
import re
import select
import stat
import time
from pathlib import Path

from wgtrain.errors import FileError
from wgtrain.files.source import shown

_LONGEST_SHOWN = 1000  # characters of a path in a message
_ADDRESS = re.compile(r"(https?|hf|ollama):|hf\.co/")
_OF_THE_HUB = re.compile(r"[\w-]+/[\w.-]+(?<!\.gguf)")
_WRITER_SECONDS = 2.0  # in which somebody must begin to write to a FIFO


def unusable(path: str | os.PathLike[str], error: Exception) -> FileError:
    """The error for a path that cannot be opened; a long one may be a file's content by mistake."""
    text = str(path)
    name = text if len(text) <= _LONGEST_SHOWN and text.isprintable() else shown(text)
    return FileError(f"{name}: {getattr(error, 'strerror', None) or error}")


def native(text: str) -> Path:
    """A path out of a file that was perhaps written where names are encoded in another way;
    ValueError for one that holds half a character.
    """
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
        raise unusable(path, error) from None
    usable = stat.S_ISREG(mode) or stat.S_ISDIR(mode) or stat.S_ISFIFO(mode)
    if not usable and not os.path.samefile(path, os.devnull):
        raise FileError(f"{path}: a device or socket, no file")


def check_model(path: Path) -> None:
    """Raises FileError for what cannot be read more than once, too."""
    try:
        check_path(path)
    except FileError as error:
        raise FileError(f"{error}{_elsewhere(path)}") from None
    if is_pipe(path):
        raise FileError(f"{path}: a FIFO; a model is read more than once")


def _elsewhere(path: Path) -> str:
    """How to fetch a model that is named by its place in the network, "" for a path."""
    text = path.as_posix()
    if _ADDRESS.match(text):
        return "; a model is a file or folder of this machine, to which it is downloaded first"
    if _OF_THE_HUB.fullmatch(text) and not path.parent.exists():
        return f"; of the Hugging Face Hub `hf download {text} --local-dir {path.name}` fetches it"
    return ""


def read_input(path: Path) -> bytes:
    """All bytes of a file or FIFO; FileError naming it for anything else."""
    check_path(path)
    try:
        return _read_pipe(path) if is_pipe(path) else path.read_bytes()
    except (OSError, ValueError) as error:
        raise unusable(path, error) from None
    except MemoryError:  # a file full of holes may claim any size
        raise FileError(f"{path}: too large for the memory of this machine") from None


def no_adapter_in(folder: Path) -> FileError:
    """What a folder without PEFT's tensors holds instead, and what to do."""
    names = _names(folder)
    if "adapter_model.bin" in names:
        return FileError(
            f"{folder}: its adapter_model.bin is a pickle, which may run anything and is not read; "
            "load it with PEFT and save it again: model.save_pretrained(folder)"
        )
    if "adapters.safetensors" in names:
        return FileError(
            f"{folder}: an adapter of MLX, whose adapters.safetensors holds A and B the other way "
            "round; PEFT's adapter_config.json and adapter_model.safetensors, or a GGUF, are read"
        )
    more = ", ..." if len(names) > 6 else ""
    there = f"{', '.join(map(repr, names[:6]))}{more}" if names else "nothing"
    return FileError(f"{folder}: no adapter_model.safetensors is in it; there is {there}")


def no_model_in(folder: Path) -> FileError | None:
    """What a folder holds that is none of Hugging Face, and what to do; None for others."""
    names = _names(folder)
    ggufs = [name for name in names if name.endswith(".gguf")]
    if "config.json" in names:
        return None
    if "adapter_config.json" in names and "adapters.safetensors" not in names:
        return FileError(
            f"{folder}: an adapter, not a base model; --adapter uses it, --init-adapter trains on "
            "from it, --resume goes on with a run"
        )
    if ggufs:
        return FileError(
            f"{folder}: a folder; a model is one file of it: {' or '.join(map(repr, ggufs[:4]))}"
        )
    if "adapters.safetensors" in names:
        return FileError(f"{folder}: an adapter of MLX, not a base model")
    return None


def _names(folder: Path) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except OSError as error:
        raise unusable(folder, error) from None


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
