"""Linear + softmax cross-entropy over vocabulary chunks: no (C, V) array exists, untrained tokens
are not computed.

With a bare head this is attention with K = V = W: per chunk the logits, the running maximum m and
sum, and the sum of exp(l - m) W; at the end divide and subtract W[target]. Adapters beside the head
need the final maximum and sum before their gradients, hence one more pass.
"""

from collections.abc import Iterator

from wgtrain.engine.attention import score
from wgtrain.engine.graph import Graph, Operand, Tensor, Window, padded
from wgtrain.engine.linear import Applied, Linear
from wgtrain.engine.ops import Inputs
from wgtrain.engine.products import Rows, product_backward
from wgtrain.engine.weight import Weight

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
    head: Linear,
    inputs: Inputs,
    totals: Window,
    columns: int,
    softcap: float = 0.0,
    kept: Window | None = None,
) -> None:
    """Adds the loss of hidden (C, D) to `totals` and begins the backward pass with its gradient.

    Logits l become softcap tanh(l / softcap) where `softcap` is not 0. `kept`: where to leave what
    each trained token's loss is made of, a struct Running (C,).
    """
    running: Operand = kept or g.tensor("running", "C", 4)
    # What adapters add has to be multiplied by final gradients of the logits.
    second_pass = g.training and bool(head.adapters)
    applied = head.apply(g, hidden, "head", keep=second_pass)
    wants_gradient = hidden.trains and not second_pass
    gradient = g.gradient(hidden)[0] if hidden.trains else None
    for rows in _chunks(head.weight, columns):
        logits = _logits(g, applied, rows)
        g.launch_tuned(
            "cross_entropy_chunk",
            {"targets": inputs.targets, "logits": logits, "running": running},
            _chunk_params(rows),
            *score(softcap),
        )
        if wants_gradient:
            assert gradient is not None
            later = rows.first > 0
            if later:
                operands = {"running": running, "y": gradient}
                g.launch("scale_rows", operands, {"rows": "C", "d4": padded(hidden.cols) // 4})
            product_backward(g, logits, head.weight, rows, gradient, add=later)
    g.launch("loss_sum", {"running": running, "totals": totals}, {"rows": "C"})
    if wants_gradient:
        assert gradient is not None
        _subtract_target(g, head.weight, inputs, running, gradient, softcap)
    elif second_pass:
        _second_pass(g, applied, inputs, running, gradient, columns, softcap)


def _chunks(head: Weight, columns: int) -> Iterator[Rows]:
    """The rows of every chunk; none crosses a segment."""
    for segment in head.segments:
        for first in range(0, segment.rows, columns):
            yield Rows(segment.first + first, min(columns, segment.rows - first))


def _logits(g: Graph, head: Applied, rows: Rows) -> Tensor:
    logits = g.tensor(f"logits.{rows.first}", "C", rows.count)
    head.forward(g, logits, rows)
    return logits


def _chunk_params(rows: Rows) -> dict[str, int | str]:
    stride = padded(rows.count)
    return {"rows": "C", "first": rows.first, "columns": rows.count, "stride": stride}


def head_logits(
    g: Graph, hidden: Tensor, head: Linear, result: Window, softcap: float = 0.0
) -> None:
    """All logits of hidden (C, D) into `result` (C, V), rows padded; for inference. `softcap` as in
    `cross_entropy`.
    """
    head.apply(g, hidden, "head").forward(g, result, head.rows)
    if softcap:
        params = {"rows": "C", "d4": padded(head.rows.count) // 4}
        g.launch("soft_cap", {"y": result}, params, *score(softcap))


def _subtract_target(
    g: Graph, head: Weight, inputs: Inputs, running: Operand, gradient: Tensor, softcap: float
) -> None:
    constants, libraries = score(softcap)
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
            constants={"DIVIDE": segment.first == 0, **constants},
            libraries={**head.libraries, **libraries},
        )


def _second_pass(
    g: Graph,
    head: Applied,
    inputs: Inputs,
    running: Operand,
    gradient: Tensor | None,
    columns: int,
    softcap: float,
) -> None:
    """Per chunk d logits again, then dx += dl W and what adapters gather; at the end their dx."""
    weight = head.linear.weight
    for rows in _chunks(weight, columns):
        logits = _logits(g, head, rows)
        operands = {"targets": inputs.targets, "running": running, "logits": logits}
        g.launch("cross_entropy_grad", operands, _chunk_params(rows), *score(softcap))
        dl = head.receive(g, logits, rows)
        if gradient is not None:
            product_backward(g, dl, weight, rows, gradient, add=rows.first > 0)
        head.gradient_rows(g, head.x, dl, rows)
    head.gradient_rest(g, head.x)
    if gradient is not None:
        head.add_inputs(g, gradient)


def squared_error(g: Graph, y: Tensor, desired: Window, totals: Window) -> None:
    """Adds the mean over each row of (y - desired)^2, (C, N), to `totals`, whose count is of rows,
    and begins the backward pass with its gradient.
    """
    size = {"rows": y.rows, "d4": padded(y.cols) // 4}
    operands = {"y": y, "desired": desired}
    params = {**size, "factor": 1 / y.cols}
    g.launch("squared_error", {**operands, "totals": totals}, params)
    if y.trains:
        dy = g.tensor(f"d.{y.name}", y.rows, y.cols)
        params = {**size, "factor": 2 / y.cols}
        g.launch("squared_error_backward", {**operands, "dy": dy}, params)
        g.pass_gradient(y, dy)
