"""`wgtrain merge`: adapters folded into a model, what that changed, and a Modelfile beside it."""

from pathlib import Path
from typing import Any

import click

from wgtrain.api import opened_base, training_tokenizer
from wgtrain.cli.options import as_options, options_of
from wgtrain.cli.rows import row_settings, runs_of
from wgtrain.cli.streams import complain
from wgtrain.cli.using import Sectioned, Wanted, read_wanted, using_some
from wgtrain.data import Dataset
from wgtrain.errors import FileError, OptionError, WgtrainError
from wgtrain.files.file_types import TARGETS
from wgtrain.gpu import format_size, run
from wgtrain.merging import (
    Merged,
    check_to_folder,
    effect,
    files_of,
    is_gguf,
    read_adapters,
    write_merged,
)
from wgtrain.model.config import read_config
from wgtrain.model.folder import Folder
from wgtrain.model.merge import Scaled
from wgtrain.model.quantised import quantised_types
from wgtrain.modelfiles import NAME, write_modelfile
from wgtrain.runs.adapter_config import each_usable
from wgtrain.runs.adapters import NamedAdapter
from wgtrain.runs.held_out import rows_at
from wgtrain.runs.output import check_output
from wgtrain.train.config import RunConfig

OPTIONS = ("model", "quantize_base", "chat_template", "template_args", "adapter_index")


@click.command(cls=Sectioned)
@using_some((*OPTIONS, "gpu_memory"))
@click.option(
    "--out",
    metavar="FILE.gguf|FOLDER",
    required=True,
    help="What to write: a GGUF where the name ends in .gguf, else a folder of safetensors, of a "
    "model that is one.",
)
@click.option(
    "--type",
    "type_",
    metavar="TYPE",
    help=f"{', '.join(TARGETS)}; of a folder F32, F16, BF16.  [default: each tensor keeps its own]",
)
@click.option("--force", is_flag=True, help="Replace files that are there.")
@click.option(
    "--data",
    metavar="FILE|FOLDER",
    help="Rows on which base and adapters are compared with what was merged, read as the runs of "
    "the adapters read theirs; of a folder test.jsonl, or else valid.jsonl.  [default: a few "
    "texts]",
)
@options_of(RunConfig, only=("kind",))
@click.option("--no-check", is_flag=True, help="Do not compare them, which needs the GPU.")
@click.option(
    "--modelfile/--no-modelfile",
    default=None,
    help="A Modelfile for Ollama beside the GGUF.  [default: on]",
)
def command(
    out: str,
    type_: str | None,
    force: bool,
    data: str | None,
    no_check: bool,
    modelfile: bool | None,
    **given: Any,
) -> None:
    """Fold adapters into a model, a GGUF or a folder.

    \b
      wgtrain merge --adapter runs/mine --out mine.gguf

    A GGUF has the types of the base or another. Of a base that was quantised for training
    (--quantize-base) the full-precision weights are taken; the comparison is with the quantised
    ones.
    """
    if data is not None and no_check:
        raise OptionError(f"data = {data}: --no-check reads no rows")
    if given["kind"] is not None and data is None:
        raise OptionError("kind: only with --data")
    if modelfile and not is_gguf(out):
        raise OptionError(f"--modelfile: {out} is no GGUF, and Ollama is told of one")
    told = is_gguf(out) and modelfile is not False
    if given.get("template_args") is not None and not told and data is None:
        raise OptionError("template_args: only a Modelfile and --data depend on them")
    wanted = read_wanted(given, complain)
    model, path = wanted.paths.model, Path(out)
    if is_gguf(out):
        check_output(path, force, *files_of(model))
    else:
        check_to_folder(path, model, force)
    with opened_base(model) as base:
        adapters, inputs = _read(wanted, base, given)
        if wanted.paths.quantize_base:
            quantised_types(base.gguf, read_config(base.gguf), wanted.paths.quantize_base)
            _say(
                f"quantize_base = {wanted.paths.quantize_base}: merged into the full-precision "
                f"weights of {model}, as PEFT's users do; training saw them quantised"
            )
        rows = None if data is None else _rows(data, wanted, base, given)
        template = wanted.chat.source
        made = run(write_merged(model, base, adapters, inputs, out, type_, force, template))
        architecture = base.gguf.get("general.architecture", str)
        _told(out, architecture, made, len(adapters))
        if told:
            _modelfile(path, base, wanted, force, modelfile is not None)
    if made.exact and rows is None:
        _say(f"{out}: nothing was rounded to less than float32")
    elif not no_check:
        _check(wanted, adapters, path, rows)


def _say(line: str) -> None:
    click.echo(as_options(line))


def _read(wanted: Wanted, base: Folder, given: dict[str, Any]) -> tuple[list[Scaled], list[Path]]:
    """The adapters that can be used, and the files they are in."""

    def read(named: NamedAdapter, file: Path) -> tuple[Scaled, Path]:
        (scaled,) = read_adapters([(named.path, named.scale)], base.gguf)
        return scaled, file

    found = each_usable(wanted.adapters, read, wanted.skip, complain)
    if not found:
        where = given.get("config_file")
        what = f"{where}: no adapter in it can be used" if wanted.adapters else "--adapter: needed"
        raise OptionError(f"{what}; there is nothing to merge")
    return [scaled for scaled, _ in found], [file for _, file in found]


def _rows(data: str, wanted: Wanted, base: Folder, given: dict[str, Any]) -> Dataset:
    """The rows that are compared, before anything is written."""
    paths, config = row_settings(given, ("kind",), runs_of(wanted.adapters))
    rows = rows_at(data).load(training_tokenizer(base), paths, config, wanted.chat)
    for note in rows.notes:
        complain(note)
    return rows


def _told(out: str, architecture: str, made: Merged, adapters: int) -> None:
    for note in made.notes:
        _say(note)
    listed = ", ".join(f"{n} {name}" for name, n in made.types.items())
    what = "1 adapter" if adapters == 1 else f"{adapters} adapters"
    size = format_size(made.nbytes)
    click.echo(f"{out}: {architecture} with {what}, {size}; tensors: {listed}")


def _modelfile(path: Path, base: Folder, wanted: Wanted, force: bool, asked: bool) -> None:
    """Writes one; unless it was asked for, a merge is not spoilt by one that cannot be written."""
    where = path.with_name(NAME)
    if where.exists() and not force:
        _say(f"warning: {where} exists already and stays as it is; --force replaces it")
        return
    try:
        notes = write_modelfile(where, path, base, wanted.chat, force=force)
    except FileError as error:
        if asked:
            raise
        _say(f"warning: no Modelfile is written: {error}")
        return
    for note in notes:
        _say(f"{where}: {note}")
    click.echo(f"{where}: ollama create NAME -f {where}")


def _check(wanted: Wanted, adapters: list[Scaled], path: Path, rows: Dataset | None) -> None:
    """What was lost, or why nobody knows."""
    paths = wanted.paths
    texts = "a few texts" if rows is None else f"the rows of {rows.name}"
    complain(f"comparing it with base and adapters on {texts}")
    try:
        found = effect(
            paths.model,
            adapters,
            path,
            rows,
            adapter_index=paths.adapter_index,
            gpu_memory=paths.gpu_memory,
            precision=paths.precision,
            quantize_base=paths.quantize_base,
        )
    except WgtrainError as error:
        if rows is not None:
            raise
        _say(f"warning: what merging changed was not measured: {error}; --no-check leaves it out")
    else:
        for note in found.notes:
            _say(note)
        click.echo(f"{path}: {found}")
