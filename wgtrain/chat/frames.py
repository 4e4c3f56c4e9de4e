"""How rows travel between the two processes: JSON behind eight bytes that tell its length.

JSON, not pickle: what the other side writes may be a stranger's.
"""

import json
from collections.abc import Callable, Iterable
from typing import IO, Any

_LENGTH = 8
_LONGEST = 1 << 32


def encode(value: Any) -> bytes:
    """A value as a frame."""
    return _framed(json.dumps(value))


def encode_rows(rows: Iterable[str]) -> bytes:
    """A frame of rows that are JSON already, each with its length."""
    return _framed("[" + ",".join(f"[{len(row)},{row}]" for row in rows) + "]")


def _framed(text: str) -> bytes:
    data = text.encode("ascii")
    return len(data).to_bytes(_LENGTH, "little") + data


def read(stream: IO[bytes], before: Callable[[int], object] = lambda n: None) -> Any:
    """The next value, None at the end; `before` is called with its length in bytes first."""
    head = stream.read(_LENGTH)
    n = int.from_bytes(head, "little")
    if len(head) < _LENGTH or n > _LONGEST:
        return None
    before(n)
    data = stream.read(n)
    return json.loads(data) if len(data) == n else None
