"""`wgtrain train` from outside: options, files, exit codes, messages; with the numpy learner."""

import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import weakref
from importlib import import_module
from pathlib import Path

import click
import fake_learner
import numpy as np
import pytest
import yaml
from click.testing import CliRunner
from fake_learner import FakeLearner, write_rows
from tiny import tiny

from wgtrain import __main__ as entry
from wgtrain.cli import doctor
from wgtrain.cli import main as cli
from wgtrain.cli.options import as_options
from wgtrain.engine.tuning import Choice
from wgtrain.errors import DeviceError, FileError, OutOfMemoryError
from wgtrain.files import write_gguf
from wgtrain.files.adapters import read_adapter_gguf
from wgtrain.gpu import AdapterInfo, list_adapters
from wgtrain.gpu.protocol import FEATURES
from wgtrain.runs import session
from wgtrain.runs.telling import ending
from wgtrain.train.config import LoraConfig, RunConfig, TrainConfig
from wgtrain.tune.cache import cache_file, load, save
from wgtrain.tune.sweep import Measured, Shape


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """A folder with a model and rows, and the toy in place of the engine."""
    monkeypatch.chdir(tmp_path)
    fake_learner.install(monkeypatch.setattr)
    write_rows(tmp_path / "rows.jsonl")
    write_rows(tmp_path / "test.jsonl", 5)
    (tmp_path / "base.gguf").write_bytes(b"toy")
    return tmp_path


def wgtrain(capsys, *arguments):
    """(exit code, standard output, standard error) of a command line."""
    handled = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.getsignal(number) for number in handled}
    with pytest.raises(SystemExit) as exit:
        cli.main([str(a) for a in arguments])
    for number, handler in before.items():
        signal.signal(number, handler)
    captured = capsys.readouterr()
    return exit.value.code, captured.out, captured.err


def train(capsys, *arguments, out="out", data="rows.jsonl"):
    """Trains the toy and returns its summary and metrics."""
    code, said, error = wgtrain(
        capsys, "train", "--model", "base.gguf", "--data", data, "--out", out, *arguments
    )
    assert code == 0, said + error
    return json.loads(Path(out, "summary.json").read_text()), metrics(out)


def metrics(out):
    return [json.loads(line) for line in Path(out, "metrics.jsonl").read_text().splitlines()]


def test_a_run_leaves_its_folder(toy, capsys):
    summary, lines = train(capsys, "--valid", "0.2", "--rank", "2")
    assert sorted(p.name for p in Path("out").iterdir()) == [
        "adapter.gguf",
        "adapter_config.json",
        "adapter_model.safetensors",
        "checkpoints",
        "config.yaml",
        "loss.svg",
        "metrics.jsonl",
        "summary.json",
        "train.log",
    ]
    assert summary["status"] == "done" and summary["error"] is None
    assert summary["step"] == summary["total_steps"] == 9
    losses = [line["loss"] for line in lines if "loss" in line]
    held = [line["eval_loss"] for line in lines if "eval_loss" in line]
    assert (summary["first_loss"], summary["last_loss"]) == (losses[0], losses[-1])
    assert (summary["first_eval_loss"], summary["last_eval_loss"]) == (held[0], held[-1])
    assert summary["paths"]["adapter.gguf"] == "out/adapter.gguf"
    adapter = read_adapter_gguf(Path("out/adapter.gguf").read_bytes(), "adapter.gguf")
    assert adapter.rank == 2 and len(adapter.tensors) == 7 * fake_learner.LAYERS
    log = Path("out/train.log").read_text()
    assert "step 9/9" in log and "a note" in log
    assert " tokens, but the model was made for 5" in log
    assert log.count("rotations as the learner says") == 1


def test_default_folder(toy, capsys):
    code, said, _ = wgtrain(capsys, "train", "--model", "base.gguf", "--data", "rows.jsonl")
    assert code == 0
    (folder,) = Path("runs").iterdir()
    assert folder.name.endswith("-rows") and f"writing to runs/{folder.name}" in said
    assert said.endswith(f"\nuse it: wgtrain generate --adapter runs/{folder.name} --prompt TEXT\n")


