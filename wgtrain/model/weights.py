"""From the file to the GPU: slices of the file go to a staging buffer, a shader repacks them into
planes.

No tensor is ever whole in main memory, and the staging buffer is gone when loading ends.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from wgtrain.engine.dispatch import Caller
from wgtrain.engine.graph import Storage, Window, padded
from wgtrain.engine.kernel import Kernel, load_kernel
from wgtrain.engine.weight import FORMATS, QUANTISED, Segment, Weight, plan_weight
from wgtrain.errors import DeviceError, FileError, OptionError, OutOfMemoryError
from wgtrain.files import BLOCKS, GGUF, TensorInfo, read_range
from wgtrain.files.floats import as_float32
from wgtrain.files.source import Source, source_name
from wgtrain.gpu import Buffer, Device, Limits
from wgtrain.model.config import ModelConfig
from wgtrain.model.converted import CONVERTED, CONVERTED_TO, convert_rows
from wgtrain.model.host import Loaded, unseen
from wgtrain.model.quantised import load_quantised, quantised_types

STAGING = 2 << 20  # bytes; a longer row makes it larger
_MARK = 256  # bytes between the marks of two tensors
_NOT_FINITE, _BEYOND_F16 = 1, 2  # marks, see shaders/lib/planes.wgsl


@dataclass(frozen=True)
class Weights:
    """All frozen tensors of a model: matrices as `Weight`, norms and biases as f32 windows.

    `stored`: the tensors of the file that a norm or bias is, one after the other.
    """

    matrices: dict[str, Weight]
    vectors: dict[str, Window]
    stored: dict[str, tuple[str, ...]]

    @property
    def storages(self) -> list[Storage]:
        """Every buffer, in file order."""
        found = [s.storage for weight in self.matrices.values() for s in weight.segments]
        return found + list(dict.fromkeys(window.storage for window in self.vectors.values()))

    @property
    def nbytes(self) -> int:
        """Bytes in GPU memory."""
        return sum(max(storage.size, 4) for storage in self.storages)


def check_precision(precision: str, device: Device) -> None:
    """DeviceError for f16 on a device without it."""
    if precision == "f16" and "f16" not in device.features:
        raise DeviceError(
            f"precision = f16: {device.info.name} was not opened with shader-f16, or has none; "
            "use precision = f32"
        )


def stored_type(type_: str, precision: str) -> str:
    """The type in which a file's matrix lies on the GPU: "f16" stores wider floats as F16."""
    if type_ in CONVERTED:
        return CONVERTED_TO
    return "F16" if precision == "f16" and type_ in ("F32", "BF16") else type_


