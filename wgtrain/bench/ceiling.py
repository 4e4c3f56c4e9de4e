"""What an adapter can do at most, measured: its best product of a sweep over all variants, for each
weight type, and a copy.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from wgtrain.bench.cases import Case, Setting, copy_case, product_cases
from wgtrain.bench.measure import Record, spread
from wgtrain.bench.runner import Runner, interleaved
from wgtrain.bench.shapes import Shape
from wgtrain.engine.candidates import candidates
from wgtrain.engine.tuning import Choice, Tuning
from wgtrain.engine.weight import FORMATS
from wgtrain.errors import ShaderError
from wgtrain.gpu import Device
from wgtrain.model.weights import stored_type

_EDGES = (512, 1024, 2048, 4096)
_LONG_ENOUGH = 0.02  # seconds of one product: short ones measure what surrounds them
_SLOW = 1.3  # a variant so much slower at first sight is not timed again
_COPY = {"CPU": 64 << 20}
_COPY_GPU = 256 << 20  # more than any cache holds


def product_ceilings(
    device: Device,
    tuning: Tuning,
    types: Sequence[str],
    precision: str,
    rounds: int,
    advance: Callable[[str], None],
) -> dict[str, Case]:
    """The fastest product of each weight type on this adapter, as a case to be timed again.

    `types` are those in GPU memory.
    """
    edge = _edge(device, tuning, precision)
    found = {}
    for type_ in types:
        advance(f"ceiling of {type_}")
        cases = _variants(device, tuning, type_, precision, edge)
        once = [_once(case, device) for case in cases]
        fast = [c for c, s in zip(cases, once, strict=True) if s < _SLOW * min(once)]
        seconds = interleaved(fast, device, rounds)
        found[type_] = min(zip(map(min, seconds), fast, strict=True), key=lambda pair: pair[0])[1]
    return found


def _once(case: Case, device: Device) -> float:
    """Seconds of a variant at first sight; infinite for one that this driver does not compile."""
    try:
        with Runner(case, device) as runner:
            return runner.sample()
    except ShaderError:
        return math.inf


def _edge(device: Device, tuning: Tuning, precision: str) -> int:
    """The smallest edge at which a product takes long enough, or the largest."""
    for edge in _EDGES[:-1]:
        (case,) = _variants(device, tuning, stored_type("F32", precision), precision, edge)[:1]
        with Runner(case, device) as runner:
            if runner.sample() >= _LONG_ENOUGH:
                return edge
    return _EDGES[-1]


def _variants(device: Device, tuning: Tuning, type_: str, precision: str, edge: int) -> list[Case]:
    """Square products of one weight type: every candidate of both directions."""
    found = []
    shape = _square(edge)
    setting = Setting(shape, device.limits, tuning, precision)
    library = FORMATS[type_].library
    operands = "" if precision == "f32" else f" {precision}"
    for direction, number in (("nt", 0), ("nn", 1)):
        family = f"{direction}{operands}/{library}"
        choices = [tuning.choice(family), *candidates(family, device)]
        for choice in dict.fromkeys(choices):
            only = Tuning({**tuning.table, family: choice}, tuning.origin)
            groups = list(product_cases(replace(setting, tuning=only), [type_]))
            (case,) = groups[number]
            found.append(replace(case, group=family, what=_described(choice, edge)))
    return found


def _square(edge: int) -> Shape:
    """One linear, edge x edge, of `edge` tokens."""
    return Shape("square", "llama", edge, 1, 1, 1, edge, edge, 4, length=edge)


def _described(choice: Choice, edge: int) -> str:
    constants = ", ".join(f"{name} {value}" for name, value in choice.constants)
    return f"{choice.kernel}{f' ({constants})' if constants else ''}, {edge}^3"


def copy_ceiling(device: Device) -> Case:
    """The copy."""
    return copy_case(_COPY.get(device.info.type, _COPY_GPU), device.limits)


def facts(case: Case, seconds: Sequence[float]) -> Record:
    """A ceiling as a record says it, in operations or bytes a second."""
    found: dict[str, Any] = {"group": case.group, "what": case.what, "type": case.type}
    return {
        **found,
        "per_second": case.work / spread(seconds)["median"],
        "best_per_second": case.work / min(seconds),
    }
