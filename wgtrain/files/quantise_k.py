"""Quantisers of ggml's K types, Q4_K, Q5_K and Q6_K: blocks of 256 values whose groups have integer
scales under a common f16 one.

Of the roundings of a group, made with the range stretched by some amounts, the one is taken whose
best scale (and minimum) by weighted least squares leaves the least error; large values weigh more,
as in llama.cpp. Then the scales are rounded, and the values once more by what became of them.
Arrays are (values of a group, groups), so that all sums run along memory.
"""

import numpy as np

BLOCK = 256  # values
SLICE = 256  # blocks at a time: what the search works on stays in a processor's cache
TYPES = ("Q4_K", "Q5_K", "Q6_K")

# By how much the range of integers is stretched over a group's values, in the trials. Fewer miss
# llama.cpp's error on weights with outliers.
_STRETCHES = {
    "Q4_K": np.linspace(-1.5, 0.9, 9),
    "Q5_K": np.linspace(-2, 1, 9),
    "Q6_K": np.linspace(-0.9, 0.9, 10),
}
_LARGEST = 1e9  # no type holds more, and f32 holds what the search makes of it
_BEYOND = "a scale is beyond f16"
_REFINED = 2  # more trials, each with the integers that belong to the best scale and minimum so far


def quantise(values: np.ndarray, kind: str) -> np.ndarray:
    """float32 (..., 256 n), finite -> uint8 blocks (blocks, bytes of a block) of one of TYPES.

    OverflowError where a scale is beyond f16.
    """
    encode = {"Q4_K": _q4_k, "Q5_K": _q5_k, "Q6_K": _q6_k}[kind]
    blocks = values.reshape(-1, BLOCK)
    if np.abs(values).max(initial=0) > _LARGEST:
        raise OverflowError(_BEYOND)
    if not len(blocks):
        return encode(np.zeros((1, BLOCK), np.float32))[:0]
    return np.concatenate([encode(blocks[at : at + SLICE]) for at in range(0, len(blocks), SLICE)])


def _q4_k(blocks: np.ndarray) -> np.ndarray:
    """d, dmin, 12 bytes of scales, 128 of nibbles."""
    head, q = _affine_blocks(blocks, 15, _STRETCHES["Q4_K"])
    return np.concatenate([head, _nibbles(q)], axis=1)


def _q5_k(blocks: np.ndarray) -> np.ndarray:
    """d, dmin, 12 bytes of scales, 32 of high bits, 128 of nibbles."""
    head, q = _affine_blocks(blocks, 31, _STRETCHES["Q5_K"])
    high = np.packbits(q >> 4, axis=1, bitorder="little").reshape(len(q), 32)
    return np.concatenate([head, high, _nibbles(q & 15)], axis=1)


def _q6_k(blocks: np.ndarray) -> np.ndarray:
    """128 bytes of nibbles, 64 of high crumbs, 16 scales, d."""
    x = np.ascontiguousarray(blocks.reshape(-1, 16).T)
    scale = _symmetric(x, 32, _STRETCHES["Q6_K"]).reshape(-1, 16)
    widest = np.take_along_axis(scale, np.abs(scale).argmax(1)[:, None], 1)
    d = _half(widest / np.float32(-128))
    scales = np.clip(np.rint(_over(scale, d)), -128, 127)
    q = _rounded(x, _over(np.float32(1), (d * scales).reshape(-1)), -32, 31)
    q = (q + 32).astype(np.uint8).T.reshape(-1, 2, 4, 32)  # halves of a block, its quarters
    low, high = q & 15, q >> 4
    nibbles = low[:, :, :2] | low[:, :, 2:] << 4
    crumbs = high[:, :, 0] | high[:, :, 1] << 2 | high[:, :, 2] << 4 | high[:, :, 3] << 6
    parts = [
        *(nibbles.reshape(-1, 128), crumbs.reshape(-1, 64)),
        *(scales.astype(np.int8).view(np.uint8), _half_bytes(d)),
    ]
    return np.concatenate(parts, axis=1)


