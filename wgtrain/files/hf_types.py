"""The `model_type`s of config.json, a row each: what transformers' class says where a file is
silent, and which of its settings may have which values.

A row is about settings alone. Tensors, and what GGUF calls them, are rows of
`files/architectures.py`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

SILU = ("silu", "swish")
TANH = ("gelu_pytorch_tanh",)
FLAT = ("default", "linear", "yarn")

_COUNTS = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers"),
    *("num_attention_heads", "num_key_value_heads", "head_dim", "max_position_embeddings"),
)


@dataclass(frozen=True)
class ModelType:
    """What a `model_type` means. `defaults`: of its configuration class in transformers."""

    architecture: str  # general.architecture
    defaults: Mapping[str, Any]
    eps: str = "rms_norm_eps"
    act: str = "hidden_act"
    acts: tuple[str, ...] = SILU
    rope: tuple[str, ...] = FLAT  # the types of rotary embedding
    nested: bool = False  # rotary embeddings by the kind of layer
    partial: bool = False  # the first values of a head turn
    # Which layers have windows: "" none, "all", "switch" (use_sliding_window, from a layer on),
    # "norope" (the same, where there is no rotary embedding), or every layer but each n-th.
    windows: str | int = ""
    shifted: bool = False  # norms multiply by 1 + w, which a GGUF stores
    shared: bool = False  # as of models with states and experts, of which one has neither
    biases: tuple[str, ...] = ()  # settings that give linears biases, and may be true
    floats: tuple[str, ...] = ()  # settings of this type alone, numbers above 0
    # Settings that may have these values beside null.
    only: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)


def _type(architecture: str, counts: str, **others: Any) -> ModelType:
    """A row; `counts` are those of `_COUNTS` in order, "=" for one that follows from others."""
    numbers = [None if n == "=" else int(n) for n in counts.split()]
    plain = {"rms_norm_eps": 1e-6, "tie_word_embeddings": False, "rope_theta": 10_000.0}
    given = others.pop("defaults", {})
    defaults = {**dict(zip(_COUNTS, numbers, strict=True)), **plain, **given}
    return ModelType(architecture, defaults, **others)


_LLAMA3 = (*FLAT, "llama3")
_TIED = {"tie_word_embeddings": True}
_QWEN_WINDOW = {"use_sliding_window": False, "sliding_window": 4096, "max_window_layers": 28}
_VL = {"rms_norm_eps": 1e-5, "rope_theta": 1e6, **_QWEN_WINDOW, "max_window_layers": 80}
_GEMMA = {"query_pre_attn_scalar": 256, "sliding_window": 4096, **_TIED}
_MULTIPLIERS = (
    *("embedding_multiplier", "attention_multiplier", "residual_multiplier", "logits_scaling"),
)

TYPES: dict[str, ModelType] = {
    "llama": _type(
        "llama",
        "32000 4096 11008 32 32 = = 2048",
        rope=_LLAMA3,
        biases=("attention_bias", "mlp_bias"),
    ),
    "mistral": _type(
        "llama",
        "32000 4096 14336 32 32 8 = 131072",
        rope=_LLAMA3,
        windows="all",
        defaults={"sliding_window": 4096},
    ),
    "qwen2": _type(
        "qwen2", "151936 4096 22016 32 32 32 = 32768", windows="switch", defaults=_QWEN_WINDOW
    ),
    "qwen3": _type(
        "qwen3", "151936 4096 22016 32 32 32 128 32768", windows="switch", defaults=_QWEN_WINDOW
    ),
    "gemma": _type(
        "gemma",
        "256000 3072 24576 28 16 16 256 8192",
        shifted=True,
        acts=(*TANH, "gelu"),  # its files say "gelu" and mean the other, as its class knows
        defaults={"hidden_act": "gelu_pytorch_tanh", **_TIED},
    ),
    "gemma2": _type(
        "gemma2",
        "256000 2304 9216 26 8 4 256 8192",
        act="hidden_activation",
        acts=TANH,
        shifted=True,
        windows=2,
        floats=("query_pre_attn_scalar",),
        defaults={
            **_GEMMA,
            "hidden_activation": "gelu_pytorch_tanh",
            "attn_logit_softcapping": 50.0,
            "final_logit_softcapping": 30.0,
        },
    ),
    "gemma3_text": _type(
        "gemma3",
        "262208 2304 9216 26 8 4 256 131072",
        act="hidden_activation",
        acts=TANH,
        shifted=True,
        nested=True,
        windows=6,
        floats=("query_pre_attn_scalar",),
        defaults={
            **_GEMMA,
            "hidden_activation": "gelu_pytorch_tanh",
            "rope_theta": 1e6,
            "rope_local_base_freq": 1e4,
            "final_logit_softcapping": None,
        },
    ),
    "phi3": _type(
        "phi3",
        "32064 3072 8192 32 32 = = 4096",
        rope=("default", "longrope"),
        partial=True,
        windows="all",
        defaults={
            "rms_norm_eps": 1e-5,
            "sliding_window": None,
            "original_max_position_embeddings": 4096,
            "partial_rotary_factor": 1.0,
        },
    ),
    "smollm3": _type(
        "smollm3",
        "128256 2048 11008 36 16 4 = 32768",
        rope=_LLAMA3,
        windows="norope",
        biases=("attention_bias", "mlp_bias"),
        defaults={
            "rope_theta": 2e6,
            "use_sliding_window": False,
            "sliding_window": None,
            "no_rope_layer_interval": 4,
            **_TIED,
        },
    ),
    "granite": _type(
        "granite",
        "32000 4096 11008 32 32 = = 2048",
        rope=_LLAMA3,
        biases=("attention_bias", "mlp_bias"),
        floats=_MULTIPLIERS,
        defaults=dict.fromkeys(_MULTIPLIERS, 1.0),
    ),
    # Granite 4 "micro": what is left without states and experts is a granite.
    "granitemoehybrid": _type(
        "granite",
        "32000 4096 11008 32 32 = = 2048",
        rope=_LLAMA3,
        shared=True,
        biases=("attention_bias",),
        floats=_MULTIPLIERS,
        defaults={
            **dict.fromkeys(_MULTIPLIERS, 1.0),
            "shared_intermediate_size": 1024,
            "position_embedding_type": None,
            "num_local_experts": 8,
            "num_experts_per_tok": 2,
            "mamba_d_conv": 4,
            "mamba_d_state": 256,
            "mamba_n_groups": 1,
            "mamba_n_heads": 128,
            "mamba_d_head": "auto",
            "mamba_expand": 2,
        },
        only={"num_local_experts": (0,), "position_embedding_type": ("rope", "nope")},
    ),
    "olmo2": _type("olmo2", "50304 4096 11008 32 32 = = 2048", defaults={"rms_norm_eps": 1e-5}),
    "olmo3": _type(
        "olmo2",
        "50304 4096 11008 32 32 = = 2048",
        nested=True,
        windows=4,
        defaults={
            "rms_norm_eps": 1e-5,
            "rope_theta": 5e5,
            "rope_local_base_freq": 5e5,
            "sliding_window": 4096,
        },
    ),
    "glm4": _type(
        "glm4",
        "151552 4096 13696 40 32 2 128 131072",
        partial=True,
        biases=("attention_bias",),
        defaults={
            "rms_norm_eps": 1.5625e-7,
            "partial_rotary_factor": 0.5,
            "attention_bias": True,
        },
    ),
    "ministral3": _type(
        "mistral3",
        "131072 4096 14336 34 32 8 128 262144",
        rope=("yarn",),
        windows="all",
        defaults={
            "rms_norm_eps": 1e-5,
            "sliding_window": None,
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 1e6,
                "factor": 16.0,
                "original_max_position_embeddings": 16384,
                "beta_fast": 32.0,
                "beta_slow": 1.0,
                "mscale_all_dim": 1.0,
                "mscale": 1.0,
                "llama_4_scaling_beta": 0.1,
            },
        },
    ),
    "qwen2_vl_text": _type(
        "qwen2vl", "152064 8192 29568 80 64 8 = 32768", windows="switch", defaults=_VL
    ),
    "qwen2_5_vl_text": _type(
        "qwen2vl", "152064 8192 29568 80 64 8 = 32768", windows="switch", defaults=_VL
    ),
    "qwen3_vl_text": _type(
        "qwen3vl", "151936 4096 22016 32 32 32 128 128000", defaults={"rope_theta": 5e5}
    ),
    "stablelm": _type(
        "stablelm",
        "50304 2560 6912 32 32 32 = 4096",
        eps="layer_norm_eps",
        partial=True,
        biases=("use_qkv_bias",),
        defaults={
            "layer_norm_eps": 1e-5,
            "partial_rotary_factor": 0.25,
            "use_parallel_residual": False,
            "qk_layernorm": False,
        },
        only={"head_dim": ()},
    ),
    "starcoder2": _type(
        "starcoder2",
        "49152 3072 12288 30 24 2 = 4096",
        eps="norm_epsilon",
        acts=TANH,
        windows="all",
        biases=("use_bias",),
        defaults={
            "hidden_act": "gelu_pytorch_tanh",
            "norm_epsilon": 1e-5,
            "sliding_window": None,
            "use_bias": True,
            **_TIED,
        },
        only={"use_bias": (True,)},
    ),
}


@dataclass(frozen=True)
class Whole:
    """A `model_type` of a model for more than text. `texts`: the types its text part may have,
    the first where it says none; `tied`: what its class says of the head.
    """

    texts: tuple[str, ...]
    tied: bool = False
    flat: bool = False  # its text settings may stand beside the others


WHOLES: dict[str, Whole] = {
    "gemma3": Whole(("gemma3_text",), tied=True),
    "mistral3": Whole(("mistral", "ministral3"), tied=True),
    "qwen2_vl": Whole(("qwen2_vl_text",), flat=True),
    "qwen2_5_vl": Whole(("qwen2_5_vl_text",), flat=True),
    "qwen3_vl": Whole(("qwen3_vl_text",)),
}

_EXPERTS = "it routes tokens to experts; of its family a dense model can be trained"
_STATES = "it has layers that are no attention (state spaces, convolutions or delta nets)"
_PER_LAYER = "its layers have embeddings of their own; gemma3 models can be trained"
_NO_DECODER = "it is no causal language model"
# Others that people have -> why they are refused.
REFUSED: dict[str, str] = {
    **dict.fromkeys(
        (
            *("mixtral", "qwen2_moe", "qwen3_moe", "qwen3_vl_moe", "deepseek_v2", "deepseek_v3"),
            *("gpt_oss", "granitemoe", "granitemoeshared", "olmoe", "phimoe", "llama4", "glm4_moe"),
            *("ernie4_5_moe", "hunyuan_v1_moe", "minimax", "dbrx", "jetmoe", "mistral4"),
        ),
        _EXPERTS,
    ),
    **dict.fromkeys(
        (
            *("mamba", "mamba2", "falcon_h1", "falcon_mamba", "bamba", "jamba", "zamba", "zamba2"),
            *("qwen3_next", "qwen3_5", "lfm2", "lfm2_moe", "rwkv", "recurrent_gemma", "nemotron_h"),
        ),
        _STATES,
    ),
    **dict.fromkeys(("gemma3n", "gemma3n_text", "gemma4", "gemma4_text"), _PER_LAYER),
    **dict.fromkeys(
        (
            *("bert", "roberta", "xlm-roberta", "distilbert", "modernbert", "albert", "electra"),
            *("deberta-v2", "t5", "mt5", "bart", "clip", "siglip", "vit", "whisper", "wav2vec2"),
            *("siglip_vision_model", "pixtral", "clip_vision_model", "qwen2_vl_vision"),
        ),
        _NO_DECODER,
    ),
}