def plan_weights(
    gguf: GGUF,
    config: ModelConfig,
    limits: Limits,
    precision: str = "f32",
    quantize_base: str | None = None,
) -> Weights:
    """Decides where everything lies; allocates nothing."""
    types = {name: stored_type(gguf.tensors[name].type, precision) for name in config.matrices()}
    if quantize_base is not None:
        types |= quantised_types(gguf, config, quantize_base)
    matrices = {
        name: plan_weight(name, types[name], rows, columns, limits, precision)
        for name, (rows, columns) in config.matrices().items()
    }
    offsets, size = {}, 0
    for name, length in config.vectors().items():
        offsets[name] = (size, padded(length) * 4)
        size += -(-padded(length) * 4 // limits.alignment) * limits.alignment
    storage = Storage("norms and biases", "weights", size)
    vectors = {name: storage.window(*place) for name, place in offsets.items()}
    return Weights(matrices, vectors, {name: tuple(config.stored(name)) for name in vectors})


async def load_weights(
    device: Device,
    source: Source,
    gguf: GGUF,
    weights: Weights,
    loaded: Loaded = unseen,
) -> None:
    """Allocates every buffer and streams the file into them; frees them again on failure.

    `loaded` is called for each slice of a matrix that was read.
    """
    if device.budget is not None and weights.nbytes > device.budget - device.allocated:
        raise OutOfMemoryError(
            f"{source_name(source)}: the weights need {weights.nbytes:,} bytes of GPU memory; "
            f"{device.budget - device.allocated:,} are left: use a smaller or a quantised model"
        )
    buffers: list[Buffer] = []
    callers: dict[str, Caller] = {}
    try:
        for storage in weights.storages:
            storage.buffer = device.create_buffer(storage.size, storage.name)
            buffers.append(storage.buffer)
        await _load_vectors(device, source, gguf, weights)
        tensors = [(weight, gguf.tensors[name]) for name, weight in weights.matrices.items()]
        total, done = sum(tensor.nbytes for _, tensor in tensors), 0

        def read(count: int) -> None:
            nonlocal done
            done += count
            loaded(done, total)

        staging_size = max(
            [min(STAGING, t.nbytes) for _, t in tensors] + [_staged_row(t) + 4 for _, t in tensors]
        )
        staging = device.create_buffer(-(-staging_size // 4) * 4, "staging")
        # What repacking found wrong with each tensor, as far apart as bindings have to be.
        marks = device.create_buffer(_MARK * len(tensors), "marks")
        try:
            for number, (weight, tensor) in enumerate(tensors):
                if weight.type in QUANTISED:
                    await load_quantised(device, source, weight, tensor, read)
                    continue
                kernel = _repack(tensor.type, weight.type)
                if kernel.code not in callers:
                    callers[kernel.code] = await Caller.open(device, kernel)
                places = {"raw": staging, "marks": (marks, _MARK * number, 4)}
                caller = callers[kernel.code]
                await _load_matrix(device, source, weight, tensor, places, caller, read)
            found = np.frombuffer(await device.read(marks, 0, marks.size), np.uint32)
            names = [weight.name for weight, _ in tensors]
            _check_marks(source_name(source), names, found[:: _MARK // 4])
        finally:
            device.free(staging)
            device.free(marks)
            for caller in callers.values():
                caller.close()
    except BaseException:
        for buffer in buffers:
            device.free(buffer)
        raise


def repack_places(weight: Weight, segment: Segment) -> dict[str, int]:
    """The parameters that tell a repack shader where the planes of a segment lie."""
    at = {
        plane.name: start // plane.unit
        for plane, start in zip(weight.planes, segment.starts, strict=True)
    }
    return {**weight.strides(), "weight_side_at": at.get("weight_side", 0)}


def _repack(type_: str, stored: str) -> Kernel:
    """The kernel that makes the layout of `stored` from a file's tensor."""
    if type_ == stored or type_ in CONVERTED:
        return load_kernel(FORMATS[stored].repack, dict(FORMATS[stored].constants))
    return load_kernel("repack_half", {"BF16": type_ == "BF16"})


def _check_marks(file: str, names: list[str], marks: np.ndarray) -> None:
    if len(wrong := [name for name, mark in zip(names, marks, strict=True) if mark & _NOT_FINITE]):
        raise FileError(f"{file}: {', '.join(wrong)}: values that are infinite or NaN")
    if wrong := [name for name, mark in zip(names, marks, strict=True) if mark & _BEYOND_F16]:
        raise OptionError(
            f"precision = f16: {', '.join(wrong)}: values beyond 65504, which f16 cannot hold; "
            "use precision = f32"
        )


def _row(tensor: TensorInfo) -> int:
    return tensor.nbytes // tensor.shape[0]


def _staged_row(tensor: TensorInfo) -> int:
    """Bytes of a row where a repack shader meets it."""
    if tensor.type in CONVERTED:
        return BLOCKS[CONVERTED_TO].row_nbytes(tensor.shape[1])
    return _row(tensor)


async def _load_vectors(device: Device, source: Source, gguf: GGUF, weights: Weights) -> None:
    for vector, window in weights.vectors.items():
        values, at = np.zeros(window.size // 4, np.float32), 0
        for name in weights.stored[vector]:
            tensor = gguf.tensors[name]
            raw = await read_range(source, tensor.offset, tensor.nbytes)
            loaded = as_float32(raw, tensor.type)
            if len(wrong := np.flatnonzero(~np.isfinite(loaded))):
                first = int(wrong[0])
                raise FileError(f"{source_name(source)}: tensor {name}[{first}] is {loaded[first]}")
            values[at : at + loaded.size] = loaded
            at += loaded.size
        assert window.storage.buffer is not None
        device.write(window.storage.buffer, window.offset, values)


async def _load_matrix(
    device: Device,
    source: Source,
    weight: Weight,
    tensor: TensorInfo,
    buffers: dict[str, Any],
    repack: Caller,
    read: Callable[[int], None],
) -> None:
    row, staging = _row(tensor), buffers["raw"]
    staged = _staged_row(tensor)
    most = min(staging.size // staged, device.limits.workgroups)
    for segment in weight.segments:
        assert segment.storage.buffer is not None
        for first in range(0, segment.rows, most):
            rows = min(most, segment.rows - first)
            offset = tensor.offset + (segment.first + first) * row
            if tensor.type in CONVERTED:
                raw = await read_range(source, offset, rows * row)
                device.write(staging, 0, convert_rows(raw, tensor, source_name(source)))
            else:
                await device.write_from(source, offset, rows * row, staging, 0)
            repack(
                {**buffers, "planes": segment.storage.buffer},
                {
                    "slice_rows": rows,
                    "first_row": first,
                    "columns": weight.columns,
                    **repack_places(weight, segment),
                    "raw_offset": 0,
                    "raw_row": staged,
                },
            )
            read(rows * row)
