"""One line an operation: forward and backward through tape and plan against its oracle."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import oracles
import pytest
from op_check import Tape, check_op, compare, finite_differences

from wgtrain import random
from wgtrain.engine import ops
from wgtrain.engine.attention import Ranges, attention, rope, scale_positions
from wgtrain.engine.graph import padded
from wgtrain.engine.inputs import visible
from wgtrain.engine.kernel import load_kernel
from wgtrain.engine.linear import Linear, linear, linear_rows
from wgtrain.engine.lora import Lora
from wgtrain.engine.loss import cross_entropy, head_logits
from wgtrain.engine.structs import TOTALS
from wgtrain.engine.weight import plan_weight
from wgtrain.gpu import Device, Limits

pytestmark = pytest.mark.gpu
SIZES = [(1, 1), (5, 7), (17, 12)]  # T, D


def normal(*shape: int) -> np.ndarray:
    return np.random.standard_normal(shape)


@pytest.mark.parametrize("factor", [1.0, 0.22])
@pytest.mark.parametrize(("t", "d"), SIZES)
def test_add(device: Device, t: int, d: int, factor: float) -> None:
    check_op(
        device,
        lambda tape, x: ops.add(tape.graph, x.a, x.b, factor=factor),
        lambda x: x.a + factor * x.b,
        {"a": normal(t, d), "b": normal(t, d)},
    )


@pytest.mark.parametrize(("t", "d"), SIZES)
def test_scale(device: Device, t: int, d: int) -> None:
    check_op(
        device,
        lambda tape, x: ops.scale(tape.graph, x.x, 0.3, "scaled"),
        lambda x: 0.3 * x.x,
        {"x": normal(t, d)},
    )


def test_factors_of_one_record_nothing() -> None:
    """A model without them runs the kernels it always did."""
    tape = Tape(3)
    x = tape.input("x", normal(3, 8))
    before = len(tape.graph.launches)
    assert ops.scale(tape.graph, x, 1.0, "scaled") is x
    ops.embed(tape.graph, tape.fixed("tokens", np.zeros(3, np.uint32)), frozen(tape, normal(2, 8)))
    ops.add(tape.graph, x, x)
    assert [launch.kernel for launch in tape.graph.launches[before:]] == [
        load_kernel("embed", {}, {"weight": "weight_f32"}),
        load_kernel("add"),
    ]


@pytest.mark.parametrize("gated", [ops.swiglu, ops.geglu])
@pytest.mark.parametrize(("t", "d"), SIZES)
def test_gated(device: Device, t: int, d: int, gated: Any) -> None:
    activation = {ops.swiglu: "activation_silu", ops.geglu: "activation_gelu"}[gated]
    check_op(
        device,
        lambda tape, x: gated(tape.graph, x.gate, x.up),
        lambda x: oracles.glu(x.gate, x.up, activation)["y"],
        {"gate": 3 * normal(t, d), "up": normal(t, d)},
    )


@pytest.mark.parametrize(("t", "d"), SIZES)
def test_gelu(device: Device, t: int, d: int) -> None:
    check_op(
        device,
        lambda tape, x: ops.gelu(tape.graph, x.x),
        lambda x: oracles.gelu(x.x)[0],
        {"x": 3 * normal(t, d)},
    )


@pytest.mark.parametrize("activation", ["gelu_erf", "tanh", "silu"])
def test_activate(device: Device, activation: str) -> None:
    """Of relu a step of finite differences may cross the corner: see its kernel's test."""
    library = f"activation_{activation}"
    check_op(
        device,
        lambda tape, x: ops.activate(tape.graph, x.x, activation, library),
        lambda x: oracles.ACTIVATIONS[library](x.x)[0],
        {"x": 3 * normal(5, 7)},
    )


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize(("t", "d"), [(1, 4), (5, 8), (17, 12)])
def test_rms_norm(device: Device, t: int, d: int, groups: int) -> None:
    check_op(
        device,
        lambda tape, x: ops.rms_norm(tape.graph, x.x, x.w, 1e-2, groups),
        lambda x: oracles.rms_norm(x.x, x.w, groups, 1e-2)["y"],
        {"x": normal(t, groups * d)},
        fixed={"w": 1 + 0.2 * normal(d)},
    )


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize(("t", "d"), [(1, 4), (5, 8), (17, 12)])
def test_layer_norm(device: Device, t: int, d: int, groups: int, biased: bool) -> None:
    """Each head with a weight and a bias of its own."""
    check_op(
        device,
        lambda tape, x: ops.layer_norm(
            tape.graph, x.x, x.w, x.bias if biased else None, 1e-2, groups
        ),
        lambda x: oracles.layer_norm(x.x, x.w, groups, 1e-2, x.bias * biased)["y"],
        {"x": 0.5 + normal(t, groups * d)},
        fixed={"w": 1 + 0.2 * normal(groups * d), "bias": 0.3 * normal(groups * d)},
    )


