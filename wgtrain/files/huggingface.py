"""A Hugging Face folder seen as a GGUF: config.json as metadata, safetensors files as tensors.

Nothing is converted ahead of time. Tensors keep the type they have, and whoever reads a range of
the GGUF gets it from the safetensors files; only q and k rows of `llama` are put into GGUF's order
on the way.
"""

import hashlib
import re
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from wgtrain.errors import FileError
from wgtrain.files.architectures import MODEL_TYPES, Architecture, Key, ModelType, Values, unusable
from wgtrain.files.gguf_parser import GGUF, METADATA_LIMIT, TensorInfo
from wgtrain.files.names import permute_rows, split_tensor
from wgtrain.files.safetensors import Entry, json_object, parse_header, read_header
from wgtrain.files.source import BytesSource, Data, Source, read_range, shown, source_size

Files = Mapping[str, Source]  # by file name

CONFIG = "config.json"
INDEX = "model.safetensors.index.json"
WEIGHTS = "model.safetensors"
TOKENIZER = "tokenizer.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
GENERATION_CONFIG = "generation_config.json"
CHAT_TEMPLATE = "chat_template.jinja"
CHAT_TEMPLATE_JSON = "chat_template.json"  # as older processors write it
# What a model depends on beside its weights.
_SMALL_FILES = (CONFIG, GENERATION_CONFIG, TOKENIZER, TOKENIZER_CONFIG, CHAT_TEMPLATE, INDEX)

_ROPE_KEYS = {"rope_theta": None, "rope_type": None, "type": None}
_ROPE_NEUTRAL = {"partial_rotary_factor": 1, "factor": 1}

_COMPARED = 4 << 20  # bytes at a time


@dataclass(frozen=True)
class _Part:
    """A range of the GGUF: the bytes from `begin` in `source`.

    Where `row` is not 0, they are rows of that many bytes; those of a head, `head` bytes, take
    GGUF's order.
    """

    source: Source
    begin: int
    nbytes: int
    row: int = 0
    head: int = 0

    async def read(self, offset: int, n: int) -> Data:
        """`n` bytes from `offset` in the part; where rows move, whole heads are read."""
        if not self.row:
            return await read_range(self.source, self.begin + offset, n)
        first, last = offset // self.head, -(-(offset + n) // self.head)
        size = (last - first) * self.head
        data = await read_range(self.source, self.begin + first * self.head, size)
        rows = np.frombuffer(data, np.uint8).reshape(-1, self.row)
        ordered = permute_rows(rows, last - first).reshape(-1)
        return ordered[offset - first * self.head :][:n].data


class FolderSource:
    """The bytes of the GGUF: a digest of all but the tensors in front, then the tensors."""

    def __init__(self, name: str, parts: list[_Part]) -> None:
        self.name = name
        self._parts = parts
        ends = np.cumsum([part.nbytes for part in parts], dtype=np.int64).tolist()
        self._starts = [0, *ends[:-1]]
        self.size: int = ends[-1]

    async def read_range(self, offset: int, n: int) -> Data:
        """The `n` bytes from `offset`."""
        pieces: list[Data] = []
        while n > 0:
            i = bisect_right(self._starts, offset) - 1
            at = offset - self._starts[i]
            size = min(n, self._parts[i].nbytes - at)
            pieces.append(await self._parts[i].read(at, size))
            offset, n = offset + size, n - size
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)


