"""A model of which only the shapes are known, or that has other types than its file: the metadata
of a file that is nowhere.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from wgtrain.engine.weight import MATRIX_TYPES
from wgtrain.errors import OptionError
from wgtrain.files import BLOCKS, GGUF, TensorInfo, split_tensor
from wgtrain.files.architecture import Architecture
from wgtrain.files.architectures import find_architecture
from wgtrain.files.file_types import TARGETS, choose_types, has_wide_v
from wgtrain.files.gguf import tensor_nbytes
from wgtrain.files.gguf_parser import ALIGNMENT
from wgtrain.files.hf_config import Settings, read_settings
from wgtrain.files.hf_metadata import translate
from wgtrain.model.config import make_config, read_config
from wgtrain.model.covered import read_values
from wgtrain.model.quantised import QUANTIZE_BASE

_MIXES = tuple(name for name in TARGETS if name not in BLOCKS)
_TYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}


def gguf_of_tensors(
    name: str, metadata: Mapping[str, Any], tensors: Mapping[str, tuple[str, tuple[int, ...]]]
) -> GGUF:
    """The metadata of a file with these tensors, (type, shape) by name."""
    infos, at = {}, 0
    for tensor, (type_, shape) in tensors.items():
        nbytes = tensor_nbytes(type_, shape)
        infos[tensor] = TensorInfo(tensor, shape, type_, at, nbytes)
        at += -(-nbytes // ALIGNMENT) * ALIGNMENT
    return GGUF(name, 3, dict(metadata), infos)


def gguf_of_config(config: Mapping[str, Any], name: str = "config.json") -> GGUF:
    """What the folder of a config.json would be seen as, by its settings alone; FileError for one
    that is not supported. Its matrices have the type of "dtype", BF16 where there is none.
    """
    settings = read_settings(dict(config), name)
    found = translate(settings)
    row = find_architecture(found.architecture, name)
    metadata = {"general.architecture": found.architecture, "general.name": name}
    gguf = GGUF(name, 3, metadata | found.metadata, {})
    model = make_config(
        row,
        read_values(gguf, row),
        vocabulary=settings["vocab_size"],
        optional=_optional(settings, row),
        tied_head=settings.tied,
    )
    dtype = str(config.get("dtype") or config.get("torch_dtype") or settings.raw.get("dtype"))
    type_ = _TYPES.get(dtype.removeprefix("torch."), "BF16")
    tensors: dict[str, tuple[str, tuple[int, ...]]] = {
        tensor: (type_, shape) for tensor, shape in model.matrices().items()
    }
    tensors |= {tensor: ("F32", (length,)) for tensor, length in model.vectors().items()}
    tensors |= {tensor: ("F32", values.shape) for tensor, values in found.tensors.items()}
    return gguf_of_tensors(name, gguf.metadata, tensors)


def _optional(settings: Settings, row: Architecture) -> frozenset[str]:
    """The tensors of a block that a setting switches on."""
    values = {**settings.raw, **settings.values}
    found = set()
    for linear in row.may_bias:
        part = "attention_bias" if linear.startswith("attn") else "mlp_bias"
        if values.get(part) or (values.get("use_qkv_bias") and linear != "attn_output"):
            found.add(f"{linear}.bias")
    for norm in row.may_norm:
        switched = values.get("qk_layernorm") if norm.startswith("attn_") else None
        if switched or (switched is None and not values.get("use_parallel_residual")):
            found.add(f"{norm}.weight")
    return frozenset(found)


def retyped(gguf: GGUF, type_: str) -> tuple[GGUF, str | None]:
    """(a model's metadata with its matrices in another type, the value of `quantize_base`): a type
    of GGUF, whose blocks all rows have to fill, a mix as llama.cpp makes it, or a way to quantise a
    base, which has F16 beside.
    """
    if type_ in QUANTIZE_BASE:
        return retyped(gguf, "F16")[0], type_
    if type_ not in (*MATRIX_TYPES, *_MIXES):
        allowed = ", ".join([*MATRIX_TYPES, *_MIXES, *QUANTIZE_BASE])
        raise OptionError(f"type = {type_}: allowed are {allowed}")
    types = {}
    if type_ in _MIXES:
        n_layer = read_config(gguf).n_layer
        types = choose_types(gguf.tensors.values(), type_, n_layer, has_wide_v(gguf.metadata))
    tensors = dict(gguf.tensors)
    for name, tensor in gguf.tensors.items():
        if split_tensor(name) is None and name != "token_embd.weight":
            continue
        block = BLOCKS[types.get(name, type_)]
        if tensor.shape[1] % block.size:
            raise OptionError(
                f"type = {type_}: {name} has rows of {tensor.shape[1]} values, which are no whole "
                f"blocks of {block.size}"
            )
        nbytes = tensor_nbytes(block.name, tensor.shape)
        tensors[name] = replace(tensor, type=block.name, nbytes=nbytes)
    return replace(gguf, tensors=tensors), None
