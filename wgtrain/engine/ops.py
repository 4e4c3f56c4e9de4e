"""The operations of a language model: each forward, and right below it its vjp.

Shapes: T tokens, D width, H heads, K key-value heads, E head size, F feed-forward, V vocabulary. An
operation records launches on a graph and returns the tensor it made; a vjp gets the gradient of
that tensor and records what flows on to those inputs that train.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from wgtrain.engine.attention import Ranges
from wgtrain.engine.graph import Graph, Tensor, Window, padded
from wgtrain.engine.weight import Weight


@dataclass(frozen=True)
class Inputs:
    """What a step brings: `positions` of the tokens in their rows (T,), `ranges` = who sees whom
    by window (0 = the whole row), `trained` = positions with a target (C,), `where` = index into
    `trained` or -1 (T,), `targets` = vocabulary index of each trained position (C,); `more` = what
    a loss takes besides, by name."""

    tokens: Window
    positions: Window
    ranges: Mapping[int, Ranges]
    trained: Window
    where: Window
    targets: Window
    more: Mapping[str, Window] = field(default_factory=dict)


def _elementwise(tensor: Tensor) -> dict[str, Any]:
    return {"rows": tensor.rows, "d4": padded(tensor.cols) // 4}


def embed(g: Graph, tokens: Window, weight: Weight, factor: float = 1.0) -> Tensor:
    """factor times rows of the embedding (V, D) -> (T, D). Frozen: nothing flows on."""
    y = g.tensor("embed", "T", weight.columns)
    for segment in weight.segments:
        params = {"row_start": segment.first, "row_count": segment.rows, **weight.strides()}
        g.launch(
            "embed",
            {"tokens": tokens, "y": y, **weight.operands(segment)},
            {**_elementwise(y), **params},
            {"FACTOR": factor} if factor != 1 else {},
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


def layer_norm(
    g: Graph,
    x: Tensor,
    weight: Window,
    bias: Window | None,
    eps: float,
    groups: int = 1,
    name: str = "norm",
    into: Window | None = None,
) -> Tensor:
    """(x - mean) / sqrt(variance + eps) * weight + bias over each of `groups` equal parts of a row
    (T, groups d), each with its own part of `weight` and `bias` (groups d,); `into` keeps it.
    """
    d = x.cols // groups
    params = {"rows": x.rows, "groups": groups, "d4": padded(d) // 4, "d": d, "eps": eps}
    y = g.tensor(name, x.rows, x.cols, trains=x.trains)
    operands = {"x": x, "w": weight, "y": into or y}
    libraries = {}
    if bias is not None:
        operands["bias"], libraries["bias"] = bias, "bias"
    g.launch_tuned("layer_norm", operands, params, libraries=libraries)
    saved = g.save(x) if x.trains else None

    def vjp(dy: Tensor) -> None:
        assert saved is not None
        kept = saved()
        dx, add = g.gradient(x)
        operands = {"x": kept, "w": weight, "dy": dy, "dx": dx}
        g.launch_tuned("layer_norm_backward", operands, params, {"ADD": add})

    g.on_backward(y, vjp)
    return y


def dropout(g: Graph, x: Tensor, p: float, site: int, into: Tensor | None = None) -> Tensor:
    """x * mask / (1 - p), or added onto `into`. The mask is a hash: its gradient is the same
    operation.
    """
    y = into or g.tensor("dropped", x.rows, x.cols, trains=x.trains)
    params = {**_elementwise(x), "site": site, "threshold": round(p * 2**24), "scale": 1 / (1 - p)}
    g.launch("dropout", {"x": x, "y": y}, params, constants={"ADD": into is not None})
    return y


def swiglu(g: Graph, gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up, (T, F)."""
    return _gated(g, gate, up, "swiglu", "activation_silu")


def geglu(g: Graph, gate: Tensor, up: Tensor) -> Tensor:
    """gelu(gate) * up, (T, F), with the GELU of `gelu`."""
    return _gated(g, gate, up, "geglu", "activation_gelu")


def _gated(g: Graph, gate: Tensor, up: Tensor, name: str, activation: str) -> Tensor:
    """act(gate) * up."""
    libraries = {"activation": activation}
    y = g.tensor(name, gate.rows, gate.cols, trains=gate.trains or up.trains)
    g.launch("glu", {"gate": gate, "up": up, "y": y}, _elementwise(y), libraries=libraries)
    saved = [g.save(gate), g.save(up)] if y.trains else []

    def vjp(dy: Tensor) -> None:
        kept_gate, kept_up = (restore() for restore in saved)
        dgate, dup = (g.tensor(f"d.{n}", y.rows, y.cols) for n in ("gate", "up"))
        operands = {"gate": kept_gate, "up": kept_up, "dy": dy, "dgate": dgate, "dup": dup}
        g.launch("glu_backward", operands, _elementwise(y), libraries=libraries)
        if gate.trains:
            g.pass_gradient(gate, dgate)
        if up.trains:
            g.pass_gradient(up, dup)

    g.on_backward(y, vjp)
    return y


def gelu(g: Graph, x: Tensor) -> Tensor:
    """x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) / 2, (T, F): `gelu_pytorch_tanh`."""
    return activate(g, x, "gelu", "activation_gelu")


def activate(g: Graph, x: Tensor, name: str, activation: str) -> Tensor:
    """act(x), (T, F), of a library of shaders/lib."""
    libraries = {"activation": activation}
    y = g.tensor(name, x.rows, x.cols, trains=x.trains)
    g.launch("activate", {"x": x, "y": y}, _elementwise(y), libraries=libraries)
    saved = g.save(x) if y.trains else None

    def vjp(dy: Tensor) -> None:
        assert saved is not None
        kept, dx = saved(), g.tensor(f"d.{name}", x.rows, x.cols)
        operands = {"x": kept, "dy": dy, "dx": dx}
        g.launch("activate_backward", operands, _elementwise(x), libraries=libraries)
        g.pass_gradient(x, dx)

    g.on_backward(y, vjp)
    return y


def add(g: Graph, x: Tensor, branch: Tensor, name: str = "residual", factor: float = 1.0) -> Tensor:
    """x + factor * branch."""
    y = g.tensor(name, x.rows, x.cols, trains=x.trains or branch.trains)
    operands = {"a": x, "b": branch, "y": y}
    if factor == 1:
        g.launch("add", operands, _elementwise(y))
    else:
        g.launch("add_scaled", operands, {**_elementwise(y), "factor": factor})

    def vjp(dy: Tensor) -> None:
        if x.trains:
            g.pass_gradient(x, dy)
        if branch.trains:
            g.pass_gradient(branch, _scaled(g, dy, factor, "d.branch"))

    g.on_backward(y, vjp)
    return y


def scale(
    g: Graph, x: Tensor, factor: float, name: str = "scaled", into: Window | None = None
) -> Tensor:
    """factor * x; x itself where that is 1. `into` keeps it."""
    y = _scaled(g, x, factor, name, into)
    if y is not x:
        g.on_backward(y, lambda dy: g.pass_gradient(x, _scaled(g, dy, factor, f"d.{name}")))
    return y


def _scaled(g: Graph, x: Tensor, factor: float, name: str, into: Window | None = None) -> Tensor:
    if factor == 1 and into is None:
        return x
    y = g.tensor(name, x.rows, x.cols, trains=x.trains)
    g.launch("scale", {"x": x, "y": into or y}, {**_elementwise(y), "factor": factor})
    return y


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
