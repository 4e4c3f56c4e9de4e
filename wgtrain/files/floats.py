"""Numbers in the types that files of models have, as bytes."""

import numpy as np

from wgtrain.files.source import Data

FLOATS = {"F32": 4, "F16": 2, "BF16": 2}  # type -> bytes


def as_float32(data: Data, kind: str) -> np.ndarray:
    """Numbers of one of `FLOATS`, exactly."""
    if kind == "BF16":
        wide = np.frombuffer(data, "<u2").astype("<u4") << np.uint32(16)
        return wide.view("<f4")
    return np.frombuffer(data, "<f4" if kind == "F32" else "<f2").astype("<f4")


def float_bytes(values: np.ndarray, kind: str) -> bytes:
    """float32 as bytes of one of `FLOATS`, rounded to the nearest, ties to even; what is too
    large becomes infinite.
    """
    if kind == "F32":
        return values.astype("<f4").tobytes()
    if kind == "F16":
        with np.errstate(over="ignore"):
            return values.astype("<f2").tobytes()
    bits = values.astype("<f4").view("<u4")
    rounded = (bits + (np.uint32(0x7FFF) + (bits >> np.uint32(16) & np.uint32(1)))) >> np.uint32(16)
    nan = (bits & np.uint32(0x7FFFFFFF)) > np.uint32(0x7F800000)
    quiet = (bits >> np.uint32(16)) | np.uint32(64)
    return np.where(nan, quiet, rounded).astype("<u2").tobytes()


def lost(values: np.ndarray, data: Data, kind: str) -> int | None:
    """The place of the first finite number that became infinite in `float_bytes`, if any; flat."""
    if kind == "F32":
        return None
    wrong = np.isinf(as_float32(data, kind)) & np.isfinite(values).reshape(-1)
    return int(wrong.argmax()) if wrong.any() else None
