"""The layers of a model by its file's numbers: whom each sees and how its positions turn."""

from collections.abc import Mapping

import numpy as np

from wgtrain.files.architecture import Architecture, Values
from wgtrain.files.magnitudes import longrope_magnitude, yarn_magnitude
from wgtrain.model.layers import Layer, QueryScale, Rope
from wgtrain.model.rope import LongRope, Yarn

DIVISORS = "rope_freqs.weight"
SHORT, LONG = "rope_factors_short.weight", "rope_factors_long.weight"


def make_layers(
    row: Architecture, values: Values, factors: Mapping[str, np.ndarray]
) -> tuple[Layer, ...]:
    """Every layer of a model; `factors`: the content of `NUMBERS` of its file."""
    plain = Rope(float(values["rope_theta"]), values["rotary"], row.rope_interleaved)
    whole = _stretched(plain, values, factors)
    local = Rope(float(values["local_theta"]), plain.rotary, plain.interleaved)
    if not row.local_rope_plain:
        local = _stretched(local, values, factors)
    still = _without_rope(row, values)
    grown = None
    if values.get("query_scale"):
        grown = QueryScale(float(values["query_scale"]), values["rope_context"])
    layers = []
    for il, windowed in enumerate(_windowed(row, values)):
        window = values["window"] if windowed else 0
        rope = None if il in still else local if window else whole
        layers.append(Layer(rope, window, float(values.get("softcap", 0.0)), grown))
    return tuple(layers)


def _stretched(rope: Rope, values: Values, factors: Mapping[str, np.ndarray]) -> Rope:
    """A rotation for rows longer than the model was first trained for."""
    kind, factor = values["rope_scaling"], float(values["rope_factor"] or 1.0)
    divisors = _numbers(factors.get(DIVISORS))
    scaling: Yarn | LongRope | None = None
    attention = float(values["rope_attention"] or 1.0)
    if SHORT in factors and LONG in factors and not divisors:
        context = values["rope_context"]
        scaling = LongRope(_numbers(factors[SHORT]), _numbers(factors[LONG]), context)
        if not values["rope_attention"]:
            attention = longrope_magnitude(values["context"] / context, context)
    elif kind == "yarn":
        magnitude = values["yarn_attention"] or None
        if not magnitude and values.get("yarn_log"):
            magnitude = yarn_magnitude(factor, 1.0, float(values["yarn_log"]))
        scaling = Yarn(
            factor,
            values["rope_context"],
            float(values["yarn_fast"]),
            float(values["yarn_slow"]),
            values.get("yarn_truncate", True),
            magnitude,
        )
    linear = factor if kind == "linear" else 1.0
    return Rope(rope.theta, rope.rotary, rope.interleaved, divisors, linear, scaling, attention)


def _numbers(array: np.ndarray | None) -> tuple[float, ...]:
    return () if array is None else tuple(map(float, array.ravel().tolist()))


def _without_rope(row: Architecture, values: Values) -> set[int]:
    """The layers whose positions turn nothing."""
    n_layer = values["n_layer"]
    if "no_rope" in values:
        return set(values["no_rope"])
    if not values.get("finetuned", True):
        return set(range(n_layer))
    return {il for il in range(n_layer) if row.no_rope_every and (il + 1) % row.no_rope_every == 0}


def _windowed(row: Architecture, values: Values) -> list[bool]:
    """Which layers have a window, where the model has any."""
    if "windowed" in values:
        return list(values["windowed"])
    every = values.get("window_pattern", row.window_pattern) or values["n_layer"] + 1
    return [il % every < every - 1 for il in range(values["n_layer"])]