# name -> (arguments, what it must be in config.yaml)
OPTIONS = {
    "adapter_index": (["--adapter-index", "3"], 3),
    "gpu_memory": (["--gpu-memory", "6GiB"], 6 << 30),
    "kind": (["--kind", "text"], "text"),
    "chat_template": (["--chat-template", "chatml"], "chatml"),
    "template_args": (["--template-args", '{"a": 1}'], '{"a": 1}'),
    "system": (["--system", "merge"], "merge"),
    "rank": (["--rank", "3"], 3),
    "alpha": (["--alpha", "7"], 7.0),
    "dropout": (["--dropout", "0.25"], 0.25),
    "target_modules": (["--target-modules", "q_proj,lm_head"], "q_proj,lm_head"),
    "layers": (["--layers", "0-1"], "0-1"),
    "method": (["--method", "lora"], "lora"),
    "epochs": (["--epochs", "1"], 1),
    "iters": (["--iters", "2"], 2),
    "batch_size": (["--batch-size", "5"], 5),
    "grad_accum": (["--grad-accum", "2"], 2),
    "seq_len": (["--seq-len", "4"], 4),
    "packing": (["--packing"], True),
    "learning_rate": (["--learning-rate", "1e-2"], 0.01),
    "lr_schedule": (["--lr-schedule", "linear"], "linear"),
    "lr_period": (["--lr-period", "2", "--lr-schedule", "cosine-restarts"], 2),
    "warmup_ratio": (["--warmup-ratio", "0.5"], 0.5),
    "warmup_steps": (["--warmup-steps", "4"], 4),
    "optimizer": (["--optimizer", "adamw"], "adamw"),
    "weight_decay": (["--weight-decay", "0.5"], 0.5),
    "max_grad_norm": (["--max-grad-norm", "0.001"], 0.001),
    "train_on": (["--train-on", "all"], "all"),
    "grad_checkpoint": (["--grad-checkpoint", "on"], "on"),
    "capture": (["--capture", "bf16"], "bf16"),
    "tuning": (["--tuning", "default"], "default"),
    "valid": (["--valid", "0.2"], 0.2),
    "eval_every": (["--eval-every", "5"], 5),
    "save_every": (["--save-every", "4"], 4),
    "save_total_limit": (["--save-total-limit", "1"], 1),
    "seed": (["--seed", "7"], 7),
    "shuffle": (["--no-shuffle"], False),
    "precision": (["--precision", "f16"], "f16"),
    "quantize_base": (["--quantize-base", "nf4"], "nf4"),
    "test": (["--test"], True),
    "sample": (["--sample", "Why?", "--sample", "and"], ["Why?", "and"]),
    "sample_every": (["--sample-every", "2", "--sample", "Why?"], 2),
}
# These change what is kept, looked at or demanded; the engine's are tested on the engine.
SAME_NUMBERS = {"adapter_index", "method", "optimizer", "grad_checkpoint", "capture", "tuning"}
# Of chats, which the toy's rows are not: test_chat_options.py.
SAME_NUMBERS |= {"chat_template", "template_args", "system"}
SAME_NUMBERS |= {"kind", "gpu_memory", "eval_every", "save_every", "save_total_limit", "precision"}
SAME_NUMBERS |= {"quantize_base", "test", "sample", "sample_every"}


def test_every_setting_is_an_option():
    fields = {f.name for c in (RunConfig, LoraConfig, TrainConfig) for f in dataclasses.fields(c)}
    assert fields - set(OPTIONS) == {"model", "data", "out", "init_adapter"}
    shown = CliRunner().invoke(cli.cli, ["train", "--help"]).output
    for name in fields | {"config", "resume"}:
        assert f"--{name.replace('_', '-')}" in shown


@pytest.mark.parametrize("name", OPTIONS)
def test_each_option_arrives_and_changes_the_run(toy, capsys, name):
    arguments, value = OPTIONS[name]
    base = ["--rank", "2"] if name != "rank" else []
    _, plain = train(capsys, *base, out="plain")
    _, changed = train(capsys, *base, *arguments, out="changed")
    assert yaml.safe_load(Path("changed/config.yaml").read_text())[name] == value
    adapters = [Path(out, "adapter.gguf").read_bytes() for out in ("plain", "changed")]
    losses = [[line.get("loss") for line in lines if "loss" in line] for lines in (plain, changed)]
    if name in SAME_NUMBERS:
        assert adapters[0] == adapters[1] and losses[0] == losses[1]
    else:
        assert adapters[0] != adapters[1]


def test_rows_are_read_as_the_same_kind_again(toy, capsys, monkeypatch):
    kinds = []
    read = session.load_dataset

    def watched(data, model, seq_len, train_on, now, kind, **more):
        kinds.append(kind)
        return read(data, model, seq_len, train_on, now, kind, **more)

    monkeypatch.setattr(session, "load_dataset", watched)
    train(capsys, "--kind", "instruction", "--iters", "2")
    shutil.rmtree("out/checkpoints")
    Path("out/summary.json").unlink()
    code, said, error = wgtrain(capsys, "train", "--resume", "out")
    assert code == 0, said + error
    assert kinds == ["instruction"] * 2


def test_engine_options_reach_the_engine(toy, capsys, monkeypatch):
    made = []

    class Watched(FakeLearner):
        def __init__(self, model, lora, **options):
            super().__init__(model, lora, **options)
            made.append((vars(model), self.options))

    monkeypatch.setattr("wgtrain.train.trainer.lora_learner", Watched)
    options = ["--capture", "bf16", "--grad-checkpoint", "on", "--adapter-index", "3"]
    train(capsys, *options, "--precision", "f16", "--quantize-base", "nf4")
    (model, given) = made[0]
    opened = {"adapter_index": 3, "precision": "f16", "quantize_base": "nf4"}
    assert opened.items() <= model.items() and len(made) == 1
    assert given == {"capture": "bf16", "grad_checkpoint": True}


