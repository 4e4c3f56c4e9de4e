"""LoRA by PyTorch and PEFT on a tiny model: logits, gradients and whole AdamW runs.

Tensors go in and out by the file's names, in its row order. Nothing here is computed by wgtrain;
the formulas of the schedule are those of the file contracts, written out once more.
"""

from __future__ import annotations

import math
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import needs
import numpy as np
from tiny import Spec, Tiny

torch: Any = needs.Later("torch")
peft: Any = needs.Later("peft")

Tensors = dict[str, np.ndarray]
Pairs = dict[str, tuple[np.ndarray, np.ndarray]]
Rows = Sequence[tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class Settings:
    """A run: `steps` updates of `accumulation` micro-batches of `batch` rows, taken in order."""

    steps: int = 20
    batch: int = 2
    accumulation: int = 2
    learning_rate: float = 1e-2
    schedule: str = "cosine"
    warmup: int = 4
    weight_decay: float = 0.5
    max_grad_norm: float = 1.0
    freeze_a: bool = False

    def rate(self, step: int) -> float:
        """The learning rate of step `step`, counted from 1."""
        if step <= self.warmup:
            return self.learning_rate * step / self.warmup
        p = min((step - 1 - self.warmup) / max(self.steps - self.warmup, 1), 1.0)
        factor = {"cosine": (1 + math.cos(math.pi * p)) / 2, "linear": 1 - p, "constant": 1.0}
        return self.learning_rate * factor[self.schedule]


@dataclass(frozen=True)
class Run:
    """What a run leaves: a loss and a norm before clipping for each step, final parameters."""

    losses: list[float]
    norms: list[float]
    final: Tensors


class Peft:
    """A tiny model with an adapter; `pairs` are A and B by tensor name, in the file's row order."""

    def __init__(self, base: Tiny, pairs: Pairs, alpha: float, dtype: str = "float32") -> None:
        self.spec = base.spec
        rank = next(iter(pairs.values()))[0].shape[0]
        modules = [base.spec.hf_name(name.removesuffix(".weight")) for name in pairs]
        config = peft.LoraConfig(r=rank, lora_alpha=alpha, target_modules=modules, bias="none")
        model = base.hf_model()
        if dtype == "float64":
            _keep_float64(model)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.model = peft.get_peft_model(model, config).to(getattr(torch, dtype))
        self.dtype = dtype
        self.parameters = _parameters(self.model, self.spec)
        self.set(pairs)

    def set(self, pairs: Pairs) -> None:
        """Writes A and B."""
        expected = {f"{name}.lora_{ab}" for name in pairs for ab in "ab"}
        assert expected == set(self.parameters), expected ^ set(self.parameters)
        with torch.no_grad():
            for name, (a, b) in pairs.items():
                module = self.spec.hf_name(name.removesuffix(".weight"))
                rows = self.spec.from_file_order(module, b)
                for key, value in (("a", a), ("b", rows)):
                    parameter = self.parameters[f"{name}.lora_{key}"]
                    assert parameter.shape == value.shape, (name, parameter.shape, value.shape)
                    parameter.copy_(torch.from_numpy(value))

    def load(self, folder: Path) -> None:
        """The adapter that PEFT saved there, in place of its own, to train on."""
        model = self.model.unload()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.model = peft.PeftModel.from_pretrained(model, folder, is_trainable=True)
        self.model = self.model.to(getattr(torch, self.dtype))
        self.parameters = _parameters(self.model, self.spec)

    def logits(self, tokens: np.ndarray) -> np.ndarray:
        """Logits (T, V) of one row."""
        return logits_of(self.model, tokens)

    def loss(self, rows: Rows) -> tuple[torch.Tensor, int]:
        """The sum of the losses of the trained tokens, and their count.

        Rows are padded at the right, where causal attention cannot see the padding.
        """
        longest = max(len(tokens) for tokens, _ in rows)
        ids = np.zeros((len(rows), longest), np.int64)
        labels = np.full((len(rows), longest), -1, np.int64)
        for i, (tokens, targets) in enumerate(rows):
            ids[i, : len(tokens)] = tokens
            labels[i, : len(tokens)] = targets
        logits = self.model(torch.from_numpy(ids)).logits
        loss = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1),
            torch.from_numpy(labels).flatten(),
            ignore_index=-1,
            reduction="sum",
        )
        return loss, int((labels >= 0).sum())

    def evaluate(self, rows: Rows, batch: int = 8) -> tuple[float, int]:
        """Loss sum and trained count over rows."""
        total, count = 0.0, 0
        with torch.no_grad():
            for i in range(0, len(rows), batch):
                loss, n = self.loss(rows[i : i + batch])
                total, count = total + loss.item(), count + n
        return total, count

    def gradients(self, rows: Rows) -> tuple[float, int, Tensors]:
        """Loss sum, trained count and the gradients of the sum."""
        self.model.zero_grad()
        loss, count = self.loss(rows)
        loss.backward()
        return loss.item(), count, self._file_order({k: p.grad for k, p in self.parameters.items()})

    def values(self) -> Tensors:
        """The parameters, copied."""
        return self._file_order(dict(self.parameters))

    def train(self, rows: Rows, settings: Settings) -> Run:
        """AdamW over the rows in order, again from the first after the last.

        The loss of a step is sum / count over its window.
        """
        for name, p in self.parameters.items():
            p.requires_grad_(not (settings.freeze_a and name.endswith("lora_a")))
        trained = [p for p in self.parameters.values() if p.requires_grad]
        optimizer = torch.optim.AdamW(
            trained, lr=0.0, betas=(0.9, 0.999), eps=1e-8, weight_decay=settings.weight_decay
        )
        losses, norms, at = [], [], 0
        for step in range(1, settings.steps + 1):
            optimizer.zero_grad()
            total, count = 0.0, 0
            for _ in range(settings.accumulation):
                batch = [rows[(at + i) % len(rows)] for i in range(settings.batch)]
                at += settings.batch
                loss, n = self.loss(batch)
                loss.backward()
                total, count = total + loss.item(), count + n
            for p in trained:
                p.grad /= count
            limit = settings.max_grad_norm or math.inf
            norms.append(torch.nn.utils.clip_grad_norm_(trained, limit).item())
            losses.append(total / count)
            optimizer.param_groups[0]["lr"] = settings.rate(step)
            optimizer.step()
        return Run(losses, norms, self.values())

    def _file_order(self, tensors: dict[str, torch.Tensor]) -> Tensors:
        out = {}
        for name, tensor in tensors.items():
            value = tensor.detach().numpy().copy()
            if name.endswith("lora_b"):
                module = self.spec.hf_name(name.removesuffix(".weight.lora_b"))
                value = self.spec.to_file_order(module, value)
            out[name] = value
        return out


