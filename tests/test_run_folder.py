"""The run folder: nothing overwritten, lines whole, checkpoints complete or absent."""

import datetime
import json
import os
import re
import shutil
import subprocess
import sys
import types
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
import yaml

from wgtrain.errors import FileError, OptionError
from wgtrain.runs import disk, paths
from wgtrain.runs import folder as run_folder
from wgtrain.runs.chart import loss_svg
from wgtrain.runs.folder import RunFolder, check_free
from wgtrain.runs.yaml_file import read_yaml
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


def test_interrupted_before_the_settings_are_written(tmp_path, monkeypatch):
    def killed(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(disk, "publish", killed)
        with pytest.raises(KeyboardInterrupt):
            RunFolder.create(str(tmp_path / "new" / "run"), "x", {})
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".new-config.yaml-0123").write_text("of a process that was killed")
    RunFolder.create(str(tmp_path / "run"), "x", {}).close()
    assert not list(tmp_path.glob("run/.new-*"))


CREATE = """
import sys
from wgtrain.errors import OptionError
from wgtrain.runs.folder import RunFolder
for i in range(60):
    sys.stdin.readline()
    try:
        folder = RunFolder.create(f"run{i}", "x", {"who": sys.argv[1]})
        print(folder.settings()["who"], flush=True)
        folder.close()
    except OptionError:
        print("refused", flush=True)
"""


