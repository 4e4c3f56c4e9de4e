"""Drawing tokens: filters beside transformers', draws beside numpy's, edges, and what it costs."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from wgtrain.errors import NonFiniteError, OptionError
from wgtrain.infer.sampling import (
    Sampler,
    Sampling,
    kept,
    likeliest,
    log_probability,
    penalised,
    uniform,
)

RANDOM = Sampling(temperature=1.0)


def logits(size: int, seed: int = 0, spread: float = 3.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, spread, size).astype(np.float32)


def probabilities(values: np.ndarray, how: Sampling) -> np.ndarray:
    """What is left of a distribution, float64 (V,)."""
    ids, weights = kept(values, how)
    out = np.zeros(len(values))
    out[slice(None) if ids is None else ids] = weights / weights.sum()
    return out


def processed(values: np.ndarray, how: Sampling, seen: list[int]) -> np.ndarray:
    """The same by transformers, as `generate` puts its processors in order."""
    import torch
    from transformers import GenerationConfig
    from transformers.generation import GenerationMixin

    config = GenerationConfig(
        do_sample=True,
        temperature=how.temperature,
        top_k=how.top_k,
        top_p=how.top_p,
        min_p=how.min_p or None,
        repetition_penalty=how.repeat_penalty,
    )
    mixin: Any = GenerationMixin()
    mixin.config = SimpleNamespace(is_encoder_decoder=False)
    chain = mixin._get_logits_processor(config, input_ids_seq_length=len(seen))
    found = chain(torch.tensor([seen]), torch.from_numpy(values[None].astype(np.float64)))
    return torch.softmax(found, -1)[0].numpy()


FILTERS = [
    RANDOM,
    Sampling(temperature=0.3),
    Sampling(temperature=2.5),
    Sampling(temperature=1.0, top_k=1),
    Sampling(temperature=1.0, top_k=7),
    Sampling(temperature=1.0, top_k=5000),
    Sampling(temperature=1.0, top_p=0.1),
    Sampling(temperature=1.5, top_p=0.9),
    Sampling(temperature=1.0, min_p=0.02),
    Sampling(temperature=1.0, repeat_penalty=1.7),
    Sampling(temperature=1.0, repeat_penalty=0.6),
    Sampling(temperature=1.3, top_k=50, top_p=0.8, min_p=0.03, repeat_penalty=1.2),
    Sampling(temperature=0.7, top_k=3, top_p=0.99, min_p=0.2, repeat_penalty=1.1),
]


@pytest.mark.oracle
@pytest.mark.parametrize("how", FILTERS, ids=str)
@pytest.mark.parametrize("size", [1, 2, 101, 4096])
def test_filters_are_those_of_transformers(how: Sampling, size: int) -> None:
    values = logits(size, size)
    seen = [size - 1, 0, size // 2, 0]
    wanted = processed(values, replace(how, top_k=min(how.top_k, size)), seen)
    mine = values if how.repeat_penalty == 1 else penalised(values, seen, how.repeat_penalty)
    found = probabilities(mine, how)
    assert ((found > 0) == (wanted > 0)).all()
    np.testing.assert_allclose(found, wanted, rtol=1e-9, atol=1e-15)


def by_llama_cpp(values: np.ndarray, how: Sampling, seen: list[int]) -> np.ndarray:
    """The distribution by llama.cpp's samplers, put in our order."""
    import ctypes

    from llama_cpp_oracle import llama_cpp as lib

    items = (lib.llama_token_data * len(values))()
    for i, logit in enumerate(values.tolist()):
        items[i].id, items[i].logit = i, logit
    pointer = ctypes.cast(items, ctypes.POINTER(lib.llama_token_data))
    array = lib.llama_token_data_array(pointer, len(values), -1, False)
    size, penalty = len(values), how.repeat_penalty
    penalties = lib.llama_sampler_init_penalties(size, len(seen), penalty, 0.0, 0.0)
    for token in seen:
        lib.llama_sampler_accept(penalties, token)
    for sampler in (
        penalties,
        lib.llama_sampler_init_temp(how.temperature),
        lib.llama_sampler_init_top_k(how.top_k),
        lib.llama_sampler_init_top_p(how.top_p, 1),
        lib.llama_sampler_init_min_p(how.min_p, 1),
        lib.llama_sampler_init_dist(0),
    ):
        lib.llama_sampler_apply(sampler, ctypes.byref(array))
        lib.llama_sampler_free(sampler)
    out = np.zeros(len(values))
    for item in array.data[: array.size]:
        out[item.id] = item.p
    return out


