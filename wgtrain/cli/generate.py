"""`wgtrain generate`: a text continued, a message answered, or a file of them."""

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, TextIO

import click

from wgtrain.cli.answering import Answer, How, Screen, answer_options, as_json, read_how
from wgtrain.cli.asked import STDIN, Asked, read_asked
from wgtrain.cli.streams import complain
from wgtrain.cli.using import Sectioned, Using, opened, using_options
from wgtrain.errors import DeviceError, FileError, OptionError, WgtrainError
from wgtrain.infer.generation import room_for
from wgtrain.runs import disk
from wgtrain.runs.output import check_output

DONE = 0


@click.command("generate", cls=Sectioned, short_help="Continue a text, or answer a message.")
@click.option(
    "--prompt",
    metavar="TEXT",
    help="Text that is continued as it stands, without the chat template; - = standard input, "
    "without its last line end.",
)
@click.option(
    "--message",
    metavar="TEXT",
    help="Message that is answered, through the chat template; - = standard input.",
)
@click.option("--system", metavar="TEXT", help="System message before --message.")
@click.option(
    "--prompts",
    metavar="FILE",
    help="JSONL of objects with prompt or messages; each is written with the answer in text, in "
    "their order. - = standard input.",
)
@click.option("--out", metavar="FILE", help="Where the rows of --prompts go, in place of here.")
@click.option("--force", is_flag=True, help="Replace a file that is there.")
@answer_options
@click.option("--stats", is_flag=True, help="Tell tokens, speed and end, not only in a terminal.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object: text, finish_reason, ...")
@using_options
def command(**given: Any) -> int:
    """Continue a text, or answer a message with the model's chat template.

    \b
      wgtrain generate --adapter runs/mine --message "Hello"

    The text alone goes to standard output as it comes, all else to standard error. Thoughts before
    an answer are dimmed in a terminal, and left out elsewhere; --json and --prompts have them as
    reasoning_content.
    """
    how = read_how(given)
    many = given["prompts"] is not None
    out = _output(many, given)
    asked = read_asked(*(given[name] for name in ("prompt", "message", "prompts", "system")))
    with opened(given) as using:
        ids = [_ids(using, one, how) for one in asked]
        if using.templated and any(one.prompt is not None for one in asked):
            complain("a prompt is continued as it stands; messages go through the chat template")
        try:
            if many:
                with _rows(out, given["force"]) as file:
                    _answer_all(using, how, asked, ids, file)
            else:
                _answer(using, how, ids[0], given["as_json"], given["stats"])
        except BrokenPipeError:  # whoever reads it has enough
            return DONE
    return DONE


def _output(many: bool, given: Mapping[str, Any]) -> Path | None:
    """Where answers are to be written; OptionError for options that go with others."""
    if many:
        told = {"json": given["as_json"], "stats": given["stats"]}
        if alone := [name for name, value in told.items() if value]:
            raise OptionError(f"{', '.join(alone)}: not with --prompts, whose rows tell it")
    else:
        if missing := [name for name in ("out", "force") if given[name]]:
            raise OptionError(f"{', '.join(missing)}: only with --prompts")
    if given["out"] is None:
        if given["force"]:
            raise OptionError("force: only with --out")
        return None
    path = Path(given["out"])
    inputs = [] if given["prompts"] == STDIN else [Path(given["prompts"])]
    check_output(path, given["force"], *inputs)
    if os.path.lexists(part := part_of(path)):
        raise FileError(f"{part}: answers of an earlier try; move it away, or remove it")
    return path


def _ids(using: Using, asked: Asked, how: How) -> list[int]:
    """The tokens of what is asked, for which there is room."""
    try:
        if asked.prompt is None:
            ids = using.prompt(asked.messages, asked.tools, asked.args)
        else:
            ids = using.raw(asked.prompt)
        room_for(len(ids), how.max_tokens, using.model.config.context)
    except WgtrainError as error:
        if not asked.where or isinstance(error, DeviceError):
            raise
        raise FileError(f"{asked.where}: {error}") from None
    return ids


def _answer(using: Using, how: How, ids: list[int], json_only: bool, stats: bool) -> None:
    """One answer, as it comes."""
    answer, screen = Answer(len(ids), using.model.config.context), Screen()
    try:
        for piece in using.model.answers([how.request(ids)]):
            answer.add(piece)
            if not json_only:
                screen.show(piece)
    finally:
        if not json_only:
            screen.end()
    if json_only:
        print(as_json(answer.facts(), sys.stdout), flush=True)
    if stats or (sys.stderr is not None and sys.stderr.isatty()):
        complain(answer.told())


def _answer_all(
    using: Using, how: How, asked: list[Asked], ids: list[list[int]], file: TextIO
) -> None:
    """The rows of a file with their answers, in their order, each as soon as it can be."""
    answers = [Answer(len(one), using.model.config.context) for one in ids]
    done = 0
    with _progress(len(ids), file) as bar:
        for piece in using.model.answers([how.request(one) for one in ids]):
            answers[piece.index].add(piece)
            while done < len(asked) and answers[done].finish is not None:
                row = {**asked[done].row, **answers[done].facts()}
                file.write(as_json(row, file) + "\n")
                file.flush()
                done += 1
                if bar is not None:
                    bar.update(1)


def _progress(rows: int, file: TextIO) -> AbstractContextManager[Any]:
    """A bar where a terminal shows nothing else."""
    if file.isatty() or sys.stderr is None or not sys.stderr.isatty():
        return nullcontext()
    return click.progressbar(length=rows, label="answered", show_pos=True, file=sys.stderr)


@contextmanager
def _rows(out: Path | None, force: bool) -> Iterator[TextIO]:
    """Standard output, or a file that gets its name when it is whole; cut short, what was written
    stays beside it.
    """
    if out is None:
        yield sys.stdout
        return
    new = part_of(out)
    try:
        with open(new, "x", encoding="utf-8", newline="\n") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if force:
            os.replace(new, out)
        else:
            disk.publish(new, out)
    except FileExistsError:
        raise FileError(f"{out}: exists already; the answers are in {new}") from None
    except BaseException:
        if new.exists() and new.stat().st_size == 0:
            new.unlink()
        elif new.exists():
            complain(f"the answers up to here are in {new}")
        raise


def part_of(out: Path) -> Path:
    """The name of a file that is not whole yet."""
    return out.with_name(f"{out.name}.part")
