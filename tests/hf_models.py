"""Tiny models of every `model_type`, as transformers makes them, and their config.json as the hub
spells it.
"""

import copy
import json
from pathlib import Path
from typing import Any

Settings = dict[str, Any]

_SHAPE: Settings = {
    "vocab_size": 293,
    "hidden_size": 64,
    "intermediate_size": 100,
    "num_hidden_layers": 8,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_YARN: Settings = {
    "rope_type": "yarn",
    "factor": 4.0,
    "original_max_position_embeddings": 128,
    "rope_theta": 1e6,
}
_VISION: Settings = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
_GEMMA: Settings = {**_SHAPE, "head_dim": 20, "query_pre_attn_scalar": 20, "sliding_window": 8}
_EPS: Settings = {"rms_norm_eps": 1e-10}  # llama.cpp takes none for them
_SECTIONS: Settings = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 3, 3]}

# name -> model_type, and what its configuration class is given.
MODELS: dict[str, tuple[str, Settings]] = {
    "llama": ("llama", {**_SHAPE, "head_dim": 20}),
    "llama3": (
        "llama",
        {
            **_SHAPE,
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 5e5,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 48,
            },
        },
    ),
    "llama-linear": (
        "llama",
        {
            **_SHAPE,
            "attention_bias": True,
            "mlp_bias": True,
            "rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 3.0},
        },
    ),
    "llama-yarn": (
        "llama",
        {
            **_SHAPE,
            "rope_parameters": {
                **_YARN,
                "beta_fast": 4.0,
                "beta_slow": 1.0,
                "attention_factor": 1.0,
            },
        },
    ),
    "mistral": ("mistral", {**_SHAPE, "sliding_window": 8}),
    "qwen2": ("qwen2", {**_SHAPE, "rope_parameters": _YARN}),
    "qwen2-window": (
        "qwen2",
        {**_SHAPE, "use_sliding_window": True, "sliding_window": 8, "max_window_layers": 3},
    ),
    "qwen3": ("qwen3", {**_SHAPE, "head_dim": 20}),
    "gemma": ("gemma", {**_SHAPE, "head_dim": 20}),
    "gemma2": ("gemma2", _GEMMA),
    "gemma2-scalar": ("gemma2", {**_GEMMA, "query_pre_attn_scalar": 24}),
    "gemma3": ("gemma3_text", _GEMMA),
    "gemma3-linear": (
        "gemma3_text",
        {
            **_GEMMA,
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 2e6},
                "sliding_attention": {"rope_type": "default", "rope_theta": 2e4},
            },
        },
    ),
    "phi3": ("phi3", {**_SHAPE, "sliding_window": 8}),
    "phi3-long": (
        "phi3",
        {
            **_SHAPE,
            "original_max_position_embeddings": 40,
            "rope_parameters": {
                "rope_type": "longrope",
                "rope_theta": 1e4,
                "long_factor": [1.0 + i for i in range(6)],
                "short_factor": [1.0 + i / 10 for i in range(6)],
                "partial_rotary_factor": 0.75,
            },
        },
    ),
    "smollm3": ("smollm3", _SHAPE),
    "granite": (
        "granite",
        {
            **_SHAPE,
            "embedding_multiplier": 5.0,
            "attention_multiplier": 0.09,
            "residual_multiplier": 0.4,
            "logits_scaling": 2.5,
        },
    ),
    "granite4": (
        "granitemoehybrid",
        {
            **_SHAPE,
            "shared_intermediate_size": 100,
            "num_local_experts": 0,
            "num_experts_per_tok": 0,
            "layer_types": ["full_attention"] * 8,
            "position_embedding_type": "rope",
            "mamba_n_heads": 4,
            "mamba_d_head": 32,
            "time_step_limit": [0.0, 8.0],  # JSON has no infinity, which it is by itself
            "embedding_multiplier": 5.0,
            "attention_multiplier": 0.09,
            "residual_multiplier": 0.4,
            "logits_scaling": 2.5,
        },
    ),
    "olmo2": ("olmo2", _SHAPE),
    "olmo3": (
        "olmo3",
        {
            **_SHAPE,
            "sliding_window": 8,
            "rope_parameters": {
                "full_attention": {**_YARN, "rope_theta": 5e5},
                "sliding_attention": {"rope_type": "default", "rope_theta": 5e5},
            },
        },
    ),
    "glm4": ("glm4", {**_SHAPE, "head_dim": 28}),
    "ministral3": (
        "ministral3",
        {
            **_SHAPE,
            "head_dim": 20,
            "rope_parameters": {
                **_YARN,
                "beta_fast": 32.0,
                "beta_slow": 1.0,
                "mscale": 1.0,
                "mscale_all_dim": 1.0,
                "llama_4_scaling_beta": 0.1,
            },
        },
    ),
    "stablelm": ("stablelm", {**_SHAPE, "use_qkv_bias": True}),
    "stablelm-parallel": (
        "stablelm",
        {**_SHAPE, "use_parallel_residual": True, "qk_layernorm": True},
    ),
    "starcoder2": ("starcoder2", {**_SHAPE, "sliding_window": 8}),
    "gemma3-whole": (
        "gemma3",
        {"text_config": _GEMMA, "vision_config": _VISION, "mm_tokens_per_image": 4},
    ),
    "mistral3": (
        "mistral3",
        {
            "text_config": {
                **_SHAPE,
                "model_type": "mistral",
                "sliding_window": None,
                "head_dim": 20,
            },
            "vision_config": {**_VISION, "head_dim": 8},
            "tie_word_embeddings": False,
        },
    ),
    "mistral3-ministral3": (
        "mistral3",
        {
            "text_config": {**_SHAPE, "model_type": "ministral3", "head_dim": 20},
            "vision_config": {**_VISION, "head_dim": 8},
            "tie_word_embeddings": False,
        },
    ),
    "qwen2_vl": (
        "qwen2_vl",
        {
            "text_config": {**_SHAPE, **_EPS, "rope_parameters": _SECTIONS},
            "vision_config": {"embed_dim": 16, "hidden_size": 64, "depth": 1, "num_heads": 2},
        },
    ),
    "qwen2_5_vl": (
        "qwen2_5_vl",
        {
            "text_config": {**_SHAPE, **_EPS, "rope_parameters": _SECTIONS},
            "vision_config": {
                "hidden_size": 16,
                "out_hidden_size": 64,
                "depth": 1,
                "num_heads": 2,
                "intermediate_size": 16,
            },
        },
    ),
    "qwen3_vl": (
        "qwen3_vl",
        {
            "text_config": {
                **_SHAPE,
                "head_dim": 20,
                "rope_parameters": {**_SECTIONS, "mrope_section": [4, 3, 3]},
            },
            "vision_config": {
                "hidden_size": 16,
                "out_hidden_size": 64,
                "depth": 2,
                "num_heads": 2,
                "intermediate_size": 16,
                "deepstack_visual_indexes": [0, 1],
            },
        },
    ),
}
# Settings of generation and training, which old files hold too.
_NOISE: Settings = {"use_cache": True, "initializer_range": 0.02, "transformers_version": "4.48.0"}


