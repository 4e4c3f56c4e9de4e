"""Quantised rows of random bytes, for every block type, also those that nothing here quantises."""

import math

import numpy as np

from wgtrain.files.blocks import BLOCKS, SCALES

# About how far values of random bits spread where the f16 scales are 1.
_SPREAD = {
    "Q4_0": 4.6,
    "Q4_1": 9.0,
    "Q5_0": 9.2,
    "Q5_1": 18.0,
    "Q8_0": 74.0,
    "Q2_K": 18.0,
    "Q3_K": 42.0,
    "Q4_K": 335.0,
    "Q5_K": 660.0,
    "Q6_K": 1366.0,
    "IQ4_NL": 69.0,
    "IQ4_XS": 1275.0,
}


def random_blocks(
    rng: np.random.Generator, type_: str, rows: int, columns: int, spread: float = 1.0
) -> np.ndarray:
    """Bytes (rows, bytes of a row) of a type of `SCALES` or MXFP4: any bits but those of scales,
    which are of either sign and such that values spread by about `spread`.
    """
    block = BLOCKS[type_]
    raw = rng.integers(0, 256, (rows, columns // block.size, block.nbytes), np.uint8)
    if type_ == "MXFP4":
        most = round(math.log2(spread / 4.6)) + 128
        raw[..., 0] = rng.integers(most - 1, most + 1, raw.shape[:2])
        return raw.reshape(rows, -1)
    for at in SCALES[type_]:
        scale = rng.uniform(0.5, 1.5, raw.shape[:2]) * rng.choice([-1.0, 1.0], raw.shape[:2])
        halves = (scale * spread / _SPREAD[type_]).astype("<f2")
        raw[..., at : at + 2] = halves[..., None].view(np.uint8)
    return raw.reshape(rows, -1)
