"""A quick measured sweep: which variant of each kernel is fastest on this adapter for a plan.

Each family runs as its heaviest launch of the plan, on buffers of its own with made-up numbers, at
so many rows that one call takes milliseconds. A variant whose result differs from the default's is
never taken, nor one that is not clearly faster.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from wgtrain.engine.candidates import candidates
from wgtrain.engine.graph import Launch, Tensor, padded
from wgtrain.engine.inputs import visible
from wgtrain.engine.kernel import Kernel
from wgtrain.engine.plan import Plan
from wgtrain.engine.stacked import Use, use_list
from wgtrain.engine.structs import step_bytes
from wgtrain.engine.tuning import Choice
from wgtrain.engine.weight import UNITS
from wgtrain.errors import OutOfMemoryError, ShaderError
from wgtrain.gpu import Binding, Buffer, Device, Dispatch

SECONDS = {"CPU": 12.0}  # that a sweep may take, compiling included; a compile is not cut short
GPU_SECONDS = 5.0
_WORK = {"CPU": 2e8}  # of one call, about: milliseconds
_GPU_WORK = 2e10
_FEWEST = 128  # rows and columns that stay of a large product
_TIMED = {"CPU": 0.008}  # seconds of one timing, which repeats the call
_GPU_TIMED = 0.003
_ROUNDS = 9
_SMALL_SHARE = 0.001  # of a step's work: families below it are left as they are
_UNKNOWN_SHARE = 0.01  # of families whose kernels do not say their work
_SLOW = 2.0  # a variant so much slower at first sight is not timed again
_CLEARLY = 0.97  # of the default's time, at most
_SLOW_COMPILE = 0.3  # of the whole time: after such a compile a family has no further variant
_ALIKE = 1e-4  # relative L2 distance of results: orders of summing differ, nothing else


@dataclass(frozen=True)
class Shape:
    """What a family was measured for: tokens of a step, and work a token."""

    rows: int
    work: float

    def alike(self, other: "Shape") -> bool:
        """Whether a choice for one is good for the other: within a factor of four."""
        pairs = ((self.rows, other.rows), (self.work, other.work))
        return all(max(pair) <= 4 * min(pair) for pair in pairs)


@dataclass(frozen=True)
class Measured:
    """The fastest of `tried` variants of a family; rates in operations a second."""

    family: str
    choice: Choice
    shape: Shape
    rate: float
    default_rate: float
    tried: int


def replayed(plan: Plan) -> list[Launch]:
    """The launches that a plan's time goes to: of training those of a micro-batch, else all."""
    return plan.launches.get("micro") or [x for xs in plan.launches.values() for x in xs]


def heaviest(plan: Plan) -> dict[str, tuple[Launch, Shape, float]]:
    """Of each family its heaviest launch, that one's shape, and the family's share of all work."""
    found: dict[str, tuple[float, Launch]] = {}
    work: dict[str, float] = {}
    rows = plan.max_tokens
    for launch in replayed(plan):
        own = launch.kernel.work(launch.params, rows)
        work[launch.family] = work.get(launch.family, 0.0) + own
        if launch.family and own > found.get(launch.family, (0.0,))[0]:
            found[launch.family] = own, launch
    total = sum(work.values())
    shares = {
        family: work[family] / total if launch.kernel.flops else _UNKNOWN_SHARE
        for family, (_, launch) in found.items()
    }
    return {
        family: (found[family][1], Shape(rows, found[family][0] / rows), shares[family])
        for family in sorted(found, key=lambda family: -shares[family])
    }


def worthwhile(device: Device, plan: Plan) -> list[str]:
    """The families of a plan that have a choice on this adapter and some weight, heaviest first."""
    return [
        family
        for family, (_, _, share) in heaviest(plan).items()
        if share >= _SMALL_SHARE and len(candidates(family, device)) > 1
    ]


