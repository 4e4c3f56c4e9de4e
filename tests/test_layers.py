"""Layers that differ: whom each sees, what its scores are, how fast its positions turn."""

from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import oracles
import pytest
import random_model as rm
from kernel_check import make_positions, make_ranges, who_sees

from wgtrain import gpu
from wgtrain.engine.inputs import InputBuffer, visible
from wgtrain.infer.model import Model
from wgtrain.infer.session import Session
from wgtrain.model.layers import Layer, Rope, RopeTables
from wgtrain.model.rope import LongRope

SLOW, FAST = Rope(1e6, 12, interleaved=False), Rope(100.0, 8, interleaved=False)
LAYERS = (Layer(SLOW), Layer(FAST, window=3, softcap=2.0), Layer(SLOW, window=7))
SHAPE = rm.Shape(
    architecture="qwen2", head_size=12, width=40, heads=4, kv_heads=2, layers=len(LAYERS)
)
LENGTHS = (11, 1, 8)


@pytest.fixture(scope="module")
def model() -> Iterator[Model]:
    opened = rm.load(rm.build(SHAPE))
    yield opened
    opened.close()


def logits(model: Model, rows: list[list[int]], layers: tuple[Layer, ...]) -> np.ndarray:
    """What a model of such layers gives."""
    base = replace(model.base, config=replace(model.config, layers=layers))
    session = Session(model.device, base, {}, sum(map(len, rows)))
    try:
        gpu.run(session.open())
        return gpu.run(session.logits(rows))
    finally:
        session.close()


