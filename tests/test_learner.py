"""Learners: windows that add up, memory known from metadata, an objective of one's own."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import random_model as rm

from wgtrain import gpu
from wgtrain.data.batches import Batch
from wgtrain.engine.graph import Graph, Storage, Tensor, Window, padded
from wgtrain.engine.inputs import InputBuffer
from wgtrain.engine.ops import Inputs
from wgtrain.engine.optimizer import RING
from wgtrain.engine.plan import Plan
from wgtrain.engine.structs import step_bytes
from wgtrain.engine.tuning import default_tuning
from wgtrain.files import BytesSource, read_gguf
from wgtrain.gpu import Device
from wgtrain.infer.model import Model
from wgtrain.model.base import plan_base
from wgtrain.model.forward import Network, forward
from wgtrain.model.layers import RopeTables
from wgtrain.model.lora import lora_trainables
from wgtrain.train.config import LoraConfig
from wgtrain.train.learner import Accumulated, Learner, lora_learner

pytestmark = pytest.mark.gpu
LENGTHS = [13, 1, 9]


@pytest.fixture(scope="module")
def model() -> Iterator[Model]:
    opened = rm.load(rm.build(rm.Shape(vocabulary=331)))
    yield opened
    opened.close()


# ---- windows -----------------------------------------------------------------------------------


def learners(model: Model, alpha: float) -> list[Learner]:
    """Four with the same parameters; the last one's arenas lie in more segments."""
    lora = LoraConfig(rank=4, alpha=alpha, target_modules="all-linear,lm_head")
    small = replace(model.base, limits=replace(model.base.limits, binding=8 << 10))
    made = []
    for base in (model.base, model.base, model.base, small):
        made.append(lora_learner(base, lora, device=model.device, max_tokens=40, max_row=24))
        gpu.run(made[-1].build())
        made[-1].set_parameters(rm.start(made[-1].shapes))
    segments = [len(learner.trainables.layout.sizes) for learner in made]
    assert segments[0] == segments[1] == segments[2] < segments[3]
    return made


@pytest.mark.parametrize("alpha", [8.0, 7.0])
def test_windows_of_two_learners_add_up(model: Model, alpha: float) -> None:
    """Two micro-batches on two learners, summed and set, are the window of one with both.

    Bit by bit where alpha / rank is a power of two. Otherwise a shader may round the scaled sum
    before it is added, or not: a rounding of what is added and one of the result.
    """
    exact = alpha == 8
    rng = np.random.default_rng(5)
    batches = [rm.batch(rng, LENGTHS, 331) for _ in range(2)]
    whole, first, second, split = learners(model, alpha)
    for batch in batches:
        whole.micro(batch)
    first.micro(batches[0])
    second.micro(batches[1])
    windows = [gpu.run(learner.window()) for learner in (whole, first, second)]
    total = windows[1] + windows[2]
    assert total.count == windows[0].count == sum(int((b.targets >= 0).sum()) for b in batches)
    assert total.loss == windows[0].loss
    for name, gradient in windows[0].gradients.items():
        assert np.abs(gradient).max() > 0
        rounding = 2.0**-24 * (np.abs(windows[2].gradients[name]) + np.abs(gradient))
        assert (np.abs(total.gradients[name] - gradient) <= (not exact) * rounding).all(), name

    for learner in (first, second, split):
        learner.set_window(total)
    for name, gradient in gpu.run(split.gradients()).items():
        np.testing.assert_array_equal(gradient, total.gradients[name], name)
    ended = []
    for learner in (whole, first, second, split):
        learner.update(step=1, learning_rate=1e-2, max_grad_norm=0.1, weight_decay=0.1)
        ended.append((gpu.run(learner.reports()), gpu.run(learner.parameters())))
        empty = gpu.run(learner.window())
        assert (empty.loss, empty.count) == (0, 0)
        assert not any(gradient.any() for gradient in empty.gradients.values())
        learner.close()
    same = ended[:3] if exact else ended[1:3]  # segments have the norm summed in another order
    for reports, parameters in same[1:]:
        assert reports == same[0][0]
        for name, values in parameters.items():
            np.testing.assert_array_equal(values, same[0][1][name], name)
    norms = [reports[0].grad_norm for reports, _ in ended]
    assert norms == pytest.approx([norms[0]] * 4, rel=1e-6)


def test_a_window_replaces_what_was_there(model: Model) -> None:
    """Setting a window forgets the one begun; resetting forgets what was set."""
    rng = np.random.default_rng(6)
    learner = rm.learner(model)
    learner.micro(rm.batch(rng, LENGTHS, 331))
    kept = gpu.run(learner.window())
    learner.micro(rm.batch(rng, LENGTHS, 331))
    learner.set_window(kept)
    again = gpu.run(learner.window())
    assert (again.loss, again.count) == (kept.loss, kept.count)
    for name, gradient in kept.gradients.items():
        np.testing.assert_array_equal(again.gradients[name], gradient)
    learner.reset()
    assert gpu.run(learner.window()).count == 0
    with pytest.raises(AssertionError):
        learner.set_window(Accumulated({}, 0.0, 0))
    learner.close()


def test_a_report_that_was_not_read_is_not_written_over(model: Model) -> None:
    """Numbers a ring apart share a place, and so do equal ones."""
    learner = rm.learner(model)
    batch = rm.batch(np.random.default_rng(7), LENGTHS, 331)
    for step in (2, 3):
        learner.micro(batch)
        learner.update(step=step, learning_rate=0.0)
    for step in (2, 3, RING + 2, 3 * RING + 3):
        with pytest.raises(AssertionError, match="in between"):
            learner.update(step=step, learning_rate=0.0)
    assert [report.step for report in gpu.run(learner.reports())] == [2, 3]
    learner.update(step=RING + 2, learning_rate=0.0)
    learner.close()


