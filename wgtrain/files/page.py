"""Sources of a page: a `File`, a URL whose server knows ranges, a file of the private file system.

Ranges that Python asks for are copied into its heap; tensors go past it, because the device takes
the JavaScript side, `javascript`, and pumps from it.
"""

from typing import Any

from wgtrain.errors import FileError
from wgtrain.files.scripts import script


def _javascript() -> Any:
    return script("files/source.js")


class PageSource:
    """A `Source` over an object of `source.js`."""

    def __init__(self, javascript: Any):
        self.javascript = javascript
        self.name: str = javascript.name
        self.size = int(javascript.size)

    @classmethod
    def blob(cls, file: Any, name: str = "") -> "PageSource":
        """Over a JavaScript `File` or `Blob`."""
        return cls(_javascript().blob(file, name or getattr(file, "name", "file")))

    @classmethod
    async def url(cls, address: str) -> "PageSource":
        """Over a file on a server; FileError where it is missing or ranges are ignored."""
        return cls(await _awaited(_javascript().url(address)))

    @classmethod
    def handle(cls, handle: Any, name: str = "file") -> "PageSource":
        """Over a `FileSystemSyncAccessHandle`, which `close` closes."""
        return cls(_javascript().handle(handle, name))

    async def read_range(self, offset: int, n: int) -> bytearray:
        """The `n` bytes from `offset`."""
        found = bytearray(max(n, 0))
        await _awaited(self.javascript.readInto(found, offset, n))
        return found

    def close(self) -> None:
        """Lets go of the file."""
        self.javascript.close()


async def _awaited(promise: Any) -> Any:
    from pyodide.ffi import JsException

    try:
        return await promise
    except JsException as error:
        raise FileError(getattr(error, "message", None) or str(error)) from error
