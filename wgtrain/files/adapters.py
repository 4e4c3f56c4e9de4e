"""LoRA adapters as files: the adapter GGUF of llama.cpp and the folder of PEFT.

In memory rows are in GGUF order and the effect is `alpha / rank * B (A x)`, whatever the file said.
"""

import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from wgtrain.errors import FileError, OptionError
from wgtrain.files import fused, names
from wgtrain.files.architecture import Architecture
from wgtrain.files.architectures import find_architecture
from wgtrain.files.gguf import GGUF, TensorInfo, parse_gguf, write_gguf
from wgtrain.files.gguf_parser import F32_MAX, F32_MIN
from wgtrain.files.safetensors import json_object, read_safetensors, write_safetensors
from wgtrain.files.source import Data, shown

CONFIG_FILE = "adapter_config.json"
TENSOR_FILE = "adapter_model.safetensors"
MAX_CONFIG = 1 << 20  # bytes of adapter_config.json
MIN_ALPHA, MAX_ALPHA = 1e-30, 1e30  # of a new adapter; in files, all that f32 holds

_ALPHAS = "a number other than 0 that f32 holds"
_NO_EMBEDDING = "adapters of the token embedding are not supported"
_PREFIX = "wgtrain."
_HF_PREFIX = "base_model.model."
_HF_KEY = re.compile(r"base_model\.model\.(.{1,200})\.lora_([AB])\.weight")
# Fields of adapter_config.json that change what the tensors mean: absent, null or one of these.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "task_type": ("CAUSAL_LM",),
    "bias": ("none",),
    "init_lora_weights": (True, False, "gaussian", "eva", "orthogonal"),  # others change the base
}
# Fields that are read, or say nothing about the tensors. Any other must be null, false, 0 or empty.
_READ = {"r", "lora_alpha", "use_rslora"}
_SILENT = {
    *("base_model_name_or_path", "revision", "target_modules", "exclude_modules", "lora_dropout"),
    *("layers_to_transform", "layers_pattern", "inference_mode", "auto_mapping", "peft_version"),
    *("megatron_core", "qalora_group_size", "eva_config"),
}


@dataclass(frozen=True)
class Adapter:
    """Pairs by base tensor name: A (r, n_in) and B (n_out, r), float32; scale = alpha / rank.

    `metadata` holds what stands under `wgtrain.` in an adapter GGUF, without that prefix.
    """

    architecture: str
    rank: int
    alpha: float
    tensors: dict[str, tuple[np.ndarray, np.ndarray]]
    metadata: dict[str, Any] = field(default_factory=dict)

    @property
    def matrices(self) -> dict[str, np.ndarray]:
        """Its matrices by their own names, `<tensor>.lora_a` and `.lora_b`."""
        found = {}
        for base, (a, b) in self.tensors.items():
            found[f"{base}.lora_a"], found[f"{base}.lora_b"] = a, b
        return found


def write_adapter_gguf(adapter: Adapter) -> bytes:
    """The adapter as llama.cpp loads it, in f32; the same adapter gives the same bytes.

    OptionError for an alpha that f32 cannot hold, or 0, which llama.cpp reads as alpha = rank.
    """
    if not adapter.alpha:
        raise OptionError("alpha is 0, which llama.cpp would read as alpha = rank")
    if not _is_alpha(float(adapter.alpha)):
        raise OptionError(f"alpha is {adapter.alpha:g}, which the file's f32 cannot hold")
    metadata = {
        "general.type": "adapter",
        "general.architecture": adapter.architecture,
        "adapter.type": "lora",
        "adapter.lora.alpha": np.float32(adapter.alpha),
    }
    metadata |= {_PREFIX + key: value for key, value in sorted(adapter.metadata.items())}
    tensors: dict[str, Any] = {}
    for name, (a, b) in _ordered(adapter):
        tensors[f"{name}.lora_a"] = a.astype(np.float32, copy=False)
        tensors[f"{name}.lora_b"] = b.astype(np.float32, copy=False)
    return write_gguf(metadata, tensors)


