"""Architectures, a row each: how GGUF and Hugging Face spell their tensors and numbers, in which
order rows lie, what is refused.

Whoever reads, writes or makes a model's files asks here. What the numbers mean for the forward pass
is the business of `wgtrain.model`.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from wgtrain.errors import FileError
from wgtrain.files.gguf_parser import F32_MAX, F32_MIN
from wgtrain.files.source import shown

MAX_COUNT = (1 << 24) - 1
Values = dict[str, Any]  # by the `field` of a `Key`


@dataclass(frozen=True)
class Key:
    """A number of a model: an integer from 1, or a float above 0.

    `default` makes it of those before it in `Architecture.keys` where a file is silent.
    """

    field: str  # how we call it
    gguf: str  # below the architecture's name
    hf: str  # in config.json
    kind: type[int] | type[float] = int
    default: Callable[[Values], int | float] | None = None

    @property
    def allowed(self) -> str:
        """In words."""
        whole = f"an integer from 1 to {MAX_COUNT}"
        return whole if self.kind is int else "a number above 0 that f32 holds"

    def allows(self, value: Any) -> bool:
        """Whether a value from a file is of its kind and size."""
        if self.kind is int:
            return type(value) is int and 1 <= value <= MAX_COUNT
        return type(value) in (int, float) and F32_MIN <= value <= F32_MAX


_KEYS = (
    Key("width", "embedding_length", "hidden_size"),
    Key("n_layer", "block_count", "num_hidden_layers"),
    Key("n_head", "attention.head_count", "num_attention_heads"),
    Key(
        "n_head_kv",
        "attention.head_count_kv",
        "num_key_value_heads",
        default=lambda v: v["n_head"],
    ),
    Key(
        "head_size",
        "attention.key_length",
        "head_dim",
        default=lambda v: max(v["width"] // v["n_head"], 1),
    ),
    Key("value_size", "attention.value_length", "head_dim", default=lambda v: v["head_size"]),
    Key("rotary", "rope.dimension_count", "head_dim", default=lambda v: v["head_size"]),
    Key("feed_forward", "feed_forward_length", "intermediate_size"),
    Key("norm_eps", "attention.layer_norm_rms_epsilon", "rms_norm_eps", float),
    Key("rope_theta", "rope.freq_base", "rope_theta", float, lambda v: 10_000.0),
    Key("context", "context_length", "max_position_embeddings", default=lambda v: 1 << 20),
)
# Metadata that changes the mathematics, and the values under which it does not.
_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "attention.sliding_window": (0,),
    "attention.max_alibi_bias": (0,),
    "attention.clamp_kqv": (0,),
    "attn_logit_softcapping": (0,),
    "final_logit_softcapping": (0,),
    "attention.scale": (),
    "attention.causal": (True,),
    "expert_count": (0,),
    "expert_used_count": (0,),
    "embedding_scale": (1,),
    "residual_scale": (1,),
    "logit_scale": (1,),
    "pooling_type": (0,),
    "rope.scaling.type": ("none",),
    "rope.scaling.factor": (1, 0),
    "rope.scale_linear": (1, 0),
    "rope.scaling.attn_factor": (1,),
    "use_parallel_residual": (False,),
    "tensor_data_layout": ("Meta AI original pth",),
}
# Metadata that changes nothing.
_SILENT = frozenset(
    {
        *("vocab_size", "attention.layer_norm_epsilon"),
        *("rope.scaling.original_context_length", "rope.scaling.finetuned"),
    }
)
# Settings of config.json that change the mathematics, and the values beside null under which they
# do not.
_HF_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "hidden_act": ("silu", "swish"),
    "attention_bias": (False,),  # it gives o_proj a bias, too
    "mlp_bias": (False,),
    "quantization_config": (),
    "num_experts": (0,),
    "num_local_experts": (0,),
    "n_routed_experts": (0,),
    "num_experts_per_tok": (0,),
    "attn_logit_softcapping": (),
    "final_logit_softcapping": (),
    "query_pre_attn_scalar": (),
    "partial_rotary_factor": (1,),
    "rope_interleaved": (False,),
    "use_mrope": (False,),
    "use_qk_norm": (False,),
    "clip_qkv": (),
    "alibi": (False,),
    "is_causal": (True,),
    "logit_scale": (1,),
    "logits_scaling": (1,),
    "embedding_multiplier": (1,),
    "attention_multiplier": (),
    "residual_multiplier": (1,),
    "dual_chunk_attention_config": (),
    "auto_map": (),  # code that comes with the model
}

HEAD = "output"  # GGUF's name of the output head, `lm_head` elsewhere
# Tensors outside of blocks.
_ENDS = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", HEAD: "lm_head"}
# Linears of a block in the order of the forward pass.
_LINEARS = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_NORMS = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}
_QK_NORMS = {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}
_BLOCK = re.compile(r"blk\.(0|[1-9][0-9]{0,5})\.([a-z_]{1,40})")
_LAYER = re.compile(r"model\.layers\.(0|[1-9][0-9]{0,5})\.([a-z_.]{1,80})")


@dataclass(frozen=True)
class ModelType:
    """A `model_type` of config.json.

    `defaults`: what transformers' class says where the file is silent. `window_switch`:
    sliding_window counts beside `use_sliding_window` only.
    """

    defaults: Mapping[str, Any] = field(default_factory=dict)
    window_switch: bool = False


@dataclass(frozen=True)
class Architecture:
    """A row of the table. Tensors are told by GGUF's name in a block -> Hugging Face's module."""

    name: str  # general.architecture
    model_types: Mapping[str, ModelType]  # the first one's transformers class fits all its models
    rope_interleaved: bool  # rotary pairs are neighbours, else half a width apart
    permuted: tuple[str, ...] = ()  # linears whose rows, and biases, a converter reorders by heads
    biases: tuple[str, ...] = ()  # linears that must have one
    linears: Mapping[str, str] = field(default_factory=lambda: _LINEARS)
    norms: Mapping[str, str] = field(default_factory=lambda: _NORMS)
    keys: tuple[Key, ...] = _KEYS
    neutral: Mapping[str, tuple[Any, ...]] = field(default_factory=lambda: _NEUTRAL)
    hf_neutral: Mapping[str, tuple[Any, ...]] = field(default_factory=lambda: _HF_NEUTRAL)

    @property
    def qk_norm(self) -> bool:
        """Whether the heads of q and k are normalised."""
        return "attn_q_norm" in self.norms

    @property
    def known(self) -> frozenset[str]:
        """The metadata keys, below its name, that are read or change nothing."""
        return _SILENT | {key.gguf for key in self.keys}

    def hf_module(self, stem: str) -> str | None:
        """The Hugging Face module of a tensor, both without `.weight` or `.bias`:
        "blk.3.attn_q" -> "model.layers.3.self_attn.q_proj"; None for one it does not have.
        """
        if stem in _ENDS:
            return _ENDS[stem]
        match = _BLOCK.fullmatch(stem)
        module = match and {**self.linears, **self.norms}.get(match[2])
        return f"model.layers.{match[1]}.{module}" if match and module else None

    def gguf_stem(self, module: str) -> str | None:
        """The inverse of `hf_module`."""
        for ours, theirs in _ENDS.items():
            if module == theirs:
                return ours
        match = _LAYER.fullmatch(module)
        for ours, theirs in {**self.linears, **self.norms}.items():
            if match and match[2] == theirs:
                return f"blk.{match[1]}.{ours}"
        return None

    def gguf_tensor(self, key: str) -> str | None:
        """The GGUF name of a tensor of a Hugging Face folder; None for one it does not have."""
        module, _, kind = key.rpartition(".")
        stem = self.gguf_stem(module)
        if stem is None or kind not in ("weight", "bias"):
            return None
        if kind == "bias" and stem.rpartition(".")[2] not in self.biases:
            return None
        return f"{stem}.{kind}"

    def heads(self, linear: str, n_head: int, n_head_kv: int) -> int:
        """By how many heads the rows of a linear are reordered; 0 where both worlds agree."""
        if linear not in self.permuted:
            return 0
        return n_head if linear == "attn_q" else n_head_kv


_QWEN = {"num_key_value_heads": 32}
_ROWS = (
    Architecture(
        "llama",
        {
            "llama": ModelType(),
            "mistral": ModelType({"num_key_value_heads": 8, "sliding_window": 4096}),
        },
        rope_interleaved=True,
        permuted=("attn_q", "attn_k"),
    ),
    Architecture(
        "qwen2",
        {"qwen2": ModelType(_QWEN, window_switch=True)},
        rope_interleaved=False,
        biases=("attn_q", "attn_k", "attn_v"),
    ),
    Architecture(
        "qwen3",
        {"qwen3": ModelType({**_QWEN, "head_dim": 128}, window_switch=True)},
        rope_interleaved=False,
        norms={**_NORMS, **_QK_NORMS},
    ),
)
ARCHITECTURES = {row.name: row for row in _ROWS}
MODEL_TYPES = {kind: row for row in _ROWS for kind in row.model_types}
# Every linear of any architecture -> its modules, in the order of the forward pass.
LINEARS: dict[str, tuple[str, ...]] = {
    name: tuple(dict.fromkeys(row.linears[name] for row in _ROWS if name in row.linears))
    for name in dict.fromkeys(name for row in _ROWS for name in row.linears)
}


def find_architecture(name: str, file: str) -> Architecture:
    """The row of a name; FileError, which names the file, where there is none."""
    if name not in ARCHITECTURES:
        raise FileError(
            f"{file}: general.architecture {shown(name)} is not one of {', '.join(ARCHITECTURES)}"
        )
    return ARCHITECTURES[name]


def unusable(name: str, problems: list[str], most: int = 40) -> FileError:
    """The error of the model in a file `name`, with the first of its problems."""
    more = [f"and {len(problems) - most} more"] if len(problems) > most else []
    return FileError("\n  ".join([f"{name}: this model cannot be used:", *problems[:most], *more]))
