"""safetensors files written piece by piece."""

import json
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from wgtrain.files.source import Data


@dataclass(frozen=True)
class PlannedEntry:
    """A tensor that will be written: `chunks` begins anew with each call, and gives all its
    `nbytes` in order.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    chunks: Callable[[], AsyncIterator[Data]]


def safetensors_nbytes(entries: Sequence[PlannedEntry], metadata: Mapping[str, str]) -> int:
    """The size of the file that `safetensors_chunks` gives."""
    return len(_head(entries, metadata)) + sum(entry.nbytes for entry in entries)


async def safetensors_chunks(
    entries: Sequence[PlannedEntry], metadata: Mapping[str, str]
) -> AsyncIterator[Data]:
    """The bytes of a file of the entries, in their order."""
    yield _head(entries, metadata)
    for entry in entries:
        written = 0
        async for chunk in entry.chunks():
            written += memoryview(chunk).nbytes
            yield chunk
        if written != entry.nbytes:
            raise ValueError(f"tensor {entry.name!r}: {written} bytes, {entry.nbytes} expected")


def _head(entries: Sequence[PlannedEntry], metadata: Mapping[str, str]) -> bytes:
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    at = 0
    for entry in entries:
        header[entry.name] = {
            "dtype": entry.dtype,
            "shape": list(entry.shape),
            "data_offsets": [at, at + entry.nbytes],
        }
        at += entry.nbytes
    head = json.dumps(header, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)
    return len(head).to_bytes(8, "little") + head
