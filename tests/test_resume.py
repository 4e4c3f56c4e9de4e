"""Interrupted, killed and resumed runs are bit by bit the runs that were left alone."""

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import fake_learner
import kills
import pytest
import tiny
from fake_learner import FakeLearner, write_rows
from kills import state

from wgtrain.errors import FileError, OptionError
from wgtrain.runs import disk, session
from wgtrain.train.trainer import Trainer

TESTS = Path(__file__).parent
STEP_SECONDS = 0.004


def prepare(folder, monkeypatch):
    """A folder with a model and rows, and the toy in place of the engine."""
    monkeypatch.chdir(folder)
    fake_learner.install(monkeypatch.setattr)
    write_rows(folder / "rows.jsonl", 30)
    (folder / "base.gguf").write_bytes(b"toy")


@pytest.fixture(autouse=True)
def toy(tmp_path, monkeypatch):
    prepare(tmp_path, monkeypatch)


def settings(out, **more):
    return {
        "model": "base.gguf",
        "data": "rows.jsonl",
        "out": out,
        "rank": 2,
        "target_modules": "q_proj,lm_head",
        "dropout": 0.1,
        "valid": 0.2,
        "grad_accum": 2,
        "batch_size": 2,
        "eval_every": 7,
        "save_every": 5,
        "epochs": 8,
        "learning_rate": 0.01,
    } | more


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The state of a run that was left alone."""
    with pytest.MonkeyPatch.context() as patch:
        prepare(tmp_path_factory.mktemp("whole"), patch)
        assert session.start(settings("whole"), lambda text: None)
        return state("whole")


def process(*arguments, hold_at=0):
    """The command line with the toy, in a process of its own; a step may wait for the file `go`."""
    command = [sys.executable, str(TESTS / "fake_learner.py"), str(STEP_SECONDS)]
    return subprocess.Popen(
        [*command, "train", *arguments],
        env=os.environ | {"FAKE_HOLD_AT": str(hold_at)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def options(out):
    given = settings(out).items()
    return [f"--{name.replace('_', '-')}={value}" for name, value in given]


def wait_for(true):
    """Returns when something is true, at the latest in two minutes."""
    for _ in range(12000):
        if true():
            return
        time.sleep(0.01)
    raise AssertionError("it does not come true")


def wait_for_step(out, step):
    """Returns when metrics.jsonl holds a step."""
    path = Path(out, "metrics.jsonl")
    wait_for(lambda: path.exists() and f'"step": {step},' in path.read_text())


def interrupt(running, number):
    """Sends a signal to a process that holds at a step, which then goes on."""
    wait_for_step("run", 11)
    running.send_signal(number)
    Path("go").touch()


def summary(out):
    return json.loads(Path(out, "summary.json").read_text())


def test_killed_at_random_moments(whole):
    dice = random.Random(7)
    kills, arguments = 0, options("run")
    while True:
        step = dice.randrange(1, 12) + 10 * kills
        running = process(*arguments, hold_at=step + 6 if kills < 3 else 0)  # it does not run away
        if kills < 3:
            wait_for_step("run", step)
            time.sleep(dice.uniform(0, 0.05))
            running.kill()
            kills += running.wait() == -signal.SIGKILL
        output, _ = running.communicate()
        for path in Path("run/checkpoints").glob("step-*"):  # complete from the moment it is there
            assert len(list(path.iterdir())) == 3
        arguments = ["--resume=run"]
        if running.returncode == 0:
            break
        assert running.returncode == -signal.SIGKILL, output
    assert kills == 3
    assert state("run") == whole
    assert summary("run")["status"] == "done"


@pytest.mark.slow
@pytest.mark.gpu
def test_killed_on_the_real_engine(tmp_path):
    (tmp_path / "tiny.gguf").write_bytes(tiny.tiny("llama").gguf)
    dice = random.Random(1)
    with open(tmp_path / "ids.jsonl", "w") as file:
        for _ in range(24):
            ids = [dice.randrange(97) for _ in range(dice.randrange(4, 12))]
            file.write(json.dumps({"input_ids": ids, "labels": ids}) + "\n")
    options = "--model tiny.gguf --data ids.jsonl --rank 2 --dropout 0.1 --batch-size 2"
    options += " --grad-accum 2 --epochs 4 --save-every 2 --valid 0.2 --eval-every 7"
    command = [sys.executable, "-m", "wgtrain", "train"]
    found = kills.series(command, options.split(), tmp_path, kills=3, seed=3)
    assert len(found) == 3


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_by_a_signal(whole, number):
    running = process(*options("run"), hold_at=17)
    interrupt(running, number)
    output, _ = running.communicate()
    assert running.returncode == 130 and "Traceback" not in output, output
    last = summary("run")
    assert last["status"] == "interrupted" and 11 <= last["step"] < last["total_steps"]
    assert "--resume run goes on" in output
    newest = max(Path("run/checkpoints").iterdir())
    assert newest.name == f"step-{last['step']:06d}"
    running = process("--resume=run")
    output, _ = running.communicate()
    assert running.returncode == 0 and f"resuming after step {last['step']}" in output
    assert state("run") == whole


def test_interrupted_before_training(tmp_path):
    code = f"""
