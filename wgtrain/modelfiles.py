"""Modelfiles for Ollama as files, beside what they name."""

import os
from collections.abc import AsyncIterator
from pathlib import Path

from wgtrain.api import base_tokenizer
from wgtrain.data.modelfile import OllamaTemplate, modelfile, ollama_template
from wgtrain.data.templates import Templating
from wgtrain.errors import FileError
from wgtrain.model.folder import Folder
from wgtrain.runs.output import write_output

NAME = "Modelfile"


def write_modelfile(
    path: Path,
    model: Path,
    base: Folder,
    chat: Templating,
    adapter: Path | None = None,
    force: bool = False,
) -> list[str]:
    """Writes a Modelfile for the GGUF `model`, whose tokenizer and chat template, unless `chat` has
    one, are those of `base`; returns what a person should know.
    """
    try:
        template = ollama_template(base_tokenizer(base), chat)
    except FileError as error:  # no tokenizer, a template that does not compile
        note = f"there are no TEMPLATE and stops in it: {error}"
        template = OllamaTemplate(None, None, (), (note,))
    named = None if adapter is None else _named(adapter, path)
    text, notes = modelfile(_named(model, path), template, named)

    async def chunks() -> AsyncIterator[bytes]:
        yield text.encode()

    write_output(path, chunks(), force)
    return notes


def _named(file: Path, modelfile: Path) -> str:
    """A file as the Modelfile names it: from there where it lies below, else whole."""
    folder = modelfile.absolute().parent
    whole = file.absolute()
    try:
        return f"./{whole.relative_to(folder).as_posix()}"
    except ValueError:
        return os.fspath(whole)
