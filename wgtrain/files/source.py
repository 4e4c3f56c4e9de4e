"""Where bytes come from: anything that can hand out a range of itself, at once or awaited."""

import inspect
import operator
from collections.abc import Awaitable
from typing import Any, Protocol

from wgtrain.errors import FileError, WgtrainError

Data = bytes | bytearray | memoryview


class Source(Protocol):
    """A file seen through byte ranges; the whole of it need never be in memory."""

    size: int  # bytes
    name: str  # for messages

    def read_range(self, offset: int, n: int) -> Data | Awaitable[Data]:
        """The `n` bytes from `offset`; an awaitable of them where the platform has to wait."""


class BytesSource:
    """Bytes already in memory; ranges are views, never copies."""

    def __init__(self, data: Data, name: str = "file") -> None:
        self._view = memoryview(data).cast("B")
        self.size = self._view.nbytes
        self.name = name

    def read_range(self, offset: int, n: int) -> memoryview:
        """A view of `n` bytes from `offset`."""
        return self._view[offset : offset + n]


def source_name(source: Source) -> str:
    """The name of a source for messages; people's own objects may lack one."""
    try:
        name = getattr(source, "name", None)
    except Exception:  # a property of a stranger's
        name = None
    return name if isinstance(name, str) else "file"


def source_size(source: Source) -> int:
    """The size of a source in bytes; FileError where a person's own object has none of use."""
    name = source_name(source)
    try:
        found: Any = source.size
        size = operator.index(found)
    except TypeError:
        raise FileError(
            f"{name}: its size is {shown(found)}; a number of bytes is needed"
        ) from None
    except Exception as error:
        raise FileError(f"{name}: its size raised {_told(error)}") from error
    if size < 0:
        raise FileError(f"{name}: its size is {size}; a number of bytes is needed")
    return size


async def read_range(source: Source, offset: int, n: int) -> Data:
    """Exactly `n` bytes from `offset`; FileError when they lie outside or cannot be read.

    Whatever a person's own source does wrong is told as its fault.
    """
    name, size = source_name(source), source_size(source)
    if offset < 0 or n < 0 or offset + n > size:
        raise FileError(f"{name}: bytes {offset} to {offset + n} asked for, the file has {size}")
    try:
        data: Any = source.read_range(offset, n)
        if inspect.isawaitable(data):
            data = await data
    except WgtrainError:
        raise
    except OSError as error:
        raise FileError(f"{name}: cannot read {n} bytes at {offset}: {error}") from error
    except Exception as error:
        raise FileError(f"{name}: read_range({offset}, {n}) raised {_told(error)}") from error
    try:
        view = memoryview(data).cast("B")
    except TypeError:
        raise FileError(
            f"{name}: read_range({offset}, {n}) gave {shown(data)} ({type(data).__name__}); "
            f"{n} bytes are needed"
        ) from None
    if view.nbytes != n:
        raise FileError(f"{name}: {view.nbytes} bytes at {offset} instead of {n}: cut short?")
    return data if isinstance(data, bytes) else view


def _told(error: Exception) -> str:
    """Kind and text of an exception of somebody else's code."""
    return f"{type(error).__name__}: {shown(str(error), 200)}"


def shown(value: Any, limit: int = 60) -> str:
    """A value from a file for a message: escaped, and cut before it fills the screen."""
    if isinstance(value, (str, bytes, list, tuple)):  # the cut comes first: repr of 10 MB costs
        value = value[: limit + 1]
    try:
        text = repr(value)
    except Exception:  # an integer of 5,000 digits, a person's own object
        text = f"a value of type {type(value).__name__}"
    return text if len(text) <= limit else text[: limit - 3] + "..."
