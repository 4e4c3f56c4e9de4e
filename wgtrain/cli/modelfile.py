"""`wgtrain modelfile`: a Modelfile for Ollama, of a model or of a base with an adapter."""

from pathlib import Path
from typing import Any

import click

from wgtrain.api import opened_base
from wgtrain.cli.options import as_options
from wgtrain.cli.streams import complain
from wgtrain.cli.using import Sectioned, Wanted, read_wanted, using_some
from wgtrain.errors import FileError, OptionError
from wgtrain.merging import files_of, read_adapters
from wgtrain.modelfiles import NAME, write_modelfile
from wgtrain.runs.adapter_config import each_usable
from wgtrain.runs.adapters import NamedAdapter
from wgtrain.runs.output import check_output


@click.command(cls=Sectioned)
@using_some(("model", "chat_template", "template_args"))
@click.option("--out", metavar="FILE", default=NAME, help=f"What to write.  [default: {NAME}]")
@click.option("--force", is_flag=True, help="Replace a file that is there.")
def command(out: str, force: bool, **given: Any) -> None:
    """Write a Modelfile for Ollama.

    FROM is a GGUF, ADAPTER an adapter where one is named. TEMPLATE writes what the model's chat
    template does, or is left out.
    """
    wanted = read_wanted(given, complain)
    files, path = files_of(wanted.paths.model), Path(out)
    if len(files) != 1 or files[0].is_dir():
        what = "a folder: wgtrain convert" if len(files) == 1 else "in parts: wgtrain merge"
        raise FileError(f"{wanted.paths.model}: {what} makes one GGUF, which Ollama needs")
    check_output(path, force, *files)
    with opened_base(wanted.paths.model) as base:
        adapter = _adapter(wanted, base.gguf)
        for note in write_modelfile(path, files[0], base, wanted.chat, adapter, force):
            click.echo(as_options(f"{path}: {note}"))
    click.echo(f"{path}: ollama create NAME -f {path}")


def _adapter(wanted: Wanted, gguf: Any) -> Path | None:
    """The file of the adapter; Ollama takes one, a GGUF, at the strength it was trained with."""

    def read(named: NamedAdapter, file: Path) -> tuple[NamedAdapter, Path]:
        read_adapters([(named.path, named.scale)], gguf)
        return named, file

    found = each_usable(wanted.adapters, read, wanted.skip, complain)
    if not found:
        return None
    ((named, file), *others) = found
    if others or named.scale != 1:
        what = f"{len(found)} adapters" if others else f"a scale of {named.scale:g}"
        raise OptionError(
            f"--adapter: {what}: Ollama takes one adapter as trained; wgtrain merge makes a GGUF "
            "of that, with its Modelfile"
        )
    if file.suffix != ".gguf":
        raise FileError(f"{named.path}: no GGUF, which Ollama needs; wgtrain convert makes one")
    return file
