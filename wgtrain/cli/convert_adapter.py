"""`wgtrain convert` of adapters: a GGUF <-> a folder of PEFT."""

import os
from collections.abc import AsyncIterator
from pathlib import Path

from wgtrain.api import HOST, adapter_file, opened_base
from wgtrain.errors import FileError, OptionError
from wgtrain.files.adapters import (
    CONFIG_FILE,
    TENSOR_FILE,
    Adapter,
    fit_adapter,
    write_adapter_gguf,
    write_adapter_peft,
)
from wgtrain.files.huggingface import class_modules
from wgtrain.model.base import base_name
from wgtrain.model.config import read_config
from wgtrain.runs.output import check_output, write_output
from wgtrain.runs.telling import Say


def convert_adapter(path: Path, out: Path, model: str | None, force: bool, say: Say) -> None:
    """Writes the other form of the adapter at `path`, which has to fit the base `model`."""
    if model is None:
        raise OptionError(
            f"model: {path} is an adapter; --model names its base, a GGUF or a folder, of which "
            "the architecture and the heads are taken"
        )
    file = adapter_file(path)
    to_gguf = file.name == TENSOR_FILE
    if to_gguf:
        check_output(out, force, file, file.with_name(CONFIG_FILE), Path(model))
    else:
        _check_folder(out, force)
    with opened_base(model) as base:
        config = read_config(base.gguf)
        adapter = HOST.read_adapter(path, config)
        found = fit_adapter(adapter, base.gguf.tensors, config.architecture, str(path))
        name, modules = base_name(base.gguf), class_modules(base.gguf)
    if to_gguf:
        _write(out, write_adapter_gguf(found), force)
        return say(f"{out}: an adapter GGUF, {_described(found)}")
    files = write_adapter_peft(
        adapter,
        base_name=name,
        n_head=config.n_head,
        n_head_kv=config.n_head_kv,
        n_layer=config.n_layer,
        **modules,
    )
    try:
        out.mkdir(exist_ok=True)
    except OSError as error:
        raise FileError(f"{out}: {error.strerror or error}") from None
    for file_name in (TENSOR_FILE, CONFIG_FILE):  # the configuration says that both are there
        _write(out / file_name, files[file_name], force)
    say(f"{out}: a PEFT folder, {_described(adapter)}")


def _described(adapter: Adapter) -> str:
    return f"rank {adapter.rank}, alpha {adapter.alpha:g}, {len(adapter.tensors)} matrices adapted"


def _check_folder(out: Path, force: bool) -> None:
    if out.suffix == ".gguf":
        raise FileError(f"{out}: the adapter is a GGUF and becomes a folder; name one")
    there = [name for name in (CONFIG_FILE, TENSOR_FILE) if os.path.lexists(out / name)]
    if there and not force:
        raise FileError(f"{out}: {there[0]} exists already; --force replaces it")
    if not out.is_dir() and os.path.lexists(out):
        raise FileError(f"{out}: no folder")


def _write(path: Path, data: bytes, force: bool) -> None:
    async def whole() -> AsyncIterator[bytes]:
        yield data

    write_output(path, whole(), force)
