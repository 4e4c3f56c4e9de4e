"""Shapes of small models, one or more for each architecture, in the terms of both worlds."""

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from wgtrain.files import ARCHITECTURES, Architecture


def llama3_divisors(
    theta: float, rotary: int, factor: float, low: float, high: float, context: int
) -> tuple[float, ...]:
    """Of the frequencies in Llama 3.1: 1 for those that turn more than `high` times within the
    original `context`, `factor` for those that turn less than `low` times, smooth between.
    """
    turns = context * theta ** (-np.arange(0, rotary, 2) / rotary) / (2 * math.pi)
    smooth = np.clip((turns - low) / (high - low), 0, 1)
    return tuple((1 / ((1 - smooth) / factor + smooth)).tolist())


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
    lengths: tuple[int, ...] = ()  # of rows that show what is its own
    fused: bool = False  # q, k and v are one tensor in the file, apart in transformers
    unseen_window: bool = False  # llama.cpp passes over it
    factors: tuple[tuple[str, tuple[float, ...]], ...] = ()  # of rotary frequencies, by tensor

    @property
    def row(self) -> Architecture:
        """The row of the table of architectures."""
        return ARCHITECTURES[self.architecture]

    @property
    def permuted(self) -> bool:
        """Whether the file's q and k rows are reordered for interleaved rotary pairs."""
        return bool(self.row.permuted)

    def for_type(self, type: str) -> "Spec":
        """With widths that blocks of a type divide, and heads as large as some models have."""
        if not type.startswith("Q"):
            return self
        sizes = {"Q4_K": (2, 1, 128, 256), "Q8_0": (4, 2, 80, 160), "Q5_0": (2, 1, 96, 160)}
        heads, kv_heads, head_dim, ff = sizes[type]
        if (self.architecture, type) == ("gemma", "Q4_K"):
            heads, head_dim = 1, 256
        rotary = self.rotary * head_dim // self.head_dim
        pairs = (rotary or head_dim) // 2

        def resized(name: str, values: Any) -> list[float]:
            """A number for each pair of rotations."""
            if name != "rope_freqs.weight":
                return np.resize(values, pairs).tolist()
            rope = dict(self.rope)
            low, high = rope["low_freq_factor"], rope["high_freq_factor"]
            original = rope["original_max_position_embeddings"]
            known = self.rope_theta, head_dim, rope["factor"], low, high, original
            return list(llama3_divisors(*known))

        return replace(
            self,
            dim=heads * head_dim,
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            ff=ff,
            rotary=rotary,
            rope=tuple(
                (key, resized(key, value) if isinstance(value, list) else value)
                for key, value in self.rope
            ),
            factors=tuple((name, tuple(resized(name, given))) for name, given in self.factors),
            hf=tuple(
                (key, head_dim if key == "query_pre_attn_scalar" else value)
                for key, value in self.hf
            ),
        )

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
        return self.row.block_linears(self.fused)

    @property
    def biases(self) -> list[str]:
        """The linears that have one; of a fused one it may be in parts."""
        names = {**self.linears, **dict.fromkeys(QKV if self.fused else ())}
        must = set(self.row.biases) & self.linears.keys()
        return [n for n in names if n in must or f"{n}.bias" in self.optional]

    def parts(self, name: str, rows: np.ndarray) -> dict[str, np.ndarray]:
        """What of a tensor of the file goes where in transformers, by GGUF's names: q, k and v of a
        fused one, whose rows or columns of B are theirs in this order.
        """
        block, found, kind = name.rpartition("attn_qkv")
        if not (found and self.fused):
            return {name: rows}
        q, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        split = np.split(rows, [q, q + kv])
        return {f"{block}{n}{kind}": x for n, x in zip(QKV, split, strict=True)}

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


QKV = ("attn_q", "attn_k", "attn_v")
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

