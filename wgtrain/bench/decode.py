"""Decoding at a shape: a token after the other over cached keys and values, beside the reading of
prompts, a copy and llama.cpp on the processor; with none, one or more adapters in one run.
"""

import math
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from wgtrain import gpu
from wgtrain.bench.ceiling import copy_ceiling, facts
from wgtrain.bench.measure import Record, peak_memory, ratios, record, spread, timed
from wgtrain.bench.rivals import DECODERS, Rival, check_rivals
from wgtrain.bench.runner import Runner
from wgtrain.bench.shapes import Shape
from wgtrain.bench.tuned import AUTO, MEASURE
from wgtrain.bench.weights import RandomWeights
from wgtrain.engine.plan import Plan
from wgtrain.engine.tables import to_json
from wgtrain.engine.tuning import Tuning
from wgtrain.engine.weight import UNITS
from wgtrain.errors import OptionError, WgtrainError
from wgtrain.gpu import Device
from wgtrain.infer.cached import CachedSession, open_sequences
from wgtrain.infer.model import Model
from wgtrain.infer.opening import open_model
from wgtrain.infer.slots import Slots
from wgtrain.model.host import NOWHERE
from wgtrain.tune import cache as tune

SAMPLE_SECONDS = 0.2  # a sample is as many tokens as take this long, at most so many:
MOST_TOKENS = 32


class Decoder:
    """Rows of one model under so many adapters, as many as the shape has, each of its length."""

    def __init__(self, model: Model, shape: Shape, adapters: int):
        self.shape, self.adapters = shape, adapters
        pairs = [(adapter, 1.0) for adapter in shape.adapters(adapters)]
        room = shape.length + MOST_TOKENS + 1
        self._slots = Slots(model.device, model.base)
        gpu.run(self._slots.use(model.stack(pairs)))
        self.session: CachedSession = gpu.run(
            open_sequences(
                model.device, model.base, self._slots.beside, shape.rows, room, model.host
            )
        )
        self._prompts = shape.stream()[:, :-1].tolist()
        self.logits = self.prefill()[0]  # compiles
        self.tokens(1)
        self._count = min(max(math.ceil(SAMPLE_SECONDS / self.tokens(1)[0]), 1), MOST_TOKENS)

    def prefill(self) -> np.ndarray:
        """Reads the prompts anew; logits after each."""
        for place in range(self.shape.rows):
            self.session.truncate(place, 0)
        found = gpu.run(self.session.extend(dict(enumerate(self._prompts))))
        return np.stack([found[place] for place in range(self.shape.rows)])

    def tokens(self, count: int) -> tuple[float, float]:
        """Seconds, and those of this thread's CPU, of a token of every row, over so many; the rows
        are then as they were.
        """
        began, busy = time.perf_counter(), time.thread_time()
        for number in range(count):
            token = number % self.shape.vocabulary
            gpu.run(self.session.extend({row: [token] for row in range(self.shape.rows)}))
        busy, seconds = time.thread_time() - busy, time.perf_counter() - began
        for place in range(self.shape.rows):
            self.session.truncate(place, self.shape.length)
        return seconds / count, busy / count

    def close(self) -> None:
        """Frees its memory."""
        self.session.close()
        self._slots.close()

    def sample(self) -> tuple[float, float, float]:
        """Seconds and CPU seconds of a token of every row, and seconds of reading the prompts."""
        reading = timed(self.prefill)
        self.tokens(1)
        return *self.tokens(self._count), reading


def read_once(plan: Plan) -> int:
    """Bytes of weights that a token reads, for up to `MOST_FEW` rows; WgtrainError where rows of
    one are read twice.
    """
    seen, nbytes = set(), 0
    for launch in plan.launches["decode"]:
        if launch.family.startswith("nv/"):
            params = launch.params
            part = launch.operands["weight"], params["weight_row"]
            if part in seen:
                raise WgtrainError(f"a token reads rows of {launch.label} more than once")
            seen.add(part)
            row = UNITS["weight"] * params["weight_stride"]
            row += UNITS["weight_side"] * params["weight_side_stride"]
            nbytes += params["n"] * row
    return nbytes


