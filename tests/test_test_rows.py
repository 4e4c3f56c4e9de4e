"""`train --test`: the loss of test.jsonl, of the base and with the adapter, when a run is done."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import fake_learner
import numpy as np
import pytest
import random_model as rm
import yaml
from fake_learner import FakeLearner, FakeModel, fake_rows, write_rows
from test_cli import wgtrain as command

import wgtrain
from wgtrain.cli.demo import BASE
from wgtrain.data import Dataset, Row
from wgtrain.errors import FileError, NonFiniteError, OptionError, WgtrainError
from wgtrain.runs import session
from wgtrain.train import trainer as trainer_module
from wgtrain.train.config import LoraConfig, TrainConfig
from wgtrain.train.trainer import Trainer

SETTINGS: dict[str, Any] = {
    "model": "base.gguf",
    "data": "data",
    "rank": 2,
    "batch_size": 4,
    "iters": 6,
    "save_every": 3,
    "learning_rate": 0.05,
    "test": True,
}


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder with a model and rows, and the toy in place of the engine."""
    monkeypatch.chdir(tmp_path)
    fake_learner.install(monkeypatch.setattr)
    Path("data").mkdir()
    for name, n in (("train", 14), ("valid", 3), ("test", 5)):
        write_rows(Path("data", f"{name}.jsonl"), n)
    Path("base.gguf").write_bytes(b"toy")


def start(out: str, said: list[str] | None = None, **more: Any) -> dict[str, Any]:
    """The summary of a run."""
    heard = [] if said is None else said
    assert session.start({**SETTINGS, "out": out, **more}, heard.append)
    return summary(out)


def summary(out: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Path(out, "summary.json").read_text())
    return found


def found(out: str) -> list[float]:
    """What a run's summary says of the test."""
    names = ("test_rows", "base_test_loss", "base_test_perplexity", "test_loss", "test_perplexity")
    return [summary(out)[name] for name in names]


@pytest.mark.usefixtures("toy")
def test_the_base_and_the_adapter_are_tested() -> None:
    said: list[str] = []
    start("with", said)
    n, base, base_perplexity, loss, perplexity = found("with")
    assert n == 5 and base == pytest.approx(math.log(fake_learner.VOCAB), rel=1e-6)
    assert loss < base - 0.1
    assert (base_perplexity, perplexity) == (math.exp(base), math.exp(loss))
    trainer = Trainer(
        FakeModel("base.gguf"),  # type: ignore[arg-type]
        fake_rows(14),
        LoraConfig(rank=2),
        TrainConfig(batch_size=4, iters=6, learning_rate=0.05),
        valid=fake_rows(5),
    )
    list(trainer.run())
    assert loss == pytest.approx(trainer.evaluations[-1].loss, rel=1e-6)
    text = "\n".join(said)
    assert "3 for validation, 5 for the test" in text
    assert (
        f"test rows: loss {loss:.4f}, perplexity {perplexity:,.4g}; of the base {base:.4f}" in text
    )
    assert text.index("test rows: loss") > text.index("step 6/6")
    assert f", test {base:.4f} (base) -> {loss:.4f}\n" in text
    assert "test rows: loss" in Path("with/train.log").read_text()
    start("without", test=False)
    assert found("without") == [0, None, None, None, None]
    names = ("adapter.gguf", "adapter_model.safetensors")
    assert [Path("with", n).read_bytes() for n in names] == [
        Path("without", n).read_bytes() for n in names
    ], "the test changes the adapter"


@pytest.mark.usefixtures("toy")
def test_settings_files_know_it(capsys: pytest.CaptureFixture[str]) -> None:
    Path("run.yaml").write_text(yaml.safe_dump({**SETTINGS, "out": "out"}))
    code, _, error = command(capsys, "train", "--config", "run.yaml")
    assert code == 0, error
    assert found("out")[0] == 5
    code, _, error = command(
        capsys, "train", "--config", "out/config.yaml", "--out", "again", "--no-test"
    )
    assert code == 0, error
    assert found("again")[0] == 0
    code, _, error = command(capsys, "train", "--config", "out/config.yaml", "--out", "same")
    assert code == 0, error
    assert found("same") == found("out")


