"""Products with frozen weights and with adapter matrices, as launches of tuned kernels."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from wgtrain.engine.graph import Graph, Tensor, Window, padded
from wgtrain.engine.tuning import nn_small, nt_small, tn_small
from wgtrain.engine.weight import Weight, dense_operands, dense_strides


@dataclass(frozen=True)
class Parameter:
    """A trainable matrix in the arenas: `rows` x `columns` f32, rows padded; `gradient` None =
    frozen.
    """

    name: str
    rows: int
    columns: int
    value: Window
    gradient: Window | None


@dataclass(frozen=True)
class Lora:
    """y += scale B (A dropout(x)): A (R, inputs), B (outputs, R). `site` numbers its mask."""

    a: Parameter
    b: Parameter
    scale: float
    dropout: float = 0.0
    site: int = 0

    @property
    def rank(self) -> int:
        """R."""
        return self.a.rows

    @property
    def trains(self) -> bool:
        """Whether its gradients are wanted."""
        return self.a.gradient is not None


def fuses(weight: Weight) -> bool:
    """Whether products with a weight take an adapter's part along. Tiles of f16 do not: what an
    adapter adds stays f32.
    """
    return weight.precision == "f32"


def launch_nt(
    g: Graph,
    weight: Weight,
    operands: dict[str, Any],
    params: dict[str, Any],
    fused: Sequence[tuple[Lora, Tensor]] = (),
    first: int = 0,
) -> None:
    """Records x W^T with a part of a frozen weight, in the weight's precision; `fused`: none, or
    one (adapter, z), whose s z B^T from row `first` of B on is added.
    """
    family, libraries = _family("nt", weight)
    for lora, z in fused:
        operands, params, libraries = _with(lora, z, lora.b, operands, params, libraries)
        params["lora_row"] = first
    g.launch_tuned(family, operands, params, libraries=libraries)


def launch_nn(
    g: Graph,
    weight: Weight,
    operands: dict[str, Any],
    params: dict[str, Any],
    fused: Sequence[tuple[Lora, Tensor]] = (),
) -> None:
    """Records dy W with a part of a frozen weight, in the weight's precision; as several launches
    of about equal size where the kernel names the most rows of W that one should take. `fused`:
    none, or one (adapter, u), whose s u A is added.
    """
    family, libraries = _family("nn", weight)
    n = params["n"]
    most = int(g.kernel(family, libraries=libraries).constants.get("MOST_N", n))
    size = padded(-(-n // -(-n // most)))
    for first in range(0, n, size):
        part = {
            **params,
            "n": min(size, n - first),
            "weight_row": params["weight_row"] + first,
            "dy_column": params["dy_column"] + first // 4,
            "add": int(params["add"] or first > 0),
        }
        taken = operands, part, libraries
        for lora, u in fused if first == 0 else ():
            taken = _with(lora, u, lora.a, *taken)
        g.launch_tuned(family, taken[0], taken[1], libraries=taken[2])


def _with(
    lora: Lora,
    factor: Tensor,  # z or u
    matrix: Parameter,
    operands: dict[str, Any],
    params: dict[str, Any],
    libraries: dict[str, str],
) -> tuple[dict[str, Any], dict[str, Any], dict[str, str]]:
    """What launches a base product, with an adapter beside it."""
    return (
        {**operands, "lora": factor, "lora_matrix": matrix.value},
        {**params, "lora_rank": lora.rank, "lora_scale": lora.scale},
        {**libraries, "lora": "lora"},
    )


def _family(product: str, weight: Weight) -> tuple[str, dict[str, str]]:
    """What is tuned as one, and the libraries of the kernel."""
    if weight.precision == "f32":
        return f"{product}/{weight.library}", weight.libraries
    return f"{product} f16/{weight.library}", {**weight.libraries, "tile": "tile_f16"}


def product(
    g: Graph, x: Tensor, weight: Weight, y: Tensor, fused: Sequence[tuple[Lora, Tensor]]
) -> None:
    """y = x W^T, segment by segment of W's rows; `fused` as in `launch_nt`."""
    for segment in weight.segments:
        launch_nt(
            g,
            weight,
            {"x": x, "y": y, **weight.operands(segment)},
            {
                **nt_params(x, segment.rows),
                **weight.strides(),
                "y_stride": padded(y.cols) // 4,
                "y_column": segment.first // 4,
            },
            fused,
            segment.first,
        )


def product_backward(
    g: Graph,
    dy: Tensor,
    weight: Weight,
    dx: Tensor,
    add: bool,
    fused: Sequence[tuple[Lora, Tensor]],
) -> None:
    """dx = dy W, segment by segment of W's rows; `fused` as in `launch_nn`."""
    for segment in weight.segments:
        launch_nn(
            g,
            weight,
            {"dy": dy, "dx": dx, **weight.operands(segment)},
            {
                **nn_params(dx, segment.rows),
                **weight.strides(),
                "dy_stride": padded(dy.cols) // 4,
                "dy_column": segment.first // 4,
                "add": int(add),
            },
            fused if segment.first == 0 else (),
        )
        add = True


# All rows of W, no adapter, written over what is there
_WHOLE = {"weight_row": 0, "scale": 1.0, "add": 0, "lora_rank": 0, "lora_scale": 0.0}


def nt_params(x: Tensor, n: int) -> dict[str, Any]:
    """Parameters of matmul_nt that do not depend on the weight: x (rows, K) -> n columns."""
    return {"rows": x.rows, "n": n, "k4": padded(x.cols) // 4, **_WHOLE, "lora_row": 0}


def nn_params(dx: Tensor, n: int) -> dict[str, Any]:
    """Parameters of matmul_nn that do not depend on the weight: n columns -> dx (rows, K)."""
    return {"rows": dx.rows, "n": n, "k4": padded(dx.cols) // 4, **_WHOLE}


def small_nt(
    g: Graph,
    x: Tensor,
    p: Parameter,
    y: Tensor | Window,
    *,
    columns: int,
    scale: float = 1.0,
    first: int = 0,
    add: bool,
) -> None:
    """y (rows, columns) (+)= scale x P^T for an adapter matrix P, from its row `first` on."""
    params = {
        **nt_params(x, columns),
        **dense_strides(p.columns),
        "scale": scale,
        "weight_row": first,
        "add": int(add),
    }
    params |= {"y_stride": padded(columns) // 4, "y_column": 0}
    operands = {"x": x, "y": y, **dense_operands(p.value)}
    g.launch_tuned(nt_small(columns), operands, params)


def small_nn(
    g: Graph, dy: Tensor, p: Parameter, dx: Tensor, *, scale: float = 1.0, first: int = 0, add: bool
) -> None:
    """dx (+)= scale dy P for an adapter matrix P, from its row `first` on."""
    params = {
        **nn_params(dx, dy.cols),
        **dense_strides(p.columns),
        "scale": scale,
        "weight_row": first,
        "add": int(add),
    }
    params |= {"dy_stride": padded(dy.cols) // 4, "dy_column": 0}
    operands = {"dy": dy, "dx": dx, **dense_operands(p.value)}
    g.launch_tuned(nn_small(dx.cols), operands, params)


def accumulate(g: Graph, a: Tensor, b: Tensor, gradient: Window, scale: float) -> None:
    """gradient (a.cols, b.cols) += scale a^T b, summed over rows."""
    params = {"rows": a.rows, "m": a.cols, "n4": padded(b.cols) // 4, "scale": scale}
    g.launch_tuned(tn_small(a.cols, b.cols), {"a": a, "b": b, "out": gradient}, params)
