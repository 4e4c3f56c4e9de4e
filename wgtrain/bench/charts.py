"""Records as pictures: SVG that stands alone."""

import math
from collections.abc import Callable

from wgtrain.bench.measure import Record
from wgtrain.bench.tables import number
from wgtrain.train.chart import new_chart, standalone

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
    """Growth of time, and of the plan's memory, along each axis; both scales are logarithmic."""
    return {
        "": _growth(record, "time", lambda point: point["seconds"]["median"]),
        "-memory": _growth(record, "memory of the plan", lambda point: point["plan"]),
    }


def _growth(record: Record, what: str, of: Callable[[Record], float]) -> bytes:
    curves = record["curves"]
    farthest = 1.0
    chart = new_chart(
        "XY",
        (*_COLORS[: len(curves)], _GREY),
        title=f"{record['shape']['name']}: growth of {what}",
        x_title="times the smallest",
        y_title=f"{what}, times that of the smallest",
        x_value_formatter=lambda x: number(2**x),
        value_formatter=lambda y: number(2**y),
        dots_size=3,
    )
    for curve in curves:
        points = [(point["value"], of(point)) for point in curve["points"]]
        first_x, first_y = points[0]
        line = [(math.log2(x / first_x), math.log2(y / first_y)) for x, y in points]
        farthest = max(farthest, line[-1][0])
        chart.add(curve["what"], line)
    chart.add("linear", [(0.0, 0.0), (farthest, farthest)], show_dots=False)
    chart.x_labels = list(range(int(farthest) + 1))
    chart.y_labels = list(range(int(farthest) + 1))
    return standalone(chart, f"scaling-{what.split()[0]}")


_CHARTS: dict[str, Callable[[Record], dict[str, bytes]]] = {
    "step": _step,
    "kernels": _kernels,
    "scaling": _scaling,
}
