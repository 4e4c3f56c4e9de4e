"""`wgtrain.merge`: adapters folded into a model, written as a GGUF or as a Hugging Face folder."""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from wgtrain.api import HOST, load_dataset, load_model, open_base
from wgtrain.data import Dataset
from wgtrain.dual import dual_function
from wgtrain.errors import FileError, OptionError, printable
from wgtrain.files import GGUF
from wgtrain.files.adapters import CONFIG_FILE, TENSOR_FILE, fitted
from wgtrain.files.gguf_writer import gguf_chunks
from wgtrain.files.huggingface import CHAT_TEMPLATE, INDEX, MORE_TEMPLATES, WEIGHTS
from wgtrain.files.source import shown
from wgtrain.infer.effect import JSONL, ROW, Effect, compare, read_rows
from wgtrain.infer.stack import Checked, check_adapter, read_stack
from wgtrain.model.config import read_config
from wgtrain.model.convert import Conversion
from wgtrain.model.folder import Folder
from wgtrain.model.merge import Scaled, lossy, plan_folder_merge, plan_merge
from wgtrain.model.merge_folder import MergedFolder, plan_folder, small_file
from wgtrain.runs.adapters import adapter_path
from wgtrain.runs.chats import templating
from wgtrain.runs.output import check_folder, check_output, write_folder, write_model
from wgtrain.runs.sources import AnyPath, as_sources, folder_sources, is_folder

# Files of a folder that hold weights, in forms of which one is written.
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".h5", ".msgpack", ".onnx")
_LEFT = ("README.md", CONFIG_FILE, TENSOR_FILE)  # a card describes the base


@dataclass(frozen=True)
class Merged:
    """What a merge wrote. `data` are the bytes of a GGUF that was not to become a file."""

    out: Path | None
    nbytes: int
    types: dict[str, int]  # of its tensors: how many
    exact: bool  # every value that changed is as float32 has it
    notes: list[str] = field(default_factory=list)  # what a person should know
    data: bytes | None = field(default=None, repr=False)


@dual_function
async def merge(
    model: Any,
    adapters: Sequence[tuple[Any, float]],
    out: AnyPath | None = None,
    type: str | None = None,
    force: bool = False,
    chat_template: AnyPath | None = None,
) -> Merged:
    """Folds adapters, (adapter, strength) pairs, 1.0 = as trained, into a model's weights.

    `model`: a GGUF or a Hugging Face folder, as for `load_model`. `out`: where a name ends in .gguf
    a GGUF is written; any other is a folder, where the model is one; None gives a GGUF's bytes.
    `type`: one that `wgtrain quantize` makes, as "Q4_K_M"; of a folder "f32", "f16" or "bf16"; by
    default each tensor keeps its own. `force` replaces a file, never a folder. `chat_template`, as
    for `load_dataset`, goes in the place of the model's. FileError for what does not fit or cannot
    be written, OptionError for a type that is none.
    """
    template = None if chat_template is None else templating(chat_template).source
    with ExitStack() as stack:
        base = await open_base(model, stack)
        found = read_adapters(adapters, base.gguf)
        inputs = [adapter_path(each) for each, _ in adapters if isinstance(each, str | os.PathLike)]
        return await write_merged(model, base, found, inputs, out, type, force, template)


async def write_merged(
    model: Any,
    base: Folder,
    adapters: Sequence[Scaled],
    inputs: Sequence[Path] = (),
    out: AnyPath | None = None,
    type: str | None = None,
    force: bool = False,
    chat_template: str | None = None,
) -> Merged:
    """The same, of a base that is open, with adapters that were read from `inputs`."""
    path = None if out is None else Path(out)
    target = None if type is None else str(type).upper()
    if path is not None and not is_gguf(out):
        check_to_folder(path, model, force)
        with folder_sources(model) as files:
            made = await plan_folder(files, str(model), adapters, target)
            return _write_folder(path, Path(model), made, chat_template)
    if path is not None:
        check_output(path, force, *inputs, *files_of(model))
    with ExitStack() as stack:
        if is_folder(model):
            files = stack.enter_context(folder_sources(model))
            plan = await plan_folder_merge(files, str(model), adapters, target)
        else:
            plan = plan_merge(base.source, base.gguf, adapters, target)
        if chat_template is not None:
            plan.metadata["tokenizer.chat_template"] = chat_template
        exact = not lossy(base.gguf.tensors, plan, adapters)
        return await _write_gguf(path, plan, exact, force)


def is_gguf(out: AnyPath | None) -> bool:
    """Whether a name is one of a GGUF; all others are of folders."""
    return out is not None and str(out).lower().endswith(".gguf")


