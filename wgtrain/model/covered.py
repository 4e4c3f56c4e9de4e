"""What of a model file is covered: its numbers are read, and the rest is refused by name before
anything is allocated.
"""

import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from wgtrain.engine.weight import MATRIX_TYPES
from wgtrain.errors import FileError
from wgtrain.files import GGUF, TensorInfo
from wgtrain.files.architecture import ANYTHING, MAX_COUNT, Architecture, Key, Values
from wgtrain.files.floats import FLOATS
from wgtrain.files.gguf import NUMBERS
from wgtrain.files.hf_metadata import window_note
from wgtrain.files.known_keys import (
    KNOWN_KEYS,
    OWN_NO_ROPE,
    OWN_SCALE,
    OWN_TRUNCATE,
    OWN_WINDOWED,
)
from wgtrain.files.source import shown
from wgtrain.model.converted import CONVERTED

_VISION = ("v.", "mm.")  # of tensors, and of keys below the architecture's name as in the next
_VISION_KEYS = ("vision.", "mm.")
_PATTERN = "attention.sliding_window_pattern"
_BLOCK = re.compile(r"blk\.([0-9]{1,6})\.")
_EXPERTS = re.compile(r"_exps|_shexp|ffn_gate_inp")
_SCALE = Key("score_scale", OWN_SCALE, kind=float)
# Read or of no effect in every architecture.
_SILENT = {
    *("vocab_size", "attention.layer_norm_epsilon", "attention.layer_norm_rms_epsilon"),
    *("rope.scaling.finetuned", _PATTERN),
}
# What to take in place of a model with a feature that is not supported.
_HINTS = {
    "expert": "; take a dense model of its family",
    "pooling_type": "; it makes embeddings: take a model that generates text",
}
# Keys that must say what another does, and the field of that.
_SAME = {
    "attention.key_length_swa": "head_size",
    "attention.value_length_swa": "head_size",
    "rope.dimension_count_swa": "rotary",
}
# Ollama's spelling of keys.
_SPELT = {"rope.freq_base": "rope.global.freq_base", "rope.freq_base_swa": "rope.local.freq_base"}
# Numbers that a file may give layer by layer.
_BY_LAYER = {"n_head", "n_head_kv", "feed_forward"}


def check_kind(gguf: GGUF) -> None:
    """FileError for a file that is no model of its own."""
    kind = gguf.get("general.type", str, "model")
    if kind == "mmproj":
        raise FileError(
            f"{gguf.name}: general.type is 'mmproj': this is the image projector of a model alone; "
            "open the model's own file, which lies beside it"
        )
    if kind == "adapter":
        raise FileError(
            f"{gguf.name}: an adapter, not a base model; --adapter uses it, --init-adapter trains "
            "on from it"
        )
    if kind != "model":
        raise FileError(f"{gguf.name}: general.type is {shown(kind)}, not 'model'")


def is_one_of(value: Any, allowed: tuple[Any, ...]) -> bool:
    """Whether a value from a file is one of these and of its kind; an array never is."""
    kinds = {bool: (bool,), str: (str,)}
    return any(
        v is ANYTHING or (type(value) in kinds.get(type(v), (int, float)) and value == v)
        for v in allowed
    )


def feature_problems(gguf: GGUF, row: Architecture) -> list[str]:
    """Metadata that changes what a model computes in a way that is not supported."""
    problems = []
    parts = gguf.metadata.get("split.count", 1)
    if not is_one_of(parts, (0, 1)):
        problems.append(f"split.count = {shown(parts)}: one part of a model; all are needed")
    for name, value in gguf.metadata.items():
        prefix, _, key = name.partition(".")
        if prefix != row.name or key in row.known | _SILENT or key in _SAME:
            continue
        if key in row.neutral:
            if not is_one_of(value, row.neutral[key]):
                hint = next((text for at, text in _HINTS.items() if key.startswith(at)), "")
                problems.append(f"{name} = {shown(value)} is a feature that is not supported{hint}")
        elif key in KNOWN_KEYS:
            problems.append(f"{name} = {shown(value)} is a feature that is not supported")
    return problems


