"""Records as pictures: SVG that stands alone."""

import math
from collections.abc import Callable

from wgtrain.bench.measure import Record
from wgtrain.bench.tables import number
from wgtrain.runs.chart import new_chart, standalone

_COLORS = ("#7aa6c2", "#c0392b", "#5b8c5a", "#d9a441", "#7d5ba6", "#444444")
_GREY = "#bbbbbb"


def draw(record: Record) -> dict[str, bytes]:
    """The charts of a record, by what is put behind a file's name; the first has nothing."""
    return _CHARTS[record["bench"]](record)


def _step(record: Record) -> dict[str, bytes]:
    """Time by kernel, largest first."""
    rows = record["kernels"][:12]
    chart = new_chart(
        "HorizontalBar",
        _COLORS,
        title=f"{record['shape']['name']}: milliseconds of a step by kernel",
        show_legend=False,
        value_formatter=number,
        print_values=True,
        height=80 + 32 * len(rows),
    )
    chart.x_labels = [row["kernel"] for row in reversed(rows)]
    chart.add("ms", [1e3 * row["seconds"] for row in reversed(rows)])
    return {"": standalone(chart, "step")}


def _decode(record: Record) -> dict[str, bytes]:
    """Tokens a second under each number of adapters, and elsewhere."""
    found = {f"{x['adapters']} adapters": x["tokens_per_second"] for x in record["stacks"]}
    found |= {x["name"]: x["tokens_per_second"] for x in record["vs"]}
    chart = new_chart(
        "HorizontalBar",
        _COLORS,
        title=f"{record['shape']['name']}: tokens a second",
        show_legend=False,
        value_formatter=number,
        print_values=True,
        height=80 + 32 * len(found),
    )
    chart.x_labels = list(found)[::-1]
    chart.add("tokens a second", list(found.values())[::-1])
    return {"": standalone(chart, "decode")}


def _kernels(record: Record) -> dict[str, bytes]:
    """Rates of the products by weight type, as shares of the ceiling."""
    found = [row for row in record["kernels"] if row["unit"] == "FLOP" and row["type"]]
    labels = list(dict.fromkeys(_label(row) for row in found))
    types = list(dict.fromkeys(row["type"] for row in found))
    chart = new_chart(
        "HorizontalBar",
        _COLORS,
        title="Products, GFLOP/s by weight type",
        value_formatter=number,
        height=120 + 14 * len(labels) * (len(types) + 1),
    )
    chart.x_labels = labels[::-1]
    for type_ in types:
        rates = {_label(row): row["per_second"] / 1e9 for row in found if row["type"] == type_}
        chart.add(type_, [rates.get(label) for label in reversed(labels)])
    return {"": standalone(chart, "kernels")}


def _label(row: Record) -> str:
    return f"{row['shape']} {row['group']} {row['what']}"


def _scaling(record: Record) -> dict[str, bytes]:
    """Time, and the plan's memory, along each axis: a pair of charts for each unit."""
    units = list(dict.fromkeys(curve["unit"] for curve in record["curves"]))
    found = {}
    for unit in units:
        curves = [curve for curve in record["curves"] if curve["unit"] == unit]
        suffix = f"-{unit}" if len(units) > 1 else ""
        times: dict[str, _Line] = {}
        for curve in curves:
            times[curve["what"]] = _line(curve, lambda p: p["seconds"]["median"])
            if unit == "tokens":
                times[f"attention of {curve['what']}"] = _line(curve, lambda p: p["attention"])
        memory = {curve["what"]: _line(curve, lambda p: p["plan"] / 2**20) for curve in curves}
        name = record["shape"]["name"]
        found[suffix] = _growth(f"{name}: time of a step", unit, "seconds", times)
        found[f"{suffix}-memory"] = _growth(f"{name}: memory of the plan", unit, "MiB", memory)
    return found


_Line = list[tuple[float, float]]


def _line(curve: Record, of: Callable[[Record], float]) -> _Line:
    """Its points, both numbers as logarithms."""
    points = ((point["value"], of(point)) for point in curve["points"])
    return [(math.log2(x), math.log2(y)) for x, y in points if y > 0]


def _growth(title: str, unit: str, what: str, lines: dict[str, _Line]) -> bytes:
    """Both scales are logarithmic; grey is what grows in proportion, from the first point."""
    points = [point for line in lines.values() for point in line]
    (x, y), last = next(iter(lines.values()))[0], max(x for x, _ in points)
    ends = [y for _, y in points] + [y + last - x]
    chart = new_chart(
        "XY",
        (*_COLORS[: len(lines)], _GREY),
        title=title,
        x_title=unit,
        y_title=what,
        x_value_formatter=lambda x: f"{2**x:,.0f}",
        value_formatter=lambda y: number(2**y),
        dots_size=3,
    )
    for name, line in lines.items():
        chart.add(name, line)
    chart.add("in proportion", [(x, y), (last, y + last - x)], show_dots=False)
    chart.x_labels = sorted({x for x, _ in points})
    chart.y_labels = list(range(math.floor(min(ends)), math.ceil(max(ends)) + 1))
    return standalone(chart, f"scaling-{unit}-{what}")


def _adapters(record: Record) -> dict[str, bytes]:
    """What each change takes."""
    rows = record["changes"]
    chart = new_chart(
        "HorizontalBar",
        _COLORS,
        title=f"{record['shape']['name']}: milliseconds of a change of adapters",
        show_legend=False,
        value_formatter=number,
        print_values=True,
        height=80 + 32 * len(rows),
    )
    chart.x_labels = [row["what"] for row in reversed(rows)]
    chart.add("ms", [1e3 * row["seconds"]["median"] for row in reversed(rows)])
    return {"": standalone(chart, "adapters")}


_CHARTS: dict[str, Callable[[Record], dict[str, bytes]]] = {
    "step": _step,
    "kernels": _kernels,
    "scaling": _scaling,
    "decode": _decode,
    "adapters": _adapters,
}
