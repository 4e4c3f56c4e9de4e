"""Every kernel against its oracle, at awkward sizes, with poisoned outputs."""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import oracles
import pytest
from kernel_check import (
    POISON,
    Checker,
    Packed,
    make_positions,
    pack_weight,
    split_planes,
)
from random_blocks import SHAPES_OF_PACKS, dequantised, encoded

from wgtrain import random
from wgtrain.engine.attention import score
from wgtrain.engine.graph import padded
from wgtrain.engine.kernel import load_kernel
from wgtrain.engine.structs import CONTROL, REPORT, TOTALS
from wgtrain.engine.tuning import (
    DEFAULT_CPU,
    DEFAULT_SWIFTSHADER,
    nn_small,
    nt_small,
    tn_small,
)
from wgtrain.engine.weight import FORMATS, plan_weight
from wgtrain.files import BLOCKS
from wgtrain.gpu import Device
from wgtrain.model.weights import repack_places

pytestmark = pytest.mark.gpu

SIZES = [(1, 1), (3, 7), (17, 63 * 4), (33, 257), (2, 260)]  # rows, columns: around 64 vec4s
TYPES = sorted(FORMATS)


@pytest.fixture(scope="session")
def checker(device: Device) -> Iterator[Checker]:
    made = Checker(device)
    yield made
    made.close()


@pytest.fixture
def check(checker: Checker) -> Any:
    return checker.check


def normal(*shape: int) -> np.ndarray:
    return np.random.standard_normal(shape)


def tiles(family: str) -> list[dict[str, int]]:
    """The constants that CPU adapters take by default."""
    return [dict(table.choice(family).constants) for table in (DEFAULT_CPU, DEFAULT_SWIFTSHADER)]


