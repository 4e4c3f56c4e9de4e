"""Every variant of a matrix product against the oracle of the product it stands for.

The tiles are small here, so that awkward sizes meet every edge at little compiling; one case runs
with the constants as they are.
"""

from typing import Any

import numpy as np
import pytest
from kernel_check import Checker, fit, pack_weight
from random_blocks import SHAPES_OF_PACKS

from wgtrain.engine.graph import padded
from wgtrain.engine.kernel import load_kernel
from wgtrain.engine.weight import FORMATS
from wgtrain.files import BLOCKS

pytestmark = pytest.mark.gpu

TYPES = sorted(FORMATS)
# rows, N, K: around tiles of 8 rows and 8 columns, and steps of 2 vec4s
SHAPES = [(1, 1, 1), (3, 7, 5), (7, 8, 9), (9, 9, 33), (16, 17, 31), (17, 70, 96), (33, 33, 64)]
NT = {
    "matmul_nt_tiled": {
        "TILE_ROWS": 4, "TILE_COLS4": 1, "TILE_K4": 2, "LANE_ROWS": 2, "LANE_COLS": 2
    },
    "matmul_nt_split": {"TILE_ROWS": 2, "TILE_COLS4": 1, "LANES": 4},
    "matmul_nt_subgroup": {"TILE_ROWS": 1, "TILE_COLS": 12},
}  # fmt: skip
NN = {
    "matmul_nn_tiled": {
        "TILE_ROWS": 4, "TILE_COLS4": 1, "TILE_N4": 2, "LANE_ROWS": 2, "LANE_COLS": 2
    },
    "matmul_nn_split": {"TILE_ROWS": 2, "LANES": 4},
    "matmul_nn_subgroup": {"TILE_ROWS": 1, "TILE_PACKS": 3},
}  # fmt: skip
SMALL_NT = {"TILE_ROWS": 4, "TILE_COLS": 8, "LANE_ROWS": 2, "LANE_COLS": 2}
SMALL_NN = {"TILE_ROWS": 4, "TILE_PACKS": 1, "LANE_ROWS": 2, "LANE_COLS": 2}
TN = [
    {"TILE_ROWS": 8, "TILE_COLS4": 1, "LANE_ROWS": 1, "LANE_COLS": 4, "SPLIT": 4},
    {"TILE_ROWS": 4, "TILE_COLS4": 2, "LANE_ROWS": 4, "LANE_COLS": 1, "SPLIT": 2},
    {"TILE_ROWS": 8, "TILE_COLS4": 2, "LANE_ROWS": 2, "LANE_COLS": 2, "SPLIT": 1},
]


@pytest.fixture
def checker(checkers: tuple[Checker, Checker]) -> Checker:
    return checkers[0]


def normal(*shape: int) -> np.ndarray:
    return np.random.standard_normal(shape)


