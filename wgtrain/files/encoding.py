"""Rows of any block type as float32, and float32 as rows of the types that can be made."""

from typing import Any

import numpy as np

from wgtrain.errors import FileError
from wgtrain.files.blocks import BLOCKS, SCALES
from wgtrain.files.floats import FLOATS, as_float32, float_bytes, lost
from wgtrain.files.quantise_k import TYPES as K_TYPES
from wgtrain.files.quantise_k import quantise
from wgtrain.files.source import Data


def can_decode(kind: str) -> bool:
    """Whether `decoded` reads a type; FileError where the package for it is missing."""
    if kind in FLOATS:
        return True
    if kind not in _package().GGMLQuantizationType.__members__:
        return False
    try:
        decoded(bytes(BLOCKS[kind].nbytes), kind, BLOCKS[kind].size)
    except (NotImplementedError, KeyError):
        return False
    return True


def decoded(data: Data, kind: str, columns: int) -> np.ndarray:
    """Whole rows as float32 (rows, columns)."""
    if kind in FLOATS:
        return as_float32(data, kind).reshape(-1, columns)
    rows = np.frombuffer(data, np.uint8).reshape(-1, BLOCKS[kind].row_nbytes(columns))
    gguf = _package()
    with np.errstate(all="ignore"):
        values = gguf.quants.dequantize(rows, gguf.GGMLQuantizationType[kind])
    return np.asarray(values, np.float32)


def encoded(values: np.ndarray, kind: str) -> bytes:
    """Finite float32 (rows, columns) as rows of a type; OverflowError, which says what, where it
    cannot hold them.
    """
    if kind in FLOATS:
        data = float_bytes(values, kind)
        if (bad := lost(values, data, kind)) is not None:
            raise OverflowError(f"{values.reshape(-1)[bad]:g}")
        return data
    if kind in K_TYPES:
        return quantise(values, kind).tobytes()
    gguf = _package()
    with np.errstate(all="ignore"):
        made = gguf.quants.quantize(values, gguf.GGMLQuantizationType[kind])
    blocks = np.ascontiguousarray(made).view(np.uint8).reshape(-1, BLOCKS[kind].nbytes)
    scales = [np.ascontiguousarray(blocks[:, at : at + 2]).view("<f2") for at in SCALES[kind]]
    if not np.isfinite(scales).all():  # they may not hold what they have to
        raise OverflowError("a scale is beyond f16")
    return blocks.tobytes()


def _package() -> Any:
    try:
        import gguf
    except ImportError:
        raise FileError(
            "the package gguf, which knows the block types, is not here: pip install gguf (in a "
            "page: await micropip.install('gguf'))"
        ) from None
    return gguf
