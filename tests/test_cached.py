"""Cached decoding: what the model says is what it says of the whole row, read anew."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import random_model as rm
import tiny
from figures import record
from specs import BLOCK_SPECS, MORE, SPECS

import wgtrain
from wgtrain.engine import ops
from wgtrain.engine.graph import Graph, Storage
from wgtrain.engine.inputs import InputBuffer
from wgtrain.engine.merged import merged
from wgtrain.errors import OptionError, OutOfMemoryError
from wgtrain.files import Adapter
from wgtrain.files.adapters import write_adapter_gguf
from wgtrain.infer import cached
from wgtrain.infer.cached import CachedSession
from wgtrain.model.quantised import QUANTIZE_BASE
from wgtrain.tune import sweep

pytestmark = pytest.mark.gpu

BOUND = 1e-5  # of the range of a row of logits
WINDOW = 8  # of those specs that have one
LONG_ROPE = "phi3-long"  # whose rows turn otherwise from 21 tokens on


def opened(model: Any, places: int, room: int, base: Any = None) -> CachedSession:
    session = CachedSession(model.device, base or model.base, {}, places, room)
    wgtrain.run(session.open())
    return session


def error(got: np.ndarray, want: np.ndarray) -> float:
    """The largest difference, relative to the range."""
    assert got.shape == want.shape and got.dtype == np.float32
    return float(np.abs(got - want).max() / np.ptp(want))


def ids(model: Any, count: int, seed: int) -> list[int]:
    return np.random.default_rng(seed).integers(0, model.config.vocabulary, count).tolist()


def step_errors(model: Any, session: CachedSession, rows: Sequence[list[int]], first: int) -> float:
    """The worst error where each row is read but for its last `first` tokens, and then these one by
    one, all rows together.
    """
    wanted = [model.logits(row) for row in rows]
    starts = [len(row) - first for row in rows]
    got = wgtrain.run(session.extend({i: row[: starts[i]] for i, row in enumerate(rows)}))
    worst = 0.0
    for step in range(first + 1):
        for i, start in enumerate(starts):
            worst = max(worst, error(got[i], wanted[i][start + step - 1]))
            assert session.length(i) == start + step
        if step < first:
            new = {i: rows[i][start + step :][:1] for i, start in enumerate(starts)}
            got = wgtrain.run(session.extend(new))
    return worst


@pytest.fixture(params=sorted({*SPECS, *MORE} - {LONG_ROPE, "gemma2-27b"}))
def model(request: pytest.FixtureRequest) -> Iterator[Any]:
    with wgtrain.load_model(tiny.tiny(request.param).gguf, limits="default") as opened:
        yield opened


def test_rows_as_read_anew(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that reach a window, and pass it, while decoding and while their prompts are read, in
    chunks which end within them.
    """
    monkeypatch.setattr(cached, "CHUNK", 10)
    rows = [ids(model, n, n) for n in (WINDOW + 2, WINDOW + 3, 3 * WINDOW + 3, 6)]
    session = opened(model, len(rows), 3 * WINDOW + 3)
    assert step_errors(model, session, rows, 4) <= BOUND
    session.truncate(2, WINDOW)
    session.truncate(0, 0)
    row = [*rows[2][:WINDOW], *ids(model, 13, 5)]
    got = wgtrain.run(session.extend({0: rows[1], 2: row[WINDOW:]}))
    assert session.length(2) == len(row) and session.length(3) == 6
    assert error(got[0], model.logits(rows[1])[-1]) <= BOUND
    assert error(got[2], model.logits(row)[-1]) <= BOUND
    session.close()


