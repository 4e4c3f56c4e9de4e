"""Whole training steps at a shape: forward, backward, clipping and AdamW, until the loss is read;
ours alone, or in turn with other trainers' steps on the same weights and rows.
"""

import math
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

from wgtrain import gpu
from wgtrain.bench.cases import Case
from wgtrain.bench.ceiling import facts, product_ceilings
from wgtrain.bench.child import LEARNING_RATE, MAX_GRAD_NORM
from wgtrain.bench.flops import step_flops
from wgtrain.bench.measure import Record, peak_memory, ratios, record, spread, timed
from wgtrain.bench.rivals import Rival, check_rivals, check_same
from wgtrain.bench.runner import Runner
from wgtrain.bench.shapes import Shape
from wgtrain.bench.tuned import AUTO, make_learner
from wgtrain.bench.weights import RandomWeights
from wgtrain.engine.optimizer import RING
from wgtrain.engine.tables import to_json
from wgtrain.infer.model import Model
from wgtrain.infer.opening import open_model
from wgtrain.model.weights import stored_type

SAMPLE_SECONDS = 0.2  # a sample is as many steps as take this long
_LONG = 5.0  # seconds of a step from which on what went before does not show in it
Advance = Callable[[str], None]


class Stepper:
    """Our side: a model of random weights on the GPU and a learner. A context manager."""

    def __init__(
        self,
        shape: Shape,
        adapter_index: int | None = None,
        mode: str = AUTO,
        precision: str = "f32",
    ):
        self.shape = shape
        source = RandomWeights(shape)
        self.model: Model = gpu.run(
            open_model(source, adapter_index=adapter_index, precision=precision)
        )
        try:
            self.learner = make_learner(self.model.base, self.model.device, shape, mode)
            self.learner.set_parameters(
                {
                    f"{name}.lora_{letter}": matrix
                    for name, pair in shape.adapter().items()
                    for letter, matrix in zip("ab", pair, strict=True)
                }
            )
            self.compile_seconds = timed(lambda: gpu.run(self.learner.build()))
        except BaseException:
            self.model.close()
            raise
        self._batch = shape.batch()
        self._step = 0
        self._host: list[float] = []

    def steps(self, count: int) -> dict[str, float]:
        """As `child.Stepper.steps`, and "host": what a step takes of this thread's CPU time, from
        packing the batch to the report of its loss, with recording, submitting and waiting.

        A driver that runs on the CPU adds the work that it does on the thread that submits.
        """
        began, busy = time.perf_counter(), time.thread_time()
        for _ in range(count):
            self._step += 1
            self.learner.micro(self._batch)
            self.learner.update(
                step=self._step, learning_rate=LEARNING_RATE, max_grad_norm=MAX_GRAD_NORM
            )
        reports = gpu.run(self.learner.reports())
        busy = time.thread_time() - busy
        seconds = (time.perf_counter() - began) / count
        first = reports[0]
        return {
            "seconds": seconds,
            "host": busy / count,
            "loss": first.loss,
            "grad_norm": first.grad_norm,
        }

    @property
    def dispatches(self) -> int:
        """Kernel calls of a step."""
        return sum(len(self.learner.plan.launches[name]) for name in ("micro", "update"))

    def memory(self) -> Record:
        """Bytes on the GPU by purpose, and the most this process held."""
        plan = self.learner.plan.by_purpose()
        weights = self.model.weights.nbytes
        return {
            "gpu": weights + self.learner.nbytes,
            "weights": weights,
            "plan": plan,
            "process_peak": peak_memory(),
        }

    def close(self) -> None:
        """Gives the GPU memory back."""
        self.learner.close()
        self.model.close()

    def __enter__(self) -> "Stepper":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def measure_step(
    shape: Shape,
    *,
    command: str,
    rounds: int,
    rivals: Sequence[str] = (),
    precision: str = "f32",
    adapter_index: int | None = None,
    mode: str = AUTO,
    advance: Advance,
) -> Record:
    """The record of `wgtrain bench step`."""
    check_rivals(tuple(rivals), shape)
    with ExitStack() as stack:
        advance("loading and compiling")
        ours = stack.enter_context(Stepper(shape, adapter_index, mode, precision))
        device, tuning = ours.model.device, ours.learner.tuning
        first = ours.steps(1)
        memory = ours.memory()  # before the sweep takes its own
        others, alone = [], []
        for name in rivals:
            advance(f"{name}: starting, first steps")
            other = stack.enter_context(Rival(name, shape))
            last = other.steps(1)
            other.about["difference"] = check_same(name, first, last, precision)
            for _ in range(other.kind.warmup - 1):
                last = other.steps(1)
            others.append(other)
            alone.append(last["seconds"])
        advance("ceiling")
        type_ = stored_type(shape.type, precision)
        (best,) = product_ceilings(
            device, tuning, [type_], precision, rounds, lambda name: None
        ).values()
        beside = stack.enter_context(Runner(best, device, SAMPLE_SECONDS))
        # The first step compiles; it alone tells enough where steps are long.
        ours_alone = first["seconds"] if first["seconds"] > _LONG else ours.steps(1)["seconds"]
        samples, ceilings, theirs = [], [], []
        for number in range(rounds):
            advance(f"round {number + 1}")
            samples.append(sample(ours, ours_alone))
            ceilings.append(beside.sample())
            theirs.append([sample(x, s)["seconds"] for x, s in zip(others, alone, strict=True)])
        seconds = [each["seconds"] for each in samples]
        return {
            **record("step", command, device),
            "shape": shape.facts(),
            "precision": precision,
            **_speed(shape, seconds, best, ceilings),
            "host_seconds_per_step": (host := spread([each["host"] for each in samples])),
            "dispatches": ours.dispatches,
            "host_seconds_per_dispatch": host["median"] / ours.dispatches,
            "compile_seconds": ours.compile_seconds,
            "steps_of_a_sample": steps_in(ours_alone),
            "first_step": {n: first[n] for n in ("seconds", "loss", "grad_norm")},
            "memory": memory,
            "tuning": {"origin": tuning.origin, "table": to_json(tuning)},
            "timestamps": "timestamp-query" in device.features,
            "kernels": by_kernel(ours),
            "vs": [
                {
                    "name": other.name,
                    **other.about,
                    "seconds_per_step": spread(column)["median"],
                    "seconds": spread(column),
                    "steps_of_a_sample": steps_in(each),
                    "ratio": ratios(seconds, column),
                    "process_peak": other.peak_memory,
                }
                for other, each, column in zip(
                    others, alone, zip(*theirs, strict=True), strict=True
                )
            ],
        }


