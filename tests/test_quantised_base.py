"""A full-precision base quantised as it is loaded: values, memory, refusals."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import random_model as rm
from random_model import decoded

from wgtrain import gpu
from wgtrain.engine.weight import NESTED
from wgtrain.errors import FileError, OptionError
from wgtrain.files import BytesSource, write_gguf
from wgtrain.files import quantise_base as q
from wgtrain.gpu import Limits
from wgtrain.infer.model import Model
from wgtrain.infer.opening import open_model
from wgtrain.model import quantised as quantised_module

pytestmark = pytest.mark.gpu
# 5 and 7 blocks a row: rows of double quantisation end within words and groups.
SHAPE = rm.Shape(
    width=320, heads=5, kv_heads=1, head_size=64, feed_forward=448, layers=2, vocabulary=77
)
KINDS = tuple(quantised_module.QUANTIZE_BASE)


def opened(data: bytes, kind: str | None, **more: Any) -> Model:
    return gpu.run(open_model(BytesSource(data, "base.gguf"), quantize_base=kind, **more))


def expected(values: np.ndarray, kind: str) -> np.ndarray:
    """The values a quantised matrix has, by numpy alone."""
    if kind.startswith("nf4"):
        codes, absmax = q.encode_nf4(values)
        if kind == "nf4-double":
            absmax = q.nest(absmax).decoded()
        found = q.NF4[codes].reshape(-1, q.BLOCK) * absmax[:, None]
    else:
        codes, scales, biases = q.encode_affine(values, int(kind[3:]))
        found = scales[:, None] * codes.reshape(-1, q.BLOCK) + biases[:, None]
    return found.reshape(values.shape)


@pytest.mark.parametrize("type_", ["F32", "F16", "BF16"])
@pytest.mark.parametrize("kind", KINDS)
def test_linears_of_blocks_are_quantised_to_the_bit(kind: str, type_: str) -> None:
    shape = replace(SHAPE, type=type_)
    model = opened(rm.build(shape), kind)
    try:
        for name, values in rm.tensors(shape).items():
            if (weight := model.weights.matrices.get(name)) is None:
                continue
            wanted = rm.decode(values)
            if name.startswith("blk."):
                wanted = expected(wanted, kind)
            np.testing.assert_array_equal(decoded(model.device, weight), wanted, err_msg=name)
    finally:
        model.close()


@pytest.mark.parametrize("kind", ["nf4", "nf4-double"])
def test_matrices_in_several_segments_and_slices(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Double quantisation's groups do not end with a segment."""
    monkeypatch.setattr(quantised_module, "_SLICE", 4 * 320 * 30)
    monkeypatch.setattr("wgtrain.infer.opening.open_device", _with_limits(Limits(binding=83_968)))
    shape = replace(SHAPE, feed_forward=1984)
    model = opened(rm.build(shape), kind)
    try:
        name = "blk.1.ffn_up.weight"
        weight = model.weights.matrices[name]
        assert len(weight.segments) >= 4
        assert any(segment.first * 5 % NESTED for segment in weight.segments)
        wanted = expected(rm.decode(rm.tensors(shape)[name]), kind)
        np.testing.assert_array_equal(decoded(model.device, weight), wanted)
    finally:
        model.close()


def _with_limits(limits: Limits) -> Any:
    async def opening(*arguments: Any, **options: Any) -> Any:
        device = await gpu.open_device()
        device.limits = limits
        return device

    return opening


def test_what_it_takes() -> None:
    """Bits a value of the blocks' linears: less with double quantisation."""
    taken = {}
    shape = replace(SHAPE, width=2048, heads=32, kv_heads=32, feed_forward=2048, layers=1)
    from wgtrain.files import parse_gguf
    from wgtrain.model.base import plan_base

    gguf = parse_gguf(rm.build(shape))
    for kind in KINDS:
        base = plan_base(gguf, quantize_base=kind)
        linears = [w for name, w in base.weights.matrices.items() if name.startswith("blk.")]
        values = sum(weight.rows * weight.columns for weight in linears)
        taken[kind] = 8 * sum(weight.nbytes for weight in linears) / values
    assert taken == pytest.approx({"nf4": 4.5, "nf4-double": 4.13, "int4": 5, "int8": 9}, abs=5e-3)


def test_a_quantised_file_is_refused() -> None:
    with pytest.raises(OptionError, match=r"quantised already \(blk.0.attn_q.weight is Q8_0\)"):
        opened(rm.build(replace(SHAPE, type="Q8_0")), "nf4")


def test_rows_that_are_no_whole_blocks_are_refused() -> None:
    with pytest.raises(OptionError, match="ffn_down.weight has rows of 100 values"):
        opened(rm.build(replace(SHAPE, feed_forward=100)), "int4")


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(OptionError, match="quantize_base = fp4: allowed is nf4, nf4-double"):
        opened(rm.build(SHAPE), "fp4")


def test_values_that_are_not_finite_are_refused() -> None:
    tensors = dict(rm.tensors(SHAPE))
    values = np.array(rm.decode(tensors["blk.0.attn_k.weight"]))
    values[3, 5] = np.inf
    tensors["blk.0.attn_k.weight"] = values
    with pytest.raises(FileError, match=r"blk.0.attn_k.weight: values that are infinite or NaN"):
        opened(write_gguf(SHAPE.metadata(), tensors), "nf4")