async def read_folder(files: Files, name: str = "folder") -> tuple[FolderSource, GGUF]:
    """The model in a folder; `name` stands in messages and is what PEFT adapters call their base.

    FileError names every setting and tensor that is not supported. The metadata has no tokenizer:
    that is the work of `wgtrain.data.huggingface`.
    """
    config = await read_json(files, CONFIG, name)
    row, values, tied = _read_config(config, f"{name}/{CONFIG}")
    digests = [
        hashlib.sha256(await read_small(files, file, name) if file in files else b"").digest()
        for file in _SMALL_FILES
    ]
    if CHAT_TEMPLATE_JSON in files:
        digests.append(hashlib.sha256(await read_small(files, CHAT_TEMPLATE_JSON, name)).digest())
    entries: dict[str, tuple[str, Entry]] = {}
    for file in await _weight_files(files, name):
        header = await read_header(files[file])
        digests.append(hashlib.sha256(header).digest())
        for key, entry in parse_header(header, source_size(files[file]), f"{name}/{file}").items():
            if key in entries:
                raise FileError(
                    f"{name}: tensor {shown(key)} is in {entries[key][0]} and in {file}"
                )
            entries[key] = file, entry
    problems, vocabulary = await _head_problems(files, entries, tied), config["vocab_size"]
    parts, tensors, at = [_digest_part(digests)], {}, 32 * len(digests)
    for key, (file, entry) in entries.items():
        if key.endswith(".rotary_emb.inv_freq"):  # old files carry what rope_theta says already
            continue
        tensor = row.gguf_tensor(key)
        if tensor is None:
            problems.append(f"tensor {shown(key, 120)} of {file} is not known")
            continue
        if key == "model.embed_tokens.weight" and entry.shape[:1] != (vocabulary,):
            problems.append(f"tensor {key} has shape {entry.shape}, vocab_size {shown(vocabulary)}")
        if entry.dtype not in ("F32", "F16", "BF16"):
            problems.append(
                f"tensor {key} of {file} has type {entry.dtype}; F32, F16 and BF16 are read"
            )
        if 0 in entry.shape:
            problems.append(f"tensor {key} of {file} is empty, {entry.shape}")
            continue
        nbytes = entry.end - entry.begin
        place = split_tensor(tensor)
        heads = row.heads(place[1], values["n_head"], values["n_head_kv"]) if place else 0
        size = head = 0
        if heads and len(entry.shape) == 2 and entry.shape[0] % (2 * heads) == 0:
            size, head = nbytes // entry.shape[0], nbytes // heads
        parts.append(_Part(files[file], entry.begin, nbytes, size, head))
        tensors[tensor] = TensorInfo(tensor, entry.shape, entry.dtype, at, nbytes)
        at += nbytes
    if problems:
        raise unusable(name, problems)
    return FolderSource(name, parts), GGUF(name, 3, _metadata(row, values, name), tensors)


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
            hint = "; tokenizer.model is not read: load and save the tokenizer with transformers"
        raise FileError(f"{name}: {file} is missing{hint}; there is {_listed(files)}")
    source = files[file]
    size = source_size(source)
    if size > METADATA_LIMIT:
        raise FileError(f"{name}/{file}: {size} bytes; at most {METADATA_LIMIT} are read")
    return await read_range(source, 0, size)


def _listed(files: Files) -> str:
    return ", ".join(sorted(files)[:20]) or "nothing"


def _read_config(config: dict[str, Any], where: str) -> tuple[Architecture, Values, bool]:
    """The row of a configuration, its numbers, and whether the head is tied."""
    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in MODEL_TYPES:
        known = ", ".join(MODEL_TYPES)
        raise FileError(
            f"{where}: model_type {shown(kind)} is not supported; supported are {known}"
        )
    row = MODEL_TYPES[kind]
    problems = [
        f"{key} = {shown(config[key])} is not supported"
        for key, neutral in row.hf_neutral.items()
        if config.get(key) is not None and config[key] not in neutral
    ]
    settings = {"rms_norm_eps": 1e-6, **row.model_types[kind].defaults, **config}
    problems += _sliding_problems(settings, row.model_types[kind])
    settings["rope_theta"], rope_problems = _rope_theta(config)
    values: Values = {}
    for key in row.keys:
        value = settings.get(key.hf)
        if value is None and key.default is not None:
            value = key.default(values)
        if not key.allows(value):
            problems.append(_needed(key.hf, value, key.allowed))
            value = 1
        values[key.field] = value
    tied = config.get("tie_word_embeddings", False)
    if type(tied) is not bool:
        problems.append(_needed("tie_word_embeddings", tied, "true or false"))
    size = Key("vocabulary", "vocab_size", "vocab_size")
    if not size.allows(config.get(size.hf)):
        problems.append(_needed(size.hf, config.get(size.hf), size.allowed))
    if problems := list(dict.fromkeys(problems + rope_problems)):
        raise unusable(where, problems)
    return row, values, tied


