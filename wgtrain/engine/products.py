"""Products with frozen weights and with small trained matrices, as launches of tuned kernels."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from wgtrain.engine.graph import Graph, Tensor, Window, padded
from wgtrain.engine.trainables import Parameter
from wgtrain.engine.tuning import nn_small, nt_small, tn_small
from wgtrain.engine.weight import Segment, Weight, dense_operands, dense_strides

MOST_FEW = 8  # rows for which a product reads a weight once


@dataclass(frozen=True)
class Rows:
    """The rows of a weight that a product takes: outputs `first`, a multiple of 4, to `first +
    count`.
    """

    first: int
    count: int

    def __post_init__(self) -> None:
        assert self.first % 4 == 0, "its columns of y would not begin at a vec4"

    def within(self, weight: Weight) -> Iterator[tuple[Segment, int, int]]:
        """(segment, row within it, rows) of each part; none crosses a segment."""
        for segment in weight.segments:
            start = max(self.first, segment.first)
            end = min(self.first + self.count, segment.first + segment.rows)
            if start < end:
                yield segment, start - segment.first, end - start


class Fused(NamedTuple):
    """A product of low rank that a base product takes along in its sum: the library that reads it,
    with its operands and parameters.
    """

    library: str
    operands: Mapping[str, Tensor | Window]
    params: Mapping[str, Any]


def low_rank(factor: Tensor, matrix: Parameter, scale: float) -> Fused:
    """scale times `factor` (rows, R), times `matrix` (R, inputs) or, on the way forward, the
    transpose of (outputs, R).
    """
    operands: dict[str, Tensor | Window] = {"lora": factor, "lora_matrix": matrix.value}
    return Fused("lora", operands, {"lora_rank": factor.cols, "lora_scale": scale})


def fuses(weight: Weight, few: int = 0) -> bool:
    """Whether products with a weight take one of low rank along. Tiles of f16 do not: what an
    adapter adds stays f32. `few`: that of their graph.
    """
    return bool(few) or weight.precision == "f32"


def product(
    g: Graph,
    x: Tensor,
    weight: Weight,
    rows: Rows,
    y: Tensor | Window,
    fused: Fused | None = None,
    bias: Window | None = None,
) -> None:
    """y (T, count) = x W^T + b over rows of W, segment by segment, in the weight's precision; of
    few rows always in f32, because memory is what they wait for.
    """
    for segment, row, count in rows.within(weight):
        family, libraries = _family("nt", weight)
        if g.few:
            family, libraries = f"nv/{weight.library}", weight.libraries
        operands = {"x": x, "y": y, **weight.operands(segment)}
        at = segment.first + row
        params = {
            **_nt_params(x, count),
            **weight.strides(),
            "weight_row": row,
            "y_stride": padded(rows.count) // 4,
            "y_column": (at - rows.first) // 4,
        }
        if fused:
            operands, params, libraries = _with(fused, operands, params, libraries)
            params["lora_row"] = at
        if bias is not None and g.few:
            operands, libraries = {**operands, "bias": bias}, {**libraries, "bias": "bias"}
            params["lora_row"] = at
        g.launch_tuned(family, operands, params, _few(g), libraries)
    if bias is not None and not g.few:
        sizes = {"rows": x.rows, "d4": padded(rows.count) // 4, "first": rows.first // 4}
        g.launch("add_bias", {"bias": bias, "y": y}, sizes)


def product_backward(
    g: Graph,
    dy: Tensor,
    weight: Weight,
    rows: Rows,
    dx: Tensor,
    add: bool,
    fused: Fused | None = None,
) -> None:
    """dx (+)= dy W over rows of W, segment by segment, in the weight's precision; as several
    launches of about equal size where the kernel names the most rows of W that one should take.
    """
    family, libraries = _family("nn", weight)
    for segment, row, count in rows.within(weight):
        most = int(g.kernel(family, libraries=libraries).constants.get("MOST_N", count))
        size = padded(-(-count // -(-count // most)))
        for first in range(row, row + count, size):
            n = min(size, row + count - first)
            operands = {"dy": dy, "dx": dx, **weight.operands(segment)}
            params = {
                **_nn_params(dx, n),
                **weight.strides(),
                "weight_row": first,
                "dy_stride": padded(dy.cols) // 4,
                "dy_column": (segment.first + first - rows.first) // 4,
                "add": int(add),
            }
            taken = operands, params, libraries
            if fused:
                taken = _with(fused, *taken)
            g.launch_tuned(family, taken[0], taken[1], libraries=taken[2])
            add, fused = True, None


def _with(
    fused: Fused,
    operands: dict[str, Any],
    params: dict[str, Any],
    libraries: dict[str, str],
) -> tuple[dict[str, Any], dict[str, Any], dict[str, str]]:
    """What launches a base product, with a product of low rank beside it."""
    return (
        {**operands, **fused.operands},
        {**params, **fused.params},
        {**libraries, "lora": fused.library},
    )


def _few(g: Graph) -> dict[str, int]:
    """The constants of products that read a weight once for few rows; none for many."""
    return {"ROWS": min(g.few, MOST_FEW)} if g.few else {}


def _family(product: str, weight: Weight) -> tuple[str, dict[str, str]]:
    """What is tuned as one, and the libraries of the kernel."""
    if weight.precision == "f32":
        return f"{product}/{weight.library}", weight.libraries
    return f"{product} f16/{weight.library}", {**weight.libraries, "tile": "tile_f16"}


# All rows of W, nothing of low rank, written over what is there
_WHOLE = {"weight_row": 0, "scale": 1.0, "add": 0, "lora_rank": 0, "lora_scale": 0.0}


def _nt_params(x: Tensor, n: int) -> dict[str, Any]:
    """Parameters of matmul_nt that do not depend on the weight: x (rows, K) -> n columns."""
    place = {"lora_row": 0, "lora_first": 0, "lora_stride": 0, "lora_outputs": 0}
    return {"rows": x.rows, "n": n, "k4": padded(x.cols) // 4, **_WHOLE, **place}


def _nn_params(dx: Tensor, n: int) -> dict[str, Any]:
    """Parameters of matmul_nn that do not depend on the weight: n columns -> dx (rows, K)."""
    return {"rows": dx.rows, "n": n, "k4": padded(dx.cols) // 4, **_WHOLE}


def small_nt(
    g: Graph,
    x: Tensor,
    p: Parameter,
    y: Tensor | Window,
    rows: Rows,
    *,
    scale: float = 1.0,
    add: bool,
    used: tuple[Window, int] | None = None,
) -> None:
    """y (T, count) (+)= scale x P^T over rows of a trained matrix P; `used`: a list of the vec4s of
    columns that are made, and how many there may be in it.
    """
    params = {
        **_nt_params(x, rows.count),
        **dense_strides(p.columns),
        "scale": scale,
        "weight_row": rows.first,
        "add": int(add),
    }
    params |= {"y_stride": padded(rows.count) // 4, "y_column": 0}
    operands = {"x": x, "y": y, **dense_operands(p.value)}
    libraries = {}
    if used:
        operands["lora_list"], params["lora_stride"] = used
        libraries["columns"] = "columns_used"
    family = "nv small" if g.few else nt_small(rows.count)
    g.launch_tuned(family, operands, params, _few(g), libraries)


def small_nn(
    g: Graph, dy: Tensor, p: Parameter, dx: Tensor, *, scale: float = 1.0, first: int = 0, add: bool
) -> None:
    """dx (+)= scale dy P for a trained matrix P, from its row `first` on."""
    params = {
        **_nn_params(dx, dy.cols),
        **dense_strides(p.columns),
        "scale": scale,
        "weight_row": first,
        "add": int(add),
    }
    params |= {"dy_stride": padded(dy.cols) // 4, "dy_column": 0}
    operands = {"dy": dy, "dx": dx, **dense_operands(p.value)}
    g.launch_tuned(nn_small(dx.cols), operands, params)


def accumulate(
    g: Graph, a: Tensor, b: Tensor, gradient: Window, scale: float, first: int = 0
) -> None:
    """gradient (rows, b.cols), a.cols of its rows from `first` on, += scale a^T b."""
    params = {"rows": a.rows, "m": a.cols, "n4": padded(b.cols) // 4, "scale": scale}
    params["out_row"] = first
    g.launch_tuned(tn_small(a.cols, b.cols), {"a": a, "b": b, "out": gradient}, params)