def columns_of(type_: str, columns: int) -> int:
    """The nearest number of columns that the type can have."""
    block = BLOCKS[type_].size
    return -(-columns // block) * block


def check_nt(
    checker: Checker,
    kernel: str,
    shape: tuple[int, int, int],
    type_: str,
    constants: dict[str, int] | None,
) -> None:
    """Plain; scaled onto what is there, in a window of wider rows, from row 5 of W on."""
    rows, n, k = shape
    k = columns_of(type_, k)
    x, weight = normal(rows, k), pack_weight(normal(n + 5, k), type_)
    params = {"rows": "T", "n": n, "k4": padded(k) // 4, "scale": 1.0, "weight_row": 0, "add": 0}
    params |= {"y_stride": padded(n) // 4, "y_column": 0}
    arrays = {"x": x, "weight": weight}
    checker.check(kernel, arrays, params, rows=rows, constants=constants)
    params |= {"scale": 0.25, "weight_row": 5, "y_stride": padded(n) // 4 + 3, "y_column": 2}
    checker.check(kernel, arrays, params, rows=rows, constants=constants)
    arrays["y"], params["add"] = normal(rows, padded(n) + 12), 1
    checker.check(kernel, arrays, params, rows=rows, constants=constants)


def check_nn(
    checker: Checker,
    kernel: str,
    shape: tuple[int, int, int],
    type_: str,
    constants: dict[str, int] | None,
) -> None:
    """Plain; scaled onto what is there, from a window of wider rows, whose surroundings are NaN."""
    rows, n, k = shape
    k = columns_of(type_, k)
    weight = pack_weight(normal(n + 5, k), type_)
    params = {"rows": "C", "n": n, "k4": padded(k) // 4, "scale": 1.0, "weight_row": 0, "add": 0}
    params |= {"dy_stride": padded(n) // 4, "dy_column": 0}
    arrays = {"dy": normal(rows, n), "weight": weight}
    checker.check(kernel, arrays, params, rows=rows, constants=constants)
    wide = np.full((rows, padded(n) + 12), np.nan)
    wide[:, 8 : 8 + padded(n)] = 0.0
    wide[:, 8 : 8 + n] = normal(rows, n)
    params |= {"scale": 0.25, "weight_row": 5, "dy_stride": padded(n) // 4 + 3, "dy_column": 2}
    checker.check(kernel, {**arrays, "dy": wide}, params, rows=rows, constants=constants)
    arrays |= {"dy": wide, "dx": normal(rows, k)}
    params["add"] = 1
    checker.check(kernel, arrays, params, rows=rows, constants=constants)


@pytest.mark.parametrize("type_", TYPES)
@pytest.mark.parametrize("kernel", ["matmul_nt", *NT])
def test_nt(checkers: tuple[Checker, Checker], kernel: str, type_: str) -> None:
    checker, constants = fit(checkers, kernel, NT.get(kernel, SMALL_NT))
    for shape in SHAPES if type_ in SHAPES_OF_PACKS else SHAPES[-2:]:
        check_nt(checker, kernel, shape, type_, constants)


@pytest.mark.parametrize("type_", TYPES)
@pytest.mark.parametrize("kernel", ["matmul_nn", *NN])
def test_nn(checkers: tuple[Checker, Checker], kernel: str, type_: str) -> None:
    given = dict(NN.get(kernel, SMALL_NN))
    if kernel == "matmul_nn_split":
        given["TILE_PACKS"] = 1
    checker, constants = fit(checkers, kernel, given)
    for shape in SHAPES if type_ in SHAPES_OF_PACKS else SHAPES[-2:]:
        check_nn(checker, kernel, shape, type_, constants)


@pytest.mark.parametrize("rank", [1, 5, 8, 33])
@pytest.mark.parametrize("kernel", ["matmul_nt", *sorted(set(NT) - {"matmul_nt_split"})])
def test_nt_with_an_adapter(checkers: tuple[Checker, Checker], kernel: str, rank: int) -> None:
    """s z B^T in the same sums, from row 3 of B on."""
    checker, constants = fit(checkers, kernel, NT.get(kernel, SMALL_NT))
    for type_ in SHAPES_OF_PACKS:
        for rows, n, k in SHAPES:
            k = columns_of(type_, k)
            params = {"rows": "T", "n": n, "k4": padded(k) // 4, "scale": 0.5, "weight_row": 0}
            params |= {"y_stride": padded(n) // 4, "y_column": 0, "add": 1}
            params |= {"lora_rank": rank, "lora_row": 3, "lora_scale": 0.25}
            arrays = {"x": normal(rows, k), "weight": pack_weight(normal(n, k), type_)}
            arrays |= {"lora": normal(rows, rank), "lora_matrix": normal(n + 4, rank)}
            arrays["y"] = normal(rows, padded(n))
            checker.check(
                kernel, arrays, params, rows=rows, constants=constants, libraries={"lora": "lora"}
            )


def loaded(rows: int, outputs: int, steps: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Arrays and places of adapters in seven quads beside one of three linears that read x. Those
    that no step names hold NaN, which would show.
    """
    quads, first = 7, 7
    used = np.random.permutation(quads)[:steps]
    lora, matrix = normal(rows, 3 * quads, 4), normal(quads, outputs, 4)
    lora[:, [at for at in range(3 * quads) if at - first not in used]] = np.nan
    matrix[[quad for quad in range(quads) if quad not in used]] = np.nan
    listed = np.full((quads + 1, 2), 0xFFFFFFFF, np.uint32)
    listed[0] = steps, 0
    listed[1 : steps + 1, 0] = used
    listed[1 : steps + 1, 1] = normal(steps).astype(np.float32).view(np.uint32)
    arrays = {"lora": lora.reshape(rows, -1), "lora_matrix": matrix.reshape(quads, -1)}
    place = {"lora_row": 3, "lora_first": first, "lora_stride": 3 * quads, "lora_outputs": outputs}
    return {**arrays, "lora_list": listed}, place


FEW = {"matvec": {"LANES": 4}, "matvec_split": {"COLS": 2, "SPLIT": 4}, "matvec_subgroup": {}}


@pytest.mark.parametrize("steps", [0, 1, 4, 7])
@pytest.mark.parametrize("kernel", ["matmul_nt", *sorted(set(NT) - {"matmul_nt_split"}), *FEW])
def test_nt_with_loaded_adapters(
    checkers: tuple[Checker, Checker], kernel: str, steps: int
) -> None:
    """The sum of strengths times z B^T over the quads in the list, from row 3 of B on."""
    few = {**FEW[kernel], "ROWS": 2} if kernel in FEW else SMALL_NT
    checker, constants = fit(checkers, kernel, NT.get(kernel, few))
    for type_ in SHAPES_OF_PACKS:
        for rows, n, k in SHAPES:
            k = columns_of(type_, k)
            params = {"rows": "T", "n": n, "k4": padded(k) // 4, "scale": 0.5, "weight_row": 0}
            params |= {"y_stride": padded(n) // 4, "y_column": 0, "add": 1}
            arrays, place = loaded(rows, n + 4, steps)
            arrays |= {"x": normal(rows, k), "weight": pack_weight(normal(n, k), type_)}
            arrays["y"] = normal(rows, padded(n))
            how = {"constants": constants, "libraries": {"lora": "lora_stacked"}}
            checker.check(kernel, arrays, {**params, **place}, rows=rows, scale=1.0, **how)


@pytest.mark.parametrize("used", [range(0), range(24, 48), range(48)], ids=len)
@pytest.mark.parametrize("kernel", ["matmul_nt", *sorted(NT), *FEW])
def test_columns_that_loaded_adapters_do_not_use(
    checkers: tuple[Checker, Checker], kernel: str, used: range
) -> None:
    """What whole workgroups would make of them is left alone: 96 columns are so many of each."""
    few = {**FEW[kernel], "ROWS": 2} if kernel in FEW else SMALL_NT
    checker, constants = fit(checkers, kernel, NT.get(kernel, few))
    rows, quads, k = 5, 48, 33
    listed = np.zeros((2 * quads + 1, 2), np.uint32)
    listed[[1 + quads + quad for quad in used], 0] = 1
    for linears in (1, 2):
        n = 4 * quads * linears
        params = {"rows": "T", "n": n, "k4": padded(k) // 4, "scale": 1.0, "weight_row": 0}
        params |= {"y_stride": n // 4, "y_column": 0, "add": 0, "lora_stride": quads}
        arrays = {"x": normal(rows, k), "weight": pack_weight(normal(n, k)), "lora_list": listed}
        how = {"constants": constants, "libraries": {"columns": "columns_used"}}
        checker.check(kernel, arrays, params, rows=rows, **how)


@pytest.mark.parametrize("steps", [0, 1, 4])
def test_loaded_adapters_alone(checker: Checker, steps: int) -> None:
    for rows, n in [(1, 1), (3, 7), (65, 64), (2, 66)]:
        arrays, place = loaded(rows, n + 4, steps)
        arrays["y"] = normal(rows, padded(n))
        params = {"rows": "C", "d4": padded(n) // 4, "n": n, **place}
        checker.check("add_adapters", arrays, params, rows=rows, scale=1.0)


@pytest.mark.parametrize("rank", [1, 5, 8, 33])
@pytest.mark.parametrize("kernel", ["matmul_nn", *sorted(set(NN) - {"matmul_nn_split"})])
def test_nn_with_an_adapter(checkers: tuple[Checker, Checker], kernel: str, rank: int) -> None:
    """s u A in the same sums."""
    checker, given = fit(checkers, kernel, NN.get(kernel, SMALL_NN))
    for type_ in SHAPES_OF_PACKS:
        for rows, n, k in SHAPES:
            k = columns_of(type_, k)
            params = {"rows": "C", "n": n, "k4": padded(k) // 4, "scale": 0.5, "weight_row": 0}
            params |= {"dy_stride": padded(n) // 4, "dy_column": 0, "add": 1}
            params |= {"lora_rank": rank, "lora_scale": 0.25}
            arrays = {"dy": normal(rows, n), "weight": pack_weight(normal(n, k), type_)}
            arrays |= {"lora": normal(rows, rank), "lora_matrix": normal(rank, k)}
            arrays["dx"] = normal(rows, k)
            checker.check(
                kernel, arrays, params, rows=rows, constants=given, libraries={"lora": "lora"}
            )


@pytest.mark.parametrize("constants", TN)
def test_tn(checker: Checker, constants: dict[str, Any]) -> None:
    for rows, m, n in [(1, 1, 1), (3, 7, 5), (7, 8, 16), (9, 9, 17), (33, 33, 31), (65, 4, 70)]:
        arrays = {"a": normal(rows, m), "b": normal(rows, n), "out": normal(m, n)}
        params = {"rows": "T", "m": m, "n4": padded(n) // 4, "scale": 0.5, "out_row": 0}
        checker.check("matmul_tn_split", arrays, params, rows=rows, constants=constants)
        arrays["out"], params["out_row"] = normal(m + 9, n), 4
        checker.check("matmul_tn_split", arrays, params, rows=rows, constants=constants)


@pytest.mark.parametrize("kernel", [*NT, *NN])
def test_with_the_constants_as_they_are(checkers: tuple[Checker, Checker], kernel: str) -> None:
    """Two workgroups each way, and more than one step along the sum."""
    checker, constants = fit(checkers, kernel, None)
    if kernel in NT:
        check_nt(checker, kernel, (65, 66, 96), "Q8_0", constants)
    else:
        check_nn(checker, kernel, (65, 66, 96), "Q4_0", constants)


def test_tn_with_the_constants_as_they_are(checker: Checker) -> None:
    arrays = {"a": normal(65, 8), "b": normal(65, 66), "out": normal(8, 66)}
    params = {"rows": "T", "m": 8, "n4": 17, "scale": 0.5, "out_row": 0}
    checker.check("matmul_tn_split", arrays, params, rows=65)


def test_no_rows_change_nothing(checker: Checker) -> None:
    arrays = {"a": normal(0, 5), "b": normal(0, 6), "out": normal(5, 6)}
    params = {"rows": "C", "m": 5, "n4": 2, "scale": 0.5, "out_row": 0}
    got = checker.check("matmul_tn_split", arrays, params, rows=0)
    np.testing.assert_array_equal(got["out"][:, :6], arrays["out"].astype(np.float32))


@pytest.mark.parametrize("kernel", ["matmul_nt_tiled", "matmul_nn_tiled", "matmul_tn_split"])
def test_same_bits_every_time(checker: Checker, kernel: str) -> None:
    """And whatever the workgroups' order: nothing is added atomically."""
    n, k, rows = 40, 36, 50
    if kernel == "matmul_tn_split":
        arrays: dict[str, Any] = {"a": normal(rows, n), "b": normal(rows, k)}
        arrays["out"] = normal(n, k)
        params = {"rows": "T", "m": n, "n4": k // 4, "scale": 0.5, "out_row": 0}
        output, like = "out", np.zeros((n, k))
    else:
        nt = kernel == "matmul_nt_tiled"
        weight = pack_weight(normal(n, k), "F32")
        arrays = {"x" if nt else "dy": normal(rows, k if nt else n), "weight": weight}
        params = {"rows": "T", "n": n, "k4": k // 4, "scale": 0.5, "weight_row": 0, "add": 0}
        place = ("y_stride", "y_column") if nt else ("dy_stride", "dy_column")
        params |= {place[0]: n // 4, place[1]: 0}
        output, like = ("y", np.zeros((rows, n))) if nt else ("dx", np.zeros((rows, k)))
    results = [
        checker.run(kernel, arrays, params, {output: like}, rows=rows)[output] for _ in range(3)
    ]
    assert np.isfinite(results[0]).all()
    for other in results[1:]:
        np.testing.assert_array_equal(results[0].view(np.uint32), other.view(np.uint32))


def test_variants_take_what_the_product_takes() -> None:
    """The same bindings and parameters: an operation chooses the name and the constants alone."""
    for base, variants in (
        ("matmul_nt", NT),
        ("matmul_nn", NN),
        ("matmul_tn", ["matmul_tn_split"]),
    ):
        kernel = load_kernel(base)
        for name in variants:
            variant = load_kernel(name)
            assert variant.params == kernel.params and variant.flops == kernel.flops
            assert {s.name: s for s in variant.slots} == {s.name: s for s in kernel.slots}
