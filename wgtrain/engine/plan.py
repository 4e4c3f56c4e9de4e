"""A recorded graph made ready for replay: buffers assigned, pipelines and bind groups prepared,
memory known.

`Plan` holds programs (named lists of launches) that share one set of temporary buffers, because
only one of them is in use at a time. Temporaries are whole buffers reused by lifetime: WebGPU
forbids binding one buffer readable and writable in a dispatch, even on disjoint ranges.
"""

from bisect import bisect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from wgtrain.engine.graph import Graph, Launch, Storage, Tensor, Window
from wgtrain.engine.structs import STEP
from wgtrain.errors import DeviceLostError, OutOfMemoryError
from wgtrain.gpu import Binding, Buffer, Device, Dispatch, Room, together

_SMALLER = "fewer tokens at once are needed (in training: batch_size, seq_len)"
_KEPT, _SCRATCH = "activations", "scratch"
SUBMIT_SECONDS = 0.1  # a desktop's watchdog ends a submit of two seconds
FIRST_SUBMIT = 2e8  # operand values and multiply-adds of a submit before anything was measured


@dataclass
class Program:
    """One replayable list: what to dispatch, and how large each dispatch is for given T and C."""

    handle: Any
    grids: list[Callable[[int, int], tuple[int, ...]]]
    work: list[float]  # of each dispatch at the plan's largest T
    total_work: float  # their sum
    step: Buffer  # the step uniform

    def counts(self, tokens: int, trained: int) -> np.ndarray:
        """Workgroup counts of every distinct grid, uint32 (grids, 3)."""
        return np.array([grid(tokens, trained) for grid in self.grids], np.uint32)

    def cuts(self, limit: float, scale: float) -> list[int]:
        """Where submits end so that each holds about `limit` work, when the step is `scale` of the
        largest.
        """
        if self.total_work * scale <= limit:
            return []
        cuts, sum_ = [], 0.0
        for index, work in enumerate(self.work):
            if sum_ > 0 and sum_ + work * scale > limit:
                cuts.append(index)
                sum_ = 0.0
            sum_ += work * scale
        return cuts