def read_adapter_gguf(data: Data, name: str = "adapter.gguf") -> Adapter:
    """The adapter of a GGUF, as llama.cpp understands it; FileError where it cannot be used."""
    gguf = parse_gguf(data, name)
    for key, wanted in (("general.type", "adapter"), ("adapter.type", "lora")):
        if (value := gguf.get(key, str)) != wanted:
            raise FileError(f"{name}: key {key!r} is {shown(value)}, a LoRA adapter has {wanted!r}")
    if "adapter.alora.invocation_tokens" in gguf.metadata:
        raise FileError(f"{name}: key 'adapter.alora...': activated LoRA is not supported")
    parts: dict[str, dict[str, np.ndarray]] = {}
    for info in gguf.tensors.values():
        base, _, suffix = info.name.rpartition(".")
        if suffix in ("lora_a", "lora_b") and base:
            parts.setdefault(base, {})[suffix[-1]] = _floats(gguf, info, data)
        # llama.cpp passes over norms, so they have no effect there and none here.
        elif not info.name.endswith("_norm.weight"):
            raise FileError(f"{name}: tensor {info.name!r} ends in neither .lora_a nor .lora_b")
    pairs, rank = _pairs(parts, name, repr)
    alpha = gguf.get("adapter.lora.alpha", float, 0.0) or float(rank)
    if not _is_alpha(alpha):
        raise FileError(f"{name}: key 'adapter.lora.alpha' is {alpha}; {_ALPHAS} expected")
    mine = {k.removeprefix(_PREFIX): v for k, v in gguf.metadata.items() if k.startswith(_PREFIX)}
    return Adapter(gguf.get("general.architecture", str), rank, alpha, pairs, mine)


def _floats(gguf: GGUF, info: TensorInfo, data: Data) -> np.ndarray:
    if info.type not in ("F32", "F16"):
        raise FileError(f"{gguf.name}: tensor {info.name!r} is {info.type}; F32 and F16 are read")
    view = memoryview(data).cast("B")[info.offset : info.offset + info.nbytes]
    return np.frombuffer(view, "<f4" if info.type == "F32" else "<f2").reshape(info.shape)


def _pairs(
    parts: dict[str, dict[str, np.ndarray]], file: str, label: Callable[[str], str]
) -> tuple[dict[str, tuple[np.ndarray, np.ndarray]], int]:
    """Complete pairs, as float32 copies, and their one rank; FileError lists all that is wrong."""
    problems = []
    pairs = {}
    for base in sorted(parts, key=names.tensor_order):
        part, where = parts[base], label(base)
        if base == "token_embd.weight":
            problems.append(f"{where}: {_NO_EMBEDDING}")
            continue
        if len(part) == 1:
            have, lacks = ("a", "b") if "a" in part else ("b", "a")
            problems.append(f"{where}: lora_{have} without lora_{lacks}")
            continue
        a, b = part["a"], part["b"]
        if a.ndim != 2 or b.ndim != 2 or a.shape[0] != b.shape[1] or not a.size or not b.size:
            problems.append(f"{where}: A {a.shape}, B {b.shape}; (r, n_in), (n_out, r) expected")
            continue
        wrong = [_not_finite(letter, array) for letter, array in (("A", a), ("B", b))]
        if any(wrong):
            problems += [f"{where}: {text}" for text in wrong if text]
            continue
        pairs[base] = (a.astype(np.float32), b.astype(np.float32))
    ranks = {base: a.shape[0] for base, (a, _) in pairs.items()}
    if len(set(ranks.values())) > 1:
        low, high = min(ranks, key=ranks.__getitem__), max(ranks, key=ranks.__getitem__)
        problems.append(
            f"{label(low)} has rank {ranks[low]}, {label(high)} has {ranks[high]}; "
            "one rank for all is supported"
        )
    if not parts:
        problems.append("no adapter tensors")
    if problems:
        raise FileError(_listed(file, problems))
    return pairs, next(iter(ranks.values()))


def _not_finite(letter: str, array: np.ndarray) -> str:
    finite = np.isfinite(array)
    if finite.all():
        return ""
    row, column = np.argwhere(~finite)[0].tolist()
    return f"{letter}[{row}, {column}] is {array[row, column]}"


def _listed(file: str, problems: list[str], limit: int = 40) -> str:
    rest = len(problems) - limit
    lines = problems[:limit] + ([f"and {rest} more"] if rest > 0 else [])
    return f"{file}: {lines[0]}" if len(lines) == 1 else "\n  ".join([f"{file}:", *lines])


def fitted(adapter: Adapter, tensors: dict[str, TensorInfo]) -> Adapter:
    """An adapter with q, k and v apart or in one, as a model's file has them; the same product."""
    pairs = fused.fit_pairs(adapter.tensors, tensors)
    return adapter if pairs is adapter.tensors else _with_pairs(adapter, pairs)


def _with_pairs(adapter: Adapter, pairs: fused.Pairs) -> Adapter:
    rank = len(next(iter(pairs.values()))[0])
    return replace(adapter, rank=rank, alpha=adapter.alpha * rank / adapter.rank, tensors=pairs)


def fit_adapter(
    adapter: Adapter, tensors: dict[str, TensorInfo], architecture: str, name: str = "adapter"
) -> Adapter:
    """As `fitted`; FileError where even so it does not fit the model."""
    found = fitted(adapter, tensors)
    adapter_fits(found, tensors, architecture, name)
    return found