def notes_on(gguf: GGUF, row: Architecture, values: Values) -> tuple[str, ...]:
    """What of a file is passed over here, or by llama.cpp, in a line each."""
    notes = list(gguf.notes)
    vision = [name for name in gguf.tensors if name.startswith(_VISION)]
    if vision or any(_key(name, row).startswith(_VISION_KEYS) for name in gguf.metadata):
        notes.append(f"the vision part is passed over ({len(vision)} tensors); text is trained")
    strange = [
        name
        for name in gguf.metadata
        if (key := _key(name, row))
        and key not in row.known | _SILENT | KNOWN_KEYS | {*row.neutral, *_SPELT.values()}
        and not key.startswith(_VISION_KEYS)
    ]
    if strange:
        more = f" and {len(strange) - 8} more" if len(strange) > 8 else ""
        named = ", ".join(shown(name)[1:-1] for name in strange[:8])
        notes.append(f"metadata that no program is known to read is ignored: {named}{more}")
    if values["rope_scaling"] == "yarn" and not row.reads("yarn_log"):
        betas = values["yarn_fast"], values["yarn_slow"]
        if betas != (32.0, 1.0) or values["yarn_attention"]:
            notes.append(
                "llama.cpp passes over this model's own numbers of YaRN (rope.scaling.yarn_*), so "
                "it computes something else"
            )
    if values["window"] and not row.window_pattern:
        notes.append(window_note(values["window"]))
    return tuple(notes)


def _key(name: str, row: Architecture) -> str:
    """A key without the name of its architecture; "" for any other."""
    prefix, _, key = name.partition(".")
    return key if prefix == row.name else ""


def read_values(gguf: GGUF, row: Architecture) -> Values:
    """The numbers of a file; FileError for one that is missing or cannot be."""
    values: Values = {}
    ollama = any(
        key in _SPELT.values() or key.startswith("vision.")
        for key in (_key(name, row) for name in gguf.metadata)
    )
    for key in row.keys:
        name = f"{row.name}.{key.gguf}"
        if name not in gguf.metadata and key.gguf in _SPELT:
            name = f"{row.name}.{_SPELT[key.gguf]}"
        if name in gguf.metadata:
            values[key.field] = _read(gguf, name, key, values.get("n_layer", 0))
        elif ollama and key.field in row.ollama:
            values[key.field] = row.ollama[key.field]
        elif key.default is not None:
            values[key.field] = key.default(values)
        else:
            gguf.get(name, key.kind)  # says that it is missing
    for same, other in _SAME.items():
        name = f"{row.name}.{same}"
        if (found := gguf.get(name, int, values[other])) != values[other]:
            raise FileError(
                f"{gguf.name}: {name} is {found}, {values[other]} elsewhere; layers of different "
                "heads are not supported"
            )
    values["n_layer"] -= min(values.get("unused", 0), values["n_layer"] - 1)
    return values | _beside(gguf, row, values["n_layer"])


def _beside(gguf: GGUF, row: Architecture, n_layer: int) -> Values:
    """What has no `Key`: lists of layers, and what transformers knows and GGUF has no key for."""
    found: Values = {}
    for name in (f"{row.name}.{_PATTERN}", OWN_WINDOWED):
        value = gguf.metadata.get(name)
        if isinstance(value, np.ndarray) and value.dtype.kind in "biu":
            if value.shape == (n_layer,) and set(value.tolist()) <= {0, 1}:
                found["windowed"] = tuple(map(bool, value.tolist()))
                continue
        elif value is None or (type(value) is int and 0 <= value <= MAX_COUNT):
            found |= {} if value is None else {"window_pattern": value}
            continue
        raise FileError(
            f"{gguf.name}: {name} is {shown(value)}; a number or {n_layer} booleans are needed"
        )
    if OWN_SCALE in gguf.metadata:
        found[_SCALE.field] = _read(gguf, OWN_SCALE, _SCALE, n_layer)
    if OWN_NO_ROPE in gguf.metadata:
        still = gguf.get(OWN_NO_ROPE, np.ndarray)
        if still.dtype.kind not in "iu" or not set(still.tolist()) <= set(range(n_layer)):
            raise FileError(
                f"{gguf.name}: {OWN_NO_ROPE} is {shown(still)}; numbers of layers are needed"
            )
        found["no_rope"] = frozenset(still.tolist())
    found["yarn_truncate"] = gguf.get(OWN_TRUNCATE, bool, True)
    return found