import os, signal, sys
sys.path.insert(0, {str(TESTS)!r})
import fake_learner
from wgtrain.runs import session
from wgtrain.cli.main import main
fake_learner.install()
session.load_model = lambda *a, **o: os.kill(os.getpid(), signal.SIGTERM)
main(["train", "--model", "base.gguf", "--data", "rows.jsonl"])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 130 and done.stderr.strip() == "interrupted"


def stop_after(monkeypatch, step):
    """Makes the next trainer stop itself after a step, as a signal would."""
    real = Trainer.run.awaitable

    async def run(self):
        async for result in real(self):
            if result.step == step:
                self.stop()
            yield result

    monkeypatch.setattr(Trainer, "run", type(Trainer.__dict__["run"])(run))


@pytest.mark.parametrize("step", [1, 5, 7, 13, 35, 45])
def test_stopped_and_resumed(whole, monkeypatch, step):
    with monkeypatch.context() as patch:
        stop_after(patch, step)
        assert not session.start(settings("run"), lambda text: None)
    assert summary("run")["status"] == "interrupted"
    assert session.resume("run", lambda text: None)
    assert state("run") == whole


def test_resumed_from_another_folder(whole, monkeypatch, tmp_path):
    with monkeypatch.context() as patch:
        stop_after(patch, 10)
        session.start(settings("run"), lambda text: None)
    (tmp_path / "else").mkdir()
    monkeypatch.chdir(tmp_path / "else")
    shutil.move(tmp_path / "run", tmp_path / "moved")
    assert session.resume("../moved", lambda text: None)
    assert state("../moved") == whole


def test_finished_run_is_reported():
    session.start(settings("whole"), lambda text: None)
    said = []
    before = {p: p.stat().st_mtime_ns for p in Path("whole").rglob("*")}
    assert session.resume("whole", said.append)
    assert "whole is finished: 48 steps" in said[0] and "--resume whole --iters N" in said[0]
    assert before == {p: p.stat().st_mtime_ns for p in Path("whole").rglob("*")}


def test_without_a_checkpoint_it_starts_anew(whole, monkeypatch):
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        session.start(settings("run"), lambda text: None)
    shutil.rmtree("run/checkpoints")
    said = []
    assert session.resume("run", said.append)
    assert any("no checkpoint yet: starting anew" in text for text in said)
    assert state("run") == whole


def interrupted(monkeypatch, step=14):
    with monkeypatch.context() as patch:
        stop_after(patch, step)
        session.start(settings("run"), lambda text: None)
    return sorted(Path("run/checkpoints").iterdir())