def load_peft_folder(base: Tiny, files: dict[str, bytes]) -> Any:
    """A PeftModel over the base from a PEFT folder's files, as a user loads it."""
    with tempfile.TemporaryDirectory() as folder:
        for name, data in files.items():
            Path(folder, name).write_bytes(data)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", UserWarning)  # PEFT only warns of keys it does not find
            return peft.PeftModel.from_pretrained(base.hf_model(), folder).eval()


def _parameters(model: Any, spec: Spec) -> dict[str, torch.nn.Parameter]:
    """The adapter's parameters by adapter tensor names of GGUF."""
    out = {}
    for key, p in model.named_parameters():
        if ".lora_" in key:
            module, rest = key.removeprefix("base_model.model.").split(".lora_")
            assert rest in ("A.default.weight", "B.default.weight"), key
            out[f"{spec.gguf_name(module)}.weight.lora_{rest[0].lower()}"] = p
        else:
            assert not p.requires_grad, key
    return out


def _keep_float64(model: Any) -> None:
    """transformers computes RMS norms in float32 always; the reference must not."""

    def forward(norm: Any, x: torch.Tensor) -> torch.Tensor:
        plain = hasattr(norm, "variance_epsilon")  # else Gemma's, which stores less by 1
        eps = norm.variance_epsilon if plain else norm.eps
        x = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps)
        return (norm.weight if plain else 1 + norm.weight) * x

    for module in model.modules():
        if type(module).__name__.endswith("RMSNorm"):
            module.forward = forward.__get__(module)


def logits_of(model: Any, tokens: np.ndarray) -> np.ndarray:
    """Logits (T, V) of one row by a transformers or PEFT model."""
    with torch.no_grad():
        return model(torch.from_numpy(np.asarray(tokens, np.int64))[None]).logits[0].numpy()
