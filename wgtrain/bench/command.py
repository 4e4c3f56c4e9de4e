"""`wgtrain bench`: its command line."""

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from wgtrain.bench import charts, report, tables
from wgtrain.bench.measure import Record
from wgtrain.bench.shapes import SHAPES, find_shape
from wgtrain.engine.weight import PRECISIONS
from wgtrain.errors import OptionError
from wgtrain.runs.parts import progress

_STEP_SHAPE, _KERNEL_SHAPES = "stories15M", ("stories260K", "stories15M", "SmolLM2-135M")
_TUNE_SHAPES = ("stories15M", "SmolLM2-135M")


def _outputs(rounds: int) -> Callable[[Any], Any]:
    """Decorator: the options all measurements share."""
    options = (
        click.option(
            "--rounds",
            default=rounds,
            metavar="N",
            help=f"Samples of each figure, taken in turn.  [default: {rounds}]",
        ),
        click.option("--adapter-index", type=int, metavar="N", help="GPU, as `doctor` lists them."),
        click.option("--json", "as_json", is_flag=True, help="Print only the record, as JSON."),
        click.option("--out", metavar="FILE", help="Write the record there, as JSON."),
        click.option("--svg", metavar="FILE", help="Draw it there."),
    )

    def decorate(command: Any) -> Any:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


_precision = click.option(
    "--precision",
    type=click.Choice(PRECISIONS),
    default=PRECISIONS[0],
    help=f"Operands of products with the weights; f16 needs shader-f16.  [{PRECISIONS[0]}]",
)


