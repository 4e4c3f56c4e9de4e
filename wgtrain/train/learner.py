"""The compiled training plan of a base model, of what trains beside it and of an objective; knows
nothing of files, data sets or schedules.

One replay of "micro" is forward and backward of a batch, adding to gradients and loss; one of
"update" clips, applies AdamW and leaves a report in a ring that is read some steps later.
"""

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Unpack

import numpy as np

from wgtrain.data.batches import Batch
from wgtrain.engine.graph import Graph, Launch, Storage
from wgtrain.engine.inputs import InputBuffer
from wgtrain.engine.optimizer import AdamW, Report, Settings
from wgtrain.engine.plan import SUBMIT_SECONDS, Plan
from wgtrain.engine.structs import TOTALS, step_bytes
from wgtrain.engine.trainables import Arena, Trainables
from wgtrain.engine.tuning import Tuning
from wgtrain.errors import DeviceLostError
from wgtrain.files import resolve_targets
from wgtrain.gpu import Device, Room
from wgtrain.model.base import Base
from wgtrain.model.forward import Network, Trained, forward
from wgtrain.model.layers import RopeTables, long_rotations
from wgtrain.model.lora import lora_trainables, target_tensors
from wgtrain.train.config import LoraConfig
from wgtrain.train.objectives import NextToken, Objective


@dataclass(frozen=True)
class Accumulated:
    """What the micro-batches of a window left: gradients of the summed loss by parameter, f32, that
    sum, and the count by which both will be divided. Those of several learners add up.
    """

    gradients: dict[str, np.ndarray]
    loss: float
    count: int

    def __add__(self, other: "Accumulated") -> "Accumulated":
        assert self.gradients.keys() == other.gradients.keys()
        gradients = {name: g + other.gradients[name] for name, g in self.gradients.items()}
        loss = float(np.float32(self.loss) + np.float32(other.loss))
        return Accumulated(gradients, loss, self.count + other.count)