def check_to_folder(path: Path, model: Any, force: bool = False) -> None:
    """Raises where a merged folder cannot be written: not of a GGUF, not over another."""
    if not is_folder(model):
        raise FileError(
            f"{path}: a folder of safetensors is made of a folder only, since a GGUF does not say "
            "all that one does; to write a GGUF, its name has to end in .gguf"
        )
    if force:
        raise OptionError(f"force: a folder is never replaced, so {path} has to be a new one")
    check_folder(path)


def read_adapters(adapters: Sequence[tuple[Any, float]], gguf: GGUF) -> list[Scaled]:
    """The (adapter, strength) pairs read, each fitted to the model; OptionError for what is no pair
    or too strong, FileError for an adapter of another model.
    """
    config = read_config(gguf)

    def read(adapter: Any) -> Checked:
        adapter = adapter.adapter if isinstance(adapter, Checked) else adapter
        found = fitted(HOST.read_adapter(adapter, config), gguf.tensors)
        return check_adapter(found, gguf, config.architecture, _name(adapter, whole=True))

    if not isinstance(adapters, list | tuple) or not adapters:
        raise OptionError(
            f"adapters = {shown(adapters)}: a list of one or more (adapter, strength) is needed"
        )
    stack = read_stack(adapters, read)
    return [
        Scaled(one.adapter, scale, printable(_name(given)))  # a file's text is UTF-8
        for (one, scale), (given, _) in zip(stack.adapters, adapters, strict=True)
    ]


def _name(adapter: Any, whole: bool = False) -> str:
    """What an adapter is called: its path, or where it is to be written down the end of that."""
    if not isinstance(adapter, str | os.PathLike):
        return "adapter"
    path = Path(adapter)
    if whole:
        return str(path)
    parts = path.absolute().parts
    common = path.name in ("adapter.gguf", TENSOR_FILE, CONFIG_FILE)
    return "/".join(parts[-2:]) if common else parts[-1]


def files_of(model: Any) -> list[Path]:
    """The files, or the folder, that a model is read from."""
    if is_folder(model):
        return [Path(model)]
    if not isinstance(model, str | os.PathLike):
        return []
    with as_sources(model) as parts:
        return [Path(part.name) for part in parts]


async def _write_gguf(path: Path | None, plan: Conversion, exact: bool, force: bool) -> Merged:
    types = dict(Counter(tensor.type for tensor in plan.tensors).most_common())
    if path is None:
        chunks = gguf_chunks(plan.metadata, plan.tensors)
        data = b"".join([bytes(chunk) async for chunk in chunks])
        return Merged(None, len(data), types, exact, plan.notes, data)
    nbytes = write_model(path, plan.metadata, plan.tensors, force)
    return Merged(path, nbytes, types, exact, plan.notes)


def _write_folder(path: Path, base: Path, made: MergedFolder, template: str | None) -> Merged:
    files = {file.name: (file.nbytes, file.chunks) for file in made.files}
    if template is not None:
        file = small_file(CHAT_TEMPLATE, template.encode())
        files[file.name] = file.nbytes, file.chunks
    inside = sorted(base.iterdir())
    there = [file for file in inside if file.is_file()]
    there += sorted((base / MORE_TEMPLATES).glob("*.jinja"))
    names = {file.relative_to(base).as_posix(): file for file in there}
    others = {file.name for file in inside if not file.is_file()} - {MORE_TEMPLATES}
    copies = {
        name: file for name, file in names.items() if name not in files and _copied(name, files)
    }
    left = sorted((names.keys() | others) - copies.keys() - files.keys())
    notes = [f"not copied: {', '.join(left)}"] if left else []
    nbytes = write_folder(path, files, copies)
    return Merged(path, nbytes, made.types, not made.lossy, notes)


def _copied(name: str, made: Mapping[str, Any]) -> bool:
    """Whether a file goes with the weights as it is."""
    if name == INDEX:
        return WEIGHTS not in made
    return not name.startswith(".") and not name.endswith(_WEIGHTS) and name not in _LEFT


@dual_function
async def effect(
    model: Any,
    adapters: Sequence[Scaled],
    merged: AnyPath | bytes,
    rows: Dataset | None = None,
    **options: Any,
) -> Effect:
    """How far a merged model is from its base with the adapters, on some rows, or on a few texts.

    `options` are those of `load_model`: for the base all of them, for what was merged those of the
    GPU.
    """
    pairs = [(each.adapter, each.scale) for each in adapters]
    with await load_model.aio(model, **options) as opened:
        if rows is None:
            rows = await load_dataset.aio(JSONL, opened, seq_len=ROW, train_on="all")
        before = await read_rows(opened, rows, pairs)
    gpu = {name: options[name] for name in ("adapter_index", "gpu_memory") if name in options}
    with await load_model.aio(merged, **gpu) as opened:
        found = compare(before, await read_rows(opened, rows))
    return replace(found, notes=tuple(f"{rows.name}: {words}" for words in rows.shortened))
