"""Attention and its gradients, every variant against the oracle."""

import re
from typing import Any

import numpy as np
import oracles
import pytest
from kernel_check import Checker, fit, make_ranges, who_sees

from wgtrain.engine.candidates import GPU_CANDIDATES
from wgtrain.engine.kernel import Kernel, load_kernel
from wgtrain.engine.tuning import Choice
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
    *,
    sees: np.ndarray | None = None,
    cap: float = 0.0,
    spread: float = 1.0,
    suffix: str = "",
    **how: Any,
) -> None:
    """Forward, delta and both backward kernels, each fed from the oracles.

    `sees`: who sees whom, causal rows by default; `spread`: standard deviation of scale q . k.
    """
    how |= {"CAP": cap} if cap else {}
    libraries = {"score": "score_capped"} if cap else {}
    checker, constants = fit(checkers, f"attention{suffix}", {"E4": head_size // 4, **how})
    check = checker.check
    rows = sum(lengths)
    q = normal(rows, heads * head_size) * spread
    k, v = normal(2, rows, kv_heads * head_size)
    scale = head_size**-0.5
    params = {"rows": "T", "heads": heads, "kv_heads": kv_heads, "scale": scale}
    ranges = make_ranges(who_sees(*lengths) if sees is None else sees)
    arrays = {"q": q, "k": k, "v": v, "key_range": ranges["key_range"]}
    common: dict[str, Any] = {"rows": rows, "constants": constants, "libraries": libraries}
    check(f"attention{suffix}", arrays, params, **common)
    shape = {"heads": heads, "kv_heads": kv_heads, "scale": scale, "CAP": cap}
    forward = oracles.attention(**arrays, **shape)
    dout = normal(*q.shape)
    delta = {"o": forward["o"], "dout": dout, "stats": forward["stats"]}
    sizes = {"rows": "T", "heads": heads, "e4": head_size // 4}
    check("attention_delta", delta, sizes, rows=rows)
    arrays |= {"dout": dout, "stats": oracles.attention_delta(**delta)["stats"]}
    common["scale"] = 1.0
    if sees is not None and sees.sum() == rows:  # dO . V - delta is 0 where one key is seen
        undone = {**arrays, "stats": arrays["stats"] * [1.0, 0.0]}
        common["scale"] = np.linalg.norm(oracles.attention_backward_q(**undone, **shape)["dq"])
    check(f"attention_backward_q{suffix}", arrays, params, **common)
    arrays["query_range"] = ranges["query_range"]
    del arrays["key_range"]
    check(f"attention_backward_kv{suffix}", arrays, params, **common)


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


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("window", [1, 3, 7, 8, 9, 33, 60])
def test_windows(checkers: tuple[Checker, Checker], window: int, variant: str) -> None:
    """Around blocks of 8 tokens, as long as the longest row and longer; several rows, and one."""
    for lengths, heads, kv_heads in (((19, 1, 33, 2), 4, 2), ((41,), 1, 1)):
        sees = who_sees(*lengths, window=window)
        check_attention(checkers, lengths, heads, kv_heads, 8, sees=sees, **VARIANTS[variant])


@pytest.mark.parametrize("window", [1, 15, 16, 17, 31, 32, 33])
def test_windows_in_whole_tiles(checkers: tuple[Checker, Checker], window: int) -> None:
    lengths = (33, 2, 64)
    sees = who_sees(*lengths, window=window)
    check_attention(checkers, lengths, 2, 1, 64, sees=sees, suffix="_tiled")


@pytest.mark.parametrize("variant", VARIANTS)
def test_ranges_need_not_be_causal(checkers: tuple[Checker, Checker], variant: str) -> None:
    """Rows whose tokens all see each other, and a prefix that does before tokens that look back."""
    lengths = (19, 1, 33)
    row = np.repeat(np.arange(3), lengths)
    both_ways = row[:, None] == row
    prefix = who_sees(*lengths) | (both_ways & (np.arange(53) < 11))
    for sees in (both_ways, prefix):
        check_attention(checkers, lengths, 4, 2, 8, sees=sees, **VARIANTS[variant])


@pytest.mark.parametrize("variant", VARIANTS)
def test_keys_outside_windows_are_not_visited(
    checkers: tuple[Checker, Checker], variant: str
) -> None:
    """Tokens that no token of a block of 64 sees, or is seen by, may hold anything."""
    how = dict(VARIANTS[variant])
    suffix = how.pop("suffix", "")
    rows, window = 128, 5
    ranges = make_ranges(who_sees(rows, window=window))
    params = {"rows": "T", "heads": 1, "kv_heads": 1, "scale": 0.3}
    arrays = {name: normal(rows, 8) for name in ("q", "k", "v", "dout")}
    arrays["stats"] = np.abs(normal(rows, 1, 2)) + 3
    unseen = {"attention": ("k", "v", 0, 56), "attention_backward_q": ("k", "v", 0, 56)}
    unseen["attention_backward_kv"] = ("q", "dout", 72, rows)
    written = {"attention": ("o",), "attention_backward_q": ("dq",)}
    written["attention_backward_kv"] = ("dk", "dv")
    for name, (one, other, first, after) in unseen.items():
        checker, constants = fit(checkers, name + suffix, {"E4": 2, **how})
        kernel = load_kernel(name + suffix, constants)
        found = []
        for fill in (0.0, np.nan):
            given = {n: a.copy() for n, a in arrays.items()} | ranges
            for part in (one, other):
                given[part][first:after] = fill
            given = {s.name: given[s.name] for s in kernel.slots if s.name in given}
            like = {n: np.zeros((rows, 8)) for n in written[name]}
            if name == "attention":
                del given["stats"]
                like["stats"] = arrays["stats"]
            found.append(
                checker.run(name + suffix, given, params, like, rows=rows, constants=constants)
            )
        block = slice(0, 64) if first else slice(64, rows)
        for output in written[name]:
            clean, dirty = (result[output][block] for result in found)
            assert np.isfinite(dirty).all(), (name, output)
            np.testing.assert_array_equal(clean, dirty)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("spread", [1.0, 8.0, 1e6])
def test_capped_scores(checkers: tuple[Checker, Checker], spread: float, variant: str) -> None:
    """Scores about the cap, above it where tanh is flat, and far beyond; within a window too."""
    for lengths, window in (((5, 1, 11), 0), ((19, 33), 9)):
        sees = who_sees(*lengths, window=window)
        more = {"sees": sees, "cap": 1.5, "spread": spread, **VARIANTS[variant]}
        check_attention(checkers, lengths, 4, 2, 8, **more)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("lengths", [(7,), (8,), (9,), (32,), (7, 8, 9, 32), (3, 4)])
def test_caps_and_windows_together(
    checkers: tuple[Checker, Checker], lengths: tuple[int, ...], variant: str
) -> None:
    """Rows around a window of 8 and of four times as many tokens, alone and packed; and two rows
    that would both fit into one window.
    """
    sees = who_sees(*lengths, window=8)
    more = {"sees": sees, "cap": 1.5, "spread": 2.0, **VARIANTS[variant]}
    check_attention(checkers, lengths, 4, 2, 8, **more)


@pytest.mark.parametrize("wrong", ["window 7", "window 9", "no window", "rows as one", "no cap"])
def test_wrong_windows_and_caps_are_seen(wrong: str) -> None:
    """Another reading differs by far more than kernels may."""
    lengths = (9, 32)
    seen = {
        "window 7": who_sees(*lengths, window=7),
        "window 9": who_sees(*lengths, window=9),
        "no window": who_sees(*lengths),
        "rows as one": who_sees(sum(lengths), window=8),
    }
    right = make_ranges(who_sees(*lengths, window=8))["key_range"]
    read = make_ranges(seen[wrong])["key_range"] if wrong in seen else right
    q, k, v = normal(41, 48), normal(41, 24), normal(41, 24)
    shape = {"heads": 4, "kv_heads": 2, "scale": 12**-0.5}
    o = oracles.attention(q, k, v, right, **shape, CAP=1.5)["o"]
    other = oracles.attention(q, k, v, read, **shape, CAP=0.0 if wrong == "no cap" else 1.5)["o"]
    assert np.linalg.norm(o - other) > 1e-2 * np.linalg.norm(o)


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
    arrays = {"q": q, "k": k, "v": normal(rows, 8)}
    arrays["key_range"] = make_ranges(who_sees(rows))["key_range"]
    params = {"rows": "T", "heads": 1, "kv_heads": 1, "scale": 1.0}
    kernel = "attention" if variant == "plain" else f"attention_{variant}"
    checker, constants = fit(checkers, kernel, {"E4": 2})
    checker.check(kernel, arrays, params, rows=rows, constants=constants, tolerance=2e-5)