def test_saving_and_evaluating(toy, capsys):
    arguments = ["--save-every", "4", "--eval-every", "5", "--valid", "0.2", "--epochs", "5"]
    _, lines = train(capsys, *arguments, "--save-total-limit", "0")
    saved = sorted(p.name for p in Path("out/checkpoints").iterdir())
    assert saved == ["step-000004", "step-000008", "step-000012", "step-000015"]
    assert [line["step"] for line in lines if "eval_loss" in line] == [0, 5, 10, 15]
    train(capsys, *arguments, out="few")
    saved = sorted(p.name for p in Path("few/checkpoints").iterdir())
    assert saved == ["step-000012", "step-000015"]


def test_the_spellings_people_bring(toy, capsys):
    brought = "--max-seq-length 4 --grad-accumulation-steps 2 --lora-r 3 --lora-alpha 5"
    brought += " --lora-dropout 0.25 --no-mask-prompt"
    ours = "--seq-len 4 --grad-accum 2 --rank 3 --alpha 5 --dropout 0.25 --train-on all"
    train(capsys, *brought.split(), out="a")
    train(capsys, *ours.split(), out="b")
    a, b = (yaml.safe_load(Path(out, "config.yaml").read_text()) for out in "ab")
    assert a | {"out": ""} == b | {"out": ""}
    assert Path("a/adapter.gguf").read_bytes() == Path("b/adapter.gguf").read_bytes()


def test_config_file(toy, capsys):
    settings = {"model": "base.gguf", "data": "rows.jsonl", "rank": 3, "epochs": 9, "lora_alpha": 2}
    Path("c.yaml").write_text(yaml.safe_dump(settings) + "learning_rate: 2e-3\n")
    code, said, error = wgtrain(
        capsys, "train", "--config", "c.yaml", "--out", "out", "--rank", "2", "--iters", "4"
    )
    assert code == 0, said + error
    used = yaml.safe_load(Path("out/config.yaml").read_text())
    assert (used["rank"], used["alpha"], used["batch_size"]) == (2, 2.0, 4)
    assert (used["epochs"], used["iters"], used["learning_rate"]) == (None, 4, 0.002)


def test_used_settings_make_the_same_run(toy, capsys):
    train(capsys, "--iters", "5", "--warmup-steps", "1", "--valid", "0.2", out="a")
    code, _, error = wgtrain(capsys, "train", "--config", "a/config.yaml", "--out", "b")
    assert code == 0, error
    assert Path("a/adapter.gguf").read_bytes() == Path("b/adapter.gguf").read_bytes()


def test_data_folder_and_validation_file(toy, capsys):
    folder = toy / "set"
    folder.mkdir()
    write_rows(folder / "train.jsonl")
    write_rows(folder / "valid.jsonl", 5)
    summary, _ = train(capsys, data="set", out="a")
    assert (summary["rows"], summary["valid_rows"]) == (14, 5)
    summary, _ = train(capsys, "--valid", "set/valid.jsonl", out="b")
    assert (summary["rows"], summary["valid_rows"]) == (14, 5)
    summary, _ = train(capsys, "--valid", "0.5", data="set", out="c")
    assert (summary["rows"], summary["valid_rows"]) == (7, 7)
    write_rows(folder / "validation.jsonl", 4)
    code, _, error = wgtrain(capsys, "train", "--model", "base.gguf", "--data", "set")
    assert code == 2 and "--valid: set/valid.jsonl and set/validation.jsonl are both" in error
    (folder / "valid.jsonl").unlink()
    for more in ([], ["--valid", "set"]):
        summary, _ = train(capsys, *more, data="set", out=f"d{len(more)}")
        assert (summary["rows"], summary["valid_rows"]) == (14, 4)


def test_init_adapter_in_each_form(toy, capsys):
    train(capsys, "--rank", "3", "--target-modules", "q_proj", out="first")
    adapters = []
    (checkpoint,) = Path("first", "checkpoints").iterdir()
    forms = ["first/adapter.gguf", "first", "first/adapter_config.json", checkpoint]
    for i, path in enumerate(forms):
        train(capsys, "--init-adapter", path, out=f"second{i}")
        used = yaml.safe_load(Path(f"second{i}/config.yaml").read_text())
        assert (used["rank"], used["target_modules"], used["layers"]) == (3, "attn_q", "all")
        adapters.append(Path(f"second{i}/adapter.gguf").read_bytes())
    assert len(set(adapters)) == 1
    code, _, error = wgtrain(
        capsys, *"train --model base.gguf --data rows.jsonl --init-adapter first --rank 16".split()
    )
    assert code == 2 and "--rank 16: init_adapter brings 3" in error