@pytest.mark.parametrize("norm", [ops.rms_norm, ops.layer_norm])
def test_norms_of_rows_that_are_no_multiple_of_four(device: Device, norm: Any) -> None:
    """Also those of all heads together, whose weight is as long as the row."""
    w, bias = 1 + 0.2 * normal(70), 0.3 * normal(70)
    oracle = {ops.rms_norm: oracles.rms_norm, ops.layer_norm: oracles.layer_norm}[norm]
    more: Any = (bias,) if norm is ops.layer_norm else ()
    check_op(
        device,
        lambda tape, x: norm(tape.graph, x.x, x.w, *[x.bias for _ in more], 1e-2),
        lambda x: oracle(x.x, x.w, 1, 1e-2, *[x.bias for _ in more])["y"],
        {"x": normal(5, 70)},
        fixed={"w": w, "bias": bias} if more else {"w": w},
    )


@pytest.mark.parametrize(("t", "d"), SIZES)
def test_gather(device: Device, t: int, d: int) -> None:
    index = np.arange(t)[::-2].astype(np.int32)
    inverse = np.full(t, -1, np.int32)
    inverse[index] = np.arange(len(index))
    check_op(
        device,
        lambda tape, x: ops.gather(tape.graph, x.x, x.index, x.inverse),
        lambda x: oracles.gather_rows(x.x, x.index)["y"],
        {"x": normal(t, d)},
        fixed={"index": index, "inverse": inverse},
        trained=len(index),
    )


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize(("rotary", "size"), [(4, 8), (8, 8), (14, 28), (30, 40)])
def test_rope(device: Device, rotary: int, size: int, interleaved: bool) -> None:
    """Of whole heads, and of the first values of heads."""
    heads, positions = 3, np.array([0, 1, 2, 0, 1, 0, 3], np.uint32)
    table = normal(4 * rotary)
    constants = {"INTERLEAVED": interleaved}
    check_op(
        device,
        lambda tape, x: rope(
            tape.graph, x.x, x.positions, x.table, heads, rotary, interleaved, "rotated"
        ),
        lambda x: oracles.rope(
            x.x, x.positions, x.table.reshape(4, -1, 2), heads, rotary, **constants
        )["y"],
        {"x": normal(len(positions), heads * size)},
        fixed={"positions": positions, "table": table},
    )


@pytest.mark.parametrize(("t", "d"), SIZES)
def test_scale_positions(device: Device, t: int, d: int) -> None:
    positions = np.arange(t, dtype=np.uint32) % 5
    check_op(
        device,
        lambda tape, x: scale_positions(tape.graph, x.x, x.positions, x.table, "scaled"),
        lambda x: x.x * x.table[positions][:, None],
        {"x": normal(t, d)},
        fixed={"positions": positions, "table": 1 + normal(5)},
    )


@pytest.mark.parametrize(("window", "softcap"), [(0, 0.0), (2, 0.0), (3, 0.0), (0, 1.5), (3, 1.5)])
def test_attention(device: Device, window: int, softcap: float) -> None:
    starts = np.repeat([0, 5, 6], [5, 1, 7])
    ends = np.repeat([5, 6, 13], [5, 1, 7])
    keys, queries = visible(starts, ends, window)
    heads, kv_heads, size, scale = 4, 2, 8, 0.3
    t = len(starts)
    check_op(
        device,
        lambda tape, x: attention(
            tape.graph, x.q, x.k, x.v, Ranges(x.keys, x.queries), heads, kv_heads, scale, softcap
        ),
        lambda x: oracles.attention(x.q, x.k, x.v, x.keys, heads, kv_heads, scale, softcap)["o"],
        {
            "q": normal(t, heads * size),
            "k": normal(t, kv_heads * size),
            "v": normal(t, kv_heads * size),
        },
        fixed={"keys": keys, "queries": queries},
    )


def frozen(tape: Tape, array: np.ndarray, limits: Limits | None = None) -> Any:
    """An F32 weight on a tape, in as many segments as the limits ask for."""
    weight = plan_weight("weight", "F32", *array.shape, limits or Limits())
    for segment in weight.segments:
        tape.put(segment.storage, array[segment.first : segment.first + segment.rows])
    return weight