@click.group(
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.option(
    "--tune",
    is_flag=True,
    help="First time the variants of each kernel anew, and store the fastest for runs to come. "
    "Alone: for usual shapes, and nothing else.",
)
@click.pass_context
def bench(context: click.Context, tune: bool) -> None:
    """Measure kernels and whole steps, beside this adapter's ceiling and other trainers."""
    context.obj = tune
    if context.invoked_subcommand is None:
        if tune:
            _tune()
        else:
            click.echo(context.get_help())


def _tune() -> None:
    from wgtrain.bench.tuned import measure_anew

    shapes = [find_shape(name) for name in _TUNE_SHAPES]
    with progress(len(shapes)) as advance:
        stored = measure_anew(shapes, None, advance)
    _print(tables.tuned(stored))


@bench.command()
@click.option("--shape", "shapes", multiple=True, metavar="NAME", help="Sizes; repeatable.")
@click.option("--type", "types", multiple=True, metavar="TYPE", help="Weight types; repeatable.")
@_precision
@_outputs(3)
def kernels(
    shapes: tuple[str, ...], types: tuple[str, ...], precision: str, **options: Any
) -> None:
    """Products, attention, loss, norms and AdamW, beside the best product and a copy."""
    from wgtrain.bench.kernels import measure_kernels, parts

    found = [find_shape(name) for name in shapes or _KERNEL_SHAPES]
    run = _Run(options, parts(found, types, precision))
    run(lambda **common: measure_kernels(found, types, precision=precision, **common))


@bench.command()
@click.option(
    "--shape", default=_STEP_SHAPE, metavar="NAME", help=f"{', '.join(SHAPES)}.  [{_STEP_SHAPE}]"
)
@click.option("--type", metavar="TYPE", help="Another weight type than the shape's.")
@click.option("--rows", type=int, metavar="N", help="Rows of the step.")
@click.option("--length", type=int, metavar="N", help="Tokens of each row.")
@click.option("--rank", type=int, metavar="N", help="Of the adapter.")
@click.option(
    "--vs",
    multiple=True,
    metavar="NAME",
    help="Time peft, peft-bf16 or tinygrad in turn with ours; repeatable. Needs the extra `bench`.",
)
@_precision
@_outputs(5)
def step(shape: str, vs: tuple[str, ...], precision: str, **options: Any) -> None:
    """A whole training step: time, tokens, share of the ceiling, time by kernel, memory."""
    from wgtrain.bench.step import measure_step

    changed = {name: options.pop(name) for name in ("type", "rows", "length", "rank")}
    found = find_shape(shape, **changed)
    run = _Run(options, 2 + len(vs) + options["rounds"])
    run(lambda **common: measure_step(found, rivals=vs, precision=precision, **common))


@bench.command()
@click.option(
    "--shape", default=_STEP_SHAPE, metavar="NAME", help=f"{', '.join(SHAPES)}.  [{_STEP_SHAPE}]"
)
@click.option("--type", metavar="TYPE", help="Another weight type than the shape's.")
@click.option("--rows", type=int, default=1, metavar="N", help="Rows decoded at once.  [1]")
@click.option("--length", type=int, metavar="N", help="Tokens of each row's prompt.")
@click.option("--rank", type=int, metavar="N", help="Of the adapters.")
@click.option(
    "--adapters",
    multiple=True,
    type=int,
    metavar="N",
    help="So many of them stacked; repeatable, in turn.  [0]",
)
@click.option(
    "--vs", multiple=True, metavar="NAME", help="Decode by llama.cpp on the CPU, in turn with ours."
)
@_outputs(5)
def decode(shape: str, adapters: tuple[int, ...], vs: tuple[str, ...], **options: Any) -> None:
    """Generating: a token after the other, beside reading prompts, a copy and llama.cpp."""
    from wgtrain.bench.decode import measure_decode

    changed = {name: options.pop(name) for name in ("type", "rows", "length", "rank")}
    found = find_shape(shape, **changed)
    run = _Run(options, 1 + len(vs) + options["rounds"])
    run(lambda **common: measure_decode(found, adapters=adapters, rivals=vs, **common))


@bench.command()
@click.option(
    "--shape", default=_STEP_SHAPE, metavar="NAME", help=f"{', '.join(SHAPES)}.  [{_STEP_SHAPE}]"
)
@click.option("--type", metavar="TYPE", help="Another weight type than the shape's.")
@click.option("--rank", type=int, metavar="N", help="Of the adapters.")
@_outputs(5)
def adapters(shape: str, **options: Any) -> None:
    """Adapters between requests: load, rescale, remove and switch, in milliseconds."""
    from wgtrain.bench.adapters import measure_adapters

    changed = {name: options.pop(name) for name in ("type", "rank")}
    found = find_shape(shape, **changed)
    run = _Run(options, 1 + options["rounds"])
    run(lambda **common: measure_adapters(found, **common))


@bench.command()
@click.option("--shape", default=_STEP_SHAPE, metavar="NAME", help=f"The rest.  [{_STEP_SHAPE}]")
@click.option("--axis", "axes", multiple=True, metavar="NAME", help="What grows; repeatable.")
@click.option("--most", type=int, metavar="N", help="Leave out larger values of an axis.")
@_outputs(3)
def scaling(shape: str, axes: tuple[str, ...], most: int | None, **options: Any) -> None:
    """Time and memory of a step as tokens, a row, rank, layers, rows or the vocabulary grow."""
    from wgtrain.bench.scaling import check_axes, measure_scaling, points

    found = find_shape(shape)
    count = sum(len(list(points(found, axis, most))) for axis in check_axes(axes))
    run = _Run(options, count)
    run(lambda **common: measure_scaling(found, axes, most=most, **common))


@bench.command(name="report")
@click.argument("files", nargs=-1)
@click.option("--out", required=True, metavar="PAGE", help="The page; charts go beside FILES.")
def report_(files: tuple[str, ...], out: str) -> None:
    """Make a page of records that --out wrote, all of one folder."""
    paths = [Path(file) for file in files]
    records = report.read_records(paths)
    folders = {path.parent for path in paths}
    if len(folders) > 1:
        raise OptionError(f"report: files of {len(folders)} folders; one folder holds them all")
    (folder,) = folders
    inside = Path(out).parent
    if not folder.resolve().is_relative_to(inside.resolve()):
        raise OptionError(f"out = {out!r}: {folder} is not below its folder")
    seen = folder.resolve().relative_to(inside.resolve()).as_posix()
    Path(out).write_text(report.page(records, seen), "utf-8")
    for name, svg in report.pictures(records).items():
        (folder / name).write_bytes(svg)


class _Run:
    """Runs a measurement with its progress shown, then prints, writes and draws its record."""

    def __init__(self, options: dict[str, Any], parts: int):
        self._options, self._parts = options, parts
        if options["rounds"] < 1:
            raise OptionError(f"rounds = {options['rounds']}: a number above 0 is needed")
        for name in ("out", "svg"):
            path = options[name] and Path(options[name])
            if path and not path.absolute().parent.is_dir():
                raise OptionError(f"{name} = {options[name]!r}: that folder does not exist")

    def __call__(self, measure: Callable[..., Record]) -> None:
        with progress(self._parts) as advance:
            record = measure(
                command=_command_line(),
                rounds=self._options["rounds"],
                adapter_index=self._options["adapter_index"],
                mode="measure" if click.get_current_context().obj else "auto",
                advance=advance,
            )
        text = json.dumps(record, indent=1)
        if self._options["as_json"]:
            click.echo(text)
        else:
            for table in tables.tables(record):
                _print(table)
        if self._options["out"]:
            Path(self._options["out"]).write_text(text + "\n", "utf-8")
        if self._options["svg"]:
            path = Path(self._options["svg"])
            for suffix, svg in charts.draw(record).items():
                path.with_stem(path.stem + suffix).write_bytes(svg)


def _command_line() -> str:
    """The command as it was given, without where its results go."""
    context = click.get_current_context()
    words = ["wgtrain", "bench", *(["--tune"] if context.obj else []), context.info_name or ""]
    for parameter in context.command.params:
        value = context.params.get(parameter.name or "")
        given = context.get_parameter_source(parameter.name or "")
        if given is None or given.name == "DEFAULT" or parameter.name in ("as_json", "out", "svg"):
            continue
        for each in value if isinstance(value, tuple) else (value,):
            words += [parameter.opts[0], str(each)]
    return shlex.join(words)


def _print(table: tables.Table) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    if not console.is_terminal:  # a file may have longer lines
        console = Console(width=140)
    shown = Table(title=table.title, title_justify="left")
    for number, column in enumerate(table.columns):
        shown.add_column(column, justify="left" if number == 0 else "right")
    for row in table.rows:
        shown.add_row(*row)
    console.print(shown)