@pytest.mark.parametrize(
    ("files", "option", "says"),
    [
        (
            ["adapter_model.bin", "adapter_config.json"],
            "--init-adapter",
            "adapter_model.bin is a pickle",
        ),
        (["adapters.safetensors", "adapter_config.json"], "--init-adapter", "an adapter of MLX"),
        (["x", "y"], "--init-adapter", "no adapter_model.safetensors is in it; there is 'x', 'y'"),
        (["b.gguf", "a.gguf"], "--model", "a model is one file of it: 'a.gguf' or 'b.gguf'"),
        (["adapters.safetensors"], "--model", "an adapter of MLX, not a base model"),
        (["adapter.gguf", "adapter_config.json"], "--model", "not a base model; --adapter uses "),
    ],
)
def test_a_folder_of_something_else(tmp_path, monkeypatch, capsys, files, option, says):
    monkeypatch.chdir(tmp_path)
    write_rows(tmp_path / "rows.jsonl")
    Path("folder").mkdir()
    for name in files:
        Path("folder", name).write_text("{}")
    given = {"--model": "rows.jsonl", "--data": "rows.jsonl", option: "folder"}
    code, _, error = wgtrain(capsys, "train", *(text for pair in given.items() for text in pair))
    assert code == 2 and error.startswith("error: folder: ") and says in error


def test_rows_are_read_before_the_model_is_loaded(toy, capsys, monkeypatch):
    def fail(*arguments, **options):
        raise AssertionError("too early")

    monkeypatch.setattr("wgtrain.runs.session.load_model", fail)
    Path("rows.jsonl").write_text("{")
    monkeypatch.setattr("wgtrain.runs.session.load_dataset", load_bytes)
    code, said, error = wgtrain(capsys, "train", "--model", "base.gguf", "--data", "rows.jsonl")
    assert (code, said, error) == (2, "opening base.gguf\n", "error: rows.jsonl line 1: no row\n")


def test_no_tokenizer_is_held_while_a_model_is_loaded(toy, capsys, monkeypatch):
    made, held = [], []
    load = session.load_model

    class Held:
        pass

    def reading(base):
        tokenizer = Held()
        made.append(weakref.ref(tokenizer))
        return tokenizer

    def loading(base, **options):
        held.append(made[-1]() is not None)
        return load(base, **options)

    monkeypatch.setattr(session, "training_tokenizer", reading)
    monkeypatch.setattr(session, "load_model", loading)
    train(capsys, "--iters", "2", "--valid", "0.2")
    assert held == [False]


def load_bytes(data, tokenizer, *arguments, name, chat):
    assert data == b"{"
    raise FileError(f"{name} line 1: no row")


SAID = {
    "--warmup-steps 100": "the warm-up of 100 steps is not over when the 12 steps are",
    "--eval-every 5": "eval_every = 5, but there are no validation rows",
    "--valid rows.jsonl": "valid = rows.jsonl: the same rows as the training rows",
}


@pytest.mark.parametrize("options", ["", *SAID])
def test_settings_that_do_not_do_what_they_seem_to(toy, capsys, options):
    paths = ["--model", "base.gguf", "--data", "rows.jsonl", "--out", "out"]
    code, screen, _ = wgtrain(capsys, "train", *paths, *options.split())
    assert code == 0
    said = Path("out/train.log").read_text()
    assert [text in said for text in SAID.values()] == [key == options for key in SAID]
    if " = " in SAID.get(options, ""):  # the screen names the option, the log the setting
        assert f"warning: {options}" in screen
    assert said.count("warning") == bool(options)
    training = fake_learner.FakeModel.weights.nbytes / 2**20
    assert f" MiB (base {training:.1f} MiB, adapter 0." in said


def test_no_escape_of_a_file_reaches_the_screen(toy, capsys, monkeypatch):
    Path("\x1b[2Jrows.jsonl").write_bytes(Path("rows.jsonl").read_bytes())
    train(capsys, data="\x1b[2Jrows.jsonl")
    code, said, error = wgtrain(capsys, "train", "--resume", "out", "--iters", "20")
    assert code == 0 and "\x1b" not in said + Path("out/train.log").read_text()
    assert r"\x1b[2Jrows.jsonl: 14 rows" in said
    code, _, error = wgtrain(capsys, "train", "--model", "\x1b[2J", "--data", "rows.jsonl")
    assert code == 2 and "\x1b" not in error and r"\x1b[2J" in error


