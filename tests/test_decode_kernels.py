"""Kernels of decoding, which few rows meet, against the oracles of what they stand for."""

from typing import Any

import numpy as np
import pytest
from kernel_check import Checker, fit, pack_weight, workgroup
from random_blocks import SHAPES_OF_PACKS
from test_product_variants import loaded

from wgtrain.engine.candidates import CANDIDATES, GPU_CANDIDATES
from wgtrain.engine.graph import padded
from wgtrain.engine.kernel import load_kernel
from wgtrain.engine.products import MOST_FEW
from wgtrain.engine.tuning import DEFAULT_CPU, DEFAULT_GPU, Choice
from wgtrain.engine.weight import FORMATS
from wgtrain.files import BLOCKS
from wgtrain.gpu import Limits

pytestmark = pytest.mark.gpu

MATVEC: dict[str, dict[str, int]] = {
    "matvec": {"LANES": 4},
    "matvec_split": {"COLS": 2, "SPLIT": 4},
    "matvec_subgroup": {},
}
ROWS = 2  # that are made at once
# rows, N, K: fewer and more rows than these, steps that end within a subgroup's vec4s
SHAPES = [(1, 1, 1), (3, 7, 5), (2, 33, 31), (5, 70, 132)]


def normal(*shape: int) -> np.ndarray:
    return np.random.standard_normal(shape)


