"""The functions of the Python API that take paths: they open files and hand bytes to the core."""

import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

from wgtrain.data import Dataset, Tokenizer, check_vocabulary, load_rows, read_rows
from wgtrain.data import load_tokenizer as read_tokenizer
from wgtrain.data.huggingface import read_tokenizer_metadata
from wgtrain.data.preview import Preview
from wgtrain.data.templates import Templating
from wgtrain.dual import dual_function
from wgtrain.errors import FileError, OptionError, printable
from wgtrain.files.adapter_form import well_formed
from wgtrain.files.adapters import (
    CONFIG_FILE,
    TENSOR_FILE,
    Adapter,
    read_adapter_gguf,
    read_adapter_peft,
)
from wgtrain.files.parts import read_parts
from wgtrain.files.source import shown
from wgtrain.gpu import read_gpu_memory, run
from wgtrain.infer.model import Model
from wgtrain.infer.opening import open_model
from wgtrain.model.config import ModelConfig, read_config
from wgtrain.model.folder import Folder, open_folder
from wgtrain.model.host import Host, Loaded, Show
from wgtrain.notebook import chart
from wgtrain.runs import parts, progress
from wgtrain.runs.adapters import adapter_path
from wgtrain.runs.chats import templating
from wgtrain.runs.paths import no_model_in, read_input
from wgtrain.runs.sources import (
    AnyBytes,
    AnyPath,
    ModelFiles,
    as_sources,
    folder_sources,
    is_dir,
    is_folder,
)
from wgtrain.train.trainer import Trainer
from wgtrain.tune.cache import choose


@contextmanager
def opened_base(source: ModelFiles) -> Iterator[Folder]:
    """A base model read up to its tensors, for `load_model` and `base_tokenizer`."""
    with ExitStack() as stack:
        yield run(open_base(source, stack))


async def open_base(source: ModelFiles, stack: ExitStack) -> Folder:
    """The same, awaited, and open until the stack is closed."""
    if is_folder(source):
        if problem := no_model_in(Path(source)):
            raise problem
        files = stack.enter_context(folder_sources(source))
        return await open_folder(files, str(source))
    opened, gguf = await read_parts(stack.enter_context(as_sources(source)))
    return Folder(opened, gguf, None)


def base_tokenizer(base: Folder) -> Tokenizer:
    """The tokenizer of a base model; FileError where it has none."""
    if base.no_tokenizer is not None:
        raise FileError(base.no_tokenizer)
    return read_tokenizer(base.gguf.metadata, base.gguf.name)


def training_tokenizer(base: Folder) -> Tokenizer:
    """The same for a run: a model that cannot be trained is refused before its vocabulary is read,
    by what it is.
    """
    read_config(base.gguf)
    return base_tokenizer(base)


@dual_function
async def load_model(
    source: ModelFiles | Folder,
    adapter_index: int | None = None,
    limits: str | None = None,
    precision: str = "f32",
    quantize_base: str | None = None,
    progress: Loaded | None = None,
    gpu_memory: int | str | None = None,
) -> Model:
    """Opens a model on a GPU: the strongest, or number `adapter_index` of `list_adapters`.

    `source`: the path of a GGUF or of a Hugging Face folder, a GGUF's bytes, an object with `size`
    and `read_range(offset, n)`, a list of the parts of a split one (by path, the parts beside it
    are found), or what `opened_base` gives. With `limits="default"` only what
    every WebGPU adapter grants is asked for. `precision="f16"` multiplies with the weights in f16
    and stores no wider ones, on a GPU that can: docs/precision.md. `quantize_base` quantises the
    blocks' linears of a full-precision base as they are loaded: "nf4", "nf4-double", "int4" or
    "int8". `progress(done, total)` is called with bytes while weights are loaded; without it a
    large model shows a bar in a terminal. `gpu_memory`, as "6GiB"
    or bytes, is how much of the GPU's memory may be used.
    """
    budget = None if gpu_memory is None else read_gpu_memory(gpu_memory)
    with ExitStack() as stack:
        opened = source if isinstance(source, Folder) else await open_base(source, stack)
        return await open_model(
            opened,
            adapter_index=adapter_index,
            limits=limits,
            precision=precision,
            quantize_base=quantize_base,
            progress=progress,
            budget=budget,
            host=HOST,
        )


@dual_function
async def load_dataset(
    data: AnyPath | AnyBytes,
    model: Model | Tokenizer,
    seq_len: int = 512,
    train_on: str = "completions",
    now: datetime | None = None,
    kind: str | None = None,
    name: str = "data",
    chat_template: AnyPath | None = None,
    template_args: Mapping[str, Any] | None = None,
    system: str = "keep",
    chat: Templating | None = None,
) -> Dataset:
    """Token rows of a JSONL file, of its bytes, or of the `train.jsonl` in a folder.

    `model` gives the tokenizer (or is one). Rows longer than `seq_len` tokens are cut. `now` is the
    date for chat templates that write one. `kind` says how rows are read that have the fields of
    two kinds: "text", "prompt", "messages", "instruction", "conversations" or "input_ids". `name`
    is what messages call bytes.

    `chat_template`, a file, its text or "chatml", goes in the place of the model's own;
    `template_args` are more variables for it; `system="merge"` puts system texts in front of the
    user's turn. `chat` is all three, as `runs.chats.templating` gives them.
    """
    chat = chat or templating(chat_template, template_args, system)
    how = {"seq_len": seq_len, "train_on": train_on, "now": now, "kind": kind, "chat": chat}
    rows, _ = _read(load_rows, data, model, name, how)
    return rows