TWO_SEGMENTS = Limits(binding=64 * 3 * 16)  # 64 rows of 12 values, and the rest


@pytest.mark.parametrize("factor", [1.0, 11**0.5])
@pytest.mark.parametrize("limits", [None, TWO_SEGMENTS])
def test_embed(device: Device, limits: Limits | None, factor: float) -> None:
    table, tokens = normal(70, 11), np.array([69, 0, 63, 64, 64], np.uint32)
    tape = Tape(len(tokens))
    y = ops.embed(tape.graph, tape.fixed("tokens", tokens), frozen(tape, table, limits), factor)
    tape.output("y", y)
    expected = np.float32(factor) * table.astype(np.float32)[tokens]
    compare("y", tape.run(device)["y"], expected, 0.0)


LORA = {"rank": 5, "scale": 0.7}
LINEARS: dict[str, dict[str, Any]] = {
    "bare": {},
    "bias": {"bias": True},
    "an adapter": {"adapters": [LORA]},
    "two adapters": {"bias": True, "adapters": [LORA, {"rank": 2, "scale": -0.4}]},
    "dropout": {"adapters": [{**LORA, "dropout": 0.3}]},
    "segments": {"bias": True, "adapters": [LORA], "n": 70, "limits": TWO_SEGMENTS},
}


@pytest.mark.parametrize("case", LINEARS)
@pytest.mark.parametrize("t", [1, 17])
def test_linear(device: Device, t: int, case: str) -> None:
    said = LINEARS[case]
    k, n, key = 11, said.get("n", 13), random.key(1, "dropout", 5)
    adapters = said.get("adapters", [])
    weight, bias = normal(n, k), normal(n) * bool(said.get("bias"))
    parameters = {}
    for i, a in enumerate(adapters):
        parameters |= {f"a{i}": normal(a["rank"], k), f"b{i}": normal(n, a["rank"])}

    def operation(tape: Tape, x: Any) -> Any:
        loras = tuple(
            Lora(getattr(x, f"a{i}"), getattr(x, f"b{i}"), a["scale"], a.get("dropout", 0.0), i)
            for i, a in enumerate(adapters)
        )
        given = tape.fixed("bias", bias) if "bias" in said else None
        return linear(
            tape.graph, x.x, Linear(frozen(tape, weight, said.get("limits")), given, loras)
        )

    def oracle(x: Any) -> np.ndarray:
        y = x.x @ weight.astype(np.float32).astype(np.float64).T + bias.astype(np.float32)
        for i, a in enumerate(adapters):
            source = dropped(x.x, a.get("dropout", 0.0), key, i)
            y += np.float32(a["scale"]) * (source @ getattr(x, f"a{i}").T) @ getattr(x, f"b{i}").T
        return y

    check_op(device, operation, oracle, {"x": normal(t, k)}, parameters=parameters, dropout_key=key)


@pytest.mark.parametrize("p", [0.0, 0.3])
def test_linear_rows(device: Device, p: float) -> None:
    """Gate and up of one weight with one adapter; what they pass back adds up in x."""
    k, f, rank, scale, key = 11, 12, 5, 0.7, random.key(1, "dropout", 5)
    weight, bias = normal(2 * f, k), normal(2 * f)

    def operation(tape: Tape, x: Any) -> Any:
        of = Linear(frozen(tape, weight), tape.fixed("bias", bias), (Lora(x.a, x.b, scale, p, 3),))
        parts = linear_rows(tape.graph, x.x, of, [(0, f), (f, f)], ["gate", "up"])
        return ops.swiglu(tape.graph, *parts)

    def oracle(x: Any) -> np.ndarray:
        y = x.x @ weight.astype(np.float32).astype(np.float64).T + bias.astype(np.float32)
        y += np.float32(scale) * (dropped(x.x, p, key, 3) @ x.a.T) @ x.b.T
        return oracles.glu(y[:, :f], y[:, f:])["y"]

    values = {"a": normal(rank, k), "b": normal(2 * f, rank)}
    check_op(device, operation, oracle, {"x": normal(7, k)}, parameters=values, dropout_key=key)