class Learner:
    """Plan and state of one training run for streams of up to `max_tokens` tokens, rows up to
    `max_row`.

    Construction plans memory (`nbytes`, `plan`), for which no `device` is needed; `build` allocates
    and compiles there, and everything asynchronous builds first. `micro` and `update` only queue
    work.
    """

    def __init__(
        self,
        base: Base,
        trainables: Trainables[Trained],
        objective: Objective,
        *,
        max_tokens: int,
        max_row: int,
        device: Device | None = None,
        grad_checkpoint: bool = False,
        capture: str = "f32",
    ):
        self.trainables, self.max_row, self.tuning = trainables, max_row, base.tuning
        self._device, self._objective = device, objective
        self._inputs = InputBuffer(max_tokens, base.config.windows, objective.inputs)
        self._ropes = RopeTables(base.config.layers, max_row)
        self.notes = long_rotations(base.config.layers, max_row)  # what a person is told
        self._totals = Storage("totals", "reports", TOTALS.itemsize)
        self._evaluation = Storage("evaluation", "reports", TOTALS.itemsize)
        self.optimizer = AdamW(trainables, self._totals.window())

        def record(graph: Graph, totals: Storage) -> Graph:
            made = trainables.made(graph.training)
            trained = {name: (it,) for name, it in made.items()}
            net = Network(base.config, base.weights, trained, self._ropes.windows)
            inputs = self._inputs.inputs
            hidden = forward(graph, net, inputs, grad_checkpoint)
            objective.record(graph, net, hidden, inputs, totals.window(), max_tokens)
            graph.backward()
            return graph

        graphs = {
            "micro": record(Graph(capture=capture, tuning=base.tuning), self._totals),
            "evaluate": record(Graph(training=False, tuning=base.tuning), self._evaluation),
            "update": Graph(training=False),
        }
        self.optimizer.record(graphs["update"])
        storages = [
            *trainables.values.storages,
            *trainables.gradients.storages,
            *self.optimizer.storages,
            self._inputs.storage,
            self._ropes.storage,
            self._totals,
            self._evaluation,
        ]
        self.plan = Plan(graphs, storages, max_tokens)
        self._built = self._closed = False
        self._work = self._since = 0.0

    @property
    def device(self) -> Device:
        """Where it is built."""
        assert self._device is not None, "this learner is only planned"
        return self._device

    @property
    def shapes(self) -> dict[str, tuple[int, int]]:
        """The parameters, name -> (rows, columns)."""
        return self.trainables.layout.shapes

    @property
    def parameter_count(self) -> int:
        """Values that train."""
        return self.trainables.layout.count

    @property
    def nbytes(self) -> int:
        """Bytes of GPU memory the plan takes, beside the model's weights."""
        return self.plan.nbytes

    def check(self, device: Room) -> None:
        """Raises OutOfMemoryError where it does not fit; nothing is allocated."""
        if not self._built:
            self.plan.check(device)

    def take_over(self, other: "Learner") -> None:
        """Begins with what was set of another that was never built."""
        for mine, theirs in zip(self._arenas(), other._arenas(), strict=True):
            mine.set(theirs.pending)

    def _arenas(self) -> tuple[Arena, ...]:
        return self.trainables.values, self.optimizer.first, self.optimizer.second

    async def build(self) -> None:
        """Allocates and compiles, once; OutOfMemoryError where it does not fit."""
        if self._closed:
            raise DeviceLostError("the trainer was closed: its adapter is gone from the GPU")
        if self._built:
            return
        try:
            await self.plan.build(self.device)
            self._ropes.write(self.device)
            for part in (self.trainables, self.optimizer):
                part.open(self.device)
            self._built = True
        except BaseException:  # of an interrupt too: half a plan would train on zeros
            self._free()
            raise
        for part in (self.trainables, self.optimizer):
            part.forget()

    def set_parameters(self, tensors: Mapping[str, np.ndarray]) -> None:
        """Sets parameters by name, f32 of `shapes`."""
        self.trainables.values.set(tensors)

    def set_moments(
        self, first: Mapping[str, np.ndarray], second: Mapping[str, np.ndarray]
    ) -> None:
        """Sets AdamW's moments by name."""
        self.optimizer.first.set(first)
        self.optimizer.second.set(second)

    def reset(self) -> None:
        """Forgets a window that was begun, unread reports and the latch of one not finite."""
        self.optimizer.reset()
        self.drop_window()

    def drop_window(self) -> None:
        """Forgets the micro-batches since the last update."""
        self.trainables.gradients.clear()
        if self._built:
            self._write_totals(self._totals)

    async def window_count(self) -> int:
        """The count of the window alone; an update leaves 0."""
        await self.build()
        return (await self._read_totals(self._totals))[1]

    async def parameters(self) -> dict[str, np.ndarray]:
        """The parameters, f32."""
        await self.build()
        return await self.trainables.values.read()

    async def gradients(self) -> dict[str, np.ndarray]:
        """The gradients of the current window, f32: of the summed loss, not of its mean."""
        await self.build()
        return await self.trainables.gradients.read()

    async def moments(self) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """AdamW's first and second moments."""
        await self.build()
        return await self.optimizer.first.read(), await self.optimizer.second.read()

    async def window(self) -> Accumulated:
        """What `micro` has left since the last update."""
        gradients = await self.gradients()
        return Accumulated(gradients, *await self._read_totals(self._totals))

    def set_window(self, window: Accumulated) -> None:
        """Puts a window, of other learners for example, in the place of its own."""
        assert self._built, "build() first"
        assert window.gradients.keys() == self.shapes.keys()
        self.trainables.gradients.set(window.gradients)
        self._write_totals(self._totals, loss=window.loss, count=window.count)

    async def _read_totals(self, storage: Storage) -> tuple[float, int]:
        data = await self.device.read(storage.live, 0, storage.size)
        (totals,) = np.frombuffer(data, TOTALS)
        return float(totals["loss"]), int(totals["count"])

    def _write_totals(self, storage: Storage, loss: float = 0.0, count: int = 0) -> None:
        self.device.write(storage.live, 0, np.array((loss, count), TOTALS).tobytes())

    def micro(self, batch: Batch, *, dropout_key: int = 0) -> None:
        """Queues forward and backward of one batch."""
        self._queue("micro", batch, dropout_key)

    def _queue(self, program: str, batch: Batch, dropout_key: int = 0) -> None:
        if not self._work:  # what passed before, without work, tells nothing of this adapter
            self._since = time.perf_counter()
        self.plan.run(program, *self._write(batch, dropout_key))
        self._work += self.plan.total_work(program, len(batch.tokens))

    def _write(self, batch: Batch, dropout_key: int = 0) -> tuple[bytes, int, int]:
        """Queues a batch's arrays; what a replay takes: step uniform, T and C."""
        more = self._objective.arrays(batch)
        trained = self._inputs.write(
            self.device, batch.tokens, batch.starts, batch.ends, batch.targets, more
        )
        counts = len(batch.tokens), trained
        return step_bytes(*counts, dropout_key=dropout_key), *counts

    async def profile(self, batch: Batch) -> list[tuple[Launch, float]]:
        """Replays one step launch by launch, with the seconds each took on the GPU.

        It ends a window as `update` does, without a report; parameters and moments stay.
        """
        micro = await self.plan.profile("micro", *self._write(batch))
        return micro + await self.plan.profile("update", self.optimizer.idle_step(), 0, 0)

    def update(self, *, step: int, **settings: Unpack[Settings]) -> None:
        """Queues clipping and AdamW for optimizer step `step` (from 1); ends the window. One
        submit: where this is interrupted, all of it is queued or nothing.
        """
        self.plan.run("update", self.optimizer.step(step, **settings), 0, 0, whole=True)
        self.optimizer.queued(step)

    async def reports(self, steps: Sequence[int] | None = None) -> list[Report]:
        """The reports of all updates since the last call, oldest first; or those of `steps`, as
        often as they are asked for while fewer than `RING` updates follow.
        """
        found = await self.optimizer.reports(steps)
        if found:
            self._calibrate()
        return found

    def _calibrate(self) -> None:
        """Adjusts how much work goes into one submit by how long the last steps took."""
        seconds = time.perf_counter() - self._since
        if self._work and seconds > 0:
            self.plan.work_limit = self._work / seconds * SUBMIT_SECONDS
        self._work = 0.0

    async def evaluate(self, batches: Iterable[Batch]) -> tuple[float, int]:
        """(summed loss, count) of the batches, without dropout; changes nothing."""
        await self.build()
        loss, count = 0.0, 0
        for batch in batches:
            self._write_totals(self._evaluation)
            self._queue("evaluate", batch)
            found = await self._read_totals(self._evaluation)
            loss, count = loss + found[0], count + found[1]
        self._work = 0.0
        return loss, count

    def close(self) -> None:
        """Frees its buffers, for good; the model stays."""
        self._closed = True
        self._free()

    def _free(self) -> None:
        self._built = False
        self.plan.close()
        for part in (self.trainables, self.optimizer):
            part.close()


def lora_learner(
    base: Base,
    lora: LoraConfig,
    *,
    device: Device | None = None,
    tuning: Tuning | None = None,
    **options: Any,
) -> Learner:
    """A learner of next tokens with a LoRA adapter; `options` are those of `Learner`. `tuning`: a
    table in place of the base's.
    """
    config = base.config
    blocks = lora.layer_indices(config.n_layer)
    bases = target_tensors(
        config, resolve_targets(lora.target_modules, config.block_linears), blocks
    )
    scale = lora.alpha / lora.rank
    trainables = lora_trainables(bases, base.limits, lora.rank, scale, lora.dropout)
    base = base.tuned(tuning, device)
    return Learner(base, trainables, NextToken(), device=device, **options)
