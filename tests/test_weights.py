"""Weights on their way from the file to the GPU, and matrices split into several buffers."""

import asyncio
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import random_model as rm

from wgtrain import gpu
from wgtrain.engine import loss as loss_module
from wgtrain.engine.weight import FORMATS, plan_weight
from wgtrain.errors import FileError, OutOfMemoryError
from wgtrain.files import BLOCKS, read_gguf, write_gguf
from wgtrain.gpu import Device, Limits
from wgtrain.infer.model import Model
from wgtrain.infer.opening import open_model
from wgtrain.infer.session import Session
from wgtrain.model import weights as weights_module
from wgtrain.model.config import read_config
from wgtrain.model.weights import load_weights, plan_weights
from wgtrain.train.config import LoraConfig

pytestmark = pytest.mark.gpu
# Rows of Q8_0 and Q4_0 here are odd multiples of a block, so 34 n or 18 n bytes, n odd.
SHAPE = rm.Shape(
    width=160, heads=5, kv_heads=1, head_size=32, feed_forward=224, layers=1, vocabulary=77
)


TYPES = tuple(name for name in FORMATS if SHAPE.width % BLOCKS[name].size == 0)


class Ranges:
    """A file that only hands out ranges, and remembers which."""

    name = "ranges.gguf"

    def __init__(self, data: bytes):
        self._data, self.size = data, len(data)
        self.asked: list[tuple[int, int]] = []

    def read_range(self, offset: int, n: int) -> Any:
        self.asked.append((offset, n))
        return self._data[offset : offset + n]


class AsyncRanges(Ranges):
    """As a page reads: a range has to be awaited."""

    def read_range(self, offset: int, n: int) -> Any:
        async def read() -> bytes:
            await asyncio.sleep(0)
            return Ranges.read_range(self, offset, n)

        return read()


def assert_weights(model: Model, tensors: dict[str, Any]) -> None:
    for name, weight in model.weights.matrices.items():
        expected = rm.decode(tensors[name])
        np.testing.assert_array_equal(rm.decoded(model.device, weight), expected, err_msg=name)
    for name, window in model.weights.vectors.items():
        buffer = window.storage.buffer
        assert buffer is not None
        raw = gpu.run(model.device.read(buffer, window.offset, window.size))
        expected = rm.decode(tensors[name])
        got = np.frombuffer(raw, np.float32)
        np.testing.assert_array_equal(got[: len(expected)], expected, err_msg=name)
        assert not got[len(expected) :].any()


@pytest.mark.parametrize("type_", TYPES)
def test_weights_are_those_of_the_file(type_: str) -> None:
    shape = replace(SHAPE, type=type_)
    model = rm.load(Ranges(rm.build(shape)))
    tensors = rm.tensors(shape)
    assert {w.type for w in model.weights.matrices.values()} == {type_}
    assert set(model.weights.matrices) | set(model.weights.vectors) == set(tensors)
    assert_weights(model, tensors)
    model.close()


@pytest.mark.parametrize("type_", ["F32", "F16", "BF16"])
def test_rows_of_any_length(type_: str) -> None:
    """Without blocks a row need not be a multiple of anything but four bytes' worth of heads."""
    shape = rm.Shape(
        "qwen2", width=30, heads=3, kv_heads=1, head_size=12, feed_forward=45, layers=1,
        vocabulary=19, type=type_, vector_type=type_,
    )  # fmt: skip
    model = rm.load(Ranges(rm.build(shape)))
    assert_weights(model, rm.tensors(shape))
    model.close()


def test_types_may_be_mixed() -> None:
    types = {
        "token_embd.weight": "Q4_0",
        "output.weight": "Q8_0",
        "blk.0.attn_q.weight": "F16",
        "blk.0.attn_v.weight": "BF16",
        "blk.0.ffn_down.weight": "Q4_0",
    }
    shape = replace(SHAPE, types=tuple(types.items()), vector_type="F16")
    model = rm.load(rm.build(shape))
    assert {n: w.type for n, w in model.weights.matrices.items() if w.type != "F32"} == types
    assert_weights(model, rm.tensors(shape))
    model.close()


@pytest.mark.parametrize("type_", ["Q8_0", "Q4_0"])
def test_scales_of_any_size(type_: str, device: Device) -> None:
    """Subnormal, large and negative scales, and zero blocks, decode as the `gguf` package does."""
    rng = np.random.default_rng(4)
    shape = replace(SHAPE, type=type_)
    tensors = rm.tensors(shape)
    values = rng.standard_normal((77, 160)).astype(np.float32)
    values *= np.float32(10.0) ** rng.integers(-8, 6, (77, 1)).astype(np.float32)
    values[5] = 0
    tensors["token_embd.weight"] = rm.encode(values, type_)
    model = rm.load(write_gguf(shape.metadata(), tensors))
    assert_weights(model, {**tensors})
    model.close()


