"""Quantised rows of random bytes, for every block type, also those that nothing here quantises."""

import math

import numpy as np

from wgtrain.files import BLOCKS

# Where the f16 scales of a block lie, and about how far values of random bits spread where they
# are 1.
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
    which are of either sign and such that values spread by about `spread`.
    """
    block = BLOCKS[type_]
    raw = rng.integers(0, 256, (rows, columns // block.size, block.nbytes), np.uint8)
    if type_ == "MXFP4":
        most = round(math.log2(spread / 4.6)) + 128
        raw[..., 0] = rng.integers(most - 1, most + 1, raw.shape[:2])
        return raw.reshape(rows, -1)
    places, factor = SCALES[type_]
    for at in places:
        scale = rng.uniform(0.5, 1.5, raw.shape[:2]) * rng.choice([-1.0, 1.0], raw.shape[:2])
        raw[..., at : at + 2] = (scale * spread / factor).astype("<f2")[..., None].view(np.uint8)
    return raw.reshape(rows, -1)
