"""ggml's own quantisers, through the shared library of llama-cpp-python."""

import ctypes
from functools import cache
from pathlib import Path
from typing import Any

import needs
import numpy as np

from wgtrain.files import BLOCKS


@cache
def _library() -> Any:
    package = needs.package("llama_cpp")
    folder = Path(package.__file__).parent / "lib"
    (path,) = (p for p in folder.iterdir() if p.stem in ("libggml-base", "ggml-base"))
    library = ctypes.CDLL(str(path))
    quantise = library.ggml_quantize_chunk
    quantise.restype = ctypes.c_size_t
    rows = [ctypes.c_int64] * 3  # the first value, rows, values of a row
    quantise.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, *rows, ctypes.c_void_p]
    return library


def quantised(values: np.ndarray, type_: str) -> np.ndarray:
    """Bytes (rows, bytes of a row) of float32 values (rows, columns)."""
    x = np.ascontiguousarray(values, np.float32)
    rows, columns = x.shape
    out = np.zeros((rows, BLOCKS[type_].row_nbytes(columns)), np.uint8)
    written = _library().ggml_quantize_chunk(
        BLOCKS[type_].ggml_id, x.ctypes.data, out.ctypes.data, 0, rows, columns, None
    )
    assert written == out.nbytes
    return out