# ---- a base model without a device -------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "targets", "precision"),
    [
        (rm.Shape(vocabulary=331), "all-linear,lm_head", "f32"),
        (rm.Shape("qwen2", tied=True, type="Q8_0"), "q_proj,down_proj", "f32"),
        (rm.Shape("qwen3", head_size=24, type="Q4_0", vector_type="BF16"), "all-linear", "f32"),
        (rm.Shape(type="BF16"), "lm_head", "f16"),
    ],
)
def test_memory_is_known_from_metadata(
    full_device: Device, shape: rm.Shape, targets: str, precision: str
) -> None:
    """What the table of tensors and an adapter's limits say is what the device counts."""
    data = rm.build(shape)
    if precision not in {"f32", *full_device.features}:
        pytest.skip("needs an adapter with shader-f16")
    limits = "default" if precision == "f32" else None  # features come with an adapter's own
    opened = rm.load(data, precision=precision, limits=limits)
    device = opened.device
    lora = LoraConfig(rank=5, alpha=10, dropout=0.1, target_modules=targets)
    sizes = {"max_tokens": 40, "max_row": 24, "grad_checkpoint": True, "capture": "bf16"}

    gguf = gpu.run(read_gguf(BytesSource(data, "table")))
    base = plan_base(gguf, device.limits, default_tuning(device), precision)
    planned = lora_learner(base, lora, **sizes)
    assert base.weights.nbytes == device.allocated
    learner = lora_learner(opened.base, lora, device=device, **sizes)
    gpu.run(learner.build())
    assert base.weights.nbytes + planned.nbytes == device.allocated
    assert planned.plan.by_purpose() == learner.plan.by_purpose()
    learner.close()
    opened.close()


def test_a_learner_without_a_device_is_only_planned() -> None:
    """On whatever GPU: WebGPU's own limits are those that any adapter grants."""
    gguf = gpu.run(read_gguf(BytesSource(rm.build(rm.Shape()), "table")))
    planned = lora_learner(plan_base(gguf), LoraConfig(rank=4), max_tokens=40, max_row=24)
    assert planned.nbytes > 4 * planned.parameter_count * 4
    with pytest.raises(AssertionError, match="only planned"):
        gpu.run(planned.build())


# ---- objectives --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pulled(Batch):
    """A batch that brings a direction for each hidden state, f32 (T, D)."""

    pull: Any = None


class Pull:
    """sum of pull . hidden, so that 2 pull is the gradient of twice that; it has no loss."""

    def __init__(self, width: int):
        self.inputs = {"pull": 4 * padded(width)}

    def arrays(self, batch: Batch) -> Mapping[str, np.ndarray]:
        assert isinstance(batch, Pulled)
        return {"pull": batch.pull}

    def record(
        self, g: Graph, net: Network, hidden: Tensor, inputs: Inputs, totals: Window, tokens: int
    ) -> None:
        if hidden.trains:
            pull = inputs.more["pull"]
            operands = {"a": pull, "b": pull, "y": g.gradient(hidden)[0]}
            g.launch("add", operands, {"rows": "T", "d4": padded(hidden.cols) // 4})


def test_an_objective_of_ones_own(model: Model) -> None:
    """What a batch brings for it arrives, and its gradient flows on: finite differences."""
    config, device = model.config, model.device
    rng = np.random.default_rng(2)
    plain = rm.batch(rng, LENGTHS, 331)
    pull = rng.standard_normal((len(plain.tokens), config.width), np.float32)
    batch = Pulled(plain.tokens, plain.targets, plain.starts, plain.ends, pull=pull)
    bases = {"blk.0.attn_q.weight": (64, 64), "blk.1.ffn_down.weight": (64, 96)}
    trainables = lora_trainables(bases, device.limits, 4, 2.0)
    sizes = {"max_tokens": 40, "max_row": 24}
    learner = Learner(model.base, trainables, Pull(config.width), device=device, **sizes)
    gpu.run(learner.build())
    start = rm.start(learner.shapes)
    learner.set_parameters(start)
    learner.micro(batch)
    gradients = gpu.run(learner.gradients())

    # The same hidden states, by a plan of their own over the same parameters.
    buffer, ropes = InputBuffer(40), RopeTables(config.layers, 24)
    kept = Storage("kept", "test", 4 * 40 * 64)
    adapters = {name: (lora,) for name, lora in trainables.made(training=False).items()}
    g = Graph(training=False, tuning=model.base.tuning)
    net = Network(config, model.weights, adapters, ropes.windows)
    forward(g, net, buffer.inputs, into=kept.window())
    plan = Plan({"hidden": g}, [buffer.storage, ropes.storage, kept], 40)
    gpu.run(plan.build(device))
    ropes.write(device)
    tokens = len(plain.tokens)

    def value(parameters: Mapping[str, np.ndarray]) -> float:
        learner.set_parameters(parameters)
        buffer.write(device, plain.tokens, plain.starts, plain.ends, plain.targets)
        plan.run("hidden", step_bytes(tokens), tokens, 0)
        hidden = np.frombuffer(gpu.run(device.read(kept.buffer, 0, 4 * tokens * 64)), np.float32)
        return float(2 * (hidden.astype(np.float64) @ pull.ravel()))

    for name, at in start.items():
        direction = rng.standard_normal(at.shape, np.float32)
        step = np.float32(2e-3)
        ends = [value({**start, name: at + sign * step * direction}) for sign in (1, -1)]
        slope = (ends[0] - ends[1]) / (2 * float(step))
        want = float((gradients[name].astype(np.float64) * direction).sum())
        assert slope == pytest.approx(want, rel=2e-3), name
    plan.close()
    learner.close()