@pytest.mark.oracle
@pytest.mark.parametrize("how", FILTERS, ids=str)
def test_filters_are_those_of_llama_cpp(how: Sampling) -> None:
    """Each filter, where it stands in our chain; its numbers are f32."""
    values = logits(500, 5)
    seen = [7, 0, 450, 0, int(values.argmax())]
    wanted = by_llama_cpp(values, how, seen)
    mine = values if how.repeat_penalty == 1 else penalised(values, seen, how.repeat_penalty)
    found = probabilities(mine, how)
    assert ((found > 0) == (wanted > 0)).all()
    np.testing.assert_allclose(found, wanted, rtol=2e-5, atol=1e-9)
    other = Sampling(**{**vars(how), "temperature": how.temperature * 1.01})
    if (found > 0).sum() > 1:
        off = np.abs(probabilities(mine, other) - wanted) > 2e-5 * wanted + 1e-9
        assert off.any()


@pytest.mark.oracle
@pytest.mark.parametrize(
    "wrong", [{"temperature": 1.0}, {"top_k": 0}, {"top_p": 1.0}, {"min_p": 0.0}], ids=str
)
def test_another_setting_is_another_distribution(wrong: dict[str, float]) -> None:
    """The comparison above sees each of them."""
    how = Sampling(temperature=1.3, top_k=30, top_p=0.8, min_p=0.05)
    one_by_one = {"top_k": Sampling(1.3, 30), "top_p": Sampling(1.3, 0, 0.8)}
    name = next(iter(wrong))
    how = one_by_one.get(name, how if name == "temperature" else Sampling(1.3, 0, 1.0, 0.05))
    values = logits(500)
    found = probabilities(values, Sampling(**{**vars(how), **wrong}))
    assert np.abs(found - processed(values, how, [0])).max() > 1e-3


def chi_square(drawn: np.ndarray, wanted: np.ndarray) -> float:
    """Of counts beside 10,000 times probabilities; what is expected less than 5 times is one."""
    expected = wanted * drawn.sum()
    often = expected >= 5
    a = np.append(drawn[often], drawn[~often].sum())
    b = np.append(expected[often], expected[~often].sum())
    if b[-1] == 0:
        a, b = a[:-1], b[:-1]
    return float(((a - b) ** 2 / b).sum() / (len(a) - 1))


@pytest.mark.parametrize(
    "how",
    [RANDOM, Sampling(0.7), Sampling(1.5, top_k=20), Sampling(1.0, top_p=0.8, min_p=0.01)],
    ids=str,
)
def test_ten_thousand_draws_are_distributed_as_the_logits_say(how: Sampling) -> None:
    """Chi-square a degree of freedom is about 1; a distribution a little off is far from it."""
    values = logits(101, spread=1.5)
    sampler = Sampler(replace(how, seed=7), [])
    drawn = np.bincount([sampler.draw(values) for _ in range(10_000)], minlength=101)
    z = np.exp(values.astype(np.float64) / how.temperature)
    wanted = z / z.sum()
    order = np.argsort(-wanted)
    if how.top_k:
        wanted[order[how.top_k :]] = 0
    if how.top_p < 1:
        n = int((np.cumsum(wanted[order]) < how.top_p).sum()) + 1
        wanted[order[n:]] = 0
    wanted[wanted < how.min_p * wanted.max()] = 0
    wanted /= wanted.sum()
    mine = chi_square(drawn, wanted)
    theirs = chi_square(
        np.bincount(np.random.default_rng(3).choice(101, 10_000, p=wanted), minlength=101), wanted
    )
    assert max(mine, theirs) < 1.6, (mine, theirs)
    slightly = wanted**1.25 / (wanted**1.25).sum()
    assert chi_square(drawn, slightly) > 2.5


def test_a_draw_is_by_seed_and_number_alone() -> None:
    values = [logits(300, i, 1.0) for i in range(20)]

    def run(seed: int) -> list[int]:
        sampler = Sampler(Sampling(1.0, seed=seed), [])
        return [sampler.draw(one) for one in values]

    assert run(1) == run(1) != run(2)
    assert len({tuple(run(seed)) for seed in (0, 1, -1, 1 << 40, 1 << 63)}) == 5
    assert run(-1) == run((1 << 64) - 1)  # the same 64 bits
    # Numbers for good: the same everywhere, so that a seed is worth noting down.
    numbers = [uniform(0, 0).hex(), uniform(0, 1).hex(), uniform(42, 0).hex()]
    assert numbers == ["0x1.ae9b240796c2fp-1", "0x1.22f9a83f13064p-3", "0x1.0be38d4f7c5bap-2"]
    even = np.array([uniform(9, n) for n in range(4000)])
    assert 0 <= even.min() < 0.001 and 0.999 < even.max() < 1 and abs(even.mean() - 0.5) < 0.02


OPTIONS = [
    {"temperature": 0.0},
    {"temperature": 0.2},
    {"top_k": 2},
    {"top_p": 0.3},
    {"min_p": 0.5},
    {"repeat_penalty": 3.0},
    {"seed": 1},
]


@pytest.mark.parametrize("option", OPTIONS, ids=str)
def test_each_option_changes_the_draw(option: dict[str, Any]) -> None:
    values = logits(50, spread=1.0)
    plain, other = (Sampler(Sampling(**how), [3]) for how in ({"temperature": 1.0}, option))
    if "temperature" not in option:
        other = Sampler(Sampling(**{"temperature": 1.0, **option}), [3])
    assert [plain.draw(values) for _ in range(30)] != [other.draw(values) for _ in range(30)]