def steps_in(seconds: float) -> int:
    """Steps of a sample, no more than the ring of reports holds."""
    return min(max(math.ceil(SAMPLE_SECONDS / seconds), 1), RING)


def sample(trainer: Stepper | Rival, seconds: float) -> dict[str, float]:
    """As many steps, of so many seconds each, as a sample has.

    One that is not timed goes before: the first after another trainer's finds the processor's
    caches full of that one's data, and can take twice as long.
    """
    if seconds < _LONG:
        trainer.steps(1)
    return trainer.steps(steps_in(seconds))


def _speed(shape: Shape, seconds: Sequence[float], best: Case, ceilings: Sequence[float]) -> Record:
    """Times, and rates beside those of the best product in the same rounds."""
    median, flops = spread(seconds)["median"], step_flops(shape)
    total = sum(flops.values())
    shares = [(total / a) / (best.work / b) for a, b in zip(seconds, ceilings, strict=True)]
    return {
        "seconds_per_step": median,
        "seconds": spread(seconds),
        "tokens_per_second": shape.tokens / median,
        "flops_per_step": total,
        "flops_by_kind": flops,
        "flops_per_second": total / median,
        "ceiling": facts(best, ceilings),
        "share_of_ceiling": spread(shares)["median"],
    }


def by_kernel(ours: Stepper) -> list[Record]:
    """Time on the GPU by kernel, largest first."""
    times: dict[str, list[float]] = defaultdict(list)
    for launch, taken in gpu.run(ours.learner.profile(ours.shape.batch())):
        times[launch.kernel.name].append(taken)
    found: list[dict[str, Any]] = [
        {"kernel": name, "calls": len(each), "seconds": sum(each)} for name, each in times.items()
    ]
    return sorted(found, key=lambda row: -row["seconds"])
