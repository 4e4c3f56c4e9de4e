"""`wgtrain bench`: its weights, its counts, its records, its rivals and its page; never a time."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import needs
import numpy as np
import pytest
from gguf import GGMLQuantizationType, quants
from shared_device import borrow
from test_cli import wgtrain

from wgtrain import gpu
from wgtrain.bench import ceiling, command, decode, report, rivals, runner, step, tables
from wgtrain.bench.cases import Case
from wgtrain.bench.flops import attention_flops, step_flops
from wgtrain.bench.measure import ratios, spread
from wgtrain.bench.scaling import points
from wgtrain.bench.shapes import SHAPES, TYPES, Shape, find_shape
from wgtrain.bench.tuned import open_device
from wgtrain.bench.weights import RandomWeights
from wgtrain.engine import candidates
from wgtrain.engine.tuning import Choice
from wgtrain.errors import FileError, OptionError, WgtrainError
from wgtrain.files import BLOCKS, read_gguf
from wgtrain.gpu import protocol
from wgtrain.model.config import read_config
from wgtrain.runs import parts
from wgtrain.tune import cache as tune
from wgtrain.tune import sweep
from wgtrain.tune.sweep import Measured

TINY = SHAPES["tiny"]
PAGE = needs.ROOT / "docs" / "performance.md"


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch, full_device: Any) -> None:
    """Small ceilings and short samples, on the device that tests share."""

    async def open_device(adapter_index: int | None) -> Any:
        assert adapter_index is None
        return borrow(full_device)

    monkeypatch.setattr(gpu, "open_device", open_device)
    monkeypatch.setattr(ceiling, "_EDGES", (64,))
    monkeypatch.setattr(ceiling, "_COPY", {"CPU": 1 << 16})
    monkeypatch.setattr(ceiling, "_COPY_GPU", 1 << 16)
    monkeypatch.setattr(runner, "SAMPLE_SECONDS", 1e-4)
    monkeypatch.setattr(step, "SAMPLE_SECONDS", 1e-4)
    monkeypatch.setattr(decode, "SAMPLE_SECONDS", 1e-4)


def record_of(capsys: Any, *arguments: Any) -> dict[str, Any]:
    """The record a command prints with --json, and nothing else."""
    code, out, error = wgtrain(capsys, "bench", *arguments, "--json")
    assert code == 0, error
    return json.loads(out)


# Shapes and weights


@pytest.mark.parametrize("type_", TYPES)
def test_weights_are_a_model_file(type_: str) -> None:
    wider = (
        {"width": 256, "feed_forward": 512, "head_size": 64} if BLOCKS[type_].size == 256 else {}
    )
    shape = find_shape("tiny", type=type_, **wider)
    source = RandomWeights(shape)
    whole = source.read_range(0, source.size)
    assert len(whole) == source.size
    rng = np.random.default_rng(3)
    for start in rng.integers(0, source.size, 50):
        n = int(rng.integers(0, 5000))
        assert source.read_range(int(start), n) == whole[start : start + n]
    gguf = gpu.run(read_gguf(source))
    assert read_config(gguf) == shape.config
    for name in (*shape.config.matrices(), *shape.config.vectors()):
        info, values = gguf.tensors[name], source.values(name)
        raw = np.frombuffer(whole, np.uint8, info.nbytes, info.offset)
        want = quants.dequantize(raw, GGMLQuantizationType[info.type]).reshape(info.shape)
        np.testing.assert_array_equal(values, want)
        if len(info.shape) == 2:
            assert 0.5 < np.std(values) * info.shape[1] ** 0.5 < 1.5


@pytest.mark.parametrize("name", SHAPES)
def test_every_shape_is_a_model(name: str) -> None:
    shape = SHAPES[name]
    assert read_config(gpu.run(read_gguf(RandomWeights(shape)))) == shape.config


def test_a_shape_is_the_same_everywhere() -> None:
    again = replace(TINY)
    assert again.stream().tolist() == TINY.stream().tolist()
    for name, pair in TINY.adapter().items():
        for one, other in zip(pair, again.adapter()[name], strict=True):
            np.testing.assert_array_equal(one, other)
    batch = TINY.batch()
    assert len(batch.tokens) == TINY.tokens and (batch.targets >= 0).all()


@pytest.mark.parametrize(
    ("name", "changed", "says"),
    [
        ("storys15M", {}, r"shape = 'storys15M' \(did you mean 'stories15M'\?\): allowed are tiny"),
        ("tiny", {"type": "IQ1_S"}, "type = 'IQ1_S': allowed are F32, F16, BF16, Q4_0, Q4_1"),
        ("tiny", {"rows": 0}, "rows = 0: a number above 0 is needed"),
        ("tiny", {"rank": -1}, "rank = -1: a number above 0"),
        ("stories260K", {"type": "Q8_0"}, "rows of 172 values, .* no whole blocks of 32"),
    ],
)
def test_wrong_shapes_are_refused(name: str, changed: dict[str, Any], says: str) -> None:
    with pytest.raises(OptionError, match=says):
        find_shape(name, **changed)


# Counting


def test_spread_and_ratios() -> None:
    assert spread([3.0, 1.0, 2.0]) == {
        "median": 2.0,
        "low": 1.0,
        "high": 3.0,
        "samples": [3.0, 1.0, 2.0],
    }
    found = ratios([2.0, 3.0, 8.0], [4.0, 2.0, 2.0])
    assert found["samples"] == [0.5, 1.5, 4.0]
    assert (found["median"], found["low"], found["high"]) == (1.5, 0.5, 4.0)


def test_shares_are_those_of_the_same_round() -> None:
    best = Case("nt", "best", "F32", [], 1, flops=100.0)
    total = sum(step_flops(TINY).values())
    found = step._speed(TINY, [1.0, 2.0, 4.0], best, [0.5, 1.0, 1.0])
    assert found["share_of_ceiling"] == total / 2 / 100  # as in the first round and the second
    assert found["flops_per_second"] == total / 2
    assert found["ceiling"]["per_second"] == 100 and found["ceiling"]["best_per_second"] == 200
    assert found["tokens_per_second"] == 16


def test_attention_is_counted_pair_by_pair() -> None:
    pairs = sum(
        1 for row in range(3) for q in range(7) for k in range(7) if k <= q for h in range(2)
    )
    assert attention_flops(3, 7, 2, 8) == (pairs * 2 * 2 * 8, pairs * 5 * 2 * 8)
    near = [(q, k) for q in range(7) for k in range(7) if 0 <= q - k < 3]
    assert attention_flops(3, 7, 2, 8, 3)[0] == 3 * 2 * len(near) * 2 * 2 * 8
    assert attention_flops(3, 7, 2, 8, 9) == attention_flops(3, 7, 2, 8)


@pytest.mark.oracle
@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_operations_are_those_of_pytorch(kind: str) -> None:
    needs.package("peft")
    from torch.utils.flop_counter import FlopCounterMode

    from wgtrain.bench.peft_step import PeftStep

    shape = replace(TINY, architecture=kind, layers=3, rank=4)
    stepper = PeftStep(shape, {"dtype": "float32"})
    with FlopCounterMode(display=False) as counter:
        stepper.steps(1)
    counted = sum(
        n for op, n in counter.get_flop_counts()["Global"].items() if "scaled_dot" not in str(op)
    )
    kinds = step_flops(shape)
    assert counted == sum(kinds.values()) - kinds["attention"]


def test_the_points_of_an_axis() -> None:
    tokens = dict(points(TINY, "tokens", 256))
    assert list(tokens) == [64, 128, 256]
    assert [(s.rows, s.length) for s in tokens.values()] == [(1, 64), (2, 64), (4, 64)]
    rows = [(s.rows, s.length) for _, s in points(TINY, "row", 128)]
    assert rows == [(1, 64), (1, 128)]
    assert [s.rank for _, s in points(TINY, "rank", None)] == [4, 8, 16, 32, 64, 128]


def test_numbers_for_people() -> None:
    values = (0.0, 0.012345, 0.5, 1.234, 12.34, 123.4, 12345.6)
    wanted = ["0", "0.0123", "0.500", "1.23", "12.3", "123", "12,346"]
    assert [tables.number(v) for v in values] == wanted


def test_a_spread_says_what_it_is_worth() -> None:
    assert tables.with_spread(spread([1.0, 1.1, 1.25])) == "1.10 (1.00 - 1.25)"
    assert tables.with_spread(spread([1.0, 1.1, 1.4])) == "1.10 (1.00 - 1.40, unsteady)"
    assert tables.with_spread(spread([1.1])) == "1.10 (one round)"


def test_a_sample_begins_untimed_where_steps_are_short() -> None:
    class Trainer:
        def steps(self, count: int) -> dict[str, float]:
            asked.append(count)
            return {"seconds": 0.1}

    asked: list[int] = []
    assert step.sample(Trainer(), 0.1) == {"seconds": 0.1}  # type: ignore[arg-type]
    step.sample(Trainer(), 6.0)  # type: ignore[arg-type]
    assert asked == [1, 2, 1]


def test_progress_says_what_is_left(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(parts, "LINE_SECONDS", 0.0)
    with parts.progress(3) as advance:
        for name in ("one", "two", "three"):
            advance(name)
    lines = capsys.readouterr().err.splitlines()
    assert [line.rpartition("  left ")[0] for line in lines] == ["two: 1 of 3", "three: 2 of 3"]


# Measurements


@pytest.mark.gpu
def test_a_step(quick: None, capsys: Any, tmp_path: Path) -> None:
    out, svg = tmp_path / "step.json", tmp_path / "step.svg"
    found = record_of(
        capsys, "step", "--shape", "tiny", "--rows", 3, "--rank", 4, "--rounds", 2, "--type",
        "Q8_0", "--out", out, "--svg", svg,
    )  # fmt: skip
    assert json.loads(out.read_text()) == found
    assert found["command"] == (
        "wgtrain bench step --shape tiny --type Q8_0 --rows 3 --rank 4 --rounds 2"
    )
    assert (found["bench"], found["format"], found["vs"]) == ("step", 1, [])
    assert found["seconds_per_step"] == found["seconds"]["median"] > 0
    assert len(found["seconds"]["samples"]) == 2
    shape = find_shape("tiny", rows=3, rank=4, type="Q8_0")
    assert found["shape"] == shape.facts()
    assert found["tokens_per_second"] == pytest.approx(48 / found["seconds_per_step"])
    assert found["flops_per_step"] == sum(step_flops(shape).values())
    assert found["flops_per_second"] == found["flops_per_step"] / found["seconds_per_step"]
    assert found["share_of_ceiling"] > 0
    assert 0 < found["ceiling"]["per_second"] <= found["ceiling"]["best_per_second"]
    assert found["ceiling"]["type"] == "Q8_0"
    assert sum(row["calls"] for row in found["kernels"]) == found["dispatches"]
    assert all(row["seconds"] >= 0 for row in found["kernels"])
    memory = found["memory"]
    assert memory["gpu"] == memory["weights"] + sum(memory["plan"].values())
    assert found["host_seconds_per_step"]["median"] > 0
    assert found["machine"]["cores"] and found["adapter"]["name"]
    assert b"<svg" in svg.read_bytes() and b"<script" not in svg.read_bytes()


@pytest.mark.gpu
def test_decoding(quick: None, capsys: Any, tmp_path: Path) -> None:
    out, svg = tmp_path / "decode.json", tmp_path / "decode.svg"
    found = record_of(
        capsys, "decode", "--shape", "tiny", "--type", "Q8_0", "--rows", 3, "--length", 5,
        "--rank", 4, "--adapters", 0, "--adapters", 2, "--rounds", 2, "--out", out, "--svg", svg,
    )  # fmt: skip
    assert json.loads(out.read_text()) == found and b"<svg" in svg.read_bytes()
    assert found["command"] == (
        "wgtrain bench decode --shape tiny --type Q8_0 --rows 3 --length 5 --rank 4 --adapters 0 "
        "--adapters 2 --rounds 2"
    )
    shape = find_shape("tiny", rows=3, length=5, rank=4, type="Q8_0")
    assert (found["bench"], found["vs"], found["shape"]) == ("decode", [], shape.facts())
    bare, tuned = found["stacks"]
    assert (bare["adapters"], tuned["adapters"]) == (0, 2)
    assert tuned["dispatches"] > bare["dispatches"] > 20
    assert bare["ratio"]["samples"] == [1.0, 1.0] != tuned["ratio"]["samples"]
    # Rows of 32 and 64 values: 34 and 68 bytes, the latter in planes of 64 and 4 bytes.
    linears = [(32, 32), (16, 32), (16, 32), (32, 32), (64, 32), (64, 32), (32, 64)]
    rows = [n for n, k in linears * 2 if k == 32], [n for n, k in linears * 2 if k == 64]
    wanted = (sum(rows[0]) + shape.vocabulary) * (32 + 4) + sum(rows[1]) * (64 + 4)
    for each in (bare, tuned):
        assert each["bytes_of_weights"] == wanted
        assert each["tokens_per_second"] == 3 / each["seconds"]["median"]
        assert each["prefill_tokens_per_second"] == 15 / each["prefill_seconds"]["median"]
        assert each["bytes_per_second"] == wanted / each["seconds"]["median"]
        assert each["share_of_copy"] > 0 and each["host_seconds"]["median"] > 0
        assert each["plan"]["keys and values"] > 0
    found["vs"] = [
        {"name": "llama.cpp", "versions": {"x": "0.1"}, "threads": 2}
        | dict.fromkeys(("tokens_per_second", "prefill_tokens_per_second"), 7.0)
        | {"ratio": bare["ratio"]}
    ]
    (own, beside) = tables.tables(found)
    assert [row[0] for row in own.rows] == ["0", "2"] and len(own.columns) == len(own.rows[0])
    assert beside.rows[0][:2] == ("llama.cpp (0.1, 2 threads)", "7.00")


@pytest.mark.gpu
def test_changes_of_adapters(quick: None, capsys: Any, tmp_path: Path) -> None:
    svg = tmp_path / "adapters.svg"
    found = record_of(
        *(capsys, "adapters", "--shape", "tiny", "--rank", 5, "--rounds", 2, "--svg", svg)
    )
    assert b"<svg" in svg.read_bytes()
    assert found["command"] == "wgtrain bench adapters --shape tiny --rank 5 --rounds 2"
    shape = find_shape("tiny", rank=5)
    assert (found["bench"], found["shape"]) == ("adapters", shape.facts())
    taken = {change["what"]: change["seconds"] for change in found["changes"]}
    assert all(len(seconds["samples"]) == 2 and seconds["low"] > 0 for seconds in taken.values())
    new, there = taken["load the first: a new plan"], taken["switch to one that is there"]
    assert new["low"] > there["high"], "a write against a plan"
    assert found["ranks"] == 48 and found["gpu_bytes"] > 3 * found["adapter_bytes"] > 0
    (table,) = tables.tables(found)
    assert [row[0] for row in table.rows] == [*taken]
    shown = float(table.rows[0][1].split()[0])
    assert shown == pytest.approx(1e3 * found["changes"][0]["seconds"]["median"], rel=0.01)


@pytest.mark.gpu
def test_a_weight_read_twice_is_no_result(full_device: Any) -> None:
    with step.Stepper(TINY) as stepper:
        model = stepper.model
        decoder = decode.Decoder(model, TINY, 0)
        plan = decoder.session.plan
        assert decode.read_once(plan) > 0
        plan.launches["decode"] *= 2
        with pytest.raises(WgtrainError, match="reads rows of .* more than once"):
            decode.read_once(plan)
        decoder.close()


@pytest.mark.gpu
@pytest.mark.oracle
@pytest.mark.parametrize("changed", [{}, {"architecture": "qwen3", "type": "Q8_0"}])
def test_llama_cpp_decodes_the_same(changed: dict[str, Any]) -> None:
    needs.package("llama_cpp")
    from wgtrain.bench.llama_decode import LlamaDecode

    shape = replace(TINY, **changed)
    theirs = LlamaDecode(shape, {}).steps(2)
    assert theirs["seconds"] > 0 and theirs["prefill"] > 0
    with step.Stepper(shape) as stepper:
        decoder = decode.Decoder(stepper.model, shape, 0)
        apart = decode.check_logits("llama.cpp", decoder.logits, theirs["logits"])
        assert apart < (1e-5 if shape.type == "F32" else 5e-2)
        wrong = [*theirs["logits"][1:], 0.0]
        with pytest.raises(WgtrainError, match="does not do the same work: logits differ by"):
            decode.check_logits("llama.cpp", decoder.logits, wrong)
        decoder.close()


@pytest.mark.gpu
@pytest.mark.parametrize("what", ["step", "kernels"])
def test_precision_changes_what_runs(quick: None, capsys: Any, what: str) -> None:
    common = (what, "--shape", "tiny", "--type", "F32", "--rounds", 1)
    device = open_device(None)
    has = "f16" in device.features
    device.close()
    if not has:
        pytest.skip("no shader-f16 here")
    wide, half = record_of(capsys, *common), record_of(capsys, *common, "--precision", "f16")
    assert (wide["precision"], half["precision"]) == ("f32", "f16")
    assert half["command"].endswith("--precision f16 --rounds 1")
    (shown, *_) = [t.title for t in tables.tables(half) if "tiny" in t.title]
    assert "f16" in shown
    if what == "kernels":
        assert {row["type"] for row in half["kernels"]} == {"F16", ""}
        (ceiling, *_) = half["ceilings"]
        assert ceiling["group"] in ("nt f16/weight_f16", "nn f16/weight_f16")
        return
    assert half["memory"]["weights"] < wide["memory"]["weights"]
    tiled = {"matmul_nt_tiled", "matmul_nn_tiled"}  # the only ones with operands in f16
    assert tiled <= {row["kernel"] for row in half["kernels"]}
    assert not tiled & {row["kernel"] for row in wide["kernels"]}
    assert half["first_step"]["loss"] != wide["first_step"]["loss"]
    assert half["first_step"]["loss"] == pytest.approx(wide["first_step"]["loss"], rel=1e-3)
    assert "f16" in half["ceiling"]["group"] and half["ceiling"]["type"] == "F16"


@pytest.mark.gpu
@pytest.mark.usefixtures("own_device")
def test_f16_is_refused_where_there_is_none(capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(protocol.FEATURES, "f16", ())
    for what in ("step", "kernels"):
        code, out, error = wgtrain(
            capsys, "bench", what, "--shape", "tiny", "--precision", "f16", "--rounds", "1"
        )
        assert (code, out) == (3, "") and "has none; use precision = f32" in error


@pytest.mark.gpu
def test_kernels(quick: None, capsys: Any, tmp_path: Path) -> None:
    svg = tmp_path / "kernels.svg"
    found = record_of(
        capsys, "kernels", "--shape", "tiny", "--type", "F32", "--type", "Q4_0", "--rounds", 1,
        "--svg", svg,
    )  # fmt: skip
    rows = found["kernels"]
    groups = {row["group"] for row in rows}
    assert groups == {
        "forward", "dX", "LoRA forward", "LoRA backward", "attention forward", "RMS norm",
        "attention backward", "cross-entropy", "SwiGLU", "residual", "rotary embedding", "AdamW",
        "LayerNorm", "GEGLU",
    }  # fmt: skip
    windowed = [row for row in rows if "window 1" in row["what"]]
    assert [row["group"] for row in windowed] == ["attention forward", "attention backward"]
    assert all(row["of_whole_rows"]["median"] > 0 for row in windowed)
    for row in rows:
        assert row["per_second"] == pytest.approx(row["work"] / row["seconds"]["median"])
        assert row["share_of_ceiling"] > 0 and row["dispatches"] > 0
        assert row["ceiling"] == ("copy" if row["unit"] == "B" else row["type"] or "F32")
    typed = [(row["group"], row["what"]) for row in rows if row["type"] == "Q4_0"]
    assert typed == [(row["group"], row["what"]) for row in rows if row["type"] == "F32"]
    for row in rows:
        pair = row.get("rate_of_f32")
        assert (pair is not None) == bool(row["type"])
        assert not pair or row["type"] != "F32" or pair["median"] == 1.0
    (forward,) = [r for r in rows if r["group"] == "forward" and r["type"] == "F32"
                  and r["what"].startswith("ffn_gate")]  # fmt: skip
    assert forward["work"] == 2 * 32 * 64 * 32
    assert {x["type"] or x["group"] for x in found["ceilings"]} == {"F32", "Q4_0", "copy"}
    assert b"Q4_0" in svg.read_bytes()


@pytest.mark.gpu
def test_scaling(quick: None, capsys: Any, tmp_path: Path) -> None:
    found = record_of(
        capsys, "scaling", "--shape", "tiny", "--axis", "rank", "--axis", "tokens", "--most", 128,
        "--rounds", 1, "--svg", tmp_path / "s.svg",
    )  # fmt: skip
    rank, tokens = found["curves"]
    assert [p["value"] for p in rank["points"]] == [4, 8, 16, 32, 64, 128]
    assert [p["tokens"] for p in tokens["points"]] == [64, 128]
    assert all(p["seconds"]["median"] > 0 for p in (*rank["points"], *tokens["points"]))
    flops = [p["flops"] for p in rank["points"]]
    plans = [p["plan"] for p in rank["points"]]
    assert flops == sorted(flops) and plans == sorted(plans)
    assert all(p["attention"] > 0 for p in (*rank["points"], *tokens["points"]))
    assert {path.name for path in tmp_path.iterdir()} == {
        "s-rank.svg", "s-rank-memory.svg", "s-tokens.svg", "s-tokens-memory.svg",
    }  # fmt: skip
    for name, words in {
        "s-rank.svg": (b">rank<", b">seconds<", b">128<"),
        "s-tokens-memory.svg": (b">tokens<", b">MiB<", b">in proportion<"),
    }.items():
        assert all(word in (tmp_path / name).read_bytes() for word in words)
    (table, _) = tables.tables(found)
    assert table.rows[0][2] == "" and table.rows[1][2].startswith("x ")


@pytest.mark.gpu
def test_tuning_is_that_of_a_run_or_made_anew(
    quick: None, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = []
    kept = tune.choose

    def choose(device: Any, plan: Any, max_row: int, replays: int, mode: str) -> Any:
        chosen.append((plan.max_tokens, replays, mode))
        return replace(kept(device, plan, max_row, replays, "default"), origin="made up")

    monkeypatch.setattr(tune, "choose", choose)
    common = ("--shape", "tiny", "--rounds", 1)
    found = record_of(capsys, "step", *common)
    assert found["tuning"]["origin"] == "made up"
    found = record_of(capsys, "--tune", "step", *common)
    assert found["command"] == "wgtrain bench --tune step --shape tiny --rounds 1"
    record_of(capsys, "--tune", "scaling", *common, "--axis", "layers", "--most", 1)
    found = record_of(capsys, "--tune", "kernels", *common, "--type", "F32", "--type", "F16")
    assert found["tuning"]["tiny"]["origin"] == "made up"
    steps = [(32, 1000, "auto"), (32, 1000, "measure"), (32, 1000, "measure")]
    assert chosen == steps + 2 * [(32, 0, "measure")]


@pytest.mark.gpu
def test_tuning_alone_is_stored_and_shown(capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    choice = Choice("matmul_nt_tiled", (("TILE_ROWS", 8), ("TILE_COLS4", 1)))
    monkeypatch.setattr(candidates, "GPU_CANDIDATES", {"nt": (choice,)})
    entry = Measured("nt", choice, sweep.Shape(32, 9.0), 5e9, 4e9, 3)
    monkeypatch.setattr(tune, "measure", lambda *a, **k: _done([entry]))
    monkeypatch.setattr(tune, "worthwhile", lambda device, plan: ["nt"])
    monkeypatch.setattr(command, "_TUNE_SHAPES", ("tiny",))
    code, out, error = wgtrain(capsys, "bench", "--tune")
    assert code == 0, error
    assert "matmul_nt_tiled TILE_ROWS 8" in out and "5.00" in out
    device = open_device(None)
    path = tune.cache_file(device.info)
    assert tune.load(device.info).measured == (entry,)
    path.unlink()
    device.close()


async def _done(value: Any) -> Any:
    return value


def test_nothing_asked_for_is_help(capsys: Any) -> None:
    code, out, _ = wgtrain(capsys, "bench")
    assert code == 0 and "kernels" in out and "--tune" in out


@pytest.mark.gpu
def test_the_table_of_a_step(quick: None, capsys: Any) -> None:
    code, out, error = wgtrain(capsys, "bench", "step", "--shape", "tiny", "--rounds", 1)
    assert code == 0, error
    for words in ("seconds per step", "share of the ceiling", "host time per dispatch", "matmul"):
        assert words in out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("step", "--shape", "x"), "shape = 'x': allowed are tiny"),
        (("step", "--rounds", "0"), "rounds = 0: a number above 0 is needed"),
        (("step", "--vs", "x"), "vs = 'x': allowed are peft, peft-bf16, tinygrad"),
        (("decode", "--vs", "x"), "vs = 'x': allowed are llama.cpp"),
        (("decode", "--adapters", "-1"), "adapters = -1: a number from 0 on is needed"),
        (("kernels", "--type", "x"), "--type 'x': allowed are F32"),
        (("scaling", "--axis", "x"), "axis = 'x': allowed are tokens, row, rank"),
        (("scaling", "--axis", "rank", "--most", "3"), "most = 3: axis rank begins at 4"),
        (("step", "--out", "no/such/x.json"), "--out 'no/such/x.json': that folder does not exist"),
        (("report", "--out", "x.md"), "report: no JSON file is named"),
        (("report", "none.json", "--out", "x.md"), "none.json: No such file"),
        (("step", "--precision", "f8"), "'f8' is not one of 'f32', 'f16'"),
        (("step", "--rows", "two"), "'two' is not a valid integer"),
        (("stepp",), "No such command 'stepp'"),
    ],
)
def test_bad_options(capsys: Any, arguments: tuple[str, ...], says: str) -> None:
    code, out, error = wgtrain(capsys, "bench", *arguments)
    assert (code, out) == (2, "") and says in error


# Rivals


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> None:
    """A rival whose numbers are those of ours, but for its time."""
    kind = rivals.Kind("fake_rival", ("json",), 1e-3, warmup=1)
    monkeypatch.setitem(rivals.RIVALS, "fake", kind)
    monkeypatch.syspath_prepend(Path(__file__).parent)
    monkeypatch.setenv("PYTHONPATH", f"{needs.ROOT}:{Path(__file__).parent}")


def ours_first() -> dict[str, float]:
    with step.Stepper(TINY) as stepper:
        return stepper.steps(1)


@pytest.mark.gpu
def test_a_rival_in_turn(
    quick: None, fake: None, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = ours_first()
    monkeypatch.setenv("FAKE_RIVAL", f"0.5,{first['loss']},{first['grad_norm']}")
    found = record_of(capsys, "step", "--shape", "tiny", "--vs", "fake", "--rounds", 3)
    (other,) = found["vs"]
    assert other["seconds"]["samples"] == [0.5] * 3
    wanted = [seconds / 0.5 for seconds in found["seconds"]["samples"]]
    assert other["ratio"]["samples"] == wanted
    assert max(other["difference"].values()) < 1e-6


@pytest.mark.gpu
@pytest.mark.parametrize("wrong", ["loss", "grad_norm"])
def test_other_work_is_refused(
    quick: None, fake: None, capsys: Any, monkeypatch: pytest.MonkeyPatch, wrong: str
) -> None:
    first = ours_first()
    first[wrong] *= 1.01
    monkeypatch.setenv("FAKE_RIVAL", f"0.5,{first['loss']},{first['grad_norm']}")
    code, out, error = wgtrain(capsys, "bench", "step", "--shape", "tiny", "--vs", "fake")
    assert (code, out) == (2, "")
    assert f"fake does not do the same work: {wrong}" in error


def test_a_rival_that_breaks(fake: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_RIVAL", "one")
    with pytest.raises(WgtrainError, match="fake: ValueError: could not convert"):
        rivals.Rival("fake", TINY)
    monkeypatch.setenv("FAKE_RIVAL", "1,1,1")
    monkeypatch.setenv("FAKE_RIVAL_DIES", "1")
    with (
        rivals.Rival("fake", TINY) as rival,
        pytest.raises(WgtrainError, match="fake ended with status 7: it broke"),
    ):
        rival.steps(1)


def test_rivals_that_cannot_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    says = r"torch, transformers, peft is not installed; .* checkout by: pip install '\.\[bench\]'"
    with pytest.raises(OptionError, match=says):
        rivals.check_rivals(("peft",), TINY)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    with pytest.raises(
        OptionError, match="is of architecture qwen3; tinygrad is written for llama"
    ):
        rivals.check_rivals(("tinygrad",), SHAPES["Qwen3-1.7B-Q8_0"])


def test_f16_agrees_within_its_own_bound() -> None:
    one, other = {"loss": 1.0, "grad_norm": 1.0}, {"loss": 1.0, "grad_norm": 1.005}
    assert rivals.check_same("peft", one, other, "f16")["grad_norm"] == pytest.approx(0.005)
    for precision in ("f32", "f16"):
        with pytest.raises(WgtrainError, match="does not do the same work"):
            rivals.check_same("peft", one, {**one, "grad_norm": 1.02}, precision)


def test_nan_is_no_agreement() -> None:
    one = {"loss": 1.0, "grad_norm": 1.0}
    with pytest.raises(WgtrainError, match="does not do the same work"):
        rivals.check_same("peft", one, {**one, "loss": float("nan")})


@pytest.mark.gpu
@pytest.mark.oracle
@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"architecture": "qwen2", "type": "Q8_0"},
        {"architecture": "qwen3", "type": "Q4_0", "tied": False},
        {"type": "BF16", "kv_heads": 4, "rows": 3},
    ],
)
def test_peft_does_the_same_work(changed: dict[str, Any]) -> None:
    needs.package("peft")
    from wgtrain.bench.peft_step import PeftStep

    shape = replace(TINY, **changed)
    theirs = PeftStep(shape, {"dtype": "float32"})
    with step.Stepper(shape) as ours:
        for _ in range(3):  # what the steps before did shows in the loss
            rivals.check_same("peft", ours.steps(1), theirs.steps(1))


@pytest.mark.gpu
@pytest.mark.oracle
@pytest.mark.slow
@pytest.mark.parametrize("name", ["peft", "tinygrad"])
def test_beside_a_real_rival(quick: None, capsys: Any, name: str) -> None:
    for package in rivals.RIVALS[name].packages:
        needs.package(package)
    found = record_of(capsys, "step", "--shape", "tiny", "--vs", name, "--rounds", 1)
    (other,) = found["vs"]
    assert other["name"] == name and other["versions"] and other["seconds_per_step"] > 0
    assert max(other["difference"].values()) < 1e-4


# The page


def test_the_page_is_made_of_its_records() -> None:
    folder = PAGE.parent / "performance"
    records = report.read_records(sorted(folder.glob("*.json")))
    assert PAGE.read_text("utf-8") == report.page(records, "performance")
    pictures = report.pictures(records)
    assert {path.name for path in folder.glob("*.svg")} == set(pictures)
    for name, svg in pictures.items():
        assert (folder / name).read_bytes() == svg, name


@pytest.mark.gpu
def test_a_page_of_new_records(quick: None, capsys: Any, tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    common = ("--shape", "tiny", "--rounds", 1)
    record_of(capsys, "step", *common, "--out", tmp_path / "runs" / "a.json")
    record_of(
        capsys, "scaling", *common, "--axis", "layers", "--most", 2,
        "--out", tmp_path / "runs" / "b.json",
    )  # fmt: skip
    files = sorted((tmp_path / "runs").glob("*.json"))
    code, out, error = wgtrain(
        capsys, "bench", "report", *files[::-1], "--out", tmp_path / "page.md"
    )
    assert (code, out) == (0, ""), error
    text = (tmp_path / "page.md").read_text()
    for picture in re.findall(r"!\[.*?\]\((.*?)\)", text):
        assert (tmp_path / picture).is_file()
    assert "wgtrain bench step --shape tiny --rounds 1" in text
    found = json.loads(files[0].read_text())
    assert tables.number(found["tokens_per_second"]) in text
    assert found["machine"]["processor"] in text and found["adapter"]["driver"] in text
    with pytest.raises(FileError, match="not a record of wgtrain bench"):
        (tmp_path / "x.json").write_text("{}")
        report.read_records([tmp_path / "x.json"])
    with pytest.raises(FileError, match="format 99; 1 is read here"):
        (tmp_path / "x.json").write_text('{"bench": "step", "format": 99}')
        report.read_records([tmp_path / "x.json"])


def test_shapes_are_what_they_are_called() -> None:
    """Parameters of the real models, in millions."""

    def millions(shape: Shape) -> float:
        matrices = sum(a * b for a, b in shape.config.matrices().values())
        return (matrices + sum(shape.config.vectors().values())) / 1e6

    wanted = {"stories260K": 0.26, "stories15M": 15.2, "SmolLM2-135M": 134.5,
              "Qwen2.5-0.5B-Q8_0": 494.0, "Qwen3-1.7B-Q4_0": 1720.6}  # fmt: skip
    assert {
        name: round(millions(SHAPES[name]), 2 if "K" in name else 1) for name in wanted
    } == wanted