@pytest.mark.parametrize(
    ("arguments", "messages"),
    [
        ("", ["--model: needed", "--data: needed"]),
        ("--model base.gguf --data nothing.jsonl", ["nothing.jsonl: No such file"]),
        ("--model nothing.gguf --data rows.jsonl", ["nothing.gguf: No such file"]),
        (
            "--data rows.jsonl --model google/gemma-3-270m",
            ["such file or directory; of the Hugging Face Hub `hf download google/gemma-3-270m "],
        ),
        ("--data rows.jsonl --model gone/a.gguf", ["gone/a.gguf: No such file or directory\n"]),
        ("--data rows.jsonl --model full/gone", ["full/gone: No such file or directory\n"]),
        ("--data rows.jsonl --model https://a.b/c.gguf", ["to which it is downloaded first"]),
        ("{ok} --rank 0 --batch-size x", ["--rank 0: allowed is", "--batch-size x: allowed"]),
        ("{ok} --method dora", ["--method dora: allowed is only lora"]),
        ("{ok} --optimizer sgd", ["--optimizer sgd: allowed is only adamw"]),
        ("{ok} --epochs 3 --iters 5", ["--epochs, --iters: only one of them may be given"]),
        ("{ok} --warmup-ratio 0.03 --warmup-steps 5", ["--warmup-ratio, --warmup-steps: only"]),
        ("{ok} --train-on all --mask-prompt", ["'train_on' is given twice"]),
        ("{ok} --layers 9", ["--layers 9: the model has 3 blocks"]),
        ("{ok} --valid nowhere.jsonl", ["nowhere.jsonl: No such file"]),
        ("{ok} --valid 1.5", ["--valid 1.5: allowed is"]),
        ("{ok} --out full", ["--out full: exists already and is never overwritten"]),
        ("{ok} --config missing.yaml", ["missing.yaml: No such file"]),
        ("{ok} --config bad.yaml", ["bad.yaml: unknown setting 'learnin_rate'; did you mean"]),
        ("{ok} --init-adapter rows.jsonl", ["rows.jsonl: "]),
        ("{ok} --bogus", ["No such option --bogus; wgtrain train --help lists them"]),
        ("{ok} --lr 1", ["No such option --lr; did you mean --learning-rate?"]),
        ("{ok} --lora-rank=1", ["No such option --lora-rank; did you mean --rank?"]),
        ("{ok} --resume-from x", ["No such option --resume-from; did you mean --resume?"]),
        ("{ok} -q", ["No such option -q; wgtrain train --help lists them"]),
        ("{ok} -m x", ["No such option -m; did you mean --model?"]),
        ("base.gguf rows.jsonl", ["(base.gguf rows.jsonl); files are named by --model "]),
        ("{ok} --rank 1_6", ["--rank 1_6: allowed is a whole number, at least 1"]),
        ("{ok} --data=~/no.jsonl", [f"{Path('~/no.jsonl').expanduser()}: No such file"]),
        ("--resume nowhere", ["nowhere: not a run folder"]),
        (
            "--resume nowhere --rank 3 --config bad.yaml",
            ["--rank, --config: not beside resume"],
        ),
    ],
)
def test_unusable_input(toy, capsys, arguments, messages):
    Path("full").mkdir()
    Path("full/mine.txt").write_text("mine")
    Path("bad.yaml").write_text("learnin_rate: 1\n")
    arguments = arguments.format(ok="--model base.gguf --data rows.jsonl")
    code, _, error = wgtrain(capsys, "train", *arguments.split())
    assert code == 2 and "Traceback" not in error
    assert all(message in error for message in messages), error
    assert not Path("runs").exists() and os.listdir("full") == ["mine.txt"]


def test_not_finite(toy, capsys, monkeypatch):
    class Poisoned(FakeLearner):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            self.poison_at = 6

    monkeypatch.setattr("wgtrain.train.trainer.lora_learner", Poisoned)
    command = "train --model base.gguf --data rows.jsonl --out out".split()
    for every, place in ((2, "out/checkpoints/step-000004"), (0, "none was written yet")):
        shutil.rmtree("out", ignore_errors=True)
        code, _, error = wgtrain(capsys, *command, "--save-every", every)
        assert code == 2 and "step 6: loss nan" in error and "in the rows of lines " in error
        assert f"last good checkpoint: {place}" in error
        summary = json.loads(Path("out/summary.json").read_text())
        assert summary["status"] == "failed" and "step 6: loss nan" in summary["error"]
        assert [line["step"] for line in metrics("out")] == [1, 2, 3, 4, 5]
        assert not Path("out/adapter.gguf").exists()


@pytest.mark.parametrize("stage", ["load", "build"])
@pytest.mark.parametrize(
    ("error", "code"),
    [(OutOfMemoryError("needs 3 GiB"), 3), (DeviceError("gone"), 3), (FileError("base.gguf"), 2)],
)
def test_failures_before_training_leave_no_folder(toy, capsys, monkeypatch, stage, error, code):
    def fail(*arguments, **options):
        raise error

    place = (
        "wgtrain.runs.session.load_model" if stage == "load" else "fake_learner.FakeLearner.build"
    )
    monkeypatch.setattr(place, fail)
    got, _, said = wgtrain(capsys, "train", "--model", "base.gguf", "--data", "rows.jsonl")
    assert got == code and said == f"error: {error}\n"
    assert not Path("runs").exists()


