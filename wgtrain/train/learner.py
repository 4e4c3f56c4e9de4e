"""The compiled training plan of a model with a LoRA adapter; knows nothing of files, data sets or
schedules.

One replay of "micro" is forward and backward of a batch, adding to gradients and loss; one of
"update" clips, applies AdamW and leaves a report in a ring that is read some steps later.
"""

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from wgtrain.data.batches import Batch
from wgtrain.engine.arena import Arena
from wgtrain.engine.graph import Graph, Launch, Storage
from wgtrain.engine.inputs import InputBuffer
from wgtrain.engine.loss import chunk_columns, cross_entropy
from wgtrain.engine.ops import gather
from wgtrain.engine.plan import Plan
from wgtrain.engine.structs import CONTROL, IDLE_UPDATE, REPORT, TOTALS, step_bytes
from wgtrain.engine.tuning import Tuning, default_tuning, fitted
from wgtrain.errors import DeviceLostError
from wgtrain.files import resolve_targets
from wgtrain.model.forward import Network, forward
from wgtrain.model.lora import adapter_shapes, make_lora, target_tensors
from wgtrain.train.config import LoraConfig

RING = 64  # reports on the GPU; more updates than this must not pass between two reads
SUBMIT_SECONDS = 0.1  # a desktop's watchdog ends a submit of two seconds
_GROUPS = 512  # workgroups at most, and partial sums, of grad_norm for each arena segment


@dataclass(frozen=True)
class Report:
    """What one update left: mean loss over the window before it, gradient norm before clipping."""

    step: int
    loss: float
    count: int
    grad_norm: float
    finite: bool


