"""What a run shows: plain lines, a bar, a chart in a notebook that runs an event loop."""

import dataclasses
import io
import sys
import time
import types

import fake_learner
import pytest
from fake_learner import FakeModel, fake_rows

import wgtrain
from wgtrain import api
from wgtrain.notebook import chart as notebook
from wgtrain.runs import progress
from wgtrain.train.config import LoraConfig, TrainConfig


@pytest.fixture
def trainer(monkeypatch):
    fake_learner.install(monkeypatch.setattr)
    config = TrainConfig(epochs=30, batch_size=4, eval_every=50)
    host = dataclasses.replace(FakeModel.host, watch=api.HOST.watch)
    return wgtrain.Trainer(
        FakeModel(), fake_rows(), LoraConfig(rank=2), config, fake_rows(4), host=host
    )


def test_clock():
    assert [progress.clock(s) for s in (0, 9.6, 75, 3599.4, 3700)] == [
        "0:00",
        "0:10",
        "1:15",
        "59:59",
        "1:01:40",
    ]


def test_plain_lines(trainer, capsys):
    trainer.fit()  # no terminal here
    said = capsys.readouterr().out.splitlines()
    steps = [int(line.split("/")[0].removeprefix("step ")) for line in said]
    # 120 steps: the first, every sixth, and the validations
    assert steps == sorted({1, 50, 100, *range(6, 121, 6)})
    held = [step for step, line in zip(steps, said, strict=True) if "validation" in line]
    assert held == [50, 100, 120]
    assert all(part in said[0] for part in ("epoch 0.25", "loss 2.3979", "tok/s", "left 0:"))


def test_lines_of_a_slow_run(trainer, monkeypatch):
    now = [0.0]
    # Not the clock of all: servers of other tests run by it.
    monkeypatch.setattr(progress, "time", types.SimpleNamespace(monotonic=lambda: now[0]))
    said = []
    with progress.lines(trainer, said.append) as show:
        for result in trainer.run():
            now[0] += 4.0
            show(result)
            if result.step == 8:
                break
    assert [line.split()[1] for line in said] == ["1/120", "4/120", "6/120"]
    assert "left 7:36" in said[2]  # 114 steps of 4 seconds


def test_a_long_step_is_said_to_be_under_way(trainer, monkeypatch):
    monkeypatch.setattr(progress, "BEAT_SECONDS", 0.02)
    monkeypatch.setattr(progress, "clock", lambda seconds: "0:10")
    said = []

    def wait_for(text):
        for _ in range(6000):
            if text in said:
                return
            time.sleep(0.01)
        raise AssertionError(said)

    with progress.lines(trainer, said.append) as show:
        wait_for("validation before the first step: 0:10 so far")
        results = trainer.run()
        for _ in range(3):
            show(next(results))
        wait_for("step 4/120: 0:10 so far")
    n = len(said)
    time.sleep(0.1)
    assert len(said) == n  # nothing goes on behind it
    assert progress.under_way(trainer, 49) == "step 50/120 and its validation"


def test_a_terminal_that_hangs_up(trainer, monkeypatch):
    class Gone(io.StringIO):
        def isatty(self):
            return True

        def write(self, text):
            raise OSError(5, "Input/output error")

        def flush(self):
            self.write("")

    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", Gone())
    with progress.bar(trainer) as show:
        for result in trainer.run():
            show(result)
    assert trainer.step == 120


def test_bar_in_a_terminal(trainer, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    screen = Terminal()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setattr(sys, "stderr", screen)
    trainer.fit()
    text = screen.getvalue()
    for part in ("training", "120/120", "loss ", "tok/s", "validation "):
        assert part in text


def test_chart_in_a_notebook(trainer, monkeypatch):
    shown = []

    class Handle:
        def update(self, svg):
            shown.append(svg)

    display = types.ModuleType("IPython.display")
    display.SVG = lambda data: data
    display.display = lambda svg, display_id: (shown.append(svg), Handle())[1]
    ipython = types.ModuleType("IPython")
    ipython.get_ipython = lambda: types.SimpleNamespace(config={"IPKernelApp": {}})
    ipython.display = display
    assert not notebook.running()
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    assert notebook.running()
    monkeypatch.setattr(notebook, "DRAW_SECONDS", 0.0)
    trainer.fit()
    assert len(shown) == 121
    assert b"no step yet" in shown[0]
    last = shown[-1].decode()
    assert "step 120/120" in last and "training" in last and "validation" in last


def test_public_names():
    for name in wgtrain.__all__:
        assert getattr(wgtrain, name) is not None
    assert set(wgtrain.__all__) <= set(dir(wgtrain))
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = wgtrain.nothing
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = wgtrain.aio.nothing
