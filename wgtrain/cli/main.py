"""The command line. Options of `train` are generated from the fields of the configs."""

import signal
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import click

from wgtrain import __version__
from wgtrain.cli import streams
from wgtrain.cli.options import as_options, options_of
from wgtrain.cli.refused import no_such_command, refusal
from wgtrain.errors import DeviceError, OptionError, WgtrainError
from wgtrain.files.file_types import TARGETS
from wgtrain.train.config import CONFIGS, RunConfig
from wgtrain.train.settings import build, canonical, merge

# Settings that decide what training sees of rows.
PREVIEWED = ("model", "kind", "chat_template", "template_args", "system", "seq_len", "train_on")
DONE, UNUSABLE, GPU_FAILED, INTERRUPTED = 0, 2, 3, 130
MODULES = ("chat", "eval", "generate", "merge", "modelfile", "serve")


class _Commands(click.Group):
    """The commands of this module, and those of `MODULES`, imported when they are asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({*super().list_commands(ctx), *MODULES})

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in MODULES:
            return super().get_command(ctx, name)
        command: click.Command = import_module(f"wgtrain.cli.{name}").command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0] not in (known := self.list_commands(ctx)) and not args[0].startswith("-"):
            raise click.UsageError(no_such_command(args[0], known), ctx)
        return super().resolve_command(ctx, args)


@click.group(
    cls=_Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, prog_name="wgtrain")
def cli() -> None:
    """LoRA fine-tuning of GGUF language models through WebGPU."""


@cli.command(short_help="Train an adapter on a model and rows.")
@options_of(*CONFIGS)
@click.option(
    "--config",
    "config_file",
    metavar="FILE",
    help="YAML file of these settings, with underscores; the command line goes over it.",
)
@click.option(
    "--resume",
    metavar="RUN",
    help="Go on with the run in this folder; beside it only --iters or --epochs for another "
    "length, --gpu-memory, and --model, --data, --valid, --init-adapter for files that moved.",
)
def train(config_file: str | None, resume: str | None, **given: Any) -> int:
    """Train an adapter on a model, a GGUF or a Hugging Face folder, and JSONL rows."""
    from wgtrain.runs import session

    explicit = {name: value for name, value in given.items() if value is not None}
    if resume is not None:
        beside = {**explicit, **({"config": config_file} if config_file else {})}
        return DONE if session.resume(resume, _say, beside) else INTERRUPTED
    return DONE if session.start(_settings(config_file, given), _say) else INTERRUPTED


def _settings(config_file: str | None, given: dict[str, Any]) -> dict[str, Any]:
    """What was given on the command line, over a YAML file."""
    from wgtrain.runs.yaml_file import read_yaml

    explicit = {name: value for name, value in given.items() if value is not None}
    settings = canonical(explicit, CONFIGS, "command line")
    if config_file is None:
        return settings
    file = canonical(read_yaml(Path(config_file)), CONFIGS, config_file)
    return merge(file, settings, CONFIGS)


@cli.command(short_help="Show rows as training sees them.")
@click.argument("data", required=False)
@options_of(*CONFIGS, only=PREVIEWED)
@click.option(
    "--config",
    "config_file",
    metavar="FILE",
    help="YAML file of a run's settings; the command line goes over it.",
)
@click.option(
    "--rows",
    default="3",
    metavar="ROWS",
    help="Rows that are shown: all, a number N (the first N), or lines such as 4-6,9-9.  "
    "[default: 3]",
)
@click.option("--html", metavar="FILE", help="Write a page instead of showing rows here.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def preview(
    config_file: str | None, rows: str, html: str | None, as_json: bool, **given: Any
) -> int:
    """Show rows as training sees them: text, trained tokens, what is cut, dropped or wrong.

    Ends with 2 where training would refuse them.
    """
    from wgtrain.cli.preview import report

    text, usable = report(_settings(config_file, given), rows, html, as_json)
    click.echo(text, nl=False, color=True)  # it is coloured for a terminal alone
    return DONE if usable else UNUSABLE


@cli.command(short_help="Tell what memory a run would take.")
@options_of(*CONFIGS)
@click.option("--type", "type_", metavar="TYPE", help="Type of the matrices, in place of theirs.")
@click.option("--config", "config_file", metavar="FILE", help="YAML file of these settings.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def plan(type_: str | None, config_file: str | None, as_json: bool, **given: Any) -> int:
    """Tell what train would take with these options, and whether it fits; nothing is loaded.

    The model may also be a config.json alone; data may be left out. Ends with 3 where it does not
    fit.
    """
    from wgtrain.cli.plan import show

    text, fits = show(_settings(config_file, given), type_, as_json)
    click.echo(text if as_json else as_options(text))
    return DONE if fits else GPU_FAILED


@cli.command(short_help="Train the embedded model, and compare answers.")
@options_of(RunConfig, only=("out", "adapter_index"))
def demo(**given: Any) -> int:
    """Train the embedded model on the embedded data, and compare its answers."""
    from wgtrain.cli.demo import run_demo

    (paths,) = build({"model": "-", "data": "-", **given}, RunConfig)
    return DONE if run_demo(paths.out, paths.adapter_index) else INTERRUPTED


@cli.command(short_help="Show GPUs, limits, versions, and what is missing.")
def doctor() -> int:
    """Show adapters, limits, features and versions, and what to do where there is no adapter."""
    from wgtrain.cli import doctor

    text, usable = doctor.report()
    click.echo(text)
    return DONE if usable else GPU_FAILED


@cli.command(
    add_help_option=False,
    short_help="Measure kernels and steps, beside other trainers.",
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def bench(arguments: tuple[str, ...]) -> None:
    """Measure kernels and whole steps, beside this adapter's ceiling and other trainers."""
    from wgtrain.bench.command import bench

    bench.main(arguments, prog_name="wgtrain bench", standalone_mode=False)


