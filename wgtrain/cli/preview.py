"""`wgtrain preview`: rows as training would see them, on the screen, in a page, as JSON."""

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from wgtrain.api import preview
from wgtrain.data.preview import Preview
from wgtrain.errors import FileError, printable
from wgtrain.runs.disk import write_file
from wgtrain.train.config import RunConfig, TrainConfig
from wgtrain.train.settings import build


def show(settings: Mapping[str, Any], rows: str, html: str | None, as_json: bool) -> bool:
    """Shows rows; False where training would refuse them."""
    run, train = build(settings, RunConfig, TrainConfig)
    found = preview(
        run.data,
        run.model,
        rows,
        seq_len=train.seq_len,
        train_on=train.train_on,
        kind=run.kind,
        chat_template=run.chat_template,
        template_args=json.loads(run.template_args or "{}"),
        system=run.system,
    )
    if html is not None:
        _write(Path(html), found)
    if as_json:
        click.echo(json.dumps(found.as_json(), ensure_ascii=False))
    elif html is not None:
        click.echo("\n".join([*found.summary(), f"written to {printable(html)}"]))
    else:
        click.echo(found.colored if in_color() else found.text, nl=False)
    return not found.refused


def in_color() -> bool:
    """Whether standard output shows colours: a terminal, unless NO_COLOR is set."""
    dumb = os.environ.get("TERM") == "dumb"
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and not dumb


def _write(path: Path, found: Preview) -> None:
    try:
        write_file(path, found.html.encode())
    except OSError as error:
        raise FileError(f"{path}: {error.strerror or error}") from None
