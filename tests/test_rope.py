"""Rotary embeddings and what stretches them: against formulas of their own, and transformers'."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from specs import llama3_divisors

from wgtrain import gpu
from wgtrain.files import hf_rope
from wgtrain.files.magnitudes import longrope_magnitude, yarn_magnitude
from wgtrain.gpu import Device
from wgtrain.model.layers import Layer, RopeTables
from wgtrain.model.rope import (
    LongRope,
    QueryScale,
    Rope,
    Yarn,
)

PLAIN = Rope(1e4, 64, interleaved=False)
LISTS = tuple(1 + 0.1 * i for i in range(32)), tuple(4 + 0.3 * i for i in range(32))
KINDS: dict[str, tuple[Rope, dict[str, Any]]] = {
    "linear": (replace(PLAIN, linear=3.0), {"rope_type": "linear", "factor": 3.0}),
    "llama3": (
        replace(PLAIN, divisors=llama3_divisors(1e4, 64, 8.0, 1.0, 4.0, 48)),
        {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 48,
        },
    ),
    "longrope": (
        replace(PLAIN, scaling=LongRope(*LISTS, 40), attn_factor=longrope_magnitude(3.2, 40)),
        {
            "rope_type": "longrope",
            "short_factor": list(LISTS[0]),
            "long_factor": list(LISTS[1]),
            "factor": 3.2,
            "original_max_position_embeddings": 40,
        },
    ),
}
# Betas at which both ends of the ramp lie inside the 32 pairs.
YARNS: dict[str, tuple[Yarn, dict[str, Any]]] = {
    "betas": (Yarn(4.0, 256), {}),
    "other betas": (Yarn(4.0, 256, 4.0, 1.0), {"beta_fast": 4.0, "beta_slow": 1.0}),
    "fractions": (Yarn(4.0, 256, truncate=False), {"truncate": False}),
    "equal ends": (Yarn(4.0, 256, 2.0, 2.0, truncate=False), {"beta_fast": 2.0, "beta_slow": 2.0}),
    "a factor of its own": (Yarn(4.0, 256, attention_factor=0.8), {"attention_factor": 0.8}),
    "mscale": (
        Yarn(4.0, 256, attention_factor=yarn_magnitude(4.0, 0.7, 1.2)),
        {"mscale": 0.7, "mscale_all_dim": 1.2},
    ),
    "no stretch": (Yarn(1.0, 256), {}),
}
YARNS["equal ends"][1]["truncate"] = False
for name, (yarn, given) in YARNS.items():
    common = {
        "rope_type": "yarn",
        "factor": yarn.factor,
        "original_max_position_embeddings": yarn.context,
    }
    KINDS[f"yarn, {name}"] = replace(PLAIN, scaling=yarn), common | given


def magnitude(rope: Rope) -> float:
    """What the table's first cosine says, whose angle is 0."""
    assert rope.table(1)[0, 0, 0] == np.float32(rope.magnitude)
    return rope.magnitude


@pytest.mark.oracle
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("length", [40, 300])
def test_as_transformers_does(kind: str, length: int) -> None:
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    rope, parameters = KINDS[kind]
    config = LlamaConfig(
        hidden_size=128,
        num_attention_heads=2,
        head_dim=64,
        max_position_embeddings=1024,
        rope_parameters={"rope_theta": 1e4, **parameters},
    )
    make = ROPE_INIT_FUNCTIONS[parameters["rope_type"]]
    frequencies, factor = make(config, "cpu", seq_len=length)
    np.testing.assert_allclose(rope.frequencies(length), frequencies.numpy(), rtol=1e-6)
    assert magnitude(rope) == pytest.approx(factor, rel=1e-6)


