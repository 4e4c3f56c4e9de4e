"""The loss curve as SVG."""

from collections.abc import Sequence
from xml.etree import ElementTree

Curve = Sequence[tuple[int, float]]
POINTS = 500  # a curve of more steps is drawn as the means of so many stretches


def loss_svg(losses: Curve, evaluations: Curve = (), title: str = "Loss") -> bytes:
    """A chart of (step, training loss) and (step, validation loss); stands alone, no scripts."""
    import pygal

    style = pygal.style.CleanStyle(
        colors=("#7aa6c2", "#c0392b"),
        font_family="sans-serif",
        background="white",
        plot_background="white",
        guide_stroke_color="#dddddd",
        major_guide_stroke_color="#cccccc",
    )
    chart = pygal.XY(
        style=style,
        js=[],
        title=title,
        x_title="step",
        y_title="mean loss of trained tokens",
        width=900,
        height=480,
        dots_size=2,
        legend_at_bottom=True,
        no_data_text="no step yet",
        value_formatter=lambda y: f"{y:.4g}",
        x_value_formatter=lambda x: f"{x:.0f}",
    )
    chart.add("training", _thinned(losses), show_dots=len(losses) == 1)
    if evaluations:
        chart.add("validation", list(evaluations))
    chart.uuid = "loss"  # else random, and the same curve would never give the same bytes
    root = chart.render_tree()
    for parent in list(root.iter()):
        for script in [child for child in parent if str(child.tag).endswith("script")]:
            parent.remove(script)
    return ElementTree.tostring(root, encoding="utf-8", xml_declaration=True)


def _thinned(curve: Curve) -> list[tuple[float, float]]:
    """At most `POINTS` points: the mean step and loss of stretches of equal length."""
    n = -(-len(curve) // POINTS)
    parts = [curve[i : i + n] for i in range(0, len(curve), n or 1)]
    return [(sum(x for x, _ in p) / len(p), sum(y for _, y in p) / len(p)) for p in parts]
