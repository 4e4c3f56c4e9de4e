"""A LoRA step by PyTorch, transformers and PEFT, on CUDA where there is one: a process of its own.

The rows of `llama` files are brought into the order of Hugging Face; losses and norms stay the
same.
"""

import os
import time
import warnings
from typing import Any

import numpy as np

from wgtrain.bench.child import LEARNING_RATE, MAX_GRAD_NORM, serve
from wgtrain.bench.shapes import Shape
from wgtrain.bench.weights import RandomWeights
from wgtrain.files import hf_module, split_tensor, unpermute_rows
from wgtrain.files.names import PERMUTED

_VECTORS = {
    "attn_norm.weight": "input_layernorm.weight",
    "ffn_norm.weight": "post_attention_layernorm.weight",
    "attn_q_norm.weight": "self_attn.q_norm.weight",
    "attn_k_norm.weight": "self_attn.k_norm.weight",
    **{f"attn_{x}.bias": f"self_attn.{x}_proj.bias" for x in "qkv"},
}


class PeftStep:
    """`child.Stepper` over PEFT; `job["dtype"]` is that of the base, adapters are float32."""

    def __init__(self, shape: Shape, job: dict[str, Any]):
        import peft
        import torch
        import transformers

        self._torch = torch
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        torch.set_num_threads(os.cpu_count() or 1)
        torch.backends.cuda.matmul.allow_tf32 = False  # float32 is float32
        config = peft.LoraConfig(
            r=shape.rank, lora_alpha=shape.alpha, target_modules="all-linear", bias="none"
        )
        base = _base(shape, torch, transformers).to(self._device, getattr(torch, job["dtype"]))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self._model = peft.get_peft_model(base, config)
        _set_adapter(self._model, shape, torch)
        self._trained = [p for p in self._model.parameters() if p.requires_grad]
        self._optimizer = torch.optim.AdamW(
            self._trained, lr=LEARNING_RATE, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0
        )
        stream = torch.from_numpy(shape.stream().astype(np.int64)).to(self._device)
        self._tokens, self._targets = stream[:, :-1].contiguous(), stream[:, 1:].contiguous()
        self.about = {
            "versions": {m.__name__: m.__version__ for m in (torch, transformers, peft)},
            "device": torch.cuda.get_device_name() if self._device == "cuda" else "CPU",
            "threads": torch.get_num_threads(),
            "dtype": job["dtype"],
        }

    def steps(self, count: int) -> dict[str, float]:
        torch = self._torch
        found = []
        began = time.perf_counter()
        for _ in range(count):
            self._optimizer.zero_grad()
            logits = self._model(self._tokens).logits
            loss = torch.nn.functional.cross_entropy(
                logits.flatten(0, 1).float(), self._targets.flatten()
            )
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(self._trained, MAX_GRAD_NORM)
            self._optimizer.step()
            found.append((loss.detach(), norm.detach()))
        first = [float(value) for value in found[0]]
        if self._device == "cuda":
            torch.cuda.synchronize()
        seconds = (time.perf_counter() - began) / count
        return {"seconds": seconds, "loss": first[0], "grad_norm": first[1]}


def _base(shape: Shape, torch: Any, transformers: Any) -> Any:
    """The transformers model of a shape with its weights, frozen."""
    kind = {"llama": "Llama", "qwen2": "Qwen2", "qwen3": "Qwen3"}[shape.architecture]
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=shape.vocabulary,
        hidden_size=shape.width,
        intermediate_size=shape.feed_forward,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_size,
        rms_norm_eps=shape.config.norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": shape.rope_theta},
        tie_word_embeddings=shape.tied,
        max_position_embeddings=shape.config.context,
        attn_implementation="sdpa",
        use_cache=False,
    )
    model = getattr(transformers, f"{kind}ForCausalLM")(config)
    source = RandomWeights(shape)
    parameters = dict(model.named_parameters())
    names = [*shape.config.matrices(), *shape.config.vectors()]
    with torch.no_grad():
        for name in names:
            value = _hf_order(name, source.values(name), shape)
            parameters.pop(_hf_name(name)).copy_(torch.from_numpy(value.copy()))
    assert not parameters, sorted(parameters)
    return model.requires_grad_(False).eval()


def _hf_name(name: str) -> str:
    """transformers' name of a base tensor."""
    ends = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
    stem = name.removesuffix(".weight")
    if stem in ends:
        return f"{ends[stem]}.weight"
    if module := hf_module(name):
        return f"{module}.weight"
    _, layer, rest = name.split(".", 2)
    return f"model.layers.{layer}.{_VECTORS[rest]}"


def _hf_order(name: str, value: np.ndarray, shape: Shape) -> np.ndarray:
    """The rows of a base tensor, or of its B, in the order of Hugging Face."""
    place = split_tensor(name)
    if shape.architecture != "llama" or place is None or place[1] not in PERMUTED:
        return value
    return unpermute_rows(value, shape.heads if place[1] == "attn_q" else shape.kv_heads)


def _set_adapter(model: Any, shape: Shape, torch: Any) -> None:
    parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
    with torch.no_grad():
        for name, (a, b) in shape.adapter().items():
            for letter, value in (("A", a), ("B", _hf_order(name, b, shape))):
                full = f"base_model.model.{hf_module(name)}.lora_{letter}.default.weight"
                parameters.pop(full).copy_(torch.from_numpy(value.copy()))
    assert not parameters, sorted(parameters)


if __name__ == "__main__":
    serve(PeftStep)
