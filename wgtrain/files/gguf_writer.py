"""GGUF files written piece by piece: what is read in ranges need never be in memory as a whole."""

from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from wgtrain.files.gguf import gguf_head, tensor_nbytes
from wgtrain.files.gguf_parser import ALIGNMENT
from wgtrain.files.source import Data, Source, read_range

CHUNK = 4 << 20  # bytes; how much is in memory at a time, where whoever makes it has no reason


@dataclass(frozen=True)
class Planned:
    """A tensor that will be written: `chunks` begins anew with each call, and gives all its bytes
    in order. `shape` in numpy order.
    """

    name: str
    type: str  # a key of BLOCKS
    shape: tuple[int, ...]
    chunks: Callable[[], AsyncIterator[Data]]

    @property
    def nbytes(self) -> int:
        """Of the data, without what pads it."""
        return tensor_nbytes(self.type, self.shape)


def planned_nbytes(metadata: dict[str, Any], tensors: Sequence[Planned]) -> int:
    """The size of the file that `gguf_chunks` gives."""
    return len(_head(metadata, tensors)) + sum(_padded(tensor.nbytes) for tensor in tensors)


async def gguf_chunks(metadata: dict[str, Any], tensors: Sequence[Planned]) -> AsyncIterator[Data]:
    """The bytes of a GGUF in order, as `write_gguf` makes them of tensors in memory.

    ValueError or TypeError for what GGUF cannot hold, before the first tensor is asked for.
    """
    yield _head(metadata, tensors)
    for tensor in tensors:
        written = 0
        async for chunk in tensor.chunks():
            written += memoryview(chunk).nbytes
            yield chunk
        if written != tensor.nbytes:
            raise ValueError(f"tensor {tensor.name!r}: {written} bytes, {tensor.nbytes} expected")
        if written % ALIGNMENT:
            yield bytes(-written % ALIGNMENT)


def copied(
    source: Source, offset: int, nbytes: int, size: int = CHUNK
) -> Callable[[], AsyncIterator[Data]]:
    """The `chunks` of a tensor whose bytes are taken from a file as they are."""

    async def chunks() -> AsyncIterator[Data]:
        for at in range(offset, offset + nbytes, size):
            yield await read_range(source, at, min(size, offset + nbytes - at))

    return chunks


def _head(metadata: dict[str, Any], tensors: Sequence[Planned]) -> bytes:
    named = {tensor.name: (tensor.type, tensor.shape) for tensor in tensors}
    if len(named) != len(tensors):
        raise ValueError("two tensors have one name")
    return gguf_head(metadata, named)


def _padded(nbytes: int) -> int:
    return -(-nbytes // ALIGNMENT) * ALIGNMENT