def test_long_rope(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each row turns by its own length: one that crosses the original one is read again, and one
    that comes back too.
    """
    with wgtrain.load_model(tiny.tiny(LONG_ROPE).gguf, limits="default") as model:
        rows = [ids(model, n, n) for n in (18, 30, 5)]
        session = opened(model, 3, 40)
        read: list[str] = []
        real = session.plan.run
        monkeypatch.setattr(
            session.plan, "run", lambda name, *a: (read.append(name), real(name, *a))
        )
        got = wgtrain.run(session.extend(dict(enumerate(rows))))
        for step in range(5):
            for i, row in enumerate(rows):
                assert error(got[i], model.logits(row)[-1]) <= BOUND, (step, i)
                row += ids(model, 1, step)
            got = wgtrain.run(session.extend({i: row[-1:] for i, row in enumerate(rows)}))
        assert read.count("prefill") == 3  # the long row, the others, and the one that crossed
        session.truncate(1, 12)
        back = [*rows[1][:12], 7]
        got = wgtrain.run(session.extend({1: [7]}))
        assert error(got[1], model.logits(back)[-1]) <= BOUND
        session.close()


def test_rows_past_the_original_context() -> None:
    """Rotations stretched by YaRN, queries that grow with their position, more than one chunk."""
    with wgtrain.load_model(tiny.tiny("mistral3").gguf) as model:
        session = opened(model, 2, 400)
        assert "scale_positions" in {x.kernel.name for x in session.plan.launches["decode"]}
        rows = [ids(model, 300, 1), ids(model, 262, 2)]
        assert step_errors(model, session, rows, 4) <= BOUND
        session.close()


def test_a_wrong_window_or_position_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    with wgtrain.load_model(tiny.tiny("gemma3").gguf, limits="default") as model:
        rows = [ids(model, n, n) for n in (WINDOW + 2, 5)]
        layers = tuple(
            replace(layer, window=layer.window and layer.window + 1)
            for layer in model.config.layers
        )
        wide = replace(model.base, config=replace(model.config, layers=layers))
        session = opened(model, 2, 32, wide)
        assert step_errors(model, session, rows, 3) > 10 * BOUND
        session.close()
        put = InputBuffer.put

        def shifted(self: InputBuffer, arrays: dict[str, np.ndarray]) -> np.ndarray:
            if len(arrays["tokens"]) == 2:
                arrays["places"] = arrays["places"] + np.array([[1, 0], [0, 0]], np.uint32)
            return put(self, arrays)

        session = opened(model, 2, 32)
        monkeypatch.setattr(InputBuffer, "put", shifted)
        assert step_errors(model, session, rows, 3) > 10 * BOUND
        session.close()


@pytest.mark.parametrize("type_", ["F16", "Q8_0", "Q4_0"])
def test_quantised_weights_with_subgroups(type_: str) -> None:
    """With all that the adapter has; more rows than a product reads a weight once for."""
    with wgtrain.load_model(tiny.tiny("llama", type_).gguf) as model:
        rows = [ids(model, 4 + n, n) for n in range(10)]
        session = opened(model, 10, 16)
        assert step_errors(model, session, rows, 2) <= BOUND
        session.close()


@pytest.mark.parametrize("kind", QUANTIZE_BASE)
def test_bases_quantised_as_they_are_loaded(kind: str) -> None:
    shape = rm.Shape(width=128, heads=4, head_size=32, feed_forward=192)
    with wgtrain.load_model(rm.build(shape), quantize_base=kind) as model:
        session = opened(model, 2, 16)
        assert step_errors(model, session, [ids(model, 9, 1), ids(model, 12, 2)], 3) <= BOUND
        session.close()


def test_few_rows_in_f16() -> None:
    """What is made of few rows is made in f32, which costs nothing: adapters are taken along, and
    what a prompt was read with in f16 shows, as rounding.
    """
    with wgtrain.load_model(tiny.tiny("qwen3").gguf) as plain:
        if "f16" not in plain.device.features:
            pytest.skip("the adapter has no shader-f16")
        row = ids(plain, 12, 3)
        stack = [(random_adapter(plain, 5, 1), 1.0)]
        want = plain.logits(row, stack)
    with wgtrain.load_model(tiny.tiny("qwen3").gguf, precision="f16") as model:
        session = wgtrain.run(model.sequences(model.stack(stack), 1, 16))
        kernels = [x.kernel for x in session.plan.launches["decode"]]
        assert not any("f16" in kernel.features for kernel in kernels)
        assert "add_adapters" not in {kernel.name for kernel in kernels}
        wgtrain.run(session.extend({0: row[:8]}))
        for at in range(8, 12):
            got = wgtrain.run(session.extend({0: row[at : at + 1]}))[0]
            assert 1e-5 < error(got, want[at]) < 5e-3
        session.close()


@pytest.mark.parametrize(
    ("name", "fewer"),
    # Of a block: rotations and what is stored (2), a residual with the norm behind it (1) or also
    # with the one before it (2), twice; a first norm has no residual before it.
    [("llama", 4), ("gemma3", 6), ("granite", 4), ("starcoder2", 2), ("mistral3", 4)],
)
def test_merged_launches_make_the_same_bits(
    name: str, fewer: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with wgtrain.load_model(tiny.tiny(name).gguf, limits="default") as model:
        rows = [ids(model, 11, 1), ids(model, 5, 2)]
        found, counts = [], []
        for how in (cached.merged, list):
            monkeypatch.setattr(cached, "merged", how)
            session = opened(model, 2, 16)
            counts.append({n: len(x) for n, x in session.plan.launches.items()})
            for tokens in (rows, [[3], [4]]):
                got = wgtrain.run(session.extend(dict(enumerate(tokens))))
                found.append(np.stack([got[0], got[1]]))
            session.close()
        np.testing.assert_array_equal(found[0], found[2])
        np.testing.assert_array_equal(found[1], found[3])
        for program in ("prefill", "decode"):
            saved = counts[1][program] - counts[0][program]
            assert saved == fewer * model.config.n_layer, program


def test_no_launch_is_merged_whose_parts_others_read() -> None:
    """A residual that something reads before its norm, rotated queries that are scaled."""
    g = Graph(training=False)
    x, y = (g.tensor(name, "T", 8) for name in "xy")
    w = Storage("w", "weights", 32).window()
    for reads_first in (False, True):
        g.launches = []
        total = ops.add(g, x, y)
        if reads_first:
            ops.scale(g, total, 2.0)
        ops.rms_norm(g, total, w, 1e-6)
        assert len(merged(g.launches)) == (3 if reads_first else 1)
    g.launches = []
    branch = ops.rms_norm(g, y, w, 1e-6)
    ops.rms_norm(g, ops.add(g, x, branch), w, 1e-6)
    names = [launch.kernel.name for launch in merged(g.launches)]
    assert names == ["norm_add_norm"]
    ops.scale(g, branch, 2.0)
    names = [launch.kernel.name for launch in merged(g.launches)]
    assert names == ["rms_norm", "add_norm", "scale"]


def test_block_types() -> None:
    for name in BLOCK_SPECS:
        with wgtrain.load_model(tiny.tiny(name, "Q4_K").gguf) as model:
            session = opened(model, 1, 32)
            assert step_errors(model, session, [ids(model, 9, 1)], 4) <= BOUND
            session.close()


def random_adapter(model: Any, rank: int, seed: int) -> Adapter:
    rng = np.random.default_rng(seed)
    pairs = {
        name: (
            rng.standard_normal((rank, columns)).astype(np.float32) * 0.1,
            rng.standard_normal((rows, rank)).astype(np.float32) * 0.1,
        )
        for name, (rows, columns) in model.config.linears().items()
    }
    return Adapter(model.config.architecture, rank, 2.0 * rank, pairs)


@pytest.mark.parametrize("name", ["llama", "phi3"])
def test_adapters(name: str) -> None:
    """One and two at once, beside plain linears and beside those that make several things."""
    with wgtrain.load_model(tiny.tiny(name).gguf, limits="default") as model:
        row = ids(model, 12, 3)
        stack = [(random_adapter(model, 5, 1), 1.0), (random_adapter(model, 8, 2), -0.5)]
        plain = model.logits(row)
        for count in (1, 2):
            want = model.logits(row, stack[:count])
            assert error(want, plain) > 1e-2
            session = wgtrain.run(model.sequences(model.stack(stack[:count]), 2, 32))
            wgtrain.run(session.extend({1: row[:8]}))
            for at in range(8, 12):
                got = wgtrain.run(session.extend({1: row[at : at + 1]}))
                assert error(got[1], want[at]) <= BOUND
            session.close()


def test_submits_are_as_large_as_was_measured() -> None:
    """And whatever they are, the bits are the same."""
    with wgtrain.load_model(tiny.tiny("llama").gguf, limits="default") as model:
        session = opened(model, 1, 64)
        found = []
        for limit in (1.0, 1e12):
            session.truncate(0, 0)
            for tokens in (ids(model, 20, 1), [3]):
                session.plan.work_limit = limit
                found.append(wgtrain.run(session.extend({0: tokens}))[0])
                assert session.plan.work_limit not in (1.0, 1e12)
        np.testing.assert_array_equal(found[0], found[2])
        np.testing.assert_array_equal(found[1], found[3])
        session.close()


def test_what_cannot_be(monkeypatch: pytest.MonkeyPatch) -> None:
    with wgtrain.load_model(tiny.tiny("llama").gguf, limits="default") as model:
        before = model.device.allocated
        session = opened(model, 2, 8)
        wgtrain.run(session.extend({0: [1, 2, 3]}))
        top = model.config.vocabulary
        for rows, text in (
            ({0: [1] * 6}, "row 0: 3 tokens and 6 more are over the 8 of its room"),
            ({0: [1], 2: [1]}, "place = 2: there are 2, from 0 on"),
            ({0: []}, f"row 0: one or more ids from 0 to {top - 1} are needed"),
            ({0: [4], 1: [top]}, "row 1: one or more ids"),
        ):
            with pytest.raises(OptionError, match=text):
                wgtrain.run(session.extend(rows))
            assert session.length(0) == 3
        for length in (-1, 4):
            with pytest.raises(OptionError, match=f"length = {length}: row 0 holds 3 tokens"):
                session.truncate(0, length)
        session.close()
        assert model.device.allocated == before
        for places, room in ((0, 8), (1, 0)):
            with pytest.raises(OptionError, match="= 0: allowed is a whole number, at least 1"):
                CachedSession(model.device, model.base, {}, places, room)


def test_memory_is_planned_and_what_fits_is_proposed(monkeypatch: pytest.MonkeyPatch) -> None:
    with wgtrain.load_model(tiny.tiny("llama").gguf, limits="default") as model:
        before = model.device.allocated
        monkeypatch.setattr(model.device, "budget", before + (4 << 20))
        large = CachedSession(model.device, model.base, {}, 2, 1 << 14)
        with pytest.raises(OutOfMemoryError, match="rows of 16,384 tokens") as caught:
            wgtrain.run(large.open())
        assert model.device.allocated == before
        proposed = int(
            str(caught.value).split("; rows of ")[1].split(" tokens fit")[0].replace(",", "")
        )
        assert proposed % 64 == 0
        session = opened(model, 2, proposed)
        assert model.device.allocated - before == session.plan.nbytes
        session.close()
        with pytest.raises(OutOfMemoryError):
            opened(model, 2, proposed + 64)
        monkeypatch.setattr(model.device, "budget", before)
        with pytest.raises(OutOfMemoryError, match="fewer rows at once may fit"):
            opened(model, 2, 128)
        assert model.device.allocated == before


@pytest.mark.oracle
@pytest.mark.parametrize(
    ("name", "type_"), [("olmo3", "F32"), ("llama", "Q8_0"), ("qwen3", "Q4_K")]
)
def test_greedy_as_llama_cpp(name: str, type_: str) -> None:
    """The same 200 tokens with the same logits, of a quantised file where llama.cpp has an F32 file
    of its weights; also under two adapters.
    """
    from llama_cpp_oracle import LlamaCpp

    made = tiny.tiny(name, type_)
    judge = LlamaCpp(made.gguf_f32)
    with wgtrain.load_model(made.gguf) as model:
        prompt = ids(model, 9, 4)
        adapters = [random_adapter(model, 4, 1), random_adapter(model, 8, 2)]
        handles = [judge.adapter(write_adapter_gguf(adapter)) for adapter in adapters]
        for scales in ((), (1.0, -0.5)):
            stack = list(zip(adapters, scales, strict=False))
            told, want = judge.greedy(np.array(prompt), 200, [*zip(handles, scales, strict=False)])
            session = wgtrain.run(model.sequences(model.stack(stack), 1, 256))
            logits, new = [], prompt
            for _ in range(200):
                logits.append(wgtrain.run(session.extend({0: new}))[0])
                new = [int(logits[-1].argmax())]
            session.close()
            assert [int(row.argmax()) for row in logits] == told
            assert len(set(told)) > 5
            worst = max(error(a, b) for a, b in zip(logits, want, strict=True))
            record("greedy beside llama.cpp", model=f"{name} {type_}", scales=scales, logits=worst)
            assert worst <= 1e-3
    judge.close()


def test_what_decoding_takes_can_be_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a sweep, with loaded adapters beside, and what it tries makes the same."""
    monkeypatch.setattr(sweep, "_SMALL_SHARE", 0)
    monkeypatch.setattr(sweep, "_ROUNDS", 1)
    with wgtrain.load_model(tiny.tiny("llama", "Q8_0").gguf) as model:
        stack = model.stack([(random_adapter(model, 5, 1), 1.0)])
        session = wgtrain.run(model.sequences(stack, 2, 32))
        families = ["nv/weight_q8_0", "nv small", "attention_decode"]
        found = wgtrain.run(
            sweep.measure(model.device, session.plan, 32, families=families, seconds=300)
        )
        assert [entry.family for entry in found] == families
        assert all(entry.rate > 0 and entry.tried > 2 for entry in found)
        session.close()