def test_device_lost_while_training(toy, capsys, monkeypatch):
    class Lost(FakeLearner):
        def update(self, *, step, **options):
            if step == 5:
                raise DeviceError("the device was lost")
            super().update(step=step, **options)

    monkeypatch.setattr("wgtrain.train.trainer.lora_learner", Lost)
    code, _, error = wgtrain(
        capsys, *"train --model base.gguf --data rows.jsonl --out out --save-every 2".split()
    )
    assert code == 3 and error == "error: the device was lost\n"
    assert json.loads(Path("out/summary.json").read_text())["error"] == "the device was lost"
    monkeypatch.setattr("wgtrain.train.trainer.lora_learner", FakeLearner)
    assert wgtrain(capsys, "train", "--resume", "out")[0] == 0
    train(capsys, out="whole")
    assert Path("out/adapter.gguf").read_bytes() == Path("whole/adapter.gguf").read_bytes()


def test_only_commands_that_exist_are_listed():
    result = CliRunner().invoke(cli.cli, ["--help"], terminal_width=80)
    commands = result.output.partition("Commands:")[2].split("\n")
    listed = [line.split()[0] for line in commands if line.strip()]
    here = "bench convert demo doctor inspect plan preview quantize train web".split()
    assert listed == sorted([*here, *cli.MODULES])
    assert all(isinstance(cli.cli.get_command(None, name), click.Command) for name in listed)
    assert not any("..." in line for line in commands)  # none is cut


def test_two_names_of_one_setting(toy, capsys):
    paths = ["--model", "base.gguf", "--data", "rows.jsonl", "--out", "out"]
    for command in ("train", "plan"):
        code, _, error = wgtrain(capsys, command, *paths, "--lora-r", "3", "--rank", "4")
        assert code == 2 and "'rank' is given twice, as 'lora_r' and as 'rank'" in error
    shown = CliRunner().invoke(cli.cli, ["train", "--help"]).output
    assert "--rank, --lora-r N " in shown and "\n  --lora-r" not in shown


@pytest.mark.parametrize(
    ("message", "spelt"),
    [
        ("rank = 0: allowed is", "--rank 0: allowed is"),
        ("lora_r = 0: allowed is", "--lora-r 0: allowed is"),
        ("seq_len = 64, packing = True: 3 GiB", "--seq-len 64 --packing: 3 GiB"),
        ("It fits:\nrank = 4\nshuffle = False: 1", "It fits:\n--rank 4\n--no-shuffle: 1"),
        ("warning: valid = r.jsonl: the same", "warning: --valid r.jsonl: the same"),
        ("lr_period = 3: only for lr_schedule = x", "--lr-period 3: only for --lr-schedule x"),
        ("model, data: needed", "--model, --data: needed"),
        ("rank, config: not beside", "--rank, --config: not beside"),
        ("adapter = a:x: allowed is", "--adapter a:x: allowed is"),
        ("adapter: out/adapter.gguf", "adapter: out/adapter.gguf"),
        ("x.gguf: rank = 3, alpha = 2", "x.gguf: rank = 3, alpha = 2"),
        ("rank = 3, width = 2: odd", "--rank 3, width = 2: odd"),
    ],
)
def test_settings_in_messages_are_options_that_can_be_copied(message, spelt):
    assert as_options(message) == spelt


def test_a_full_disk_is_told(toy, capsys, monkeypatch):
    def full(*arguments):
        raise OSError(28, "No space left on device", "optimizer.safetensors")

    monkeypatch.setattr("wgtrain.runs.folder.RunFolder.save_checkpoint", full)
    arguments = ["--model", "base.gguf", "--data", "rows.jsonl", "--out", "out"]
    code, _, error = wgtrain(capsys, "train", *arguments)
    assert code == 2
    assert error == "error: [Errno 28] No space left on device: 'optimizer.safetensors'\n"
    assert json.loads(Path("out/summary.json").read_text())["status"] == "failed"


def test_demo_gets_its_options(capsys, monkeypatch):
    asked = []
    monkeypatch.setattr("wgtrain.cli.demo.run_demo", lambda *a: asked.append(a) or len(asked) == 1)
    assert wgtrain(capsys, "demo", "--out", "x", "--adapter-index", "2")[0] == 0
    assert wgtrain(capsys, "demo")[0] == 130
    assert asked == [("x", 2), (None, None)]
    code, _, error = wgtrain(capsys, "demo", "--adapter-index", "-1")
    assert code == 2 and "--adapter-index -1" in error


def test_module_and_version():
    for arguments in (["--version"], ["train", "--help"]):
        said = subprocess.run(
            [sys.executable, "-m", "wgtrain", *arguments], capture_output=True, text=True
        )
        assert said.returncode == 0 and "wgtrain" in said.stdout, said.stderr


# ---- doctor -----------------------------------------------------------------------------------

GPU = AdapterInfo(
    0,
    "Radeon",
    "DiscreteGPU",
    "Vulkan",
    "RADV",
    {"max-buffer-size": 2**31, "max-color": 5},
    ("shader-f16",),
)
SOFTWARE = AdapterInfo(1, "llvmpipe", "CPU", "Vulkan", "", {"max-buffer-size": 2**30}, ())


