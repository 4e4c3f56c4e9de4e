"""What a person says of chat templates, read: a file, its text, or the name of one."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from wgtrain.data.templates import CHATML, Templating, looks_like_source
from wgtrain.errors import FileError
from wgtrain.runs.paths import read_input
from wgtrain.train.config import RunConfig


def templating(
    chat_template: str | os.PathLike[str] | None = None,
    template_args: Mapping[str, Any] | None = None,
    system: str = "keep",
) -> Templating:
    """How conversations become text, by the arguments of `load_dataset`; FileError names a file
    that cannot be read.
    """
    text, label = chat_template, ""
    if isinstance(text, os.PathLike) or (text and text != CHATML and not looks_like_source(text)):
        path = Path(text)
        try:
            text, label = read_input(path).decode(), str(path)
        except UnicodeDecodeError as error:
            raise FileError(f"{path}: no valid UTF-8 at byte {error.start}") from None
    return Templating(text, {} if template_args is None else template_args, system, label=label)


def templating_of(paths: RunConfig) -> Templating:
    """The same by the settings of a run."""
    return templating(paths.chat_template, arguments_of(paths), paths.system)


def arguments_of(paths: RunConfig) -> dict[str, Any]:
    """The variables for templates of a run, whose setting was checked to be a JSON object."""
    found: dict[str, Any] = json.loads(paths.template_args or "{}")
    return found