async def measure(
    device: Device,
    plan: Plan,
    max_row: int,
    *,
    families: Sequence[str] | None = None,
    seconds: float | None = None,
    begin: Callable[[str], None] = lambda family: None,
) -> list[Measured]:
    """Measures the families of a plan that need not be built, the heaviest first, while there is
    time. `max_row`: tokens of a row. `families`: only these. `begin` is told each in its turn.
    """
    if seconds is None:
        seconds = SECONDS.get(device.info.type, GPU_SECONDS)
    end = time.perf_counter() + seconds
    measured = []
    known = heaviest(plan)
    for family in worthwhile(device, plan) if families is None else families:
        if time.perf_counter() >= end:
            break
        begin(family)
        launch, shape, _ = known[family]
        choices = candidates(family, device)
        try:
            stage = _Stage(device, launch, plan.max_tokens, max_row)
        except OutOfMemoryError:
            continue
        try:
            found = await _fastest(stage, choices, end, _SLOW_COMPILE * seconds)
        finally:
            stage.close()
        if found is not None:
            choice, rate, default_rate = found
            measured.append(Measured(family, choice, shape, rate, default_rate, len(choices)))
    return measured


async def _fastest(
    stage: "_Stage", choices: list[Choice], end: float, slow_compile: float
) -> tuple[Choice, float, float] | None:
    """(choice, its rate, the default's); None where the default does not run, or time is up before
    anything was compared with it.
    """
    best: dict[Choice, float] = {}  # seconds at first sight
    prepared: dict[Choice, Any] = {}
    expected: list[np.ndarray] | None = None
    late = False
    for choice in choices:
        began = time.perf_counter()
        if expected is not None and began >= end:
            late = len(prepared) < 2
            break
        try:
            program = await stage.prepare(choice)
        except ShaderError:
            continue
        result = await stage.result(program)
        compiled = time.perf_counter() - began
        if expected is None:
            if choice != choices[0]:
                return None
            expected = result
            await stage.calibrate(program)
        if all(_distance(a, b) < _ALIKE for a, b in zip(result, expected, strict=True)):
            prepared[choice], best[choice] = program, await stage.seconds(program)
        if compiled > slow_compile:
            break
    if late or not prepared:
        return None
    fast = [choice for choice in prepared if best[choice] < _SLOW * min(best.values())]
    # Beside the default in the same round: shared machines change speed from round to round.
    default: list[float] = []
    ratios: dict[Choice, list[float]] = {choice: [] for choice in fast}
    for _ in range(_ROUNDS):
        default.append(await stage.seconds(prepared[choices[0]]))
        for choice in fast:
            same = choice == choices[0]
            taken = default[-1] if same else await stage.seconds(prepared[choice])
            ratios[choice].append(taken / default[-1])
    chosen = min(fast, key=lambda choice: statistics.median(ratios[choice]))
    ratio = statistics.median(ratios[chosen])
    if ratio > _CLEARLY:
        chosen, ratio = choices[0], 1.0
    rate = stage.work / min(default)
    return chosen, rate / ratio, rate


def _distance(a: np.ndarray, b: np.ndarray) -> float:
    """Relative L2 distance of b from a; infinite where one is not finite."""
    with np.errstate(all="ignore"):
        distance = float(np.linalg.norm(b - a) / max(float(np.linalg.norm(a)), 1e-30))
    return distance if np.isfinite(distance) else float("inf")


