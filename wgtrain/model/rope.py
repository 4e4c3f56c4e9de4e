"""How positions turn queries and keys: rotary embeddings and what stretches them to long rows.

Formulas are computed in float64 and rounded once. They are those of transformers'
modeling_rope_utils, which is the judge where llama.cpp differs.
"""

import math
from dataclasses import dataclass

import numpy as np

from wgtrain.files.architecture import MAX_COUNT
from wgtrain.files.gguf_parser import F32_MAX
from wgtrain.files.magnitudes import yarn_magnitude


@dataclass(frozen=True)
class Yarn:
    """YaRN: frequencies that turn more than `beta_fast` times within the original `context` stay,
    those that turn less than `beta_slow` times are divided by `factor`, between lies a ramp, whose
    ends are whole pairs if `truncate`. `attention_factor`: what cos and sin are multiplied by,
    0.1 ln(factor) + 1 if None.
    """

    factor: float
    context: int
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    attention_factor: float | None = None

    @property
    def magnitude(self) -> float:
        """What cos and sin are multiplied by."""
        if self.attention_factor is not None:
            return self.attention_factor
        return yarn_magnitude(self.factor)

    def apply(self, frequency: np.ndarray, theta: float, rotary: int) -> np.ndarray:
        """The frequencies of each pair, of those of `rotary` values by `theta` > 1."""

        def pair(turns: float) -> float:
            return rotary * math.log(self.context / (2 * math.pi * turns)) / (2 * math.log(theta))

        low, high = pair(self.beta_fast), pair(self.beta_slow)
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, rotary - 1)
        if low == high:
            high += 0.001
        ramp = np.clip((np.arange(rotary // 2) - low) / (high - low), 0, 1)
        return (1 - ramp) * frequency + ramp * frequency / self.factor


@dataclass(frozen=True)
class LongRope:
    """LongRoPE: frequencies are divided by `short`, or by `long` where a row is longer than the
    original `context`; one value a pair.
    """

    short: tuple[float, ...]
    long: tuple[float, ...]
    context: int

    def divisors(self, length: int) -> tuple[float, ...]:
        """For rows of up to `length` tokens."""
        return self.long if length > self.context else self.short


@dataclass(frozen=True)
class Rope:
    """A rotary embedding: the first `rotary` values of a head turn in pairs, by angles
    position * theta^(-2 pair / rotary). `interleaved`: pairs are neighbours, else half of
    `rotary` apart.

    Frequencies are divided by `divisors`, one a pair, and by `linear`; then `scaling` changes
    them. cos and sin are multiplied by `attn_factor`.
    """

    theta: float
    rotary: int
    interleaved: bool
    divisors: tuple[float, ...] = ()
    linear: float = 1.0
    scaling: Yarn | LongRope | None = None
    attn_factor: float = 1.0

    def frequencies(self, length: int) -> np.ndarray:
        """Angles a position, float64 (rotary / 2,), for rows of up to `length` tokens."""
        frequency = self.theta ** (-np.arange(0, self.rotary, 2) / self.rotary)
        if self.divisors:
            frequency = frequency / np.array(self.divisors)
        frequency = frequency / self.linear
        if isinstance(self.scaling, LongRope):
            return frequency / np.array(self.scaling.divisors(length))
        if self.scaling:
            return self.scaling.apply(frequency, self.theta, self.rotary)
        return frequency

    @property
    def usable(self) -> bool:
        """Whether its numbers, which may come from a file, make frequencies and factors above 0,
        one for each pair, that f32 holds.
        """
        shape = (self.rotary // 2,)
        try:
            with np.errstate(all="ignore"):
                tables = [self.frequencies(length) for length in (1, 1 << 40)]
                tables.append(np.full(shape, self.magnitude))
                finite = all(np.isfinite(table.astype(np.float32)).all() for table in tables)
                above = all((table > 0).all() for table in tables)
        except (ArithmeticError, ValueError):
            return False
        return finite and above and all(table.shape == shape for table in tables)

    @property
    def magnitude(self) -> float:
        """What cos and sin are multiplied by."""
        own = self.scaling.magnitude if isinstance(self.scaling, Yarn) else 1.0
        return self.attn_factor * own

    def table(self, positions: int, length: int = 0) -> np.ndarray:
        """cos and sin of every angle, float32 (positions, rotary / 2, 2), computed in float64;
        `length` as of `frequencies`, 0 = `positions`.
        """
        angle = np.arange(positions)[:, None] * self.frequencies(length or positions)
        return (self.magnitude * np.stack([np.cos(angle), np.sin(angle)], -1)).astype(np.float32)


@dataclass(frozen=True)
class QueryScale:
    """Queries are multiplied by 1 + beta ln(1 + floor(position / context))."""

    beta: float
    context: int

    @property
    def usable(self) -> bool:
        """Whether f32 holds the factor of every position that there may be."""
        return bool(1 + self.beta * np.log1p(MAX_COUNT // self.context) <= F32_MAX)

    def table(self, positions: int) -> np.ndarray:
        """The factor of every position, float32 (positions,), computed in float64."""
        return (1 + self.beta * np.log1p(np.arange(positions) // self.context)).astype(np.float32)
