"""Adapters folded into the weights of a Hugging Face folder: the same files, with the same tensors
in their own rows, among them those that are not text.
"""

import json
import math
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from wgtrain.errors import FileError, OptionError
from wgtrain.files import TensorInfo
from wgtrain.files.adapters import CONFIG_FILE, TENSOR_FILE, write_adapter_peft
from wgtrain.files.floats import FLOATS
from wgtrain.files.gguf_writer import copied
from wgtrain.files.huggingface import (
    CONFIG,
    INDEX,
    WEIGHTS,
    Files,
    class_modules,
    open_folder_model,
    read_json,
    weight_files,
)
from wgtrain.files.names import text_module
from wgtrain.files.safetensors import (
    Entry,
    json_object,
    parse_header,
    read_header,
    read_safetensors,
)
from wgtrain.files.safetensors_writer import PlannedEntry, safetensors_chunks, safetensors_nbytes
from wgtrain.files.source import Data, Source, source_size
from wgtrain.model.config import read_config
from wgtrain.model.merge import Delta, Scaled, fold
from wgtrain.model.quantise_file import planned

_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_DTYPE_KEYS = ("dtype", "torch_dtype")  # as transformers writes it, and wrote it


@dataclass(frozen=True)
class PlannedFile:
    """A file of the folder that will be written; `chunks` begins anew with each call."""

    name: str
    nbytes: int
    chunks: Callable[[], AsyncIterator[Data]]


@dataclass(frozen=True)
class MergedFolder:
    """The files of a folder that differ from those of its base."""

    files: list[PlannedFile]
    lossy: bool  # whether values are rounded to fewer bits than float32 has
    types: dict[str, int]  # of tensors: how many


async def plan_folder(
    files: Files, name: str, adapters: Sequence[Scaled], target: str | None = None
) -> MergedFolder:
    """The weights of a folder with the adapters in them, and what says of which type they are; no
    tensor is read yet. `target`: F32, F16 or BF16, for all of its numbers; None leaves each its
    own. What is not here stays as it is.

    OptionError for another target; FileError for a folder that is not supported.
    """
    if target is not None and target not in FLOATS:
        raise OptionError(
            f"type: {target!r} is not one of {', '.join(FLOATS)}, which a folder can have; a GGUF, "
            "--out FILE.gguf, can have others"
        )
    model = await open_folder_model(files, name)
    config = read_config(model.gguf)
    modules = [
        _by_module(each, config.n_head, config.n_head_kv, class_modules(model.gguf)["shared"])
        for each in adapters
    ]
    deltas = fold(modules)
    made: list[PlannedFile] = []
    types: Counter[str] = Counter()
    found: set[str] = set()
    lossy, sizes = False, 0
    for file in await weight_files(files, name):
        source = files[file]
        header = await read_header(source)
        entries = parse_header(header, source_size(source), f"{name}/{file}")
        planned_entries = []
        for key, entry in sorted(entries.items(), key=lambda item: item[1].begin):
            found.add(text_module(key))
            delta = deltas.get(text_module(key))
            kind = target if target and entry.dtype in FLOATS else entry.dtype
            planned_entries.append(_planned(source, key, entry, kind, delta))
            types[kind] += 1
            lossy |= kind != "F32" and (delta is not None or kind != entry.dtype)
        metadata = json_object(header, f"{name}/{file}: header").get("__metadata__", {})
        made.append(_file(file, planned_entries, metadata))
        sizes += sum(entry.nbytes for entry in planned_entries)
    if lost := sorted(deltas.keys() - found):
        raise FileError(f"{name}: no tensor {lost[0]}, which an adapter changes")
    if INDEX in files and WEIGHTS not in files and target is not None:
        index = await read_json(files, INDEX, name)
        if isinstance(index.get("metadata"), dict) and "total_size" in index["metadata"]:
            index["metadata"]["total_size"] = sizes
        made.append(_json(INDEX, index))
    if target is not None:
        settings = await read_json(files, CONFIG, name)
        if not _set_dtype(settings, _DTYPES[target]):
            settings["torch_dtype"] = _DTYPES[target]
        made.append(_json(CONFIG, settings))
    return MergedFolder(made, lossy, types)


def _by_module(each: Scaled, n_head: int, n_head_kv: int, shared: bool) -> Scaled:
    """The adapter by the names of tensors in a folder for text alone, its rows in their order."""
    files = write_adapter_peft(
        each.adapter, base_name=None, n_head=n_head, n_head_kv=n_head_kv, shared=shared
    )
    settings = json.loads(files[CONFIG_FILE])
    parts: dict[str, dict[str, Any]] = {}
    for key, array in read_safetensors(files[TENSOR_FILE]).items():
        module, _, letter = key.removesuffix(".weight").rpartition(".lora_")
        name = f"{module.removeprefix('base_model.model.')}.weight"
        parts.setdefault(name, {})[letter] = array
    pairs = {name: (part["A"], part["B"]) for name, part in parts.items()}
    alpha, rank = settings["lora_alpha"], settings["r"]
    return replace(each, adapter=replace(each.adapter, rank=rank, alpha=alpha, tensors=pairs))


def _planned(
    source: Source, key: str, entry: Entry, kind: str, delta: Delta | None
) -> PlannedEntry:
    nbytes = entry.end - entry.begin
    if kind not in FLOATS or not nbytes:
        chunks = copied(source, entry.begin, nbytes)
        return PlannedEntry(key, entry.dtype, entry.shape, nbytes, chunks)
    info = TensorInfo(key, entry.shape or (1,), entry.dtype, entry.begin, nbytes)
    size = math.prod(entry.shape) * FLOATS[kind]
    return PlannedEntry(key, kind, entry.shape, size, planned(source, info, kind, delta).chunks)


def _file(name: str, entries: list[PlannedEntry], metadata: dict[str, str]) -> PlannedFile:
    size = safetensors_nbytes(entries, metadata)
    return PlannedFile(name, size, lambda: safetensors_chunks(entries, metadata))


def _json(name: str, content: dict[str, Any]) -> PlannedFile:
    return small_file(name, (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())


def small_file(name: str, data: bytes) -> PlannedFile:
    """A file whose content is here."""

    async def chunks() -> AsyncIterator[Data]:
        yield data

    return PlannedFile(name, len(data), chunks)


def _set_dtype(settings: dict[str, Any], dtype: str) -> bool:
    """Sets the type wherever a configuration, or one in it, names it; False where none does."""
    found = False
    for key, value in settings.items():
        if isinstance(value, dict):
            found |= _set_dtype(value, dtype)
        elif key in _DTYPE_KEYS and isinstance(value, str):
            settings[key] = dtype
            found = True
    return found