class _Stage:
    """Buffers and parameters of one launch, with fewer rows and columns where it is large."""

    def __init__(self, device: Device, launch: Launch, tokens: int, max_row: int):
        assert launch.tuned is not None
        self._device, self._tuned = device, launch.tuned
        tokens = launch.tuned.constants.get("ROWS", tokens)  # of a product made for few
        self._params = dict(launch.params)
        if "weight_row" in self._params:
            self._params["weight_row"] = 0
        most = _WORK.get(device.info.type, _GPU_WORK)
        self._rows = _fewer(tokens, launch.kernel.work(self._params, tokens) / most)
        work = launch.kernel.work(self._params, self._rows)
        if "weight_row" in self._params:
            self._params["n"] = _fewer(self._params["n"], work / most)
        self.work = launch.kernel.work(self._params, self._rows)
        self._timed = _TIMED.get(device.info.type, _GPU_TIMED)
        self._repeats = 1
        self._owned: list[Buffer] = []
        self._operands: dict[str, Buffer] = {}
        self._written: dict[str, np.ndarray] = {}
        try:
            self._step = self._make("step", step_bytes(self._rows, self._rows), True)
            packed = launch.kernel.pack_params(self._params) or bytes(16)
            self._packed = self._make("params", packed, True)
            access = {slot.name: slot.access for slot in launch.kernel.slots}
            for number, (name, operand) in enumerate(launch.operands.items()):
                words = self._words(name, operand, max_row, np.random.default_rng(number))
                self._operands[name] = self._make(name, words.tobytes())
                if access[name] == "read_write":
                    self._written[name] = words
        except BaseException:
            self.close()
            raise

    def _words(self, name: str, operand: Any, max_row: int, rng: Any) -> np.ndarray:
        """Contents of an operand: rows of tokens, or bits that are modest numbers of either sign as
        f32, as pairs of f16 or bf16, and as integers.
        """
        if name in ("key_range", "query_range"):
            start = np.arange(self._rows) // max_row * max_row
            keys, queries = visible(start, np.minimum(start + max_row, self._rows))
            return keys if name == "key_range" else queries
        if name == "lora_list":  # all are in use
            quads = (self._size(name, operand) // 8 - 1) // 2
            return use_list([Use(quad, 1.0) for quad in range(quads)], quads).ravel()
        words: np.ndarray = rng.integers(0, 1 << 32, self._size(name, operand) // 4, np.uint32)
        words = (words & np.uint32(0x83FF83FF)) | np.uint32(0x3C003C00)
        if isinstance(operand, Tensor) and operand.cols % 4:
            stored = padded(operand.cols)
            whole = words[: len(words) // stored * stored].reshape(-1, stored)
            whole[:, operand.cols :] = 0
        return words

    def _size(self, name: str, operand: Any) -> int:
        """Bytes of an operand; of a weight, of the rows that are read."""
        if isinstance(operand, Tensor):
            return operand.nbytes(self._rows)
        if name in UNITS and "n" in self._params:
            stride = self._params[f"{name}_stride"]
            return min(operand.size, self._params["n"] * stride * UNITS[name])
        return operand.size

    def _make(self, name: str, content: bytes, uniform: bool = False) -> Buffer:
        buffer = self._device.create_buffer(len(content), f"sweep {name}", uniform=uniform)
        self._owned.append(buffer)
        self._device.write(buffer, 0, content)
        return buffer

    async def prepare(self, choice: Choice) -> tuple[Any, Any, np.ndarray]:
        """Compiles and binds: (pipeline, bind group, workgroup counts)."""
        kernel: Kernel = self._tuned.kernel(choice)
        pipeline = await kernel.compiled(self._device)
        own = {"params": self._packed, "step": self._step}
        buffers = [own.get(slot.name) or self._operands[slot.name] for slot in kernel.slots]
        bindings = [
            Binding(slot.number, buffer, 0, buffer.size)
            for slot, buffer in zip(kernel.slots, buffers, strict=True)
        ]
        counts = kernel.grid_function(self._params)(self._rows, self._rows)
        group = self._device.bind(pipeline, bindings)
        return pipeline, group, np.array([counts], np.uint32)

    async def result(self, prepared: tuple[Any, Any, np.ndarray]) -> list[np.ndarray]:
        """What one call makes of the contents at the start."""
        for name, words in self._written.items():
            self._device.write(self._operands[name], 0, words)
        self._run(prepared, 1)
        found = []
        for name in self._written:
            buffer = self._operands[name]
            data = await self._device.read(buffer, 0, buffer.size)
            found.append(np.frombuffer(data, np.float32))
        return found

    async def calibrate(self, prepared: tuple[Any, Any, np.ndarray]) -> None:
        """Sets how often a timing repeats the call."""
        once = await self.seconds(prepared)
        self._repeats = int(min(max(self._timed / once, 1), 64))

    async def seconds(self, prepared: tuple[Any, Any, np.ndarray]) -> float:
        """How long one call takes."""
        await self._device.read(self._step, 0, 4)
        began = time.perf_counter()
        self._run(prepared, self._repeats)
        await self._device.read(self._step, 0, 4)
        return (time.perf_counter() - began) / self._repeats

    def _run(self, prepared: tuple[Any, Any, np.ndarray], repeats: int) -> None:
        pipeline, group, counts = prepared
        program = self._device.program([Dispatch(pipeline, group, 0)] * repeats)
        self._device.run(program, counts, [])

    def close(self) -> None:
        """Frees its buffers."""
        for buffer in self._owned:
            self._device.free(buffer)


def _fewer(count: int, factor: float) -> int:
    """`count` divided by `factor`, where that is above 1: a multiple of 64, not too few."""
    if factor <= 1 or count <= _FEWEST:
        return count
    return max(int(count / factor) // 64 * 64, _FEWEST)


def as_text(choice: Choice) -> str:
    """`kernel NAME value ...`, for people."""
    return " ".join([choice.kernel, *(f"{name} {value}" for name, value in choice.constants)])