def test_plain() -> None:
    """Frequencies fall with the pair by the rotary width, not the head's; cos and sin turn them."""
    rope = Rope(500.0, 10, interleaved=True)
    want = [500 ** (-2 * i / 10) for i in range(5)]
    np.testing.assert_allclose(rope.frequencies(7), want, rtol=1e-15)
    table = rope.table(7)
    assert table.shape == (7, 5, 2) and table.dtype == np.float32
    np.testing.assert_array_equal(table[6, :, 0], np.cos(6 * np.array(want)).astype(np.float32))
    np.testing.assert_array_equal(table[6, :, 1], np.sin(6 * np.array(want)).astype(np.float32))
    twice = replace(rope, attn_factor=2.0)
    np.testing.assert_array_equal(twice.table(7), 2 * table)


def test_divisors_and_linear_both_count() -> None:
    divisors = tuple(1.0 + i for i in range(32))
    rope = replace(PLAIN, divisors=divisors, linear=3.0)
    plain = PLAIN.frequencies(1)
    np.testing.assert_allclose(rope.frequencies(1), plain / divisors / 3, rtol=1e-15)


@pytest.mark.parametrize("truncate", [True, False])
@pytest.mark.parametrize("betas", [(32.0, 1.0), (4.0, 1.0)])
def test_yarn(betas: tuple[float, float], truncate: bool) -> None:
    """What turns often stays, what turns seldom is divided, and between the share of both is
    linear in the number of the pair.
    """
    rope = replace(PLAIN, scaling=Yarn(4.0, 256, *betas, truncate))
    plain, made = PLAIN.frequencies(1), rope.frequencies(1)
    divided = (plain - made) / (plain - plain / 4)
    ends = [64 * math.log(256 / (2 * math.pi * beta)) / (2 * math.log(1e4)) for beta in betas]
    if truncate:
        ends = [math.floor(ends[0]), math.ceil(ends[1])]
    assert 0 <= ends[0] < ends[1] < 31
    pairs = np.arange(32)
    want = np.clip((pairs - ends[0]) / (ends[1] - ends[0]), 0, 1)
    np.testing.assert_allclose(divided, want, atol=1e-12)
    assert magnitude(rope) == pytest.approx(0.1 * math.log(4) + 1, rel=1e-7)


WRONG = {
    "no magnitude": {"attention_factor": 1.0},
    "another context": {"context": 1024},
    "other betas": {"beta_fast": 4.0},
    "fractions": {"truncate": False},
    "linear": {"beta_fast": 1e9, "beta_slow": 1e8},
}


@pytest.mark.parametrize("wrong", WRONG)
def test_each_number_of_yarn_counts(wrong: str) -> None:
    """By far more than what two correct tables may differ by."""
    right = Yarn(4.0, 256)
    tables = [
        replace(PLAIN, scaling=yarn).table(300) for yarn in (right, replace(right, **WRONG[wrong]))
    ]
    assert np.abs(tables[0] - tables[1]).max() > 1e-2


def test_yarn_magnitude() -> None:
    """Of mistral3, whose two scales cancel where they are equal."""
    assert yarn_magnitude(0.5) == yarn_magnitude(1.0) == yarn_magnitude(16.0, 1.0, 1.0) == 1.0
    assert yarn_magnitude(16.0) == pytest.approx(0.1 * math.log(16) + 1)


def test_llama3_divisors() -> None:
    """None where a pair turns more than `high` times, all where less than `low`, and a band."""
    numbers = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    numbers["original_max_position_embeddings"] = 48.0
    divisors = hf_rope.Rope("llama3", 1e4, numbers).divisors(64).tolist()
    assert divisors == pytest.approx(llama3_divisors(1e4, 64, 8.0, 1.0, 4.0, 48), rel=1e-6)
    for pair, divisor in enumerate(divisors):
        turns = 48 * 1e4 ** (-2 * pair / 64) / (2 * math.pi)
        share = (turns - 1) / 3
        want = 1.0 if turns > 4 else 8.0 if turns < 1 else 1 / ((1 - share) / 8 + share)
        assert divisor == pytest.approx(want, rel=1e-6), pair
    assert len({*divisors} - {1.0, 8.0}) > 3


