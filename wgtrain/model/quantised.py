"""Full-precision matrices quantised as they are loaded, a slice of rows at a time (QLoRA)."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from wgtrain.engine.weight import BLOCK, NESTED, Segment, Weight, nested_tail
from wgtrain.errors import FileError, OptionError
from wgtrain.files import GGUF, TensorInfo, read_range
from wgtrain.files.floats import FLOATS, as_float32
from wgtrain.files.quantise_base import Nested, dynamic_map, encode_affine, encode_nf4, nest
from wgtrain.files.source import Source, source_name
from wgtrain.gpu import Device
from wgtrain.model.config import ModelConfig

# As people write them -> formats of `engine.weight.QUANTISED`.
QUANTIZE_BASE = {"nf4": "NF4", "nf4-double": "NF4_DOUBLE", "int4": "INT4", "int8": "INT8"}
_SLICE = 4 << 20  # bytes of f32 values in memory at a time; a longer row makes it larger


def quantised_types(gguf: GGUF, config: ModelConfig, quantize_base: str) -> dict[str, str]:
    """The format of every linear of the blocks; OptionError where the option cannot work."""
    if quantize_base not in QUANTIZE_BASE:
        raise OptionError(f"quantize_base = {quantize_base}: allowed is {', '.join(QUANTIZE_BASE)}")
    wrong = [name for name in config.linears() if gguf.tensors[name].type not in FLOATS]
    if wrong:
        raise OptionError(
            f"quantize_base = {quantize_base}: {gguf.name} is quantised already ({wrong[0]} is "
            f"{gguf.tensors[wrong[0]].type}); it trains as it is, without this option"
        )
    for name, (_, columns) in config.linears().items():
        if columns % BLOCK:
            raise OptionError(
                f"quantize_base = {quantize_base}: {name} has rows of {columns} values, which is "
                f"no multiple of {BLOCK}"
            )
    return dict.fromkeys(config.linears(), QUANTIZE_BASE[quantize_base])


async def load_quantised(
    device: Device,
    source: Source,
    weight: Weight,
    tensor: TensorInfo,
    read: Callable[[int], None],
) -> None:
    """Streams a full-precision matrix through its quantiser into the segments of `weight`; `read`
    is called with the bytes of each slice.
    """
    encoder = _ENCODERS[weight.type]()
    rows_at_once = max(_SLICE // (4 * weight.columns), 1)
    row = tensor.nbytes // weight.rows
    for segment in weight.segments:
        for first in range(0, segment.rows, rows_at_once):
            rows = min(rows_at_once, segment.rows - first)
            at = tensor.offset + (segment.first + first) * row
            raw = await read_range(source, at, rows * row)
            values = as_float32(raw, tensor.type)
            if not np.isfinite(values).all():
                file = source_name(source)
                raise FileError(f"{file}: {weight.name}: values that are infinite or NaN")
            planes = encoder.planes(values.reshape(rows, weight.columns))
            for number, data in enumerate(planes):
                _write_rows(device, weight, segment, number, first, data)
            read(rows * row)
    encoder.finish(device, weight)


def _write_rows(
    device: Device, weight: Weight, segment: Segment, number: int, first: int, data: np.ndarray
) -> None:
    """Whole rows of plane `number`, from row `first` of a segment."""
    assert segment.storage.buffer is not None
    at = segment.starts[number] + first * weight.row_nbytes(weight.planes[number])
    device.write(segment.storage.buffer, at, np.ascontiguousarray(data))


def _packs(codes: np.ndarray, rows: int, bits: int) -> np.ndarray:
    """Codes of 4 or 8 bits in the packs that kernels read: field s of word c is value 4 s + c."""
    per_word = 32 // bits
    fields = codes.reshape(rows, -1, per_word, 4).astype(np.uint32)
    packs = np.zeros((rows, fields.shape[1], 4), np.uint32)
    for s in range(per_word):
        packs |= fields[:, :, s] << np.uint32(bits * s)
    return packs


class _Nf4:
    """Codes, and an f32 absmax a block."""

    def planes(self, values: np.ndarray) -> tuple[np.ndarray, ...]:
        codes, absmax = encode_nf4(values)
        return _packs(codes, len(values), 4), absmax.reshape(len(values), -1)

    def finish(self, device: Device, weight: Weight) -> None:
        """All is written."""


@dataclass(frozen=True)
class _Affine:
    """Codes of `bits` bits, and an f32 scale and bias a group."""

    bits: int

    def planes(self, values: np.ndarray) -> tuple[np.ndarray, ...]:
        codes, scales, biases = encode_affine(values, self.bits)
        pairs = np.stack([scales, biases], axis=1)
        return _packs(codes, len(values), self.bits), pairs.reshape(len(values), -1)

    def finish(self, device: Device, weight: Weight) -> None:
        """All is written."""


class _Nf4Double:
    """As NF4; the absmax are quantised once those of the whole matrix are known."""

    def __init__(self) -> None:
        self._absmax: list[np.ndarray] = []

    def planes(self, values: np.ndarray) -> tuple[np.ndarray, ...]:
        codes, absmax = encode_nf4(values)
        self._absmax.append(absmax)
        return (_packs(codes, len(values), 4),)

    def finish(self, device: Device, weight: Weight) -> None:
        nested = nest(np.concatenate(self._absmax))
        blocks = weight.columns // BLOCK
        codes = np.pad(nested.codes.reshape(-1, blocks), ((0, 0), (0, -blocks % 4)))
        for segment in weight.segments:
            rows = codes[segment.first : segment.first + segment.rows]
            _write_rows(device, weight, segment, 1, 0, rows)
            tail = _tail(nested, segment.first * blocks, segment.rows, weight.columns)
            _write_rows(device, weight, segment, 1, segment.rows, tail)


def _tail(nested: Nested, first: int, rows: int, columns: int) -> np.ndarray:
    """What lib/weight_nf4_double reads behind the codes of a segment that begins at block
    `first`.
    """
    words = np.zeros(nested_tail(rows, columns) // 4, np.float32)
    words[-256:] = dynamic_map()
    words[-257] = nested.offset
    words.view(np.uint32)[-258] = first % NESTED
    scales = nested.scales[first // NESTED :][: len(words) - 258]
    words[len(words) - 258 - len(scales) : len(words) - 258] = scales[::-1]
    return words


_ENCODERS: dict[str, Callable[[], _Nf4 | _Affine | _Nf4Double]] = {
    "NF4": _Nf4,
    "NF4_DOUBLE": _Nf4Double,
    "INT4": lambda: _Affine(4),
    "INT8": lambda: _Affine(8),
}
