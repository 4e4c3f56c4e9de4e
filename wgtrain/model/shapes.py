"""A model of which only the shapes are known: the metadata of a file that is nowhere."""

from collections.abc import Mapping
from typing import Any

from wgtrain.files import GGUF, TensorInfo
from wgtrain.files.architecture import Architecture
from wgtrain.files.architectures import find_architecture
from wgtrain.files.gguf import tensor_nbytes
from wgtrain.files.gguf_parser import ALIGNMENT
from wgtrain.files.hf_config import Settings, read_settings
from wgtrain.files.hf_metadata import translate
from wgtrain.model.config import make_config
from wgtrain.model.covered import read_values

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
