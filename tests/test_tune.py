"""Measured tuning tables: the sweep, the user's cache, what a run takes, records and resumes."""

import dataclasses
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny

import wgtrain
from wgtrain import api, gpu
from wgtrain.data import Dataset, Row
from wgtrain.engine import candidates, tuning
from wgtrain.engine import kernel as loader
from wgtrain.engine.kernel import read_shader
from wgtrain.engine.tables import from_json, to_json
from wgtrain.engine.tuning import DEFAULT_CPU, Choice, Tuning
from wgtrain.errors import FileError
from wgtrain.files import Adapter
from wgtrain.gpu import AdapterInfo
from wgtrain.runs import session
from wgtrain.train import checkpoint
from wgtrain.train.checkpoint import seal
from wgtrain.train.config import LoraConfig, TrainConfig
from wgtrain.train.trainer import Trainer
from wgtrain.tune import cache as tune
from wgtrain.tune import sweep
from wgtrain.tune.sweep import Measured, Shape

pytestmark = pytest.mark.gpu
NT = "nt/weight_f32"
SMALL = Choice("matmul_nt", (("TILE_ROWS", 4), ("TILE_COLS", 8)))
# Other sums, in another order, than the default's: the bits of a run show it.
OTHER_TN = Choice("matmul_tn", (("TILE_ROWS", 8), ("TILE_COLS4", 1), ("LANES", 4)))
CONFIG = TrainConfig(epochs=1, batch_size=2, learning_rate=0.01)
INFO = AdapterInfo(0, "some adapter", "CPU", "Vulkan", "driver 1")
ENTRY = Measured(NT, SMALL, Shape(512, 1e6), 2e10, 1e10, 3)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(tune.VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(autouse=True)
def of_this_version(monkeypatch: pytest.MonkeyPatch) -> None:
    """The choices of these tests are candidates, though not on this adapter."""
    more = {"nt": (SMALL,), **{f: (OTHER_TN,) for f in DEFAULT_CPU.table if f[:2] == "tn"}}
    monkeypatch.setattr(candidates, "GPU_CANDIDATES", more)


@pytest.fixture(scope="module")
def model() -> Iterator[Any]:
    with wgtrain.load_model(tiny.tiny("llama").gguf, limits="default") as opened:
        yield opened


@pytest.fixture
def make(model: Any) -> Iterator[Callable[..., Trainer]]:
    made = []

    def trainer(given: Tuning | None = None, **train: Any) -> Trainer:
        pairs = tiny.random_rows(tiny.SPECS["llama"], [9, 17, 5, 12, 7, 8], 0)
        rows = Dataset([Row(*pair, line) for line, pair in enumerate(pairs, 1)], "rows", 32)
        config = dataclasses.replace(CONFIG, **train)
        made.append(Trainer(model, rows, LoraConfig(rank=4), config, tuning=given))
        return made[-1]

    yield trainer
    for each in made:
        each.close()


@pytest.fixture
def worth(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every run is long enough for a sweep, of one other variant of one family."""
    monkeypatch.setattr(tune, "WORTH", {})
    monkeypatch.setattr(tune, "GPU_WORTH", 0)
    monkeypatch.setattr(candidates, "CANDIDATES", {NT: (SMALL,)})
    monkeypatch.setattr(candidates, "GPU_CANDIDATES", {})


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> dict[int, float]:
    """Seconds of a variant by its workgroups, in place of measured ones; 1 where not set."""
    seconds: dict[int, float] = {}

    async def timed(stage: Any, prepared: Any) -> float:
        return seconds.get(int(prepared[2].prod()), 1.0)

    monkeypatch.setattr(sweep._Stage, "seconds", timed)
    return seconds


def groups(trainer: Trainer, choice: Choice) -> int:
    """Workgroups of the launch that a sweep measures."""
    launch, _, _ = sweep.heaviest(trainer.learner.plan)[NT]
    assert launch.tuned
    counts = launch.tuned.kernel(choice).grid_function(launch.params)
    rows = trainer.learner.plan.max_tokens
    x, y, z = counts(rows, rows)
    return x * y * z


# ---- the sweep ---------------------------------------------------------------------------------


def measured(trainer: Trainer, **options: Any) -> list[Measured]:
    learner = trainer.learner
    found: list[Measured] = gpu.run(
        sweep.measure(learner.device, learner.plan, learner.max_row, **options)
    )
    return found


@pytest.mark.usefixtures("worth")
def test_the_clearly_fastest_is_taken(make: Any, clock: dict[int, float]) -> None:
    trainer = make()
    before = trainer.model.device.allocated
    for seconds, expected in ((0.5, SMALL), (2.0, None), (0.99, None)):
        clock[groups(trainer, SMALL)] = seconds
        (entry,) = measured(trainer)
        assert entry.family == NT and entry.tried == 2
        assert entry.choice == (expected or DEFAULT_CPU.choice(NT))
        assert entry.rate == pytest.approx(entry.default_rate * (2 if expected else 1))
    assert trainer.model.device.allocated == before


@pytest.mark.usefixtures("worth")
def test_with_the_real_clock(make: Any) -> None:
    (entry,) = measured(make())
    assert entry.choice in (SMALL, DEFAULT_CPU.choice(NT))
    assert entry.rate >= entry.default_rate > 0


@pytest.mark.usefixtures("worth")
def test_nothing_is_taken_where_time_is_up(make: Any) -> None:
    assert measured(make(), seconds=0) == []


@pytest.mark.usefixtures("worth")
def test_a_slow_compiler_ends_a_family(
    make: Any, clock: dict[int, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make()
    clock[groups(trainer, SMALL)] = 0.5
    monkeypatch.setattr(sweep, "_SLOW_COMPILE", 0)
    assert [entry.choice for entry in measured(trainer)] == [DEFAULT_CPU.choice(NT)]


@pytest.mark.usefixtures("worth")
@pytest.mark.parametrize(
    ("old", "new"),
    [("x_at = row0", "x_at = 2u * row0"), ("x_at = row0", "x_at = nothing(row0)")],
)
def test_a_variant_that_is_wrong_is_never_taken(
    make: Any, clock: dict[int, float], monkeypatch: pytest.MonkeyPatch, old: str, new: str
) -> None:
    """Neither one with other numbers, nor one that does not compile."""
    text = read_shader("matmul_nt")
    assert text.count(old) == 1
    files = {"matmul_wrong": text.replace(old, new)}
    monkeypatch.setattr(loader, "read_shader", lambda path: files.get(path) or read_shader(path))
    wrong = Choice("matmul_wrong", SMALL.constants)
    monkeypatch.setattr(candidates, "CANDIDATES", {NT: (wrong,)})
    trainer = make()
    clock[groups(trainer, wrong)] = 0.1
    (entry,) = measured(trainer)
    assert entry.choice == DEFAULT_CPU.choice(NT)


def test_every_family_can_be_measured(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also attention, whose rows are made up, and results that are added on."""
    monkeypatch.setattr(sweep, "_SMALL_SHARE", 0)
    monkeypatch.setattr(sweep, "_ROUNDS", 1)
    trainer = make()
    families = [x.family for x in trainer.learner.plan.launches["micro"] if x.family]
    for family in dict.fromkeys(families):
        (entry,) = measured(trainer, families=[family])
        assert entry.family == family and entry.rate > 0


# ---- the cache ---------------------------------------------------------------------------------


def test_products_with_loaded_adapters_are_measured_as_if_all_were_in_use(model: Any) -> None:
    """Not as what nobody uses, of which nothing is made."""
    spec = tiny.tiny("llama").spec
    pairs = tiny.random_adapter(spec, tiny.targets(spec, ["attn_q", "attn_v"]), 5, 1)
    stack = model.stack([(Adapter("llama", 5, 10.0, pairs), 1.0)])
    session = gpu.run(model.session(stack, 64))
    with_them = [x for x in session.plan.launches["body"] if "lora_list" in x.operands]
    libraries = {"columns_used" if x.tuned.libraries.get("columns") else "" for x in with_them}
    assert libraries == {"columns_used", ""}
    for launch in with_them[:3]:
        stage = sweep._Stage(model.device, launch, 64, 64)
        (made,) = gpu.run(
            stage.result(gpu.run(stage.prepare(session.tuning.choice(launch.family))))
        )
        (before,) = stage._written.values()
        stage.close()
        made, before = made.reshape(64, -1), before.view(np.float32).reshape(64, -1)
        assert (made != before).any(0).all(), "every column is made"
    model._kept.drop_session()


def test_what_was_measured_is_read_back(cache: Path) -> None:
    assert tune.load(INFO) == tune.Cached()
    assert tune.save(INFO, [ENTRY]) == ""
    found = tune.load(INFO)
    assert found.measured == (ENTRY,) and found.made and not found.problem
    assert [path.suffix for path in cache.iterdir()] == [".json"]


def test_new_measurements_replace_those_of_like_shapes() -> None:
    near = dataclasses.replace(ENTRY, shape=Shape(1024, 1e6), choice=DEFAULT_CPU.choice(NT))
    far = dataclasses.replace(ENTRY, shape=Shape(16, 1e6))
    other = dataclasses.replace(ENTRY, family="nn", choice=DEFAULT_CPU.choice("nn"))
    tune.save(INFO, [near], [ENTRY, far, other])
    assert tune.load(INFO).measured == (near, far, other)


@pytest.mark.parametrize("field", ["name", "backend", "driver"])
def test_each_adapter_and_driver_has_its_own_file(field: str) -> None:
    tune.save(INFO, [ENTRY])
    assert tune.load(dataclasses.replace(INFO, **{field: "another"})) == tune.Cached()


@pytest.mark.parametrize("what", ["a kernel", "a library", "the version"])
def test_another_version_measures_anew(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tune.save(INFO, [ENTRY])
    changed = {"a kernel": "matmul_nt", "a library": "lib/weight_q4_0"}.get(what)
    if changed is None:
        monkeypatch.setattr(tune, "__version__", "99")
    monkeypatch.setattr(tune, "read_shader", lambda p: read_shader(p) + " " * (p == changed))
    assert tune.load(INFO) == tune.Cached()


DAMAGE: list[Callable[[dict[str, Any]], Any]] = [
    lambda data: "{",
    lambda data: [],
    lambda data: {**data, "format": 2},
    lambda data: {**data, "key": {}},
    lambda data: {**data, "made": 5},
    lambda data: {**data, "made": "\x1b[2J"},
    lambda data: "[" * 100_000,
    lambda data: '{"format": ' + "9" * 5000 + "}",
    lambda data: "\x00" * 100,
    lambda data: {**data, "measured": [1]},
    *(
        lambda data, entry=entry: {**data, "measured": [{**data["measured"][0], **entry}]}
        for entry in (
            {"rate": "fast"},
            {"rate": 0},
            {"rows": None},
            {"rate": float("nan")},
            {"work": float("inf")},
            {"rows": 10**400},
            {"rows": float("inf")},
            {"family": 3},
            {"family": "no such family"},
            {"choice": {"kernel": "matmul_nt", "TILE_ROWS": 7, "TILE_COLS": 8}},
            {"choice": {"kernel": "matmul_tn", "LANES": 3}},
            {"choice": {"kernel": "no_such_kernel"}},
            {"choice": "matmul_nt"},
            {"choice": {"kernel": "../../secret"}},
            {"choice": {"kernel": "matmul_nt", "TILE ROWS": 3}},
            {"choice": {"kernel": "matmul_nt", "TILE_ROWS": "3u; nothing"}},
        )
    ),
]


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_ignored(damage: Callable[[dict[str, Any]], Any]) -> None:
    tune.save(INFO, [ENTRY])
    path = tune.cache_file(INFO)
    data = damage(json.loads(path.read_text()))
    path.write_text(data if isinstance(data, str) else json.dumps(data))
    found = tune.load(INFO)
    assert found.measured == ()
    assert str(path) in found.problem and "ignored" in found.problem
    assert "\n" not in found.problem


ODD: dict[str, Callable[[Path], Any]] = {
    "a pipe": lambda path: os.mkfifo(path),
    "a folder": lambda path: path.mkdir(),
    "too large": lambda path: os.truncate(path, tune.MOST_BYTES + 1) if path.touch() is None else 0,
    "a link to itself": lambda path: path.symlink_to(path.name),
    "no text": lambda path: path.write_bytes(b"\xff\xfe"),
}


@pytest.mark.skipif(sys.platform == "win32", reason="pipes and links of POSIX")
@pytest.mark.parametrize("kind", ODD)
def test_a_cache_that_cannot_be_read_is_made_anew(make: Any, cache: Path, kind: str) -> None:
    path = tune.cache_file(make(tuning="default").model.device.info)
    cache.mkdir()
    ODD[kind](path)
    first = make().learner.tuning
    assert first.table == DEFAULT_CPU.table
    assert str(path) in first.origin and "ignored" in first.origin and "\n" not in first.origin
    if kind == "a folder":
        assert [entry.name for entry in cache.iterdir()] == [path.name], "no file is left beside it"
    else:
        assert first.origin.endswith("and made anew)")
        assert make().learner.tuning == DEFAULT_CPU, "said once"


def test_a_cache_that_cannot_be_used_is_told(cache: Path) -> None:
    cache.write_text("a file")
    assert "cannot be written" in tune.save(INFO, [ENTRY])
    assert "ignored" in tune.load(INFO).problem


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(tune.VARIABLE)
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", "some/place")
    assert tune.cache_folder() == Path("some/place/wgtrain")
    monkeypatch.setattr("sys.platform", "win32")
    monkeypatch.setenv("LOCALAPPDATA", "another")
    assert tune.cache_folder() == Path("another/wgtrain")
    monkeypatch.setattr("sys.platform", "darwin")
    assert tune.cache_folder() == Path.home() / "Library" / "Caches" / "wgtrain"


# ---- what a run takes --------------------------------------------------------------------------


@pytest.mark.usefixtures("worth")
def test_each_mode_changes_the_run(make: Any, clock: dict[int, float], cache: Path) -> None:
    plain = make(tuning="default")
    assert plain.learner.tuning == DEFAULT_CPU and not cache.exists()
    clock[groups(plain, SMALL)] = 0.5
    auto = make()
    assert auto.learner.tuning.choice(NT) == SMALL
    assert "1 kernels measured now" in auto.learner.tuning.origin
    assert {x.kernel.constants["TILE_ROWS"] for x in of_family(auto, NT)} == {4}
    clock.clear()  # nothing is faster any more, but that is known already
    again = make()
    assert again.learner.tuning.table == auto.learner.tuning.table
    assert again.learner.tuning.origin == f"1 kernels measured {tune.load(info(auto)).made}"
    anew = make(tuning="measure")
    assert anew.learner.tuning.choice(NT) == DEFAULT_CPU.choice(NT)
    assert make().learner.tuning.choice(NT) == DEFAULT_CPU.choice(NT)
    assert make(tuning="default").learner.tuning == DEFAULT_CPU


@pytest.mark.usefixtures("worth", "clock")
def test_a_sweep_says_what_it_does(make: Any, capsys: pytest.CaptureFixture[str]) -> None:
    trainer = make()
    lines = capsys.readouterr().err.splitlines()
    assert lines == [f"measuring the kernels of {info(trainer).name}, for 12 s at most, once"]
    make()
    assert capsys.readouterr().err == ""


def info(trainer: Trainer) -> AdapterInfo:
    found: AdapterInfo = trainer.model.device.info
    return found


def of_family(trainer: Trainer, family: str) -> list[Any]:
    return [x for x in trainer.learner.plan.launches["micro"] if x.family == family]


def test_short_runs_are_not_measured(make: Any, cache: Path) -> None:
    assert make().learner.tuning == DEFAULT_CPU and not cache.exists()


def test_measured_tables_serve_short_runs_of_like_shapes(make: Any) -> None:
    trainer = make()
    _, shape, _ = sweep.heaviest(trainer.learner.plan)[NT]
    far = Shape(shape.rows * 100, shape.work)
    for at, expected in ((far, DEFAULT_CPU.choice(NT)), (shape, SMALL)):
        tune.save(info(trainer), [dataclasses.replace(ENTRY, shape=at)])
        assert make().learner.tuning.choice(NT) == expected


def test_a_damaged_table_is_told_and_the_defaults_taken(make: Any) -> None:
    trainer = make()
    tune.save(info(trainer), [ENTRY])
    tune.cache_file(info(trainer)).write_text("{")
    tuned = make().learner.tuning
    assert tuned.table == DEFAULT_CPU.table and "is damaged and ignored" in tuned.origin


# ---- what is recorded --------------------------------------------------------------------------


def finish(trainer: Trainer) -> bytes:
    list(trainer.run())
    adapter: bytes = trainer.adapter_gguf()
    return adapter


def tables() -> tuple[Tuning, Tuning]:
    """The defaults, and a table with which a run has other bits."""
    table = {**DEFAULT_CPU.table, **{f: OTHER_TN for f in DEFAULT_CPU.table if f[:2] == "tn"}}
    return DEFAULT_CPU, Tuning(table, "made by a test")


def test_a_table_decides_the_bits(make: Any) -> None:
    default, other = tables()
    assert finish(make(other)) == finish(make(other)) != finish(make(default))


@pytest.mark.parametrize("built", [False, True])
def test_a_checkpoint_brings_its_table(make: Any, built: bool) -> None:
    _, other = tables()
    whole, first, second = make(other), make(other), make()
    expected = finish(whole)
    for result in first.run():
        if result.step == 1:
            break
    first.stop()
    saved = first.checkpoint()
    if built:
        second.build()
    second.restore(saved)
    assert second.learner.tuning == other
    assert finish(second) == expected


def test_a_choice_that_cannot_run_is_replaced_and_told(make: Any) -> None:
    table = {**DEFAULT_CPU.table, NT: Choice("matmul_nt", (("SUBGROUP", 8),))}
    table["nn"] = Choice("matmul_nn_subgroup", (("SUBGROUP", 8),))
    tuned = make(Tuning(table, "made by a test")).learner.tuning
    assert tuned.choice(NT) == DEFAULT_CPU.choice(NT)
    assert tuned.choice("nn") == DEFAULT_CPU.choice("nn")
    assert tuned.origin == (
        "made by a test; 2 kernels cannot run here and are replaced: numbers may differ"
    )


NONSENSE = {
    "tn 8x8": {"kernel": "matmul_tn", "TILE_ROWS": 8, "TILE_COLS4": 2, "LANES": 3},
    "rms_norm": {"kernel": "rms_norm", "LANES": 12},
    "cross_entropy_chunk": {"kernel": "cross_entropy_chunk", "LANES": 2**40},
    "nn": {"kernel": "of_another_version"},
}


@pytest.mark.parametrize("where", ["checkpoint", "given"])
def test_constants_that_this_version_does_not_list_are_replaced_and_told(
    make: Any, capsys: pytest.CaptureFixture[str], where: str
) -> None:
    """Lanes that are no power of two gave other losses without a word."""
    plain = make()
    table = to_json(DEFAULT_CPU)["table"] | NONSENSE
    damaged = {"table": table, "origin": "made by\x1b[2J a test"}
    if where == "given":
        trainer = make(from_json(damaged))
    else:
        trainer = make()
        files = trainer.checkpoint()
        state = dataclasses.replace(checkpoint.unpack(files).state, tuning=damaged)
        saved = dataclasses.replace(checkpoint.unpack(files), state=state)
        trainer.restore(checkpoint.pack(saved), "run/step-0")
    told = "made by?[2J a test; 4 kernels not of this version are replaced: numbers may differ"
    assert trainer.learner.tuning == Tuning(DEFAULT_CPU.table, told)
    assert told in capsys.readouterr().err
    assert finish(trainer) == finish(plain)


@pytest.mark.parametrize("tuned", [3, {"table": 3}, {"origin": "x", "table": {"nt": {}}}])
def test_a_damaged_table_in_a_checkpoint(make: Any, tuned: Any) -> None:
    trainer = make()
    files = trainer.checkpoint()
    state = json.loads(files["state.json"]) | {"tuning": tuned}
    del state["seal"]
    with pytest.raises(FileError, match=r"state\.json: tuning"):
        trainer.restore({**files, "state.json": seal(state)})


def write_run(folder: Path) -> dict[str, Any]:
    """Files of a run on the real engine, and its settings."""
    (folder / "tiny.gguf").write_bytes(tiny.tiny("llama").gguf)
    pairs = tiny.random_rows(tiny.SPECS["llama"], [9, 17, 5, 12, 7, 8], 0)
    lines = [{"input_ids": tokens.tolist(), "labels": tokens.tolist()} for tokens, _ in pairs]
    (folder / "ids.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return {
        "model": str(folder / "tiny.gguf"),
        "data": str(folder / "ids.jsonl"),
        "rank": 4,
        "epochs": 2,
        "batch_size": 2,
        "learning_rate": 0.01,
    }


def test_a_resumed_run_is_bitwise_whatever_the_cache_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, other = tables()
    settings = write_run(tmp_path)
    chosen: list[Tuning | None] = [other]

    def choose(device: Any, *_: Any) -> Tuning:
        return chosen[0] or tuning.default_tuning(device)

    host = dataclasses.replace(api.HOST, choose_tuning=choose)
    monkeypatch.setattr(api, "HOST", host)
    said: list[str] = []
    out = {name: str(tmp_path / name) for name in ("whole", "run", "plain")}
    assert session.start({**settings, "out": out["whole"]}, said.append)
    assert "kernels: made by a test" in "\n".join(said)
    with monkeypatch.context() as patch:
        stop_after(patch, 2)
        patch.setattr("wgtrain.train.loop.READ_SECONDS", 0.0)  # no step is ahead of its report
        assert not session.start({**settings, "out": out["run"]}, said.append)
    chosen[0] = None  # what was measured is gone
    assert session.resume(out["run"], said.append)
    assert session.start({**settings, "out": out["plain"]}, said.append)
    adapters = {name: Path(path, "adapter.gguf").read_bytes() for name, path in out.items()}
    assert adapters["run"] == adapters["whole"] != adapters["plain"]
    summary = json.loads(Path(out["run"], "summary.json").read_text())
    assert from_json(summary["tuning"]).table == other.table


def stop_after(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Makes the next trainer stop itself after a step, as a signal would."""
    real = Trainer.run.awaitable  # type: ignore[attr-defined]

    async def run(self: Trainer) -> Any:
        async for result in real(self):
            if result.step == step:
                self.stop()
            yield result

    monkeypatch.setattr(Trainer, "run", type(Trainer.__dict__["run"])(run))