def test_two_processes_make_one_folder_at_a_moment(tmp_path):
    both = [
        subprocess.Popen(
            [sys.executable, "-c", CREATE, str(who)],
            cwd=tmp_path,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for who in (1, 2)
    ]
    for i in range(60):
        for one in both:
            one.stdin.write("go\n")
        for one in both:
            one.stdin.flush()
        said = [one.stdout.readline().strip() for one in both]
        assert said in (["1", "refused"], ["refused", "2"])
        assert not list(tmp_path.glob(f"run{i}/.new-*"))
    for one in both:
        one.communicate()


@pytest.mark.parametrize(
    ("out", "says"),
    [
        ("dangling", "a link to nothing"),
        ("file", "a file"),
        ("file/below", "Not a directory"),
        ("x" * 300, "name too long"),
        ("a\0b", "null"),
    ],
)
def test_a_place_that_cannot_be_had_is_known_before(tmp_path, monkeypatch, out, says):
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("x")
    Path("dangling").symlink_to("nowhere/at/all")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(OptionError, match=f"out = .*{says}"):
        check_free(out)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("out", [".", "link", "new/deep"])
def test_a_place_that_can_be_had(tmp_path, monkeypatch, out):
    (tmp_path / "here").mkdir()
    (tmp_path / "here/target").mkdir()
    monkeypatch.chdir(tmp_path / ("here/target" if out == "." else "here"))
    if out == "link":
        Path("link").symlink_to("target")
    if out == "new/deep":
        Path("new").mkdir()
        Path(".new-deep").mkdir()  # somebody else's, as is all beside the run
    check_free(out)
    opened = RunFolder.create(out, "x", {"rank": 2})
    opened.draw()
    opened.close()
    assert yaml.safe_load(Path(out, "config.yaml").read_text()) == {"rank": 2, "out": out}
    title = {".": "target", "link": "link", "new/deep": "deep"}[out]
    assert title in Path(out, "loss.svg").read_text()
    assert len(list((tmp_path / "here").rglob(".new-*"))) == (out == "new/deep")


def test_default_names_fit_into_a_file_system(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    opened = RunFolder.create(None, "\u00e9" * 120 + "\n", {})
    opened.close()
    assert len(os.fsencode(opened.path.name)) < 200 and "\n" not in opened.path.name


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
    assert folder.rewind(6) == (True, 0)
    assert (folder.path / "metrics.jsonl").read_bytes() == before
    assert folder.rewind(4) == (True, 0)
    assert folder.losses == [(1, 1.0), (2, 2.0), (3, 3.0), (4, 4.0)]
    assert folder.evaluations == [(2, 0.5), (4, 0.5)]
    folder.record(step(5, 9.0))
    assert [line["step"] for line in lines(folder)] == [1, 2, 2, 3, 4, 4, 5]
    assert folder.rewind(6) == (False, 0)  # says so where lines are missing
    assert folder.rewind(0) == (True, 0) and lines(folder) == []


@pytest.mark.parametrize(
    "line",
    [
        b'{"step": 1, "loss": 2.0',
        b'{"step": 100000000000000000000, "loss": NaN}',
        b'{"step": 1, "loss": null}',
        b'{"step": 1.0, "loss": 2}',
        b'{"step": true, "loss": 2}',
        b'{"step": 1, "loss": "2"}',
        b'{"step": 1, "loss": 1' + b"0" * 400 + b"}",
        b"[" * 100_000,
        b"1" * 5000,
        b"null",
        b"\xff\xfe",
        b'{"step": 1\r{',
        b"",
    ],
)
def test_good_lines_behind_a_damaged_one_are_kept(folder, line):
    for n in range(1, 6):
        folder.record(step(n))
    path = folder.path / "metrics.jsonl"
    _, *good = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(line + b"\n" + b"".join(good))
    assert folder.rewind(5) == (False, 1)
    assert path.read_bytes() == b"".join(good) and [n for n, _ in folder.losses] == [2, 3, 4, 5]
    kept = (folder.path / "metrics.damaged").read_bytes()
    assert kept.decode() == (line + b"\n").decode("utf-8", "replace")


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


def test_a_write_that_fails_names_the_file(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(disk.os, "fsync", full)
    with pytest.raises(OSError, match="No space left on device: '.*new'"):
        disk.write_new(tmp_path / "new", b"x")


def test_killed_while_a_checkpoint_is_replaced(folder, monkeypatch):
    folder.save_checkpoint(10, FILES, keep=1)
    real = Path.rename

    def killed(path, target):
        if path.name.startswith(".new-"):
            raise KeyboardInterrupt
        return real(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", killed)
        with pytest.raises(KeyboardInterrupt):
            folder.save_checkpoint(10, {**FILES, "state.json": b"later"}, keep=1)
    folder.close()
    opened = RunFolder.open(str(folder.path))
    assert [p.name for p in (folder.path / "checkpoints").iterdir()] == ["step-000010"]
    assert opened.read_checkpoint(opened.checkpoints()[0][1]) == FILES
    opened.close()


@pytest.mark.parametrize("what", ["moved", "removed", "emptied", "another"])
def test_a_folder_that_goes_away_while_training(folder, what):
    folder.record(step(1))
    folder.save_checkpoint(1, FILES, keep=2)
    kept = (folder.path / "metrics.jsonl").read_bytes()
    if what == "emptied":
        for path in folder.path.iterdir():
            disk.remove(path)
    elif what == "removed":
        shutil.rmtree(folder.path)
    else:
        folder.path.rename(folder.path.with_name("elsewhere"))
    if what == "another":
        RunFolder.create(str(folder.path), "x", {}).close()
    before = sorted(folder.path.parent.rglob("*"))
    for attempt in (
        lambda: folder.record(step(2)),
        lambda: folder.save_checkpoint(2, FILES, keep=2),
        lambda: folder.write_summary(status="done"),
        lambda: folder.write_results(b"", {}),
    ):
        with pytest.raises(FileError, match="run: moved or removed while training in it"):
            attempt()
    assert sorted(folder.path.parent.rglob("*")) == before
    if what in ("moved", "another"):
        assert (folder.path.with_name("elsewhere") / "metrics.jsonl").read_bytes() == kept


# ---- what others put into it -------------------------------------------------------------------


def contents(folder):
    return {p: p.is_dir() or p.read_bytes() for p in sorted(folder.rglob("*"))}


@pytest.mark.parametrize("kind", [os.symlink, os.link, "fifo"])
@pytest.mark.parametrize("name", ["train.log", "metrics.jsonl"])
def test_what_is_appended_to_is_a_file_of_its_own(folder, tmp_path, name, kind):
    folder.close()
    (tmp_path / "rc").write_text("# mine\n")
    (folder.path / name).unlink()
    if kind == "fifo":
        os.mkfifo(folder.path / name)
    else:
        kind(tmp_path / "rc", folder.path / name)
    with pytest.raises(FileError, match=f"run/{name}: (a link|a hard link|no plain file)"):
        RunFolder.open(str(folder.path))
    assert (tmp_path / "rc").read_text() == "# mine\n"


def test_links_are_neither_followed_nor_cleared(folder, tmp_path):
    victim = tmp_path / "victim"
    for name in (".old-photos", ".new-book", "step-000001", ".old-step-000003"):
        (victim / name).mkdir(parents=True)
        (victim / name / "precious").write_text("x")
    (victim / "rc").write_text("# mine\n")
    folder.save_checkpoint(8, FILES, keep=0)
    folder.close()
    shutil.move(folder.path / "checkpoints", victim / "theirs")
    links = {
        "checkpoints": victim,
        "summary.json": victim / "rc",
        "adapter.gguf": victim / "rc",
        ".new-summary.json": victim / "rc",
        ".new-x": victim / ".new-book",
    }
    for name, target in links.items():
        (folder.path / name).symlink_to(target)
    before = contents(victim)
    with pytest.raises(FileError, match="run/checkpoints: a link or a file"):
        RunFolder.open(str(folder.path))
    (folder.path / "checkpoints").unlink()
    (folder.path / "checkpoints").mkdir()
    for name in ("step-000009", ".old-step-000009", ".new-step-000007", ".gone-step-000001"):
        (folder.path / "checkpoints" / name).symlink_to(victim / "theirs/step-000008")
    opened = RunFolder.open(str(folder.path))
    with pytest.raises(FileError, match="step-000009: a link or a file"):
        opened.read_checkpoint(opened.checkpoints()[0][1])
    assert opened.read_summary() == {}
    opened.write_summary(step=1)
    opened.write_results(b"adapter", {"adapter_config.json": b"{}"})
    for n in (7, 9, 10):
        opened.save_checkpoint(n, FILES, keep=1)
    opened.close()
    assert contents(victim) == before
    assert not any((folder.path / name).is_symlink() for name in links if name != ".new-x")


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_what_is_no_file_is_refused_at_once(folder, make):
    saved = folder.save_checkpoint(8, FILES, keep=0)
    make(saved / "more")
    with pytest.raises(FileError, match="step-000008/more: no plain file"):
        folder.read_checkpoint(saved)
    make(folder.path / "summary.json")
    assert folder.read_summary() == {}


def test_the_lock_of_windows(folder, monkeypatch):
    """Only the call is looked at: this was not run on Windows."""
    held = set()

    def locking(descriptor, mode, count):
        key = os.fstat(descriptor).st_ino, os.lseek(descriptor, 0, os.SEEK_CUR), count
        assert mode == "no wait"
        if key in held:
            raise OSError(36, "deadlock avoided")
        held.add(key)

    fake = types.ModuleType("msvcrt")
    fake.LK_NBLCK, fake.locking = "no wait", locking
    monkeypatch.setitem(sys.modules, "msvcrt", fake)
    monkeypatch.setattr(disk, "WINDOWS", True)
    folder.close()
    opened = RunFolder.open(str(folder.path))
    opened.log("a line goes where lines go")
    assert (folder.path / "train.log").stat().st_size < 100
    with pytest.raises(OptionError, match="another process is training"):
        RunFolder.open(str(folder.path))
    assert [at > 2**30 and count == 1 for _, at, count in held] == [True]
    opened.close()


def test_pipes_are_read_and_devices_are_not(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "_WRITER_SECONDS", 60.0)
    os.mkfifo(tmp_path / "fifo")
    writer = subprocess.Popen(["sh", "-c", f"sleep 0.2; printf 'a\\nb' > {tmp_path / 'fifo'}"])
    assert paths.read_input(tmp_path / "fifo") == b"a\nb"
    writer.wait()
    monkeypatch.setattr(paths, "_WRITER_SECONDS", 0.1)
    with pytest.raises(FileError, match="a FIFO that nobody writes to"):
        paths.read_input(tmp_path / "fifo")
    with pytest.raises(FileError, match="/dev/zero: a device"):
        paths.read_input(Path("/dev/zero"))
    assert paths.read_input(Path(os.devnull)) == b""
    with pytest.raises(FileError, match=r"'a\\x00b'"):
        paths.read_input(Path("a\0b"))


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


LETTERS = "abcdefghi"
BOMB = (
    b"rank:\n"
    + "".join(
        f"  - &{c} [{','.join(['x' if i == 0 else '*' + LETTERS[i - 1]] * 9)}]\n"
        for i, c in enumerate(LETTERS)
    ).encode()
)
MERGES = (
    b"x:\n  - &m0 {k: 1}\n"
    + "".join(
        f"  - &m{i} {{<<: [{','.join([f'*m{i - 1}'] * 10)}]}}\n" for i in range(1, 8)
    ).encode()
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"a: [1, 2", "not YAML: .*line 1"),
        (b"- a\n- b\n", "a mapping of settings is needed, not list"),
        (b"\xff\xfe\x00", "not YAML"),
        (b"a: " + b"[" * 5000, "not YAML"),
        (b"a: !!python/object/apply:os.getcwd []", "not YAML: .*could not determine a constructor"),
        (b"a: 2001-99-99", "not YAML"),
        (b"a: " + b"1" * 5000, "not YAML"),
        (b"a: &x [*x]", "more than 10,000 values"),
        (BOMB, "more than 10,000 values"),
        (MERGES, "more than 10,000 values"),
        (b"#" * (1 << 20) + b"#", "1,048,577 bytes"),
        (b"a: !!int ''", "not YAML: .*IndexError"),
        (b"a: !!bool x", "not YAML: .*KeyError: 'x'"),
        (b"a: !!float ''", "not YAML: .*IndexError"),
        (b"a: !!timestamp x", "not YAML: .*AttributeError"),
        (b'a: "\\UFFFFFFFF"', "not YAML: .*OverflowError"),
        (b"a: !" + b"x" * 1000 + b" 1", "not YAML: could not determine a constructor"),
    ],
)
def test_unusable_yaml(tmp_path, text, message):
    (tmp_path / "c.yaml").write_bytes(text)
    with pytest.raises(FileError, match=f"c.yaml: {message}") as error:
        read_yaml(tmp_path / "c.yaml")
    assert len(str(error.value)) < 400
    with pytest.raises(FileError, match="No such file"):
        read_yaml(tmp_path / "d.yaml")


def test_files_of_holes_are_too_large(folder):
    """Some file systems let a file of 2^43 bytes take none."""
    path = folder.path / "big"
    with path.open("wb") as file:
        try:
            file.truncate(1 << 43)
        except OSError as error:
            pytest.skip(f"not on this file system: {error}")
    for read in (disk.read_file, read_yaml):
        with pytest.raises(FileError, match="big: too large for the memory"):
            read(path)


def test_yaml_of_many_values_is_not_read_whole(tmp_path, monkeypatch):
    """Nodes are what takes so long: 1 MB of them 20 s and more."""
    monkeypatch.setattr(yaml.SafeLoader, "get_single_node", None)
    (tmp_path / "c.yaml").write_text("a: [" + "1," * 21_000 + "]")
    with pytest.raises(FileError, match="more than 10,000 values"):
        read_yaml(tmp_path / "c.yaml")


def test_yaml_with_aliases_and_with_a_setting_twice(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("a: &x [1, 2]\nb: *x\nc: {<<: &y {d: 3}, e: 4}\n")
    assert read_yaml(path) == {"a": [1, 2], "b": [1, 2], "c": {"d": 3, "e": 4}}
    path.write_text("rank: 2\nalpha: 3\nrank: 2\n")
    with pytest.raises(FileError, match="c.yaml line 3: 'rank' is given twice"):
        read_yaml(path)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("16", 16),
        ("-3", -3),
        ("+3", 3),
        ("0", 0),
        ("2.5", "2.5"),
        ("2e-4", "2e-4"),
        ("1_6", "1_6"),
        ("0x10", "0x10"),
        ("010", "010"),
        ("1:30", "1:30"),
        (".inf", ".inf"),
        ("on", True),
        ("null", None),
        ("2020-01-01", datetime.date(2020, 1, 1)),
    ],
)
def test_numbers_in_yaml(tmp_path, text, value):
    """Those of JSON; the settings read fractions from their text."""
    (tmp_path / "c.yaml").write_text(f"a: {text}")
    found = read_yaml(tmp_path / "c.yaml")["a"]
    assert (found, type(found)) == (value, type(value))


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


@pytest.mark.parametrize(
    "title", ["x\x01y\x1b[2J", "a\nb\0", "\udcc3\udca9", "<img src=x>", "\uffff"]
)
def test_a_chart_has_any_title(title):
    root = ET.fromstring(loss_svg([(1, 2.0)], (), title))
    assert not root.findall(".//{*}img")


def test_equal_runs_have_equal_charts_on_any_day(monkeypatch):
    class Later(datetime.date):
        @classmethod
        def today(cls):
            return cls(2150, 12, 31)

    today = loss_svg([(1, 2.0), (2, 1.0)])
    monkeypatch.setattr("pygal.svg.date", Later)
    assert loss_svg([(1, 2.0), (2, 1.0)]) == today and b"2150" not in today
