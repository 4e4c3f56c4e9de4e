"""Matrices of every block type, also those that the `gguf` package reads but does not make."""

import gguf
import numpy as np

from wgtrain.files import BLOCKS
from wgtrain.files.blocks import SCALES
from wgtrain.files.random_blocks import random_blocks

__all__ = ["SCALES", "SHAPES_OF_PACKS", "dequantised", "encoded", "random_blocks", "set_scales"]

# Formats that differ in what a pack is; the others differ from one of them in how one is decoded.
SHAPES_OF_PACKS = ("F32", "F16", "BF16", "Q8_0", "Q4_0")


def set_scales(raw: np.ndarray, type_: str, bits: np.ndarray) -> None:
    """Writes f16 bits, taken round and round, into all the scales of rows."""
    blocks = raw.reshape(-1, BLOCKS[type_].nbytes)
    for number, at in enumerate(SCALES[type_]):
        taken = np.resize(np.roll(bits, number), len(blocks)).astype("<u2")
        blocks[:, at : at + 2] = taken[:, None].view(np.uint8)


def dequantised(raw: np.ndarray, type_: str) -> np.ndarray:
    """The rows' values by the `gguf` package, float32."""
    values = gguf.quants.dequantize(raw, gguf.GGMLQuantizationType[type_])
    return np.asarray(values, np.float32)


def encoded(values: np.ndarray, type_: str) -> np.ndarray:
    """Bytes (rows, bytes of a row) of float32 values (rows, columns) by the `gguf` package, or
    where it cannot make the type, random blocks whose values spread as far.
    """
    kind = gguf.GGMLQuantizationType[type_]
    values = values.astype(np.float32)
    try:
        return np.ascontiguousarray(gguf.quants.quantize(values, kind)).view(np.uint8)
    except NotImplementedError:
        rng = np.random.default_rng(np.abs(values.view(np.int32)[0, :8]))
        return random_blocks(rng, type_, *values.shape, spread=float(values.std()))
