"""A GGUF file of random weights that exists nowhere: each range of it is made when it is read.

A model of gigabytes costs neither disk nor memory. Its numbers come from short pools of blocks,
read round and round from another place for each tensor.
"""

from bisect import bisect
from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np

from wgtrain.bench.random_model import RandomModel
from wgtrain.files import BLOCKS, gguf_head
from wgtrain.files.encoding import decoded
from wgtrain.files.floats import float_bytes
from wgtrain.files.gguf import tensor_nbytes
from wgtrain.files.gguf_parser import ALIGNMENT
from wgtrain.files.random_blocks import random_blocks
from wgtrain.random import key

_POOL = 99_991  # blocks; a prime, so that rows of no usual width repeat each other


@cache
def _pool(type_: str, deviation: float, mean: float) -> bytes:
    """Encoded random blocks, their values normal about `mean`."""
    rng = np.random.default_rng(0)
    size = BLOCKS[type_].size
    normal = rng.standard_normal((_POOL, min(size, 32)), np.float32)
    if type_ in ("Q8_0", "Q4_0"):
        return _quantised(normal, type_, deviation)
    if size > 1:
        return random_blocks(rng, type_, _POOL, size, deviation).tobytes()
    values = np.float32(mean) + np.float32(deviation) * normal
    return float_bytes(values, type_)


def _quantised(normal: np.ndarray, type_: str, deviation: float) -> bytes:
    step = {"Q8_0": 32.0, "Q4_0": 3.0}[type_]  # quants of one standard deviation
    scales = np.full((len(normal), 1), deviation / step, "<f2").view(np.uint8)
    quants = np.round(normal * np.float32(step))
    if type_ == "Q8_0":
        stored: np.ndarray = quants.clip(-127, 127).astype(np.int8).view(np.uint8)
    else:
        nibbles = (quants.clip(-8, 7) + 8).astype(np.uint8)
        stored = nibbles[:, :16] | nibbles[:, 16:] << 4
    return np.hstack([scales, stored]).tobytes()


class RandomWeights:
    """The source of a model; see `wgtrain.files.Source`."""

    def __init__(self, shape: RandomModel, metadata: Mapping[str, Any] | None = None):
        """`metadata`: more of it."""
        self.name = f"{shape.name} of random weights"
        self._head = head = gguf_head({**shape.metadata(), **(metadata or {})}, shape.tensors())
        self._shapes = {name: size for name, (_, size) in shape.tensors().items()}
        self._types = types = {name: type_ for name, (type_, _) in shape.tensors().items()}
        self._starts = [0]  # of the head, then of each tensor
        end = len(head)
        for name, size in self._shapes.items():
            self._starts.append(end)
            end += -(-tensor_nbytes(types[name], size) // ALIGNMENT) * ALIGNMENT
        self.size = end
        self._names = list(self._shapes)

    def read_range(self, offset: int, n: int) -> bytes:
        """The `n` bytes from `offset`."""
        parts = []
        end = min(offset + n, self.size)
        while offset < end:
            part = bisect(self._starts, offset) - 1
            stop = min(end, *self._starts[part + 1 : part + 2], self.size)
            at = offset - self._starts[part]
            count = stop - offset
            parts.append(self._head[at:stop] if part == 0 else self._tensor(part - 1, at, count))
            offset = stop
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _tensor(self, number: int, at: int, count: int) -> bytes:
        name = self._names[number]
        type_ = self._types[name]
        if len(self._shapes[name]) == 2:
            pool = _pool(type_, self._shapes[name][1] ** -0.5, 0.0)
        else:
            pool = _pool(type_, 0.1, 0.0 if name.endswith("bias") else 1.0)
        start = key(0, name) % _POOL * BLOCKS[type_].nbytes + at
        parts = []
        while count > 0:
            start %= len(pool)
            parts.append(pool[start : start + count])
            start += len(parts[-1])
            count -= len(parts[-1])
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def values(self, name: str) -> np.ndarray:
        """A tensor's numbers, float32 in its shape."""
        shape, type_ = self._shapes[name], self._types[name]
        start = self._starts[self._names.index(name) + 1]
        raw = self.read_range(start, tensor_nbytes(type_, shape))
        return decoded(raw, type_, shape[-1]).reshape(shape)
