"""The loss curve as SVG."""

import re
from collections.abc import Sequence
from typing import Any
from xml.etree import ElementTree

Curve = Sequence[tuple[int, float]]
POINTS = 500  # a curve of more steps is drawn as the means of so many stretches


def loss_svg(losses: Curve, evaluations: Curve = (), title: str = "Loss") -> bytes:
    """A chart of (step, training loss) and (step, validation loss); stands alone, no scripts."""
    chart = new_chart(
        "XY",
        ("#7aa6c2", "#c0392b"),
        title=title,
        x_title="step",
        y_title="mean loss of trained tokens",
        dots_size=2,
        no_data_text="no step yet",
        value_formatter=lambda y: f"{y:.4g}",
        x_value_formatter=lambda x: f"{x:.0f}",
    )
    chart.add("training", _thinned(losses), show_dots=len(losses) == 1)
    if evaluations:
        chart.add("validation", list(evaluations))
    return standalone(chart, "loss")


def new_chart(kind: str, colors: Sequence[str], title: str, **options: Any) -> Any:
    """A pygal chart of class `kind` as all of ours look."""
    import pygal

    style = pygal.style.CleanStyle(
        colors=tuple(colors),
        font_family="sans-serif",
        background="white",
        plot_background="white",
        guide_stroke_color="#dddddd",
        major_guide_stroke_color="#cccccc",
    )
    # Control characters and halves of surrogate pairs cannot stand in XML, not even escaped.
    options["title"] = re.sub(r"[^\t\n -\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "\ufffd", title)
    common = {"width": 900, "height": 480, "legend_at_bottom": True}
    return getattr(pygal, kind)(style=style, js=[], **{**common, **options})


def standalone(chart: Any, name: str) -> bytes:
    """A chart as SVG without scripts; `name` takes the place of an identity that would be random,
    and comments, in which today's date stands, go: the same numbers always give the same bytes.
    """
    chart.uuid = name
    root = chart.render_tree()
    for parent in list(root.iter()):
        for child in list(parent):
            if not isinstance(child.tag, str) or child.tag.endswith("script"):
                parent.remove(child)
    return ElementTree.tostring(root, encoding="utf-8", xml_declaration=True)


def _thinned(curve: Curve) -> list[tuple[float, float]]:
    """At most `POINTS` points: the mean step and loss of stretches of equal length."""
    n = -(-len(curve) // POINTS)
    parts = [curve[i : i + n] for i in range(0, len(curve), n or 1)]
    return [(sum(x for x, _ in p) / len(p), sum(y for _, y in p) / len(p)) for p in parts]