def adapter_fits(
    adapter: Adapter, tensors: dict[str, TensorInfo], architecture: str, name: str = "adapter"
) -> None:
    """Raises FileError with the first reasons unless each pair has a base tensor (n_out, n_in)."""
    problems = []
    if adapter.architecture != architecture:
        problems.append(f"made for {adapter.architecture!r} models, this one is {architecture!r}")
    for base, (a, b) in _ordered(adapter):
        shape = (b.shape[0], a.shape[1])
        if base == "token_embd.weight":
            problems.append(f"{base!r}: {_NO_EMBEDDING}")
        elif base in tensors:
            if tensors[base].shape != shape:
                problems.append(f"{base!r}: made for {shape}, the model has {tensors[base].shape}")
        elif base == "output.weight" and "token_embd.weight" in tensors:
            problems.append(f"{base!r}: the model's output head is tied to its embedding")
        else:
            problems.append(f"{base!r}: the model has no such tensor")
    if problems:
        raise FileError(_listed(f"{name} does not fit the model", problems, 6))


def _ordered(adapter: Adapter) -> list[tuple[str, tuple[np.ndarray, np.ndarray]]]:
    return sorted(adapter.tensors.items(), key=lambda item: names.tensor_order(item[0]))


def write_adapter_peft(
    adapter: Adapter,
    *,
    base_name: str | None,
    n_head: int,
    n_head_kv: int,
    dropout: float = 0.0,
    n_layer: int | None = None,
    whole: bool = False,
    shared: bool = False,
) -> dict[str, bytes]:
    """The files of a PEFT folder; q and k rows of `llama` go back to Hugging Face's order, and
    q, k and v that a file has in one tensor to where its class has them.

    `n_layer` is the number of blocks of the base: where the adapter leaves some out, target_modules
    holds whole module paths instead of short names, which PEFT would look for in every block. So it
    does where the base is a model for more than text, `whole`, whose other parts have such modules.
    `shared`: the base is of the class that has gate and up in one.
    """
    tensors, modules = {}, {}
    row = find_architecture(adapter.architecture, "adapter")
    if shared:
        adapter = _with_pairs(adapter, fused.join_gates(adapter.tensors))
    for base, (a, b) in _separated(adapter, row, n_head, n_head_kv):
        module = names.hf_module(base, row, shared)
        if module is None:
            raise FileError(f"adapter tensor {base!r} has no place in a PEFT folder")
        if heads := _permuted_heads(base, row, n_head, n_head_kv):
            b = names.unpermute_rows(b, heads)
        module = names.whole_module(module) if whole else module
        tensors[f"{_HF_PREFIX}{module}.lora_A.weight"] = np.asarray(a, np.float32)
        tensors[f"{_HF_PREFIX}{module}.lora_B.weight"] = np.asarray(b, np.float32)
        modules[base] = module
    alpha = float(adapter.alpha)
    config = {
        "base_model_name_or_path": base_name,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_alpha": int(alpha) if alpha.is_integer() else alpha,
        "lora_dropout": dropout,
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": adapter.rank,
        "target_modules": sorted(modules.values()) if whole else _target_modules(modules, n_layer),
        "task_type": "CAUSAL_LM",
        "use_dora": False,
        "use_rslora": False,
    }
    text = json.dumps(config, indent=2, sort_keys=True) + "\n"
    return {CONFIG_FILE: text.encode(), TENSOR_FILE: write_safetensors(tensors, {"format": "pt"})}


def _separated(
    adapter: Adapter, row: Architecture, n_head: int, n_head_kv: int
) -> list[tuple[str, fused.Pair]]:
    """The pairs in order, with q, k and v apart where the architecture's class has them so."""
    found: fused.Pairs = {}
    for base, pair in adapter.tensors.items():
        block, _, rest = base.rpartition(fused.QKV)
        if rest != ".weight" or fused.QKV in row.linears or len(pair[1]) % (n_head + 2 * n_head_kv):
            found[base] = pair
            continue
        size = len(pair[1]) // (n_head + 2 * n_head_kv)
        found |= fused.separate(block, pair, [n_head * size, n_head_kv * size, n_head_kv * size])
    return sorted(found.items(), key=lambda item: names.tensor_order(item[0]))


def _target_modules(modules: dict[str, str], n_layer: int | None) -> list[str]:
    """Short names where every block has the same ones, else whole paths."""
    places = [place for base in modules if (place := names.split_tensor(base)) and place[0] >= 0]
    layers = {layer for layer, _ in places}
    targets = {target for _, target in places}
    blocks = len(layers) if n_layer is None else n_layer
    if len(places) != blocks * len(targets):
        return sorted(modules.values())
    return sorted({module.rpartition(".")[2] for module in modules.values()})


