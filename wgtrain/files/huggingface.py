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
from wgtrain.files.gguf_parser import F32_MAX, F32_MIN, GGUF, METADATA_LIMIT, TensorInfo
from wgtrain.files.names import BLOCK_LINEARS, PERMUTED, permute_rows, split_tensor
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
# What a model depends on beside its weights.
_SMALL_FILES = (CONFIG, GENERATION_CONFIG, TOKENIZER, TOKENIZER_CONFIG, CHAT_TEMPLATE, INDEX)

_ARCHITECTURES = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}
# Where a configuration is silent, its class in transformers decides.
_KV_HEADS = {"mistral": 8, "qwen2": 32, "qwen3": 32}
_HEAD_DIM = {"qwen3": 128}
# Settings that change the mathematics, and the values beside null under which they do not.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("silu", "swish"),
    "attention_bias": (False,),  # it gives o_proj a bias, too
    "mlp_bias": (False,),
    "quantization_config": (),
    "num_experts": (0,),
    "num_local_experts": (0,),
    "n_routed_experts": (0,),
    "num_experts_per_tok": (0,),
    "attn_logit_softcapping": (),
    "final_logit_softcapping": (),
    "query_pre_attn_scalar": (),
    "partial_rotary_factor": (1,),
    "rope_interleaved": (False,),
    "use_mrope": (False,),
    "use_qk_norm": (False,),
    "clip_qkv": (),
    "alibi": (False,),
    "is_causal": (True,),
    "logit_scale": (1,),
    "logits_scaling": (1,),
    "embedding_multiplier": (1,),
    "attention_multiplier": (),
    "residual_multiplier": (1,),
    "dual_chunk_attention_config": (),
    "auto_map": (),  # code that comes with the model
}
_NUMBER = "a number above 0 that f32 holds"
_ROPE_KEYS = {"rope_theta": None, "rope_type": None, "type": None}
_ROPE_NEUTRAL = {"partial_rotary_factor": 1, "factor": 1}

