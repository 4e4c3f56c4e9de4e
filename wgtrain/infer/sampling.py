"""Which token comes next: how it is drawn from the logits, and how likely it was.

The filters and their order are those of transformers: repetition penalty, temperature, top-k,
top-p, min-p, each over what the one before left. (llama.cpp's own order divides by the temperature
last, so that top-p and min-p see the model's own distribution there; at temperature 1 the two are
alike.)
"""

import math
import sys
from collections.abc import Iterable
from dataclasses import dataclass, fields

import numpy as np

from wgtrain.errors import NonFiniteError, OptionError
from wgtrain.files.source import shown
from wgtrain.random import key, stream

# What each setting may be: least and most, both allowed, and in words.
_RANGES: dict[str, tuple[float, float, str]] = {
    "temperature": (0.0, sys.float_info.max, "a number from 0 on; 0 = greedy"),
    "top_k": (0, math.inf, "a whole number from 0 on; 0 = off"),
    "top_p": (0.0, 1.0, "a number from 0 to 1; 1 = off"),
    "min_p": (0.0, 1.0, "a number from 0 to 1; 0 = off"),
    # Beyond these a logit may become one that float64 does not hold.
    "repeat_penalty": (1e-200, 1e200, "a number above 0, from 1e-200 to 1e+200; 1 = off"),
    "seed": (-(1 << 63), (1 << 64) - 1, "a whole number of 64 bits"),
}


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn; OptionError for a value that is out of range.

    `temperature` divides the logits, 0 takes the likeliest token (the lowest id of equals); `top_k`
    leaves that many tokens and those as likely as the last of them; `top_p` the likeliest ones that
    together have this probability, at least one; `min_p` those with this share of the likeliest
    one's. `repeat_penalty` divides the logits above 0 of all tokens that stand in the prompt or
    the answer so far, once for each token, and multiplies those below.

    `seed` and the number of the token in the answer decide a draw, and nothing else: not what runs
    beside it, nor where.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repeat_penalty: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            least, most, allowed = _RANGES[field.name]
            kind = int if field.type in (int, "int") else int | float
            fine = isinstance(value, kind) and not isinstance(value, bool)
            if not fine or not least <= value <= most:
                raise OptionError(f"{field.name} = {shown(value)}: allowed is {allowed}")


class Sampler:
    """Draws the tokens of one answer, in order. `prompt`: the ids that it follows."""

    def __init__(self, sampling: Sampling, prompt: Iterable[int]) -> None:
        self._how = sampling
        self._seen = dict.fromkeys(prompt) if sampling.repeat_penalty != 1 else {}
        self._n = 0

    def draw(self, logits: np.ndarray) -> int:
        """The next token by its logits, float32 (V,); NonFiniteError where these are no numbers."""
        check_finite(logits, self._n)
        token = self._draw(logits)
        if self._how.repeat_penalty != 1:
            self._seen[token] = None
        self._n += 1
        return token

    def _draw(self, logits: np.ndarray) -> int:
        how = self._how
        if self._seen:
            logits = penalised(logits, list(self._seen), how.repeat_penalty)
        if how.temperature == 0:
            return int(logits.argmax())
        ids, weights = kept(logits, how)
        sums = weights.cumsum()
        place = sums.searchsorted(uniform(how.seed, self._n) * sums[-1], "right")
        chosen = int(min(place, len(weights) - 1))
        return chosen if ids is None else int(ids[chosen])


def uniform(seed: int, n: int) -> float:
    """The random number of token `n` of an answer, a multiple of 2^-53 in [0, 1)."""
    high, low = stream(key(seed, "sampling", n), 2).tolist()
    return float(((high >> 5) << 26 | low >> 6) * 2.0**-53)


def check_finite(logits: np.ndarray, n: int) -> None:
    """NonFiniteError for logits with which no token can be chosen; `n`: which of the answer."""
    finite = np.isfinite(logits)
    if not finite.all():
        first = int(np.flatnonzero(~finite)[0])
        raise NonFiniteError(
            f"token {n + 1} of the answer: {int((~finite).sum())} of {len(logits)} logits are not "
            f"finite, the first one {logits[first]} of token {first}: the model, or an adapter "
            "upon it, is broken, or too strong"
        )


def penalised(logits: np.ndarray, seen: list[int], penalty: float) -> np.ndarray:
    """The logits, float64 (V,), with those of `seen` tokens made less likely."""
    out = logits.astype(np.float64)
    theirs = out[seen]
    out[seen] = np.where(theirs < 0, theirs * penalty, theirs / penalty)
    return out


def kept(logits: np.ndarray, how: Sampling) -> tuple[np.ndarray | None, np.ndarray]:
    """The ids that the filters leave, ascending (None = all), and their weights, float64: their
    probabilities but for a common factor.
    """
    ids = None
    if 0 < how.top_k < len(logits):
        last = len(logits) - how.top_k
        ids = np.flatnonzero(logits >= np.partition(logits, last)[last])
        logits = logits[ids]
    with np.errstate(over="ignore", under="ignore"):
        weights = np.exp((logits - logits.max().astype(np.float64)) / how.temperature)
    keep = None
    if how.top_p < 1:
        keep = nucleus(weights, how.top_p)
    if how.min_p > 0:
        likely = weights >= how.min_p
        keep = likely if keep is None else keep & likely
    if keep is None:
        return ids, weights
    return (np.flatnonzero(keep) if ids is None else ids[keep]), weights[keep]


def nucleus(weights: np.ndarray, top_p: float) -> np.ndarray:
    """Which weights are in the smallest set of the largest ones that has `top_p` of their sum,
    bool (n,); of equal ones the first.
    """
    rest = (1 - top_p) * weights.sum()
    # All below rest / n together have less than `rest`, so that none of them is in the set.
    likely = weights >= rest / len(weights)
    low = np.sort(weights[likely])
    sums = low.cumsum() + weights[~likely].sum()
    cut = min(int(sums.searchsorted(rest, "right")), len(low) - 1)
    least = low[cut]
    keep: np.ndarray = weights > least
    equals = np.flatnonzero(weights == least)
    keep[equals[: len(low) - cut - int(keep.sum())]] = True
    return keep


def log_probability(
    logits: np.ndarray, token: int, top: int
) -> tuple[float, tuple[tuple[int, float], ...]]:
    """The log-probability of a token by the model's own logits, before any filter, in float64; and
    those of the `top` likeliest tokens, (id, log-probability), the likeliest first.
    """
    least = float(logits.max())
    norm = least + math.log(float(np.exp(logits - np.float64(least)).sum()))
    likely = likeliest(logits, top)
    return float(logits[token]) - norm, tuple((i, float(logits[i]) - norm) for i in likely)


def likeliest(logits: np.ndarray, n: int) -> list[int]:
    """The ids of the `n` largest logits, the largest first, of equal ones the lowest id."""
    if n <= 0:
        return []
    last = max(len(logits) - n, 0)
    ids = np.flatnonzero(logits >= np.partition(logits, last)[last])
    order = np.argsort(-logits[ids], kind="stable")[:n]
    found: list[int] = ids[order].tolist()
    return found