@pytest.mark.usefixtures("toy")
def test_it_is_refused_before_anything_without_rows(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["train", "--model", "base.gguf", "--out", "out", "--test", "--data"]
    Path("data/test.jsonl").unlink()
    for data in ("data", "data/train.jsonl"):
        code, _, error = command(capsys, *arguments, data)
        path = Path("data", "test.jsonl")
        assert code == 2 and f"error: --test: there is no {path}" in error
        assert not Path("out").exists()
    write_rows(Path("data/test.jsonl"), 4)
    code, _, error = command(capsys, *arguments, "data/train.jsonl", "--iters", "1")
    assert code == 0 and found("out")[0] == 4


@pytest.mark.usefixtures("toy")
def test_rows_that_were_seen_are_warned_of() -> None:
    for part, words in (("train", "training"), ("valid", "validation")):
        shutil.copy(f"data/{part}.jsonl", "data/test.jsonl")
        said: list[str] = []
        start(part, said)
        line = f"warning: {Path('data', 'test.jsonl')}: the same rows as the {words} rows"
        assert line in "\n".join(said)


@pytest.mark.usefixtures("toy")
def test_interrupted_runs_are_tested_when_they_are_done(monkeypatch: pytest.MonkeyPatch) -> None:
    start("whole")
    real = Trainer.test
    monkeypatch.setattr(Trainer, "test", type(real)(_interrupted))
    with pytest.raises(KeyboardInterrupt):
        start("run")
    assert summary("run")["status"] == "interrupted" and found("run")[1] is None
    monkeypatch.setattr(Trainer, "test", real)
    assert session.resume("run", lambda text: None)
    assert found("run") == found("whole") and summary("run")["status"] == "done"
    said: list[str] = []
    assert session.resume("run", said.append)
    assert "is finished" in said[0] and "(base) ->" in said[0]
    assert session.resume("run", lambda text: None, {"iters": 9})
    longer = found("run")
    assert longer[:3] == found("whole")[:3] and longer[3] != found("whole")[3]


async def _interrupted(self: Any, progress: Any) -> Any:
    raise KeyboardInterrupt


@pytest.mark.usefixtures("toy")
def test_rows_of_a_run_that_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are those it was started with, where they are now."""
    start("whole")
    stopped = Trainer._queue_step

    def stop(self: Any) -> None:
        stopped(self)
        if self.step == 3:
            self.stop()

    monkeypatch.setattr(Trainer, "_queue_step", stop)
    for name in ("moved", "changed", "gone"):
        assert not session.start({**SETTINGS, "out": name}, lambda text: None)
        assert found(name)[3] is None
    monkeypatch.setattr(Trainer, "_queue_step", stopped)
    test, content = Path("data/test.jsonl"), Path("data/test.jsonl").read_bytes()
    test.write_bytes(content + content)
    with pytest.raises(FileError, match=r"test: .*test\.jsonl has changed since"):
        session.resume("changed", lambda text: None)
    test.unlink()
    with pytest.raises(FileError, match=r"test: .*; where it moved.*--resume: --data FOLDER"):
        session.resume("gone", lambda text: None)
    test.write_bytes(content)
    Path("data").rename("elsewhere")
    with pytest.raises(WgtrainError, match=r"(?s)data: .*valid: .*test: "):
        session.resume("moved", lambda text: None)
    moved = {"data": "elsewhere", "valid": "elsewhere"}
    assert session.resume("moved", lambda text: None, moved)
    assert found("moved") == found("whole")
    with pytest.raises(OptionError, match="test: not beside resume"):
        session.resume("moved", lambda text: None, {"test": True})


def small(monkeypatch: pytest.MonkeyPatch, test: Dataset | None) -> Trainer:
    monkeypatch.setattr(trainer_module, "lora_learner", FakeLearner)
    config = TrainConfig(epochs=None, iters=2, batch_size=3, learning_rate=0.05)
    return Trainer(FakeModel(), fake_rows(), LoraConfig(rank=2), config, test=test)  # type: ignore[arg-type]


def test_an_interrupt_within_it_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = small(monkeypatch, fake_rows(4))
    list(trainer.run())
    before = trainer.adapter_gguf()
    real, calls = trainer.learner.evaluate, []

    async def evaluate(batches: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return await real(batches)

    monkeypatch.setattr(trainer.learner, "evaluate", evaluate)
    with pytest.raises(KeyboardInterrupt):
        trainer.test()
    assert trainer.tested is None
    assert trainer.adapter_gguf() == before
    seen: list[tuple[int, int]] = []
    assert trainer.test(lambda *at: seen.append(at)) == trainer.tested
    assert seen == [(0, 4), (1, 4), (2, 4), (3, 4), (4, 4)]  # two batches, twice
    assert trainer.adapter_gguf() == before


def test_what_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OptionError, match="test: no test rows were given"):
        small(monkeypatch, None).test()
    with pytest.raises(OptionError, match=r"test: 'test\.jsonl': load them first"):
        small(monkeypatch, "test.jsonl")  # type: ignore[arg-type]
    with pytest.raises(OptionError, match=r"rows\.jsonl: no row with a token"):
        small(monkeypatch, fake_rows(0))
    trainer = small(monkeypatch, fake_rows(4))

    async def evaluate(batches: Any) -> tuple[float, int]:
        return math.nan, 1

    monkeypatch.setattr(trainer.learner, "evaluate", evaluate)
    with pytest.raises(NonFiniteError, match="the loss of the test rows is nan"):
        trainer.test()


@pytest.mark.gpu
def test_it_is_what_evaluate_says() -> None:
    """On the engine, with an adapter to start from: the base is the base, not where it started."""
    rows = [
        rm.batch(np.random.default_rng(i), lengths, 101) for i, lengths in enumerate([[9], [30]])
    ]
    data, tests = (
        Dataset([Row(b.tokens, b.targets, 1)], "rows", 64, train_on="completions") for b in rows
    )
    config = TrainConfig(epochs=None, iters=2, batch_size=1, learning_rate=0.05)
    with rm.load(rm.build(rm.Shape())) as model:
        first = wgtrain.Trainer(model, data, LoraConfig(rank=2), config)
        list(first.run())
        adapter = first.adapter()
        first.close()
        trainer = wgtrain.Trainer(model, data, None, config, None, adapter, test=tests)
        assert trainer.learner.plan.max_tokens == 30
        steps = [step.loss for step in trainer.run()]
        tested = trainer.test()
        after = trainer.adapter_gguf()
        trainer.close()
        base = model.evaluate(tests, [])
        assert tested.base_loss == pytest.approx(base.loss, rel=1e-6)
        assert tested.loss == model.evaluate(tests, [(after, 1.0)]).loss
        assert tested.count == base.trained_tokens
        start = model.evaluate(tests, [(adapter, 1.0)])
        assert start.loss != pytest.approx(base.loss, rel=1e-3)
        plain = wgtrain.Trainer(model, data, None, config, None, adapter)
        assert [step.loss for step in plain.run()] == pytest.approx(steps, rel=1e-5)
        plain.close()


def test_plans_know_the_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As the run will: a batch of long test rows decides."""
    for name, words in (("train", 2), ("test", 90)):
        row = {"text": "a dog " * words}
        (tmp_path / f"{name}.jsonl").write_text((json.dumps(row) + "\n") * 3)
    arguments = ["plan", "--model", BASE, "--data", tmp_path, "--batch-size", "2", "--json"]
    plans = []
    for more in ([], ["--test"]):
        code, text, error = command(capsys, *arguments, *more)
        assert code == 0, error
        plans.append(json.loads(text))
    plain, tested = plans
    rows = wgtrain.load_dataset(tmp_path / "test.jsonl", wgtrain.load_tokenizer(BASE)).rows
    longest = max(len(row.tokens) for row in rows)
    assert (tested["max_tokens"], tested["max_row"]) == (2 * longest, longest)
    assert plain["max_row"] < 20 and plain["total_bytes"] < tested["total_bytes"]