def test_doctor_lists_what_there_is(capsys, monkeypatch):
    monkeypatch.setattr(doctor, "list_adapters", lambda: [GPU, SOFTWARE])
    monkeypatch.delenv("WGTRAIN_ADAPTER_INDEX", raising=False)
    code, said, _ = wgtrain(capsys, "doctor")
    assert code == 0
    for part in ("adapter 0: Radeon", "2,147,483,648", "shader-f16", "adapter 1: llvmpipe"):
        assert part in said
    assert (
        "0, the strongest" in said
        and "numpy 2" in said
        and "software" not in said
        and "color" not in said
    )
    monkeypatch.setenv("WGTRAIN_ADAPTER_INDEX", "1")
    assert "1, from WGTRAIN_ADAPTER_INDEX" in wgtrain(capsys, "doctor")[1]
    monkeypatch.setenv("WGTRAIN_ADAPTER_INDEX", "")
    assert "0, the strongest" in wgtrain(capsys, "doctor")[1]
    for wrong in ("2", "x", " "):
        monkeypatch.setenv("WGTRAIN_ADAPTER_INDEX", wrong)
        said = wgtrain(capsys, "doctor")[1]
        assert f"WGTRAIN_ADAPTER_INDEX is '{wrong}': allowed is 0 to 1" in said


@pytest.mark.gpu
def test_doctor_shows_which_kernels_run(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("WGTRAIN_CACHE", str(tmp_path))
    first = list_adapters()[0]
    monkeypatch.setattr(doctor, "list_adapters", lambda: [first])
    said = wgtrain(capsys, "doctor")[1]
    assert "kernels: defaults of " in said and "not measured" in said
    assert f"WGTRAIN_CACHE: folder of measured tables; now {tmp_path}" in said
    assert "WGTRAIN_SHADER_CHECKS: all, or bounds" in said
    assert ("subgroups: not used" in said) == (not {"subgroup", "subgroups"} & set(first.features))
    for name, theirs in FEATURES.items():
        used = next(line for line in said.splitlines() if "used of these" in line)
        assert (name in used) == bool(set(theirs) & set(first.features))
    choice = Choice("matmul_nt_subgroup", (("TILE_ROWS", 5), ("TILE_COLS", 48)))
    save(first, [Measured("nt/weight_q8_0", choice, Shape(512, 1e6), 42.5e9, 34e9, 3)])
    said = wgtrain(capsys, "doctor")[1]
    shown = "nt/weight_q8_0: matmul_nt_subgroup TILE_ROWS 5 TILE_COLS 48; 42.5 GFLOP/s, "
    assert f"{shown}1.25 x the default, 512 tokens" in said
    assert f"kernels: measured {load(first).made}, others defaults of " in said
    cache_file(first).write_text("{")
    said = wgtrain(capsys, "doctor")[1]
    assert "is damaged and ignored" in said and "kernels: defaults of " in said


def test_doctor_tells_an_adapter_that_cannot_be_opened(capsys, monkeypatch):
    async def broken(index):
        raise DeviceError(f"no device {index}")

    monkeypatch.setattr(doctor, "list_adapters", lambda: [GPU])
    monkeypatch.setattr(doctor, "open_device", broken)
    assert "cannot be used: no device 0" in wgtrain(capsys, "doctor")[1]


def test_doctor_says_what_to_install(capsys, monkeypatch):
    def broken():
        raise DeviceError("no Vulkan loader")

    for adapters in (list, broken):
        monkeypatch.setattr(doctor, "list_adapters", adapters)
        for system, advice in (
            ("Linux", "apt install mesa-vulkan-drivers"),
            ("Darwin", "macOS"),
            ("Windows", "graphics driver"),
        ):
            monkeypatch.setattr(doctor.platform, "system", lambda system=system: system)
            code, said, _ = wgtrain(capsys, "doctor")
            assert code == 3 and "No adapter was found" in said and advice in said
    assert "(no Vulkan loader)" in said
    monkeypatch.setattr(doctor, "list_adapters", lambda: [SOFTWARE])
    monkeypatch.setattr(doctor.platform, "system", lambda: "Linux")
    code, said, _ = wgtrain(capsys, "doctor")
    assert code == 0 and "It is software" in said and "NVIDIA" in said


def test_an_interrupt_while_the_command_line_is_imported(monkeypatch, capsys):
    class Interrupted:
        @staticmethod
        def find_spec(name, *rest):
            if name == "wgtrain.cli.main":
                raise KeyboardInterrupt

    monkeypatch.delitem(sys.modules, "wgtrain.cli.main")
    monkeypatch.setattr(sys, "meta_path", [Interrupted, *sys.meta_path])
    with pytest.raises(SystemExit) as ended:
        entry.main()
    assert ended.value.code == cli.INTERRUPTED and capsys.readouterr().err == "interrupted\n"


def test_a_run_goes_on_with_other_memory(toy, capsys, monkeypatch):
    """It is a matter of the machine, and changes no number."""
    opened = []
    make = fake_learner.FakeModel.__init__

    def watched(self, *arguments, gpu_memory=None, **options):
        opened.append(gpu_memory)
        make(self, *arguments, **options)

    monkeypatch.setattr(fake_learner.FakeModel, "__init__", watched)
    train(capsys, "--iters", "4", out="whole")
    train(capsys, "--iters", "2", "--gpu-memory", "3GiB")
    beside = ["--resume", "out", "--iters", "4", "--gpu-memory", "5000MB"]
    code, said, error = wgtrain(capsys, "train", *beside)
    assert code == 0, said + error
    assert opened == [None, 3 << 30, 5_000_000_000]
    assert yaml.safe_load(Path("out/config.yaml").read_text())["gpu_memory"] == 5_000_000_000
    assert "GPU memory: " in said and "GPU memory: " in Path("out/train.log").read_text()


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (
            "preview --data rows.jsonl",
            "--data; it stands by itself: wgtrain preview DATA\n",
        ),
        (
            "quantize --model a.gguf",
            "--model; it stands by itself: wgtrain quantize MODEL\n",
        ),
        ("plan base.gguf", "(base.gguf); files are named by --model FILE --data FILE"),
        ("quantize a b --type Q8_0 --out c", "unexpected extra argument (b)\n"),
        ("quantize rows.jsonl --type Q3_K --out c", "error: --type: 'Q3_K' is not one of F32"),
    ],
)
def test_files_that_are_named_in_another_way(toy, capsys, command, said):
    if "rows.jsonl --type" in command:
        Path("rows.jsonl").write_bytes(tiny("llama").gguf)
    code, _, error = wgtrain(capsys, *command.split())
    assert code == 2 and said in error


