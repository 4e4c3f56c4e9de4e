"""Quantised rows of random bytes, for every block type, also those that the `gguf` package reads
but does not make.
"""

import gguf
import numpy as np

from wgtrain.files import BLOCKS

# Formats that differ in what a pack is; the others differ from one of them in how one is decoded.
SHAPES_OF_PACKS = ("F32", "F16", "BF16", "Q8_0", "Q4_0")

# Where the f16 scales of a block lie, and about how far one of 1 lets its values spread.
SCALES = {
    "Q4_0": ((0,), 4.6),
    "Q4_1": ((0, 2), 9.0),
    "Q5_0": ((0,), 9.2),
    "Q5_1": ((0, 2), 18.0),
    "Q8_0": ((0,), 74.0),
    "Q2_K": ((80, 82), 18.0),
    "Q3_K": ((108,), 42.0),
    "Q4_K": ((0, 2), 335.0),
    "Q5_K": ((0, 2), 660.0),
    "Q6_K": ((208,), 1366.0),
    "IQ4_NL": ((0,), 69.0),
    "IQ4_XS": ((0,), 1275.0),
}


def random_blocks(
    rng: np.random.Generator, type_: str, rows: int, columns: int, spread: float = 1.0
) -> np.ndarray:
    """Bytes (rows, bytes of a row) of a type of `SCALES` or MXFP4: any bits but those of scales,
    which are of either sign, so that values spread about `spread`.
    """
    block = BLOCKS[type_]
    raw = rng.integers(0, 256, (rows, columns // block.size, block.nbytes)).astype(np.uint8)
    if type_ == "MXFP4":
        most = int(np.round(np.log2(spread / 6.0))) + 128
        raw[..., 0] = rng.integers(most - 1, most + 1, raw.shape[:2])
        return raw.reshape(rows, -1)
    places, factor = SCALES[type_]
    for at in places:
        scale = rng.uniform(0.5, 1.5, raw.shape[:2]) * rng.choice([-1.0, 1.0], raw.shape[:2])
        raw[..., at : at + 2] = (scale * spread / factor).astype("<f2")[..., None].view(np.uint8)
    return raw.reshape(rows, -1)


def set_scales(raw: np.ndarray, type_: str, bits: np.ndarray) -> None:
    """Writes f16 bits, taken round and round, into all the scales of rows."""
    blocks = raw.reshape(-1, BLOCKS[type_].nbytes)
    for number, at in enumerate(SCALES[type_][0]):
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
