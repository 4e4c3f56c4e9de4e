"""Rotary embedding and attention: each forward, and right below it its vjp.

T tokens, H heads, K key-value heads, E head size.
"""

import math
from dataclasses import dataclass

from wgtrain.engine.graph import Graph, Tensor, Window, padded


@dataclass(frozen=True)
class Ranges:
    """Who sees whom, uint32 (T, 2) both: (first, after) of the `keys` that each token sees, at
    least one, and of the `queries` that see each token. Neither ever goes back from one token to
    the next.
    """

    keys: Window
    queries: Window


def rope(
    g: Graph,
    x: Tensor,
    positions: Window,
    table: Window,
    heads: int,
    rotary: int,
    interleaved: bool,
    name: str,
) -> Tensor:
    """Rotary embedding of (T, heads * E) by `positions` uint32 (T,); `table` (position, rotary / 2)
    of cos, sin.
    """
    params = {"rows": x.rows, "heads": heads, "head_size": x.cols // heads, "rotary": rotary}
    y = g.tensor(name, x.rows, x.cols, trains=x.trains)

    def rotate(source: Tensor, result: Tensor, inverse: bool) -> None:
        operands = {"x": source, "positions": positions, "table": table, "y": result}
        g.launch(
            "rope", operands, params, constants={"INTERLEAVED": interleaved, "INVERSE": inverse}
        )

    rotate(x, y, False)

    def vjp(dy: Tensor) -> None:
        dx = g.tensor(f"d.{name}", x.rows, x.cols)
        rotate(dy, dx, True)
        g.pass_gradient(x, dx)

    g.on_backward(y, vjp)
    return y


def scale_positions(g: Graph, x: Tensor, positions: Window, table: Window, name: str) -> Tensor:
    """x (T, D), each row times what `table` (position,) has for its position."""
    params = {"rows": x.rows, "d4": padded(x.cols) // 4}
    y = g.tensor(name, x.rows, x.cols, trains=x.trains)
    g.launch("scale_positions", {"x": x, "positions": positions, "table": table, "y": y}, params)

    def vjp(dy: Tensor) -> None:
        dx = g.tensor(f"d.{name}", x.rows, x.cols)
        operands = {"x": dy, "positions": positions, "table": table, "y": dx}
        g.launch("scale_positions", operands, params)
        g.pass_gradient(x, dx)

    g.on_backward(y, vjp)
    return y


def attention(
    g: Graph,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    ranges: Ranges,
    heads: int,
    kv_heads: int,
    scale: float,
    softcap: float = 0.0,
) -> Tensor:
    """Attention of each token to the keys in its range: q (T, H E), k and v (T, K E) -> (T, H E).

    Scores are s = scale q . k, or softcap tanh(s / softcap) where `softcap` is not 0.
    """
    head_size = q.cols // heads
    params = {"rows": q.rows, "heads": heads, "kv_heads": kv_heads, "scale": scale}
    cap, libraries = score(softcap)
    constants = {"E4": head_size // 4, **cap}
    o = g.tensor("attention", q.rows, q.cols, trains=q.trains or k.trains or v.trains)
    stats = g.tensor("attention.stats", q.rows, 2 * heads)
    operands = {"q": q, "k": k, "v": v, "key_range": ranges.keys, "o": o, "stats": stats}
    g.launch_tuned("attention", operands, params, constants, libraries)
    # q and k stay f32 also under bf16 capture: their rounding would be exponentiated, which costs
    # six times the accuracy of all gradients.
    saved = [g.save(tensor) for tensor in (v, o)] if o.trains else []

    def vjp(do: Tensor) -> None:
        kept_v, kept_o = (restore() for restore in saved)
        delta = {"rows": q.rows, "heads": heads, "e4": head_size // 4}
        g.launch("attention_delta", {"o": kept_o, "dout": do, "stats": stats}, delta)
        common = {"q": q, "k": k, "v": kept_v, "dout": do, "stats": stats}
        if q.trains:
            dq = g.tensor("d.q", q.rows, q.cols)
            operands = {**common, "key_range": ranges.keys, "dq": dq}
            g.launch_tuned("attention_backward_q", operands, params, constants, libraries)
            g.pass_gradient(q, dq)
        if k.trains or v.trains:
            dk, dv = g.tensor("d.k", k.rows, k.cols), g.tensor("d.v", v.rows, v.cols)
            operands = {**common, "query_range": ranges.queries, "dk": dk, "dv": dv}
            g.launch_tuned("attention_backward_kv", operands, params, constants, libraries)
            if k.trains:
                g.pass_gradient(k, dk)
            if v.trains:
                g.pass_gradient(v, dv)

    g.on_backward(o, vjp)
    return o


@dataclass(frozen=True)
class Cache:
    """Keys and values of a layer that stay from step to step: rows of (K E), f32. `places`, uint32
    (T, 2): the position of each token, and the row to which what it brings goes.
    """

    keys: Window
    values: Window
    places: Window


def cached_attention(
    g: Graph,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cache: Cache,
    keys: Window,
    heads: int,
    kv_heads: int,
    scale: float,
    softcap: float = 0.0,
) -> Tensor:
    """As `attention`, for inference: k and v go to the cache, and `keys`, as in `Ranges`, is of
    rows of the cache.
    """
    head_size = q.cols // heads
    operands = {"k": k, "v": v, "places": cache.places, "keys": cache.keys, "values": cache.values}
    g.launch("store_rows", operands, {"rows": k.rows, "d4": k.cols // 4})
    params = {"rows": q.rows, "heads": heads, "kv_heads": kv_heads, "scale": scale}
    cap, libraries = score(softcap)
    constants = {"E4": head_size // 4, **cap}
    o = g.tensor("attention", q.rows, q.cols)
    operands = {"q": q, "k": cache.keys, "v": cache.values, "key_range": keys, "o": o}
    if g.few:
        constants["GROUP"] = heads // kv_heads
        g.launch_tuned("attention_decode", operands, params, constants, libraries)
    else:
        operands["stats"] = g.tensor("attention.stats", q.rows, 2 * heads)
        g.launch_tuned("attention", operands, params, constants, libraries)
    return o


def score(softcap: float) -> tuple[dict[str, float], dict[str, str]]:
    """The constants and libraries of kernels whose scores or logits s become
    softcap tanh(s / softcap); none for 0.
    """
    return ({"CAP": softcap}, {"score": "score_capped"}) if softcap else ({}, {})


def default_attention_scale(head_size: int) -> float:
    """1 / sqrt(E)."""
    return 1 / math.sqrt(head_size)