@pytest.mark.parametrize("command", ["train", "plan"])
def test_a_model_that_cannot_be_trained_is_refused_before_its_vocabulary(
    capsys, tmp_path, monkeypatch, command
):
    monkeypatch.chdir(tmp_path)
    Path("rows.jsonl").write_text('{"text": "a"}')
    metadata = {"general.architecture": "qwen3moe", "qwen3moe.block_count": 1}
    Path("m.gguf").write_bytes(write_gguf(metadata, {"a": np.ones(4, np.float32)}))
    code, _, error = wgtrain(capsys, command, "--model", "m.gguf", "--data", "rows.jsonl")
    assert code == 2 and "m.gguf: general.architecture 'qwen3moe' is not" in error


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("run base.gguf", "No such command 'run'; did you mean wgtrain chat?"),
        ("finetun", "No such command 'finetun'; did you mean wgtrain train?"),
        ("fuse --model m", "No such command 'fuse'; did you mean wgtrain merge?"),
        ("evl", "No such command 'evl'; did you mean wgtrain eval?"),
        ("qqq", "No such command 'qqq'; wgtrain --help tells what there is"),
        ("--qqq", "No such option --qqq; wgtrain --help lists them"),
        ("generate -p Hello", "No such option -p; did you mean --prompt?"),
        ("generate -n 3", "No such option -n; did you mean --max-tokens?"),
        ("chat -p Hello", "No such option -p; wgtrain chat --help lists them"),
        ("merge runs/a", "--out FILE.gguf|FOLDER: needed; what to write: a GGUF where the name "),
        ("eval runs/a", "(runs/a); files are named by --model FILE --adapter A --data FILE"),
        (
            "generate Hello",
            "(Hello); files are named by --model FILE --adapter A; texts by --message TEXT or "
            "--prompt TEXT",
        ),
        ("train --adapter runs/a", "No such option --adapter; did you mean --init-adapter?"),
        ("serve --port x", "'x' is not a valid integer; wgtrain serve --help tells what there is"),
    ],
)
def test_what_other_programs_have_is_told_as_ours(capsys, line, said):
    code, out, error = wgtrain(capsys, *line.split())
    assert (code, out) == (2, "") and error.startswith("error: ") and error.count("\n") == 1
    assert said in error


@pytest.mark.parametrize("command", ["generate", "chat", "eval", "serve", "merge"])
def test_help_begins_with_what_everybody_needs(capsys, command):
    code, said, _ = wgtrain(capsys, command, "--help")
    about, options, *sections = re.split(r"\n(?=\S)", said.partition("\n")[2])
    assert code == 0 and f"  wgtrain {command} --adapter runs/mine" in about
    assert re.match(r"Options:\n  --model FILE .*?\n  --adapter A", options, re.DOTALL)
    assert "  -h, --help " in options and sections[-1].startswith("Model and GPU:\n  --config FILE")
    given = import_module(f"wgtrain.cli.{command}").command.params
    listed = re.findall(r"^  (--[\w-]+)", "\n".join([options, *sections]), re.MULTILINE)
    assert sorted(listed) == sorted(one.opts[0] for one in given if not one.hidden)
    assert max(map(len, said.splitlines())) <= 80


def test_a_number_of_steps_in_words():
    facts = {"tokens": 7, "seconds": 1, "first_loss": 2, "last_loss": 1, "first_eval_loss": None}
    for steps, said in ((1, "1 step, 7"), (1200, "1,200 steps, 7")):
        assert ending(facts | {"step": steps}).startswith(said)
