"""The run folder: nothing overwritten, lines whole, checkpoints complete or absent."""

import datetime
import json
import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
import yaml

from wgtrain.errors import FileError, OptionError
from wgtrain.runs import folder as run_folder
from wgtrain.runs.chart import loss_svg
from wgtrain.runs.folder import RunFolder, check_free, read_yaml
from wgtrain.train.results import Evaluation, StepResult

FILES = {"adapter.gguf": b"a" * 100, "optimizer.safetensors": b"b" * 300, "state.json": b"{}"}


@pytest.fixture
def folder(tmp_path):
    opened = RunFolder.create(str(tmp_path / "run"), "x", {"rank": 2})
    yield opened
    opened.close()


def step(n, loss=1.5, eval_loss=None):
    return StepResult(n, n / 10, loss, 0.1, 2.0, 30, 40 * n, 1000.0, 0.1 * n, eval_loss)


def lines(folder):
    return [json.loads(line) for line in (folder.path / "metrics.jsonl").read_text().splitlines()]


def test_settings_are_written(folder):
    assert yaml.safe_load((folder.path / "config.yaml").read_text()) == {
        "rank": 2,
        "out": str(folder.path),
    }


def test_existing_folder_is_refused(tmp_path):
    (tmp_path / "file").write_text("x")
    (tmp_path / "empty").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    RunFolder.create(str(tmp_path / "empty"), "x", {}).close()
    for name in ("file", "empty", "full"):
        before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
        for attempt in (check_free, lambda out: RunFolder.create(out, "x", {})):
            with pytest.raises(OptionError, match=f"out = .*{name}: exists already"):
                attempt(str(tmp_path / name))
        assert before == {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    with pytest.raises(OptionError, match="--resume .*empty continues it"):
        check_free(str(tmp_path / "empty"))


def test_default_names_do_not_collide(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(run_folder.time, "strftime", lambda _: "20260102-030405")
    names = []
    for _ in range(3):
        opened = RunFolder.create(None, "rows", {})
        names.append(opened.path.as_posix())
        opened.close()
    first = "runs/20260102-030405-rows"
    assert names == [first, f"{first}-2", f"{first}-3"]


def test_unusable_place(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(OptionError, match=r"out = .*file/run: "):
        RunFolder.create(str(tmp_path / "file" / "run"), "x", {})


def test_killed_before_the_settings_are_written(tmp_path, monkeypatch):
    def killed(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(run_folder.Path, "rename", killed)
        with pytest.raises(KeyboardInterrupt):
            RunFolder.create(str(tmp_path / "run"), "x", {})
    assert not (tmp_path / "run").exists()
    RunFolder.create(str(tmp_path / "run"), "x", {}).close()
    assert [p.name for p in tmp_path.iterdir()] == ["run"]


def test_one_process_at_a_time(folder):
    code = f"""
from wgtrain.errors import OptionError
from wgtrain.runs.folder import RunFolder
try:
    RunFolder.open({str(folder.path)!r})
except OptionError as error:
    print(error)
"""
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "another process is training in this folder" in said.stdout, said.stderr
    folder.close()
    RunFolder.open(str(folder.path)).close()


def test_not_a_run_folder(tmp_path):
    for name in ("nothing", "."):
        with pytest.raises(FileError, match="not a run folder"):
            RunFolder.open(str(tmp_path / name))


def test_metrics_lines(folder):
    third = 1 / 3
    folder.record(step(1, third), Evaluation(0, 2.0, 7))
    folder.record(step(2, eval_loss=800.0))
    names = "step epoch loss learning_rate grad_norm trained_tokens tokens_seen tokens_per_second"
    first, second, third_line, fourth = lines(folder)
    assert first == {"step": 0, "eval_loss": 2.0, "eval_perplexity": np.exp(2.0)}
    assert list(second) == [*names.split(), "elapsed_seconds"]
    assert second["loss"] == third and third_line["step"] == 2
    assert fourth == {"step": 2, "eval_loss": 800.0, "eval_perplexity": None}


def test_rewind_drops_what_came_after(folder):
    for n in range(1, 7):
        folder.record(step(n, float(n), eval_loss=0.5 if n % 2 == 0 else None))
    before = (folder.path / "metrics.jsonl").read_bytes()
    with open(folder.path / "metrics.jsonl", "ab") as file:
        file.write(b'{"step": 7, "lo')
    assert folder.rewind(6)
    assert (folder.path / "metrics.jsonl").read_bytes() == before
    assert folder.rewind(4)
    assert folder.losses == [(1, 1.0), (2, 2.0), (3, 3.0), (4, 4.0)]
    assert folder.evaluations == [(2, 0.5), (4, 0.5)]
    folder.record(step(5, 9.0))
    assert [line["step"] for line in lines(folder)] == [1, 2, 2, 3, 4, 4, 5]
    assert not folder.rewind(6)  # says so where lines are missing
    assert folder.rewind(0) and lines(folder) == []


def test_checkpoints_are_kept_up_to_a_limit(folder):
    for n in (10, 20, 30):
        folder.save_checkpoint(n, FILES, keep=2)
    assert [n for n, _ in folder.checkpoints()] == [30, 20]
    folder.save_checkpoint(1_234_567, FILES, keep=0)
    assert [p.name for _, p in folder.checkpoints()] == [
        "step-1234567",
        "step-000030",
        "step-000020",
    ]
    assert folder.read_checkpoint(folder.checkpoints()[0][1]) == FILES
    left = sorted(p.name for p in (folder.path / "checkpoints").iterdir())
    assert left == ["step-000020", "step-000030", "step-1234567"]


def test_checkpoint_that_was_not_finished_does_not_count(folder, monkeypatch):
    folder.save_checkpoint(10, FILES, keep=2)

    def full(*arguments):
        raise OSError(28, "No space left on device")

    for name in ("fsync", "open"):
        with monkeypatch.context() as patch:
            patch.setattr(run_folder.os, name, full)
            with pytest.raises(OSError, match="No space"):
                folder.save_checkpoint(20, FILES, keep=2)
        assert [n for n, _ in folder.checkpoints()] == [10]
    folder.close()
    opened = RunFolder.open(str(folder.path))
    assert [p.name for p in (folder.path / "checkpoints").iterdir()] == ["step-000010"]
    opened.save_checkpoint(20, FILES, keep=1)
    assert opened.read_checkpoint(opened.checkpoints()[0][1]) == FILES
    opened.close()


def test_checkpoint_is_written_again(folder):
    folder.save_checkpoint(10, {**FILES, "state.json": b"old"}, keep=2)
    folder.save_checkpoint(10, FILES, keep=2)
    assert folder.read_checkpoint(folder.checkpoints()[0][1]) == FILES


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a full device")
def test_a_write_that_fails_names_the_file():
    with pytest.raises(OSError, match="No space left on device: '/dev/full'"):
        run_folder._write_synced(Path("/dev/full"), b"x")


def test_summary(folder):
    assert folder.read_summary() == {}
    folder.write_summary(status="running", step=3)
    folder.write_summary(status="done")
    assert folder.read_summary() == {"status": "done", "step": 3}
    (folder.path / "summary.json").write_text("[1, 2")
    assert folder.read_summary() == {}


def test_log_has_the_time(folder):
    folder.log("one\ntwo")
    text = (folder.path / "train.log").read_text()
    assert re.fullmatch(r"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d (one|two)\n){2}", text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"a: [1, 2", "not YAML: .*line 1"),
        (b"- a\n- b\n", "a mapping of settings is needed, not list"),
        (b"\xff\xfe\x00", "not YAML"),
        (b"a: " + b"[" * 5000, "not YAML"),
        (b"a: !!python/object/apply:os.getcwd []", "not YAML: .*could not determine a constructor"),
        (b"a: 2001-99-99", "not YAML"),
    ],
)
def test_unusable_yaml(tmp_path, text, message):
    (tmp_path / "c.yaml").write_bytes(text)
    with pytest.raises(FileError, match=f"c.yaml: {message}"):
        read_yaml(tmp_path / "c.yaml")
    with pytest.raises(FileError, match="No such file"):
        read_yaml(tmp_path / "d.yaml")


def test_chart_stands_alone():
    losses = [(n, 3.0 / n) for n in range(1, 2002)]
    svg = loss_svg(losses, [(0, 3.0), (2000, 0.1)], "a <title>")
    root = ET.fromstring(svg)
    text = svg.decode()
    assert "script" not in text and "@import" not in text and "validation" in text
    assert re.findall(r'(?:href|src)="', text) == []
    assert svg == loss_svg(losses, [(0, 3.0), (2000, 0.1)], "a <title>")
    line = root.find(".//{*}path[@class='line reactive nofill']")
    assert 250 < len(line.get("d").split()) < 1100
    for few in ([], [(1, 2.0)]):
        ET.fromstring(loss_svg(few))
    assert "validation" not in loss_svg([(1, 2.0)]).decode()


def test_equal_runs_have_equal_charts_on_any_day(monkeypatch):
    class Later(datetime.date):
        @classmethod
        def today(cls):
            return cls(2150, 12, 31)

    today = loss_svg([(1, 2.0), (2, 1.0)])
    monkeypatch.setattr("pygal.svg.date", Later)
    assert loss_svg([(1, 2.0), (2, 1.0)]) == today and b"2150" not in today
