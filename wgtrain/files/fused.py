"""Adapters of separate q, k and v for a model that has them in one tensor, and the other way round;
of gate and up for a class that has those in one.

Both are exact: A of one is shared or stacked, B cut or put on a diagonal of blocks.
"""

from collections.abc import Mapping

import numpy as np

from wgtrain.errors import FileError
from wgtrain.files.gguf_parser import TensorInfo

Pair = tuple[np.ndarray, np.ndarray]
Pairs = dict[str, Pair]
QKV = "attn_qkv"
PARTS = ("attn_q", "attn_k", "attn_v")
GATE_UP = "ffn_gate_up"
GATES = ("ffn_gate", "ffn_up")


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
        fused = _fuse(pairs, _rows(block, tensors))
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


def _rows(block: str, tensors: Mapping[str, TensorInfo]) -> dict[str, int]:
    """The rows of q, k and v in a fused tensor: those of q are what `attn_output` reads."""
    total, output = tensors[f"{block}{QKV}.weight"], tensors.get(f"{block}attn_output.weight")
    q = output.shape[-1] if output is not None else 0
    kv = (total.shape[0] - q) // 2
    return {"attn_q": q, "attn_k": kv, "attn_v": kv}


def _fuse(pairs: Pairs, rows: dict[str, int]) -> Pair | None:
    """One pair for q, k and v of so many rows; None where those of a pair are not as many."""
    if any(len(b) != rows[part] for part, (_, b) in pairs.items()):
        return None
    if len({a.shape[1] for a, _ in pairs.values()}) > 1:
        return None
    return _stacked(pairs, rows)


def _stacked(pairs: Pairs, rows: Mapping[str, int]) -> Pair:
    """One pair for parts of so many rows, in this order, some of which have one."""
    here = [part for part in rows if part in pairs]
    a = np.concatenate([pairs[part][0] for part in here])
    b = np.zeros((sum(rows.values()), len(a)), np.float32)
    starts = dict(zip(rows, np.cumsum([0, *rows.values()]).tolist(), strict=False))
    column = 0
    for part in here:
        values = pairs[part][1]
        b[starts[part] : starts[part] + len(values), column : column + values.shape[1]] = values
        column += values.shape[1]
    return a, b


def join_gates(given: Pairs) -> Pairs:
    """Gate and up as one pair, that of `ffn_up`, for a class that has them in one; all of one
    rank.
    """
    found: Pairs = {}
    parts: dict[str, Pairs] = {}
    for name, pair in given.items():
        block, _, short = name.removesuffix(".weight").rpartition(".")
        if short in GATES:
            parts.setdefault(block, {})[short] = pair
        else:
            found[name] = pair
    for block, pairs in parts.items():
        (a, b), *others = pairs.values()
        if others and np.array_equal(a, others[0][0]):  # as `part_gates` leaves them
            joined = a, np.concatenate([pairs[part][1] for part in GATES])
        else:
            joined = _stacked(pairs, dict.fromkeys(GATES, len(b)))
        found[f"{block}.ffn_up.weight"] = joined
    rank = max(len(a) for a, _ in found.values())
    return {name: _padded(pair, rank) for name, pair in found.items()}


def part_gates(given: Pairs, where: str) -> Pairs:
    """Pairs at `GATE_UP` as those of gate and up, whose A is the same; FileError names `where`."""
    found: Pairs = {}
    for name, (a, b) in given.items():
        block, joined, _ = name.rpartition(f"{GATE_UP}.weight")
        names = [f"{block}{part}.weight" for part in GATES]
        if not joined:
            found[name] = a, b
        elif len(b) % 2 or any(part in given for part in names):
            raise FileError(
                f"{where}: {name}: B of {len(b)} rows is no gate and up, or they are there twice"
            )
        else:
            found |= {part: (a, half) for part, half in zip(names, np.split(b, 2), strict=True)}
    return found


def _padded(pair: Pair, rank: int) -> Pair:
    """The same product at a larger rank."""
    a, b = pair
    more = rank - len(a)
    return np.pad(a, ((0, more), (0, 0))), np.pad(b, ((0, 0), (0, more)))
