"""What training tells: one result per optimizer step, evaluations, a step that was not finite."""

from dataclasses import dataclass, replace

from wgtrain.engine.optimizer import Report
from wgtrain.errors import NonFiniteError, WgtrainError
from wgtrain.train.windows import START, At

EARLY = 100  # steps in which a loss that is not finite points at the learning rate


@dataclass(frozen=True)
class Sample:
    """What the base answers to a prompt, and what it does with the adapter of a step."""

    prompt: str
    base: str
    tuned: str


@dataclass(frozen=True)
class StepResult:
    """One optimizer step. `loss` is the mean over its trained tokens, before the update.

    `epoch` counts passes over the data, with fractions; `tokens_seen` are all tokens so far,
    trained or not, `tokens_per_second` those of the last few steps without validation. `samples`
    are those after the update, where they were due.
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
    samples: tuple[Sample, ...] = ()


@dataclass(frozen=True)
class Evaluation:
    """Mean loss over the trained tokens of the validation rows after `step` steps."""

    step: int
    loss: float
    count: int


@dataclass(frozen=True)
class Tested:
    """Mean losses over the trained tokens of the test rows: of the base alone, with the adapter."""

    base_loss: float
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


@dataclass(frozen=True)
class Place:
    """Where a run stands after `step` steps, before window `at`. A trainer replaces it as a whole,
    so that an interrupt finds a step done or not begun.

    `unread`: steps queued whose reports were not read; `ready`: results that were not yielded;
    `tested`: of the adapter as it stands there.
    """

    step: int = 0
    at: At = START
    tokens_seen: int = 0
    elapsed_seconds: float = 0.0
    unread: tuple[Queued, ...] = ()
    ready: tuple[StepResult, ...] = ()
    evaluations: tuple[Evaluation, ...] = ()
    failure: WgtrainError | None = None
    tested: Tested | None = None

    def with_report(self, report: Report, queued: Queued, rate: float) -> "Place":
        """With the result of a queued step, at `rate` tokens a second."""
        seen, elapsed = self.tokens_seen + queued.tokens, queued.tokens / rate
        result = StepResult(
            queued.step,
            queued.epoch,
            report.loss,
            queued.learning_rate,
            report.grad_norm,
            report.count,
            seen,
            rate,
            self.elapsed_seconds + elapsed,
        )
        return replace(
            self,
            tokens_seen=seen,
            elapsed_seconds=result.elapsed_seconds,
            ready=(*self.ready, result),
        )


def non_finite(report: Report, queued: Queued, name: str) -> NonFiniteError:
    """The error of a report that is not finite."""
    lines = sorted(set(queued.lines))
    shown = ", ".join(map(str, lines[:20])) + (", ..." if len(lines) > 20 else "")
    # The first step's loss is that of the base: no rate has touched it yet.
    early = 1 < queued.step <= EARLY
    hint = f"; so early, a smaller learning rate than {queued.learning_rate:.2g} mostly helps"
    return NonFiniteError(
        f"step {queued.step}: loss {report.loss:.6g}, gradient norm {report.grad_norm:.6g}, in the "
        f"rows of lines {shown} of {name}; the parameters are those after step {queued.step - 1}"
        f"{hint if early else ''}"
    )