def columns_of(type_: str, columns: int) -> int:
    """The nearest number of columns that the type can have."""
    block = BLOCKS[type_].size
    return -(-columns // block) * block


def check_matvec(
    checkers: tuple[Checker, Checker],
    kernel: str,
    shape: tuple[int, int, int],
    type_: str,
    constants: dict[str, int] | None = None,
    rank: int = 0,
    at_once: int = ROWS,
) -> None:
    """Plain; scaled onto what is there, in a window of wider rows, from row 5 of W on."""
    rows, n, k = shape
    given = MATVEC[kernel] if constants is None else constants
    checker, constants = fit(checkers, kernel, {**given, "ROWS": at_once})
    k = columns_of(type_, k)
    arrays = {"x": normal(rows, k), "weight": pack_weight(normal(n + 5, k), type_)}
    params = {"rows": "T", "n": n, "k4": padded(k) // 4, "scale": 1.0, "weight_row": 0, "add": 0}
    params |= {"y_stride": padded(n) // 4, "y_column": 0}
    how: dict[str, Any] = {"rows": rows, "constants": constants}
    if rank:
        params |= {"lora_rank": rank, "lora_row": 3, "lora_scale": 0.25}
        arrays |= {"lora": normal(rows, rank), "lora_matrix": normal(n + 4, rank)}
        how["libraries"] = {"lora": "lora"}
    checker.check(kernel, arrays, params, **how)
    params |= {"scale": 0.25, "weight_row": 5, "y_stride": padded(n) // 4 + 3, "y_column": 2}
    arrays["y"], params["add"] = normal(rows, padded(n) + 12), 1
    checker.check(kernel, arrays, params, **how)


@pytest.mark.parametrize("type_", sorted(FORMATS))
@pytest.mark.parametrize("kernel", MATVEC)
def test_matvec(checkers: tuple[Checker, Checker], kernel: str, type_: str) -> None:
    for shape in SHAPES if type_ in SHAPES_OF_PACKS else SHAPES[-1:]:
        check_matvec(checkers, kernel, shape, type_)


@pytest.mark.parametrize("rank", [1, 8, 33])
@pytest.mark.parametrize("kernel", MATVEC)
def test_matvec_with_an_adapter(checkers: tuple[Checker, Checker], kernel: str, rank: int) -> None:
    """s z B^T in the same sums, from row 3 of B on."""
    for type_ in ("F32", "Q8_0"):
        check_matvec(checkers, kernel, SHAPES[2], type_, rank=rank)


@pytest.mark.parametrize("kernel", MATVEC)
def test_matvec_with_a_bias(checkers: tuple[Checker, Checker], kernel: str) -> None:
    """Alone, and beside an adapter; a part of the outputs that begins at a vec4."""
    checker, constants = fit(checkers, kernel, {**MATVEC[kernel], "ROWS": ROWS})
    for rows, n, k in SHAPES:
        params = {"rows": "T", "n": n, "k4": padded(k) // 4, "scale": 0.5, "weight_row": 0}
        params |= {"y_stride": padded(n) // 4, "y_column": 0, "add": 0, "lora_row": 8}
        arrays = {"x": normal(rows, k), "weight": pack_weight(normal(n, k), "F32")}
        arrays["bias"] = normal(n + 8)
        libraries = {"bias": "bias"}
        how = {"rows": rows, "constants": constants}
        checker.check(kernel, arrays, params, libraries=libraries, **how)
        arrays |= {"lora": normal(rows, 3), "lora_matrix": normal(n + 8, 3)}
        params |= {"lora_rank": 3, "lora_scale": 0.25}
        checker.check(kernel, arrays, params, libraries={**libraries, "lora": "lora"}, **how)


@pytest.mark.parametrize("steps", [0, 1, 7])
@pytest.mark.parametrize("kernel", MATVEC)
def test_matvec_with_loaded_adapters(
    checkers: tuple[Checker, Checker], kernel: str, steps: int
) -> None:
    """The sum of strengths times z B^T over the quads in the list, from row 3 of B on."""
    checker, constants = fit(checkers, kernel, {**MATVEC[kernel], "ROWS": ROWS})
    for rows, n, k in SHAPES:
        params = {"rows": "T", "n": n, "k4": padded(k) // 4, "scale": 0.5, "weight_row": 0}
        params |= {"y_stride": padded(n) // 4, "y_column": 0, "add": 1}
        arrays, place = loaded(rows, n + 4, steps)
        arrays |= {"x": normal(rows, k), "weight": pack_weight(normal(n, k), "F32")}
        arrays["y"] = normal(rows, padded(n))
        how = {"constants": constants, "libraries": {"lora": "lora_stacked"}}
        checker.check(kernel, arrays, {**params, **place}, rows=rows, scale=1.0, **how)


def listed(*families: str) -> set[Choice]:
    """Everything that tables and sweeps may choose for some families."""
    found = {table.choice(family) for table in (DEFAULT_CPU, DEFAULT_GPU) for family in families}
    for entries in (CANDIDATES, GPU_CANDIDATES):
        found |= {choice for family in families for choice in entries.get(family, ())}
    return found


def test_matvec_with_the_constants_of_the_tables(checkers: tuple[Checker, Checker]) -> None:
    for choice in sorted(listed("nv", "nv small"), key=str):
        invocations, memory = workgroup(
            load_kernel(choice.kernel, {**dict(choice.constants), "ROWS": MOST_FEW})
        )
        assert invocations <= Limits().invocations and memory <= Limits().workgroup_memory
        check_matvec(
            *(checkers, choice.kernel, (8, 70, 128), "Q4_0", dict(choice.constants)),
            rank=8,
            at_once=8,
        )


def test_the_largest_vocabularies_are_within_a_grid() -> None:
    for choice in listed("nv"):
        kernel = load_kernel(choice.kernel, dict(choice.constants))
        params = {field: "T" if field == "rows" else 1 for field, _ in kernel.params}
        counts = kernel.grid_function({**params, "n": 500_000})(MOST_FEW, 0)
        assert max(counts) <= Limits().workgroups, choice


def check_decode(
    checkers: tuple[Checker, Checker],
    ranges: list[tuple[int, int]],
    heads: tuple[int, int],
    head_size: int,
    constants: dict[str, int],
    cap: float = 0.0,
) -> None:
    """Queries that see these ranges of a cache; what lies outside them is NaN."""
    rows, (many, few) = len(ranges), heads
    k, v = normal(2, max(after for _, after in ranges) + 3, few * head_size)
    seen = np.zeros(len(k), bool)
    for first, after in ranges:
        seen[first:after] = True
    k[~seen] = v[~seen] = np.nan
    arrays = {"q": normal(rows, many * head_size), "k": k, "v": v}
    arrays["key_range"] = np.array(ranges, np.uint32)
    params = {"rows": "T", "heads": many, "kv_heads": few, "scale": head_size**-0.5}
    constants = {**constants, "E4": head_size // 4, "GROUP": many // few}
    constants |= {"CAP": cap} if cap else {}
    libraries = {"score": "score_capped"} if cap else {}
    checkers[0].check(
        "attention_decode",
        *(arrays, params),
        rows=rows,
        constants=constants,
        libraries=libraries,
    )


FEW = {"LANES": 4, "STEPS": 2}  # blocks of 8 keys


@pytest.mark.parametrize("head_size", [4, 12, 20, 48, 64, 256])
def test_attention_decode(checkers: tuple[Checker, Checker], head_size: int) -> None:
    """One key, a block of them and one more; places apart, in any order; groups that are no whole
    number of blocks of heads.
    """
    ranges = [(40, 41), (3, 11), (12, 21), (60, 99)]
    for heads in ((1, 1), (4, 2), (6, 1)):
        check_decode(checkers, ranges, heads, head_size, FEW)
    check_decode(checkers, ranges[2:], (5, 1), head_size, {**FEW, "MOST_HEADS": 2}, cap=3.0)


def test_attention_decode_with_the_constants_of_the_tables(
    checkers: tuple[Checker, Checker],
) -> None:
    """As large as heads get they keep within every adapter's limits."""
    for choice in sorted(listed("attention_decode"), key=str):
        check_decode(checkers, [(0, 1), (5, 700)], (4, 1), 20, dict(choice.constants))
        invocations, memory = workgroup(
            load_kernel(choice.kernel, {**dict(choice.constants), "E4": 64, "GROUP": 8})
        )
        assert invocations <= Limits().invocations and memory <= Limits().workgroup_memory
    largest = dict(DEFAULT_CPU.choice("attention_decode").constants)
    check_decode(checkers, [(0, 1), (5, 300)], (4, 1), 256, largest)


def test_store_rows(checkers: tuple[Checker, Checker]) -> None:
    places = np.array([[1, 7], [5, 0], [0, 3]], np.uint32)
    arrays = {"k": normal(3, 12), "v": normal(3, 12), "places": places}
    arrays |= {"keys": normal(9, 12), "values": normal(9, 12)}
    params = {"rows": "T", "d4": 3}
    checkers[0].check("store_rows", arrays, params, rows=3, tolerance=0.0)


@pytest.mark.parametrize("interleaved", [False, True])
def test_rope_store(checkers: tuple[Checker, Checker], interleaved: bool) -> None:
    """All of a head turns, or a part of it; several heads of queries, and one."""
    places = np.array([[1, 7], [5, 0], [0, 3]], np.uint32)
    for heads, kv_heads, size, rotary in ((1, 1, 4, 4), (6, 2, 20, 8), (4, 4, 12, 12)):
        angles = normal(6, rotary // 2)
        arrays = {"q": normal(3, heads * size), "places": places}
        arrays |= {"k": normal(3, kv_heads * size), "v": normal(3, kv_heads * size)}
        arrays |= {"keys": normal(9, kv_heads * size), "values": normal(9, kv_heads * size)}
        arrays["table"] = np.stack([np.cos(angles), np.sin(angles)], -1)
        params = {"rows": "T", "heads": heads, "kv_heads": kv_heads, "head_size": size}
        params["rotary"] = rotary
        how = {"constants": {"INTERLEAVED": interleaved}}
        checkers[0].check("rope_store", arrays, params, rows=3, **how)


@pytest.mark.parametrize("lanes", [8, 64])
def test_norms_with_a_residual(checkers: tuple[Checker, Checker], lanes: int) -> None:
    for rows, d, factor in ((1, 3, 1.0), (3, 7, 0.3), (2, 260, 1.0)):
        arrays = {"a": normal(rows, d), "b": normal(rows, d), "w": normal(d)}
        params = {"rows": "T", "d4": padded(d) // 4, "d": d, "eps": 1e-6, "factor": factor}
        how: dict[str, Any] = {"rows": rows, "constants": {"LANES": lanes}}
        checkers[0].check("add_norm", arrays, params, **how)
        checkers[0].check("norm_add_norm", {**arrays, "w_b": normal(d)}, params, **how)


def test_variants_take_what_the_product_takes() -> None:
    kernel = load_kernel("matvec")
    for name in MATVEC:
        variant = load_kernel(name)
        assert variant.params == kernel.params and variant.flops == kernel.flops
        assert {s.name: s for s in variant.slots} == {s.name: s for s in kernel.slots}
