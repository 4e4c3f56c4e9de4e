"""Replays the launches of a case and takes the time: several cases in turn, so that a slow phase
of the machine hits all of them.
"""

import math
import time
from collections.abc import Sequence
from contextlib import ExitStack

import numpy as np

from wgtrain.bench.cases import Case, standalone
from wgtrain.engine.graph import Graph, Storage, Window
from wgtrain.engine.plan import SUBMIT_SECONDS, Plan
from wgtrain.engine.structs import IDLE_UPDATE, step_bytes
from wgtrain.gpu import Device, run

SAMPLE_SECONDS = 0.02  # a sample is as many replays as take this long
_POOL = np.random.default_rng(0).standard_normal(1 << 18, np.float32)


class Runner:
    """One case on a device, a sample of which takes about so many seconds. A context manager, which
    frees its buffers.
    """

    def __init__(self, case: Case, device: Device, sample_seconds: float = SAMPLE_SECONDS):
        self.case = standalone(case)
        self._device = device
        graph = Graph(training=False)
        graph.launches = self.case.launches
        windows = [o for x in graph.launches for o in x.operands.values() if isinstance(o, Window)]
        storages = list(dict.fromkeys(window.storage for window in windows))
        self._plan = Plan({"case": graph}, storages, max(case.tokens, 1))
        run(self._plan.build(device))
        for storage in storages:
            self._fill(storage)
        self._step = step_bytes(case.tokens, case.tokens, **IDLE_UPDATE)
        self._end = storages[0]
        self._replay(1)  # compiles
        seconds = self._replay(1)
        self._plan.work_limit = (
            self._plan.total_work("case", max(case.tokens, 1)) / seconds * SUBMIT_SECONDS
        )
        self._repeats = max(math.ceil(sample_seconds / seconds), 1)

    def _fill(self, storage: Storage) -> None:
        content = self.case.contents.get(storage)
        if content is None:
            frozen = storage.purpose == "weights"
            pool = _patterns(self.case.type or "F32") if frozen else _POOL
            content = np.resize(pool.view(np.uint8), storage.size)
        assert storage.buffer is not None
        self._device.write(storage.buffer, 0, np.ascontiguousarray(content))

    def _replay(self, count: int) -> float:
        """Seconds of so many replays, waited for."""
        assert self._end.buffer is not None
        tokens = self.case.tokens
        began = time.perf_counter()
        for _ in range(count):
            self._plan.run("case", self._step, tokens, tokens)
        run(self._device.read(self._end.buffer, 0, 4))
        return time.perf_counter() - began

    def sample(self) -> float:
        """Seconds of one replay, over as many as a sample holds, after one that is not timed."""
        self._replay(1)
        return self._replay(self._repeats) / self._repeats

    def close(self) -> None:
        """Frees the buffers."""
        self._plan.close()

    def __enter__(self) -> "Runner":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _patterns(type_: str) -> np.ndarray:
    """What a weight's buffer is filled with."""
    small = _POOL * np.float32(0.05)
    if type_ == "F32":
        return small
    if type_ == "BF16":
        return (small.view(np.uint32) >> 16).astype(np.uint16)
    if type_ == "F16":
        return small.astype(np.float16)
    # Quants of both signs, and normal numbers wherever scales lie, be they f16, f32 or exponents:
    # processors are slow at subnormal ones.
    return ((_POOL.view(np.uint32) & 0x8383) | 0x1414).astype(np.uint16)


def interleaved(cases: Sequence[Case], device: Device, rounds: int) -> list[list[float]]:
    """Seconds of each case's replays, `rounds` samples of each, taken in turn."""
    with ExitStack() as stack:
        runners = [stack.enter_context(Runner(case, device, SAMPLE_SECONDS)) for case in cases]
        samples = [[runner.sample() for runner in runners] for _ in range(rounds)]
    return [list(column) for column in zip(*samples, strict=True)]
