"""Types that no kernel reads are converted as they are loaded; how far loading is."""

import io
import sys
import types
from dataclasses import replace
from typing import Any

import gguf
import numpy as np
import pytest
import random_model as rm
from random_blocks import dequantised, encoded

import wgtrain
from wgtrain.engine.weight import FORMATS
from wgtrain.errors import FileError
from wgtrain.files import BLOCKS, Raw, write_gguf
from wgtrain.model import weights as weights_module
from wgtrain.model.converted import CONVERTED
from wgtrain.model.host import Host
from wgtrain.runs import parts, progress

SHAPE = rm.Shape(
    width=256, heads=4, kv_heads=1, head_size=64, feed_forward=256, layers=1, vocabulary=70
)


def test_every_type_that_the_gguf_package_decodes_is_taken() -> None:
    decoded = {kind.name for kind in gguf.quants._type_traits}
    assert decoded | {"F32", "F16"} == {*FORMATS, *CONVERTED}


def finite_rows(rng: np.random.Generator, type_: str, rows: int, columns: int) -> np.ndarray:
    """Random bytes of a type, drawn again where a block has anything infinite, NaN or huge."""
    block = BLOCKS[type_]
    raw = rng.integers(0, 256, (rows * columns // block.size, block.nbytes)).astype(np.uint8)
    for _ in range(100):
        with np.errstate(all="ignore"):
            values = dequantised(raw, type_)
            bad = ~(np.abs(values).max(-1) < 1e4)
        if not bad.any():
            return raw.reshape(rows, -1)
        raw[bad] = rng.integers(0, 256, (bad.sum(), block.nbytes))
    raise AssertionError(type_)


def with_types(types: dict[str, str]) -> tuple[dict[str, Any], bytes]:
    """Tensors of `SHAPE`, those named of other types, and the file."""
    rng = np.random.default_rng(0)
    tensors = rm.tensors(SHAPE)
    for name, type_ in types.items():
        rows, columns = tensors[name].shape
        raw = finite_rows(rng, type_, rows, columns)
        tensors[name] = Raw(type_, (rows, columns), raw.tobytes())
    return tensors, write_gguf(SHAPE.metadata(), tensors)


@pytest.mark.gpu
def test_other_types_are_converted_to_q8_0_slice_by_slice(monkeypatch: pytest.MonkeyPatch) -> None:
    """Embedding, head and linears; one line says what and what it costs."""
    monkeypatch.setattr(weights_module, "STAGING", 3000)
    names = [name for name, t in rm.tensors(SHAPE).items() if len(t.shape) == 2]
    types = dict(zip(names, CONVERTED, strict=False))
    types |= {names[0]: "NVFP4"} if "NVFP4" not in types.values() else {}
    tensors, data = with_types(types)
    said: list[str] = []
    model = rm.load(data, host=Host(say=said.append))
    for name, type_ in types.items():
        weight, values = model.weights.matrices[name], rm.decode(tensors[name])
        assert weight.type == "Q8_0"
        got = rm.decoded(model.device, weight)
        np.testing.assert_array_equal(got, dequantised(encoded(values, "Q8_0"), "Q8_0"), type_)
        most = np.abs(values).reshape(-1, 32).max(-1) / 127 * (0.5 + 2**-4) + 127 * 2.0**-25
        assert np.all(np.abs(got - values).reshape(-1, 32).max(-1) <= most), type_
    [line] = said
    before = sum(model.gguf.tensors[name].nbytes for name in types)
    after = sum(t.shape[0] * t.shape[1] // 32 * 34 for t in (tensors[n] for n in types))
    kinds = ", ".join(
        dict.fromkeys(model.gguf.tensors[name].type for name in names if name in types)
    )
    assert line == (
        f"random.gguf: {len(types)} matrices of {kinds} are converted to Q8_0 as they are loaded: "
        f"{after:,} bytes instead of {before:,}"
    )
    model.close()


@pytest.mark.gpu
def test_what_cannot_be_converted_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    tensors, data = with_types({"blk.0.ffn_up.weight": "IQ3_S"})
    raw = np.frombuffer(tensors["blk.0.ffn_up.weight"].data, np.uint8).copy()
    raw[110:112] = 0xFF
    tensors["blk.0.ffn_up.weight"] = replace(tensors["blk.0.ffn_up.weight"], data=raw.tobytes())
    with pytest.raises(FileError, match="blk.0.ffn_up.weight: values that are infinite or NaN"):
        rm.load(write_gguf(SHAPE.metadata(), tensors))
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(FileError, match=r"has type IQ3_S: .*micropip.install\('gguf'\)"):
        rm.load(data)


@pytest.mark.gpu
@pytest.mark.parametrize("precision", [None, "nf4"])
def test_loading_is_reported_to_its_end(precision: str | None) -> None:
    seen: list[tuple[int, int]] = []
    data = rm.build(replace(SHAPE, type="F32"))
    model = wgtrain.load_model(
        data, quantize_base=precision, progress=lambda *now: seen.append(now), limits="default"
    )
    total = sum(model.gguf.tensors[name].nbytes for name in model.weights.matrices)
    model.close()
    assert len(seen) >= len(model.weights.matrices)
    assert {of for _, of in seen} == {total} and seen[-1][0] == total
    assert sorted(seen) == seen


def test_a_large_model_shows_how_far_it_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Lines where nobody looks on, a bar in a terminal, and nothing of a small model."""
    now = [0.0]
    monkeypatch.setattr(parts, "time", types.SimpleNamespace(monotonic=lambda: now[0]))
    with parts.transfer("loading") as loaded:
        for done in range(1, 6):
            now[0] += 0.7 * progress.LINE_SECONDS
            loaded(done * 200_000_000, 1_000_000_000)
    assert capsys.readouterr().err.splitlines() == [
        "loading 381 of 954 MiB  left 0:21",
        "loading 763 of 954 MiB  left 0:07",
    ]
    terminal = io.StringIO()
    terminal.isatty = lambda: True  # type: ignore[method-assign]
    monkeypatch.setattr(sys, "stderr", terminal)
    with parts.transfer("loading") as loaded:
        loaded(1000, 2000)
    assert not terminal.getvalue()
    with parts.transfer("loading") as loaded:
        loaded(500_000_000, 1_000_000_000)
        loaded(1_000_000_000, 1_000_000_000)
    assert "loading" in terminal.getvalue() and "953.7/953.7 MiB" in terminal.getvalue()