def test_the_penalty_is_for_prompt_and_answer_once_a_token() -> None:
    values = np.array([2.0, 1.9, -1.0, -1.1], np.float32)
    greedy = Sampling(repeat_penalty=1.5)
    assert Sampler(greedy, []).draw(values) == 0
    assert Sampler(greedy, [0, 0]).draw(values) == 1
    sampler = Sampler(greedy, [])
    assert [sampler.draw(values) for _ in range(3)] == [0, 1, 0]
    np.testing.assert_allclose(penalised(values, [0, 2], 2.0), [1, 1.9, -2, -1.1], rtol=1e-6)
    assert values[0] == 2.0  # the logits stay what they are


@pytest.mark.parametrize(
    ("how", "drawn"),
    [
        (Sampling(1.0, top_p=0.0), {1}),
        (Sampling(5e-324), {1}),
        (Sampling(1e-30, top_p=0.5, min_p=1.0), {1}),
        (Sampling(1e300), {0, 1, 2, 3}),
        (Sampling(1.0, top_k=10**9), {0, 1, 2, 3}),
        (Sampling(1.0, min_p=1.0), {1}),
        (Sampling(1e300, min_p=1.0), {0, 1, 2, 3}),
        (Sampling(1.0, top_k=2), {1, 2}),
    ],
    ids=str,
)
def test_edges(how: Sampling, drawn: set[int]) -> None:
    values = np.array([-3e38, 3.0, 2.9, 2.8], np.float32)
    if how.temperature < 1e300:
        drawn = drawn - {0}
    found = {Sampler(replace(how, seed=seed), []).draw(values) for seed in range(60)}
    assert found == drawn


def test_equals_are_taken_by_the_lowest_id() -> None:
    same = np.zeros(5, np.float32)
    assert Sampler(Sampling(), []).draw(same) == 0
    for top_p, left in ((0.0, 1), (0.2, 1), (0.5, 3), (0.99, 5)):
        ids, weights = kept(same, Sampling(1.0, top_p=top_p))
        assert ids is not None and ids.tolist() == list(range(left)) and len(weights) == left
    assert likeliest(same, 3) == [0, 1, 2] and likeliest(same, 9) == [0, 1, 2, 3, 4]
    assert likeliest(np.array([1, 3, 2, 3], np.float32), 3) == [1, 3, 2]


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("how", [Sampling(), Sampling(1.0, 5, 0.9)], ids=str)
def test_logits_that_are_no_numbers(wrong: float, how: Sampling) -> None:
    values = logits(9)
    sampler = Sampler(how, [])
    sampler.draw(values)
    values[4] = wrong
    with pytest.raises(NonFiniteError, match=r"token 2 of the answer: 1 of 9 .* of token 4: the"):
        sampler.draw(values)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("temperature", value) for value in (-0.1, float("nan"), float("inf"), "1", True, None)),
        *(("temperature", 10**400), ("repeat_penalty", 1e-300), ("repeat_penalty", 1e300)),
        *(("top_k", value) for value in (-1, 1.5, "3", True)),
        *(("top_p", value) for value in (-0.1, 1.1, "1")),
        *(("min_p", value) for value in (-0.1, 1.1, float("nan"))),
        *(("repeat_penalty", value) for value in (0, -1.0, float("inf"))),
        *(("seed", value) for value in (1 << 64, 0.5, None, -(1 << 63) - 1)),
    ],
)
def test_settings_out_of_range(name: str, value: Any) -> None:
    with pytest.raises(OptionError, match=f"{name} = .*: allowed is "):
        Sampling(**{name: value})


@pytest.mark.parametrize("temperature", [0.0, 5e-324, 1e308])
@pytest.mark.parametrize("penalty", [1e-200, 1e200])
def test_settings_at_their_ends(temperature: float, penalty: float) -> None:
    values = np.array([-3e38, 3e38, 1.0, -1.0], np.float32)  # of which the first two stand there
    drawn = Sampler(Sampling(temperature, repeat_penalty=penalty), [0, 1]).draw(values)
    if temperature < 1:
        assert drawn == (1 if penalty < 1 else 2)


def test_log_probabilities_are_of_the_raw_logits() -> None:
    values = logits(101)
    exact = values.astype(np.float64) - np.log(np.exp(values.astype(np.float64)).sum())
    chance, top = log_probability(values, 17, 5)
    order = np.argsort(-values)[:5].tolist()
    assert abs(chance - exact[17]) < 1e-12 and [i for i, _ in top] == order
    np.testing.assert_allclose([p for _, p in top], exact[order], atol=1e-12)
    assert log_probability(values, 17, 0) == (chance, ())
    shifted, _ = log_probability(values + np.float32(1000), 17, 0)
    assert abs(shifted - chance) < 1e-3  # of f32 logits that large
