"""Frozen weight matrices as they lie in GPU memory: one buffer per segment, in it the planes of a
format.

A format is one entry of `FORMATS`, one `shaders/lib/weight_*.wgsl` that reads it and one
`shaders/repack_*.wgsl` that makes it from the file's bytes; nothing else knows it. Those of
`QUANTISED` are made of full-precision matrices as they are loaded.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from wgtrain.engine.graph import Storage, Tensor, Window, padded
from wgtrain.errors import OutOfMemoryError
from wgtrain.gpu import Limits

PRECISIONS = ("f32", "f16")  # of the operands of products with weights


@dataclass(frozen=True)
class Plane:
    """A part of a format with a binding of its own, `name`: `nbytes` bytes for each `values` values
    of a row. Rows are padded to whole units of `unit` bytes; kernels count `<name>_stride` in them.

    `tail`: the bytes behind the rows, of (rows of a segment, columns).
    """

    name: str
    values: int
    nbytes: int
    unit: int
    tail: Callable[[int, int], int] = lambda rows, columns: 0

    def stride(self, columns: int) -> int:
        """Units in a row of `columns` values."""
        return -(-(-(-columns // self.values) * self.nbytes) // self.unit)


@dataclass(frozen=True)
class Format:
    """How one tensor type is laid out: planes in the order in which they lie in a segment."""

    library: str
    repack: str
    planes: tuple[Plane, ...]
    constants: tuple[tuple[str, int], ...] = ()  # of `repack`


def _format(
    name: str,
    values: int,
    side: tuple[int, int] | None = None,
    repack: str | None = None,
    **constants: int,
) -> Format:
    """`values` in each 16 bytes of the plane `weight`; `side`: (values, bytes) of `weight_side`."""
    planes = [Plane("weight", values, 16, 16)]
    if side:
        planes.append(Plane("weight_side", *side, 4))
    repack = f"repack_{repack or name}"
    return Format(f"weight_{name}", repack, tuple(planes), tuple(constants.items()))


FORMATS = {
    "F32": _format("f32", 4),
    "F16": _format("f16", 8, repack="16"),
    "BF16": _format("bf16", 8, repack="16", EXPONENT=0x7F80),
    "Q4_0": _format("q4_0", 32, (32, 2)),
    "Q4_1": _format("q4_1", 32, (32, 4)),
    "Q5_0": _format("q5_0", 32, (32, 8)),
    "Q5_1": _format("q5_1", 32, (32, 8)),
    "Q8_0": _format("q8_0", 16, (32, 2)),
    "Q2_K": _format("q2_k", 64, (256, 24)),
    "Q3_K": _format("q3_k", 64, (256, 52)),
    "Q4_K": _format("q4_k", 32, (256, 24)),
    "Q5_K": _format("q5_k", 32, (256, 56)),
    "Q6_K": _format("q6_k", 32, (256, 84)),
    "IQ4_NL": _format("iq4_nl", 32, (32, 2), repack="q4_0", FLIP=0),
    "IQ4_XS": _format("iq4_xs", 32, (256, 12)),
    "MXFP4": _format("mxfp4", 32, (32, 1)),
}
MATRIX_TYPES = tuple(FORMATS)  # that a file's matrices can have
BLOCK = 64  # values that share a scale in QUANTISED
NESTED = 256  # scales that share one in NF4_DOUBLE


def nested_tail(rows: int, columns: int) -> int:
    """Words behind the scales of NF4_DOUBLE: one for each block of `NESTED` that a segment meets,
    where the first begins, the offset and the map of 256 values.
    """
    return 4 * ((rows * columns // BLOCK + NESTED - 2) // NESTED + 1 + 2 + 256)


def _quantised(name: str, values: int, side: Plane) -> Format:
    return Format(f"weight_{name}", "", (Plane("weight", values, 16, 16), side))


QUANTISED = {
    "NF4": _quantised("nf4", 32, Plane("weight_side", BLOCK, 4, 4)),
    "NF4_DOUBLE": _quantised("nf4_double", 32, Plane("weight_side", 4 * BLOCK, 4, 4, nested_tail)),
    "INT4": _quantised("int4", 32, Plane("weight_side", BLOCK, 8, 4)),
    "INT8": _quantised("int8", 16, Plane("weight_side", BLOCK, 8, 4)),
}
ALL_FORMATS = FORMATS | QUANTISED
UNITS = {plane.name: plane.unit for entry in ALL_FORMATS.values() for plane in entry.planes}
_APART = 256  # bytes; where bindings may begin


@dataclass(frozen=True)
class Segment:
    """Consecutive rows of a weight in one buffer; `starts` = the byte where each plane begins."""

    storage: Storage
    first: int
    rows: int
    starts: tuple[int, ...]


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
    def planes(self) -> tuple[Plane, ...]:
        """Of its format."""
        return ALL_FORMATS[self.type].planes

    def row_nbytes(self, plane: Plane) -> int:
        """Bytes of a plane's row."""
        return plane.stride(self.columns) * plane.unit

    @property
    def library(self) -> str:
        """The file of shaders/lib that reads it."""
        return ALL_FORMATS[self.type].library

    @property
    def libraries(self) -> dict[str, str]:
        """The library by the role it has in kernels."""
        return {"weight": self.library}

    @property
    def nbytes(self) -> int:
        """Bytes in GPU memory."""
        return sum(segment.storage.size for segment in self.segments)

    def plane_nbytes(self, plane: Plane, rows: int) -> int:
        """Bytes of a plane of a segment of `rows` rows, with its tail."""
        return rows * self.row_nbytes(plane) + plane.tail(rows, self.columns)

    def operands(self, segment: Segment) -> dict[str, Window]:
        """The bindings of one segment."""
        return {
            plane.name: segment.storage.window(start, self.plane_nbytes(plane, segment.rows))
            for plane, start in zip(self.planes, segment.starts, strict=True)
        }

    def strides(self) -> dict[str, int]:
        """The parameters every reader of a weight takes."""
        return _strides({plane.name: plane.stride(self.columns) for plane in self.planes})


def plan_weight(
    name: str, type_: str, rows: int, columns: int, limits: Limits, precision: str = "f32"
) -> Weight:
    """Lays a weight out in as few segments as the adapter's binding and buffer limits allow."""
    shape = Weight(name, type_, rows, columns, (), precision)
    row_bytes = sum(shape.row_nbytes(plane) for plane in shape.planes)
    # Readers bind planes one by one, but a repack shader binds a segment whole.
    spare = 2 * _APART * (len(shape.planes) - 1)
    spare += sum(plane.tail(rows, columns) for plane in shape.planes)
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
        starts, size = [], 0
        for plane in shape.planes:
            starts.append(-(-size // _APART) * _APART)
            size = starts[-1] + shape.plane_nbytes(plane, count)
        segments.append(Segment(Storage(name, "weights", size), first, count, tuple(starts)))
    return replace(shape, segments=tuple(segments))


def dense_operands(matrix: Window | Tensor) -> dict[str, Any]:
    """A padded f32 matrix bound as a weight (adapters)."""
    return {"weight": matrix}


def dense_strides(columns: int) -> dict[str, int]:
    """The strides of a padded f32 matrix of `columns` columns."""
    return _strides({"weight": padded(columns) // 4})


def _strides(found: dict[str, int]) -> dict[str, int]:
    """By the names of parameters, 0 for a plane that is not there."""
    return {f"{name}_stride": found.get(name, 0) for name in UNITS}
