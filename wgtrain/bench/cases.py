"""What is measured of single kernels: the launches an operation records, over buffers of its own.

The launches are those that training records, with the tuning in use; an operand that a step would
have made before becomes a buffer filled with random numbers.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from wgtrain.bench.flops import attention_flops
from wgtrain.bench.shapes import Shape
from wgtrain.engine import ops
from wgtrain.engine.attention import attention, default_attention_scale, rope
from wgtrain.engine.graph import Graph, Launch, Storage, Tensor, Window, padded
from wgtrain.engine.inputs import InputBuffer
from wgtrain.engine.linear import Adapter, Linear, linear
from wgtrain.engine.lora import Lora
from wgtrain.engine.loss import chunk_columns, cross_entropy
from wgtrain.engine.products import fuses
from wgtrain.engine.structs import CONTROL, TOTALS
from wgtrain.engine.trainables import Parameter
from wgtrain.engine.tuning import Tuning
from wgtrain.engine.weight import Weight, plan_weight
from wgtrain.gpu import Limits
from wgtrain.model.weights import stored_type

Record = Callable[[Graph], Tensor]


@dataclass(frozen=True)
class Case:
    """One measurement. Of `flops` and `nbytes` the one that bounds it is given. `window`: of
    attention, 0 = whole rows.
    """

    group: str
    what: str
    type: str  # of the weight; "" = none
    launches: list[Launch]
    tokens: int
    flops: float = 0.0
    nbytes: float = 0.0
    contents: dict[Storage, np.ndarray] = field(default_factory=dict)
    window: int = 0

    @property
    def work(self) -> float:
        """Operations or bytes."""
        return self.flops or self.nbytes


@dataclass(frozen=True)
class Setting:
    """What all cases of one shape are made with."""

    shape: Shape
    limits: Limits
    tuning: Tuning
    precision: str = "f32"

    def record(self, record: Record) -> tuple[list[Launch], list[Launch]]:
        """The launches of an operation and of its backward pass."""
        graph = Graph(tuning=self.tuning)
        y = record(graph)
        forward = list(graph.launches)
        if y.trains:
            graph.pass_gradient(y, Tensor("dy", y.rows, y.cols))
            graph.backward()
        return forward, graph.launches[len(forward) :]

    def input(self, columns: int, name: str = "x") -> Tensor:
        """(T, columns), whose gradient is wanted."""
        return Tensor(name, "T", columns, trains=True)

    def weight(self, rows: int, columns: int, type_: str) -> Weight:
        """A frozen matrix of a type in the file."""
        stored = stored_type(type_, self.precision)
        return plan_weight("weight", stored, rows, columns, self.limits, self.precision)


def matrices(shape: Shape) -> dict[str, tuple[int, int]]:
    """The distinct linears of a block, name -> (outputs, inputs)."""
    found: dict[tuple[int, int], str] = {}
    for name, size in shape.config.linears().items():
        found.setdefault(size, name.split(".")[2])
    return {name: size for size, name in found.items()}


def product_cases(s: Setting, types: Sequence[str]) -> Iterator[list[Case]]:
    """Forward and dX of each linear, all weight types beside each other."""
    t = s.shape.tokens
    for name, (outputs, inputs) in matrices(s.shape).items():
        pairs = [(type_, *_linear(s, outputs, inputs, type_)) for type_ in types]
        what, flops = f"{name} {t} x {outputs} x {inputs}", 2.0 * t * outputs * inputs
        yield [Case("forward", what, type_, f, t, flops) for type_, f, _ in pairs]
        yield [Case("dX", what, type_, b, t, flops) for type_, _, b in pairs]


def _linear(
    s: Setting, outputs: int, inputs: int, type_: str, adapters: tuple[Adapter, ...] = ()
) -> tuple[list[Launch], list[Launch]]:
    of = Linear(s.weight(outputs, inputs, type_), None, adapters)
    return s.record(lambda g: linear(g, s.input(inputs), of))


def lora_cases(s: Setting) -> Iterator[list[Case]]:
    """The adapter's own products, forward and backward: what is added inside the base product's
    sum is timed with neither.
    """
    t, r = s.shape.tokens, s.shape.rank
    for name, (outputs, inputs) in matrices(s.shape).items():
        a, b = _parameter("a", r, inputs), _parameter("b", outputs, r)
        lora = Lora(a, b, 2.0)
        passes = _linear(s, outputs, inputs, "F32", (lora,))
        own = [[x for x in launches if not _reads_base(x)] for launches in passes]
        what = f"{name} {t} x {outputs} x {inputs}, rank {r}"
        inside = fuses(s.weight(outputs, inputs, "F32"))
        # z = x A^T and z B^T; u = dY B, dB = dY^T z, dA = u^T x and u A
        forward = 2.0 * t * r * (inputs + (0 if inside else outputs))
        backward = 2.0 * t * r * (2 * outputs + inputs + (0 if inside else inputs))
        yield [
            Case("LoRA forward", what, "", own[0], t, forward),
            Case("LoRA backward", what, "", own[1], t, backward),
        ]


def _parameter(name: str, rows: int, columns: int) -> Parameter:
    size = rows * padded(columns) * 4
    value, gradient = (Storage(f"{name} {x}", "adapter", size) for x in ("value", "gradient"))
    return Parameter(name, rows, columns, value.window(), gradient.window())


def _reads_base(launch: Launch) -> bool:
    operand = launch.operands.get("weight")
    return isinstance(operand, Window) and operand.storage.purpose == "weights"


def attention_cases(s: Setting) -> list[Case]:
    """Attention of one layer, over the shape's rows and over windows of a sixteenth of them."""
    return [case for window in (0, -(-s.shape.length // 16)) for case in _attention(s, window)]


def _attention(s: Setting, window: int) -> list[Case]:
    shape, config = s.shape, s.shape.config
    inputs, contents = _inputs(s, window)
    heads = config.n_head, config.n_head_kv
    q, k, v = (
        s.input(count * config.head_size, name)
        for name, count in (("q", heads[0]), ("k", heads[1]), ("v", heads[1]))
    )
    scale = default_attention_scale(config.head_size)
    passes = s.record(lambda g: attention(g, q, k, v, inputs.ranges[window], *heads, scale))
    flops = attention_flops(shape.rows, shape.length, heads[0], config.head_size, window)
    what = f"{shape.rows} x {shape.length}, {heads[0]} heads of {config.head_size}"
    if window:
        what += f", window {window}"
    return [
        Case(f"attention {way}", what, "", launches, shape.tokens, count, 0.0, contents, window)
        for way, launches, count in zip(("forward", "backward"), passes, flops, strict=True)
    ]


def _inputs(s: Setting, window: int = 0) -> tuple[ops.Inputs, dict[Storage, np.ndarray]]:
    """A step's inputs and what they hold."""
    batch, t = s.shape.batch(), s.shape.tokens
    buffer = InputBuffer(t, (window,))
    content, _ = buffer.pack(batch.tokens, batch.starts, batch.ends, batch.targets)
    return buffer.inputs, {buffer.storage: content}


def loss_cases(s: Setting, types: Sequence[str]) -> list[Case]:
    """The head, the loss and the gradient of what comes in, all tokens trained."""
    config, t = s.shape.config, s.shape.tokens
    inputs, contents = _inputs(s)
    columns = chunk_columns(config.vocabulary, t)
    found = []
    for type_ in types:
        graph = Graph(tuning=s.tuning)
        hidden = Tensor("hidden", "C", config.width, trains=True)
        head = Linear(s.weight(config.vocabulary, config.width, type_))
        totals = Storage("totals", "reports", TOTALS.itemsize).window()
        cross_entropy(graph, hidden, head, inputs, totals, columns)
        what = f"{t} x {config.vocabulary} x {config.width}"
        flops = 4.0 * t * config.vocabulary * config.width
        found.append(
            Case("cross-entropy", what, type_, graph.launches, t, flops, contents=contents)
        )
    return found


def stream_cases(s: Setting) -> list[Case]:
    """What is bound by memory: norms, rotary embedding, gates, residual, AdamW."""
    config, t = s.shape.config, s.shape.tokens
    inputs, contents = _inputs(s)
    width, inner = config.width, config.feed_forward
    query = config.n_head * config.head_size
    norm = Storage("norm", "norms", padded(width) * 4).window()
    turned = config.layers[0].rope
    assert turned, "a shape's layers have rotary embeddings"
    table = turned.table(s.shape.length)
    rotary = Storage("rotary table", "inputs", table.nbytes)
    x, up = s.input(width), s.input(inner, "up")
    recorded = {
        "RMS norm": (s.record(lambda g: ops.rms_norm(g, x, norm, 1e-5)), width, 2, 3),
        "LayerNorm": (s.record(lambda g: ops.layer_norm(g, x, norm, norm, 1e-5)), width, 2, 3),
        "SwiGLU": (s.record(lambda g: ops.swiglu(g, s.input(inner, "gate"), up)), inner, 3, 5),
        "GEGLU": (s.record(lambda g: ops.geglu(g, s.input(inner, "gate"), up)), inner, 3, 5),
        "residual": (s.record(lambda g: ops.add(g, x, s.input(width, "y"))), width, 3, 0),
        "rotary embedding": (
            s.record(
                lambda g: rope(
                    g,
                    s.input(query),
                    inputs.positions,
                    rotary.window(),
                    config.n_head,
                    turned.rotary,
                    turned.interleaved,
                    "rope",
                )
            ),
            query,
            2,
            2,
        ),
    }
    contents = {**contents, rotary: table}
    found = []
    for name, (passes, columns, *streams) in recorded.items():
        for launches, count, way in zip(passes, streams, ("forward", "backward"), strict=True):
            if count:
                nbytes = 4.0 * count * t * columns
                what = f"{way} {t} x {columns}"
                found.append(Case(name, what, "", launches, t, 0.0, nbytes, contents))
    return [*found, _adamw(s)]


def _adamw(s: Setting) -> Case:
    """The whole adapter's update: five values read, four written of each parameter."""
    sizes = s.shape.config.linears().values()
    count = sum(s.shape.rank * (outputs + inputs) for outputs, inputs in sizes)
    names = ("params_arena", "grads", "first_moment", "second_moment")
    arenas = {name: Storage(name, "optimizer", padded(count) * 4) for name in names}
    control = Storage("control", "reports", CONTROL.itemsize)
    graph = Graph(tuning=s.tuning)
    operands = {name: storage.window() for name, storage in arenas.items()}
    graph.launch("adamw", {"control": control.window(), **operands}, {"n4": padded(count) // 4})
    zeros = {
        control: np.zeros(1, CONTROL),
        arenas["second_moment"]: np.zeros(padded(count), np.float32),
    }
    nbytes = 4.0 * 8 * count  # four read, four written
    return Case("AdamW", f"{count:,} parameters", "", graph.launches, 0, 0.0, nbytes, zeros)


def copy_case(nbytes: int, limits: Limits) -> Case:
    """The ceiling of what is bound by memory: as much is read as written."""
    size = min(nbytes, limits.binding, limits.buffer) // 16 * 16
    graph = Graph()
    operands = {name: Storage(name, "copy", size).window() for name in ("x", "y")}
    graph.launch("copy", operands, {"n4": size // 16})
    return Case("copy", f"{size >> 20} MiB", "", graph.launches, 0, 0.0, 2.0 * size)


def standalone(case: Case) -> Case:
    """The case with a buffer in place of every tensor."""
    storages: dict[Tensor, Storage] = {}

    def window(operand: Tensor | Window) -> Window:
        if isinstance(operand, Window):
            return operand
        if operand not in storages:
            size = operand.nbytes(case.tokens)
            storages[operand] = Storage(operand.name, "activations", size)
        return storages[operand].window()

    launches = [
        replace(x, operands={name: window(operand) for name, operand in x.operands.items()})
        for x in case.launches
    ]
    return replace(case, launches=launches)
