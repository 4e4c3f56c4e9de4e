"""Adapters and models are opened and closed 200 times, and their memory is given back.

First on one model: adapters of several ranks and targets are loaded, rescaled, removed and brought
by requests, which answer as a model that never had others; then models with adapters themselves.
"""

import ctypes
import gc
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

import wgtrain
from wgtrain.files import Adapter

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))
TIMES, WARM = 200, 40  # of them before memory is looked at: allocators keep what they once had
GROWTH = 4 << 20  # bytes that the process may grow by meanwhile; one leaked plan a time is more
TOKENS = list(range(1, 20))


def main(folder: Path, figures: dict[str, Any]) -> None:
    """Raises where memory grows, or a number is not that of a fresh model."""
    import tiny

    base = tiny.tiny("llama")
    linears = tiny.targets(base.spec)
    kinds = ((3, linears), (8, linears[:3]), (17, linears[-4:]), (40, linears))
    adapters = [
        Adapter("llama", rank, 2.0 * rank, tiny.random_adapter(base.spec, names, rank, seed))
        for seed, (rank, names) in enumerate(kinds)
    ]
    stacks = [[(one, 0.5 + i)] for i, one in enumerate(adapters)] + [
        [*zip(adapters, (1, -1, 0.5), strict=False)]
    ]
    wanted = [fresh(base.gguf, stack) for stack in stacks]
    figures["adapters on one model"] = on_one_model(base.gguf, stacks, wanted)
    figures["models with adapters"] = models(base.gguf, stacks, wanted)


def fresh(gguf: bytes, stack: Any) -> np.ndarray:
    """Logits under a stack of a model that has had no other."""
    with wgtrain.load_model(gguf, limits="default") as model:
        logits: np.ndarray = model.logits(TOKENS, stack)
        return logits


def on_one_model(gguf: bytes, stacks: Any, wanted: Any) -> dict[str, Any]:
    """The default stack and those of requests come and go."""
    with wgtrain.load_model(gguf, limits="default") as model:
        seen = Memory(lambda: model.device.allocated)
        for turn in range(TIMES):
            for number in (turn % len(stacks), (turn + 2) % len(stacks)):
                names = [model.adapters.load(one, 0.0) for one, _ in stacks[number]]
                for name, (_, scale) in zip(names, stacks[number], strict=True):
                    model.adapters.rescale(name, scale)
                assert np.array_equal(model.logits(TOKENS), wanted[number]), (turn, number)
                other = (turn + 1) % len(stacks)
                assert np.array_equal(model.logits(TOKENS, stacks[other]), wanted[other]), turn
                for name in names:
                    model.adapters.remove(name)
            model.adapters.clear()
            model.logits(TOKENS)
            seen.look(turn)
    return seen.figures()


def models(gguf: bytes, stacks: Any, wanted: Any) -> dict[str, Any]:
    """A model, its adapters and its session are opened and closed."""
    left = []

    def allocated() -> int:
        return int(left[-1].allocated)

    seen = Memory(allocated)
    for turn in range(TIMES):
        with wgtrain.load_model(gguf, limits="default") as model:
            number = turn % len(stacks)
            for one, scale in stacks[number]:
                model.adapters.load(one, scale)
            assert np.array_equal(model.logits(TOKENS), wanted[number]), turn
            left[:] = [model.device]
        assert left[-1].allocated == 0
        seen.look(turn)
    return seen.figures()


class Memory:
    """What is allocated after each time: on the device, and by the process once it is warm."""

    def __init__(self, allocated: Any):
        self._allocated = allocated
        self._device: set[int] = set()
        self._process: list[int] = []
        self._began = time.perf_counter()

    def look(self, turn: int) -> None:
        """After time number `turn`, when all is closed again."""
        if turn > 0:
            self._device.add(self._allocated())
        if turn >= WARM:
            gc.collect()
            self._process.append(resident())

    def figures(self) -> dict[str, Any]:
        """Raises where one of them grew."""
        fifth = len(self._process) // 5
        grown = int(np.median(self._process[-fifth:]) - np.median(self._process[:fifth]))
        found = {
            "times": TIMES,
            "bytes on the device after each": sorted(self._device),
            "process, MiB": round(self._process[-1] / 2**20, 1),
            "process grown by, KiB": round(grown / 1024),
            "seconds": round(time.perf_counter() - self._began, 1),
        }
        print(found, flush=True)
        assert len(self._device) == 1, found
        assert grown < GROWTH, found
        return found


def resident() -> int:
    """Bytes of this process in memory, without what is free already."""
    ctypes.CDLL(None).malloc_trim(0)
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096