def measure_decode(
    shape: Shape,
    *,
    adapters: Sequence[int] = (),
    rivals: Sequence[str] = (),
    command: str,
    rounds: int,
    adapter_index: int | None = None,
    mode: str = AUTO,
    advance: Callable[[str], None],
) -> Record:
    """The record of `wgtrain bench decode`."""
    check_rivals(tuple(rivals), shape, DECODERS)
    counts = list(dict.fromkeys(adapters or (0,)))
    if wrong := [count for count in counts if count < 0]:
        raise OptionError(f"adapters = {wrong[0]}: a number from 0 on is needed")
    with ExitStack() as stack:
        advance("loading and compiling")
        host = replace(NOWHERE, choose_tuning=partial(_tuning, mode))
        model = gpu.run(open_model(RandomWeights(shape), adapter_index=adapter_index, host=host))
        stack.callback(model.close)
        decoders = []
        for count in counts:
            decoders.append(Decoder(model, shape, count))
            stack.callback(decoders[-1].close)
        others = []
        for name in rivals:
            advance(f"{name}: starting, first tokens")
            other = stack.enter_context(Rival(name, shape, DECODERS))
            first: Any = other.steps(1)
            bare = next((x for x in decoders if not x.adapters), None)
            if bare is not None:
                other.about["difference"] = check_logits(name, bare.logits, first["logits"])
            others.append(other)
        case = copy_ceiling(model.device)
        beside = stack.enter_context(Runner(case, model.device))
        ours: list[list[tuple[float, float, float]]] = []
        copies, theirs = [], []
        for number in range(rounds):
            advance(f"round {number + 1}")
            ours.append([decoder.sample() for decoder in decoders])
            copies.append(beside.sample())
            theirs.append([other.steps(MOST_TOKENS) for other in others])
        rates = [case.work / seconds for seconds in copies]
        columns = list(zip(*ours, strict=True))
        return {
            **record("decode", command, model.device),
            "shape": shape.facts(),
            "copy": facts(case, copies),
            "stacks": [
                _stack(decoder, column, columns[0], rates)
                for decoder, column in zip(decoders, columns, strict=True)
            ],
            "memory": {"weights": model.weights.nbytes, "process_peak": peak_memory()},
            "vs": [
                _rival(shape, other, column, columns[0])
                for other, column in zip(others, zip(*theirs, strict=True), strict=True)
            ],
        }


def _tuning(
    mode: str, device: Device, plan: Plan, max_row: int, replays: int, asked: str
) -> Tuning:
    """What a model of this program would run with; measured anew where `mode` says so."""
    return tune.choose(device, plan, max_row, replays, MEASURE if mode == MEASURE else asked)


def _stack(
    decoder: Decoder,
    samples: Sequence[tuple[float, float, float]],
    first: Sequence[tuple[float, float, float]],
    copies: Sequence[float],
) -> Record:
    """What was measured under one number of adapters; `copies`: bytes a second, by round."""
    shape, plan = decoder.shape, decoder.session.plan
    seconds, busy, reading = (list(column) for column in zip(*samples, strict=True))
    step, nbytes, dispatches = spread(seconds), read_once(plan), len(plan.launches["decode"])
    shares = [nbytes / a / b for a, b in zip(seconds, copies, strict=True)]
    return {
        "adapters": decoder.adapters,
        "seconds": step,
        "tokens_per_second": shape.rows / step["median"],
        "prefill_seconds": (read := spread(reading)),
        "prefill_tokens_per_second": shape.tokens / read["median"],
        "bytes_of_weights": nbytes,
        "bytes_per_second": nbytes / step["median"],
        "share_of_copy": spread(shares)["median"],
        "dispatches": dispatches,
        "host_seconds": (host := spread(busy)),
        "host_seconds_per_dispatch": host["median"] / dispatches,
        "ratio": ratios(seconds, [each[0] for each in first]),
        "plan": plan.by_purpose(),
        "tuning": {
            "origin": decoder.session.tuning.origin,
            "table": to_json(decoder.session.tuning),
        },
    }


def _rival(
    shape: Shape,
    other: Rival,
    samples: Sequence[dict[str, float]],
    ours: Sequence[tuple[float, float, float]],
) -> Record:
    seconds, reading = ([each[n] for each in samples] for n in ("seconds", "prefill"))
    return {
        "name": other.name,
        **other.about,
        "seconds": (token := spread(seconds)),
        "tokens_per_second": 1 / token["median"],
        "prefill_tokens_per_second": shape.length / spread(reading)["median"],
        "ratio": ratios([each[0] / shape.rows for each in ours], seconds),
        "process_peak": other.peak_memory,
    }


def check_logits(name: str, ours: np.ndarray, theirs: Sequence[float]) -> float:
    """The largest difference of the first logits after the first prompt, of their range;
    WgtrainError where it is too large for the same work.
    """
    want = np.asarray(theirs)
    apart = float(np.abs(ours[: len(want)] - want).max() / np.ptp(ours))
    if not apart <= DECODERS[name].tolerance:  # also for NaN
        raise WgtrainError(
            f"{name} does not do the same work: logits differ by {apart:.1e} of their range; "
            f"{DECODERS[name].tolerance:.0e} is allowed"
        )
    return apart
