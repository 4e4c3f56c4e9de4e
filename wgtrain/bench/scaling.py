"""How time and memory of a step grow with one size of it at a time."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

from wgtrain.bench.flops import step_flops
from wgtrain.bench.measure import Record, record, spread
from wgtrain.bench.shapes import Shape
from wgtrain.bench.step import Stepper, by_kernel, sample
from wgtrain.bench.tuned import AUTO
from wgtrain.errors import OptionError

_SHORT = 64  # tokens of a short row
_TOKENS = (64, 128, 256, 512, 1024, 2048, 4096)


@dataclass(frozen=True)
class Axis:
    """What grows, in which unit, and its values; axes of one unit share a chart."""

    what: str
    unit: str
    values: tuple[int, ...]


# "tokens" and "row" reach the same T, by many rows and by one.
AXES = {
    "tokens": Axis(f"tokens, in rows of {_SHORT}", "tokens", _TOKENS),
    "row": Axis("tokens, in one row", "tokens", _TOKENS),
    "rank": Axis("rank", "rank", (4, 8, 16, 32, 64, 128)),
    "layers": Axis("layers", "layers", (1, 2, 4, 8, 16)),
    "rows": Axis("rows of the shape's length", "rows", (1, 2, 4, 8, 16)),
    "vocabulary": Axis("vocabulary", "vocabulary", (4000, 8000, 16_000, 32_000, 64_000, 128_000)),
}


def attention_seconds(stepper: Stepper) -> float:
    """What attention, forward and backward, takes on the GPU in one step."""
    found = by_kernel(stepper)
    return float(sum(row["seconds"] for row in found if row["kernel"].startswith("attention")))


def check_axes(axes: Sequence[str]) -> list[str]:
    """The axes, all where none is named; OptionError for an unknown one."""
    for axis in axes:
        if axis not in AXES:
            raise OptionError(f"axis = {axis!r}: allowed are {', '.join(AXES)}")
    return list(axes or AXES)


def points(shape: Shape, axis: str, most: int | None) -> Iterator[tuple[int, Shape]]:
    """(value, shape) along an axis, up to `most`."""
    for value in AXES[axis].values:
        if most is not None and value > most:
            continue
        if axis == "tokens":
            yield value, replace(shape, rows=value // _SHORT, length=_SHORT)
        elif axis == "row":
            yield value, replace(shape, rows=1, length=value)
        else:
            changed: dict[str, Any] = {axis: value}
            yield value, replace(shape, **changed)


def measure_scaling(
    shape: Shape,
    axes: Sequence[str],
    *,
    command: str,
    rounds: int,
    most: int | None = None,
    adapter_index: int | None = None,
    mode: str = AUTO,
    advance: Callable[[str], None],
) -> Record:
    """The record of `wgtrain bench scaling`."""
    found: Record = {}
    curves = []
    for axis in check_axes(axes):
        opened: list[tuple[int, Stepper, float]] = []
        with ExitStack() as stack:
            for value, point in points(shape, axis, most):
                advance(f"{axis} {value}")
                stepper = stack.enter_context(Stepper(point, adapter_index, mode))
                stepper.steps(1)  # compiles
                opened.append((value, stepper, stepper.steps(1)["seconds"]))
            if not opened:
                raise OptionError(f"most = {most}: axis {axis} begins at {AXES[axis].values[0]}")
            found = found or record("scaling", command, opened[0][1].model.device)
            # In turn, so that a slow phase of the machine hits all of them.
            taken = [
                [sample(stepper, alone)["seconds"] for _, stepper, alone in opened]
                for _ in range(rounds)
            ]
            rows = [
                {
                    "value": value,
                    "tokens": stepper.shape.tokens,
                    "seconds": spread(seconds),
                    "attention": attention_seconds(stepper),
                    "flops": sum(step_flops(stepper.shape).values()),
                    "weights": stepper.model.weights.nbytes,
                    "plan": stepper.learner.nbytes,
                }
                for (value, stepper, _), seconds in zip(
                    opened, zip(*taken, strict=True), strict=True
                )
            ]
        known = AXES[axis]
        curves.append({"axis": axis, "what": known.what, "unit": known.unit, "points": rows})
    return {**found, "shape": shape.facts(), "curves": curves}
