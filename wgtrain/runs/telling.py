"""What a run says: its opening lines, its facts, its end; on the screen and in its log."""

import os
import shlex
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from wgtrain.data import Dataset
from wgtrain.data.examples import in_rows
from wgtrain.errors import NonFiniteError, WgtrainError, printable
from wgtrain.gpu import format_size
from wgtrain.infer.evaluation import perplexity, perplexity_in_words
from wgtrain.runs.folder import RESULTS, RunFolder
from wgtrain.train.needs import Needs
from wgtrain.train.results import Tested
from wgtrain.train.trainer import Trainer

Say = Callable[[str], None]


class Voice:
    """Says lines until nobody listens any more, from then on only in the log of `folder`."""

    def __init__(self, say: Say):
        self._say = say
        self._gone = ""
        self._lock = threading.RLock()
        self.folder: RunFolder | None = None

    def show(self, text: str) -> None:
        """On the screen alone."""
        with self._lock:
            if self._gone:
                return
            try:
                self._say(printable(text))
            except (OSError, ValueError) as error:  # a closed pipe, a full disk, a closed file
                self._gone = str(error) or type(error).__name__
                self.log(f"warning: the output is gone ({self._gone}): all goes on in this log")

    def log(self, text: str) -> None:
        """In the log alone."""
        with self._lock:
            if self.folder is not None:
                self.folder.log(printable(text))

    def attach(self, folder: RunFolder) -> None:
        """Logs to this folder from now on."""
        self.folder = folder
        if self._gone:
            self.log(f"warning: the output is gone ({self._gone}): all goes on in this log")

    def __call__(self, text: str) -> None:
        self.show(text)
        self.log(text)


def opening(folder: RunFolder, trainer: Trainer) -> str:
    """The lines before the first step."""
    rows, valid = trainer.rows, trainer.valid
    parts = [in_rows(len(rows.rows))]
    if rows.truncated:
        parts.append(f"{rows.truncated} cut at {rows.seq_len} tokens")
    if rows.dropped:
        parts.append(f"{rows.dropped} dropped, no token of them is trained")
    if valid is not None:
        parts.append(f"{len(valid.rows)} for validation")
    if trainer.test_rows is not None:
        parts.append(f"{len(trainer.test_rows.rows)} for the test")
    learner, context = trainer.learner, trainer.model.config.context
    longest = max(len(row.tokens) for row in rows.rows)
    long = f"rows of up to {longest:,} tokens, but the model was made for {context:,}"
    return "\n".join(
        [
            f"{rows.name}: {', '.join(parts)}",
            *([long] if longest > context else []),
            *trainer.model.config.notes,
            *learner.notes,
            *rows.notes,
            *_held_out(rows, valid),
            *_held_out(rows, trainer.test_rows),
            *_odd(trainer),
            f"{learner.parameter_count:,} parameters, {_steps(trainer.total_steps)}",
            f"kernels: {learner.tuning.origin}",
            f"writing to {folder.path}",
        ]
    )


def memory(needs: Needs) -> str:
    """The line of GPU memory by purpose."""
    shares = needs.by_purpose.items()
    parts = ", ".join(f"{purpose} {format_size(nbytes)}" for purpose, nbytes in shares)
    name, nbytes = needs.largest_binding
    how = "; activations are recomputed in the backward pass" if needs.recompute else ""
    text = f"GPU memory: {format_size(needs.total)} ({parts})"
    return f"{text}; largest binding {name}, {format_size(nbytes)}{how}"


def _held_out(rows: Dataset, held: Dataset | None) -> list[str]:
    """What is cut, dropped or wrong in a file of rows that are not trained, beside what the
    training rows have as well.
    """
    if held is None or held.name == rows.name:  # a part of the same file
        return []
    said = [*held.shortened, *(note for note in held.notes if note not in rows.notes)]
    return [f"{held.name}: {words}" for words in said]


def _odd(trainer: Trainer) -> list[str]:
    """Settings that do not do what they seem to."""
    config, total = trainer.config, trainer.total_steps
    said = []
    warmup = trainer.schedule.warmup
    if warmup >= total > 1:
        said.append(
            f"warning: the warm-up of {warmup} steps is not over when the {total} steps are: the "
            f"learning rate never stays at {config.learning_rate:g}"
        )
    if trainer.valid is None and config.eval_every != type(config)().eval_every:
        said.append(f"warning: eval_every = {config.eval_every}, but there are no validation rows")
    return said


def facts(folder: RunFolder, trainer: Trainer) -> dict[str, Any]:
    """What summary.json says of a run, finished or not."""
    losses, evaluations = folder.losses, folder.evaluations
    found = trainer.tested
    return {
        "step": trainer.step,
        "total_steps": trainer.total_steps,
        "parameters": trainer.learner.parameter_count,
        "rows": len(trainer.rows.rows),
        "valid_rows": len(trainer.valid.rows) if trainer.valid else 0,
        "first_loss": losses[0][1] if losses else None,
        "last_loss": losses[-1][1] if losses else None,
        "first_eval_loss": evaluations[0][1] if evaluations else None,
        "last_eval_loss": evaluations[-1][1] if evaluations else None,
        "test_rows": len(trainer.test_rows.rows) if trainer.test_rows else 0,
        "base_test_loss": found and found.base_loss,
        "base_test_perplexity": found and perplexity(found.base_loss),
        "test_loss": found and found.loss,
        "test_perplexity": found and perplexity(found.loss),
        "seconds": trainer.elapsed_seconds,
        "tokens": trainer.tokens_seen,
        "bytes": trainer.learner.nbytes,
        "paths": {n: str(folder.path / n) for n in RESULTS if os.path.exists(folder.path / n)},
    }


def _steps(number: int) -> str:
    return f"{number:,} step{'' if number == 1 else 's'}"


def ending(found: dict[str, Any]) -> str:
    """The facts of a finished run in words."""
    steps = _steps(found["step"])
    words = f"{steps}, {found['tokens']:,} tokens, {found['seconds']:.1f} s, "
    words += f"loss {found['first_loss']:.4f} -> {found['last_loss']:.4f}"
    if found["first_eval_loss"] is not None:
        words += f", validation {found['first_eval_loss']:.4f} -> {found['last_eval_loss']:.4f}"
    if found.get("test_loss") is not None:
        words += f", test {found['base_test_loss']:.4f} (base) -> {found['test_loss']:.4f}"
    return words


def tested(found: Tested) -> str:
    """What a test found, in words."""
    base, tuned = (
        f"{loss:.4f}, perplexity {perplexity_in_words(perplexity(loss))}"
        for loss in (found.base_loss, found.loss)
    )
    return f"test rows: loss {tuned}; of the base {base}; {found.count:,} tokens count"


def how_to_use(run: Path, rows: Dataset) -> str:
    """What asks the model with the adapter of a run, to be copied."""
    named = shlex.quote(str(run))
    if rows.templating is not None:
        return f"talk to it: wgtrain chat --adapter {named}"
    return f"use it: wgtrain generate --adapter {named} --prompt TEXT"


def in_words(error: BaseException, folder: RunFolder) -> str:
    """An error; of a run that became not finite, with the last good checkpoint."""
    if isinstance(error, NonFiniteError):
        last = next((str(path) for _, path in folder.checkpoints()), "none was written yet")
        return f"{error}; last good checkpoint: {last}"
    return str(error) if isinstance(error, WgtrainError) else f"{type(error).__name__}: {error}"