def dropped(x: np.ndarray, p: float, key: int, site: int) -> np.ndarray:
    if not p:
        return x
    threshold = round(p * 2**24)
    return oracles.dropout(x, padded(x.shape[1]) // 4, key, site, threshold, 1 / (1 - p))["y"]


@pytest.mark.parametrize("softcap", [0.0, 3.0])
@pytest.mark.parametrize("adapter", [False, True])
@pytest.mark.parametrize(("limits", "columns"), [(None, 64), (None, 128), (TWO_SEGMENTS, 64)])
def test_cross_entropy(
    device: Device, limits: Limits | None, columns: int, adapter: bool, softcap: float
) -> None:
    """Its gradient is that of the sum of the losses, and begins the backward pass itself; capped
    logits are those of a head with a bias.
    """
    c, d, v, rank, scale = 7, 12, 130, 3, 0.5
    head, targets = normal(v, d), np.random.randint(0, v, c).astype(np.uint32)
    values = {"hidden": normal(c, d), "a": normal(rank, d), "b": normal(v, rank)}
    if not adapter:
        values["b"] = np.zeros((v, rank))
    values = {name: x.astype(np.float32).astype(np.float64) for name, x in values.items()}
    tape = Tape(c)
    hidden = tape.input("hidden", values["hidden"])
    parameters = [tape.parameter(name, values[name]) for name in "ab"] if adapter else []
    loras = (Lora(*parameters, scale),) if adapter else ()
    totals = tape.fixed("totals", np.zeros(TOTALS.itemsize // 4, np.uint32))
    inputs: Any = SimpleNamespace(targets=tape.fixed("targets", targets))
    bias = normal(v).astype(np.float32) * bool(softcap)
    given = tape.fixed("bias", bias) if softcap else None
    of = Linear(frozen(tape, head, limits), given, loras)
    cross_entropy(tape.graph, hidden, of, inputs, totals, columns, softcap)
    tape.output("d.hidden", tape.graph.gradient(hidden)[0])
    tape.window("loss", totals, (1, 4))

    def loss(**changed: np.ndarray) -> float:
        x = {**values, **changed}
        logits = x["hidden"] @ head.astype(np.float32).astype(np.float64).T
        logits += scale * (x["hidden"] @ x["a"].T) @ x["b"].T
        logits = oracles.capped(logits + bias, softcap)[0]
        highest = logits.max(1)
        logs = highest + np.log(np.exp(logits - highest[:, None]).sum(1))
        return float((logs - logits[np.arange(c), targets]).sum())

    found = tape.run(device, trained=c)
    compare("loss", found["loss"][:, :1], np.array([[loss()]]), 1e-6)
    for name in ("hidden", *(["a", "b"] if adapter else [])):
        want = finite_differences(lambda x, n=name: loss(**{n: x}), values[name])
        compare(name, found[f"d.{name}"] - (name != "hidden"), want, 3e-6)


@pytest.mark.parametrize("softcap", [0.0, 3.0])
def test_head_logits(device: Device, softcap: float) -> None:
    hidden, head, bias = normal(7, 12), normal(70, 12), normal(70)
    tape = Tape(7)
    x = tape.graph.tensor("hidden", "C", 12)
    tape._copy(tape.fixed("given", hidden), x, hidden.size)
    result = tape.fixed("logits", np.zeros((7, 70)))
    of = Linear(frozen(tape, head, TWO_SEGMENTS), tape.fixed("bias", bias))
    head_logits(tape.graph, x, of, result, softcap)
    tape.window("logits", result, (7, 70))
    want = oracles.capped(hidden @ head.T + bias, softcap)[0]
    compare("logits", tape.run(device, trained=7)["logits"], want, 1e-6)


def test_a_wrong_operation_is_seen(device: Device) -> None:
    """Wrong forward, a gradient that is one part in a hundred thousand off, one not added up."""
    inputs = {"a": normal(5, 7), "b": normal(5, 7)}
    right = {
        "operation": lambda tape, x: ops.add(tape.graph, x.a, x.b),
        "oracle": lambda x: x.a + x.b,
    }

    def overwritten(tape: Tape, x: Any) -> Any:
        g = tape.graph
        z = g.tensor("z", "T", 7, trains=True)
        g.launch("add", {"a": x.a, "b": x.b, "y": z}, {"rows": "T", "d4": 2})

        def vjp(dz: Any) -> None:
            g._gradients[x.a] = dz
            g.pass_gradient(x.b, dz)

        g.on_backward(z, vjp)
        return z

    check_op(device, **right, inputs=inputs)
    for wrong, message in (
        ({"oracle": lambda x: x.a + 1.00001 * x.b}, "y0: error"),
        (
            {"oracle": lambda x: x.a + x.b + 1e-5 * (x.b - inputs["b"].astype(np.float32))},
            "d.b: error",
        ),
        ({"operation": overwritten}, "d.a: error"),
    ):
        with pytest.raises(AssertionError, match=message):
            check_op(device, **{**right, **wrong}, inputs=inputs)
