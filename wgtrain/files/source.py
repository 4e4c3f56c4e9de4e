"""Where bytes come from: anything that can hand out a range of itself, at once or awaited."""

import inspect
from collections.abc import Awaitable
from typing import Any, Protocol

from wgtrain.errors import FileError

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
    return getattr(source, "name", "file")


async def read_range(source: Source, offset: int, n: int) -> Data:
    """Exactly `n` bytes from `offset`; FileError when they lie outside or cannot be read."""
    name = source_name(source)
    if offset < 0 or n < 0 or offset + n > source.size:
        raise FileError(
            f"{name}: bytes {offset} to {offset + n} asked for, the file has {source.size}"
        )
    try:
        data = source.read_range(offset, n)
        if inspect.isawaitable(data):
            data = await data
    except OSError as error:
        raise FileError(f"{name}: cannot read {n} bytes at {offset}: {error}") from error
    if len(data) != n:
        raise FileError(f"{name}: {len(data)} bytes at {offset} instead of {n}: cut short?")
    return data


def shown(value: Any, limit: int = 60) -> str:
    """A value from a file for a message: escaped, and cut before it fills the screen."""
    if isinstance(value, (str, bytes, list, tuple)):  # the cut comes first: repr of 10 MB costs
        value = value[: limit + 1]
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 3] + "..."
