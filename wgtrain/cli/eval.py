"""`wgtrain eval`: the loss of rows under a model and adapters, answers to them, side by side."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from wgtrain.cli.evaluated import as_json, told
from wgtrain.cli.options import options_of
from wgtrain.cli.rows import row_settings, runs_of
from wgtrain.cli.streams import complain
from wgtrain.cli.using import Sectioned, Using, opened, read_wanted, using_options
from wgtrain.data import Dataset
from wgtrain.data.examples import in_rows
from wgtrain.data.questions import questions
from wgtrain.errors import FileError, OptionError
from wgtrain.infer.comparison import Comparison, compare
from wgtrain.runs import parts
from wgtrain.runs.disk import write_file
from wgtrain.runs.held_out import HeldOut, rows_at, rows_of_run
from wgtrain.runs.output import check_output
from wgtrain.train.config import RunConfig, TrainConfig

ROWS = ("kind", "system", "seq_len", "train_on", "mask_prompt", "batch_size")
ASKED = 50  # rows, where nothing else is said
SAMPLES = 3


@click.command("eval", cls=Sectioned, short_help="Tell the loss of rows, and what adapters change.")
@using_options
@click.option(
    "--data",
    metavar="FILE|FOLDER",
    help="Rows: a file, or a folder, of which test.jsonl is taken, or else valid.jsonl.  "
    "[default: the validation or test rows of the run in --adapter]",
)
@options_of(RunConfig, TrainConfig, only=ROWS)
@click.option("--limit", metavar="N", type=click.IntRange(1), help="The first N rows alone.")
@click.option(
    "--exact-match",
    is_flag=True,
    help="Also answer the prompts of rows, greedily, and compare with the rows' answers; white "
    "space does not matter.",
)
@click.option(
    "--answers",
    metavar="N|all",
    help=f"How many rows are answered, the first ones.  [default: {ASKED} with --exact-match or "
    "--compare]",
)
@click.option(
    "--max-tokens",
    metavar="N",
    type=click.IntRange(1),
    default=64,
    help="Longest answer; rows with longer ones are not answered.  [default: 64]",
)
@click.option(
    "--compare", "side_by_side", is_flag=True, help="The base and each adapter beside all of them."
)
@click.option(
    "--samples",
    metavar="N",
    type=click.IntRange(0),
    help=f"Answers that are shown here.  [default: {SAMPLES} with --compare, else 0]",
)
@click.option("--html", metavar="FILE", help="Write all of it as a page, too.")
@click.option("--force", is_flag=True, help="Replace a page that is there.")
@click.option("--json", "json_only", is_flag=True, help="Print one JSON object.")
def command(**given: Any) -> int:
    """Tell the mean loss, perplexity and number of the trained tokens of rows, under a model and
    adapters.

    \b
      wgtrain eval --adapter runs/mine --data rows.jsonl --compare

    Rows are read as for training, by default as the run of the adapter read them.
    """
    answers = _answers(given)
    wanted = read_wanted(given, lambda text: None)
    if given["side_by_side"] and not wanted.adapters:
        raise OptionError("--compare: there is no adapter; --adapter names one")
    runs = runs_of(wanted.adapters)
    held = _held_out(given["data"], runs)
    if given["html"] is not None:
        read = [wanted.paths.model, str(held.rows.path), *(one.path for one in wanted.adapters)]
        check_output(Path(given["html"]), given["force"], *map(Path, read))
    elif given["force"]:
        raise OptionError("--force: only with --html")
    rows, config = row_settings(given, ROWS, runs)
    with opened(given) as using:
        chat = using.chat
        if given["system"] is not None:
            chat = replace(chat, system=rows.system, asked=True)
        data = _limited(held.load(using.model, rows, config, chat), given["limit"])
        for note in data.notes:
            complain(note)
        if given["exact_match"]:
            _check_questions(data, using, given["max_tokens"])
        with parts.counted() as progress:
            found = compare(
                using.model,
                data,
                _stacks(using, given["side_by_side"]),
                answers=answers,
                max_tokens=given["max_tokens"],
                batch_size=config.batch_size,
                progress=progress,
            )
        if given["html"] is not None:
            _write(Path(given["html"]), found)
    if json_only := given["json_only"]:
        click.echo(json.dumps(as_json(found, given["side_by_side"]), ensure_ascii=False))
    else:
        default = SAMPLES if given["side_by_side"] else 0
        told(found, default if given["samples"] is None else given["samples"])
    if given["html"] is not None:
        (complain if json_only else click.echo)(f"written to {given['html']}")
    return 0


def _answers(given: Mapping[str, Any]) -> int | None:
    """How many rows are to be answered, None = all; OptionError where none would be."""
    text, asks = given["answers"], given["exact_match"] or given["side_by_side"]
    if text is not None and not asks:
        raise OptionError("--answers: only with --exact-match or --compare")
    if given["samples"] and not asks:
        raise OptionError("--samples: only with --exact-match or --compare")
    if text is None:
        return ASKED if asks else 0
    if text == "all":
        return None
    if not (text.isascii() and text.isdigit()) or (int(text) == 0 and given["exact_match"]):
        least = "above 0" if given["exact_match"] else "N"
        raise OptionError(f"--answers {text}: allowed is all, or a whole number {least}")
    return int(text)


def _held_out(data: str | None, runs: list[Path]) -> HeldOut:
    """The rows that are named, or those of the run."""
    if data is not None:
        held = rows_at(data)
        if str(held.rows.path) != str(Path(data)):
            complain(f"evaluating {held.told}")
        return held
    if len(runs) != 1:
        why = "; several runs are named" if runs else ""
        raise OptionError(
            f"data: needed: a file of rows, or a folder with test.jsonl or valid.jsonl{why}"
        )
    held = rows_of_run(runs[0])
    complain(f"evaluating the {held.kind} rows of {runs[0]}: {held.told}")
    return held


def _limited(data: Dataset, limit: int | None) -> Dataset:
    if limit is None or limit >= len(data.rows):
        return data
    complain(f"the first {in_rows(limit)} of {len(data.rows)}")
    return replace(data, rows=data.rows[:limit])


def _check_questions(data: Dataset, using: Using, max_tokens: int) -> None:
    asked, notes = questions(data, using.model.tokenizer, max_tokens)
    if not asked:
        raise OptionError("\n".join([f"--exact-match: no row of {data.name} can be asked", *notes]))


def _stacks(using: Using, side_by_side: bool) -> dict[str, list[tuple[Any, float]]]:
    """What is evaluated, by name: the stack, or the base, each adapter and the stack."""
    loaded = using.model.adapters
    names = [name if scale == 1 else f"{name}:{scale:g}" for name, scale in loaded]
    named = list(zip(names, loaded.stack.adapters, strict=True))
    whole = " + ".join(name for name, _ in named) or "base"
    if not side_by_side:
        return {whole: [pair for _, pair in named]}
    stacks: dict[str, list[tuple[Any, float]]] = {"base": []}
    stacks |= {f"+ {name}": [pair] for name, pair in named}
    if len(named) > 1:
        stacks[f"+ {whole}"] = [pair for _, pair in named]
    return stacks


def _write(path: Path, found: Comparison) -> None:
    try:
        write_file(path, found.html.encode())
    except OSError as error:
        raise FileError(f"{path}: {error.strerror or error}") from None
