"""Model and adapter files: bytes in, bytes out, no GPU and no file system."""

from wgtrain.files.adapters import (
    Adapter,
    adapter_fits,
    read_adapter_gguf,
    read_adapter_peft,
    write_adapter_gguf,
    write_adapter_peft,
)
from wgtrain.files.architecture import Architecture
from wgtrain.files.architectures import ARCHITECTURES, LINEARS
from wgtrain.files.blocks import BLOCKS
from wgtrain.files.gguf import GGUF, Raw, TensorInfo, gguf_head, parse_gguf, read_gguf, write_gguf
from wgtrain.files.names import (
    gguf_tensor,
    hf_module,
    permute_rows,
    resolve_targets,
    split_tensor,
    tensor_name,
    unpermute_rows,
)
from wgtrain.files.safetensors import read_safetensors, write_safetensors
from wgtrain.files.source import BytesSource, Source, read_range

__all__ = [
    "ARCHITECTURES",
    "BLOCKS",
    "GGUF",
    "LINEARS",
    "Adapter",
    "Architecture",
    "BytesSource",
    "Raw",
    "Source",
    "TensorInfo",
    "adapter_fits",
    "gguf_head",
    "gguf_tensor",
    "hf_module",
    "parse_gguf",
    "permute_rows",
    "read_adapter_gguf",
    "read_adapter_peft",
    "read_gguf",
    "read_range",
    "read_safetensors",
    "resolve_targets",
    "split_tensor",
    "tensor_name",
    "unpermute_rows",
    "write_adapter_gguf",
    "write_adapter_peft",
    "write_gguf",
    "write_safetensors",
]
