"""Samples of a run as text, and in its folder."""

import html
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from wgtrain.runs import disk

if TYPE_CHECKING:
    from wgtrain.train.results import Sample, StepResult

FILE = "samples.jsonl"


def in_words(result: "StepResult") -> str:
    """The samples of a step, as lines."""
    lines = []
    for number, sample in enumerate(result.samples, 1):
        texts = {"prompt": sample.prompt, "base": sample.base, "tuned": sample.tuned}
        lines.append(f"sample {number} after step {result.step}")
        lines += [_indented(f"  {name + ':':<8}", text) for name, text in texts.items()]
    return "\n".join(lines)


def base_in_words(pairs: "Sequence[tuple[str, str]]") -> str:
    """What the base answers to prompts, as lines."""
    lines = []
    for number, (prompt, base) in enumerate(pairs, 1):
        lines += [
            f"sample {number}",
            _indented("  prompt: ", prompt),
            _indented("  base:   ", base),
        ]
    return "\n".join(lines)


def _indented(begin: str, text: str) -> str:
    return begin + text.replace("\n", "\n" + " " * len(begin))


def as_table(step: int, samples: "Sequence[Sample]") -> str:
    """The same in HTML."""
    cells = "".join(
        "<tr>"
        + "".join(f"<td>{_cell(text)}</td>" for text in (s.prompt, s.base, s.tuned))
        + "</tr>"
        for s in samples
    )
    head = f"<tr><th>prompt</th><th>base</th><th>tuned, after step {step}</th></tr>"
    return f"<table>{head}{cells}</table>"


def _cell(text: str) -> str:
    return html.escape(text).replace("\n", "<br>")


def append(folder: Path, result: "StepResult") -> None:
    """Adds the samples of a step to those of a run, down to the disk."""
    lines = [{"step": result.step, **vars(sample)} for sample in result.samples]
    if lines:
        with disk.open_append(folder / FILE, encoding="utf-8") as file:
            file.write("".join(json.dumps(line) + "\n" for line in lines))
            file.flush()
            os.fsync(file.fileno())


def rewind(folder: Path, step: int) -> None:
    """Drops the samples of steps after `step`, and a line cut short."""
    if not os.path.lexists(folder / FILE):
        return
    lines = disk.read_file(folder / FILE).splitlines(keepends=True)
    kept = [line for line in lines if line.endswith(b"\n") and _step(line) <= step]
    if kept != lines:
        disk.write_file(folder / FILE, b"".join(kept))


def _step(line: bytes) -> int:
    """Of a line; 0 for one that tells none, which is kept."""
    try:
        found = json.loads(line)["step"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return 0
    return found if type(found) is int else 0
