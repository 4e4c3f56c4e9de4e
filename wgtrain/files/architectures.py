"""Architectures, a row each. Whoever reads, writes or makes a model's files asks here; what the
numbers mean for the forward pass is the business of `wgtrain.model`.
"""

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from wgtrain.errors import FileError
from wgtrain.files.architecture import ANYTHING, Architecture, Key
from wgtrain.files.source import shown

_EPS = Key("norm_eps", "attention.layer_norm_rms_epsilon", "rms_norm_eps", float)
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
    Key("rope_theta", "rope.freq_base", "rope_theta", float, lambda v: 10_000.0),
    Key("context", "context_length", "max_position_embeddings", default=lambda v: 1 << 20),
)
# How rotations are scaled and whom layers see, where a file says anything of it.
_MORE = (
    Key(
        "rope_scaling",
        "rope.scaling.type",
        kind=str,
        default=lambda v: "linear",
        words=("none", "linear", "yarn", "longrope"),
    ),
    Key("rope_scale", "rope.scale_linear", "", float, lambda v: 0.0, zero=True),  # as of old
    Key("rope_factor", "rope.scaling.factor", "", float, lambda v: v["rope_scale"], zero=True),
    Key(
        "rope_context",
        "rope.scaling.original_context_length",
        default=lambda v: v["context"],
    ),
    Key("rope_attention", "rope.scaling.attn_factor", "", float, lambda v: 0.0),  # 0 = not said
    Key("yarn_attention", "rope.scaling.yarn_attn_factor", "", float, lambda v: 0.0),
    Key("yarn_fast", "rope.scaling.yarn_beta_fast", "", float, lambda v: 32.0),
    Key("yarn_slow", "rope.scaling.yarn_beta_slow", "", float, lambda v: 1.0),
    Key("window", "attention.sliding_window", "", default=lambda v: 0, zero=True),
    Key("local_theta", "rope.freq_base_swa", "", float, lambda v: v["rope_theta"]),
)
_RMS = (*_KEYS[:8], _EPS, *_KEYS[8:], *_MORE)
_GRANITE = (
    Key("attention_scale", "attention.scale", "attention_multiplier", float, lambda v: 0.0, True),
    Key("embedding_scale", "embedding_scale", "embedding_multiplier", float, lambda v: 0.0, True),
    Key("residual_scale", "residual_scale", "residual_multiplier", float, lambda v: 0.0, True),
    Key("logit_scale", "logit_scale", "logits_scaling", float, zero=True),
    Key("finetuned", "rope.scaling.finetuned", kind=bool, default=lambda v: True),
)
# Metadata that changes the mathematics, and the values under which it does not.
_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "attention.max_alibi_bias": (0,),
    "attention.clamp_kqv": (0,),
    "attn_logit_softcapping": (0,),
    "final_logit_softcapping": (0,),
    "attention.scale": (0,),
    "attention.causal": (True,),
    "attention.shared_kv_layers": (0,),
    "expert_count": (0,),
    "expert_used_count": (0,),
    "embedding_scale": (0, 1),
    "residual_scale": (0, 1),
    "logit_scale": (0, 1),
    "nextn_predict_layers": (0,),
    "pooling_type": (0,),
    "rope.scaling.yarn_ext_factor": (1,),
    "use_parallel_residual": (False,),
    "tensor_data_layout": ("Meta AI original pth",),
}
# Linears of a block in the order of the forward pass.
_ATTENTION = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
}
_LINEARS = {
    **_ATTENTION,
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_GATE_UP = {"ffn_up": "mlp.gate_up_proj", "ffn_down": "mlp.down_proj"}
_QK_NORMS = {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}
_NORMS = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}
_GEMMA_NORMS = {
    "attn_norm": "input_layernorm",
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_QKV = ("attn_q", "attn_k", "attn_v")


def _row(name: str, model_type: str, **fields: Any) -> Architecture:
    """A row with what most of them share."""
    shared: dict[str, Any] = {
        "linears": _LINEARS,
        "norms": _NORMS,
        "keys": _RMS,
        "neutral": _NEUTRAL,
        "rope_interleaved": False,
    }
    return Architecture(name, model_type, **{**shared, **fields})


def _norm_eps(hf: str) -> tuple[Key, ...]:
    """The keys of a model with LayerNorms."""
    eps = Key("norm_eps", "attention.layer_norm_epsilon", hf, float)
    return tuple(eps if key is _EPS else key for key in _RMS)


def _silent(**defaults: float) -> tuple[Key, ...]:
    """`_RMS` with other values where a file is silent."""

    def keyed(key: Key) -> Key:
        value = defaults.get(key.field)
        return key if value is None else replace(key, default=lambda v: value)

    return tuple(map(keyed, _RMS))


def _without(*keys: str) -> dict[str, tuple[Any, ...]]:
    """`_NEUTRAL` without keys that a row reads."""
    return {key: values for key, values in _NEUTRAL.items() if key not in keys}


# Text alone has one position a token, whatever streams a picture would have.
_POSITION_STREAMS: dict[str, tuple[Any, ...]] = {
    "rope.dimension_sections": (ANYTHING,),
    "n_deepstack_layers": (ANYTHING,),
}
# What files of Granite 4 say of states and experts though all their layers are attention.
_STATELESS: dict[str, tuple[Any, ...]] = dict.fromkeys(
    (
        *("ssm.conv_kernel", "ssm.state_size", "ssm.group_count", "ssm.inner_size"),
        *("ssm.time_step_rank", "expert_shared_feed_forward_length"),
    ),
    (ANYTHING,),
)
_ROWS = (
    _row(
        "llama",
        "llama",
        rope_interleaved=True,
        permuted=("attn_q", "attn_k"),
        may_bias=tuple(_LINEARS),
    ),
    _row("qwen2", "qwen2", biases=_QKV),
    _row(
        "qwen3",
        "qwen3",
        norms={**_NORMS, **_QK_NORMS},
    ),
    _row(
        "gemma",
        "gemma",
        norm_plus_one=True,
        activation="gelu",
        embedding_by_width=True,
        head="tied",
    ),
    _row(
        "gemma2",
        "gemma2",
        norms=_GEMMA_NORMS,
        keys=(
            *_silent(window=4096),
            Key("softcap", "attn_logit_softcapping", "", float, lambda v: 50.0, zero=True),
            Key("final_softcap", "final_logit_softcapping", "", float, lambda v: 30.0, zero=True),
        ),
        neutral=_without("attn_logit_softcapping", "final_logit_softcapping"),
        norm_plus_one=True,
        activation="gelu",
        embedding_by_width=True,
        window_pattern=2,
        head="tied",
        width_scaled_layers=46,
    ),
    _row(
        "gemma3",
        "gemma3_text",
        norms={**_GEMMA_NORMS, **_QK_NORMS},
        keys=(
            *_silent(local_theta=10_000.0),
            Key("final_softcap", "final_logit_softcapping", "", float, lambda v: 0.0, zero=True),
        ),
        neutral=_without("final_logit_softcapping"),
        norm_plus_one=True,
        activation="gelu",
        embedding_by_width=True,
        window_pattern=6,
        local_rope_plain=True,
        ollama={"rope_theta": 1e6, "local_theta": 1e4, "norm_eps": 1e-6},
        width_scaled_layers=62,
    ),
    _row(
        "phi3",
        "phi3",
        linears={"attn_qkv": "self_attn.qkv_proj", "attn_output": "self_attn.o_proj", **_GATE_UP},
    ),
    _row(
        "smollm3",
        "smollm3",
        rope_interleaved=True,
        permuted=("attn_q", "attn_k"),
        may_bias=tuple(_LINEARS),
        no_rope_every=4,
    ),
    _row(
        "granite",
        "granite",
        keys=(*_RMS, *_GRANITE),
        neutral=_without("attention.scale", "embedding_scale", "residual_scale", "logit_scale")
        | _STATELESS,
        rope_interleaved=True,
        permuted=("attn_q", "attn_k"),
        shared_mlp=True,
        may_bias=tuple(_LINEARS),
    ),
    _row(
        "olmo2",
        "olmo2",
        norms={
            **_QK_NORMS,
            "post_attention_norm": "post_attention_layernorm",
            "post_ffw_norm": "post_feedforward_layernorm",
        },
        wide_qk_norm=True,
        window_pattern=4,
        local_rope_plain=True,
        head="own",
    ),
    _row(
        "glm4",
        "glm4",
        linears={**_ATTENTION, **_GATE_UP},
        norms={
            "attn_norm": "input_layernorm",
            "post_attention_norm": "post_self_attn_layernorm",
            "ffn_norm": "post_attention_layernorm",
            "post_ffw_norm": "post_mlp_layernorm",
        },
        keys=(*_RMS, Key("unused", "nextn_predict_layers", default=lambda v: 0, zero=True)),
        neutral=_without("nextn_predict_layers"),
        rope_interleaved=True,
        may_bias=_QKV,
    ),
    _row(
        "mistral3",
        "ministral3",
        keys=(
            *_RMS,
            Key("query_scale", "attention.temperature_scale", "", float, lambda v: 0.0, zero=True),
            Key("yarn_log", "rope.scaling.yarn_log_multiplier", "", float, lambda v: 0.0, True),
        ),
        rope_interleaved=True,
        permuted=("attn_q", "attn_k"),
        may_bias=tuple(_LINEARS),
    ),
    _row(
        "qwen2vl",
        "qwen2_vl_text",
        neutral={**_NEUTRAL, **_POSITION_STREAMS},
        biases=_QKV,
    ),
    _row(
        "qwen3vl",
        "qwen3_vl_text",
        norms={**_NORMS, **_QK_NORMS},
        neutral={**_NEUTRAL, **_POSITION_STREAMS},
    ),
    _row(
        "stablelm",
        "stablelm",
        norms={
            **_NORMS,
            "attn_q_norm": "self_attn.q_layernorm",
            "attn_k_norm": "self_attn.k_layernorm",
        },
        keys=_norm_eps("layer_norm_eps"),
        neutral={**_NEUTRAL, "use_parallel_residual": (True, False)},  # told by its tensors
        may_bias=_QKV,
        may_norm=("attn_q_norm", "attn_k_norm", "ffn_norm"),
        layer_norm=True,
        head="own",
    ),
    _row(
        "starcoder2",
        "starcoder2",
        linears={**_ATTENTION, "ffn_up": "mlp.c_fc", "ffn_down": "mlp.c_proj"},
        keys=_norm_eps("norm_epsilon"),
        biases=(*_ATTENTION, "ffn_up", "ffn_down"),
        layer_norm=True,
        activation="gelu",
    ),
)
_NOT_CAUSAL = "it does not generate text; take a model that does"
_EXPERTS = "it spreads its weights over experts; take a dense model of its family"
_STATES = "it has states or convolutions in place of attention; take a model of attention alone"
# What else there is for a person whose architecture is not here, by a part of its name.
_ELSEWHERE = {
    r"^clip$|mmproj": "this is the image projector of a model alone; take the model's own file",
    r"bert|embed|^t5|^wavtokenizer|rerank": _NOT_CAUSAL,
    r"moe|mixtral|deepseek|llama4|gpt-oss|grok|dbrx|arctic": _EXPERTS,
    r"mamba|rwkv|next|qwen35|lfm2|hybrid|falcon-h1|jamba|nemotron|kimi|plamo2": _STATES,
    r"^gemma": "take gemma3 in its place",
    r"^(qwen|phi|glm|chatglm|internlm|baichuan)": "a later model of its family may be there",
}
ARCHITECTURES = {row.name: row for row in _ROWS}
# Every linear of any architecture -> its modules, in the order of the forward pass.
LINEARS: dict[str, tuple[str, ...]] = {
    name: tuple(dict.fromkeys(row.linears[name] for row in _ROWS if name in row.linears))
    for name in (*_QKV, "attn_qkv", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
}


def find_architecture(name: str, file: str) -> Architecture:
    """The row of a name; FileError, which names the file and says what else there is, where there
    is none.
    """
    if name in ARCHITECTURES:
        return ARCHITECTURES[name]
    text = f"{file}: general.architecture {shown(name)} is not one of {', '.join(ARCHITECTURES)}"
    hint = next((hint for part, hint in _ELSEWHERE.items() if re.search(part, name)), "")
    raise FileError(f"{text}{hint and f': {hint}'}")


def unusable(name: str, problems: list[str], most: int = 40) -> FileError:
    """The error of the model in a file `name`, with the first of its problems."""
    more = [f"and {len(problems) - most} more"] if len(problems) > most else []
    return FileError("\n  ".join([f"{name}: this model cannot be used:", *problems[:most], *more]))
