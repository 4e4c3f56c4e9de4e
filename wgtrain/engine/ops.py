"""The operations of a language model: each forward, and right below it its vjp.

Shapes: T tokens, D width, H heads, K key-value heads, E head size, F feed-forward, V vocabulary, R
rank. An operation records launches on a graph and returns the tensor it made; a vjp gets the
gradient of that tensor and records what flows on to those inputs that train.
"""

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


@dataclass(frozen=True)
class Inputs:
    """What a step brings: `spans` = (start, end) of each token's row, `trained` = positions with a
    target (C,), `where` = index into `trained` or -1 (T,), `targets` = vocabulary index of each
    trained position (C,)."""

    tokens: Window
    spans: Window
    trained: Window
    where: Window
    targets: Window


def _elementwise(tensor: Tensor) -> dict[str, Any]:
    return {"rows": tensor.rows, "d4": padded(tensor.cols) // 4}


def embed(g: Graph, tokens: Window, weight: Weight) -> Tensor:
    """Rows of the embedding (V, D) -> (T, D). Frozen: nothing flows on."""
    y = g.tensor("embed", "T", weight.columns)
    for segment in weight.segments:
        params = {"row_start": segment.first, "row_count": segment.rows, **weight.strides()}
        g.launch(
            "embed",
            {"tokens": tokens, "y": y, **weight.operands(segment)},
            {**_elementwise(y), **params},
            libraries=weight.libraries,
        )
    return y


def rms_norm(
    g: Graph,
    x: Tensor,
    weight: Window,
    eps: float,
    groups: int = 1,
    name: str = "norm",
    into: Window | None = None,
) -> Tensor:
    """x / rms(x) * weight over each of `groups` equal parts of a row (T, groups d); `into` keeps
    it.
    """
    d = x.cols // groups
    params = {"rows": x.rows, "groups": groups, "d4": padded(d) // 4, "d": d, "eps": eps}
    y = g.tensor(name, x.rows, x.cols, trains=x.trains)
    g.launch_tuned("rms_norm", {"x": x, "w": weight, "y": into or y}, params)
    saved = g.save(x) if x.trains else None

    def vjp(dy: Tensor) -> None:
        assert saved is not None
        kept = saved()
        dx, add = g.gradient(x)
        operands = {"x": kept, "w": weight, "dy": dy, "dx": dx}
        g.launch_tuned("rms_norm_backward", operands, params, {"ADD": add})

    g.on_backward(y, vjp)
    return y


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
    where the kernel names the most rows of W that one should take. `fused`: none, or one (adapter,
    u), whose s u A is added.
    """
    family, libraries = _family("nn", weight)
    most = int(g.kernel(family, libraries=libraries).constants.get("MOST_N", params["n"]))
    for first in range(0, params["n"], most):
        part = {
            **params,
            "n": min(most, params["n"] - first),
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


def _product(
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


def _product_backward(
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


def dropout(g: Graph, x: Tensor, p: float, site: int, into: Tensor | None = None) -> Tensor:
    """x * mask / (1 - p), or added onto `into`. The mask is a hash: its gradient is the same
    operation.
    """
    y = into or g.tensor("dropped", x.rows, x.cols, trains=x.trains)
    params = {**_elementwise(x), "site": site, "threshold": round(p * 2**24), "scale": 1 / (1 - p)}
    g.launch("dropout", {"x": x, "y": y}, params, constants={"ADD": into is not None})
    return y


def linear(
    g: Graph,
    x: Tensor,
    weight: Weight,
    bias: Window | None = None,
    loras: tuple[Lora, ...] = (),
    name: str = "linear",
) -> Tensor:
    """x W^T + b + sum of LoRA corrections; (T, inputs) -> (T, outputs)."""
    trains = x.trains or any(lora.trains for lora in loras)
    y = g.tensor(name, x.rows, weight.rows, trains=trains)
    factors = [(lora, lora_factor(g, x, lora, f"{name}.z")[1]) for lora in loras]
    fused = factors[:1] if fuses(weight) else []
    _product(g, x, weight, y, fused)
    if bias is not None:
        g.launch("add_bias", {"bias": bias, "y": y}, _elementwise(y))
    for lora, z in factors[len(fused) :]:
        small_nt(g, z, lora.b, y, columns=y.cols, scale=lora.scale, add=True)
    saved = g.save(x) if any(lora.trains for lora in loras) else None

    def vjp(dy: Tensor) -> None:
        products = [(lora, g.tensor(f"{name}.u", x.rows, lora.rank)) for lora in loras]
        for lora, u in products:
            small_nn(g, dy, lora.b, u, add=False)
        if x.trains:
            _input_gradient(g, x, dy, weight, products)
        for (lora, z), (_, u) in zip(factors, products, strict=True):
            if lora.trains:
                _lora_gradients(g, saved() if saved else x, dy, u, lora, z)

    g.on_backward(y, vjp)
    return y


def lora_factor(g: Graph, x: Tensor, lora: Lora, name: str) -> tuple[Tensor, Tensor]:
    """(dropout(x), z = its product with A^T (T, R)): the adapter's part of x W^T is s z B^T."""
    source = dropout(g, x, lora.dropout, lora.site) if lora.dropout else x
    z = g.tensor(name, x.rows, lora.rank)
    small_nt(g, source, lora.a, z, columns=lora.rank, add=False)
    return source, z


def _input_gradient(
    g: Graph, x: Tensor, dy: Tensor, weight: Weight, products: list[tuple[Lora, Tensor]]
) -> None:
    """dx = dy W + sum of s dropout'(u A), with u = dy B; a mask keeps the latter apart."""
    dx, add = g.gradient(x)
    fused = [(lora, u) for lora, u in products if fuses(weight) and not lora.dropout][:1]
    _product_backward(g, dy, weight, dx, add, fused)
    for lora, u in products:
        if (lora, u) not in fused:
            lora_input_gradient(g, x, u, lora)


def _lora_gradients(g: Graph, kept: Tensor, dy: Tensor, u: Tensor, lora: Lora, z: Tensor) -> None:
    """dB += s dy^T z, dA += s u^T dropout(x)."""
    assert lora.a.gradient is not None and lora.b.gradient is not None
    accumulate(g, dy, z, lora.b.gradient, lora.scale)
    source = dropout(g, kept, lora.dropout, lora.site) if lora.dropout else kept
    accumulate(g, u, source, lora.a.gradient, lora.scale)


def lora_input_gradient(g: Graph, x: Tensor, u: Tensor, lora: Lora) -> None:
    """dx += s dropout'(u A), where x trains."""
    if not x.trains:
        return
    dx, add = g.gradient(x)
    if not lora.dropout:
        small_nn(g, u, lora.a, dx, scale=lora.scale, add=add)
        return
    assert add, "the base product writes dx first"
    through = g.tensor("through", x.rows, x.cols)
    small_nn(g, u, lora.a, through, scale=lora.scale, add=False)
    dropout(g, through, lora.dropout, lora.site, into=dx)


def swiglu(g: Graph, gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up, (T, F)."""
    y = g.tensor("swiglu", gate.rows, gate.cols, trains=gate.trains or up.trains)
    g.launch("swiglu", {"gate": gate, "up": up, "y": y}, _elementwise(y))
    saved = [g.save(gate), g.save(up)] if y.trains else []

    def vjp(dy: Tensor) -> None:
        kept_gate, kept_up = (restore() for restore in saved)
        dgate, dup = (g.tensor(f"d.{n}", y.rows, y.cols) for n in ("gate", "up"))
        operands = {"gate": kept_gate, "up": kept_up, "dy": dy, "dgate": dgate, "dup": dup}
        g.launch("swiglu_backward", operands, _elementwise(y))
        if gate.trains:
            g.pass_gradient(gate, dgate)
        if up.trains:
            g.pass_gradient(up, dup)

    g.on_backward(y, vjp)
    return y


def add(g: Graph, x: Tensor, y: Tensor, name: str = "residual") -> Tensor:
    """x + y."""
    z = g.tensor(name, x.rows, x.cols, trains=x.trains or y.trains)
    g.launch("add", {"a": x, "b": y, "y": z}, _elementwise(z))

    def vjp(dz: Tensor) -> None:
        for tensor in (x, y):
            if tensor.trains:
                g.pass_gradient(tensor, dz)

    g.on_backward(z, vjp)
    return z


def gather(g: Graph, x: Tensor, index: Window, inverse: Window) -> Tensor:
    """Rows `index` of x (T, D) -> (C, D); `inverse` (T,) brings gradients back, -1 = none."""
    y = g.tensor("gathered", "C", x.cols, trains=x.trains)
    g.launch("gather_rows", {"x": x, "index": index, "y": y}, _elementwise(y))

    def vjp(dy: Tensor) -> None:
        dx = g.tensor("d.gathered", x.rows, x.cols)
        g.launch("gather_rows", {"x": dy, "index": inverse, "y": dx}, _elementwise(dx))
        g.pass_gradient(x, dx)

    g.on_backward(y, vjp)
    return y