_OUTSIDE = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
_BLOCK = {module: name for name, module in BLOCK_LINEARS.items()} | {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
_QWEN3 = {"self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm"}
_BIASES = ("attn_q", "attn_k", "attn_v")  # of qwen2
_TENSOR = re.compile(r"model\.layers\.(0|[1-9][0-9]{0,5})\.([a-z_.]{1,40})\.(weight|bias)")
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
    metadata, tied = _metadata(config, name)
    heads = {
        target: metadata[f"{metadata['general.architecture']}.attention.{key}"]
        for target, key in zip(PERMUTED, ("head_count", "head_count_kv"), strict=True)
    }
    digests = [
        hashlib.sha256(await read_small(files, file, name) if file in files else b"").digest()
        for file in _SMALL_FILES
    ]
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
    problems = await _head_problems(files, entries, tied)
    parts, tensors, at = [_digest_part(digests)], {}, 32 * len(digests)
    for key, (file, entry) in entries.items():
        if key.endswith(".rotary_emb.inv_freq"):  # old files carry what rope_theta says already
            continue
        tensor = _gguf_name(key, config["model_type"])
        if tensor is None:
            problems.append(f"tensor {shown(key, 120)} of {file} is not known")
            continue
        if key == "model.embed_tokens.weight" and entry.shape[:1] != (config["vocab_size"],):
            problems.append(
                f"tensor {key} has shape {entry.shape}, vocab_size {config['vocab_size']}"
            )
        if entry.dtype not in ("F32", "F16", "BF16"):
            problems.append(
                f"tensor {key} of {file} has type {entry.dtype}; F32, F16 and BF16 are read"
            )
        if 0 in entry.shape:
            problems.append(f"tensor {key} of {file} is empty, {entry.shape}")
            continue
        nbytes = entry.end - entry.begin
        place = split_tensor(tensor)
        permuted = place and metadata["general.architecture"] == "llama" and heads.get(place[1])
        row = head = 0
        if permuted and len(entry.shape) == 2 and entry.shape[0] % (2 * permuted) == 0:
            row, head = nbytes // entry.shape[0], nbytes // permuted
        parts.append(_Part(files[file], entry.begin, nbytes, row, head))
        tensors[tensor] = TensorInfo(tensor, entry.shape, entry.dtype, at, nbytes)
        at += nbytes
    _refuse(problems, name)
    return FolderSource(name, parts), GGUF(name, 3, metadata, tensors)


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


def _refuse(problems: list[str], where: str) -> None:
    if problems:
        more = f"\n  and {len(problems) - 40} more" if len(problems) > 40 else ""
        raise FileError(
            f"{where}: this model cannot be used:\n  " + "\n  ".join(problems[:40]) + more
        )


def _metadata(config: dict[str, Any], name: str) -> tuple[dict[str, Any], bool]:
    """GGUF metadata of a configuration, and whether the head is tied."""
    where = f"{name}/{CONFIG}"
    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in _ARCHITECTURES:
        known = ", ".join(_ARCHITECTURES)
        raise FileError(
            f"{where}: model_type {shown(kind)} is not supported; supported are {known}"
        )
    problems = [
        f"{key} = {shown(config[key])} is not supported"
        for key, neutral in _NEUTRAL.items()
        if config.get(key) is not None and config[key] not in neutral
    ]
    problems += _sliding_problems(config, kind)

    def count(key: str, default: int | None = None) -> int:
        value = config.get(key)
        value = default if value is None else value
        if type(value) is not int or not 1 <= value < 1 << 24:
            what = "missing" if value is None else shown(value)
            problems.append(f"{key} is {what}; an integer from 1 to {(1 << 24) - 1} is needed")
            return 1
        return value

    width, heads = count("hidden_size"), count("num_attention_heads")
    kv_default = heads if "num_key_value_heads" in config else _KV_HEADS.get(kind, heads)
    head_dim = count("head_dim", _HEAD_DIM.get(kind, max(width // heads, 1)))
    theta, rope_problems = _rope_theta(config)
    tied = config.get("tie_word_embeddings", False)
    eps = config.get("rms_norm_eps", 1e-6)
    if type(tied) is not bool:
        problems.append(f"tie_word_embeddings is {shown(tied)}; true or false is needed")
    if not _is_number(eps):
        problems.append(f"rms_norm_eps is {shown(eps)}; {_NUMBER} is needed")
    architecture = _ARCHITECTURES[kind]
    values = {
        "vocab_size": count("vocab_size"),
        "embedding_length": width,
        "block_count": count("num_hidden_layers"),
        "feed_forward_length": count("intermediate_size"),
        "attention.head_count": heads,
        "attention.head_count_kv": count("num_key_value_heads", kv_default),
        "attention.key_length": head_dim,
        "attention.value_length": head_dim,
        "attention.layer_norm_rms_epsilon": eps,
        "rope.dimension_count": head_dim,
        "rope.freq_base": theta,
    }
    if config.get("max_position_embeddings") is not None:
        values["context_length"] = count("max_position_embeddings")
    _refuse(problems + rope_problems, where)
    return {
        "general.architecture": architecture,
        "general.type": "model",
        "general.name": re.split(r"[/\\]", name.rstrip("/\\"))[-1],
        "general.base_model.count": 1,
        "general.base_model.0.name": name,
        **{f"{architecture}.{key}": value for key, value in values.items()},
    }, tied


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and F32_MIN <= value <= F32_MAX


def _sliding_problems(config: dict[str, Any], kind: str) -> list[str]:
    """Sliding windows that are in use."""
    layers = config.get("layer_types")
    if isinstance(layers, list):
        wrong = [layer for layer in layers if layer != "full_attention"]
        return [f"layer_types: {shown(wrong[0])} is not supported"] if wrong else []
    window = config.get("sliding_window", 4096 if kind == "mistral" else None)
    if window is None or (kind.startswith("qwen") and not config.get("use_sliding_window")):
        return []
    return [f"sliding_window = {shown(window)} is not supported"]


def _rope_theta(config: dict[str, Any]) -> tuple[float, list[str]]:
    """The base of the rotary angles, and what is not supported around it.

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
    theta = 10_000.0 if theta is None else theta
    if not _is_number(theta):
        problems.append(f"rope_theta is {shown(theta)}; {_NUMBER} is needed")
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
        raise FileError(f"{where} names files that are missing: {', '.join(missing)}")
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


def _gguf_name(key: str, kind: str) -> str | None:
    """The GGUF name of a tensor, None for one that models of this kind do not have."""
    if key in _OUTSIDE:
        return _OUTSIDE[key]
    match = _TENSOR.fullmatch(key)
    modules = _BLOCK | _QWEN3 if kind == "qwen3" else _BLOCK
    if match is None or match[2] not in modules:
        return None
    name = modules[match[2]]
    if match[3] == "bias" and (kind != "qwen2" or name not in _BIASES):
        return None
    return f"blk.{match[1]}.{name}.{match[3]}"


def _digest_part(digests: list[bytes]) -> _Part:
    data = b"".join(digests)
    return _Part(BytesSource(data), 0, len(data))
