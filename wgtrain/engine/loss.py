"""Linear + softmax cross-entropy over vocabulary chunks: no (C, V) array exists, untrained tokens
are not computed.

With a frozen head this is attention with K = V = W: per chunk the logits, the running maximum m and
sum, and the sum of exp(l - m) W; at the end divide and subtract W[target]. A trained head needs the
final maximum and sum before its own gradient, hence one more pass.
"""

from collections.abc import Iterator

from wgtrain.engine.graph import Graph, Tensor, Window, padded
from wgtrain.engine.ops import Inputs, lora_factor, lora_input_gradient
from wgtrain.engine.products import (
    Lora,
    Parameter,
    accumulate,
    fuses,
    launch_nn,
    launch_nt,
    nn_params,
    nt_params,
    small_nn,
    small_nt,
)
from wgtrain.engine.weight import Segment, Weight

CHUNK_BYTES = 32 << 20  # of one chunk of logits, at most
CHUNK_COLUMNS = (
    4032  # at most; a power of two would put every row of the logits into the same cache sets
)


def chunk_columns(vocabulary: int, max_rows: int) -> int:
    """Vocabulary columns of a chunk, a multiple of 64: as few and as equal chunks as the bounds
    allow.
    """
    most = min(CHUNK_BYTES // (4 * max(max_rows, 1)), CHUNK_COLUMNS)
    chunks = -(-vocabulary // max(most // 64 * 64, 256))
    return -(-vocabulary // (64 * chunks)) * 64


def cross_entropy(
    g: Graph,
    hidden: Tensor,
    head: Weight,
    loras: tuple[Lora, ...],
    inputs: Inputs,
    totals: Window,
    columns: int,
) -> None:
    """Adds the loss of hidden (C, D) to `totals` and begins the backward pass with its gradient."""
    running = g.tensor("running", "C", 4)
    trained_head = g.training and any(lora.trains for lora in loras)
    factors = [lora_factor(g, hidden, lora, "head.z") for lora in loras]
    wants_gradient = hidden.trains and not trained_head
    gradient = g.gradient(hidden)[0] if hidden.trains else None
    for segment, first, count in _chunks(head, columns):
        logits = _logits(g, hidden, head, loras, factors, segment, first, count)
        g.launch_tuned(
            "cross_entropy_chunk",
            {"targets": inputs.targets, "logits": logits, "running": running},
            {
                "rows": "C",
                "first": segment.first + first,
                "columns": count,
                "stride": padded(count),
            },
        )
        if wants_gradient:
            assert gradient is not None
            later = segment.first + first > 0
            if later:
                operands = {"running": running, "y": gradient}
                g.launch("scale_rows", operands, {"rows": "C", "d4": padded(hidden.cols) // 4})
            _chunk_product(g, logits, head, segment, first, gradient, add=later)
    g.launch("loss_sum", {"running": running, "totals": totals}, {"rows": "C"})
    if wants_gradient:
        assert gradient is not None
        _subtract_target(g, head, inputs, running, gradient)
    elif trained_head:
        _trained_head(g, hidden, head, loras, factors, inputs, running, gradient, columns)


def _chunks(head: Weight, columns: int) -> Iterator[tuple[Segment, int, int]]:
    """(segment, first row within it, rows) of every chunk; none crosses a segment."""
    for segment in head.segments:
        for first in range(0, segment.rows, columns):
            yield segment, first, min(columns, segment.rows - first)


def _logits(
    g: Graph,
    hidden: Tensor,
    head: Weight,
    loras: tuple[Lora, ...],
    factors: list[tuple[Tensor, Tensor]],
    segment: Segment,
    first: int,
    count: int,
) -> Tensor:
    logits = g.tensor(f"logits.{segment.first + first}", "C", count)
    params = {**nt_params(hidden, count), **head.strides(), "weight_row": first}
    params |= {"y_stride": padded(count) // 4, "y_column": 0}
    operands = {"x": hidden, "y": logits, **head.operands(segment)}
    at = segment.first + first
    adapters = [(lora, z) for lora, (_, z) in zip(loras, factors, strict=True)]
    fused = adapters[:1] if fuses(head) else []
    launch_nt(g, head, operands, params, fused, at)
    for lora, z in adapters[len(fused) :]:
        small_nt(g, z, lora.b, logits, columns=count, scale=lora.scale, first=at, add=True)
    return logits


def head_logits(
    g: Graph, hidden: Tensor, head: Weight, loras: tuple[Lora, ...], result: Window
) -> None:
    """All logits of hidden (C, D) into `result` (C, V), rows padded; for inference."""
    adapters = [(lora, lora_factor(g, hidden, lora, "head.z")[1]) for lora in loras]
    fused = adapters[:1] if fuses(head) else []
    for segment in head.segments:
        params = {**nt_params(hidden, segment.rows), **head.strides()}
        params |= {"y_stride": padded(head.rows) // 4, "y_column": segment.first // 4}
        operands = {"x": hidden, "y": result, **head.operands(segment)}
        launch_nt(g, head, operands, params, fused, segment.first)
    for lora, z in adapters[len(fused) :]:
        small_nt(g, z, lora.b, result, columns=head.rows, scale=lora.scale, add=True)


def _chunk_product(
    g: Graph, logits: Tensor, head: Weight, segment: Segment, first: int, dx: Tensor, *, add: bool
) -> None:
    """dx (+)= logits W over the chunk's rows of W."""
    params = {**nn_params(dx, logits.cols), **head.strides(), "weight_row": first}
    params |= {"dy_stride": padded(logits.cols) // 4, "dy_column": 0, "add": int(add)}
    operands = {"dy": logits, "dx": dx, **head.operands(segment)}
    launch_nn(g, head, operands, params)


def _subtract_target(
    g: Graph, head: Weight, inputs: Inputs, running: Tensor, gradient: Tensor
) -> None:
    for segment in head.segments:
        g.launch(
            "cross_entropy_finish",
            {
                "targets": inputs.targets,
                "running": running,
                "dx": gradient,
                **head.operands(segment),
            },
            {
                "rows": "C",
                "d4": padded(gradient.cols) // 4,
                "row_start": segment.first,
                "row_count": segment.rows,
                **head.strides(),
            },
            constants={"DIVIDE": segment.first == 0},
            libraries=head.libraries,
        )


def _trained_head(
    g: Graph,
    hidden: Tensor,
    head: Weight,
    loras: tuple[Lora, ...],
    factors: list[tuple[Tensor, Tensor]],
    inputs: Inputs,
    running: Tensor,
    gradient: Tensor | None,
    columns: int,
) -> None:
    """Second pass: d logits per chunk, then dx += dl W, u += dl B, dB += s dl^T z, and at the end
    dA and A's dx.
    """
    products = [g.tensor("head.u", "C", lora.rank) for lora in loras]
    for segment, first, count in _chunks(head, columns):
        at = segment.first + first
        logits = _logits(g, hidden, head, loras, factors, segment, first, count)
        g.launch(
            "cross_entropy_grad",
            {"targets": inputs.targets, "running": running, "logits": logits},
            {"rows": "C", "first": at, "columns": count, "stride": padded(count)},
        )
        if gradient is not None:
            _chunk_product(g, logits, head, segment, first, gradient, add=at > 0)
        for lora, (_, z), u in zip(loras, factors, products, strict=True):
            small_nn(g, logits, lora.b, u, first=at, add=at > 0)
            if lora.trains:
                accumulate(g, logits, z, _rows(lora.b, at, count), lora.scale)
    for lora, (source, _), u in zip(loras, factors, products, strict=True):
        if lora.trains:
            assert lora.a.gradient is not None
            accumulate(g, u, source, lora.a.gradient, lora.scale)
        lora_input_gradient(g, hidden, u, lora)


def _rows(parameter: Parameter, first: int, count: int) -> Window:
    """The gradient of some rows of a parameter."""
    assert parameter.gradient is not None
    storage, offset, _ = parameter.gradient
    row = padded(parameter.columns) * 4
    return storage.window(offset + first * row, count * row)