@cli.command(short_help="Make a GGUF of a folder; adapters either way.")
@click.argument("source", metavar="IN")
@click.option("--out", metavar="PATH", required=True, help="The GGUF or PEFT folder to write.")
@click.option(
    "--type",
    "kind",
    metavar="f32|f16|bf16",
    help="The type of its matrices; norms and biases are f32.  [default: that of the folder]",
)
@click.option("--model", metavar="MODEL", help="The base of an adapter, a GGUF or a folder.")
@click.option("--force", is_flag=True, help="Replace a file that is there.")
def convert(source: str, out: str, kind: str | None, model: str | None, force: bool) -> None:
    """Make a GGUF of a Hugging Face folder, with its tokenizer and chat template; or of an adapter
    in a PEFT folder a GGUF, and of one in a GGUF a PEFT folder.
    """
    from wgtrain.cli import convert

    convert.convert(source, out, kind, model, force, _say)


@cli.command(short_help="Show what a model, adapter or data set holds.")
@click.argument("source", metavar="IN")
@click.option(
    "--model", metavar="MODEL", help="The base of an adapter; for rows, whose tokenizer counts."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def inspect(source: str, model: str | None, as_json: bool) -> None:
    """Show what a model, an adapter or a data set holds, and what would be refused."""
    from wgtrain.cli.inspect import inspect

    click.echo(inspect(source, model, as_json))


@cli.command(short_help="Make a GGUF of another block type.")
@click.argument("model")
@click.option(
    "--type",
    "kind",
    metavar="TYPE",
    required=True,
    help=f"{', '.join(TARGETS)}; those with _M are mixes.",
)
@click.option("--out", metavar="FILE", required=True, help="The GGUF to write.")
@click.option(
    "--allow-requantize",
    "requantise",
    is_flag=True,
    help="Also matrices that are quantised to another type already.",
)
@click.option("--force", is_flag=True, help="Replace a file that is there.")
def quantize(model: str, kind: str, out: str, requantise: bool, force: bool) -> None:
    """Make a GGUF of another block type, or a mix of types as llama.cpp chooses them."""
    from wgtrain.cli import quantize

    quantize.quantize(model, out, kind.upper(), requantise, force, _say)


@cli.command(short_help="Serve the page on loopback.")
@click.argument("folder", default="dist/web")
@click.option("--port", default=8000, help="Port on loopback, 0 = any.  [default: 8000]")
def web(folder: str, port: int) -> int:
    """Serve a site of scripts/build_web.py on loopback, until interrupted."""
    from wgtrain.web.server import Server

    if not all(Path(folder, name).is_file() for name in ("index.html", "config.json")):
        raise OptionError(f"{folder}: no site is here; scripts/build_web.py makes one")
    server = Server(Path(folder), port)
    click.echo(f"http://127.0.0.1:{server.port}/")
    server.serve_forever()
    return DONE


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line and exits: 0 done, 2 unusable input, 3 GPU failed, 130 interrupted."""
    streams.prepare()
    for name in ("SIGTERM", "SIGHUP"):  # until a run handles them itself; nohup ignores the second
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, signal.default_int_handler)
    try:
        status = cli.main(arguments, prog_name="wgtrain", standalone_mode=False)
    except click.ClickException as error:
        streams.complain(f"error: {refusal(error)}")
        status = UNUSABLE
    except (click.Abort, KeyboardInterrupt):
        streams.complain("interrupted")
        status = INTERRUPTED
    except WgtrainError as error:
        streams.complain(f"error: {as_options(str(error))}")
        status = GPU_FAILED if isinstance(error, DeviceError) else UNUSABLE
    except OSError as error:  # a full disk, a run folder that went away
        streams.complain(f"error: {error}")
        status = UNUSABLE
    finally:
        streams.settle()
    sys.exit(status or DONE)


def _say(line: str) -> None:
    """Says a line of a run; the first that nobody reads is told on standard error."""
    try:
        click.echo(as_options(line))
    except OSError as error:
        streams.complain(
            f"warning: the output is gone ({error}); the run goes on, its lines are in train.log"
        )
        raise
