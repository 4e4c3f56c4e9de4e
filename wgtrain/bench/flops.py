"""How many operations a LoRA step needs, by formula: the same for every trainer.

Two a multiply-add, products alone. Recomputation is not counted, nor what no gradient needs (dX of
the first block's query, key and value). T tokens, all trained; R rank.
"""

from wgtrain.bench.shapes import Shape

_FIRST = ("blk.0.attn_q.weight", "blk.0.attn_k.weight", "blk.0.attn_v.weight")


def step_flops(shape: Shape) -> dict[str, float]:
    """Operations of one step by kind."""
    config, t, r = shape.config, shape.tokens, shape.rank
    found = dict.fromkeys(("forward", "backward", "lora", "attention", "head"), 0.0)
    for name, (outputs, inputs) in config.linears().items():
        found["forward"] += 2.0 * t * outputs * inputs
        # z = x A^T, z B^T, u = dY B, dB = dY^T z, dA = u^T x, and u A where x trains
        found["lora"] += 2.0 * t * r * (2 * inputs + 3 * outputs)
        if name not in _FIRST:
            found["backward"] += 2.0 * t * outputs * inputs
            found["lora"] += 2.0 * t * r * inputs
    forward, backward = attention_flops(shape.rows, shape.length, config.n_head, config.head_size)
    found["attention"] = config.n_layer * (forward + backward)
    found["head"] = 2 * 2.0 * t * config.vocabulary * config.width
    return found


def attention_flops(
    rows: int, length: int, heads: int, head_size: int, window: int = 0
) -> tuple[float, float]:
    """Forward (q k^T, p v) and backward (s again, dp, dq, dk, dv), over the pairs that the causal
    mask and the window (0 = whole rows) leave, all heads.
    """
    seen = min(window or length, length)
    pairs = rows * heads * (seen * (seen + 1) / 2 + (length - seen) * seen)
    return 2 * 2.0 * head_size * pairs, 5 * 2.0 * head_size * pairs
