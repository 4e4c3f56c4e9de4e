"""The steps of a run: each counts as one, rows and gradients, or not at all."""

import math
import time
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from wgtrain import random
from wgtrain.data import Batch, Dataset
from wgtrain.errors import NonFiniteError, OptionError, WgtrainError
from wgtrain.model.host import Loaded
from wgtrain.model.lora import initial_parameters
from wgtrain.train.config import TrainConfig
from wgtrain.train.learner import Learner
from wgtrain.train.results import Evaluation, Place, Queued, StepResult, Tested, non_finite
from wgtrain.train.samples import Sampler
from wgtrain.train.schedule import Schedule
from wgtrain.train.windows import Windows

# Reports are read after so many steps, or as many as take so long: what is queued cannot be
# cancelled.
MOST_UNREAD, READ_SECONDS = 8, 0.2


class Loop:
    """What `Trainer.run` does. All that moves is `_place`, replaced in one assignment: wherever an
    interrupt comes, the next call finds the step done, or takes back what of it was queued.
    """

    config: TrainConfig
    rows: Dataset
    learner: Learner
    schedule: Schedule
    total_steps: int
    _windows: Windows
    _held: list[Batch]  # for validation
    _sampler: Sampler
    _tests: list[Batch]

    def __init__(self) -> None:
        self._place = Place()
        # While a step is queued: the place behind it, and whether its update has begun.
        self._begun: tuple[Place, bool] | None = None
        # While the base is tested: the parameters that go back then.
        self._aside: dict[str, np.ndarray] | None = None
        self._most_unread = 1
        self._stopping = False
        self._last_read = 0.0

    @property
    def step(self) -> int:
        """Optimizer steps queued so far."""
        return self._place.step

    @property
    def tokens_seen(self) -> int:
        """Tokens of all steps whose results are known, trained or not."""
        return self._place.tokens_seen

    @property
    def elapsed_seconds(self) -> float:
        """Seconds those steps took, with what happened between them."""
        return self._place.elapsed_seconds

    @property
    def evaluations(self) -> list[Evaluation]:
        """All validations so far."""
        return list(self._place.evaluations)

    @property
    def tested(self) -> Tested | None:
        """What `test` found of the adapter as it stands."""
        return self._place.tested

    @property
    def base_samples(self) -> tuple[tuple[str, str], ...]:
        """Prompts of samples with the base's answers, once the run is built."""
        return self._sampler.base

    @property
    def failure(self) -> WgtrainError | None:
        """What ended the run for good, until `restore`."""
        return self._place.failure

    async def _build(self) -> None:
        await self.learner.build()

    async def _start(self) -> None:
        await self._build()
        await self._settle()
        if self.step == 0 and self._held and not (self.evaluations or self.failure):
            self._place = await self._validated(self._place)
        self._last_read = time.perf_counter()

    async def _next(self) -> StepResult | None:
        """The next result, for which steps are queued and reports read; None at the end."""
        while not self._place.ready and not self.failure:
            more = self.step < self.total_steps and not self._stopping
            if self._place.unread and (not more or self._must_read()):
                await self._read()
            elif more:
                self._queue_step()
            else:
                return None
        if not self._place.ready:
            return None
        result, *rest = self._place.ready
        self._place = replace(self._place, ready=tuple(rest))
        return result

    def _queue_step(self) -> None:
        """Queues one optimizer step: forward and backward of each micro-batch, then the update."""
        c, place, step = self.config, self._place, self.step + 1
        batches, at = self._windows.window(place.at)
        rate = self.schedule(step)
        tokens = sum(len(batch.tokens) for batch in batches)
        lines = tuple(line for batch in batches for line in batch.lines)
        queued = Queued(step, self._windows.passed(at), rate, tokens, lines)
        after = replace(place, step=step, at=at, unread=(*place.unread, queued), tested=None)
        self._begun = after, False
        for micro, batch in enumerate(batches):
            self.learner.micro(batch, dropout_key=random.key(c.seed, "dropout", step, micro))
        self._begun = after, True
        self.learner.update(
            step=step,
            learning_rate=rate,
            weight_decay=c.weight_decay,
            max_grad_norm=c.max_grad_norm,
        )
        self._place = after
        self._begun = None

    async def _settle(self) -> None:
        """After an interrupt within `_queue_step`: counts its step where the update was queued, and
        takes the gradients back where not; within `_test`: puts the parameters back. May be
        interrupted itself.
        """
        if self._aside is not None:
            self.learner.set_parameters(self._aside)
            self._aside = None
        if self._begun is None:
            return
        after, updating = self._begun
        if updating and await self.learner.window_count() == 0:
            self._place = after
        else:
            self.learner.drop_window()
        self._begun = None

    def _must_read(self) -> bool:
        return (
            len(self._place.unread) >= self._most_unread
            or time.perf_counter() - self._last_read >= READ_SECONDS
            or self._due(self.config.save_every)
            or self._due_for_validation()
            or self._due_for_samples()
        )

    def _due(self, every: int) -> bool:
        return self.step == self.total_steps or (every > 0 and self.step % every == 0)

    def _due_for_validation(self) -> bool:
        return bool(self._held) and self._due(self.config.eval_every)

    def _due_for_samples(self) -> bool:
        return bool(self._sampler.prompts) and self._due(self.config.sample_every or 0)

    async def _read(self) -> None:
        """Turns the reports of all queued steps into results, with a validation if one is due."""
        place = self._place
        if not place.unread:
            return
        reports = await self.learner.reports([queued.step for queued in place.unread])
        now = time.perf_counter()
        seconds, self._last_read = max(now - self._last_read, 1e-9), now
        most = int(READ_SECONDS * len(place.unread) / seconds)
        self._most_unread = min(max(most, 1), MOST_UNREAD)
        rate = sum(queued.tokens for queued in place.unread) / seconds
        read = place
        for report, queued in zip(reports, place.unread, strict=True):
            if not report.finite:
                read = replace(read, failure=non_finite(report, queued, self.rows.name))
                break
            read = read.with_report(report, queued, rate)
        else:
            if self._due_for_validation():
                read = await self._validated(read)
            if self._due_for_samples() and not read.failure:
                last = replace(read.ready[-1], samples=await self._sampler.take())
                read = replace(read, ready=(*read.ready[:-1], last))
        self._place = replace(read, unread=())

    def _resume_clock(self) -> None:
        """What happens between two results (saving, drawing) counts as elapsed, not as training."""
        now = time.perf_counter()
        if not self._place.ready:
            elapsed = self.elapsed_seconds + now - self._last_read
            self._place = replace(self._place, elapsed_seconds=elapsed)
            self._last_read = now

    async def _validated(self, place: Place) -> Place:
        """A place with a validation added, which its last result names too."""
        loss, count = await self._evaluate()
        if place.ready:
            last = replace(place.ready[-1], eval_loss=loss)
            place = replace(place, ready=(*place.ready[:-1], last))
        if not math.isfinite(loss):
            failure = NonFiniteError(f"step {place.step}: the validation loss is {loss}")
            return replace(place, failure=failure)
        return replace(place, evaluations=(*place.evaluations, Evaluation(place.step, loss, count)))

    async def _evaluate(self) -> tuple[float, int]:
        if not self._held:
            raise OptionError("valid: no validation rows were given")
        total, count = await self.learner.evaluate(self._held)
        return total / count, count

    async def _test(self, progress: Loaded) -> Tested:
        """The base is what an adapter that has not learnt anything leaves of it."""
        n = len(self._tests)

        def batches(first: int) -> Iterator[Batch]:
            for done, batch in enumerate(self._tests, first):
                progress(done, 2 * n)
                yield batch

        if not self._tests:
            raise OptionError("test: no test rows were given")
        total, count = await self.learner.evaluate(batches(0))
        self._aside = await self.learner.parameters()
        self.learner.set_parameters(initial_parameters(self.learner.shapes, self.config.seed))
        base, _ = await self.learner.evaluate(batches(n))
        await self._settle()
        progress(2 * n, 2 * n)
        tested = Tested(base / count, total / count, count)
        if not (math.isfinite(tested.loss) and math.isfinite(tested.base_loss)):
            raise NonFiniteError(
                f"the loss of the test rows is {tested.loss}, with the base {tested.base_loss}"
            )
        self._place = replace(self._place, tested=tested)
        return tested