def test_longrope_takes_its_list_by_length() -> None:
    rope, plain = KINDS["longrope"][0], PLAIN.frequencies(1)
    for length, divisors in ((40, LISTS[0]), (41, LISTS[1])):
        np.testing.assert_allclose(rope.frequencies(length), plain / divisors, rtol=1e-15)
    np.testing.assert_array_equal(rope.table(64), rope.table(64, 41))
    assert np.abs(rope.table(64) - rope.table(64, 40)).max() > 0.1
    assert longrope_magnitude(0.5, 40) == longrope_magnitude(1.0, 40) == 1.0
    assert longrope_magnitude(3.0, 1) == 1.0  # of no context a power can be found


UNUSABLE = {
    "a list too short": replace(PLAIN, divisors=(1.0,) * 31),
    "a divisor of zero": replace(PLAIN, divisors=(1.0,) * 31 + (0.0,)),
    "a divisor that is no number": replace(PLAIN, divisors=(1.0,) * 31 + (math.nan,)),
    "a divisor without end": replace(PLAIN, divisors=(1.0,) * 31 + (math.inf,)),
    "a wrong long list": replace(PLAIN, scaling=LongRope(LISTS[0], LISTS[1][:31], 40)),
    "a wrong short list": replace(PLAIN, scaling=LongRope((), LISTS[1], 40)),
    "yarn of theta 1": replace(PLAIN, theta=1.0, scaling=Yarn(4.0, 256)),
    "yarn of no context": replace(PLAIN, scaling=Yarn(4.0, 0)),
    "factors beyond f32": replace(PLAIN, attn_factor=3e38, scaling=Yarn(1e30, 256)),
    "frequencies beyond f32": replace(PLAIN, linear=1e-39),
}


@pytest.mark.parametrize("what", UNUSABLE)
def test_what_makes_no_table(what: str) -> None:
    assert not UNUSABLE[what].usable


@pytest.mark.parametrize("kind", KINDS)
def test_what_makes_a_table(kind: str) -> None:
    assert KINDS[kind][0].usable


def test_query_scale() -> None:
    table = QueryScale(0.1, 64).table(200)
    want = [1 + 0.1 * math.log(1 + math.floor(position / 64)) for position in range(200)]
    np.testing.assert_array_equal(table, np.array(want, np.float32))
    assert table[63] == 1 < table[64]


@pytest.mark.gpu
def test_tables_of_layers_that_differ(device: Device) -> None:
    """No table where none is needed; lists by the length of the rows, again as they change."""
    scale, high = QueryScale(0.1, 5), QueryScale(0.1, 50)
    long = Rope(1e4, 4, interleaved=False, scaling=LongRope((1.0, 2.0), (3.0, 4.0), 8))
    small = Rope(1e4, 6, interleaved=False)
    tables = RopeTables(
        [Layer(None), Layer(long, query_scale=scale), Layer(small), Layer(long, query_scale=high)],
        20,
    )
    assert list(tables.windows) == [long, small, scale]
    storage = tables.storage
    storage.buffer = device.create_buffer(storage.size, storage.name)

    def read() -> list[np.ndarray]:
        raw = [gpu.run(device.read(storage.buffer, w[1], w[2])) for w in tables.windows.values()]
        return [np.frombuffer(part, np.float32) for part in raw]

    try:
        for step, length in ((tables.write, 0), (tables.follow, 8), (tables.follow, 9)):
            step(device, length)
            want = [long.table(20, length), small.table(20), scale.table(20)]
            for got, table in zip(read(), want, strict=True):
                np.testing.assert_array_equal(got, table.ravel())
        device.write(storage.buffer, 0, bytes(storage.size))
        tables.follow(device, 19)  # as before: nothing is written
        assert not np.concatenate(read()).any()
    finally:
        device.free(storage.buffer)


def test_no_layer_needs_a_table() -> None:
    tables = RopeTables([Layer(None)] * 2, 20)
    assert not tables.windows and tables.storage.size > 0