def _affine_blocks(
    blocks: np.ndarray, top: int, stretches: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """d, dmin and scales as 16 bytes; the integers (blocks, 8 groups, 32)."""
    x = np.ascontiguousarray(blocks.reshape(-1, 32).T)
    scale, minimum = (found.reshape(-1, 8) for found in _affine(x, top, stretches))
    d = _half(scale.max(1, keepdims=True) / np.float32(63))
    dmin = _half(minimum.max(1, keepdims=True) / np.float32(63))
    sc = np.minimum(np.rint(_over(scale, d)), 63)
    mn = np.minimum(np.rint(_over(minimum, dmin)), 63)
    x += (dmin * mn).reshape(-1)
    q = _rounded(x, _over(np.float32(1), (d * sc).reshape(-1)), 0, top)
    s, m = sc.astype(np.uint8), mn.astype(np.uint8)
    packed = [
        *(s[:, :4] | s[:, 4:] >> 4 << 6, m[:, :4] | m[:, 4:] >> 4 << 6),
        s[:, 4:] & 15 | m[:, 4:] << 4,
    ]
    head = np.concatenate([_half_bytes(d), _half_bytes(dmin), *packed], axis=1)
    return head, q.astype(np.uint8).T.reshape(-1, 8, 32)


def _nibbles(q: np.ndarray) -> np.ndarray:
    """Groups 0, 2, 4, 6 in the low halves of bytes, 1, 3, 5, 7 in the high ones."""
    return (q[:, ::2] | q[:, 1::2] << 4).reshape(-1, 128)


def _affine(x: np.ndarray, top: int, stretches: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(scale, minimum), neither negative, of columns: x ~ scale q - minimum with q in 0..top."""
    weight = np.abs(x)
    weight += np.sqrt(np.einsum("lg,lg->g", x, x) / np.float32(len(x)))
    weighted = weight * x
    sum_w, sum_x = weight.sum(0), weighted.sum(0)
    low = np.minimum(x.min(0), 0)
    span = x.max(0) - low
    above = x - low
    scale, offset = np.zeros_like(low), low
    best = np.full_like(low, -np.inf)
    q, wq = np.empty_like(x), np.empty_like(x)
    for trial in range(len(stretches) + _REFINED):
        if trial < len(stretches):
            _rounded(above, _over(np.float32(top + stretches[trial]), span), None, top, q)
        else:
            np.subtract(x, offset, out=q)
            _rounded(q, _over(np.float32(1), scale), 0, top, q)
        np.multiply(weight, q, out=wq)
        sum_q = wq.sum(0)
        sum_xq = np.einsum("lg,lg->g", wq, x)
        sum_qq = np.einsum("lg,lg->g", wq, q)
        # Least squares of both; of the scale alone where they would need a positive offset.
        determinant = sum_w * sum_qq - sum_q * sum_q
        new_scale = _over(sum_w * sum_xq - sum_x * sum_q, determinant)
        new_offset = _over(sum_qq * sum_x - sum_q * sum_xq, determinant)
        alone = (new_offset > 0) | (determinant <= 0)
        new_scale = np.where(alone, _over(sum_xq, sum_qq), new_scale)
        new_offset = np.where(alone, 0, new_offset)
        explained = new_scale * sum_xq + new_offset * sum_x
        better = (explained > best) & (new_scale > 0)
        best = np.where(better, explained, best)
        scale = np.where(better, new_scale, scale)
        offset = np.where(better, new_offset, offset)
    return scale, -offset


def _symmetric(x: np.ndarray, top: int, stretches: np.ndarray) -> np.ndarray:
    """The scale of columns: x ~ scale q with q in -top..top - 1; the value farthest from 0 is
    negative there, which has one integer more.
    """
    farthest = np.take_along_axis(x, np.abs(x).argmax(0)[None], 0)[0]
    weight = x * x
    weighted = weight * x
    scale, best = np.zeros_like(farthest), np.zeros_like(farthest)
    q, wq = np.empty_like(x), np.empty_like(x)
    for stretch in stretches:
        _rounded(x, _over(np.float32(-(top + stretch)), farthest), -top, top - 1, q)
        sum_xq = np.einsum("lg,lg->g", weighted, q)
        np.multiply(weight, q, out=wq)
        sum_qq = np.einsum("lg,lg->g", wq, q)
        new_scale = _over(sum_xq, sum_qq)
        explained = new_scale * sum_xq
        better = explained > best
        best = np.where(better, explained, best)
        scale = np.where(better, new_scale, scale)
    return scale


def _rounded(
    x: np.ndarray,
    factor: np.ndarray,
    low: int | None,
    high: int,
    out: np.ndarray | None = None,
) -> np.ndarray:
    """The nearest integers of x times a factor for each column, within low..high."""
    out = np.multiply(x, factor, out=out)
    np.rint(out, out=out)
    np.minimum(out, np.float32(high), out=out)
    return out if low is None else np.maximum(out, np.float32(low), out=out)


def _over(a: np.ndarray | np.float32, b: np.ndarray) -> np.ndarray:
    """a / b, 0 where b is 0 or so small that the quotient is beyond f32."""
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        found = a / b
    return np.where(np.isfinite(found), found, np.float32(0))


def _half(values: np.ndarray) -> np.ndarray:
    """float32 rounded to f16."""
    with np.errstate(over="ignore"):
        found = values.astype(np.float16).astype(np.float32)
    if not np.isfinite(found).all():
        raise OverflowError(_BEYOND)
    return found


def _half_bytes(values: np.ndarray) -> np.ndarray:
    return values.astype("<f2").view(np.uint8)
