"""Quantisers for full-precision bases: NF4 as bitsandbytes has it, int4 and int8 as MLX has them.

Blocks are `BLOCK` consecutive values of a row. Sources: bitsandbytes' `quantize_4bit` and
`quantize_blockwise`, MLX's `quantize`.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np

BLOCK = 64  # values
NESTED = 256  # absmax values that share one of their own in double quantisation
NF4 = np.array(
    [
        *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
        *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
        *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
        *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
    ],
    np.float32,
)
_TINY = np.float32(1e-38)


def encode_nf4(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """f32 values in whole blocks -> codes uint8, an index of `NF4` each, and the f32 absmax of each
    block.

    The code is the number of midpoints strictly below the value over absmax, so a tie goes down.
    """
    blocks = values.reshape(-1, BLOCK)
    absmax = np.abs(blocks).max(axis=1)
    scaled = _over(blocks, absmax).ravel()
    codes = np.zeros(scaled.shape, np.uint8)
    for midpoint in _midpoints(NF4):  # seven times faster than a search for each value
        codes += scaled > midpoint
    return codes, absmax


@dataclass(frozen=True)
class Nested:
    """Doubly quantised absmax: absmax = map[codes] * scales[i // NESTED] + offset."""

    codes: np.ndarray  # uint8
    scales: np.ndarray  # f32
    offset: np.float32

    def decoded(self) -> np.ndarray:
        """The absmax values f32, both operations rounded."""
        scales = np.repeat(self.scales, NESTED)[: len(self.codes)]
        return dynamic_map()[self.codes] * scales + self.offset


def nest(absmax: np.ndarray) -> Nested:
    """Quantises the absmax of a whole matrix, in its order, to eight bits."""
    offset = np.float32(absmax.mean(dtype=np.float64))
    centred = absmax - offset
    padded = np.pad(centred, (0, -len(centred) % NESTED)).reshape(-1, NESTED)
    scales = np.abs(padded).max(axis=1)
    codes = np.searchsorted(_midpoints(dynamic_map()), _over(padded, scales).ravel())
    return Nested(codes[: len(absmax)].astype(np.uint8), scales, offset)


@cache
def dynamic_map() -> np.ndarray:
    """The 256 values of bitsandbytes' signed dynamic 8-bit type, f32, sorted.

    0, 1 and, for i from 0 to 6, plus and minus 10^(i - 6) times the midpoints of 2^i intervals
    between 0.1 and 1; every operation is rounded to f32, as torch does it.
    """
    found = [np.float32(0), np.float32(1)]
    for i in range(7):
        n = 2**i + 1
        step = (np.float32(1) - np.float32(0.1)) / np.float32(n - 1)
        at = np.arange(n, dtype=np.float32)
        low = (np.float64(np.float32(0.1)) + np.float64(step) * at).astype(np.float32)
        high = (1 - np.float64(step) * at[::-1]).astype(np.float32)
        edges = np.where(at < n // 2, low, high)
        means = (edges[:-1] + edges[1:]) / np.float32(2)
        scaled = np.float32(10.0 ** (i - 6)) * means
        found += [*scaled, *-scaled]
    return np.sort(np.array(found, np.float32))


def encode_affine(values: np.ndarray, bits: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """f32 values in whole blocks -> codes uint8 of `bits` bits, and the f32 scale and bias of each
    block: value = scale * code + bias.

    The end of the range that is larger in magnitude, and 0, are met exactly.
    """
    blocks, most = values.reshape(-1, BLOCK), np.float32(2**bits - 1)
    low, high = blocks.min(axis=1), blocks.max(axis=1)
    below = np.abs(low) > np.abs(high)
    scale = np.maximum((high - low) / most, np.float32(1e-7))
    scale = np.where(below, scale, -scale)
    edge = np.where(below, low, high)
    zero = np.rint(edge / scale)
    met = zero != 0
    scale = np.where(met, edge / np.where(met, zero, np.float32(1)), scale)
    bias = np.where(met, edge, np.float32(0))
    codes = np.rint((blocks - bias[:, None]) / scale[:, None])
    return np.clip(codes, 0, most).astype(np.uint8).ravel(), scale, bias


def _over(blocks: np.ndarray, absmax: np.ndarray) -> np.ndarray:
    """Blocks times the reciprocal of their absmax, within +-1."""
    reciprocal = np.float32(1) / np.maximum(absmax, _TINY)
    return np.clip(blocks * reciprocal[:, None], np.float32(-1), np.float32(1))


def _midpoints(code: np.ndarray) -> np.ndarray:
    return (code[:-1] + code[1:]) / np.float32(2)