def _needed(key: str, value: Any, allowed: str) -> str:
    what = "missing" if value is None else shown(value)
    return f"{key} is {what}; {allowed} is needed"


def _metadata(row: Architecture, values: Values, name: str) -> dict[str, Any]:
    """A model's metadata as a GGUF has it."""
    return {
        "general.architecture": row.name,
        "general.type": "model",
        "general.name": re.split(r"[/\\]", name.rstrip("/\\"))[-1],
        "general.base_model.count": 1,
        "general.base_model.0.name": name,
        **{f"{row.name}.{key.gguf}": values[key.field] for key in row.keys},
    }


def _sliding_problems(settings: dict[str, Any], kind: ModelType) -> list[str]:
    """Sliding windows that are in use."""
    layers = settings.get("layer_types")
    if isinstance(layers, list):
        wrong = [layer for layer in layers if layer != "full_attention"]
        return [f"layer_types: {shown(wrong[0])} is not supported"] if wrong else []
    window = settings.get("sliding_window")
    if window is None or (kind.window_switch and not settings.get("use_sliding_window")):
        return []
    return [f"sliding_window = {shown(window)} is not supported"]


def _rope_theta(config: dict[str, Any]) -> tuple[Any, list[str]]:
    """The base of the rotary angles, or None, and what is not supported around it.

    transformers 5 writes `rope_parameters`, which holds rope_theta too, others `rope_theta` and
    `rope_scaling`.
    """
    theta, problems = config.get("rope_theta"), []
    for key in ("rope_scaling", "rope_parameters"):
        rope = config.get(key)
        if rope is None:
            continue
        if not isinstance(rope, dict):
            problems.append(f"{key} is {shown(rope)}; an object is needed")
            continue
        kind = rope.get("rope_type", rope.get("type", "default"))
        if kind != "default":
            problems.append(f"{key}: rope_type {shown(kind)} is not supported, only 'default'")
            continue
        problems += [
            f"{key}: {shown(k)} = {shown(value)} is not supported"
            for k, value in rope.items()
            if k not in _ROPE_KEYS and value is not None and value != _ROPE_NEUTRAL.get(k)
        ]
        theta = rope.get("rope_theta", theta)
    return theta, problems


async def _weight_files(files: Files, name: str) -> list[str]:
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


async def _head_problems(
    files: Files, entries: dict[str, tuple[str, Entry]], tied: bool
) -> list[str]:
    """What is wrong with the output head; a tied one that is stored nevertheless is dropped."""
    if not tied:
        missing = "lm_head.weight" not in entries
        problem = "tensor lm_head.weight is missing, and tie_word_embeddings is not true"
        return [problem] if missing else []
    head, embedding = entries.pop("lm_head.weight", None), entries.get("model.embed_tokens.weight")
    if head is None or embedding is None:
        return []
    size = head[1].end - head[1].begin
    same = head[1].dtype == embedding[1].dtype and head[1].shape == embedding[1].shape
    for at in range(0, size if same else 0, _COMPARED):
        n = min(_COMPARED, size - at)
        a, b = [await read_range(files[f], e.begin + at, n) for f, e in (head, embedding)]
        same = same and bytes(a) == bytes(b)
    if same:
        return []
    return ["tie_word_embeddings is true, but lm_head.weight is not model.embed_tokens.weight"]


def _digest_part(digests: list[bytes]) -> _Part:
    data = b"".join(digests)
    return _Part(BytesSource(data), 0, len(data))
