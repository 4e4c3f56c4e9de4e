"""GGUF's and Hugging Face's spelling of a linear, and the row order that differs between them."""

import difflib
import re
from collections.abc import Mapping, Sequence

import numpy as np

from wgtrain.errors import OptionError
from wgtrain.files.architecture import HEAD, Architecture
from wgtrain.files.architectures import ARCHITECTURES, LINEARS
from wgtrain.files.fused import GATE_UP

ALL_LINEAR = "all-linear"

_ORDER = (*LINEARS, HEAD)


def _spellings(linears: Mapping[str, str]) -> dict[str, str]:
    """Every spelling of linears and the head in a configuration -> its GGUF name."""
    return {
        **{name: name for name in (*linears, HEAD)},
        **{module: name for name, module in linears.items()},
        **{module.split(".")[1]: name for name, module in linears.items()},
        "lm_head": HEAD,
    }


_SPELLINGS = {
    spelling: name
    for row in ARCHITECTURES.values()
    for spelling, name in _spellings(row.linears).items()
}
# A linear -> the one whose rows it is a part of where a model has it fused.
_FUSED = {**dict.fromkeys(("attn_q", "attn_k", "attn_v"), "attn_qkv"), "ffn_gate": "ffn_up"}
# What stands before the text part's modules in models for more than text: as transformers' classes
# have it now, and as older files do.
WHOLE_PREFIX = "model.language_model."
_PREFIXES = (WHOLE_PREFIX, "language_model.model.", "model.text_model.")
_HEADS = ("language_model.lm_head",)
# Of a class that has gate and up in one, which is `ffn_up` where that is known.
_SHARED = {"ffn_up": "shared_mlp.input_linear", "ffn_down": "shared_mlp.output_linear"}
_LAYER = re.compile(rf"model\.layers\.(0|[1-9][0-9]{{0,5}})\.({'|'.join(_SHARED.values())})")
_TENSOR = re.compile(r"blk\.(0|[1-9][0-9]{0,5})\.([a-z_]{1,40})\.weight")


def resolve_targets(
    targets: str | Sequence[str], linears: Mapping[str, str] | None = None
) -> tuple[str, ...]:
    """GGUF short names of "all-linear" or names in either spelling, in the forward pass's order.

    `linears`: GGUF name -> module of a model's own, None = of any. OptionError names the unknown
    one, its nearest known and all that are allowed.
    """
    spellings = _SPELLINGS if linears is None else _spellings(linears)
    order = _ORDER if linears is None else (*linears, HEAD)
    names = targets.split(",") if isinstance(targets, str) else list(targets)
    if not names:
        raise OptionError(f"target_modules: none named; {ALL_LINEAR} are the linears of each block")
    chosen: set[str] = set()
    for name in (name.strip() for name in names):
        if name == ALL_LINEAR:
            chosen.update(name for name in order if name != HEAD)
        elif name in spellings:
            chosen.add(spellings[name])
        else:
            near = difflib.get_close_matches(name, [ALL_LINEAR, *spellings], 1)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            if fused := _FUSED.get(_SPELLINGS.get(name, "")):
                hint = f" (this model has it in {fused!r})" if fused in order else hint
            allowed = ", ".join(f"{name}/{_short(name, spellings)}" for name in order)
            raise OptionError(
                f"target_modules: unknown module {name!r}{hint}; allowed: {ALL_LINEAR}, {allowed}"
            )
    return tuple(name for name in order if name in chosen)


def _short(name: str, spellings: Mapping[str, str]) -> str:
    spelt = [s for s, meant in spellings.items() if meant == name and s != name and "." not in s]
    return "/".join(spelt)


def tensor_name(target: str, layer: int) -> str:
    """The base tensor of a target: "attn_q", 3 -> "blk.3.attn_q.weight"; the head has no layer."""
    return f"{HEAD}.weight" if target == HEAD else f"blk.{layer}.{target}.weight"


def split_tensor(tensor: str) -> tuple[int, str] | None:
    """(layer, short name) of a linear's tensor, (-1, "output") for the head; None for any other."""
    if tensor == f"{HEAD}.weight":
        return -1, HEAD
    match = _TENSOR.fullmatch(tensor)
    return (int(match[1]), match[2]) if match and match[2] in LINEARS else None


def hf_module(tensor: str, row: Architecture, shared: bool = False) -> str | None:
    """The Hugging Face module of a linear's tensor, "model.layers.3.self_attn.q_proj", or None.

    `shared`: in the row's class with a `shared_mlp`, where `ffn_up` is gate and up.
    """
    match = _TENSOR.fullmatch(tensor) if shared else None
    if match and match[2] in _SHARED:
        return f"model.layers.{match[1]}.{_SHARED[match[2]]}"
    return None if split_tensor(tensor) is None else row.hf_module(tensor.removesuffix(".weight"))


def gguf_tensor(module: str, row: Architecture) -> str | None:
    """The inverse of `hf_module`, for either class of a row with a `shared_mlp`; gate and up in one
    are `GATE_UP`.
    """
    match = _LAYER.fullmatch(module) if row.shared_mlp else None
    if match:
        name = next(name for name, shared in _SHARED.items() if shared == match[2])
        return f"blk.{match[1]}.{GATE_UP if name == 'ffn_up' else name}.weight"
    tensor = f"{row.gguf_stem(module)}.weight"
    return None if split_tensor(tensor) is None else tensor


def text_module(module: str) -> str:
    """A module, or what is in one, by its name in a model for text alone."""
    for prefix in _PREFIXES:
        if module.startswith(prefix):
            return "model." + module.removeprefix(prefix)
    for head in _HEADS:
        if module == head or module.startswith(f"{head}."):
            return "lm_head" + module.removeprefix(head)
    return module


def whole_module(module: str) -> str:
    """The inverse of `text_module`, as transformers' classes have it."""
    if not module.startswith("model."):
        return module
    return WHOLE_PREFIX + module.removeprefix("model.")


def tensor_order(tensor: str) -> tuple[int, int, int, str]:
    """Sort key: blocks by number, in each the forward pass's order; then the head; then others."""
    place = split_tensor(tensor)
    if place is None:
        return 2, 0, 0, tensor
    return (1 if place[1] == HEAD else 0), place[0], _ORDER.index(place[1]), tensor


def permute_rows(x: np.ndarray, n_head: int) -> np.ndarray:
    """Hugging Face row order -> that of `llama` GGUFs; (rows, ...), k with `n_head_kv` heads.

    Within a head, row j of half i moves to 2 j + i, so that rotary pairs lie side by side.
    """
    return x.reshape(n_head, 2, -1, *x.shape[1:]).swapaxes(1, 2).reshape(x.shape)


def unpermute_rows(x: np.ndarray, n_head: int) -> np.ndarray:
    """The inverse of `permute_rows`: `llama` GGUF row order -> Hugging Face's."""
    return x.reshape(n_head, -1, 2, *x.shape[1:]).swapaxes(1, 2).reshape(x.shape)