class Plan:
    """Programs over shared buffers for at most `max_tokens` tokens a step.

    `storages`: everything persistent the programs use and the plan has to create (not the model's
    weights). Sizes are final after construction: `nbytes` is exactly what `build` allocates.
    """

    def __init__(self, graphs: Mapping[str, Graph], storages: Iterable[Storage], max_tokens: int):
        self.max_tokens = max_tokens
        self.storages = list(storages)
        self.launches = {name: _live(graph.launches) for name, graph in graphs.items()}
        self._slot_of: dict[Tensor, int] = {}
        self.slot_sizes: list[int] = []
        self._kept_slots: set[int] = set()  # that hold what a backward pass reads
        for name, launches in self.launches.items():
            self._assign(launches, sum(launch in graphs[name].forward for launch in launches))
        for launches in self.launches.values():
            for launch in launches:
                self._check_aliasing(launch)
        self._uniforms, self._uniform_offsets = self._pack_uniforms()
        self.programs: dict[str, Program] = {}
        self._slots: list[Buffer] = []
        self._small: dict[str, Buffer] = {}  # by the slot they are bound to
        self._owned: list[Buffer] = []

    @property
    def nbytes(self) -> int:
        """Bytes that `build` allocates."""
        return sum(self.by_purpose().values())

    def by_purpose(self) -> dict[str, int]:
        """Bytes by purpose, largest first. "activations" are the buffers in which something stays
        from the forward pass for the backward one, "scratch" those of other temporaries.
        """
        sizes: dict[str, int] = {_KEPT: 0, _SCRATCH: 0}
        for slot, nbytes in enumerate(self.slot_sizes):
            sizes[_KEPT if slot in self._kept_slots else _SCRATCH] += nbytes
        for storage in self.storages:
            sizes[storage.purpose] = sizes.get(storage.purpose, 0) + max(
                -(-storage.size // 4) * 4, 4
            )
        sizes["parameters of kernels"] = len(self._uniforms) + STEP.itemsize
        return dict(sorted(sizes.items(), key=lambda item: -item[1]))

    def largest(self) -> tuple[str, int]:
        """The name and the bytes of the largest part of a buffer that kernels bind at once."""
        operands = {operand for launch in self._all() for operand in launch.operands.values()}
        sizes = [
            (o.nbytes(self.max_tokens), o.name)
            if isinstance(o, Tensor)
            else (o.size, o.storage.name)
            for o in operands
        ]
        size, name = max(sizes)
        return name, size

    def _assign(self, launches: list[Launch], forward: int) -> None:
        """Largest tensors first, each into the smallest buffer that is free while it lives;
        `forward` launches come before the backward pass.
        """
        first, last = _lifetimes(launches)
        sizes: list[int] = []
        taken: list[list[tuple[int, int]]] = []  # sorted (first, last) launches of each buffer
        slots: dict[Tensor, int] = {}
        for tensor in sorted(first, key=lambda t: (-t.nbytes(self.max_tokens), first[t])):
            span = first[tensor], last[tensor]
            for slot in reversed(range(len(sizes))):
                at = bisect(taken[slot], span)
                before, after = taken[slot][at - 1 : at], taken[slot][at : at + 1]
                if (not before or before[0][1] < span[0]) and (not after or after[0][0] > span[1]):
                    break
            else:
                slot, at = len(sizes), 0
                sizes.append(tensor.nbytes(self.max_tokens))
                taken.append([])
            taken[slot].insert(at, span)
            slots[tensor] = slot
        # The k-th largest buffer of every program is the same one.
        order = sorted(range(len(sizes)), key=lambda s: -sizes[s])
        rank = {slot: k for k, slot in enumerate(order)}
        self._slot_of.update({tensor: rank[slot] for tensor, slot in slots.items()})
        self._kept_slots |= {
            rank[slot] for tensor, slot in slots.items() if first[tensor] < forward <= last[tensor]
        }
        ranked = [sizes[slot] for slot in order]
        shared = max(len(ranked), len(self.slot_sizes))
        self.slot_sizes = [
            max(a, b)
            for a, b in zip(
                ranked + [0] * (shared - len(ranked)),
                self.slot_sizes + [0] * (shared - len(self.slot_sizes)),
                strict=True,
            )
        ]

    def _check_aliasing(self, launch: Launch) -> None:
        seen: dict[Any, str] = {}
        for operand, access in launch.accesses():
            key = self._slot_of[operand] if isinstance(operand, Tensor) else operand.storage
            if key in seen and "read_write" in (access, seen[key]):
                raise AssertionError(
                    f"{launch.label} {launch.kernel.name} binds one buffer readable and writable"
                )
            seen[key] = access

    def _pack_uniforms(self) -> tuple[bytes, dict[int, tuple[int, int]]]:
        packed = bytearray()
        known: dict[bytes, tuple[int, int]] = {}
        offsets = {}
        for launch in self._all():
            if launch.kernel.params:
                data = launch.kernel.pack_params(launch.params)
                if data not in known:
                    known[data] = (len(packed), len(data))
                    packed += data.ljust(-(-len(data) // 256) * 256, b"\0")
                offsets[id(launch)] = known[data]
        return bytes(packed), offsets

    def _all(self) -> Iterable[Launch]:
        for launches in self.launches.values():
            yield from launches

    def check(self, device: Room) -> None:
        """Raises OutOfMemoryError where the plan does not fit; nothing is allocated yet."""
        limit = min(device.limits.buffer, device.limits.binding)
        sizes = [(f"activation '{t.name}'", t.nbytes(self.max_tokens)) for t in self._slot_of]
        for name, size in [*sizes, *((f"'{s.name}'", s.size) for s in self.storages)]:
            if size > limit:
                raise OutOfMemoryError(
                    f"{name} of {self.max_tokens:,} tokens needs {size:,} bytes; "
                    f"this adapter allows {limit:,} in one binding: {_SMALLER}"
                )
        most = max([self.max_tokens, *(max(grid) for grid in self._largest_grids())])
        if most > device.limits.workgroups:
            raise OutOfMemoryError(
                f"a step of {self.max_tokens:,} tokens needs {most:,} workgroups in one dimension; "
                f"this adapter allows {device.limits.workgroups:,}: {_SMALLER}"
            )
        if device.budget is not None and device.allocated + self.nbytes > device.budget:
            parts = ", ".join(f"{size:,} of {name}" for name, size in self.by_purpose().items())
            over = device.allocated + self.nbytes - device.budget
            raise OutOfMemoryError(
                f"steps of {self.max_tokens:,} tokens need {self.nbytes:,} bytes ({parts}) beside "
                f"{device.allocated:,} in use; {device.budget:,} are allowed in all, {over:,} too "
                f"few: {_SMALLER}"
            )

    def _largest_grids(self) -> Iterable[tuple[int, ...]]:
        known = {(id(x.kernel), tuple(x.params.items())): x for x in self._all()}
        for launch in known.values():
            yield launch.kernel.grid_function(launch.params)(self.max_tokens, self.max_tokens)

    async def build(self, device: Device) -> None:
        """Allocates, compiles and binds; afterwards `run` replays."""
        self.check(device)
        self._device = device
        try:
            self._allocate(device)
            kernels = {(x.kernel.name, x.kernel.code): x.kernel for x in self._all()}
            compiled = await together(kernel.compiled(device) for kernel in kernels.values())
            pipelines = dict(zip(kernels, compiled, strict=True))
            for name, launches in self.launches.items():
                self.programs[name] = self._program(device, launches, pipelines)
            await device.settle()
        except BaseException:
            self.close()
            raise
        self.work_limit = FIRST_SUBMIT

    def _allocate(self, device: Device) -> None:
        def create(size: int, label: str, uniform: bool = False) -> Buffer:
            self._owned.append(device.create_buffer(size, label, uniform=uniform))
            return self._owned[-1]

        for storage in self.storages:
            storage.buffer = create(storage.size, storage.name)
        self._slots = [create(size, f"{_KEPT} {i}") for i, size in enumerate(self.slot_sizes)]
        self._small = {"step": create(STEP.itemsize, "step", uniform=True)}
        if self._uniforms:
            self._small["params"] = create(len(self._uniforms), "parameters", uniform=True)
            device.write(self._small["params"], 0, self._uniforms)

    def _program(
        self, device: Device, launches: list[Launch], pipelines: dict[tuple[str, str], Any]
    ) -> Program:
        grids: dict[Any, int] = {}
        functions: list[Callable[[int, int], tuple[int, ...]]] = []
        dispatches = []
        for launch in launches:
            kernel = launch.kernel
            pipeline = pipelines[kernel.name, kernel.code]
            key = (kernel.name, kernel.code, tuple(launch.params.items()))
            if key not in grids:
                grids[key] = len(functions)
                functions.append(kernel.grid_function(launch.params))
            bind_group = device.bind(
                pipeline, [self._binding(launch, slot) for slot in kernel.slots]
            )
            dispatches.append(Dispatch(pipeline, bind_group, grids[key]))
        work = [launch.kernel.work(launch.params, self.max_tokens) for launch in launches]
        return Program(device.program(dispatches), functions, work, sum(work), self._small["step"])

    def _binding(self, launch: Launch, slot: Any) -> Binding:
        if slot.name == "params":
            offset, size = self._uniform_offsets[id(launch)]
            return Binding(slot.number, self._small["params"], offset, size)
        if slot.name == "step":
            return Binding(slot.number, self._small["step"], 0, STEP.itemsize)
        operand = launch.operands[slot.name]
        if isinstance(operand, Tensor):
            buffer = self._slots[self._slot_of[operand]]
            return Binding(slot.number, buffer, 0, operand.nbytes(self.max_tokens))
        return Binding(slot.number, operand.storage.live, operand.offset, operand.size)

    def run(
        self, name: str, step: bytes, tokens: int, trained: int, *, whole: bool = False
    ) -> None:
        """Queues one replay: `step` is the content of the step uniform (see `structs`), T and C its
        sizes. `whole`: in one submit, however much it is.
        """
        program, counts, cuts = self._prepare(name, step, tokens, trained)
        self._device.run(program, counts, [] if whole else cuts)

    def _prepare(
        self, name: str, step: bytes, tokens: int, trained: int
    ) -> tuple[Any, np.ndarray, list[int]]:
        """Program, workgroup counts and cuts of a replay, whose step uniform is queued."""
        program = self._built(name)
        self._device.write(program.step, 0, step)
        cuts = program.cuts(self.work_limit, max(tokens, 1) / self.max_tokens)
        return program.handle, program.counts(tokens, trained), cuts

    async def profile(
        self, name: str, step: bytes, tokens: int, trained: int
    ) -> list[tuple[Launch, float]]:
        """One replay, waited for, as (launch, seconds on the GPU); see `Device.profile`."""
        seconds = await self._device.profile(*self._prepare(name, step, tokens, trained))
        return list(zip(self.launches[name], seconds, strict=True))

    def total_work(self, name: str, tokens: int) -> float:
        """Estimated work of a replay, in the unit of `work_limit`."""
        return self._built(name).total_work * tokens / self.max_tokens

    def _built(self, name: str) -> Program:
        program = self.programs.get(name)
        if program is None:
            raise DeviceLostError(f"running '{name}': the plan was closed, or is not built yet")
        return program

    def close(self) -> None:
        """Frees everything `build` allocated; forgets its handles, which keep a device alive."""
        for buffer in self._owned:
            self._device.free(buffer)
        for storage in self.storages:
            storage.buffer = None
        self._owned, self._slots, self._small = [], [], {}
        self.programs = {}

    def __str__(self) -> str:
        lines = [f"plan for {self.max_tokens} tokens, {self.nbytes:,} bytes"]
        lines += [f"  {purpose}: {size:,}" for purpose, size in self.by_purpose().items()]
        for name, launches in self.launches.items():
            lines.append(f"{name}: {len(launches)} dispatches")
            for number, launch in enumerate(launches):
                operands = ", ".join(
                    ("*" if access == "read_write" else "") + self._describe(operand)
                    for operand, access in launch.accesses()
                )
                lines.append(f"{number:5} {launch.label:12} {launch.kernel.name:24} {operands}")
        return "\n".join(lines)

    def _describe(self, operand: Tensor | Window) -> str:
        if isinstance(operand, Tensor):
            return f"{operand.name}({operand.rows},{operand.cols})@{self._slot_of[operand]}"
        return (
            operand.storage.name
            if not operand.offset
            else f"{operand.storage.name}+{operand.offset}"
        )


def _live(launches: list[Launch]) -> list[Launch]:
    """Drops launches whose results nothing reads."""
    needed: set[Tensor] = set()
    kept = []
    for launch in reversed(launches):
        accesses = launch.accesses()
        written = [operand for operand, access in accesses if access == "read_write"]
        if any(isinstance(operand, Window) or operand in needed for operand in written):
            kept.append(launch)
            needed.update(operand for operand, _ in accesses if isinstance(operand, Tensor))
    return kept[::-1]


def _lifetimes(launches: list[Launch]) -> tuple[dict[Tensor, int], dict[Tensor, int]]:
    """First and last launch that touches each temporary."""
    first: dict[Tensor, int] = {}
    last: dict[Tensor, int] = {}
    for index, launch in enumerate(launches):
        for operand, access in launch.accesses():
            if isinstance(operand, Tensor):
                if operand not in first:
                    assert access == "read_write", f"{operand.name} is read before it is written"
                    first[operand] = index
                last[operand] = index
    return first, last
