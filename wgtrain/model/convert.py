"""A Hugging Face folder -> a GGUF, tokenizer and chat template included, as llama.cpp's converter
writes it.
"""

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from wgtrain.data.gguf_tokenizer import tokenizer_for_gguf
from wgtrain.errors import FileError, OptionError
from wgtrain.files import TensorInfo
from wgtrain.files.file_types import QUANTIZATION_VERSION, TARGETS
from wgtrain.files.floats import FLOATS, as_float32, float_bytes, lost
from wgtrain.files.gguf_writer import CHUNK, Planned, copied
from wgtrain.files.huggingface import Files, FolderModel, open_folder_model
from wgtrain.files.source import Data, Source, read_range

TYPES = {kind.lower(): kind for kind in FLOATS}


@dataclass(frozen=True)
class Conversion:
    """A GGUF that can be written: `files.gguf_writer.gguf_chunks(metadata, tensors)`."""

    metadata: dict[str, Any]
    tensors: list[Planned]
    type: str  # of its matrices
    notes: list[str]  # what a person should know


async def plan_conversion(files: Files, name: str, kind: str | None = None) -> Conversion:
    """The GGUF of a folder, of which no tensor is read yet; `kind` is a key of TYPES, None that of
    its matrices.

    FileError where the folder cannot be read, or where llama.cpp would compute something else of
    the file; OptionError for another type.
    """
    kind = kind and kind.lower()
    if kind is not None and kind not in TYPES:
        raise OptionError(
            f"type: {kind!r} is not one of {', '.join(TYPES)}; wgtrain quantize makes others of "
            "the GGUF"
        )
    model = await open_folder_model(files, name)
    translation = model.translation
    if translation.obstacles:
        listed = "\n  ".join(translation.obstacles)
        raise FileError(
            f"{name}: a GGUF cannot hold all of this model, which can be trained from its folder:"
            f"\n  {listed}"
        )
    target = TYPES[kind] if kind else _usual(model)
    architecture = translation.architecture
    tokenizer, notes = await tokenizer_for_gguf(
        files, name, architecture, model.settings["vocab_size"]
    )
    metadata = {
        key: value
        for key, value in model.gguf.metadata.items()
        if not key.startswith(("wgtrain.", "general.base_model."))
    }
    metadata |= {
        "general.file_type": TARGETS[target].number,
        "general.quantization_version": QUANTIZATION_VERSION,
    }
    tensors = [_planned(model.source, info, target) for info in model.gguf.tensors.values()]
    told = [*model.gguf.notes, *translation.notes, *notes]
    return Conversion(metadata | tokenizer, tensors, target, told)


def _usual(model: FolderModel) -> str:
    """The type that most bytes of its matrices have."""
    sizes: dict[str, int] = {}
    for info in model.gguf.tensors.values():
        if not _stays_f32(info):
            sizes[info.type] = sizes.get(info.type, 0) + info.nbytes
    return max(sizes, key=sizes.__getitem__, default="F32")


def _stays_f32(info: TensorInfo) -> bool:
    """Norms and biases, as the converter has it."""
    return len(info.shape) < 2 or info.name.endswith("_norm.weight")


def _planned(source: Source, info: TensorInfo, target: str) -> Planned:
    kind = "F32" if _stays_f32(info) else target
    chunks = copied(source, info.offset, info.nbytes)
    if kind != info.type:
        chunks = _converted(source, info, kind)
    return Planned(info.name, kind, info.shape, chunks)


def _converted(source: Source, info: TensorInfo, kind: str) -> Callable[[], AsyncIterator[Data]]:
    size = FLOATS[info.type]

    async def chunks() -> AsyncIterator[Data]:
        for at in range(0, info.nbytes, CHUNK):
            n = min(CHUNK, info.nbytes - at)
            values = as_float32(await read_range(source, info.offset + at, n), info.type)
            data = float_bytes(values, kind)
            if (bad := lost(values, data, kind)) is not None:
                where = np.unravel_index(at // size + bad, info.shape)
                place = ", ".join(str(int(i)) for i in where)
                raise FileError(
                    f"{source.name}: tensor {info.name}[{place}] is {values[bad]:g}, which {kind} "
                    "cannot hold; take bf16 or f32"
                )
            yield data

    return chunks