def _permuted_heads(base: str, row: Architecture, n_head: int, n_head_kv: int) -> int:
    """The heads to permute B's rows by; 0 where both worlds agree."""
    place = names.split_tensor(base)
    return row.heads(place[1], n_head, n_head_kv) if place else 0


def read_adapter_peft(
    files: dict[str, bytes],
    name: str = "adapter",
    *,
    architecture: str,
    n_head: int,
    n_head_kv: int,
) -> Adapter:
    """The adapter of a PEFT folder; FileError names the field, module or tensor not supported."""
    for file in (CONFIG_FILE, TENSOR_FILE):
        if file not in files:
            have = ", ".join(sorted(files)) or "nothing"
            raise FileError(f"{name}: {file} is missing; there is {shown(have, 200)}")
    if len(files[CONFIG_FILE]) > MAX_CONFIG:
        size = len(files[CONFIG_FILE])
        raise FileError(f"{name}/{CONFIG_FILE}: {size} bytes, at most {MAX_CONFIG} are read")
    rank, alpha = _peft_config(json_object(files[CONFIG_FILE], f"{name}/{CONFIG_FILE}"), name)
    where, row = f"{name}/{TENSOR_FILE}", find_architecture(architecture, name)
    parts: dict[str, dict[str, np.ndarray]] = {}
    for key, array in read_safetensors(files[TENSOR_FILE], where).items():
        if key.endswith(".base_layer.weight"):
            continue  # PEFT saves the frozen head beside an adapter that targets it
        match = _HF_KEY.fullmatch(key)
        base = names.gguf_tensor(names.text_module(match[1]), row) if match else None
        if match is None or base is None:
            raise FileError(f"{where}: tensor {shown(key, 120)}: {_why_not(key, row)}")
        if array.dtype not in (np.float32, np.float16):
            raise FileError(f"{where}: tensor {key!r} is {array.dtype}; F32, F16 and BF16 are read")
        parts.setdefault(base, {})[match[2].lower()] = array
    pairs, found = _pairs(parts, where, lambda base: names.hf_module(base, row) or base)
    if found != rank:
        raise FileError(f"{name}/{CONFIG_FILE}: r is {rank}, the tensors have rank {found}")
    for base, (a, b) in pairs.items():
        if heads := _permuted_heads(base, row, n_head, n_head_kv):
            if b.shape[0] % (2 * heads):
                raise FileError(
                    f"{where}: {names.hf_module(base, row)}: B of {b.shape[0]} rows cannot belong "
                    f"to {heads} heads of even size"
                )
            pairs[base] = (a, names.permute_rows(b, heads))
    return Adapter(architecture, rank, alpha, fused.part_gates(pairs, where))


def _why_not(key: str, row: Architecture) -> str:
    if "lora_magnitude_vector" in key:
        return "DoRA is not supported"
    if "lora_embedding" in key:
        return _NO_EMBEDDING
    known = ", ".join([*row.linears.values(), "lm_head"])
    return f"not a lora_A.weight or lora_B.weight of a known module ({known})"


def _peft_config(config: dict[str, Any], name: str) -> tuple[int, float]:
    """(rank, alpha with rsLoRA folded in); FileError lists every field that is not supported."""
    problems = []
    if config.get("peft_type") is None:
        problems.append("peft_type is missing, 'LORA' expected")
    for key, value in config.items():
        if key in _NEUTRAL:
            if value is not None and value not in _NEUTRAL[key]:
                allowed = " or ".join(map(repr, _NEUTRAL[key]))
                problems.append(f"{key} is {shown(value)}, {allowed} is supported")
        elif key not in _READ | _SILENT and value:
            problems.append(f"{shown(key)} is {shown(value)}, which is not supported")
    rank, alpha = config.get("r"), config.get("lora_alpha", 8)  # 8 is PEFT's own default
    if type(rank) is not int or not 1 <= rank < 1 << 31:
        problems.append(f"r is {shown(rank)}, an integer from 1 expected")
    if not _is_alpha(alpha):
        problems.append(f"lora_alpha is {shown(alpha)}, {_ALPHAS} expected")
    stabilised = config.get("use_rslora", False)
    if type(stabilised) is not bool:
        problems.append(f"use_rslora is {shown(stabilised)}, true or false expected")
    if problems:
        raise FileError(_listed(f"{name}/{CONFIG_FILE}", problems))
    assert isinstance(rank, int)
    scaled = float(alpha) * (math.sqrt(rank) if stabilised else 1.0)
    if not _is_alpha(scaled):
        what = f"lora_alpha x sqrt(r) is {scaled}; {_ALPHAS} expected"
        raise FileError(f"{name}/{CONFIG_FILE}: {what}")
    return rank, scaled


def _is_alpha(value: Any) -> bool:
    return type(value) in (int, float) and F32_MIN <= abs(value) <= F32_MAX
