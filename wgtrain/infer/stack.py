"""Adapters put upon a model, each with its strength: read, checked and hashed once."""

import hashlib
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from wgtrain.errors import OptionError
from wgtrain.files import GGUF, Adapter, adapter_fits
from wgtrain.files.source import shown

MAX_SCALE = 1e6  # of an adapter: strength * alpha / rank


@dataclass(frozen=True)
class Stack:
    """Adapters with their strengths, 1.0 = as trained; equal `key`, equal numbers."""

    adapters: tuple[tuple[Adapter, float], ...]
    key: bytes


def read_stack(
    pairs: Sequence[tuple[Any, float]], read: Callable[[Any], Adapter], gguf: GGUF, arch: str
) -> Stack:
    """The stack of (adapter, strength) pairs for a model; OptionError for what is no pair or too
    strong, FileError for an adapter of another model.
    """
    stack = [(read(adapter), strength) for adapter, strength in _pairs(pairs)]
    for adapter, _ in stack:
        adapter_fits(adapter, gguf.tensors, arch)
    _check_strengths(stack)
    return Stack(tuple(stack), _digest(stack))


def _pairs(adapters: Sequence[tuple[Any, float]]) -> list[tuple[Any, float]]:
    """The (adapter, strength) pairs; OptionError for what is none."""
    pairs = []
    for number, pair in enumerate(adapters):
        try:
            adapter, strength = pair
            if isinstance(pair, str) or not math.isfinite(strength):
                raise ValueError
        except (TypeError, ValueError, OverflowError):
            raise OptionError(
                f"adapters[{number}] = {shown(pair)}: (adapter, strength) is needed, as in "
                "('adapter.gguf', 1.0)"
            ) from None
        pairs.append((adapter, float(strength)))
    return pairs


def _check_strengths(stack: Sequence[tuple[Adapter, float]]) -> None:
    """OptionError for an adapter so strong that no logits are left."""
    for number, (adapter, strength) in enumerate(stack):
        if abs(strength * adapter.alpha / adapter.rank) > MAX_SCALE:
            raise OptionError(
                f"adapters[{number}]: strength {strength:g} x alpha {adapter.alpha:g} / rank "
                f"{adapter.rank} is beyond {MAX_SCALE:g}"
            )


def _digest(stack: Iterable[tuple[Adapter, float]]) -> bytes:
    digest = hashlib.blake2b()
    for adapter, strength in stack:
        digest.update(repr((adapter.rank, adapter.alpha, strength)).encode())
        for name, pair in adapter.tensors.items():
            digest.update(repr((name, [array.shape for array in pair])).encode())
            for array in pair:
                digest.update(array.tobytes())
    return digest.digest()
