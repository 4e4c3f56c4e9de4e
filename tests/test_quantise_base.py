"""Quantisers of full-precision bases against bitsandbytes and the formulas, value by value."""

from typing import Any

import needs
import numpy as np
import pytest

from wgtrain.files import quantise_base as q

torch: Any = needs.Later("torch")
bnb: Any = needs.Later("bitsandbytes.functional")


def weights(rows: int = 96, columns: int = 320, seed: int = 0) -> np.ndarray:
    """Normal values of many sizes, with blocks of zeros, of one value, of subnormals, of ties."""
    rng = np.random.default_rng(seed)
    w = rng.standard_normal((rows, columns)).astype(np.float32)
    w *= np.exp2(rng.integers(-12, 4, (rows, 1))).astype(np.float32)
    w[0, :64], w[1, :64], w[2, :64], w[3] = 0, -0.25, 0.25, w[3] * np.float32(1e-38)
    middle = (q.NF4[1:] + q.NF4[:-1]) / np.float32(2)
    w[4, :64] = np.resize(middle, 64)
    w[4, 63] = 1  # the absmax, so that the others are midpoints exactly
    return w


@pytest.mark.oracle
def test_nf4_is_that_of_bitsandbytes_to_the_bit() -> None:
    w = weights()
    codes, absmax = q.encode_nf4(w)
    packed, state = bnb.quantize_4bit(torch.from_numpy(w), quant_type="nf4", blocksize=q.BLOCK)
    packed = packed.numpy().ravel()
    assert (np.stack([packed >> 4, packed & 15], 1).ravel() == codes).all()
    assert (state.absmax.numpy() == absmax).all()
    values = (q.NF4[codes].reshape(-1, q.BLOCK) * absmax[:, None]).reshape(w.shape)
    theirs = bnb.dequantize_4bit(torch.from_numpy(packed[:, None]), state).numpy()
    assert (values == theirs).all()
    ties = codes[4 * w.shape[1] :][:15]
    assert (ties == np.arange(15)).all()  # the lower code of each midpoint


@pytest.mark.oracle
def test_double_quantisation_is_that_of_bitsandbytes() -> None:
    """But for codes one apart in 0.2 %, where its CPU table is not the nearest."""
    assert (bnb.create_dynamic_map().numpy() == q.dynamic_map()).all()
    w = weights(700)
    _, absmax = q.encode_nf4(w)
    _, state = bnb.quantize_4bit(
        torch.from_numpy(w), quant_type="nf4", blocksize=q.BLOCK, compress_statistics=True
    )
    ours, theirs = q.nest(absmax), state.absmax.numpy()
    assert float(state.offset) == pytest.approx(float(ours.offset), rel=1e-6)
    np.testing.assert_allclose(ours.scales, state.state2.absmax.numpy(), rtol=1e-6)
    apart = np.abs(ours.codes.astype(int) - theirs.astype(int))
    assert apart.max() <= 1 and (apart > 0).mean() <= 0.005
    scales = state.state2.absmax.numpy()
    decoded = q.Nested(theirs, scales, np.float32(state.offset.item())).decoded()
    expected = bnb.dequantize_blockwise(state.absmax, state.state2) + state.offset
    assert (decoded == expected.numpy()).all()


@pytest.mark.parametrize("bits", [4, 8])
def test_affine_groups_follow_the_formula(bits: int) -> None:
    """The formula in plain Python over f32 scalars, a block at a time."""
    w = weights(12, 128)
    codes, scales, biases = q.encode_affine(w, bits)
    f32, most = np.float32, np.float32(2**bits - 1)
    for i, block in enumerate(w.reshape(-1, q.BLOCK)):
        low, high = block.min(), block.max()
        scale = max((high - low) / most, f32(1e-7))
        scale, edge = (scale, low) if abs(low) > abs(high) else (-scale, high)
        zero, bias = np.rint(edge / scale), f32(0)
        if zero != 0:
            scale, bias = edge / zero, edge
        expected = [min(max(np.rint((x - bias) / scale), 0), most) for x in block]
        assert (scales[i], biases[i]) == (scale, bias), i
        assert codes[i * q.BLOCK :][: q.BLOCK].tolist() == expected, i


@pytest.mark.parametrize(("bits", "most"), [(4, 0.0925), (8, 0.0056)])
def test_affine_groups_come_near(bits: int, most: float) -> None:
    """The rms error of normal weights; one bit less would double it."""
    w = np.random.default_rng(1).standard_normal((64, 640)).astype(np.float32)
    codes, scales, biases = q.encode_affine(w, bits)
    values = scales[:, None] * codes.reshape(-1, q.BLOCK) + biases[:, None]
    error = np.sqrt(np.mean((values.reshape(w.shape) - w) ** 2))
    assert 0.9 * most < error < most
