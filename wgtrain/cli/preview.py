"""`wgtrain preview`: rows as training would see them, on the screen, in a page, as JSON."""

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from wgtrain.api import data_file, preview
from wgtrain.data.preview import Preview
from wgtrain.errors import FileError, printable
from wgtrain.runs.chats import arguments_of
from wgtrain.runs.disk import write_file
from wgtrain.runs.output import check_output
from wgtrain.train.config import RunConfig, TrainConfig
from wgtrain.train.settings import build


def report(
    settings: Mapping[str, Any], rows: str, html: str | None, as_json: bool
) -> tuple[str, bool]:
    """What the command prints, and whether training would take the rows; writes the page `html`."""
    run, train = build(settings, RunConfig, TrainConfig)
    if html is not None:
        read = (run.model, run.data, data_file(run.data), run.chat_template)
        check_output(Path(html), True, *(Path(name) for name in read if name))
    found = preview(
        run.data,
        run.model,
        rows,
        seq_len=train.seq_len,
        train_on=train.train_on,
        kind=run.kind,
        chat_template=run.chat_template,
        template_args=arguments_of(run),
        system=run.system,
    )
    if html is not None:
        _write(Path(html), found)
    if as_json:
        text = json.dumps(found.as_json(), ensure_ascii=False) + "\n"
    elif html is not None:
        text = "\n".join([*found.summary(), f"written to {printable(html)}"]) + "\n"
    else:
        text = found.colored if in_color() else found.text
    return text, not found.refused


def in_color() -> bool:
    """Whether standard output shows colours: a terminal, unless NO_COLOR is set."""
    dumb = os.environ.get("TERM") == "dumb"
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and not dumb


def _write(path: Path, found: Preview) -> None:
    try:
        write_file(path, found.html.encode())
    except OSError as error:
        raise FileError(f"{path}: {error.strerror or error}") from None