def _read(gguf: GGUF, name: str, key: Key, n_layer: int) -> Any:
    value = gguf.metadata[name]
    if key.field in _BY_LAYER and isinstance(value, np.ndarray) and value.dtype.kind in "iu":
        if value.shape != (n_layer,) or len(set(value.tolist())) != 1:
            raise FileError(
                f"{gguf.name}: {name} is {shown(value)}; a number, or {n_layer} equal ones are "
                "supported"
            )
        value = int(value[0])
    else:
        value = gguf.get(name, key.kind)
    if not key.allows(value):
        raise FileError(f"{gguf.name}: {name} is {shown(value)}; {key.allowed} is needed")
    return value


def shape_problems(gguf: GGUF, row: Architecture, values: Values) -> list[str]:
    """Numbers that do not go together."""
    problems = []
    heads, kv_heads, size = values["n_head"], values["n_head_kv"], values["head_size"]
    if heads % kv_heads:
        problems.append(
            f"{row.name}.attention.head_count {heads} is no multiple of head_count_kv {kv_heads}"
        )
    if size % 4:
        problems.append(f"{row.name}: head size {size} is no multiple of 4, which is not supported")
    if size > 256:
        problems.append(f"{row.name}: head size {size} is above 256, which is not supported")
    if values["value_size"] != size:
        problems.append(
            f"{row.name}.attention.value_length {values['value_size']} differs from key_length "
            f"{size}, which is not supported"
        )
    rotary = values["rotary"]
    if rotary % 2 or rotary > size:
        problems.append(
            f"{row.name}.rope.dimension_count {rotary} is not an even number up to {size}"
        )
    for name, numbers in gguf.numbers.items():
        if numbers.shape != (rotary // 2,):
            problems.append(f"tensor {name} has shape {numbers.shape}, ({rotary // 2},) is needed")
    short, long = NUMBERS[1:]
    if (short in gguf.numbers) != (long in gguf.numbers):
        problems.append(f"of the tensors {short} and {long} one is missing")
    if values["rope_scaling"] == "longrope" and not gguf.numbers:
        problems.append(f"{row.name}.rope.scaling.type is 'longrope', and tensor {long} is missing")
    return problems


def tensor_problems(
    gguf: GGUF,
    row: Architecture,
    values: Values,
    matrices: Mapping[str, tuple[int, int]],
    vectors: Mapping[str, int],
) -> list[str]:
    """Tensors that are missing, of another shape or type, or not the architecture's."""
    expected: dict[str, tuple[int, ...]] = {
        **matrices,
        **{name: (n,) for name, n in vectors.items()},
    }
    problems = []
    for name, shape in expected.items():
        tensor = gguf.tensors.get(name)
        if tensor is None:
            problems.append(f"tensor {name} {shape} is missing")
        elif tensor.shape != shape and not (row.layer_norm and _by_heads(tensor, shape)):
            problems.append(f"tensor {name} has shape {tensor.shape}, {shape} is needed")
        elif name in vectors and tensor.type not in FLOATS:
            problems.append(f"tensor {name} has type {tensor.type}; F32, F16 or BF16 is needed")
        elif name in matrices and tensor.type not in (*MATRIX_TYPES, *CONVERTED):
            supported = ", ".join(MATRIX_TYPES + CONVERTED)
            problems.append(f"tensor {name} has type {tensor.type}; supported are {supported}")
    for name in gguf.tensors:
        if name in expected or name.startswith(_VISION) or name in NUMBERS:
            continue
        block, run = _BLOCK.match(name), values["n_layer"]
        if block and run <= int(block[1]) < run + values.get("unused", 0):
            continue  # of layers that predict further tokens
        what = "experts" if _EXPERTS.search(name) else "a feature"
        problems.append(
            f"tensor {shown(name)[1:-1]} is not known for {row.name}, so the model has {what} that "
            f"{'are' if what == 'experts' else 'is'} not supported"
        )
    return problems


def _by_heads(tensor: TensorInfo, shape: tuple[int, ...]) -> bool:
    """Whether it is the norm of heads, a row each."""
    heads = tensor.name.endswith(("attn_q_norm.weight", "attn_k_norm.weight"))
    return heads and len(tensor.shape) == 2 and math.prod(tensor.shape) == shape[0]