def test_no_more_than_the_staging_buffer_is_read_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights_module, "STAGING", 5000)
    for type_ in TYPES:
        shape = replace(SHAPE, type=type_)
        source = Ranges(rm.build(shape))
        model = rm.load_split(source, {}, {})
        tensors = sorted((t.offset, t.nbytes) for t in model.gguf.tensors.values())
        asked = sorted(source.asked[1:])  # after the front of the file
        assert max(n for _, n in asked) <= 5000, type_
        assert len(asked) > len(tensors) + 10
        assert sum(n for _, n in asked) == sum(n for _, n in tensors), "each byte once"
        for (offset, n), (following, _) in pairwise(asked):
            assert offset + n <= following
        assert_weights(model, rm.tensors(shape))
        model.close()


def test_a_row_longer_than_the_staging_buffer_still_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights_module, "STAGING", 64)
    shape = replace(SHAPE, type="Q8_0")
    model = rm.load(Ranges(rm.build(shape)))
    assert_weights(model, rm.tensors(shape))
    model.close()


def test_ranges_may_be_awaited() -> None:
    source = AsyncRanges(rm.build(replace(SHAPE, type="Q8_0")))

    async def check() -> None:
        model = await open_model(source, limits="default")
        # A loop is running: the device's own calls complete without it.
        assert_weights(model, rm.tensors(replace(SHAPE, type="Q8_0")))
        model.close()

    asyncio.run(check())
    with pytest.raises(RuntimeError, match="aio"):
        gpu.run(open_model(source, limits="default"))