def elementwise(columns: int, dimension: str = "T") -> dict[str, Any]:
    return {"rows": dimension, "d4": padded(columns) // 4}


@pytest.mark.parametrize(("rows", "d"), SIZES)
def test_elementwise(check: Any, rows: int, d: int) -> None:
    a, b, c = normal(3, rows, d)
    check("add", {"a": a, "b": b}, elementwise(d), rows=rows)
    scaled = {**elementwise(d), "factor": 0.3}
    check("add_scaled", {"a": a, "b": b}, scaled, rows=rows)
    check("scale", {"x": a}, scaled, rows=rows)
    check("add_bias", {"bias": b[0], "y": a}, {**elementwise(d), "first": 0}, rows=rows)
    bias = {"bias": normal(12 + d), "y": a}
    check("add_bias", bias, {**elementwise(d), "first": 3}, rows=rows)
    check_activations(check, 5 * a, b, c)
    check("scale_rows", {"running": normal(rows, 4), "y": a}, elementwise(d, "C"), rows=rows)


@pytest.mark.parametrize(("n", "groups"), [(4, 16384), (1000, 1), (1004, 3)])
def test_copy(check: Any, n: int, groups: int) -> None:
    check("copy", {"x": normal(n)}, {"n4": n // 4}, constants={"GROUPS": groups}, tolerance=0.0)


@pytest.mark.parametrize(("rows", "d"), SIZES)
def test_scale_positions(check: Any, rows: int, d: int) -> None:
    positions = np.random.permutation(rows).astype(np.uint32)
    arrays = {"x": normal(rows, d), "positions": positions, "table": normal(rows + 3)}
    check("scale_positions", arrays, elementwise(d), rows=rows)


def check_activations(check: Any, x: np.ndarray, up: np.ndarray, dy: np.ndarray) -> None:
    """Each alone and as a gate, forward and backward."""
    rows, d = x.shape
    for activation in oracles.ACTIVATIONS:
        how: dict[str, Any] = {"rows": rows, "libraries": {"activation": activation}}
        check("glu", {"gate": x, "up": up}, elementwise(d, "C"), **how)
        check("glu_backward", {"gate": x, "up": up, "dy": dy}, elementwise(d), **how)
        check("activate", {"x": x}, elementwise(d), **how)
        check("activate_backward", {"x": x, "dy": dy}, elementwise(d, "C"), **how)


def test_activations_where_exp_overflows(check: Any) -> None:
    x = np.array([[-1e4, -100.0, -89.0, 0.0, 89.0, 100.0, 1e4, -20.0]])
    check_activations(check, x, *normal(2, 1, 8))
    check_activations(check, np.array([[-60.0, 60.0, -8.0, 8.0, -1e30, 1e30]]), *normal(2, 1, 6))


def test_gelu_in_its_tails(check: Any) -> None:
    """Of inputs to +-8 the values are those of the tanh form, of which the erf form is 1e-5 off;
    small ones are no less exact than large ones.
    """
    libraries = {"activation": "activation_gelu"}
    for x in (np.linspace(-8, 8, 84)[None], np.linspace(-6, -3, 32)[None]):
        check("activate", {"x": x}, elementwise(x.size), rows=1, libraries=libraries)
        erf = 0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))
        exact = oracles.gelu(x)[0]
        assert np.linalg.norm(erf - exact) > 1e-5 * np.linalg.norm(exact)


@pytest.mark.parametrize(("rows", "d"), SIZES)
def test_gather_and_scatter(check: Any, rows: int, d: int) -> None:
    """Every second row is gathered and brought back by the inverse index; the others are zero."""
    index = np.arange(rows)[::-2].astype(np.int32)
    inverse = np.full(rows, -1, np.int32)
    inverse[index] = np.arange(len(index))
    x = normal(rows, d)
    gathered = check("gather_rows", {"x": x, "index": index}, elementwise(d, "C"), rows=len(index))[
        "y"
    ][:, :d]
    back = check(
        "gather_rows",
        {"x": gathered, "index": inverse},
        elementwise(d),
        rows=rows,
    )["y"]
    np.testing.assert_array_equal(back[index, :d], x[index].astype(np.float32))
    assert np.count_nonzero(back) == len(index) * d


@pytest.mark.parametrize("add", [False, True])
@pytest.mark.parametrize(("rows", "d"), [(1, 1), (3, 7), (17, 260)])
def test_dropout(check: Any, rows: int, d: int, add: bool) -> None:
    step = {"dropout_key": random.key(1, "dropout", 5)}
    params = {**elementwise(d), "site": 11, "threshold": round(0.3 * 2**24), "scale": 1 / 0.7}
    arrays = {"x": normal(rows, d), **({"y": normal(rows, d)} if add else {})}
    check("dropout", arrays, params, rows=rows, step=step, constants={"ADD": add})


def test_dropout_rate_and_keys(checker: Checker) -> None:
    """Of ones the result is the mask: it keeps 1 - p, and depends on key and site alone."""
    x = np.ones((33, 1024))

    def mask(key: int, site: int, p: float) -> np.ndarray:
        params = {**elementwise(1024), "site": site, "threshold": round(p * 2**24), "scale": 1.0}
        arrays, step, like = {"x": x}, {"dropout_key": key}, {"y": x}
        result = checker.run(
            "dropout", arrays, params, like, rows=33, step=step, constants={"ADD": False}
        )
        return result["y"] != 0

    for p in (0.05, 0.5):
        spread = np.sqrt(p * (1 - p) / x.size)
        assert abs(mask(5, 0, p).mean() - (1 - p)) < 4 * spread
    assert mask(5, 0, 0.0).all()
    first = mask(5, 0, 0.5)
    np.testing.assert_array_equal(mask(5, 0, 0.5), first)
    for key, site in ((6, 0), (5, 1)):
        assert abs((mask(key, site, 0.5) == first).mean() - 0.5) < 4 * 0.5 / np.sqrt(x.size)
    assert abs((first[:, 1:] == first[:, :-1]).mean() - 0.5) < 4 * 0.5 / np.sqrt(x.size)


@pytest.mark.parametrize(
    ("rows", "groups", "d"),
    [(1, 1, 3), (3, 1, 7), (2, 1, 255), (33, 1, 260), (17, 3, 4), (5, 2, 80)],
)
@pytest.mark.parametrize("size", [1.0, 1e-4])
@pytest.mark.parametrize("lanes", [8, 64])
def test_rms_norm(check: Any, rows: int, groups: int, d: int, size: float, lanes: int) -> None:
    params = {"rows": "T", "groups": groups, "d4": padded(d) // 4, "d": d, "eps": 1e-6}
    x, dy, dx = normal(3, rows, groups * d)
    arrays = {"x": x * size, "w": normal(d)}
    constants: dict[str, Any] = {"LANES": lanes}
    check("rms_norm", arrays, params, rows=rows, constants=constants)
    backward = {**arrays, "dy": dy}
    constants["ADD"] = False
    check("rms_norm_backward", backward, params, rows=rows, constants=constants)
    backward["dx"], constants["ADD"] = dx, True
    check("rms_norm_backward", backward, params, rows=rows, constants=constants)


def test_rms_norm_of_zeros(check: Any) -> None:
    params = {"rows": "T", "groups": 1, "d4": 2, "d": 7, "eps": 1e-6}
    arrays = {"x": np.zeros((2, 7)), "w": normal(7)}
    check("rms_norm", arrays, params, rows=2)
    arrays["dy"] = normal(2, 7)
    check("rms_norm_backward", arrays, params, rows=2, constants={"ADD": False})


@pytest.mark.parametrize(
    ("rows", "groups", "d"),
    [(3, 1, 7), (2, 1, 255), (33, 1, 260), (17, 3, 4), (5, 2, 80)],
)
@pytest.mark.parametrize(("size", "centre"), [(1.0, 0.0), (1e-4, 0.0), (1.0, 10.0)])
def test_layer_norm(check: Any, rows: int, groups: int, d: int, size: float, centre: float) -> None:
    """Also where the mean is large: what differs from it then has fewer digits in x itself."""
    params = {"rows": "T", "groups": groups, "d4": padded(d) // 4, "d": d, "eps": 1e-6}
    x, dy, dx = normal(3, rows, groups * d)
    w, bias = normal(2, groups * d)
    arrays = {"x": centre + x * size, "w": w}
    constants: dict[str, Any] = {"LANES": 64 if groups > 1 else 8}
    how: dict[str, Any] = {"rows": rows, "tolerance": 8e-7 * (1 + centre)}
    check("layer_norm", arrays, params, constants=constants, **how)
    with_bias = {**arrays, "bias": bias}
    check("layer_norm", with_bias, params, constants=constants, libraries={"bias": "bias"}, **how)
    backward = {**arrays, "dy": dy}
    constants["ADD"] = False
    check("layer_norm_backward", backward, params, constants=constants, **how)
    backward["dx"], constants["ADD"] = dx, True
    check("layer_norm_backward", backward, params, constants=constants, **how)


def test_layer_norm_of_equal_values(check: Any) -> None:
    """No variance, and in the padding no differences from the mean."""
    params = {"rows": "T", "groups": 1, "d4": 2, "d": 7, "eps": 1e-6}
    arrays = {"x": np.full((2, 7), 3.0), "w": normal(7)}
    check("layer_norm", arrays, params, rows=2, scale=1.0)
    arrays["dy"] = normal(2, 7)
    check("layer_norm_backward", arrays, params, rows=2, constants={"ADD": False})


def rope_table(positions: int, rotary: int) -> np.ndarray:
    """(position, rotary / 2, cos and sin)."""
    frequencies = 10000.0 ** (-np.arange(0, rotary, 2) / rotary)
    angles = np.arange(positions)[:, None] * frequencies
    return np.stack([np.cos(angles), np.sin(angles)], -1)


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("inverse", [False, True])
def test_rope(check: Any, interleaved: bool, inverse: bool) -> None:
    constants = {"INTERLEAVED": interleaved, "INVERSE": inverse}
    cases = [((1,), 1, 4, 4), ((3, 1, 5), 3, 12, 12), ((17, 16), 2, 20, 8), ((2, 63), 5, 64, 64)]
    for lengths, heads, head_size, rotary in cases:
        rows = sum(lengths)
        params = {"rows": "T", "heads": heads, "head_size": head_size, "rotary": rotary}
        arrays = {
            "x": normal(rows, heads * head_size),
            "positions": make_positions(*lengths),
            "table": rope_table(max(lengths), rotary),
        }
        check("rope", arrays, params, rows=rows, constants=constants)


def random_weight(rows: int, columns: int, type_: str) -> Packed:
    return pack_weight(normal(rows, columns), type_)


def columns_of(type_: str, columns: int) -> int:
    """The nearest number of columns that the type can have."""
    block = BLOCKS[type_].size
    return -(-columns // block) * block


# rows, N, K
MATMULS = [(1, 1, 1), (3, 7, 5), (15, 16, 17), (16, 15, 33), (33, 33, 31), (64, 32, 64)]
MATMULS += [(63, 31, 36), (17, 70, 96), (65, 130, 64)]


@pytest.mark.parametrize("type_", SHAPES_OF_PACKS)
def test_matmul_nt(check: Any, type_: str) -> None:
    for rows, n, k in MATMULS:
        k = columns_of(type_, k)
        weight = random_weight(n + 5, k, type_)
        x = normal(rows, k)
        params = {"rows": "T", "n": n, "k4": padded(k) // 4, "scale": 1.0}
        params |= {"weight_row": 0, "add": 0}
        params |= {"y_stride": padded(n) // 4, "y_column": 0}
        window = {**params, "y_stride": padded(n) // 4 + 3, "y_column": 2, "weight_row": 5}
        for constants in tiles("nt"):
            arrays = {"x": x, "weight": weight}
            check("matmul_nt", arrays, params, rows=rows, constants=constants)
            check("matmul_nt", arrays, window, rows=rows, constants=constants)


@pytest.mark.parametrize("type_", SHAPES_OF_PACKS)
def test_matmul_nn(check: Any, type_: str) -> None:
    for rows, n, k in MATMULS:
        k = columns_of(type_, k)
        weight = random_weight(n + 5, k, type_)
        dy = normal(rows, n)
        params = {"rows": "C", "n": n, "k4": padded(k) // 4, "scale": 1.0}
        params |= {"weight_row": 0, "add": 0}
        params |= {"dy_stride": padded(n) // 4, "dy_column": 0}
        for constants in tiles("nn"):
            arrays = {"dy": dy, "weight": weight}
            check("matmul_nn", arrays, params, rows=rows, constants=constants)
        wide = np.full((rows, padded(n) + 12), np.nan)
        wide[:, 8 : 8 + padded(n)] = 0.0
        wide[:, 8 : 8 + n] = dy
        window = {**params, "dy_stride": padded(n) // 4 + 3, "dy_column": 2, "weight_row": 5}
        check("matmul_nn", {"dy": wide, "weight": weight}, window, rows=rows)


@pytest.mark.parametrize(("rows", "n", "k"), MATMULS)
def test_matmuls_that_add(check: Any, rows: int, n: int, k: int) -> None:
    """The LoRA products: dense, scaled, onto what is there, with tiles for few columns."""
    weight, x, dy = random_weight(n, k, "F32"), normal(rows, k), normal(rows, n)
    y = np.concatenate([normal(rows, n), np.zeros((rows, -n % 4))], 1)
    common = {"rows": "T", "n": n, "k4": padded(k) // 4, "scale": 0.25, "weight_row": 0, "add": 1}
    params = {**common, "y_stride": padded(n) // 4, "y_column": 0}
    arrays = {"x": x, "weight": weight, "y": y}
    for constants in tiles(nt_small(n)):
        check("matmul_nt", arrays, params, rows=rows, constants=constants)
    params = {**common, "dy_stride": padded(n) // 4, "dy_column": 0}
    arrays = {"dy": dy, "weight": weight, "dx": normal(rows, k)}
    for constants in tiles(nn_small(k)):
        check("matmul_nn", arrays, params, rows=rows, constants=constants)


@pytest.mark.parametrize(
    ("rows", "m", "n"),
    [(1, 1, 1), (3, 7, 5), (7, 8, 16), (9, 9, 17), (33, 33, 31), (65, 4, 130), (9, 33, 3)],
)
def test_matmul_tn(check: Any, rows: int, m: int, n: int) -> None:
    arrays = {"a": normal(rows, m), "b": normal(rows, n), "out": normal(m, n)}
    params = {"rows": "T", "m": m, "n4": padded(n) // 4, "scale": 0.5, "out_row": 0}
    check("matmul_tn", arrays, params, rows=rows)
    for constants in tiles(tn_small(m, n)):
        check("matmul_tn", arrays, params, rows=rows, constants=constants)
    arrays["out"], params["out_row"] = normal(m + 9, n), 4
    check("matmul_tn", arrays, params, rows=rows)


def test_matmul_tn_of_no_rows_changes_nothing(check: Any) -> None:
    arrays = {"a": normal(1, 5), "b": normal(1, 6), "out": normal(5, 6)}
    params = {"rows": "C", "m": 5, "n4": 2, "scale": 0.5, "out_row": 0}
    got = check("matmul_tn", {**arrays, "a": arrays["a"][:0], "b": arrays["b"][:0]}, params, rows=0)
    np.testing.assert_array_equal(got["out"][:, :6], arrays["out"].astype(np.float32))


@pytest.mark.parametrize("type_", TYPES)
def test_embed(check: Any, type_: str) -> None:
    """Two segments of the vocabulary, one by one: tokens of the other one stay as they are."""
    for rows, d in ((1, 4), (17, 36), (5, 260)):
        d = columns_of(type_, d)
        tokens = np.random.randint(0, 50, rows).astype(np.uint32)
        tokens[0] = 29
        y = None
        for row_start, row_count in ((0, 30), (30, 20)):
            arrays = {"tokens": tokens, "weight": random_weight(row_count, d, type_)}
            if y is not None:
                arrays["y"] = y
            params = {**elementwise(d), "row_start": row_start, "row_count": row_count}
            y = check("embed", arrays, params, rows=rows)["y"]
        assert y is not None and np.isfinite(y).all()


def test_embed_pads_with_zeros(check: Any) -> None:
    arrays = {"tokens": np.array([2, 0], np.uint32), "weight": random_weight(3, 7, "F16")}
    params = {**elementwise(7), "row_start": 0, "row_count": 3}
    got = check("embed", arrays, params, rows=2)["y"]
    np.testing.assert_array_equal(got[:, 7:], 0)


@pytest.mark.parametrize("type_", TYPES)
def test_repack(checker: Checker, type_: str) -> None:
    """Two slices of a file at an even byte, or an odd one where blocks can lie there; then `embed`
    gives the package's own values exactly.
    """
    columns = columns_of(type_, 71)
    columns += 2 * BLOCKS[type_].size  # an odd number of blocks, more than one
    rows, skip = 7, 7 if type_ == "MXFP4" else 6
    raw = encoded(normal(rows, columns), type_)
    exact = dequantised(raw, type_)
    file = np.random.randint(0, 255, skip + raw.nbytes + 8).astype(np.uint8)
    file[skip : skip + raw.nbytes] = raw.ravel()
    file = np.append(file, np.zeros(-len(file) % 4, np.uint8))
    weight = plan_weight("test", type_, rows, columns, checker.device.limits)
    (segment,) = weight.segments
    planes = np.full(segment.storage.size // 4, POISON, np.uint32)
    for first, count in ((0, 3), (3, 4)):
        params = {
            "slice_rows": count,
            "first_row": first,
            "columns": columns,
            **repack_places(weight, segment),
            "raw_offset": skip + first * (raw.nbytes // rows),
            "raw_row": raw.nbytes // rows,
        }
        arrays = {"raw": file, "planes": planes, "marks": np.zeros(1, np.uint32)}
        constants = dict(FORMATS[type_].constants)
        got = checker.check(FORMATS[type_].repack, arrays, params, constants=constants)
        planes = got["planes"]
        assert not got["marks"][0]
    packed = Packed(type_, exact.astype(np.float64), file, weight, split_planes(weight, planes))
    tokens = np.arange(rows, dtype=np.uint32)[::-1].copy()
    params = {**elementwise(columns), "row_start": 0, "row_count": rows}
    got = checker.check("embed", {"tokens": tokens, "weight": packed}, params, rows=rows)["y"]
    np.testing.assert_array_equal(got[:, :columns], exact[::-1])


def half_rows(type_: str, values: np.ndarray) -> tuple[dict[str, Any], dict[str, Any]]:
    """(arrays, parameters) of `repack_half` for a matrix of F32 or BF16."""
    raw = encoded(values, type_)
    rows, columns = values.shape
    packs = -(-columns // 8)
    file = raw.ravel()
    arrays = {
        "raw": np.append(file, np.zeros(-len(file) % 4, np.uint8)),
        "planes": np.full(rows * packs * 4, POISON, np.uint32),
        "marks": np.zeros(1, np.uint32),
    }
    params = {"slice_rows": rows, "first_row": 0, "columns": columns, "weight_stride": packs}
    params |= {"weight_side_stride": 0, "weight_side_at": 0}
    params |= {"raw_offset": 0, "raw_row": raw.nbytes // rows}
    return arrays, params


@pytest.mark.parametrize("type_", ["F32", "BF16"])
def test_repack_half(check: Any, type_: str) -> None:
    """Ties, subnormals, the largest number; and a mark for what lies beyond it."""
    constants = {"BF16": type_ == "BF16"}
    most = 65504.0 if type_ == "F32" else 65280.0
    edges = [0.0, -0.0, most, -most, 1 + 2**-11, 1 + 3 * 2**-11, 2.0**-24, 2.0**-15, 2.0**-25]
    edges += [3 * 2.0**-25, 2.0**-14, 2.0**-14 - 2.0**-26, 1e-9]
    values = np.concatenate([np.tile(edges, (5, 1)), normal(5, 62)], 1)
    arrays, params = half_rows(type_, values)
    assert check("repack_half", arrays, params, constants=constants)["marks"][0] == 0
    for beyond in (65536.0, -1e30):
        values[2, 40] = beyond
        arrays, params = half_rows(type_, values)
        assert check("repack_half", arrays, params, constants=constants)["marks"][0] == 2


def test_capture_and_restore_bf16(check: Any) -> None:
    """Rounding to nearest even: ties, the ends of the range, subnormals, infinities."""
    edges = [0x3F808000, 0x3F818000, 0x3F807FFF, 0x3F808001, 0x7F7F7FFF, 0x7F7F8000, 0x7F7FFFFF]
    edges += [0x7F800000, 0x00000000, 0x00008000, 0x00018000, 0x00400000, 0x007FFFFF, 0x477FE000]
    special = np.array(edges, np.uint32).view(np.float32)
    x = np.concatenate([special, -special, normal(63)])
    bits = np.random.randint(0, 0x7F800000, 3 * len(x)).astype(np.uint32)
    x = np.concatenate([x[None], bits.view(np.float32).reshape(3, -1)])
    params = elementwise(x.shape[1])
    kept = check("capture_bf16", {"x": x}, params, rows=len(x))["y"]
    check("restore_bf16", {"x": kept}, params, rows=len(x))


def test_capture_bf16_keeps_nan(checker: Checker) -> None:
    patterns = np.array([[0x7FC00000, 0xFFC12345, 0x7F800001, 0x7F80FFFF]], np.uint32)
    params, like = elementwise(4), {"y": np.zeros((1, 4), np.uint16)}
    kept = checker.run("capture_bf16", {"x": patterns}, params, like, rows=1)["y"]
    assert np.all((kept & 0x7F80) == 0x7F80) and np.all(kept & 0x7F)
    np.testing.assert_array_equal(kept >> 15, [[0, 1, 0, 0]])


def chunks(vocabulary: int, columns: int) -> list[tuple[int, int]]:
    """(first, count) of each."""
    return [(first, min(columns, vocabulary - first)) for first in range(0, vocabulary, columns)]


def scores(cap: float) -> dict[str, Any]:
    """The constants and libraries of kernels whose logits or scores are capped, 0 = are not."""
    constants, libraries = score(cap)
    return {"constants": constants, "libraries": libraries}


@pytest.mark.parametrize("cap", [0.0, 1.5])
@pytest.mark.parametrize("size", [1.0, 1e4])
@pytest.mark.parametrize(("rows", "vocabulary", "columns"), [(1, 1, 4), (3, 71, 20), (17, 260, 64)])
def test_cross_entropy(
    check: Any, rows: int, vocabulary: int, columns: int, size: float, cap: float
) -> None:
    """Over several chunks, each fed with what the one before made; and against plain softmax."""
    logits = normal(rows, vocabulary) * size
    targets = np.random.randint(0, vocabulary, rows).astype(np.uint32)
    targets[0] = vocabulary - 1
    logits[-1, 0] = logits.max() + size  # what comes later changes no maximum
    pieces, running = [], None
    for first, count in chunks(vocabulary, columns):
        arrays = {"targets": targets, "logits": logits[:, first : first + count]}
        if running is not None:
            arrays["running"] = running
        params = {"rows": "C", "first": first, "columns": count, "stride": padded(count)}
        how = scores(cap)
        how["constants"]["LANES"] = 256 if rows == 17 else 8
        got = check("cross_entropy_chunk", arrays, params, rows=rows, scale=1.0, **how)
        running = got["running"]
    assert running is not None
    totals = np.array([(0.5, 3)], TOTALS)
    arrays = {"running": running, "totals": totals}
    got = check("loss_sum", arrays, {"rows": "C"}, rows=rows)["totals"][0]
    read = logits.astype(np.float32).astype(np.float64)
    exact, slope = oracles.capped(read, cap)
    lse = exact.max(1) + np.log(np.exp(exact - exact.max(1, keepdims=True)).sum(1))
    losses = lse - exact[np.arange(rows), targets]
    assert abs(got["loss"] - 0.5 - losses.sum()) <= 1e-6 * max(1.0, np.abs(lse).sum())
    for first, count in chunks(vocabulary, columns):
        arrays = {"targets": targets, "running": running, "logits": read[:, first : first + count]}
        params = {"rows": "C", "first": first, "columns": count, "stride": padded(count)}
        got = check("cross_entropy_grad", arrays, params, rows=rows, scale=1.0, **scores(cap))
        pieces.append(got["logits"][:, :count])
    softmax = np.exp(exact - lse[:, None])
    softmax[np.arange(rows), targets] -= 1
    np.testing.assert_allclose(np.concatenate(pieces, 1), softmax * slope, atol=1e-6)


@pytest.mark.parametrize("size", [1.0, 8.0, 1e6])
def test_soft_cap(check: Any, size: float) -> None:
    """About the cap, where tanh is flat, and far beyond."""
    check("soft_cap", {"y": size * normal(5, 71)}, elementwise(71, "C"), rows=5, **scores(1.5))


@pytest.mark.parametrize("cap", [0.0, 3.0])
@pytest.mark.parametrize("type_", TYPES)
def test_cross_entropy_finish(check: Any, type_: str, cap: float) -> None:
    for rows, d in ((1, 4), (9, 260)):
        d, dx = columns_of(type_, d), None
        targets = np.random.randint(0, 50, rows).astype(np.uint32)
        targets[0] = 30
        running = np.abs(normal(rows, 4)) + 1
        for row_start, row_count in ((0, 30), (30, 20)):
            arrays = {
                "targets": targets,
                "running": running,
                "weight": random_weight(row_count, d, type_),
                "dx": normal(rows, d) if dx is None else dx,
            }
            params = {**elementwise(d, "C"), "row_start": row_start, "row_count": row_count}
            how = scores(cap)
            how["constants"]["DIVIDE"] = row_start == 0
            if type_ != "F32" and (row_start or cap):
                break  # one more format tells nothing new about the second segment or caps
            dx = check("cross_entropy_finish", arrays, params, rows=rows, **how)["dx"]


@pytest.mark.parametrize("cap", [0.0, 30.0])
def test_cross_entropy_of_logits_that_are_not_finite(checker: Checker, cap: float) -> None:
    """The loss must not come out finite, or nobody notices."""
    for bad in (np.inf, np.nan, -np.inf):
        logits = np.ones((1, 8), np.float32)
        logits[0] = bad
        if bad != -np.inf:
            logits[0, 1:] = 1.0
        arrays = {"targets": np.array([1], np.uint32), "logits": logits.view(np.uint32)}
        params = {"rows": "C", "first": 0, "columns": 8, "stride": 8}
        like = {"running": np.zeros((1, 4)), "logits": np.zeros((1, 8))}
        got = checker.run("cross_entropy_chunk", arrays, params, like, rows=1, **scores(cap))
        running = got["running"]
        arrays = {"running": running.view(np.uint32), "totals": np.zeros(1, TOTALS)}
        like = {"totals": np.zeros(1, TOTALS)}
        got = checker.run("loss_sum", arrays, {"rows": "C"}, like, rows=1)["totals"]
        assert not np.isfinite(got["loss"][0]), bad


@pytest.mark.parametrize("rows", [1, 63, 64, 65, 200])
def test_loss_sum(check: Any, rows: int) -> None:
    running = np.abs(normal(rows, 4)) + 0.1
    arrays = {"running": running, "totals": np.array([(2.5, 7)], TOTALS)}
    check("loss_sum", arrays, {"rows": "C"}, rows=rows)


@pytest.mark.parametrize(("rows", "d"), SIZES)
def test_squared_error(check: Any, rows: int, d: int) -> None:
    y, desired = normal(2, rows, d)
    params = {"rows": "C", "d4": padded(d) // 4, "factor": 1 / d}
    arrays = {"y": y, "desired": desired}
    totals = np.array([(2.5, 7)], TOTALS)
    check("squared_error", {**arrays, "totals": totals}, params, rows=rows)
    check("squared_error_backward", arrays, {**params, "factor": 2 / d}, rows=rows)


@pytest.mark.parametrize("n4", [1, 63, 65, 64 * 64 - 1, 64 * 64 + 65])
def test_grad_norm(check: Any, n4: int) -> None:
    arrays = {"grads": normal(4 * n4), "partials": np.full(192, np.nan)}
    check("grad_norm", arrays, {"n4": n4, "first": 64})


def finish(
    check: Any, *, partials: np.ndarray, loss: float = 6.0, count: int = 4, max_grad_norm: float
) -> Any:
    arrays = {
        "partials": partials,
        "totals": np.array([(loss, count)], TOTALS),
        "control": np.zeros(1, CONTROL),
        "ring": np.zeros(5, REPORT),
    }
    step = {"slot": 3, "max_grad_norm": max_grad_norm}
    return check("finish_step", arrays, {"partial_count": len(partials)}, step=step)


@pytest.mark.parametrize("max_grad_norm", [0.0, 0.5, 1e6])
@pytest.mark.parametrize("partial_count", [1, 64, 65, 128])
def test_finish_step(check: Any, partial_count: int, max_grad_norm: float) -> None:
    got = finish(check, partials=normal(partial_count) ** 2, max_grad_norm=max_grad_norm)
    assert got["ring"][3]["loss"] == 1.5 and got["ring"][3]["finite"] == 1
    assert np.all(got["ring"][[0, 1, 2, 4]] == np.zeros(4, REPORT))


def test_finish_step_clips_by_hand(check: Any) -> None:
    """Squares of 400 over 4 tokens: norm 5; clipped to 1 that is a factor of 1/5 of 1/4."""
    got = finish(check, partials=np.array([300.0, 100.0]), max_grad_norm=1.0)
    assert got["ring"][3]["norm"] == 5.0
    np.testing.assert_allclose(got["control"]["factor"], 0.05, rtol=1e-6)


def test_finish_step_of_no_trained_token(check: Any) -> None:
    got = finish(check, partials=np.zeros(64), loss=0.0, count=0, max_grad_norm=1.0)
    assert got["ring"][3]["finite"] == 1 and got["control"]["latched"][0] == 0


STEP = {
    "learning_rate": 1e-2,
    "keep": 1 - 1e-2 * 0.5,
    "beta1": 0.9,
    "beta2": 0.999,
    "rest1": 1 - 0.9,
    "rest2": 1 - 0.999,
    "correction1": 1 - 0.9**3,
    "correction2": 1 - 0.999**3,
    "epsilon": 1e-8,
}


def arenas(n4: int) -> dict[str, np.ndarray]:
    return {
        "params_arena": normal(4 * n4),
        "grads": normal(4 * n4),
        "first_moment": normal(4 * n4),
        "second_moment": normal(4 * n4) ** 2,
    }


@pytest.mark.parametrize("n4", [1, 63, 64, 65, 1000])
def test_adamw(check: Any, n4: int) -> None:
    control = np.array([(0.05, 0)], CONTROL)
    check("adamw", {"control": control, **arenas(n4)}, {"n4": n4}, step=STEP)


def test_adamw_strides_over_a_large_arena(check: Any) -> None:
    control = np.array([(0.05, 0)], CONTROL)
    check(
        "adamw",
        {"control": control, **arenas(300)},
        {"n4": 300},
        step=STEP,
        constants={"GROUPS": 2},
    )


def test_adamw_of_zeros_changes_nothing(check: Any) -> None:
    """Padding in an arena: no gradient, no moment, no value."""
    control, zero = np.array([(0.05, 0)], CONTROL), np.zeros(8)
    arrays = dict.fromkeys(("params_arena", "grads", "first_moment", "second_moment"), zero)
    check("adamw", {"control": control, **arrays}, {"n4": 2}, step=STEP)


@pytest.mark.parametrize("bad", ["loss", "gradient", "overflow"])
@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_latch(checker: Checker, bad: str, value: float) -> None:
    """From the first loss or gradient that is not finite on, nothing is written any more."""
    state: dict[str, np.ndarray] = {n: a.astype(np.float32) for n, a in arenas(3).items()}
    control, ring = np.zeros(1, CONTROL), np.zeros(4, REPORT)
    good = state["grads"]
    for slot, broken in enumerate([False, True, False]):
        grads, loss = good.copy(), 4.0
        if broken and bad == "loss":
            loss = value
        elif broken:
            grads[5] = value if bad == "gradient" else 1e30
        like = {"partials": np.zeros(64)}
        arrays: dict[str, Any] = {"grads": grads.view(np.uint32), "partials": np.zeros(64)}
        partials = checker.run("grad_norm", arrays, {"n4": 3, "first": 0}, like)["partials"]
        arrays = {
            "partials": partials.view(np.uint32),
            "totals": np.array([(loss, 2)], TOTALS),
            "control": control,
            "ring": ring,
        }
        outputs = {n: arrays[n] for n in ("totals", "control", "ring")}
        step = {**STEP, "slot": slot, "max_grad_norm": 1.0}
        got = checker.run("finish_step", arrays, {"partial_count": 64}, outputs, step=step)
        control, ring = got["control"], got["ring"]
        before = {**state, "grads": grads}
        arrays = {"control": control, **{n: a.view(np.uint32) for n, a in before.items()}}
        state = checker.run("adamw", arrays, {"n4": 3}, before, step=step)
        changed = any(not np.array_equal(_bits(state[n]), _bits(before[n])) for n in before)
        assert changed == (slot == 0)
    assert ring["finite"].tolist() == [1, 0, 0, 0]
    assert control["latched"][0] == 1
    assert np.isfinite(ring["norm"][2]) and ring["loss"][2] == 2.0


def _bits(array: np.ndarray) -> np.ndarray:
    return array.view(np.uint32)


def test_workgroup_counts_follow_the_rows() -> None:
    """Of the dimension that `rows` names; other kernels are as large as their parameters say."""
    add = load_kernel("add").grid_function({"rows": "C", "d4": 65})
    assert add(100, 7) == (2, 1, 1) and add(100, 0) == (0, 0, 1)
    norm = load_kernel("grad_norm").grid_function({"n4": 129, "first": 0})
    assert norm(100, 7) == (3, 1, 1)
