"""Adapters of separate q, k and v for a model that has them in one tensor, and the other way round.

Both are exact: A of one is shared or stacked, B cut or put on a diagonal of blocks.
"""

from collections.abc import Mapping

import numpy as np

from wgtrain.files.gguf_parser import TensorInfo

Pair = tuple[np.ndarray, np.ndarray]
Pairs = dict[str, Pair]
QKV = "attn_qkv"
PARTS = ("attn_q", "attn_k", "attn_v")


def fit_pairs(given: Pairs, tensors: Mapping[str, TensorInfo]) -> Pairs:
    """Pairs where a model has its tensors, all of one rank; what does not fit stays as it is."""
    found: Pairs = {}
    parts: dict[str, Pairs] = {}  # by block, of those to be fused
    for name, pair in given.items():
        block, _, rest = name.rpartition("attn_")
        short = f"attn_{rest}".removesuffix(".weight")
        whole = f"{block}{QKV}.weight"
        if name in tensors or short not in (*PARTS, QKV):
            found[name] = pair
        elif short in PARTS and whole in tensors:
            parts.setdefault(block, {})[short] = pair
        elif short == QKV and all(f"{block}{part}.weight" in tensors for part in PARTS):
            rows = [tensors[f"{block}{part}.weight"].shape[0] for part in PARTS]
            found |= separate(block, pair, rows) if sum(rows) == len(pair[1]) else {name: pair}
        else:
            found[name] = pair
    for block, pairs in parts.items():
        total = tensors[f"{block}{QKV}.weight"].shape[0]
        fused = _fuse(pairs, total)
        if fused is None:
            found |= {f"{block}{part}.weight": pair for part, pair in pairs.items()}
        else:
            found[f"{block}{QKV}.weight"] = fused
    if found.keys() == given.keys():
        return given
    rank = max(len(a) for a, _ in found.values())
    return {name: _padded(pair, rank) for name, pair in found.items()}


def separate(block: str, pair: Pair, rows: list[int]) -> Pairs:
    """A fused pair as those of q, k and v, which have so many rows."""
    a, b = pair
    ends = np.cumsum(rows).tolist()
    return {
        f"{block}{part}.weight": (a, np.ascontiguousarray(b[end - n : end]))
        for part, n, end in zip(PARTS, rows, ends, strict=True)
    }


def _fuse(pairs: Pairs, total: int) -> Pair | None:
    """One pair for `total` rows, those of q, k and v; None where they cannot be as many."""
    known = {part: len(b) for part, (_, b) in pairs.items()}
    kv = known.get("attn_k", known.get("attn_v"))
    q = known.get("attn_q", total - 2 * kv if kv is not None else 0)
    kv = (total - q) // 2 if kv is None else kv
    rows = {"attn_q": q, "attn_k": kv, "attn_v": kv}
    if min(rows.values()) < 1 or sum(rows.values()) != total:
        return None
    if any(rows[part] != n for part, n in known.items()):
        return None
    if len({a.shape[1] for a, _ in pairs.values()}) > 1:
        return None
    here = [part for part in PARTS if part in pairs]
    a = np.concatenate([pairs[part][0] for part in here])
    b = np.zeros((total, len(a)), np.float32)
    starts = {"attn_q": 0, "attn_k": q, "attn_v": q + kv}
    column = 0
    for part in here:
        values = pairs[part][1]
        b[starts[part] : starts[part] + len(values), column : column + values.shape[1]] = values
        column += values.shape[1]
    return a, b


def _padded(pair: Pair, rank: int) -> Pair:
    """The same product at a larger rank."""
    a, b = pair
    more = rank - len(a)
    return np.pad(a, ((0, more), (0, 0))), np.pad(b, ((0, 0), (0, more)))
