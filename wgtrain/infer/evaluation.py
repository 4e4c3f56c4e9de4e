"""The loss of token rows under a model and a stack of adapters: forward passes alone, by the
operations that training's loss is made of; of logits nothing is read back.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from wgtrain.data import Batch, Dataset, Row, check_vocabulary, in_batches
from wgtrain.engine.graph import Graph, Storage
from wgtrain.engine.inputs import InputBuffer
from wgtrain.engine.linear import Adapter
from wgtrain.engine.loss import chunk_columns, cross_entropy
from wgtrain.engine.ops import gather
from wgtrain.engine.plan import Plan
from wgtrain.engine.structs import RUNNING, TOTALS, step_bytes
from wgtrain.engine.tuning import Tuning
from wgtrain.errors import NonFiniteError, OptionError, OutOfMemoryError
from wgtrain.files.source import shown
from wgtrain.gpu import Device
from wgtrain.infer.plans import build, tuned
from wgtrain.model.base import Base
from wgtrain.model.forward import Network, forward
from wgtrain.model.host import Host
from wgtrain.model.layers import RopeTables

Evaluated = Callable[[int, int], None]  # called with rows done, rows in all
MOST_EXPONENT = 700  # above it there is no such float


@dataclass(frozen=True)
class RowLoss:
    """The loss of the row of a line: mean over its `trained_tokens`."""

    line: int
    loss: float
    trained_tokens: int


@dataclass(frozen=True)
class EvalResult:
    """What an evaluation found. `loss` is the mean over the trained tokens of all rows, in nats,
    `seconds` what it took without compiling, `tokens` all tokens that were read.
    """

    loss: float
    trained_tokens: int
    tokens: int
    seconds: float
    rows: tuple[RowLoss, ...]

    @property
    def perplexity(self) -> float | None:
        """exp(loss); None where no float is as large."""
        return perplexity(self.loss)

    def __repr__(self) -> str:
        return (
            f"<EvalResult: loss {self.loss:.4f}, {self.trained_tokens} trained tokens of "
            f"{len(self.rows)} rows>"
        )


def perplexity(loss: float) -> float | None:
    """exp(loss); None where no float is as large."""
    return math.exp(loss) if loss < MOST_EXPONENT else None


def perplexity_in_words(value: float | None, digits: int = 4) -> str:
    """What `perplexity` gave, as people read it."""
    return "beyond all numbers" if value is None else f"{value:,.{digits}g}"


class Evaluator:
    """The compiled plan of an evaluation, for batches of up to `max_tokens` tokens with rows of up
    to `max_row`; `tuning`: a table in place of the base's. Nothing is allocated before `open`.
    """

    def __init__(
        self,
        device: Device,
        base: Base,
        beside: Mapping[str, tuple[Adapter, ...]],
        max_tokens: int,
        max_row: int,
        tuning: Tuning | None = None,
    ):
        config, base = base.config, base.tuned(tuning, device)
        self._device, self.tuning = device, base.tuning
        self._inputs = InputBuffer(max_tokens, config.windows)
        self._ropes = RopeTables(config.layers, max_row)
        self._totals = Storage("totals", "reports", TOTALS.itemsize)
        self._running = Storage("losses", "reports", max_tokens * RUNNING.itemsize)
        graph = Graph(training=False, tuning=base.tuning)
        net = Network(config, base.weights, beside, self._ropes.windows)
        inputs = self._inputs.inputs
        hidden = forward(graph, net, inputs)
        cross_entropy(
            graph,
            gather(graph, hidden, inputs.trained, inputs.where),
            net.head,
            inputs,
            self._totals.window(),
            chunk_columns(config.vocabulary, max_tokens),
            config.softcap,
            self._running.window(),
        )
        storages = [self._inputs.storage, self._ropes.storage, self._totals, self._running]
        self.plan = Plan({"evaluate": graph}, storages, max_tokens)

    async def open(self) -> None:
        """Allocates and compiles; OutOfMemoryError where it does not fit."""
        await build(self.plan, self._ropes, self._device)

    async def losses(self, batch: Batch) -> tuple[float, np.ndarray]:
        """The summed loss of a batch, as training sums it, and of each trained token its loss,
        float64 (C,).
        """
        self._device.write(self._totals.live, 0, bytes(TOTALS.itemsize))
        trained = self._inputs.write(
            self._device, batch.tokens, batch.starts, batch.ends, batch.targets
        )
        counts = len(batch.tokens), trained
        self.plan.run("evaluate", step_bytes(*counts), *counts)
        data = await self._device.read(self._totals.live, 0, TOTALS.itemsize)
        (totals,) = np.frombuffer(data, TOTALS)
        data = await self._device.read(self._running.live, 0, trained * RUNNING.itemsize)
        running = np.frombuffer(data, RUNNING)
        with np.errstate(all="ignore"):
            total = np.log(running["total"].astype(np.float64))
            each = total + running["highest"] - running["target_logit"]
        return float(totals["loss"]), each

    def close(self) -> None:
        """Frees its buffers."""
        self.plan.close()


async def evaluator_for(
    device: Device,
    base: Base,
    beside: Mapping[str, tuple[Adapter, ...]],
    rows: Sequence[Row],
    batch_size: int,
    host: Host,
) -> Evaluator:
    """An open evaluator for these rows, with the kernels that the host knows for it;
    OutOfMemoryError where it does not fit, with the batch size that does, if one is known to.
    """

    def planned(size: int, tuning: Tuning | None = None) -> Evaluator:
        return Evaluator(device, base, beside, *bounds(rows, size), tuning)

    replays = -(-len(rows) // batch_size)
    made = tuned(partial(planned, batch_size), device, host, bounds(rows, 1)[1], replays)
    try:
        made.plan.check(device)
    except OutOfMemoryError as error:
        for size in (batch_size >> i for i in range(1, batch_size.bit_length())):
            try:
                planned(size, made.tuning).plan.check(device)
            except OutOfMemoryError:
                continue
            raise OutOfMemoryError(f"{error}\nbatch_size = {size} fits") from None
        raise
    await made.open()
    return made


def check_rows(rows: Any, batch_size: Any, vocabulary: int) -> None:
    """OptionError for what are no rows or no batch size, FileError for rows of other tokens."""
    if not isinstance(rows, Dataset):
        raise OptionError(f"rows: {shown(rows)}: load them first, with wgtrain.load_dataset")
    if not rows.rows:
        raise OptionError(f"{rows.name}: no row with a token that counts")
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise OptionError(
            f"batch_size = {shown(batch_size)}: allowed is a whole number, at least 1"
        )
    check_vocabulary(rows, vocabulary)


def bounds(rows: Sequence[Row], batch_size: int) -> tuple[int, int]:
    """(tokens of the largest batch, of the longest row) of rows in their order."""
    sizes = [len(row.tokens) for row in rows]
    batches = [sum(sizes[i : i + batch_size]) for i in range(0, len(sizes), batch_size)]
    return max(batches), max(sizes)


async def evaluate_rows(
    evaluator: Evaluator, rows: Sequence[Row], batch_size: int, progress: Evaluated, name: str
) -> EvalResult:
    """The losses of rows of the file `name` in their order, `batch_size` at once, under an open
    evaluator; NonFiniteError names rows whose loss is no number.
    """
    began = time.perf_counter()
    total, count, tokens = 0.0, 0, 0
    found: list[RowLoss] = []
    for i, batch in enumerate(in_batches(rows, batch_size)):
        loss, each = await evaluator.losses(batch)
        total, count, tokens = total + loss, count + len(each), tokens + len(batch.tokens)
        first, first_row = 0, len(found)
        for row in rows[i * batch_size : (i + 1) * batch_size]:
            trained = int((row.targets >= 0).sum())
            mean = float(each[first : first + trained].mean())
            found.append(RowLoss(row.line, mean, trained))
            first += trained
        wrong = [row.line for row in found[first_row:] if not math.isfinite(row.loss)]
        if wrong or not math.isfinite(loss):
            named = wrong or [row.line for row in found[first_row:]]
            lines = ", ".join(map(str, named))
            raise NonFiniteError(f"{name}: the loss is {loss}, in the rows of lines {lines}")
        progress(len(found), len(rows))
    return EvalResult(total / count, count, tokens, time.perf_counter() - began, tuple(found))