def hf_config(name: str) -> Any:
    """The transformers configuration of a model."""
    import transformers

    kind, given = MODELS[name]
    return transformers.AutoConfig.for_model(kind, **copy.deepcopy(given))


def save(name: str, folder: Path, **options: Any) -> Any:
    """Writes a model of random weights as transformers does, large enough that attention prefers
    some tokens, norms and biases away from their start; returns it, in eval mode.
    """
    import torch
    import transformers

    torch.manual_seed(0)
    config = hf_config(name)
    auto = transformers.AutoModelForCausalLM
    if "text_config" in MODELS[name][1]:
        auto = transformers.AutoModelForImageTextToText
    model = auto.from_config(config)
    shifted = name.startswith("gemma")
    for key, parameter in model.named_parameters():
        if parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=1.5 * parameter.shape[1] ** -0.5)
        elif parameter.ndim == 1 and key.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.2)
        elif parameter.ndim == 1:
            torch.nn.init.uniform_(parameter, *((-0.3, 0.5) if shifted else (0.7, 1.5)))
    model.save_pretrained(folder, **options)
    return model.eval()


def same_in_llama_cpp(name: str) -> int:
    """How long a row may be for llama.cpp to compute the same: it ignores some windows."""
    ignored = ("mistral", "qwen2-window", "phi3", "starcoder2")
    return 8 if name in ignored else 50


def read(folder: Path) -> Settings:
    """The config.json of a folder."""
    settings: Settings = json.loads((folder / "config.json").read_text())
    return settings


def as_on_the_hub(settings: Settings) -> Settings:
    """A config.json of transformers 5, in the spelling that older versions wrote."""
    old = _older(settings) | _NOISE
    if "text_config" not in settings:
        return old
    text = _older(settings["text_config"])
    if settings["model_type"] in ("qwen2_vl", "qwen2_5_vl"):  # flat
        del old["text_config"]
        return {**text, **old, "model_type": settings["model_type"]}
    return {**old, "text_config": text}


def _older(settings: Settings) -> Settings:
    old = copy.deepcopy(settings)
    if dtype := old.pop("dtype", None):
        old["torch_dtype"] = dtype
    if old["model_type"] == "granitemoehybrid":
        old["layer_types"] = ["attention"] * len(old["layer_types"])
    rope = old.pop("rope_parameters", None)
    if rope is None:
        return old
    spelt = "type"
    if "full_attention" in rope:
        spelt = "rope_type"  # its classes know no other
        old["rope_local_base_freq"] = rope["sliding_attention"]["rope_theta"]
        rope = rope["full_attention"]
        if old["model_type"] == "olmo3":
            del old["rope_local_base_freq"]
        else:
            kinds = old.pop("layer_types")
            old["sliding_window_pattern"] = kinds.index("full_attention") + 1
    old["rope_theta"] = rope.pop("rope_theta")
    if "partial_rotary_factor" in rope:
        old["partial_rotary_factor"] = rope.pop("partial_rotary_factor")
    kind = rope.pop("rope_type")
    if "mrope_section" in rope:
        old["rope_scaling"] = {"type": "mrope", **rope}
    elif kind != "default":
        old["rope_scaling"] = {spelt: kind, **rope}
    else:
        old["rope_scaling"] = None
    return old