@pytest.mark.parametrize("failure", ["short", "error"])
def test_a_file_that_breaks_off_leaves_nothing_on_the_gpu(
    failure: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = rm.build(SHAPE)

    class Breaking(Ranges):
        def read_range(self, offset: int, n: int) -> Any:
            if offset > 3 * len(data) // 4 and n < 1 << 19:
                if failure == "error":
                    raise OSError("the disk is gone")
                return data[offset : offset + n - 1]
            return super().read_range(offset, n)

    opened = []

    async def open_device(*_: Any, **__: Any) -> Device:
        opened.append(await gpu.open_device(limits="default"))
        return opened[0]

    async def load() -> None:
        source = Breaking(data)
        device = await open_device()
        gguf = await read_gguf(source)
        planned = plan_weights(gguf, read_config(gguf), device.limits)
        await load_weights(device, source, gguf, planned)

    what = "the disk is gone" if failure == "error" else "cut short"
    with pytest.raises(FileError, match=rf"ranges\.gguf: .*{what}"):
        gpu.run(load())
    assert opened[0].allocated == 0
    opened[0].close()


def test_weights_beyond_the_budget_are_refused_before_anything_is_allocated() -> None:
    data = rm.build(SHAPE)
    with pytest.raises(OutOfMemoryError, match=r"random\.gguf: the weights need [\d,]+ bytes") as e:
        rm.load(data, budget=200_000)
    assert "200,000" in str(e.value)


@pytest.mark.parametrize("type_", TYPES)
@pytest.mark.parametrize(("rows", "columns"), [(1, 32), (64, 96), (1000, 160), (4097, 2048)])
@pytest.mark.parametrize("binding", [1 << 14, 1 << 18, 128 << 20])
@pytest.mark.parametrize("buffer", [1 << 15, 256 << 20])
def test_segments_keep_the_limits(
    type_: str, rows: int, columns: int, binding: int, buffer: int
) -> None:
    limits = Limits(binding=binding, buffer=buffer)
    try:
        weight = plan_weight("w", type_, rows, columns, limits)
    except OutOfMemoryError as error:
        row = FORMATS[type_].planes[0].stride(columns) * 16
        assert 64 * row > min(binding, buffer) * 0.9, error
        assert "'w'" in str(error) and f"{columns:,}" in str(error)
        return
    at = 0
    for segment in weight.segments:
        assert segment.first == at and segment.rows > 0
        assert segment.first % 64 == 0, "tiles do not cross segments"
        at += segment.rows
        assert segment.storage.size <= buffer
        assert segment.storage.size <= binding  # repacking binds all of it
        end = 0
        for window in weight.operands(segment).values():
            assert window.offset % 256 == 0 and window.size <= binding
            assert window.offset >= end and window.offset + window.size <= segment.storage.size
            end = window.offset + window.size
    assert at == rows
    if min(binding, buffer) > 2 * weight.nbytes:
        assert len(weight.segments) == 1


SPLIT = rm.Shape(
    width=128, heads=4, kv_heads=2, head_size=32, feed_forward=192, layers=2, vocabulary=293
)


def results(model: Model, targets: str) -> dict[str, Any]:
    """Everything a model computes: logits, loss, gradients, a step."""
    rng = np.random.default_rng(3)
    batch = rm.batch(rng, [13, 9, 17], model.config.vocabulary)
    lora = LoraConfig(rank=8, alpha=16.0, target_modules=targets)
    learner = rm.learner(model, lora)
    learner.micro(batch)
    gradients = gpu.run(learner.gradients())
    # Before the update: Adam's first step follows the sign even of what is only rounding.
    loss, count = gpu.run(learner.evaluate([batch]))
    learner.update(step=1, learning_rate=1e-2, max_grad_norm=1.0)
    [report] = gpu.run(learner.reports())
    parameters = gpu.run(learner.parameters())
    segments = len(learner.trainables.layout.sizes)
    learner.close()
    logits = model.logits(batch.tokens[:20].tolist())
    return {
        "segments": segments,
        "gradients": gradients,
        "parameters": parameters,
        "numbers": np.array([report.loss, report.grad_norm, loss, count]),
        "logits": logits,
    }


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("type_", ["F32", "Q8_0", "Q4_0"])
def test_split_weights_and_arenas_compute_the_same(
    type_: str, tied: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = rm.build(replace(SPLIT, type=type_, tied=tied))
    targets = "all-linear" if tied else "all-linear,lm_head"
    whole = rm.load(data)
    expected = results(whole, targets)
    assert all(len(w.segments) == 1 for w in whole.weights.matrices.values())
    assert expected["segments"] == 1
    whole.close()
    # Chunks of the vocabulary that a segment ends in the middle of.
    monkeypatch.setattr(loss_module, "CHUNK_BYTES", 1)
    one = plan_weight("w", type_, 1, 192, Limits())
    row = sum(one.row_nbytes(plane) for plane in one.planes)
    segment = 64 * row + 512 * (len(one.planes) - 1)
    part = rm.load_split(
        data,
        {"binding": segment, "buffer": 2 * segment},
        {"binding": 56 << 10, "buffer": 56 << 10},
    )
    segments = {name: len(w.segments) for name, w in part.weights.matrices.items()}
    assert segments["token_embd.weight"] >= 4
    assert min(segments[f"blk.0.ffn_{n}.weight"] for n in ("gate", "up", "down")) >= 2
    got = results(part, targets)
    part.close()
    assert got["segments"] >= 3
    assert rm.difference(got["logits"], expected["logits"]) < 1e-5
    np.testing.assert_allclose(got["numbers"], expected["numbers"], rtol=1e-5)
    for name, gradient in expected["gradients"].items():
        assert rm.difference(got["gradients"][name], gradient) < 1e-5, name
    before = rm.start({name: p.shape for name, p in expected["parameters"].items()})
    for name, parameter in expected["parameters"].items():
        update, other = parameter - before[name], got["parameters"][name] - before[name]
        assert rm.difference(other, update) < 1e-2, name  # Adam's first step is a sign


def test_a_head_in_several_buffers_trains_alone() -> None:
    data = rm.build(replace(SPLIT, type="F32"))
    whole, part = rm.load(data), rm.load_split(data, {"binding": 64 * 768, "buffer": 1 << 20}, {})
    assert len(part.weights.matrices["output.weight"].segments) >= 4
    expected, got = results(whole, "lm_head"), results(part, "lm_head")
    for name, gradient in expected["gradients"].items():
        assert rm.difference(got["gradients"][name], gradient) < 1e-5, name
    whole.close()
    part.close()


def test_a_parameter_too_large_for_a_binding_is_refused() -> None:
    model = rm.load_split(rm.build(SPLIT), {}, {"binding": 4096})
    with pytest.raises(OutOfMemoryError, match=r"ffn_gate\.weight\.lora_b' needs 6,144 .* rank"):
        rm.planned(model, LoraConfig(rank=8), max_tokens=8, max_row=8)
    model.close()


def test_logits_keep_the_limits() -> None:
    """Few rows of logits at a time, where a binding is small."""
    data = rm.build(SPLIT)
    model = rm.load(data)
    tokens = np.random.default_rng(1).integers(0, 293, 30).tolist()
    expected = model.logits(tokens)
    model.device.limits = replace(model.device.limits, binding=33 << 10)
    session = Session(model.device, replace(model.base, limits=model.device.limits), {}, 32)
    assert 1 <= session.rows < 30
    gpu.run(session.open())
    np.testing.assert_array_equal(gpu.run(session.logits([tokens])), expected)
    some = gpu.run(session.logits([tokens[:10], tokens[10:]], [9, 29, 0]))
    assert some.shape == (3, 293)
    np.testing.assert_array_equal(some[0], expected[9])
    np.testing.assert_array_equal(some[2], expected[0])
    session.close()
    model.close()
