"""Rows that an adapter is judged by: of a file, of a folder, or those that its run held out."""

from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from wgtrain.api import data_file, load_dataset
from wgtrain.data import Dataset
from wgtrain.data.templates import Templating
from wgtrain.errors import FileError, OptionError, WgtrainError
from wgtrain.runs.adapters import run_entries, run_settings
from wgtrain.runs.entries import places
from wgtrain.runs.folder import read_summary
from wgtrain.runs.inputs import Rows, changed
from wgtrain.runs.paths import check_path
from wgtrain.runs.sources import is_dir
from wgtrain.train.config import RunConfig, TrainConfig
from wgtrain.train.start import split_rows

READ = ("seq_len", "train_on", "kind")  # settings that decide which tokens of rows count


@dataclass(frozen=True)
class HeldOut:
    """A file that was read, of which with `fraction` only the part counts that a run with this seed
    did not train on; `now`: the day for chat templates that write one, None = today.
    """

    rows: Rows
    fraction: float | None = None
    seed: int = 0
    now: datetime | None = None
    kind: str = ""  # of a run's: validation or test

    @property
    def told(self) -> str:
        """Which rows they are, in words."""
        part = (
            ""
            if self.fraction is None
            else f", the {100 * self.fraction:.3g} % of it that were held out"
        )
        return f"{self.rows.path}{part}"

    def load(self, model: Any, paths: RunConfig, config: TrainConfig, chat: Templating) -> Dataset:
        """The token rows, by a model's tokenizer; OptionError or FileError as for training."""
        read = (model, config.seq_len, config.train_on, None, paths.kind)
        if self.now is not None:
            chat = replace(chat, now=self.now)
        found = load_dataset(self.rows.take(), *read, name=str(self.rows.path), chat=chat)
        return found if self.fraction is None else split_rows(found, self.fraction, self.seed)[1]


def rows_at(data: str) -> HeldOut:
    """The rows of a file; of a folder those of test.jsonl, or else of valid.jsonl."""
    if not is_dir(data):
        return HeldOut(Rows(Path(data)))
    tried = [data_file(data, part) for part in ("test", "valid")]
    for path in tried:
        if path.is_file():
            return HeldOut(Rows(path))
    raise FileError(f"{data}: neither {tried[0].name} nor {tried[1].name} is in this folder")


def rows_of_run(run: Path) -> HeldOut:
    """The validation rows of a run, else its test rows, where they are now; OptionError where it
    had none, FileError where they are gone or others.
    """
    _, _, config = run_settings(run)
    entries = run_entries(run)
    part = config.valid if isinstance(config.valid, float) else None
    kinds = {"valid" if part is None else "data": "validation", "test": "test"}
    there = [name for name in kinds if name in entries]
    name = next((name for name in there if not entries[name].get("pipe")), None)
    if name is None:
        why = "read its validation rows from a pipe" if there else "had no validation or test rows"
        raise OptionError(
            f"data: needed: {run} {why}; a file of rows, or a folder with test.jsonl or valid.jsonl"
        )
    kind = kinds[name]
    part = part if kind == "validation" else None
    entry = entries[name]
    problem: WgtrainError | None = None
    for path in places(entry, run):
        try:
            check_path(path)
        except FileError as error:
            problem = problem or FileError(f"{kind} rows of {run}: {error}; --data names rows")
            continue
        rows = Rows(path)
        if rows.identity["sha256"] == entry.get("sha256"):
            return HeldOut(rows, part, config.seed, _started(run), kind)
        problem = FileError(f"{changed(name, str(path), run)}; --data names rows")
    assert problem is not None
    raise problem


def _started(run: Path) -> datetime | None:
    try:
        return datetime.fromisoformat(read_summary(run)["started"])
    except (KeyError, TypeError, ValueError):
        return None


def read_as(runs: list[Path]) -> dict[str, Any]:
    """The settings by which all of some runs read their rows; empty where they differ."""
    found = []
    for run in runs:
        paths, _, config = run_settings(run)
        found.append({"seq_len": config.seq_len, "train_on": config.train_on, "kind": paths.kind})
    return found[0] if found and all(one == found[0] for one in found) else {}