class Learner:
    """Plan and state of one training run for streams of up to `max_tokens` tokens, rows up to
    `max_row`.

    Construction plans memory (`nbytes`, `plan`); `build` allocates and compiles, and everything
    asynchronous builds first. `micro` and `update` only queue work.
    """

    def __init__(
        self,
        model: Any,
        lora: LoraConfig,
        *,
        max_tokens: int,
        max_row: int,
        grad_checkpoint: bool = False,
        capture: str = "f32",
        tuning: Tuning | None = None,
    ):
        self.device, self.max_row = model.device, max_row
        self.tuning = fitted(tuning, self.device) if tuning else default_tuning(self.device)
        config = model.config
        bases = target_tensors(
            config, resolve_targets(lora.target_modules), lora.layer_indices(config.n_layer)
        )
        self._arena = Arena(adapter_shapes(bases, lora.rank), self.device.limits)
        self.shapes = self._arena.shapes
        self.parameter_count = sum(rows * columns for rows, columns in self.shapes.values())
        self._values = self._arena.storages("parameters", "adapter")
        self._gradients = self._arena.storages("gradients", "gradients")
        self._first = self._arena.storages("first moments", "optimizer")
        self._second = self._arena.storages("second moments", "optimizer")
        self._inputs = InputBuffer(max_tokens)
        self._rope = config.rope_table(max_row)
        self._rope_storage = Storage("rotary table", "inputs", self._rope.nbytes)
        segments = len(self._arena.sizes)
        self._small = {
            "totals": Storage("totals", "reports", TOTALS.itemsize),
            "evaluation": Storage("evaluation", "reports", TOTALS.itemsize),
            "control": Storage("control", "reports", CONTROL.itemsize),
            "partials": Storage("partials", "reports", 4 * _GROUPS * segments),
            "ring": Storage("ring", "reports", REPORT.itemsize * RING),
        }
        columns = chunk_columns(config.vocabulary, max_tokens)
        scale = lora.alpha / lora.rank

        def network(gradients: list[Storage] | None) -> Network:
            dropout = lora.dropout if gradients else 0.0
            loras = {
                name: (make_lora(name, self._arena, self._values, gradients, scale, dropout),)
                for name in bases
            }
            return Network(config, model.weights, loras, self._rope_storage.window())

        def loss(graph: Graph, net: Network, totals: str) -> None:
            inputs = self._inputs.inputs
            hidden = forward(graph, net, inputs, grad_checkpoint)
            trained = gather(graph, hidden, inputs.trained, inputs.where)
            head = config.head_name
            weight, loras = net.weights.matrices[head], net.loras.get(head, ())
            cross_entropy(
                graph, trained, weight, loras, inputs, self._small[totals].window(), columns
            )

        micro = Graph(capture=capture, tuning=self.tuning)
        loss(micro, network(self._gradients), "totals")
        micro.backward()
        evaluate = Graph(training=False, tuning=self.tuning)
        loss(evaluate, network(None), "evaluation")
        graphs = {"micro": micro, "evaluate": evaluate, "update": self._update_graph()}
        storages = [
            *self._values,
            *self._gradients,
            *self._first,
            *self._second,
            self._inputs.storage,
            self._rope_storage,
            *self._small.values(),
        ]
        self.plan = Plan(graphs, storages, max_tokens)
        self._built = self._closed = False
        self._pending: list[tuple[list[Storage], dict[str, np.ndarray]]] = []
        self._steps: list[int] = []
        self._slot = 0
        self._work = self._since = 0.0

    def _update_graph(self) -> Graph:
        graph = Graph(training=False)
        small = {name: storage.window() for name, storage in self._small.items()}
        for i, (storage, size) in enumerate(zip(self._gradients, self._arena.sizes, strict=True)):
            operands = {"grads": storage.window(), "partials": small["partials"]}
            graph.launch(
                "grad_norm", operands, {"n4": size // 16, "first": i * _GROUPS}, {"GROUPS": _GROUPS}
            )
        ring = {name: small[name] for name in ("partials", "totals", "control", "ring")}
        graph.launch("finish_step", ring, {"partial_count": _GROUPS * len(self._arena.sizes)})
        sets = zip(self._values, self._gradients, self._first, self._second, strict=True)
        for values, gradients, first, second in sets:
            operands = {
                "control": small["control"],
                "params_arena": values.window(),
                "grads": gradients.window(),
                "first_moment": first.window(),
                "second_moment": second.window(),
            }
            graph.launch("adamw", operands, {"n4": values.size // 16})
        return graph

    @property
    def nbytes(self) -> int:
        """Bytes of GPU memory the plan takes, beside the model's weights."""
        return self.plan.nbytes

    async def build(self) -> None:
        """Allocates and compiles, once; OutOfMemoryError where it does not fit."""
        if self._closed:
            raise DeviceLostError("the trainer was closed: its adapter is gone from the GPU")
        if self._built:
            return
        await self.plan.build(self.device)
        self._built = True
        assert self._rope_storage.buffer is not None
        self.device.write(self._rope_storage.buffer, 0, self._rope)
        for storages, tensors in self._pending:
            self._arena.write(self.device, storages, tensors)
        self._pending = []

    def set_parameters(self, tensors: Mapping[str, np.ndarray]) -> None:
        """Sets adapter matrices by name, f32 of `shapes`."""
        self._set(self._values, tensors)

    def set_moments(
        self, first: Mapping[str, np.ndarray], second: Mapping[str, np.ndarray]
    ) -> None:
        """Sets AdamW's moments by name."""
        self._set(self._first, first)
        self._set(self._second, second)

    def _set(self, storages: list[Storage], tensors: Mapping[str, np.ndarray]) -> None:
        if self._built:
            self._arena.write(self.device, storages, tensors)
        else:
            self._pending.append((storages, dict(tensors)))

    def reset(self) -> None:
        """Forgets a window that was begun, unread reports and the latch of one not finite."""
        self._steps = []
        if self._built:
            for storage in (*self._gradients, self._small["totals"], self._small["control"]):
                assert storage.buffer is not None
                self.device.write(storage.buffer, 0, bytes(storage.size))

    async def parameters(self) -> dict[str, np.ndarray]:
        """The adapter matrices, f32."""
        return await self._read(self._values)

    async def gradients(self) -> dict[str, np.ndarray]:
        """The gradients of the current window, f32: of the summed loss, not of its mean."""
        return await self._read(self._gradients)

    async def moments(self) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """AdamW's first and second moments."""
        return await self._read(self._first), await self._read(self._second)

    async def _read(self, storages: list[Storage]) -> dict[str, np.ndarray]:
        await self.build()
        return await self._arena.read(self.device, storages)

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
        assert self._built, "build() first"
        trained = self._inputs.write(
            self.device, batch.tokens, batch.starts, batch.ends, batch.targets
        )
        counts = len(batch.tokens), trained
        return step_bytes(*counts, dropout_key=dropout_key), *counts

    async def profile(self, batch: Batch) -> list[tuple[Launch, float]]:
        """Replays one step launch by launch, with the seconds each took on the GPU.

        It ends a window as `update` does, without a report; parameters and moments stay.
        """
        micro = await self.plan.profile("micro", *self._write(batch))
        step = step_bytes(slot=self._slot, **IDLE_UPDATE)
        return micro + await self.plan.profile("update", step, 0, 0)

    def update(
        self,
        *,
        step: int,
        learning_rate: float,
        weight_decay: float = 0.0,
        max_grad_norm: float = 0.0,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ) -> None:
        """Queues clipping (0 = none) and AdamW for optimizer step `step` (from 1); ends the
        window.
        """
        assert self._built, "build() first"
        assert len(self._steps) < RING, "reports() has to be read in between"
        block = step_bytes(
            slot=self._slot,
            learning_rate=learning_rate,
            keep=1 - learning_rate * weight_decay,
            max_grad_norm=max_grad_norm,
            beta1=betas[0],
            beta2=betas[1],
            rest1=1 - betas[0],
            rest2=1 - betas[1],
            correction1=1 - betas[0] ** step,
            correction2=1 - betas[1] ** step,
            epsilon=eps,
        )
        self.plan.run("update", block, 0, 0)
        self._steps.append(step)
        self._slot = (self._slot + 1) % RING

    async def reports(self) -> list[Report]:
        """The reports of all updates since the last call, oldest first."""
        ring = self._small["ring"].buffer
        if not self._steps or ring is None:
            return []
        kept = np.frombuffer(await self.device.read(ring, 0, ring.size), REPORT)
        first = self._slot - len(self._steps)
        rows = [kept[(first + i) % RING] for i in range(len(self._steps))]
        found = [
            Report(
                step,
                float(row["loss"]),
                int(row["count"]),
                float(row["norm"]),
                bool(row["finite"]),
            )
            for step, row in zip(self._steps, rows, strict=True)
        ]
        self._steps = []
        self._calibrate()
        return found

    def _calibrate(self) -> None:
        """Adjusts how much work goes into one submit by how long the last steps took."""
        seconds = time.perf_counter() - self._since
        if self._work and seconds > 0:
            self.plan.work_limit = self._work / seconds * SUBMIT_SECONDS
        self._work = 0.0

    async def evaluate(self, batches: Iterable[Batch]) -> tuple[float, int]:
        """(summed loss, trained tokens) of the batches, without dropout; changes nothing."""
        await self.build()
        buffer = self._small["evaluation"].buffer
        assert buffer is not None
        loss, count = 0.0, 0
        for batch in batches:
            self.device.write(buffer, 0, bytes(buffer.size))
            self._queue("evaluate", batch)
            (totals,) = np.frombuffer(await self.device.read(buffer, 0, buffer.size), TOTALS)
            loss += float(totals["loss"])
            count += int(totals["count"])
        self._work = 0.0
        return loss, count

    def close(self) -> None:
        """Frees its buffers, for good; the model stays."""
        self.plan.close()
        self._built, self._closed = False, True