def expected_logits(
    tokens: np.ndarray, layers: tuple[Layer, ...] = LAYERS, lengths: tuple[int, ...] = LENGTHS
) -> np.ndarray:
    """What the model computes, from the kernels' oracles in float64."""
    w = {name: rm.decode(x).astype(np.float64) for name, x in rm.tensors(SHAPE).items()}
    positions, heads, kv_heads = make_positions(*lengths), SHAPE.heads, SHAPE.kv_heads
    sizes = {"heads": heads, "kv_heads": kv_heads, "scale": SHAPE.head_size**-0.5}

    def norm(x: np.ndarray, name: str) -> np.ndarray:
        return oracles.rms_norm(x, w[name], 1, 1e-5)["y"]

    x = w["token_embd.weight"][tokens]
    for number, layer in enumerate(layers):
        blk, rope = f"blk.{number}.", layer.rope
        h = norm(x, f"{blk}attn_norm.weight")
        q, k, v = (h @ w[f"{blk}attn_{n}.weight"].T + w[f"{blk}attn_{n}.bias"] for n in "qkv")
        if rope:
            pairs, divisors = np.arange(rope.rotary // 2), np.ones(rope.rotary // 2)
            if isinstance(rope.scaling, LongRope):
                divisors *= rope.scaling.long if max(lengths) > 8 else rope.scaling.short
            turned = rope.theta ** (-2 * pairs / rope.rotary) / divisors
            angles = np.arange(max(lengths))[:, None] * turned
            table = np.stack([np.cos(angles), np.sin(angles)], -1)
            q = oracles.rope(q, positions, table, heads, rope.rotary)["y"]
            k = oracles.rope(k, positions, table, kv_heads, rope.rotary)["y"]
        sees = make_ranges(who_sees(*lengths, window=layer.window))["key_range"]
        o = oracles.attention(q, k, v, sees, **sizes, CAP=layer.softcap)["o"]
        x = x + o @ w[f"{blk}attn_output.weight"].T
        h = norm(x, f"{blk}ffn_norm.weight")
        gate, up = (h @ w[f"{blk}ffn_{n}.weight"].T for n in ("gate", "up"))
        x = x + oracles.glu(gate, up)["y"] @ w[f"{blk}ffn_down.weight"].T
    return norm(x, "output_norm.weight") @ w["output.weight"].T


@pytest.mark.gpu
def test_each_layer_has_its_own_range_score_and_turn(model: Model) -> None:
    rng = np.random.default_rng(4)
    rows = [rng.integers(0, SHAPE.vocabulary, n).tolist() for n in LENGTHS]
    expected = expected_logits(np.concatenate(rows))
    assert rm.difference(logits(model, rows, LAYERS), expected) < 2e-6
    assert rm.difference(logits(model, rows, LAYERS[::-1]), expected) > 1e-2


@pytest.mark.gpu
def test_layers_without_positions_and_lists_by_length(model: Model) -> None:
    """A session's rows take the lists of their own length, whatever came before them."""
    lists = LongRope((1.0, 1.5, 2.0), (2.0, 4.0, 8.0), 8)
    rope = Rope(1e4, 6, interleaved=False, scaling=lists)
    layers = (Layer(rope), Layer(None), Layer(rope, window=7))
    rng = np.random.default_rng(4)
    base = replace(model.base, config=replace(model.config, layers=layers))
    session = Session(model.device, base, {}, 20)
    try:
        gpu.run(session.open())
        for lengths in ((3, 8), (3, 9), (8,), LENGTHS):
            rows = [rng.integers(0, SHAPE.vocabulary, n).tolist() for n in lengths]
            found = gpu.run(session.logits(rows))
            expected = expected_logits(np.concatenate(rows), layers, lengths)
            assert rm.difference(found, expected) < 2e-6, lengths
    finally:
        session.close()


@pytest.mark.parametrize("length", [5, 9])
def test_tables_whose_change_was_cut_short_are_written_again(length: int) -> None:
    lists = LongRope((1.0, 1.5, 2.0), (2.0, 4.0, 8.0), 8)
    tables = RopeTables([Layer(Rope(1e4, 6, interleaved=False, scaling=lists))], 20)
    memory: Any = "memory"
    tables.storage.buffer = memory
    written: list[Any] = []

    def write(buffer: Any, at: int, content: np.ndarray) -> None:
        written.append(content)
        if len(written) == 2:
            raise KeyboardInterrupt

    device: Any = SimpleNamespace(write=write)
    tables.write(device, 5)
    with pytest.raises(KeyboardInterrupt):
        tables.follow(device, 9)
    tables.follow(device, length)
    tables.follow(device, length)
    assert len(written) == 3
    assert (written[2] == written[length > 8]).all() and (written[0] != written[1]).any()


@pytest.mark.parametrize("window", [0, 1, 2, 5, 11, 100])
def test_visible(window: int) -> None:
    batch = rm.batch(np.random.default_rng(0), list(LENGTHS), 9)
    keys, queries = visible(batch.starts, batch.ends, window)
    expected = make_ranges(who_sees(*LENGTHS, window=window))
    assert keys.dtype == queries.dtype == np.uint32
    np.testing.assert_array_equal(keys, expected["key_range"])
    np.testing.assert_array_equal(queries, expected["query_range"])
    assert (np.diff(keys.astype(int), axis=0) >= 0).all()
    assert (np.diff(queries.astype(int), axis=0) >= 0).all()


def test_inputs_of_every_window() -> None:
    """Each window's ranges lie where its layers read them; a stream may be shorter than planned."""
    buffer = InputBuffer(90, (0, 3))
    batch = rm.batch(np.random.default_rng(0), list(LENGTHS), 9)
    content, _ = buffer.pack(batch.tokens, batch.starts, batch.ends, batch.targets)
    for window in (0, 3):
        expected = make_ranges(who_sees(*LENGTHS, window=window))
        ranges = buffer.inputs.ranges[window]
        for place, name in ((ranges.keys, "key_range"), (ranges.queries, "query_range")):
            found = content[place.offset : place.offset + place.size].view(np.uint32)
            np.testing.assert_array_equal(found.reshape(-1, 2)[: sum(LENGTHS)], expected[name])
    place = buffer.inputs.positions
    found = content[place.offset : place.offset + place.size].view(np.uint32)
    np.testing.assert_array_equal(found[: sum(LENGTHS)], make_positions(*LENGTHS))


@pytest.mark.gpu
def test_equal_rotary_tables_are_there_once(model: Model) -> None:
    tables = RopeTables(LAYERS, 21)
    assert list(tables.windows) == [SLOW, FAST]
    device, storage = model.device, tables.storage
    storage.buffer = device.create_buffer(storage.size, storage.name)
    try:
        tables.write(device)
        for rope, window in tables.windows.items():
            assert window.offset % 256 == 0 and window.size == 21 * rope.rotary * 4
            raw = gpu.run(device.read(storage.buffer, window.offset, window.size))
            np.testing.assert_array_equal(np.frombuffer(raw, np.float32), rope.table(21).ravel())
    finally:
        device.free(storage.buffer)