_RNG = np.random.default_rng(8)
SHORT, LONG = (tuple(np.round(_RNG.uniform(1, top, 10), 3).tolist()) for top in (2.0, 9.0))
_YARN = {"factor": 4.0, "original_max_position_embeddings": 256}
_YARN_KEYS = (
    ("rope.scaling.type", "yarn"),
    ("rope.scaling.factor", 4.0),
    ("rope.scaling.original_context_length", 256),
)
_QKV = ("attn_q.bias", "attn_k.bias", "attn_v.bias")
_BIASES = (*_QKV, "attn_output.bias")
_FFN_BIASES = ("ffn_gate.bias", "ffn_up.bias", "ffn_down.bias")
_YARN_ROWS = (300, 17)  # past the original context; shorter ones see no ramp
_NO_PAD = ("pad_token_id", None)
_GRANITE = {
    "attention.scale": ("attention_multiplier", 0.09),
    "embedding_scale": ("embedding_multiplier", 5.0),
    "residual_scale": ("residual_multiplier", 0.4),
    "logit_scale": ("logits_scaling", 2.5),
}
MORE |= {
    "gemma3-linear": replace(
        MORE["gemma3"],
        keys=(*MORE["gemma3"].keys, ("rope.scaling.factor", 8.0)),
        rope=(("rope_type", "linear"), ("factor", 8.0), ("local", 1e4)),
    ),
    "phi3": Spec(
        *("phi3", 80, 4, 2, 20, 100, 2, 293),
        tied=False,
        tokenizer="spm",
        keys=(("attention.sliding_window", 8),),
        hf=(("sliding_window", 8), _NO_PAD),
        unseen_window=True,
    ),
    # Five sixths of each head turn, by the long list.
    "phi3-long": Spec(
        *("phi3", 96, 4, 1, 24, 100, 2, 301),
        tied=True,
        rotary=20,
        context=160,
        keys=(
            ("rope.scaling.original_context_length", 20),
            ("rope.scaling.attn_factor", float((1 + np.log(8) / np.log(20)) ** 0.5)),
        ),
        hf=(("original_max_position_embeddings", 20), _NO_PAD),
        rope=(
            ("rope_type", "longrope"),
            ("short_factor", list(SHORT)),
            ("long_factor", list(LONG)),
            ("factor", 8.0),
            ("original_max_position_embeddings", 20),
            ("partial_rotary_factor", 20 / 24),
        ),
        factors=(("rope_factors_short.weight", SHORT), ("rope_factors_long.weight", LONG)),
        lengths=(33, 26),
    ),
    "phi3-short": Spec(
        *("phi3", 96, 4, 1, 24, 100, 2, 301),
        tied=True,
        rotary=20,
        context=1024,
        keys=(
            ("rope.scaling.original_context_length", 256),
            ("rope.scaling.attn_factor", float((1 + np.log(4) / np.log(256)) ** 0.5)),
        ),
        hf=(("original_max_position_embeddings", 256), _NO_PAD),
        rope=(
            ("rope_type", "longrope"),
            ("short_factor", list(SHORT)),
            ("long_factor", list(LONG)),
            ("factor", 4.0),
            ("original_max_position_embeddings", 256),
            ("partial_rotary_factor", 20 / 24),
        ),
        factors=(("rope_factors_short.weight", SHORT), ("rope_factors_long.weight", LONG)),
        lengths=(33, 26),
    ),
    "smollm3": Spec(
        *("smollm3", 60, 4, 2, 20, 100, 5, 301),
        tied=True,
        hf=(("no_rope_layers", [1, 1, 1, 0, 1]), _NO_PAD),
    ),
    "granite": Spec(
        *("granite", 60, 3, 1, 20, 100, 2, 97),
        tied=False,
        tokenizer="spm",
        keys=tuple((key, value) for key, (_, value) in _GRANITE.items()),
        hf=tuple(_GRANITE.values()),
    ),
    "olmo2": Spec("olmo2", 80, 4, 2, 20, 100, 2, 301, tied=False, hf=(_NO_PAD,)),
    "glm4": Spec(
        *("glm4", 60, 4, 2, 28, 100, 2, 301),
        tied=False,
        rotary=14,
        optional=_QKV,
        rope=(("partial_rotary_factor", 0.5),),
        hf=(("attention_bias", True), _NO_PAD),
    ),
    "llama-freqs": Spec(
        *("llama", 60, 3, 1, 24, 100, 2, 97),
        tied=False,
        tokenizer="spm",
        optional=_BIASES + _FFN_BIASES,
        rope=(
            ("rope_type", "llama3"),
            ("factor", 8.0),
            ("low_freq_factor", 1.0),
            ("high_freq_factor", 4.0),
            ("original_max_position_embeddings", 48),
        ),
        hf=(("attention_bias", True), ("mlp_bias", True)),
        factors=(("rope_freqs.weight", llama3_divisors(1e4, 24, 8.0, 1.0, 4.0, 48)),),
        lengths=(90, 17),
    ),
    "llama-linear": Spec(
        *("llama", 60, 3, 1, 20, 100, 2, 97),
        tied=False,
        tokenizer="spm",
        keys=(("rope.scaling.factor", 3.0),),
        rope=(("rope_type", "linear"), ("factor", 3.0)),
    ),
    "mistral": Spec(
        *("llama", 60, 3, 1, 20, 100, 2, 97),
        tied=False,
        tokenizer="spm",
        keys=(("attention.sliding_window", 8),),
        hf=(("model_type", "mistral"), ("sliding_window", 8)),
        unseen_window=True,
    ),
    "llama-fused": Spec(
        *("llama", 60, 3, 1, 20, 100, 2, 97),
        tied=False,
        tokenizer="spm",
        fused=True,
    ),
    "qwen2-fused": Spec(
        *("qwen2", 48, 4, 2, 12, 76, 2, 301),
        tied=True,
        optional=("attn_qkv.bias",),
        fused=True,
    ),
    # As older converters left the biases of a weight that they fused.
    "qwen2-fused-apart": Spec(
        *("qwen2", 48, 4, 2, 12, 76, 2, 301),
        tied=True,
        optional=_QKV,
        fused=True,
    ),
    # Layers with windows turn as they did before the rest was stretched.
    "olmo3": Spec(
        *("olmo2", 128, 2, 1, 64, 100, 4, 301),
        tied=False,
        context=1024,
        keys=(*_YARN_KEYS, ("attention.sliding_window", 8)),
        rope=(("rope_type", "yarn"), *_YARN.items(), ("local", 1e4)),
        hf=(("model_type", "olmo3"), ("sliding_window", 8), _NO_PAD),
        lengths=_YARN_ROWS,
    ),
    # So many layers are a "27B", whose scores are scaled by what each head has of the width.
    "gemma2-27b": Spec(
        *("gemma2", 16, 2, 1, 16, 24, 46, 293),
        **_GEMMA,
        keys=MORE["gemma2"].keys,
        hf=tuple(
            (key, 8 if key == "query_pre_attn_scalar" else value)
            for key, value in MORE["gemma2"].hf
        ),
        lengths=(17,),
    ),
    "qwen3-yarn": Spec(
        *("qwen3", 60, 2, 1, 64, 100, 2, 301),
        tied=True,
        context=1024,
        keys=_YARN_KEYS,
        rope=(("rope_type", "yarn"), *_YARN.items()),
        lengths=_YARN_ROWS,
    ),
    "mistral3": Spec(
        *("mistral3", 60, 2, 1, 64, 100, 2, 97),
        tied=False,
        tokenizer="spm",
        context=1024,
        keys=(
            *_YARN_KEYS,
            ("rope.scaling.yarn_beta_fast", 4.0),
            ("rope.scaling.yarn_beta_slow", 1.0),
            ("rope.scaling.yarn_log_multiplier", 1.0),
            ("attention.temperature_scale", 0.1),
        ),
        rope=(
            ("rope_type", "yarn"),
            *_YARN.items(),
            ("beta_fast", 4.0),
            ("beta_slow", 1.0),
            ("mscale", 1.0),
            ("mscale_all_dim", 1.0),
            ("llama_4_scaling_beta", 0.1),
        ),
        lengths=_YARN_ROWS,
    ),
    "qwen2vl": Spec(
        *("qwen2vl", 48, 4, 2, 12, 76, 2, 301),
        tied=True,
        rope_theta=1e6,
        eps=1e-12,  # llama.cpp takes 0, whatever the file says
        keys=(("rope.dimension_sections", (2, 2, 2, 0)),),
        hf=(("model_type", "qwen2"),),  # on text alone their layers are the same
    ),
    "qwen3vl": Spec(
        *("qwen3vl", 60, 4, 2, 20, 100, 2, 283),
        tied=True,
        rope_theta=1e6,
        keys=(("rope.dimension_sections", (4, 3, 3, 0)), ("n_deepstack_layers", 0)),
        hf=(("model_type", "qwen3"),),
    ),
    "stablelm": Spec(
        *("stablelm", 96, 4, 2, 24, 100, 2, 301),
        tied=False,
        rotary=6,
        optional=(*_QKV, "ffn_norm.weight"),
        rope=(("partial_rotary_factor", 0.25),),
        hf=(("use_qkv_bias", True),),
    ),
    # As the one of 12B: heads are normalised, attention and the rest see the same.
    "stablelm-parallel": Spec(
        *("stablelm", 96, 4, 2, 24, 100, 2, 301),
        tied=False,
        rotary=6,
        optional=("attn_q_norm.weight", "attn_k_norm.weight"),
        keys=(("use_parallel_residual", True),),
        rope=(("partial_rotary_factor", 0.25),),
        hf=(("use_parallel_residual", True), ("qk_layernorm", True)),
    ),
    "starcoder2": Spec(
        *("starcoder2", 80, 4, 2, 20, 100, 2, 301),
        tied=True,
        keys=(("attention.sliding_window", 8),),
        hf=(("sliding_window", 8), ("use_bias", True)),
        unseen_window=True,
    ),
}
