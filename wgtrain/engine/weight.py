"""Frozen weight matrices as they lie in GPU memory: one buffer per segment, planes of packs and
scales.

A format is one entry of `FORMATS`, one `shaders/lib/weight_*.wgsl` that reads it and one
`shaders/repack_*.wgsl` that makes it from the file's bytes; nothing else knows it.
"""

from dataclasses import dataclass, replace
from typing import Any

from wgtrain.engine.graph import Storage, Tensor, Window, padded
from wgtrain.errors import OutOfMemoryError
from wgtrain.gpu import Limits

PRECISIONS = ("f32", "f16")  # of the operands of products with weights


@dataclass(frozen=True)
class Format:
    """How one tensor type is laid out. `pack`: values in 16 bytes; `block`: values a scale covers,
    0 = none.
    """

    library: str
    repack: str
    pack: int
    block: int = 0


FORMATS = {
    "F32": Format("weight_f32", "repack_f32", 4),
    "F16": Format("weight_f16", "repack_16", 8),
    "BF16": Format("weight_bf16", "repack_16", 8),
    "Q8_0": Format("weight_q8_0", "repack_q8_0", 16, 32),
    "Q4_0": Format("weight_q4_0", "repack_q4_0", 32, 32),
}


@dataclass(frozen=True)
class Segment:
    """Consecutive rows of a weight in one buffer; `scales_at` = byte at which the scales begin."""

    storage: Storage
    first: int
    rows: int
    scales_at: int


@dataclass(frozen=True)
class Weight:
    """A matrix (rows, columns) = (outputs, inputs), row-major as in the file.

    `precision`: the operands of products with it, "f32" or "f16".
    """

    name: str
    type: str
    rows: int
    columns: int
    segments: tuple[Segment, ...]
    precision: str = "f32"

    @property
    def packs(self) -> int:
        """Packs in a row."""
        return -(-self.columns // FORMATS[self.type].pack)

    @property
    def scale_words(self) -> int:
        """32-bit words of scales (f16 pairs) in a row."""
        block = FORMATS[self.type].block
        return -(-self.columns // (2 * block)) if block else 0

    @property
    def library(self) -> str:
        """The file of shaders/lib that reads it."""
        return FORMATS[self.type].library

    @property
    def libraries(self) -> dict[str, str]:
        """The library by the role it has in kernels."""
        return {"weight": self.library}

    @property
    def nbytes(self) -> int:
        """Bytes in GPU memory."""
        return sum(segment.storage.size for segment in self.segments)

    def operands(self, segment: Segment) -> dict[str, Window]:
        """The bindings of one segment."""
        quants = segment.storage.window(0, segment.rows * self.packs * 16)
        if not self.scale_words:
            return {"weight": quants}
        return {"weight": quants, "weight_scale": segment.storage.window(segment.scales_at)}

    def strides(self) -> dict[str, int]:
        """The parameters every reader of a weight takes."""
        return {"weight_stride": self.packs, "scale_stride": self.scale_words}


def plan_weight(
    name: str, type_: str, rows: int, columns: int, limits: Limits, precision: str = "f32"
) -> Weight:
    """Lays a weight out in as few segments as the adapter's binding and buffer limits allow."""
    shape = Weight(name, type_, rows, columns, (), precision)
    row_bytes = shape.packs * 16 + shape.scale_words * 4
    # Readers bind quants and scales one by one, but a repack shader binds a segment whole.
    spare = 512 if shape.scale_words else 0
    most = (min(limits.binding, limits.buffer) - spare) // row_bytes
    if most < min(rows, 64):
        raise OutOfMemoryError(
            f"tensor '{name}': a row of {columns:,} values needs {row_bytes:,} bytes; this adapter "
            f"allows {limits.binding:,} in one binding"
        )
    most = most // 64 * 64 if most < rows else rows
    segments = []
    for first in range(0, rows, most):
        count = min(most, rows - first)
        scales_at = -(-count * shape.packs * 16 // 256) * 256
        size = (
            scales_at + count * shape.scale_words * 4
            if shape.scale_words
            else count * shape.packs * 16
        )
        segments.append(Segment(Storage(name, "weights", size), first, count, scales_at))
    return replace(shape, segments=tuple(segments))


def dense_operands(matrix: Window | Tensor) -> dict[str, Any]:
    """A padded f32 matrix bound as a weight (adapters)."""
    return {"weight": matrix}


def dense_strides(columns: int) -> dict[str, int]:
    """The strides of a padded f32 matrix of `columns` columns."""
    return {"weight_stride": padded(columns) // 4, "scale_stride": 0}