@dual_function
async def preview(
    data: AnyPath | AnyBytes,
    model: Model | Tokenizer | AnyPath | AnyBytes,
    rows: int | str = 3,
    seq_len: int = 512,
    train_on: str = "completions",
    now: datetime | None = None,
    kind: str | None = None,
    name: str = "data",
    chat_template: AnyPath | None = None,
    template_args: Mapping[str, Any] | None = None,
    system: str = "keep",
) -> Preview:
    """What training on these rows would see, without training: as `.text`, `.colored`, `.html`.

    `rows` are those shown: how many from the first on, "all", or lines such as "4-6,9". `model` may
    be the path of one, of which the tokenizer alone is read; all else is as for `load_dataset`.
    """
    if isinstance(model, str | os.PathLike | AnyBytes):
        model = await load_tokenizer.aio(model)
    chat = templating(chat_template, template_args, system)
    how = {"seq_len": seq_len, "train_on": train_on, "now": now, "kind": kind, "chat": chat}
    found, tokenizer = _read(read_rows, data, model, name, how)
    return Preview(found, tokenizer, rows)


def _read(
    read: Callable[..., Dataset],
    data: AnyPath | AnyBytes,
    model: Any,
    name: str,
    how: dict[str, Any],
) -> tuple[Dataset, Tokenizer]:
    """Rows read in one of the ways of `data.jsonl`, and the tokenizer they were read with."""
    content, tokenizer, name = _rows_of(data, model, name)
    rows = read(content, tokenizer, name=name, **how)
    if isinstance(model, Model):
        check_vocabulary(rows, model.config.vocabulary)
    return rows, tokenizer


def _rows_of(data: AnyPath | AnyBytes, model: Any, name: str) -> tuple[bytes, Tokenizer, str]:
    """The bytes of rows, the tokenizer for them, and what messages call them."""
    tokenizer: Any = getattr(model, "tokenizer", model)
    if isinstance(data, str | os.PathLike):
        path = data_file(data)
        try:
            name, data = str(path), read_input(path)
        except FileError:
            if isinstance(data, str) and data.lstrip()[:1] in ("{", "["):
                raise OptionError(
                    f"data: {shown(data)}: a path is needed, or the bytes of rows: of a text, "
                    "text.encode()"
                ) from None
            raise
    elif not isinstance(data, AnyBytes):
        raise OptionError(f"data: {shown(data)}: a path, or the bytes of JSONL are needed")
    if not isinstance(tokenizer, Tokenizer):
        raise OptionError(
            f"model: {shown(model)}: what wgtrain.load_model or load_tokenizer gives is needed"
        )
    return bytes(data), tokenizer, name


def data_file(path: AnyPath, part: str = "train") -> Path:
    """The file of rows a path means: itself, or `<part>.jsonl` where it is a folder (of the part
    "valid" also `validation.jsonl`).
    """
    path = Path(path)
    if not is_dir(path):
        return path
    found = path / f"{part}.jsonl"
    longer = path / "validation.jsonl"
    if part == "valid" and longer.is_file():
        if found.is_file():
            raise OptionError(f"valid: {found} and {longer} are both there; name one of them")
        return longer
    return found


@dual_function
async def load_tokenizer(source: ModelFiles) -> Tokenizer:
    """The tokenizer in a GGUF or a Hugging Face folder; neither needs to hold weights."""
    if is_folder(source):
        with folder_sources(source) as files:
            metadata = await read_tokenizer_metadata(files, str(source))
            return read_tokenizer(metadata, str(source), _say)
    with as_sources(source) as parted:
        _, gguf = await read_parts(parted)
    return read_tokenizer(gguf.metadata, gguf.name, _say)


def load_adapter(source: AnyPath | AnyBytes | Adapter, model: Model) -> Adapter:
    """An adapter for `model`: a GGUF file, its bytes, a PEFT folder (or the tensors in it), a run
    or one of its checkpoints.
    """
    return _read_adapter(source, model.config)


def _read_adapter(source: AnyPath | AnyBytes | Adapter, config: ModelConfig) -> Adapter:
    if isinstance(source, Adapter):
        return well_formed(source)
    if isinstance(source, bytes | bytearray | memoryview):
        return read_adapter_gguf(source, "adapter")
    if not isinstance(source, str | os.PathLike):
        raise OptionError(f"adapter: {shown(source)}: a path, an Adapter, or its bytes are needed")
    path = adapter_path(source, _say)
    if path.name != TENSOR_FILE:
        return read_adapter_gguf(read_input(path), str(path))
    return read_adapter_peft(
        {name: read_input(path.parent / name) for name in (CONFIG_FILE, TENSOR_FILE)},
        str(path.parent),
        architecture=config.architecture,
        n_head=config.n_head,
        n_head_kv=config.n_head_kv,
    )


def adapter_file(path: AnyPath) -> Path:
    """The same as `adapter_path`, but of a folder that has both forms the one of PEFT."""
    path = Path(path)
    peft = (path.parent if path.name == CONFIG_FILE else path) / TENSOR_FILE
    return peft if is_dir(peft.parent) and peft.exists() else adapter_path(path, _say)


def watch(trainer: Trainer) -> AbstractContextManager[Show]:
    """Shows a run in the way that fits: a chart in Jupyter, a bar in a terminal, lines."""
    if chart.running():
        return chart.chart(trainer)
    return progress.bar(trainer) if sys.stderr.isatty() else progress.lines(trainer, print)


def _say(text: str) -> None:
    print(printable(text), file=sys.stderr, flush=True)


# Where models run that are opened here.
HOST = Host(
    _read_adapter,
    partial(choose, watch=parts.progress),
    watch,
    _say,
    partial(parts.transfer, "loading"),
)