@pytest.mark.parametrize("name", ["state.json", "adapter.gguf", "optimizer.safetensors"])
@pytest.mark.parametrize("damage", ["missing", "short", "changed"])
def test_damaged_checkpoint_falls_back_to_the_one_before(whole, monkeypatch, name, damage):
    older, newer = interrupted(monkeypatch)
    path = newer / name
    data = path.read_bytes()
    if damage == "missing":
        path.unlink()
    elif damage == "short":
        path.write_bytes(data[: len(data) // 2])
    else:
        path.write_bytes(data[:-40] + bytes(20) + data[-20:])
    said = []
    assert session.resume("run", said.append)
    (warning,) = [text for text in said if "warning" in text]
    assert f"{newer}" in warning and name in warning and f"using {older.name}" in warning
    assert warning in Path("run/train.log").read_text()
    assert state("run") == whole


def test_only_damaged_checkpoints(monkeypatch):
    for path in interrupted(monkeypatch):
        (path / "adapter.gguf").write_bytes(b"GGUF")
    before = Path("run/metrics.jsonl").read_bytes()
    with pytest.raises(FileError) as error:
        session.resume("run", lambda text: None)
    for part in ("step-000010/adapter.gguf: damaged", "step-000014", "no checkpoint is left"):
        assert part in str(error.value)
    assert Path("run/metrics.jsonl").read_bytes() == before


@pytest.mark.parametrize("name", ["rows.jsonl", "base.gguf"])
def test_changed_input_is_refused(monkeypatch, name, tmp_path):
    interrupted(monkeypatch)
    text = Path(name).read_bytes()
    Path(name).write_bytes(text.replace(b"1", b"2", 1) if name == "rows.jsonl" else b"other")
    with pytest.raises(FileError, match=f"{name} has changed since the run in run was started"):
        session.resume("run", lambda text: None)
    Path(name).unlink()
    with pytest.raises(FileError, match=f"{name}: No such file"):
        session.resume("run", lambda text: None)
    Path(name).write_bytes(text)
    assert session.resume("run", lambda text: None)


def test_changed_settings_are_refused(monkeypatch):
    interrupted(monkeypatch)
    config = Path("run/config.yaml")
    config.write_text(config.read_text().replace("seed: 42", "seed: 43"))
    with pytest.raises(OptionError, match="seed = 43: run/checkpoints/step-000014 was made with"):
        session.resume("run", lambda text: None)
    config.write_text(config.read_text().replace("seed: 43", "seed: -1"))
    with pytest.raises(OptionError, match="seed = -1"):
        session.resume("run", lambda text: None)


@pytest.mark.parametrize(
    "damage",
    [
        {"started": "yesterday"},
        {"started": 5},
        {"inputs": [1]},
        {"inputs": {"data": 3}},
        {"inputs": {"data": {"sha256": "3"}}},
        {"status": "done", "tokens": None},
    ],
)
def test_damaged_summary_is_refused(monkeypatch, damage):
    interrupted(monkeypatch)
    Path("run/summary.json").write_text(json.dumps(summary("run") | damage))
    with pytest.raises(FileError, match=r"run/summary\.json: damaged \(\w+: .*without this file"):
        session.resume("run", lambda text: None)
    Path("run/summary.json").unlink()
    assert session.resume("run", lambda text: None)


def test_missing_metrics_are_told(whole, monkeypatch):
    interrupted(monkeypatch)
    Path("run/metrics.jsonl").unlink()
    said = []
    assert session.resume("run", said.append)
    assert any("metrics of steps before 14 are missing" in text for text in said)
    assert state("run")[2:] == whole[2:]


def test_killed_while_results_are_written(whole, monkeypatch):
    def killed(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("wgtrain.runs.folder.loss_svg", killed)
        with pytest.raises(KeyboardInterrupt):
            session.start(settings("run"), lambda text: None)
    assert summary("run")["status"] == "interrupted"
    assert session.resume("run", lambda text: None)
    assert state("run") == whole


def test_no_time_is_lost_from_the_clock(monkeypatch):
    monkeypatch.setattr(FakeLearner, "seconds", 0.001)
    interrupted(monkeypatch)
    session.resume("run", lambda text: None)
    lines = [json.loads(x) for x in Path("run/metrics.jsonl").read_text().splitlines()]
    elapsed = [line["elapsed_seconds"] for line in lines if "elapsed_seconds" in line]
    assert elapsed == sorted(elapsed) and os.path.getsize("run/loss.svg")


# ---- stopped by somebody -----------------------------------------------------------------------


def is_whole(out):
    """Whether the adapter in both forms is that of the newest checkpoint."""
    newest = max(Path(out, "checkpoints").iterdir())
    assert Path(out, "adapter_config.json").is_file()
    peft = Path(out, "adapter_model.safetensors").is_file()
    return peft and (newest / "adapter.gguf").read_bytes() == Path(out, "adapter.gguf").read_bytes()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_stopped_run_leaves_its_adapter(whole, number):
    running = process(*options("run"), hold_at=17)
    interrupt(running, number)
    output, _ = running.communicate()
    assert running.returncode == 130 and "Traceback" not in output, output
    assert "\nstopping after this step, then saving; again to stop at once\n" in output
    assert f"adapter: run/adapter.gguf, as it is after step {summary('run')['step']}" in output
    assert is_whole("run")
    assert session.resume("run", lambda text: None) and state("run") == whole


def test_a_second_interrupt_leaves_the_last_checkpoint(whole):
    running = process(*options("run"), "--save-every=1", hold_at=2)
    wait_for(Path("held").exists)  # the second step is under way
    running.send_signal(signal.SIGINT)
    while "again to stop at once" not in running.stdout.readline():
        assert running.poll() is None
    running.send_signal(signal.SIGINT)
    output, _ = running.communicate()
    assert running.returncode == 130 and "Traceback" not in output, output
    assert "stopped at once; wgtrain train --resume run goes on from step-000001" in output
    assert summary("run")["status"] == "interrupted"
    assert session.resume("run", lambda text: None) and state("run") == whole


def test_what_nohup_ignores_stays_ignored(whole):
    code = "import os, signal, sys; signal.signal(signal.SIGHUP, signal.SIG_IGN);"
    code += "os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
    command = [sys.executable, "-c", code, str(TESTS / "fake_learner.py"), str(STEP_SECONDS)]
    running = subprocess.Popen(
        [*command, "train", *options("run")],
        env=os.environ | {"FAKE_HOLD_AT": "17"},
        stdout=subprocess.DEVNULL,
    )
    interrupt(running, signal.SIGHUP)
    assert running.wait() == 0 and state("run") == whole


# ---- nobody listens ----------------------------------------------------------------------------


def test_a_closed_pipe_ends_no_run(whole):
    command = [sys.executable, str(TESTS / "fake_learner.py"), "0.004", "train", *options("run")]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, text=True, **pipes) as running:
        assert "opening base.gguf" in running.stdout.readline()
        running.stdout.close()
        said = running.stderr.read().splitlines()
        assert running.wait() == 0
    assert len(said) == 1 and "train.log" in said[0] and "Broken pipe" in said[0]
    log = Path("run/train.log").read_text()
    assert log.count("warning: the output is gone (") == 1 and "Broken pipe" in log
    assert "step 48/48" in log and "adapter: run/adapter.gguf" in log
    assert state("run") == whole


@pytest.mark.parametrize("redirection", [">&-", "2>&-", ">&- 2>&- <&-", "> /dev/full"])
def test_streams_that_are_closed_or_full(whole, redirection):
    command = f'"$@" {redirection}'
    arguments = [sys.executable, str(TESTS / "fake_learner.py"), "0", "train", *options("run")]
    done = subprocess.run(["sh", "-c", command, "sh", *arguments], capture_output=True, text=True)
    said = done.stderr.splitlines()
    assert done.returncode == 0 and len(said) == (redirection == "> /dev/full")
    assert all("the output is gone" in line for line in said)
    assert state("run") == whole


# ---- longer ------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [{"iters": 60}, {"epochs": 10}])
@pytest.mark.parametrize("step", [20, 48])
def test_a_run_is_prolonged(whole, monkeypatch, length, step):
    """The steps up to there, then those of a run whose schedule is that of the new total."""
    with monkeypatch.context() as patch:
        stop_after(patch, step)
        assert session.start(settings("run"), lambda text: None) == (step == 48)
    before = Path("run/metrics.jsonl").read_text().splitlines()
    said = []
    assert session.resume("run", said.append, length)
    (told,) = [text for text in said if "instead of 48" in text]
    total = summary("run")["total_steps"]
    assert total == 60
    lines = [json.loads(x) for x in Path("run/metrics.jsonl").read_text().splitlines()]
    rates = {x["step"]: x["learning_rate"] for x in lines if "learning_rate" in x}
    assert list(rates) == list(range(1, 61))
    assert told == (
        f"60 steps instead of 48: learning rate {rates[step]:.3g} at step {step}, "
        f"{rates[step + 1]:.3g} at step {step + 1}"
    )
    assert told in Path("run/train.log").read_text()
    assert before == Path("run/metrics.jsonl").read_text().splitlines()[: len(before)]
    longer = settings("longer") | {"epochs": None, "iters": 60}
    session.start(longer, lambda text: None)
    schedule = [json.loads(x) for x in Path("longer/metrics.jsonl").read_text().splitlines()]
    wanted = {x["step"]: x["learning_rate"] for x in schedule if "learning_rate" in x}
    assert {n: wanted[n] for n in range(step + 1, 61)} == {n: rates[n] for n in range(step + 1, 61)}
    again = []
    assert session.resume("run", again.append) and "run is finished: 60 steps" in again[0]


def test_a_prolonged_run_that_is_stopped_goes_on_to_its_new_end(whole, monkeypatch):
    session.start(settings("whole2"), lambda text: None)
    session.resume("whole2", lambda text: None, {"iters": 60})
    with monkeypatch.context() as patch:
        stop_after(patch, 48)
        session.start(settings("run"), lambda text: None)
    with monkeypatch.context() as patch:
        stop_after(patch, 53)
        assert not session.resume("run", lambda text: None, {"iters": 60})
    assert session.resume("run", lambda text: None)
    assert state("run") == state("whole2")


def test_a_run_is_not_made_shorter_than_it_is(monkeypatch):
    interrupted(monkeypatch)
    before = Path("run/config.yaml").read_bytes()
    with pytest.raises(OptionError, match="step-000014: it stands at step 14 of 10; a run can"):
        session.resume("run", lambda text: None, {"iters": 10})
    assert Path("run/config.yaml").read_bytes() == before
    with pytest.raises(OptionError, match="rank, seed: not beside resume"):
        session.resume("run", lambda text: None, {"rank": 2, "seed": 3})


# ---- moved -------------------------------------------------------------------------------------


def test_a_project_that_was_moved(whole, monkeypatch, tmp_path):
    (tmp_path / "a/runs").mkdir(parents=True)
    shutil.copy("rows.jsonl", "a/rows.jsonl")
    shutil.copy("base.gguf", "a/base.gguf")
    monkeypatch.chdir("a")
    interrupted(monkeypatch)
    shutil.move("run", "runs/run")
    monkeypatch.chdir(tmp_path)
    shutil.move("a", "b")
    with pytest.raises(
        FileError, match=r"model: .*No such file.*--model PATH\ndata: .*--data PATH"
    ):
        session.resume("b/runs/run", lambda text: None)
    shutil.move("b/runs/run", "b/run")  # where it was, seen from its files
    assert session.resume("b/run", lambda text: None)
    assert state("b/run") == whole
    assert summary("b/run")["inputs"]["data"]["path"] == str(tmp_path / "b/rows.jsonl")


def test_files_that_moved_are_named(whole, monkeypatch, tmp_path):
    write_rows(tmp_path / "held.jsonl", 5)
    with monkeypatch.context() as patch:
        stop_after(patch, 14)
        session.start(settings("run", valid="held.jsonl"), lambda text: None)
    session.start(settings("whole", valid="held.jsonl"), lambda text: None)
    shutil.copytree("run", "again")
    places = {"model": "m", "data": "set", "valid": "v.jsonl"}
    for name, file in (("model", "base.gguf"), ("data", "rows.jsonl"), ("valid", "held.jsonl")):
        Path("set").mkdir(exist_ok=True)
        shutil.move(file, "set/train.jsonl" if name == "data" else places[name])
    assert session.resume("run", lambda text: None, places)
    assert state("run") == state("whole")
    Path("v.jsonl").write_text(Path("v.jsonl").read_text().replace("1", "2"))
    with pytest.raises(FileError, match=r"valid: v\.jsonl has changed since the run in again"):
        session.resume("again", lambda text: None, places)
    with pytest.raises(FileError, match="init_adapter = x: the run was started without"):
        session.resume("again", lambda text: None, {"init_adapter": "x"})


def test_without_a_summary_the_checkpoint_is_compared(whole, monkeypatch):
    interrupted(monkeypatch)
    Path("run/summary.json").unlink()
    data, model = Path("rows.jsonl").read_bytes(), Path("base.gguf").read_bytes()
    Path("base.gguf").write_bytes(b"another")
    with pytest.raises(OptionError, match="was made with another base model"):
        session.resume("run", lambda text: None)
    Path("base.gguf").write_bytes(model)
    Path("rows.jsonl").write_bytes(data.replace(b"[3,", b"[4,", 1))
    with pytest.raises(OptionError, match="was made with other rows"):
        session.resume("run", lambda text: None)
    Path("rows.jsonl").write_bytes(data)
    assert session.resume("run", lambda text: None) and state("run") == whole


def test_a_model_changed_where_the_fingerprint_does_not_look(monkeypatch):
    monkeypatch.setattr(fake_learner.FakeModel, "__init__", plain_model)
    interrupted(monkeypatch)
    Path("base.gguf").write_bytes(b"changed")
    with pytest.raises(FileError, match=r"base\.gguf has changed since the run in run"):
        session.resume("run", lambda text: None)


def plain_model(self, path, adapter_index=None, precision="f32", **more):
    self.adapter_index, self.precision, self.quantize_base = adapter_index, precision, None


def test_a_finished_run_without_its_adapter_writes_it_again(whole, monkeypatch):
    session.start(settings("run"), lambda text: None)
    Path("run/adapter_model.safetensors").unlink()
    assert session.resume("run", lambda text: None)
    assert state("run") == whole


def test_rows_from_a_pipe(whole, monkeypatch):
    monkeypatch.setenv("BASH_ENV", "")
    given = [f"--{n.replace('_', '-')}={v}" for n, v in settings("run").items() if n != "data"]
    command = [sys.executable, str(TESTS / "fake_learner.py"), "0", "train", *given]
    script = '"$@" --data <(cat rows.jsonl)'
    done = subprocess.run(["bash", "-c", script, "bash", *command], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (
        "is a pipe, read once: to resume, a file with the same rows has to be named" in done.stdout
    )
    assert state("run") == whole
    entry = summary("run")["inputs"]["data"]
    assert entry["sha256"] == hashlib.sha256(Path("rows.jsonl").read_bytes()).hexdigest()
    with pytest.raises(
        FileError, match="was a pipe, which is read once; name a file .* --data FILE"
    ):
        session.resume("run", lambda text: None, {"iters": 60})
    assert session.resume("run", lambda text: None, {"iters": 60, "data": "rows.jsonl"})
    assert summary("run")["step"] == 60


# ---- what a summary may hold -------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        '{"inputs": {"data": {"path": "a\\u0000b", "sha256": "0"}}}',
        '{"inputs": {"data": {"path": 99999999999999999999}}}',
        '{"inputs": {"data": {"path": "\\ud800", "sha256": "0"}}}',
        '{"inputs": {"other": {"path": "x"}}}',
        '{"started": 1e400}',
        '{"status": "done", "step": 1, "tokens": ' + "9" * 4000 + ', "seconds": NaN}',
        '{"tuning": {"table": null}}',
        '{"started": null, "inputs": null}',
    ],
)
def test_a_summary_of_anything(whole, monkeypatch, text):
    interrupted(monkeypatch)
    Path("run/summary.json").write_text(text)
    try:
        session.resume("run", lambda text: None)
    except FileError as error:
        assert str(error).startswith("run/summary.json: damaged") and len(str(error)) < 500
    else:
        assert state("run") == whole


def test_a_folder_moved_while_training(whole):
    running = process(*options("run"), hold_at=17)
    wait_for_step("run", 11)
    Path("run").rename("elsewhere")
    Path("go").touch()
    output, _ = running.communicate()
    assert running.returncode == 2 and "Traceback" not in output, output
    assert "error: run: moved or removed while training in it" in output
    assert not Path("run").exists()
    assert session.resume("elsewhere", lambda text: None) and state("elsewhere") == whole


def test_a_folder_moved_while_saving(monkeypatch):
    real = disk.sync_folder

    def moved(path):
        Path("run").rename("elsewhere")
        real(path)

    monkeypatch.setattr(disk, "sync_folder", moved)
    with pytest.raises(FileError, match="run: moved or removed while training in it"):
        session.start(settings("run"), lambda text: None)
    assert not Path("run").exists()
