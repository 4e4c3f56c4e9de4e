"""Adapters that a program made itself: what readers of files hold theirs to."""

import math
import numbers
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from wgtrain.errors import FileError
from wgtrain.files.adapters import Adapter
from wgtrain.files.source import shown


def well_formed(adapter: Adapter) -> Adapter:
    """The adapter with its matrices as float32; FileError where its parts are no adapter's."""
    rank, alpha, tensors = _fields(adapter)
    if isinstance(rank, bool) or not isinstance(rank, int | np.integer) or rank < 1:
        raise FileError(f"adapter: rank = {shown(rank)}: allowed is a whole number, at least 1")
    if not isinstance(alpha, numbers.Real) or not math.isfinite(alpha):
        raise FileError(f"adapter: alpha = {shown(alpha)}: allowed is a finite number")
    if not isinstance(tensors, Mapping) or not tensors:
        raise FileError(
            f"adapter: tensors = {shown(tensors)}: allowed are pairs (A, B) of matrices by the "
            "name of the base's tensor, at least one"
        )
    pairs = {name: _pair(name, pair, int(rank)) for name, pair in tensors.items()}
    same = all(
        new is old for name in pairs for new, old in zip(pairs[name], tensors[name], strict=True)
    )
    return adapter if same else replace(adapter, tensors=pairs)


def _fields(adapter: Any) -> tuple[Any, Any, Any]:
    return adapter.rank, adapter.alpha, adapter.tensors


def _pair(name: Any, pair: Any, rank: int) -> tuple[np.ndarray, np.ndarray]:
    """A (rank, n_in) and B (n_out, rank), float32."""
    said = ""
    try:
        a, b = (np.asarray(matrix) for matrix in pair)
        said = f"A {a.shape} of {a.dtype}, B {b.shape} of {b.dtype}"
        form = [
            (a.ndim, b.ndim),
            (len(a), b.shape[-1]),
            (a.dtype.kind in "fiu", b.dtype.kind in "fiu"),
        ]
        if form != [(2, 2), (rank, rank), (True, True)] or not a.size or not b.size:
            raise ValueError
        with np.errstate(over="ignore"):
            found = a.astype(np.float32, copy=False), b.astype(np.float32, copy=False)
        if not isinstance(name, str) or not all(np.isfinite(matrix).all() for matrix in found):
            raise ValueError
    except (TypeError, ValueError, IndexError):
        raise FileError(
            f"adapter: {shown(name)}: {said or shown(pair)}; A (r, n_in) and B (n_out, r) of "
            f"finite numbers and rank {rank} are needed"
        ) from None
    return found
