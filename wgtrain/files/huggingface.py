"""A Hugging Face folder seen as a GGUF: config.json as metadata, safetensors files as tensors.

Nothing is converted ahead of time. Tensors keep the type they have, and whoever reads a range of
the GGUF gets it from the safetensors files; what a GGUF holds otherwise, such as q and k rows of
`llama` or the norms of `gemma`, is changed on the way.
"""

import hashlib
import re
from dataclasses import dataclass
from typing import Any

from wgtrain.errors import FileError
from wgtrain.files.architectures import find_architecture, unusable
from wgtrain.files.gguf import with_numbers
from wgtrain.files.gguf_parser import GGUF, METADATA_LIMIT
from wgtrain.files.hf_config import Settings, read_settings
from wgtrain.files.hf_metadata import SHARED, Translation, translate
from wgtrain.files.hf_tensors import (
    Entries,
    Placed,
    place,
    place_numbers,
    settle_head,
    text_entries,
)
from wgtrain.files.hf_tensors import Files as Files
from wgtrain.files.joined import JoinedSource, Plain
from wgtrain.files.safetensors import json_object, parse_header, read_header
from wgtrain.files.source import BytesSource, Data, read_range, shown, source_size

CONFIG = "config.json"
INDEX = "model.safetensors.index.json"
WEIGHTS = "model.safetensors"
TOKENIZER = "tokenizer.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
GENERATION_CONFIG = "generation_config.json"
CHAT_TEMPLATE = "chat_template.jinja"
MORE_TEMPLATES = "additional_chat_templates"  # a folder of them
CHAT_TEMPLATE_JSON = "chat_template.json"  # as older processors write it
# What a model depends on beside its weights.
_SMALL_FILES = (CONFIG, GENERATION_CONFIG, TOKENIZER, TOKENIZER_CONFIG, CHAT_TEMPLATE, INDEX)
# Metadata of folders alone: its modules have the names of a model for more than text.
WHOLE = "wgtrain.whole_modules"


def class_modules(gguf: GGUF) -> dict[str, bool]:
    """How the class of a model names its modules, as `write_adapter_peft` asks for it."""
    name = gguf.metadata.get("general.architecture")
    return {"whole": WHOLE in gguf.metadata, "shared": f"{name}.{SHARED}" in gguf.metadata}


@dataclass(frozen=True)
class FolderModel:
    """A folder read up to its tensors. `translation` says what GGUF cannot hold of it."""

    source: JoinedSource
    gguf: GGUF
    settings: Settings
    translation: Translation


async def read_folder(files: Files, name: str = "folder") -> tuple[JoinedSource, GGUF]:
    """The model in a folder; `name` stands in messages and is what PEFT adapters call their base.

    FileError names every setting and tensor that is not supported. The metadata has no tokenizer:
    that is the work of `wgtrain.data.huggingface`.
    """
    model = await open_folder_model(files, name)
    return model.source, model.gguf


async def open_folder_model(files: Files, name: str = "folder") -> FolderModel:
    """As `read_folder`, with what the folder says that GGUF has no place for."""
    config = await read_json(files, CONFIG, name)
    settings = read_settings(config, f"{name}/{CONFIG}")
    translation = translate(settings)
    row = find_architecture(translation.architecture, name)
    digests = [
        hashlib.sha256(await read_small(files, file, name) if file in files else b"").digest()
        for file in _SMALL_FILES
    ]
    if CHAT_TEMPLATE_JSON in files:
        digests.append(hashlib.sha256(await read_small(files, CHAT_TEMPLATE_JSON, name)).digest())
    entries: Entries = {}
    for file in await weight_files(files, name):
        header = await read_header(files[file])
        digests.append(hashlib.sha256(header).digest())
        for key, entry in parse_header(header, source_size(files[file]), f"{name}/{file}").items():
            if key in entries:
                raise FileError(
                    f"{name}: tensor {shown(key)} is in {entries[key][0]} and in {file}"
                )
            entries[key] = file, entry
    digest = b"".join(digests)
    placed = Placed()
    placed.begin(Plain(BytesSource(digest), 0, len(digest)))
    texts = text_entries(entries, placed)
    await settle_head(files, texts, settings.tied, placed)
    place_numbers(translation.tensors, placed)
    place(files, texts, row, settings, placed)
    if placed.problems:
        raise unusable(name, placed.problems)
    metadata = _general(translation.architecture, name) | translation.metadata
    if settings.whole is not None:
        metadata[WHOLE] = True
    gguf = GGUF(name, 3, metadata, placed.infos, (*settings.notes, *placed.notes))
    source = JoinedSource(name, placed.parts)
    return FolderModel(source, await with_numbers(gguf, source), settings, translation)


def _general(architecture: str, name: str) -> dict[str, Any]:
    return {
        "general.architecture": architecture,
        "general.type": "model",
        "general.name": re.split(r"[/\\]", name.rstrip("/\\"))[-1],
        "general.base_model.count": 1,
        "general.base_model.0.name": name,
    }


async def read_json(files: Files, file: str, name: str) -> dict[str, Any]:
    """One of the folder's JSON files; FileError where it is missing."""
    return json_object(await read_small(files, file, name), f"{name}/{file}")


async def read_small(files: Files, file: str, name: str) -> Data:
    """The whole of one of the folder's small files; FileError where it is missing."""
    if file not in files:
        hint = ""
        if "adapter_config.json" in files and CONFIG not in files:
            hint = "; this is the folder of a PEFT adapter, not of a model"
        elif file == TOKENIZER and "tokenizer.model" in files:
            hint = "; a tokenizer.model is read with its model, not alone"
        raise FileError(f"{name}: {file} is missing{hint}; there is {_listed(files)}")
    source = files[file]
    size = source_size(source)
    if size > METADATA_LIMIT:
        raise FileError(f"{name}/{file}: {size} bytes; at most {METADATA_LIMIT} are read")
    return await read_range(source, 0, size)


def _listed(files: Files) -> str:
    return ", ".join(sorted(files)[:20]) or "nothing"


async def weight_files(files: Files, name: str) -> list[str]:
    """The safetensors files of the model; FileError where one is missing."""
    if WEIGHTS in files:
        return [WEIGHTS]
    if INDEX not in files:
        raise FileError(
            f"{name}: neither {WEIGHTS} nor {INDEX} is there (of weights, safetensors are read); "
            f"there is {_listed(files)}"
        )
    where = f"{name}/{INDEX}"
    placed = (await read_json(files, INDEX, name)).get("weight_map")
    if not isinstance(placed, dict) or not all(isinstance(file, str) for file in placed.values()):
        raise FileError(f"{where}: weight_map is {shown(placed)}, tensors' files expected")
    needed = sorted(set(placed.values()))
    missing = [file for file in needed if file not in files]
    if missing:
        more = f" and {len(missing) - 20} more" if len(missing) > 20 else ""
        listed = ", ".join(shown(file)[1:-1] for file in missing[:20])
        raise FileError(f"{where} names files that are missing: {listed}{more}")
    return needed
