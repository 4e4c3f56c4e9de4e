"""Shapes of small models, one or more for each architecture, in the terms of both worlds."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from wgtrain.files import ARCHITECTURES, Architecture


@dataclass(frozen=True)
class Spec:
    """The shape of a model; `head_dim` is no power of two and need not be dim / heads."""

    architecture: str
    dim: int
    heads: int
    kv_heads: int
    head_dim: int
    ff: int
    layers: int
    vocab: int
    tied: bool
    tokenizer: str = "bpe"  # or "spm"
    rope_theta: float = 10000.0
    eps: float = 1e-5
    context: int = 128
    rotary: int = 0  # 0 = head_dim
    keys: tuple[tuple[str, Any], ...] = ()  # further metadata, below the architecture's name
    hf: tuple[tuple[str, Any], ...] = ()  # further settings of transformers
    rope: tuple[tuple[str, Any], ...] = ()  # of rope_parameters
    optional: tuple[str, ...] = ()  # tensors of a block that it may have, as "attn_q.bias"
    factors: tuple[tuple[str, tuple[float, ...]], ...] = ()  # of rotary frequencies, by tensor

    @property
    def row(self) -> Architecture:
        """The row of the table of architectures."""
        return ARCHITECTURES[self.architecture]

    @property
    def permuted(self) -> bool:
        """Whether the file's q and k rows are reordered for interleaved rotary pairs."""
        return bool(self.row.permuted)

    def gguf_name(self, hf: str) -> str:
        """`model.layers.0.self_attn.q_proj` -> `blk.0.attn_q`."""
        if (stem := self.row.gguf_stem(hf)) is None:
            raise KeyError(hf)
        return stem

    def hf_name(self, ours: str) -> str:
        """`blk.0.attn_q` -> `model.layers.0.self_attn.q_proj`."""
        if (module := self.row.hf_module(ours)) is None:
            raise KeyError(ours)
        return module

    def to_file_order(self, hf: str, rows: np.ndarray) -> np.ndarray:
        """Rows of a q or k tensor (weight, bias or B) from Hugging Face order to the GGUF's."""
        heads = self._permuted_heads(hf)
        if heads is None:
            return rows
        split = rows.reshape(heads, 2, self.head_dim // 2, *rows.shape[1:])
        return np.ascontiguousarray(split.swapaxes(1, 2).reshape(rows.shape))

    def from_file_order(self, hf: str, rows: np.ndarray) -> np.ndarray:
        """The inverse of `to_file_order`."""
        heads = self._permuted_heads(hf)
        if heads is None:
            return rows
        split = rows.reshape(heads, self.head_dim // 2, 2, *rows.shape[1:])
        return np.ascontiguousarray(split.swapaxes(1, 2).reshape(rows.shape))

    def _permuted_heads(self, hf: str) -> int | None:
        if not self.permuted:
            return None
        if ".q_proj" in hf:
            return self.heads
        return self.kv_heads if ".k_proj" in hf else None

    @property
    def linears(self) -> dict[str, str]:
        """The linears of a block, GGUF's name -> Hugging Face's module."""
        return dict(self.row.linears)

    @property
    def biases(self) -> list[str]:
        """The linears that have one."""
        return [n for n in self.linears if n in self.row.biases or f"{n}.bias" in self.optional]

    @property
    def norms(self) -> dict[str, tuple[int, ...]]:
        """The norms of a block, and their shapes."""
        found: dict[str, tuple[int, ...]] = {}
        for name in self.row.norms:
            if name in self.row.may_norm and f"{name}.weight" not in self.optional:
                continue
            found[name] = (self.dim,)
            if name in ("attn_q_norm", "attn_k_norm"):
                heads = self.heads if name == "attn_q_norm" else self.kv_heads
                if self.row.layer_norm:
                    found[name] = (heads, self.head_dim)
                else:
                    found[name] = (self.head_dim * (heads if self.row.wide_qk_norm else 1),)
        return found

    def linear_shape(self, ours: str) -> tuple[int, int]:
        """(n_out, n_in) of a linear by its GGUF name without the block."""
        q, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        return {
            "attn_q": (q, self.dim),
            "attn_k": (kv, self.dim),
            "attn_v": (kv, self.dim),
            "attn_qkv": (q + 2 * kv, self.dim),
            "attn_output": (self.dim, q),
            "ffn_gate": (self.ff, self.dim),
            "ffn_up": (self.ff * (2 if self.row.fused_gate else 1), self.dim),
            "ffn_down": (self.dim, self.ff),
            "output": (self.vocab, self.dim),
        }[ours.split(".")[-1]]


# Widths for types without blocks (multiples of 4 alone), and for types in blocks of 32, whose rows
# of 34 or 18 byte blocks are no multiples of 4 bytes.
SPECS = {
    "llama": Spec("llama", 60, 3, 1, 20, 100, 3, 97, tied=False, tokenizer="spm"),
    "llama-tied": Spec("llama", 48, 4, 2, 12, 76, 3, 293, tied=True, tokenizer="spm"),
    "qwen2": Spec("qwen2", 48, 4, 2, 12, 76, 3, 301, tied=True, rope_theta=1e6, eps=1e-6),
    "qwen3": Spec("qwen3", 60, 4, 2, 20, 100, 3, 283, tied=False, rope_theta=1e6, eps=1e-6),
}
BLOCK_SPECS = {
    name: replace(spec, dim=96, heads=8, kv_heads=2, head_dim=12, ff=160)
    for name, spec in SPECS.items()
}
BLOCK_SPECS["qwen3"] = replace(BLOCK_SPECS["qwen3"], head_dim=20)  # 8 x 20 = 160, not 96

_GEMMA = {"tied": True, "tokenizer": "spm", "eps": 1e-6}
_ACT = ("hidden_activation", "gelu_pytorch_tanh")
# One of each further architecture, its windows 8 tokens wide.
MORE = {
    # The root of 52 is no number of halves; heads are wider than the width allows.
    "gemma": Spec("gemma", 52, 3, 1, 20, 100, 2, 293, **_GEMMA, hf=(_ACT,)),
    "gemma2": Spec(
        *("gemma2", 52, 4, 2, 20, 100, 3, 293),
        **_GEMMA,
        keys=(
            ("attn_logit_softcapping", 3.0),
            ("final_logit_softcapping", 7.0),
            ("attention.sliding_window", 8),
        ),
        hf=(
            _ACT,
            ("attn_logit_softcapping", 3.0),
            ("final_logit_softcapping", 7.0),
            ("sliding_window", 8),
            ("query_pre_attn_scalar", 20),
        ),
    ),
    "gemma3": Spec(
        *("gemma3", 52, 4, 2, 64, 100, 3, 293),
        **_GEMMA,
        rope_theta=1e6,
        keys=(
            ("attention.sliding_window", 8),
            ("attention.sliding_window_pattern", (True, False, True)),
            ("rope.freq_base_swa", 1e4),
        ),
        rope=(("local", 1e4),),
        hf=(
            _ACT,
            ("sliding_window", 8),
            ("layer_types", ["sliding_attention", "full_attention", "sliding_attention"]),
            ("query_pre_attn_scalar", 64),
        ),
    ),
}
