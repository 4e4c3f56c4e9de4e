"""What a GGUF can be quantised to, and which type each of its tensors then gets: the choices of
llama.cpp's `llama_model_quantize`.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from wgtrain.files.blocks import BLOCKS
from wgtrain.files.floats import FLOATS
from wgtrain.files.gguf_parser import TensorInfo

QUANTIZATION_VERSION = 2


@dataclass(frozen=True)
class Target:
    """A type or mix: what matrices have that nothing is said of, and llama.cpp's number."""

    type: str
    number: int  # general.file_type
    more: str | None = None  # of the layers in which a mix spends more on attn_v and ffn_down
    head: str | None = None  # of the output head or the embedding that is one


TARGETS = {
    "F32": Target("F32", 0),
    "F16": Target("F16", 1),
    "BF16": Target("BF16", 32),
    "Q8_0": Target("Q8_0", 7, head="Q8_0"),
    "Q4_0": Target("Q4_0", 2, head="Q6_K"),
    "Q4_1": Target("Q4_1", 3, head="Q6_K"),
    "Q5_0": Target("Q5_0", 8, head="Q6_K"),
    "Q5_1": Target("Q5_1", 9, head="Q6_K"),
    "Q4_K": Target("Q4_K", 14),
    "Q5_K": Target("Q5_K", 16),
    "Q4_K_M": Target("Q4_K", 15, more="Q6_K", head="Q6_K"),
    "Q5_K_M": Target("Q5_K", 17, more="Q6_K", head="Q6_K"),
    "Q6_K": Target("Q6_K", 18, head="Q6_K"),
}
# What a row that is no multiple of 256 values gets instead.
_SMALLER = {"Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}
# Parts of names of matrices that stay as they are: small ones, tables, convolutions.
_KEPT = (
    *("_norm.weight", "ffn_gate_inp.weight", "ffn_gate_tid2eid.weight", "altup", "laurel"),
    *("per_layer_model_proj", "ssm_conv1d", "shortconv.conv.weight", "indexer.k_proj.weight"),
    *("indexer.q_proj.weight", "time_mix_first.weight", "time_mix_w0.weight"),
    *("time_mix_w1.weight", "time_mix_w2.weight", "time_mix_v0.weight", "time_mix_v1.weight"),
    *("time_mix_v2.weight", "time_mix_a0.weight", "time_mix_a1.weight", "time_mix_a2.weight"),
    *("time_mix_g1.weight", "time_mix_g2.weight", "time_mix_decay_w1.weight"),
    *("time_mix_decay_w2.weight", "time_mix_lerp_fused.weight", "attn_rel_b.weight"),
    *(".position_embd", "sam.pos_embd", "sam.neck.", "sam.net_", ".rel_pos", ".patch_embd"),
    *(".patch_merger", "a.rvq.codebook", "mm.a.code_embd"),
)
_KEPT_WHOLE = ("position_embd.weight", "token_types.weight")
_ATTN_V = ("attn_qkv.weight", "attn_kv_b.weight", "attn_v.weight")
_BLOCK = re.compile(r"blk\.([0-9]+)\.")


def is_matrix(tensor: TensorInfo) -> bool:
    """Whether its type is chosen; norms, biases and what is small stay as they are."""
    rows = any(n > 1 for n in tensor.shape[:-1])
    named = tensor.name.endswith("weight") and tensor.name not in _KEPT_WHOLE
    return rows and named and not any(part in tensor.name for part in _KEPT)


def has_wide_v(metadata: Mapping[str, Any]) -> bool:
    """Whether a mix gives attn_v more: models of 80 layers whose heads share keys and values."""
    name = metadata.get("general.architecture")
    if metadata.get(f"{name}.block_count") != 80:
        return False
    heads: Any = metadata.get(f"{name}.attention.head_count")
    shared: Any = metadata.get(f"{name}.attention.head_count_kv", heads)
    if name == "llama":
        return not np.array_equal(np.ravel(heads)[:1], np.ravel(shared)[:1])
    return name in ("qwen2", "deci", "olmo")


def choose_types(
    tensors: Iterable[TensorInfo], target: str, n_layer: int, wide_v: bool = False
) -> dict[str, str]:
    """The type of each tensor, by name. `wide_v`: of `has_wide_v`, a model of 70 thousand million
    parameters, whose attn_v is one size up in the mixes where it would be Q4_K.
    """
    row = TARGETS[target]
    infos = sorted(tensors, key=_order)
    tied = all(info.name != "output.weight" for info in infos)
    values = sum(any(part in info.name for part in _ATTN_V) for info in infos)
    at_v = at_down = 0
    types = {}
    for info in infos:
        if not is_matrix(info):
            types[info.name] = info.type
            continue
        kind = row.type
        if info.name == "output.weight" or (tied and info.name in _EMBEDDINGS):
            kind = _head(info, row)
        elif any(part in info.name for part in _ATTN_V):
            if row.more and _spends_more(at_v, values):
                kind = row.more
            if wide_v and row.more and kind == "Q4_K":
                kind = "Q5_K"
            at_v += 1
        elif "ffn_down" in info.name and info.name not in _EMBEDDINGS:
            if row.more and _spends_more(at_down, n_layer):
                kind = row.more
            at_down += 1
        types[info.name] = fitting(kind, info.shape[-1])
    return types


_EMBEDDINGS = ("token_embd.weight", "per_layer_token_embd.weight")


def _order(info: TensorInfo) -> tuple[int, bytes]:
    """By number of the block, tensors outside of blocks first, then by name."""
    block = _BLOCK.match(info.name)
    return (int(block[1]) if block else -1), info.name.encode()


def _head(info: TensorInfo, row: Target) -> str:
    if row.head is None:
        return row.type
    return "Q8_0" if info.shape[-1] % BLOCKS[row.type].size else row.head


def _spends_more(i: int, n: int) -> bool:
    """In the first and last eighth of n layers, and in every third between."""
    return i < n // 8 or i >= 7 * n // 8 or (i - n // 8) % 3 == 2


def fitting(kind: str, columns: int) -> str:
    """The type itself, or the one that rows of so many values can have."""
    if kind in FLOATS or columns % BLOCKS[kind].size == 0:
        return kind
    smaller = _SMALLER.get(kind, kind)
    return "F16" if columns % BLOCKS[smaller].size else smaller
