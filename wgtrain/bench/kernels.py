"""Single kernels at a shape's sizes, beside this adapter's best product and copy.

Every sample of a kernel has one of the ceiling beside it, taken in the same round.
"""

from collections.abc import Callable, Sequence

from wgtrain.bench import cases
from wgtrain.bench.ceiling import copy_ceiling, facts, product_ceilings
from wgtrain.bench.measure import Record, ratios, record, spread
from wgtrain.bench.runner import interleaved
from wgtrain.bench.shapes import TYPES, Shape, find_shape
from wgtrain.bench.tuned import AUTO, open_device, tuning_of
from wgtrain.engine.tables import to_json
from wgtrain.engine.tuning import default_tuning
from wgtrain.files import BLOCKS
from wgtrain.gpu import Device
from wgtrain.model.weights import check_precision, stored_type

Advance = Callable[[str], None]


def kinds(types: Sequence[str], precision: str) -> list[str]:
    """The weight types as which these, or all where there are none, lie on the GPU."""
    return list(dict.fromkeys(stored_type(type_, precision) for type_ in types or TYPES))


def parts(shapes: Sequence[Shape], types: Sequence[str], precision: str) -> int:
    """How often `measure_kernels` advances."""
    groups = [3 * len(cases.matrices(shape)) + 3 for shape in shapes]
    return len(kinds(types, precision)) + sum(groups)


def measure_kernels(
    shapes: Sequence[Shape],
    types: Sequence[str],
    *,
    precision: str = "f32",
    command: str,
    rounds: int,
    adapter_index: int | None = None,
    mode: str = AUTO,
    advance: Advance,
) -> Record:
    """The record of `wgtrain bench kernels`; with no `types`, of all that a shape's rows can be."""
    for shape in shapes:
        for type_ in types:
            find_shape(shape.name, type=type_)  # refuses what its rows cannot be
    types = kinds(types, precision)
    device = open_device(adapter_index)
    try:
        check_precision(precision, device)
        best = product_ceilings(device, default_tuning(device), types, precision, rounds, advance)
        found = {**record("kernels", command, device), "precision": precision}
        ceilings: dict[str, list[float]] = {name: [] for name in (*types, "copy")}
        best["copy"] = copy_ceiling(device)
        rows, tunings = [], {}
        for shape in shapes:
            fitting = [t for t in types if not any(n % BLOCKS[t].size for n in _lengths(shape))]
            tuning = tuning_of(shape, fitting, device, mode, precision)
            setting = cases.Setting(shape, device.limits, tuning, precision)
            tunings[shape.name] = {"origin": tuning.origin, "table": to_json(tuning)}
            rows += _shape_rows(setting, fitting, device, best, ceilings, rounds, advance)
        found["ceilings"] = [
            facts(case, ceilings[name]) for name, case in best.items() if ceilings[name]
        ]
        found["tuning"] = tunings
        found["kernels"] = rows
        return found
    finally:
        device.close()


def _shape_rows(
    setting: cases.Setting,
    types: Sequence[str],
    device: Device,
    best: dict[str, cases.Case],
    ceilings: dict[str, list[float]],
    rounds: int,
    advance: Advance,
) -> list[Record]:
    shape = setting.shape
    groups = [
        *cases.product_cases(setting, types),
        *cases.lora_cases(setting),
        cases.attention_cases(setting),
        cases.loss_cases(setting, types),
        cases.stream_cases(setting),
    ]
    rows = []
    for group in groups:
        advance(f"{shape.name}: {group[0].group}")
        beside = [_ceiling_of(case, types) for case in group]
        references = list(dict.fromkeys(beside))
        taken = interleaved([best[name] for name in references] + group, device, rounds)
        times = dict(zip(references, taken, strict=False))
        for name in references:
            ceilings[name] += times[name]
        own = taken[len(references) :]
        plain = [seconds for case, seconds in zip(group, own, strict=True) if case.type == "F32"]
        whole = {
            case.group: seconds for case, seconds in zip(group, own, strict=True) if not case.window
        }
        for case, name, seconds in zip(group, beside, own, strict=True):
            row = _row(shape, case, name, seconds, best[name], times[name])
            if plain and len(types) > 1 and case.type:
                row["rate_of_f32"] = ratios(plain[0], seconds)
            if case.window:
                row["of_whole_rows"] = ratios(seconds, whole[case.group])
            rows.append(row)
    return rows


def _ceiling_of(case: cases.Case, types: Sequence[str]) -> str:
    """What bounds a case: the copy, or the best product of its weight type, of float32 where it has
    none, or of the first.
    """
    if case.nbytes:
        return "copy"
    return case.type or ("F32" if "F32" in types else types[0])


def _lengths(shape: Shape) -> set[int]:
    """Lengths of the rows of the shape's matrices."""
    return {columns for _, columns in shape.config.matrices().values()}


def _row(
    shape: Shape,
    case: cases.Case,
    ceiling: str,
    seconds: Sequence[float],
    best: cases.Case,
    beside: Sequence[float],
) -> Record:
    shares = [(case.work / a) / (best.work / b) for a, b in zip(seconds, beside, strict=True)]
    return {
        "shape": shape.name,
        "group": case.group,
        "what": case.what,
        "type": case.type,
        "unit": "FLOP" if case.flops else "B",
        "work": case.work,
        "dispatches": len(case.launches),
        "seconds": spread(seconds),
        "per_second": case.work / spread(seconds)["median"],
        "ceiling": ceiling,
        "share_of_ceiling": spread(shares)["median"],
    }
