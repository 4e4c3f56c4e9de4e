"""What training tells: one result per optimizer step, evaluations, a step that was not finite."""

from dataclasses import dataclass
from typing import Any

from wgtrain.errors import NonFiniteError


@dataclass(frozen=True)
class StepResult:
    """One optimizer step. `loss` is the mean over its trained tokens, before the update.

    `epoch` counts passes over the data, with fractions; `tokens_seen` are all tokens so far,
    trained or not, `tokens_per_second` those of the last few steps without validation.
    """

    step: int
    epoch: float
    loss: float
    learning_rate: float
    grad_norm: float
    trained_tokens: int
    tokens_seen: int
    tokens_per_second: float
    elapsed_seconds: float
    eval_loss: float | None = None


@dataclass(frozen=True)
class Evaluation:
    """Mean loss over the trained tokens of the validation rows after `step` steps."""

    step: int
    loss: float
    count: int


@dataclass(frozen=True)
class Queued:
    """A step whose report is not read yet."""

    step: int
    epoch: float
    learning_rate: float
    tokens: int
    lines: tuple[int, ...]


def non_finite(report: Any, queued: Queued, name: str) -> NonFiniteError:
    """The error of a report that is not finite."""
    lines = sorted(set(queued.lines))
    shown = ", ".join(map(str, lines[:20])) + (", ..." if len(lines) > 20 else "")
    return NonFiniteError(
        f"step {queued.step}: loss {report.loss}, gradient norm {report.grad_norm}, in the rows of "
        f"lines {shown} of {name}; the parameters are those after step {queued.step - 1}"
    )
