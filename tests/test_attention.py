"""Attention and its gradients, every variant against the oracle."""

import re
from typing import Any

import numpy as np
import oracles
import pytest
from kernel_check import Checker, fit, make_spans

from wgtrain.engine.kernel import Kernel, load_kernel
from wgtrain.engine.tuning import GPU_CANDIDATES, Choice
from wgtrain.gpu import Limits

pytestmark = pytest.mark.gpu


def normal(*shape: int) -> np.ndarray:
    return np.random.standard_normal(shape)


ATTENTION = ("attention", "attention_backward_q", "attention_backward_kv")
# Tiles of 8 tokens by 8, slices of one and two vec4s of a head: many edges at few tokens.
SMALL_TILES = {"LANE_ROWS": 4, "LANE_COLS": 2, "MOST_SLICE4": 2}


VARIANTS = {
    "plain": {},
    "tiled": {"suffix": "_tiled", **SMALL_TILES},
    "subgroup": {"suffix": "_subgroup"},
}


def check_attention(
    checkers: tuple[Checker, Checker],
    lengths: tuple[int, ...],
    heads: int,
    kv_heads: int,
    head_size: int,
    **how: Any,
) -> None:
    """Forward, delta and both backward kernels, each fed from the oracles."""
    how = dict(how)
    suffix = how.pop("suffix", "")
    checker, constants = fit(checkers, f"attention{suffix}", {"E4": head_size // 4, **how})
    check = checker.check
    rows = sum(lengths)
    q = normal(rows, heads * head_size)
    k, v = normal(2, rows, kv_heads * head_size)
    params = {"rows": "T", "heads": heads, "kv_heads": kv_heads, "scale": head_size**-0.5}
    arrays = {"q": q, "k": k, "v": v, "spans": make_spans(*lengths)}
    check(f"attention{suffix}", arrays, params, rows=rows, constants=constants)
    forward = oracles.attention(**arrays, heads=heads, kv_heads=kv_heads, scale=params["scale"])
    dout = normal(*q.shape)
    delta = {"o": forward["o"], "dout": dout, "stats": forward["stats"]}
    sizes = {"rows": "T", "heads": heads, "e4": head_size // 4}
    check("attention_delta", delta, sizes, rows=rows)
    arrays |= {"dout": dout, "stats": oracles.attention_delta(**delta)["stats"]}
    for kernel in ATTENTION[1:]:
        check(f"{kernel}{suffix}", arrays, params, rows=rows, constants=constants, scale=1.0)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("head_size", [4, 8, 12, 20, 48, 64])
def test_attention(checkers: tuple[Checker, Checker], head_size: int, variant: str) -> None:
    cases: list[tuple[tuple[int, ...], int, int]] = [((1,), 1, 1), ((5, 1, 11), 4, 2)]
    if head_size == 48 and variant == "subgroup":  # four tokens a lane, so 32 a workgroup
        cases += [((33, 2, 1), 4, 2), ((40, 29), 3, 1), ((64,), 2, 2)]
    if head_size == 8:
        cases += [((32,), 2, 2), ((3, 28), 3, 1), ((33, 2, 1), 6, 2), ((31, 33, 1), 2, 1)]
        cases += [((7,), 1, 1), ((9, 8), 3, 3), ((1,) * 17, 2, 1)]  # around blocks of 8 tokens
    for case in cases:
        check_attention(checkers, *case, head_size, **VARIANTS[variant])


@pytest.mark.parametrize("head_size", [8, 80, 128, 256])
def test_attention_in_whole_tiles(checkers: tuple[Checker, Checker], head_size: int) -> None:
    """With the constants as they are: 16 tokens of one side, 32 of the other."""
    for case in (((15, 2, 33, 16), 2, 1), ((1, 64), 2, 2)):
        check_attention(checkers, *case, head_size, suffix="_tiled")


def test_variants_take_what_attention_takes() -> None:
    """The same bindings and parameters, in the least workgroup memory an adapter has."""
    for name in ATTENTION:
        kernel = load_kernel(name)
        for variant in (load_kernel(f"{name}_tiled"), load_kernel(f"{name}_subgroup")):
            assert variant.params == kernel.params
            assert {s.name: s for s in variant.slots} == {s.name: s for s in kernel.slots}
        for choice in (Choice(f"{name}_tiled"), *GPU_CANDIDATES[name]):
            for head_size in range(4, 260, 4):
                constants = {**dict(choice.constants), "E4": head_size // 4}
                shared = shared_bytes(load_kernel(choice.kernel, constants))
                assert 0 < shared <= Limits().workgroup_memory, (choice, head_size)


def shared_bytes(kernel: Kernel) -> int:
    """Bytes of a kernel's workgroup memory."""
    found = re.findall(r"var<workgroup> \w+: array<(vec4<f32>|f32), ([^;]*)>;", kernel.code)
    sizes = {"vec4<f32>": 16, "f32": 4}
    plain = [(kind, re.sub(r"(\d+)u", r"\1", count)) for kind, count in found]
    return sum(sizes[kind] * int(eval(count, dict(kernel.constants))) for kind, count in plain)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("offset", [-300.0, 300.0])
def test_attention_with_large_scores(
    checkers: tuple[Checker, Checker], offset: float, variant: str
) -> None:
    """Scores whose exponentials would overflow or vanish: only their differences matter."""
    rows = 9
    q, k = np.ones((rows, 8)), np.ones((rows, 8)) * offset / 8 + normal(rows, 8)
    arrays = {"q": q, "k": k, "v": normal(rows, 8), "spans": make_spans(rows)}
    params = {"rows": "T", "heads": 1, "kv_heads": 1, "scale": 1.0}
    kernel = "attention" if variant == "plain" else f"attention_{variant}"
    checker, constants = fit(checkers, kernel, {"E4": 2})
    checker.check(kernel, arrays, params, rows=rows, constants=constants, tolerance=2e-5)
