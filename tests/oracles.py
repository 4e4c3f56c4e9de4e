"""One numpy function per kernel, of the same name: float64, written for reading.

Arguments are named as the kernel's bindings, parameters and constants, and the fields of the step;
arrays are logical, without the padding of a row to a multiple of four. Each returns what the kernel
writes, by binding; NaN in a result means: not written. What a kernel adds to or changes in place
comes in as an argument of that name.

T tokens, D width, H heads, K key-value heads, E head size, C trained tokens, V vocabulary.
"""

import math

import numpy as np
from oracle_blocks import (  # noqa: F401
    repack_iq4_xs,
    repack_mxfp4,
    repack_q2_k,
    repack_q3_k,
    repack_q4_0,
    repack_q4_1,
    repack_q4_k,
    repack_q5_0,
    repack_q5_1,
    repack_q5_k,
    repack_q6_k,
    repack_q8_0,
    write_rows,
)

from wgtrain import random

Outputs = dict[str, np.ndarray]


def add(a: np.ndarray, b: np.ndarray) -> Outputs:
    return {"y": a + b}


def add_scaled(a: np.ndarray, b: np.ndarray, factor: float) -> Outputs:
    return {"y": a + factor * b}


def scale(x: np.ndarray, factor: float) -> Outputs:
    return {"y": factor * x}


def copy(x: np.ndarray) -> Outputs:
    return {"y": x}


def add_bias(bias: np.ndarray, y: np.ndarray, first: int) -> Outputs:
    """`first` in vec4s."""
    return {"y": y + bias[4 * first : 4 * first + y.shape[1]]}


def gather_rows(x: np.ndarray, index: np.ndarray) -> Outputs:
    return {"y": np.where(index[:, None] >= 0, x[np.maximum(index, 0)], 0.0)}


def scale_rows(running: np.ndarray, y: np.ndarray) -> Outputs:
    return {"y": y * running[:, 3:]}


def embed(
    tokens: np.ndarray,
    weight: np.ndarray,
    row_start: int,
    row_count: int,
    y: np.ndarray | None = None,
    FACTOR: float = 1.0,
) -> Outputs:
    y = np.full((len(tokens), weight.shape[1]), np.nan) if y is None else y.copy()
    row = tokens.astype(np.int64) - row_start
    inside = (row >= 0) & (row < row_count)
    y[inside] = FACTOR * weight[row[inside]]
    return {"y": y}


def dropout(
    x: np.ndarray,
    d4: int,
    dropout_key: int,
    site: int,
    threshold: int,
    scale: float,
    y: np.ndarray | float = 0.0,
) -> Outputs:
    bits = random.stream(random.mix(dropout_key ^ site), len(x) * 4 * d4).reshape(len(x), 4 * d4)
    kept = (bits >> np.uint32(8)) >= threshold
    return {"y": y + x * kept[:, : x.shape[1]] * scale}


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 0.5 * (1 + np.tanh(x / 2))


