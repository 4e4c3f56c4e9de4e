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
from wgtrain.files import split_tensor, unpermute_rows


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
    kind = shape.row.model_type
    config = transformers.AutoConfig.for_model(
        kind, **shape.hf_config(), attn_implementation="sdpa", use_cache=False
    )
    model = transformers.MODEL_FOR_CAUSAL_LM_MAPPING[type(config)](config)
    source = RandomWeights(shape)
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name in shape.tensors():
            value = _hf_order(name, source.values(name), shape)
            stem, _, suffix = name.rpartition(".")
            module = f"{shape.row.hf_module(stem)}.{suffix}"
            parameters.pop(module).copy_(torch.from_numpy(value.copy()))
    assert not parameters, sorted(parameters)
    return model.requires_grad_(False).eval()


def _hf_order(name: str, value: np.ndarray, shape: Shape) -> np.ndarray:
    """The rows of a base tensor, or of its B, in the order of Hugging Face."""
    place = split_tensor(name)
    heads = shape.row.heads(place[1], shape.heads, shape.kv_heads) if place else 0
    return unpermute_rows(value, heads) if heads else value


def _set_adapter(model: Any, shape: Shape, torch: Any) -> None:
    parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
    with torch.no_grad():
        for name, (a, b) in shape.adapter().items():
            for letter, value in (("A", a), ("B", _hf_order(name, b, shape))):
                module = shape.row.hf_module(name.removesuffix(".weight"))
                full = f"base_model.model.{module}.lora_{letter}.default.weight"
                parameters.pop(full).copy_(torch.from_numpy(value.copy()))
    assert not parameters, sorted(parameters)


if __name__ == "__main__":
    serve(PeftStep)
