"""The quantisers of K types beside ggml's, and where they have to be exact."""

import numpy as np
import pytest
from random_blocks import dequantised

from wgtrain.files import BLOCKS
from wgtrain.files.quantise_k import BLOCK, SLICE, TYPES, quantise

ROWS, COLUMNS = 24, 8 * BLOCK


def weights(name: str) -> np.ndarray:
    """Random normal numbers, and what weights look like otherwise."""
    rng = np.random.default_rng(len(name))
    x = rng.standard_normal((ROWS, COLUMNS)) * 0.02
    if name == "rows":
        x *= np.exp(rng.standard_normal((ROWS, 1)))
    elif name == "columns":
        x *= np.exp(0.7 * rng.standard_normal((1, COLUMNS)))
    elif name == "outliers":
        x[rng.random(x.shape) < 0.002] *= 20
    elif name == "long tails":
        x = rng.standard_t(3, x.shape) * 0.01
    elif name == "positive":
        x = np.abs(x)
    return x.astype(np.float32)


def read_back(x: np.ndarray, kind: str) -> np.ndarray:
    rows = x.reshape(-1, x.shape[-1])
    return dequantised(quantise(x, kind).reshape(len(rows), -1), kind)


def rms(x: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(x, dtype=np.float64))))


@pytest.mark.oracle
@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize(
    "name", ["normal", "rows", "columns", "outliers", "long tails", "positive"]
)
def test_error_is_that_of_ggml(kind: str, name: str) -> None:
    from ggml_oracle import quantised

    x = weights(name)
    theirs = rms(dequantised(quantised(x, kind), kind) - x)
    assert rms(read_back(x, kind) - x) <= 1.02 * theirs


@pytest.mark.oracle
def test_a_quantiser_that_does_not_search_is_found_out() -> None:
    """The bound above is one that the range of each group, taken as it is, does not keep."""
    from ggml_oracle import quantised

    x = weights("normal")
    groups = x.reshape(-1, 32)
    low = groups.min(1, keepdims=True)
    step = (groups.max(1, keepdims=True) - low) / 15
    plain = np.rint((groups - low) / step) * step + low
    theirs = rms(dequantised(quantised(x, "Q4_K"), "Q4_K") - x)
    assert rms(plain - groups) > 1.02 * theirs


@pytest.mark.parametrize("kind", TYPES)
def test_what_fits_is_kept(kind: str) -> None:
    """Values that a block holds exactly come back as they were: every bit is in its place."""
    rng = np.random.default_rng(3)
    if kind == "Q6_K":
        scale = rng.integers(1, 128, (3, 16, 1)) * rng.choice([-1, 1], (3, 16, 1))
        scale[:, 5] = -128
        q = rng.integers(-32, 32, (3, 16, 16))
        q[:, :, 0] = -32
        x = q * scale * 2.0**-12
    else:
        top = 15 if kind == "Q4_K" else 31
        scale, minimum = rng.integers(1, 64, (2, 3, 8, 1))
        scale[:, 2] = minimum[:, 4] = 63
        q = rng.integers(0, top + 1, (3, 8, 32))
        q[:, :, :2] = 0, top
        x = q * scale * 2.0**-9 - minimum * 2.0**-7
    x = x.reshape(3, BLOCK).astype(np.float32)
    found = read_back(x, kind)
    # The fit of a scale is exact to f32's rounding; the f16 scale of a block is then exact.
    assert np.array_equal(found, x)


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("value", [0.0, 1.0, -3.0, 1e-5, 2e-7, 1e-12, 1e-30, -1e-38])
def test_groups_of_one_value(kind: str, value: float) -> None:
    """Within the f16 scale's precision; what is below f16's smallest number becomes 0."""
    x = np.full((1, 2 * BLOCK), value, np.float32)
    found = read_back(x, kind)
    assert np.isfinite(found).all()
    assert np.abs(found - x).max() <= max(abs(value) * 2**-7, 63 * 2**-25 * 31)


@pytest.mark.parametrize("kind", TYPES)
def test_slices_make_no_difference(kind: str) -> None:
    x = np.tile(weights("outliers")[:, :BLOCK], (SLICE // ROWS + 2, 1))
    blocks = quantise(x, kind)
    assert blocks.shape == (len(x), BLOCKS[kind].nbytes) and len(x) > SLICE
    assert np.array_equal(blocks, np.tile(blocks[:ROWS], (len(x) // ROWS, 1)))
    assert np.array_equal(blocks[:1], quantise(x[:1], kind))
    assert quantise(x[:0], kind).shape == (0, BLOCKS[kind].nbytes)


@pytest.mark.parametrize("value", [4e8, 1e20, -3e38])
@pytest.mark.parametrize("kind", TYPES)
def test_a_scale_beyond_f16_is_refused(kind: str, value: float) -> None:
    x = np.zeros((1, BLOCK), np.float32)
    x[0, 7] = value
    with pytest.raises(OverflowError, match="beyond f16"):
        quantise(x, kind)
