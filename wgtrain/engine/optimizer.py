"""AdamW over the arenas of what trains: its moments, the program of an update, and the reports that
updates leave in a ring on the GPU.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Required, TypedDict, Unpack

import numpy as np

from wgtrain.engine.graph import Graph, Storage, Window
from wgtrain.engine.structs import CONTROL, IDLE_UPDATE, REPORT, step_bytes
from wgtrain.engine.trainables import Arena, Trainables
from wgtrain.gpu import Device

RING = 64  # reports on the GPU; more updates than this must not pass between two reads
_GROUPS = 512  # workgroups at most, and partial sums, of grad_norm for each arena segment


@dataclass(frozen=True)
class Report:
    """What one update left: mean loss over the window before it, gradient norm before clipping."""

    step: int
    loss: float
    count: int
    grad_norm: float
    finite: bool


class Settings(TypedDict, total=False):
    """Of one update: by default no decay, no clipping, betas 0.9 and 0.999, eps 1e-8."""

    learning_rate: Required[float]
    weight_decay: float  # decoupled
    max_grad_norm: float  # 0 = no clipping
    betas: tuple[float, float]
    eps: float


class AdamW:
    """Clipping and AdamW (Loshchilov & Hutter) for all parameters of `trainables`.

    `totals`: the window's summed loss and its count, by which gradients are divided. Nothing is
    changed any more once a loss or a norm was not finite.
    """

    def __init__(self, trainables: Trainables[Any], totals: Window):
        self._trainables, self._totals = trainables, totals
        self.first = Arena(trainables.layout, "first moments", "optimizer")
        self.second = Arena(trainables.layout, "second moments", "optimizer")
        segments = len(trainables.layout.sizes)
        self._control = Storage("control", "reports", CONTROL.itemsize)
        self._partials = Storage("partials", "reports", 4 * _GROUPS * segments)
        self._ring = Storage("ring", "reports", REPORT.itemsize * RING)
        self._device: Device | None = None
        self._steps: list[int] = []  # updates since `reports` was called

    @property
    def storages(self) -> list[Storage]:
        """All it needs beside values and gradients."""
        own = [self._control, self._partials, self._ring]
        return [*self.first.storages, *self.second.storages, *own]

    def record(self, graph: Graph) -> None:
        """Records an update: norm, report and clipping factor, AdamW; gradients end as zero."""
        sizes = self._trainables.layout.sizes
        gradients = self._trainables.gradients.storages
        control, partials = self._control.window(), self._partials.window()
        for i, (storage, size) in enumerate(zip(gradients, sizes, strict=True)):
            operands = {"grads": storage.window(), "partials": partials}
            params = {"n4": size // 16, "first": i * _GROUPS}
            graph.launch("grad_norm", operands, params, {"GROUPS": _GROUPS})
        report = {"totals": self._totals, "control": control, "ring": self._ring.window()}
        count = _GROUPS * len(sizes)
        graph.launch("finish_step", {"partials": partials, **report}, {"partial_count": count})
        values = self._trainables.values.storages
        sets = zip(values, gradients, self.first.storages, self.second.storages, strict=True)
        names = ("params_arena", "grads", "first_moment", "second_moment")
        for set_, size in zip(sets, sizes, strict=True):
            operands = {name: storage.window() for name, storage in zip(names, set_, strict=True)}
            graph.launch("adamw", {"control": control, **operands}, {"n4": size // 16})

    def open(self, device: Device) -> None:
        """Its storages have buffers from now on."""
        self._device = device
        self.first.open(device)
        self.second.open(device)

    def forget(self) -> None:
        """Opening is done: see `Arena.forget`."""
        self.first.forget()
        self.second.forget()

    def close(self) -> None:
        """Its buffers are gone."""
        self._device = None
        self.first.close()
        self.second.close()

    def step(self, number: int, **settings: Unpack[Settings]) -> bytes:
        """The step uniform of update `number` (from 1), whose place in the ring has to be free."""
        taken = {step % RING for step in self._steps}
        assert number % RING not in taken, "reports() has to be read in between"
        rate, decay = settings["learning_rate"], settings.get("weight_decay", 0.0)
        betas = settings.get("betas", (0.9, 0.999))
        return step_bytes(
            slot=number % RING,
            learning_rate=rate,
            keep=1 - rate * decay,
            max_grad_norm=settings.get("max_grad_norm", 0.0),
            beta1=betas[0],
            beta2=betas[1],
            rest1=1 - betas[0],
            rest2=1 - betas[1],
            correction1=1 - betas[0] ** number,
            correction2=1 - betas[1] ** number,
            epsilon=settings.get("eps", 1e-8),
        )

    def queued(self, number: int) -> None:
        """Update `number` is on its way: its report will be read."""
        self._steps.append(number)

    def idle_step(self) -> bytes:
        """The step uniform of an update that changes nothing and leaves no report."""
        return step_bytes(slot=(max(self._steps, default=0) + 1) % RING, **IDLE_UPDATE)

    async def reports(self, steps: Sequence[int] | None = None) -> list[Report]:
        """The reports of all updates since the last call, oldest first, or of `steps`; none if its
        buffers are gone.
        """
        steps = self._steps if steps is None else steps
        if not steps or self._device is None:
            return []
        kept = np.frombuffer(await self._device.read(self._ring.live, 0, self._ring.size), REPORT)
        rows = [kept[step % RING] for step in steps]
        found = [
            Report(
                step,
                float(row["loss"]),
                int(row["count"]),
                float(row["norm"]),
                bool(row["finite"]),
            )
            for step, row in zip(steps, rows, strict=True)
        ]
        self._steps = []
        return found

    def reset(self) -> None:
        """Forgets unread reports and the latch of one that was not finite."""
        self._steps = []
        if self._device is not None:
            self._device.write(self._control.live, 0, bytes(self._control.size))
