"""Matrices of types that no kernel reads, made Q8_0 as they are loaded, a slice of rows at a time.

The `gguf` package decodes them, which natively is there; all have rows of whole blocks of Q8_0.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np

from wgtrain.errors import FileError
from wgtrain.files import BLOCKS, TensorInfo
from wgtrain.files.encoding import decoded, encoded

CONVERTED = (
    "IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "TQ1_0", "TQ2_0", "NVFP4",
)  # fmt: skip
CONVERTED_TO = "Q8_0"


def converted_note(tensors: Iterable[TensorInfo]) -> str | None:
    """One line on what of a model's matrices is converted and what that costs; None for nothing."""
    found = [tensor for tensor in tensors if tensor.type in CONVERTED]
    if not found:
        return None
    types = ", ".join(dict.fromkeys(tensor.type for tensor in found))
    before = sum(tensor.nbytes for tensor in found)
    after = sum(t.shape[0] * BLOCKS[CONVERTED_TO].row_nbytes(t.shape[1]) for t in found)
    return (
        f"{len(found)} matrices of {types} are converted to {CONVERTED_TO} as they are loaded: "
        f"{after:,} bytes instead of {before:,}"
    )


def convert_rows(raw: Any, tensor: TensorInfo, file: str) -> np.ndarray:
    """Bytes of rows of a tensor whose type is one of CONVERTED, as Q8_0 has them."""
    where = f"{file}: {tensor.name}"
    try:
        values = decoded(raw, tensor.type, tensor.shape[1])
    except FileError as error:
        raise FileError(f"{where} has type {tensor.type}: {error}") from None
    if not np.isfinite(values).all():
        raise FileError(f"{where}: values that are infinite or NaN")
    try:
        return np.frombuffer(encoded(values, CONVERTED_TO), np.uint8)
    except OverflowError as error:
        raise FileError(f"{where}: {error}; {CONVERTED_TO} cannot hold it") from None
