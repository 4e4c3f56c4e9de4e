"""The tensors of a Hugging Face folder, found in its safetensors files and put in GGUF's places."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from wgtrain.files.architecture import Architecture
from wgtrain.files.floats import FLOATS
from wgtrain.files.gguf_parser import TensorInfo
from wgtrain.files.hf_config import Settings
from wgtrain.files.joined import Part, Permuted, Plain, Shifted
from wgtrain.files.names import split_tensor, text_module
from wgtrain.files.safetensors import Entry
from wgtrain.files.source import BytesSource, Source, read_range, shown

Files = Mapping[str, Source]  # by file name
Entries = dict[str, tuple[str, Entry]]  # tensor -> its file, and where in it

# Parts of models for more than text that are not text.
_OTHERS = re.compile(
    r"(model\.)?(vision_tower|vision_model|visual|multi_modal_projector|vision_embed_tokens)\."
)
# One norm a head, which a GGUF has in one tensor.
_BY_HEAD = re.compile(r"(model\.layers\.\d{1,6}\.self_attn\.[qk]_layernorm)\.norms\.(\d{1,5})\.")
_SHARED = re.compile(r"(model\.layers\.\d{1,6}\.)shared_mlp\.(input|output)_linear\.weight")
_UNUSED = (".rotary_emb.inv_freq", ".attention.masked_bias", ".attention.bias")
_COMPARED = 4 << 20  # bytes at a time


@dataclass
class Placed:
    """Tensors as the GGUF has them: `infos` at offsets of the bytes that `parts` give in order."""

    parts: list[Part] = field(default_factory=list)
    infos: dict[str, TensorInfo] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    nbytes: int = 0

    def begin(self, part: Part) -> None:
        """Puts bytes in front that are no tensor."""
        self.parts.append(part)
        self.nbytes += part.nbytes

    def add(self, name: str, kind: str, shape: tuple[int, ...], parts: list[Part]) -> None:
        """Puts a tensor behind the others."""
        nbytes = sum(part.nbytes for part in parts)
        self.infos[name] = TensorInfo(name, shape, kind, self.nbytes, nbytes)
        self.parts += parts
        self.nbytes += nbytes


def text_entries(entries: Entries, placed: Placed) -> Entries:
    """The tensors of the text part by their names in a model for text alone."""
    found: Entries = {}
    skipped = 0
    for key, (file, entry) in entries.items():
        if key.endswith(_UNUSED):
            continue
        name = text_module(key)
        if _OTHERS.match(name):
            skipped += 1
        elif name in found:
            placed.problems.append(f"tensor {shown(key, 120)} of {file} is there under two names")
        else:
            found[name] = file, entry
    if skipped:
        placed.notes.append(
            f"{skipped} tensors of its vision part are skipped: text alone is trained"
        )
    return found


def place(files: Files, entries: Entries, row: Architecture, s: Settings, placed: Placed) -> None:
    """Puts every tensor of the text part in its place, or lists what is wrong with it."""
    stacks: dict[str, dict[int, tuple[str, Entry]]] = {}
    if s.kind.shared:
        entries = _halved(entries)
    for key, (file, entry) in entries.items():
        if match := _BY_HEAD.match(key):
            name = row.gguf_tensor(f"{match[1]}.weight") if key.endswith(".weight") else None
            if name is not None and len(entry.shape) == 1 and entry.dtype in FLOATS:
                stacks.setdefault(name, {})[int(match[2])] = file, entry
                continue
        name = row.gguf_tensor(key)
        if name is None:
            placed.problems.append(f"tensor {shown(key, 120)} of {file} is not known")
            continue
        if key == "model.embed_tokens.weight" and entry.shape[:1] != (s["vocab_size"],):
            placed.problems.append(
                f"tensor {key} has shape {entry.shape}, vocab_size {shown(s['vocab_size'])}"
            )
        if entry.dtype not in FLOATS:
            placed.problems.append(
                f"tensor {key} of {file} has type {entry.dtype}; F32, F16 and BF16 are read"
            )
        elif 0 in entry.shape:
            placed.problems.append(f"tensor {key} of {file} is empty, {entry.shape}")
        else:
            _place_one(files[file], key, name, entry, row, s, placed)
    for name, heads in stacks.items():
        _place_stack(files, name, heads, placed)


def _halved(entries: Entries) -> Entries:
    """The feed-forward networks of a model that could have experts, in the names of one that can
    not: gate and up are halves of one tensor.
    """
    found: Entries = {}
    for key, (file, entry) in entries.items():
        match = _SHARED.fullmatch(key)
        if match is None or (match[2] == "input" and (not entry.shape or entry.shape[0] % 2)):
            found[key] = file, entry
        elif match[2] == "output":
            found[f"{match[1]}mlp.down_proj.weight"] = file, entry
        else:
            middle = (entry.begin + entry.end) // 2
            shape = (entry.shape[0] // 2, *entry.shape[1:])
            gate = replace(entry, end=middle, shape=shape)
            found[f"{match[1]}mlp.gate_proj.weight"] = file, gate
            found[f"{match[1]}mlp.up_proj.weight"] = (
                file,
                replace(gate, begin=middle, end=entry.end),
            )
    return found


def _place_one(
    source: Source,
    key: str,
    name: str,
    entry: Entry,
    row: Architecture,
    s: Settings,
    placed: Placed,
) -> None:
    nbytes, kind = entry.end - entry.begin, entry.dtype
    part: Part = Plain(source, entry.begin, nbytes)
    if s.kind.shifted and key.endswith("norm.weight"):
        kind = "F32"
        part = Shifted(
            source, entry.begin, nbytes // (4 if entry.dtype == "F32" else 2), entry.dtype
        )
    linear = split_tensor(f"{name.rpartition('.')[0]}.weight")
    heads = 0
    if linear is not None:
        heads = row.heads(linear[1], s["num_attention_heads"], s["num_key_value_heads"])
    if heads and entry.shape[0] % (2 * heads) == 0:
        part = Permuted(source, entry.begin, nbytes, nbytes // entry.shape[0], nbytes // heads)
    placed.add(name, kind, entry.shape, [part])


def _place_stack(
    files: Files, name: str, heads: dict[int, tuple[str, Entry]], placed: Placed
) -> None:
    """A norm for each head: rows of one tensor."""
    first = heads.get(0, next(iter(heads.values())))[1]
    like = {(entry.dtype, entry.shape) for _, entry in heads.values()}
    if sorted(heads) != list(range(len(heads))) or len(like) != 1:
        placed.problems.append(f"tensor {name}: the norms of its heads are not all there, or alike")
        return
    parts: list[Part] = [
        Plain(files[file], entry.begin, entry.end - entry.begin)
        for _, (file, entry) in sorted(heads.items())
    ]
    placed.add(name, first.dtype, (len(heads), *first.shape), parts)


def place_numbers(tensors: dict[str, np.ndarray], placed: Placed) -> None:
    """Tensors that the folder has in its configuration."""
    for name, array in tensors.items():
        data = array.astype("<f4").tobytes()
        placed.add(name, "F32", array.shape, [Plain(BytesSource(data), 0, len(data))])


async def settle_head(files: Files, entries: Entries, tied: bool, placed: Placed) -> None:
    """What is wrong with the output head, as transformers sees it: one that is stored though the
    configuration ties it counts where it differs from the embedding, else is dropped.
    """
    head, embedding = entries.get("lm_head.weight"), entries.get("model.embed_tokens.weight")
    if not tied:
        if head is None:
            placed.problems.append(
                "tensor lm_head.weight is missing, and tie_word_embeddings is not true"
            )
        return
    if head is None or embedding is None:
        return
    size = head[1].end - head[1].begin
    same = head[1].dtype == embedding[1].dtype and head[1].shape == embedding[1].shape
    for at in range(0, size if same else 0, _COMPARED):
        n = min(_COMPARED, size - at)
        a, b = [await read_range(files[f], e.begin + at, n) for f, e in (head, embedding)]
        same = same and bytes(a) == bytes(b)
    if same:
        del entries["lm_head.weight"]
    else:
        placed.notes.append(
            "tie_word_embeddings is true, but lm_head.weight is there and differs from "
            "model.embed_tokens.weight: it is used, as transformers does"
        )
