"""Adapters put upon a model, each with its strength: read, checked and hashed once."""

import hashlib
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from wgtrain.errors import OptionError
from wgtrain.files import GGUF, Adapter, adapter_fits
from wgtrain.files.source import shown

MAX_SCALE = 1e6  # of an adapter: strength * alpha / rank


@dataclass(frozen=True, eq=False)
class Checked:
    """An adapter that fits the model of this fingerprint; equal `key`, equal numbers. It stands
    wherever an adapter does, and for that model is neither read nor hashed again.
    """

    adapter: Adapter
    key: bytes = field(repr=False)
    model: str = field(repr=False)


@dataclass(frozen=True, eq=False)
class Stack:
    """Adapters with their strengths, 1.0 = as trained."""

    adapters: tuple[tuple[Checked, float], ...] = ()

    @property
    def key(self) -> bytes:
        """Equal key, equal numbers."""
        return b"".join(one.key + repr(strength).encode() for one, strength in self.adapters)


def check_adapter(adapter: Adapter, gguf: GGUF, arch: str, what: str, model: str = "") -> Checked:
    """An adapter for a model, whose form was checked as it was read; FileError for one of another
    model. `what` it is called in messages; `model`: the fingerprint.
    """
    adapter_fits(adapter, gguf.tensors, arch, what)
    return Checked(adapter, _digest(adapter), model)


def read_stack(pairs: Sequence[tuple[Any, float]], check: Callable[[Any], Checked]) -> Stack:
    """The stack of (adapter, strength) pairs, of which `check` makes what fits a model; OptionError
    for what is no pair or too strong.
    """
    stack = []
    for number, (adapter, strength) in enumerate(_pairs(pairs)):
        one = check(adapter)
        check_strength(one.adapter, strength, called(adapter, f"adapters[{number}]"))
        stack.append((one, strength))
    return Stack(tuple(stack))


def _pairs(adapters: Sequence[tuple[Any, float]]) -> list[tuple[Any, float]]:
    """The (adapter, strength) pairs; OptionError for what is none."""
    if isinstance(adapters, str | bytes | os.PathLike | Mapping) or not isinstance(
        adapters, Iterable
    ):
        raise OptionError(
            f"adapters = {shown(adapters)}: a list of (adapter, strength) is needed, as in "
            "[('adapter.gguf', 1.0)]"
        )
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


def called(adapter: Any, otherwise: str) -> str:
    """What an adapter is called in messages: its path, where it has one."""
    return str(adapter) if isinstance(adapter, str | os.PathLike) else otherwise


def check_strength(adapter: Adapter, strength: float, what: str) -> None:
    """OptionError for an adapter so strong that no logits are left."""
    if abs(strength * adapter.alpha / adapter.rank) > MAX_SCALE:
        raise OptionError(
            f"{what}: strength {strength:g} x alpha {adapter.alpha:g} / rank {adapter.rank} is "
            f"beyond {MAX_SCALE:g}"
        )


def _digest(adapter: Adapter) -> bytes:
    digest = hashlib.blake2b(repr((adapter.rank, adapter.alpha)).encode())
    for name, pair in adapter.tensors.items():
        digest.update(repr((name, [array.shape for array in pair])).encode())
        for array in pair:
            digest.update(np.ascontiguousarray(array).data)
    return digest.digest()