def silu(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Its values and its slopes."""
    s = sigmoid(x)
    return x * s, s + x * s * (1 - s)


def gelu(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Its values and its slopes."""
    k = math.sqrt(2 / math.pi)
    t = np.tanh(k * (x + 0.044715 * x**3))
    return 0.5 * x * (1 + t), 0.5 * (1 + t) + 0.5 * x * (1 - t**2) * k * (1 + 0.134145 * x**2)


def gelu_erf(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Its values and its slopes."""
    share = 0.5 * np.vectorize(math.erfc, otypes=[np.float64])(-x / math.sqrt(2))
    density = np.exp(-0.5 * np.minimum(x * x, 1400.0)) / math.sqrt(2 * math.pi)
    return x * share, share + x * density


def relu(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Its values and its slopes."""
    return np.maximum(x, 0.0), (x > 0).astype(np.float64)


def tanh(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Its values and its slopes."""
    return np.tanh(x), np.cosh(np.clip(x, -300.0, 300.0)) ** -2.0


ACTIVATIONS = {
    "activation_silu": silu,
    "activation_gelu": gelu,
    "activation_gelu_erf": gelu_erf,
    "activation_relu": relu,
    "activation_tanh": tanh,
}


def glu(gate: np.ndarray, up: np.ndarray, activation: str = "activation_silu") -> Outputs:
    return {"y": ACTIVATIONS[activation](gate)[0] * up}


def glu_backward(
    gate: np.ndarray, up: np.ndarray, dy: np.ndarray, activation: str = "activation_silu"
) -> Outputs:
    value, slope = ACTIVATIONS[activation](gate)
    return {"dgate": dy * up * slope, "dup": dy * value}


def activate(x: np.ndarray, activation: str = "activation_silu") -> Outputs:
    return {"y": ACTIVATIONS[activation](x)[0]}


def activate_backward(
    x: np.ndarray, dy: np.ndarray, activation: str = "activation_silu"
) -> Outputs:
    return {"dx": dy * ACTIVATIONS[activation](x)[1]}


def rms_norm(x: np.ndarray, w: np.ndarray, groups: int, eps: float) -> Outputs:
    parts = x.reshape(len(x), groups, -1)
    y = parts / np.sqrt(np.mean(parts**2, -1, keepdims=True) + eps) * w
    return {"y": y.reshape(x.shape)}


def rms_norm_backward(
    x: np.ndarray,
    w: np.ndarray,
    dy: np.ndarray,
    groups: int,
    eps: float,
    dx: np.ndarray | float = 0.0,
) -> Outputs:
    parts, upstream = x.reshape(len(x), groups, -1), dy.reshape(len(x), groups, -1)
    r = 1 / np.sqrt(np.mean(parts**2, -1, keepdims=True) + eps)
    inner = np.mean(parts * w * upstream, -1, keepdims=True)
    gradient = r * w * upstream - r**3 * parts * inner
    return {"dx": dx + gradient.reshape(x.shape)}


def layer_norm(
    x: np.ndarray,
    w: np.ndarray,
    groups: int,
    eps: float,
    bias: np.ndarray | float = 0.0,
) -> Outputs:
    parts = x.reshape(len(x), groups, -1)
    centred = parts - parts.mean(-1, keepdims=True)
    y = centred / np.sqrt(np.mean(centred**2, -1, keepdims=True) + eps)
    return {"y": y.reshape(x.shape) * w + bias}


def layer_norm_backward(
    x: np.ndarray,
    w: np.ndarray,
    dy: np.ndarray,
    groups: int,
    eps: float,
    dx: np.ndarray | float = 0.0,
) -> Outputs:
    parts, upstream = x.reshape(len(x), groups, -1), (w * dy).reshape(len(x), groups, -1)
    centred = parts - parts.mean(-1, keepdims=True)
    r = 1 / np.sqrt(np.mean(centred**2, -1, keepdims=True) + eps)
    z = centred * r
    inner = np.mean(z * upstream, -1, keepdims=True)
    gradient = r * (upstream - upstream.mean(-1, keepdims=True) - z * inner)
    return {"dx": dx + gradient.reshape(x.shape)}


def rope(
    x: np.ndarray,
    positions: np.ndarray,
    table: np.ndarray,
    heads: int,
    rotary: int,
    INTERLEAVED: bool = False,
    INVERSE: bool = False,
) -> Outputs:
    y = x.reshape(len(x), heads, -1).copy()
    angle = table[positions, :, 0] + 1j * table[positions, :, 1]
    angle = (np.conj(angle) if INVERSE else angle)[:, None]
    if INTERLEAVED:
        first, second = slice(0, rotary, 2), slice(1, rotary, 2)
    else:
        first, second = slice(0, rotary // 2), slice(rotary // 2, rotary)
    turned = (y[..., first] + 1j * y[..., second]) * angle
    y[..., first], y[..., second] = turned.real, turned.imag
    return {"y": y.reshape(x.shape)}


def scale_positions(x: np.ndarray, positions: np.ndarray, table: np.ndarray) -> Outputs:
    return {"y": table[positions][:, None] * x}


def within(ranges: np.ndarray) -> np.ndarray:
    """(T, T) bool: does `ranges` (first, after) of each row hold the column."""
    at = np.arange(len(ranges))
    return (at >= ranges[:, :1]) & (at < ranges[:, 1:])


def capped(product: np.ndarray, CAP: float) -> tuple[np.ndarray, np.ndarray | float]:
    """The score of scale q . k or of a logit, and its slope."""
    if not CAP:
        return product, 1.0
    return CAP * np.tanh(product / CAP), 1 - np.tanh(product / CAP) ** 2


def by_head(x: np.ndarray, heads: int, repeat: int = 1) -> np.ndarray:
    """(T, heads E) -> (heads repeat, T, E)."""
    return np.repeat(x.reshape(len(x), heads, -1).transpose(1, 0, 2), repeat, 0)


def by_token(x: np.ndarray) -> np.ndarray:
    """(H, T, E) -> (T, H E)."""
    return x.transpose(1, 0, 2).reshape(x.shape[1], -1)


def attention(
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    key_range: np.ndarray,
    heads: int,
    kv_heads: int,
    scale: float,
    CAP: float = 0.0,
) -> Outputs:
    repeat = heads // kv_heads
    products = scale * by_head(q, heads) @ by_head(k, kv_heads, repeat).transpose(0, 2, 1)
    scores = np.where(within(key_range), capped(products, CAP)[0], -np.inf)
    highest = scores.max(-1, keepdims=True)
    lse = highest + np.log(np.exp(scores - highest).sum(-1, keepdims=True))
    o = np.exp(scores - lse) @ by_head(v, kv_heads, repeat)
    stats = np.stack([lse[..., 0].T, np.zeros((len(q), heads))], -1)
    return {"o": by_token(o), "stats": stats}


def attention_decode(
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    key_range: np.ndarray,
    heads: int,
    kv_heads: int,
    scale: float,
    CAP: float = 0.0,
) -> Outputs:
    """One query after the other, each over its own part of k and v."""
    made = []
    for query, (first, after) in zip(q, key_range, strict=True):
        keys, values = (by_head(x[first:after], kv_heads, heads // kv_heads) for x in (k, v))
        scores = capped(scale * by_head(query[None], heads) @ keys.transpose(0, 2, 1), CAP)[0]
        p = np.exp(scores - scores.max(-1, keepdims=True))
        made.append(by_token(p / p.sum(-1, keepdims=True) @ values)[0])
    return {"o": np.stack(made)}


def store_rows(
    k: np.ndarray, v: np.ndarray, places: np.ndarray, keys: np.ndarray, values: np.ndarray
) -> Outputs:
    keys, values = keys.copy(), values.copy()
    keys[places[:, 1]], values[places[:, 1]] = k, v
    return {"keys": keys, "values": values}


def rope_store(
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    places: np.ndarray,
    table: np.ndarray,
    keys: np.ndarray,
    values: np.ndarray,
    heads: int,
    kv_heads: int,
    rotary: int,
    INTERLEAVED: bool,
) -> Outputs:
    turned = [
        rope(x, places[:, 0], table, count, rotary, INTERLEAVED, False)["y"]
        for x, count in ((q, heads), (k, kv_heads))
    ]
    return {"y": turned[0], **store_rows(turned[1], v, places, keys, values)}


def add_norm(a: np.ndarray, b: np.ndarray, w: np.ndarray, eps: float, factor: float) -> Outputs:
    y = a + factor * b
    return {"y": y, "z": rms_norm(y, w, 1, eps)["y"]}


def norm_add_norm(
    a: np.ndarray, b: np.ndarray, w: np.ndarray, w_b: np.ndarray, eps: float, factor: float
) -> Outputs:
    return add_norm(a, rms_norm(b, w_b, 1, eps)["y"], w, eps, factor)


def attention_delta(o: np.ndarray, dout: np.ndarray, stats: np.ndarray) -> Outputs:
    delta = (o * dout).reshape(len(o), stats.shape[1], -1).sum(-1)
    return {"stats": np.stack([stats[..., 0], delta], -1)}


def _softmax_gradient(
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    dout: np.ndarray,
    stats: np.ndarray,
    sees: np.ndarray,
    heads: int,
    kv_heads: int,
    scale: float,
    CAP: float,
) -> tuple[np.ndarray, np.ndarray]:
    """P and the gradient of q . k, both (H, T, T), from the kept log-sum-exp and delta."""
    repeat = heads // kv_heads
    products = scale * by_head(q, heads) @ by_head(k, kv_heads, repeat).transpose(0, 2, 1)
    scores, slope = capped(products, CAP)
    lse, delta = stats.transpose(2, 1, 0)[..., None]
    p = np.exp(np.where(sees, scores - lse, -np.inf))
    dp = by_head(dout, heads) @ by_head(v, kv_heads, repeat).transpose(0, 2, 1)
    return p, p * (dp - delta) * slope * scale


def attention_backward_q(
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    dout: np.ndarray,
    stats: np.ndarray,
    key_range: np.ndarray,
    heads: int,
    kv_heads: int,
    scale: float,
    CAP: float = 0.0,
) -> Outputs:
    sees = within(key_range)
    _, ds = _softmax_gradient(q, k, v, dout, stats, sees, heads, kv_heads, scale, CAP)
    return {"dq": by_token(ds @ by_head(k, kv_heads, heads // kv_heads))}


def attention_backward_kv(
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    dout: np.ndarray,
    stats: np.ndarray,
    query_range: np.ndarray,
    heads: int,
    kv_heads: int,
    scale: float,
    CAP: float = 0.0,
) -> Outputs:
    sees = within(query_range).T
    p, ds = _softmax_gradient(q, k, v, dout, stats, sees, heads, kv_heads, scale, CAP)
    dk = ds.transpose(0, 2, 1) @ by_head(q, heads)
    dv = p.transpose(0, 2, 1) @ by_head(dout, heads)
    shared = (kv_heads, heads // kv_heads, *dk.shape[1:])
    return {
        "dk": by_token(dk.reshape(shared).sum(1)),
        "dv": by_token(dv.reshape(shared).sum(1)),
    }


def matmul_nt(
    x: np.ndarray,
    weight: np.ndarray,
    n: int,
    scale: float,
    weight_row: int = 0,
    y_column: int = 0,
    y_stride: int = 0,
    y: np.ndarray | None = None,
    add: int = 0,
    lora: np.ndarray | None = None,
    lora_matrix: np.ndarray | None = None,
    lora_row: int = 0,
    lora_scale: float = 0.0,
    lora_list: np.ndarray | None = None,
    lora_first: int = 0,
    bias: np.ndarray | None = None,
    lora_stride: int = 0,
    columns: str = "",
) -> Outputs:
    """y_column and y_stride in vec4s. Of y, the window's columns past n become zero; with
    `columns_used` those that are not stay as they are.
    """
    whole = np.full((len(x), 4 * y_stride), np.nan) if y is None else y.copy()
    window = whole[:, 4 * y_column : 4 * (y_column + -(-n // 4))]
    product = scale * x @ weight[weight_row : weight_row + n].T
    if lora is not None and lora_matrix is not None and lora_list is not None:
        added = loaded(lora, lora_matrix, lora_list, lora_first)
        product += scale * added[:, lora_row : lora_row + n]
    elif lora is not None and lora_matrix is not None:
        product += scale * lora_scale * lora @ lora_matrix[lora_row : lora_row + n].T
    if bias is not None:
        product += scale * bias[lora_row : lora_row + n]
    if columns == "columns_used":
        assert lora_list is not None
        used = lora_list[1 + lora_stride + np.arange(n) // 4 % lora_stride, 0] != 0
        product[:, ~used] = window[:, :n][:, ~used]
    window[:, :n] = product + window[:, :n] if add else product
    window[:, n:] = 0.0
    return {"y": whole}


def loaded(
    lora: np.ndarray, lora_matrix: np.ndarray, lora_list: np.ndarray, lora_first: int
) -> np.ndarray:
    """What loaded adapters add: z (T, 4 places), B (quads, 4 N) of four ranks each."""
    steps = lora_list[1 : lora_list[0, 0] + 1]
    b = lora_matrix.reshape(len(lora_matrix), -1, 4)
    found = np.zeros((len(lora), b.shape[1]))
    for quad, strength in zip(steps[:, 0], steps[:, 1].view(np.float32), strict=True):
        z = lora[:, 4 * (lora_first + quad) :][:, :4]
        found += float(strength) * z @ b[quad].T
    return found


def add_adapters(
    y: np.ndarray,
    n: int,
    lora: np.ndarray,
    lora_matrix: np.ndarray,
    lora_list: np.ndarray,
    lora_row: int,
    lora_first: int,
) -> Outputs:
    """Of y, the columns past n stay."""
    y = y.copy()
    y[:, :n] += loaded(lora, lora_matrix, lora_list, lora_first)[:, lora_row : lora_row + n]
    return {"y": y}


def matmul_nn(
    dy: np.ndarray,
    weight: np.ndarray,
    n: int,
    scale: float,
    weight_row: int = 0,
    dy_column: int = 0,
    dx: np.ndarray | float = 0.0,
    add: int = 0,
    lora: np.ndarray | None = None,
    lora_matrix: np.ndarray | None = None,
    lora_scale: float = 0.0,
) -> Outputs:
    """dy_column in vec4s."""
    window = dy[:, 4 * dy_column : 4 * dy_column + n]
    product = scale * window @ weight[weight_row : weight_row + n]
    if lora is not None and lora_matrix is not None:
        product += scale * lora_scale * lora @ lora_matrix
    return {"dx": product + dx if add else product}


def matmul_tn(
    a: np.ndarray, b: np.ndarray, scale: float, out: np.ndarray | float = 0.0, out_row: int = 0
) -> Outputs:
    """Of out, a.shape[1] rows from `out_row` on are added to."""
    product = scale * a.T @ b
    whole = np.zeros_like(product) if isinstance(out, float) else out.copy()
    whole[out_row : out_row + len(product)] += product
    return {"out": whole}


# Variants for other adapters compute the same.
matmul_nt_tiled = matmul_nt_split = matmul_nt_subgroup = matmul_nt
matvec = matvec_split = matvec_subgroup = matmul_nt
matmul_nn_tiled = matmul_nn_split = matmul_nn_subgroup = matmul_nn
matmul_tn_split = matmul_tn
attention_tiled, attention_backward_q_tiled = attention, attention_backward_q
attention_backward_kv_tiled = attention_backward_kv
attention_subgroup, attention_backward_q_subgroup = attention, attention_backward_q
attention_backward_kv_subgroup = attention_backward_kv


def cross_entropy_chunk(
    targets: np.ndarray,
    logits: np.ndarray,
    first: int,
    columns: int,
    running: np.ndarray | None = None,
    CAP: float = 0.0,
) -> Outputs:
    logits, slope = capped(logits, CAP)
    if first == 0 or running is None:
        running = np.tile([-np.inf, 0.0, 0.0, 0.0], (len(logits), 1))
    highest, total, target_logit, _ = running.T
    above = np.maximum(highest, logits.max(1))
    p = np.exp(logits - above[:, None])
    factor = np.exp(highest - above)
    column = targets.astype(np.int64) - first
    inside = (column >= 0) & (column < columns)
    found = logits[np.arange(len(logits)), np.where(inside, column, 0)]
    target_logit = np.where(inside, found, target_logit)
    return {
        "logits": p * slope,
        "running": np.stack([above, total * factor + p.sum(1), target_logit, factor], 1),
    }


def cross_entropy_finish(
    targets: np.ndarray,
    running: np.ndarray,
    weight: np.ndarray,
    dx: np.ndarray,
    row_start: int,
    row_count: int,
    DIVIDE: bool = True,
    CAP: float = 0.0,
) -> Outputs:
    row = targets.astype(np.int64) - row_start
    inside = (row >= 0) & (row < row_count)
    target = np.where(inside[:, None], weight[np.where(inside, row, 0)], 0.0)
    if CAP:
        target *= 1 - (running[:, 2:3] / CAP) ** 2
    return {"dx": (dx / running[:, 1:2] if DIVIDE else dx) - target}


def cross_entropy_grad(
    targets: np.ndarray, running: np.ndarray, logits: np.ndarray, first: int, CAP: float = 0.0
) -> Outputs:
    logits, slope = capped(logits, CAP)
    p = np.exp(logits - running[:, :1]) / running[:, 1:2]
    columns = first + np.arange(logits.shape[1])
    return {"logits": (p - (targets[:, None] == columns)) * slope}


def soft_cap(y: np.ndarray, CAP: float) -> Outputs:
    return {"y": capped(y, CAP)[0]}


def loss_sum(running: np.ndarray, totals: np.ndarray) -> Outputs:
    result = totals.copy()
    result["loss"] += (running[:, 0] + np.log(running[:, 1]) - running[:, 2]).sum()
    result["count"] += len(running)
    return {"totals": result}


def squared_error(y: np.ndarray, desired: np.ndarray, totals: np.ndarray, factor: float) -> Outputs:
    after = totals.copy()
    after["loss"] += factor * ((y - desired) ** 2).sum()
    after["count"] += len(y)
    return {"totals": after}


def squared_error_backward(y: np.ndarray, desired: np.ndarray, factor: float) -> Outputs:
    return {"dy": factor * (y - desired)}


def grad_norm(
    grads: np.ndarray, n4: int, first: int, GROUPS: int, LANES: int, partials: np.ndarray
) -> Outputs:
    """Of `groups` workgroups i sums every groups-th block of LANES vec4s, from block i on."""
    result, block = partials.copy(), 4 * LANES
    groups = min(GROUPS, -(-n4 // LANES))
    squares = np.append(grads[: 4 * n4] ** 2, np.zeros(-4 * n4 % (block * groups)))
    result[first : first + groups] = squares.reshape(-1, groups, block).sum((0, 2))
    return {"partials": result}


def finish_step(
    partials: np.ndarray,
    partial_count: int,
    totals: np.ndarray,
    control: np.ndarray,
    ring: np.ndarray,
    slot: int,
    max_grad_norm: float,
) -> Outputs:
    (control,), ring, (totals,) = control.copy(), ring.copy(), totals.copy()
    count = max(int(totals["count"]), 1)
    norm, loss = math.sqrt(partials[:partial_count].sum()) / count, totals["loss"] / count
    latched = bool(control["latched"]) or not (math.isfinite(norm) and math.isfinite(loss))
    clip = min(1.0, max_grad_norm / (norm + 1e-6)) if max_grad_norm > 0 else 1.0
    ring[slot] = (loss, norm, totals["count"], not latched)
    control["latched"], control["factor"] = latched, clip / count
    totals["loss"], totals["count"] = 0, 0
    return {"totals": np.array([totals]), "control": np.array([control]), "ring": ring}


def adamw(
    control: np.ndarray,
    params_arena: np.ndarray,
    grads: np.ndarray,
    first_moment: np.ndarray,
    second_moment: np.ndarray,
    learning_rate: float,
    keep: float,
    beta1: float,
    beta2: float,
    rest1: float,
    rest2: float,
    correction1: float,
    correction2: float,
    epsilon: float,
) -> Outputs:
    p, m, v = params_arena, first_moment, second_moment
    if not control["latched"][0]:
        g = grads * control["factor"][0]
        m, v = beta1 * m + rest1 * g, beta2 * v + rest2 * g**2
        p = p * keep - learning_rate * (m / correction1) / (np.sqrt(v / correction2) + epsilon)
        grads = np.zeros_like(grads)
    return {"params_arena": p, "grads": grads, "first_moment": m, "second_moment": v}


def capture_bf16(x: np.ndarray, d4: int) -> Outputs:
    """Bits of the nearest bf16, ties to even: eight significant bits, quantum at least 2^-133."""
    finite = np.where(np.isfinite(x), x, 0.0)
    quantum = np.exp2(np.maximum(np.frexp(finite)[1] - 8, -133).astype(np.float64))
    nearest = np.rint(finite / quantum) * quantum
    nearest = np.where(np.abs(nearest) >= 2.0**128, np.copysign(np.inf, x), nearest)
    nearest = np.copysign(np.where(np.isfinite(x), nearest, x), x).astype(np.float32)
    bits = np.zeros((len(x), 4 * d4), np.uint16)
    bits[:, : x.shape[1]] = nearest.view(np.uint32) >> np.uint32(16)
    return {"y": bits}


def restore_bf16(x: np.ndarray) -> Outputs:
    return {"y": (x.astype(np.uint32) << np.uint32(16)).view(np.float32).astype(np.float64)}


def _blocks(raw: np.ndarray, slice_rows: int, raw_offset: int, raw_row: int) -> np.ndarray:
    """The rows of a slice as bytes (slice_rows, raw_row)."""
    return raw[raw_offset : raw_offset + slice_rows * raw_row].reshape(slice_rows, raw_row)


def repack_f32(
    raw: np.ndarray,
    planes: np.ndarray,
    marks: np.ndarray,
    slice_rows: int,
    first_row: int,
    weight_stride: int,
    raw_offset: int,
    raw_row: int,
) -> Outputs:
    planes = planes.copy()
    rows = _blocks(raw, slice_rows, raw_offset, raw_row)
    write_rows(planes, rows, first_row, 4 * weight_stride)
    return {"planes": planes, "marks": marks | ~np.isfinite(rows.view("<f4")).all()}


def repack_16(
    raw: np.ndarray,
    planes: np.ndarray,
    marks: np.ndarray,
    slice_rows: int,
    first_row: int,
    weight_stride: int,
    raw_offset: int,
    raw_row: int,
    EXPONENT: int,
) -> Outputs:
    planes = planes.copy()
    rows = _blocks(raw, slice_rows, raw_offset, raw_row)
    write_rows(planes, rows, first_row, 4 * weight_stride)
    return {"planes": planes, "marks": marks | np.any(rows.view("<u2") & EXPONENT == EXPONENT)}


def repack_half(
    raw: np.ndarray,
    planes: np.ndarray,
    marks: np.ndarray,
    slice_rows: int,
    first_row: int,
    weight_stride: int,
    raw_offset: int,
    raw_row: int,
    BF16: bool,
) -> Outputs:
    """The nearest f16, ties to even."""
    planes = planes.copy()
    rows = _blocks(raw, slice_rows, raw_offset, raw_row)
    bits = rows.view("<u2").astype("<u4") << 16 if BF16 else rows.view("<u4")
    values = bits.view("<f4")
    beyond = np.abs(values) > 65504
    half = np.where(beyond, np.copysign(np.inf, values), values).astype("<f2")
    write_rows(planes, half.view(np.uint8), first_row, 4 * weight_stride)
    return {"planes": planes, "marks": marks | np.uint32(2 * beyond.any())}


def probe_subgroup(LANES: int, size: int, groups: int = 2) -> dict[str, np.ndarray]:
    """Subgroups of `size` consecutive invocations."""
    lane = np.arange(LANES)
    sizes = np.full(LANES, size)
    seen = np.stack([sizes, sizes, lane % size, lane - lane % size], 1)
    return {"seen": np.stack([seen] * groups)}
