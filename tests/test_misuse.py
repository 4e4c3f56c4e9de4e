"""Arguments that people mix up: each is an error of the package's own that says what to do."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from fake_learner import VOCAB, FakeModel, fake_rows, install, write_rows
from needs import ROOT
from vocabs import bpe

import wgtrain
from wgtrain.api import HOST
from wgtrain.data import Row, load_tokenizer
from wgtrain.errors import FileError, OptionError
from wgtrain.runs import paths
from wgtrain.train.config import LoraConfig, TrainConfig

LINES = '{"text": "some words"}\n' * 500


@pytest.mark.parametrize("text", [LINES, LINES[:23], "  [" + LINES[:22] + "]", '{"text": "\0"}'])
def test_rows_as_a_text(text):
    with pytest.raises(OptionError, match=r"^data: '.*: a path is needed, .*text.encode\(\)") as e:
        wgtrain.load_dataset(text, load_tokenizer(bpe()))
    assert len(str(e.value)) < 200


@pytest.mark.parametrize("path", ["a" * 5000, "no/such\0file", "x\x1b[2J", Path("b" * 300)])
def test_paths_that_cannot_be(path):
    calls = (
        lambda: wgtrain.load_dataset(path, load_tokenizer(bpe())),
        lambda: wgtrain.load_model(path),
        lambda: wgtrain.load_tokenizer(path),
    )
    for call in calls:
        with pytest.raises(FileError) as e:
            call()
        assert len(str(e.value)) < 400 and str(e.value).isprintable()


def test_rows_that_are_named_like_json(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("{a}.jsonl").write_text('{"text": "ab"}')
    assert len(wgtrain.load_dataset("{a}.jsonl", load_tokenizer(bpe())).rows) == 1


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no FIFOs")
def test_pipes_that_nobody_writes_to(tmp_path, monkeypatch):
    """None is waited for without end; a model is no pipe at all."""
    monkeypatch.setattr(paths, "_WRITER_SECONDS", 0.01)
    tokenizer = load_tokenizer(bpe())
    for name in ("fifo", "adapter_config.json", "adapter_model.safetensors"):
        os.mkfifo(tmp_path / name)
    with pytest.raises(FileError, match="fifo: a FIFO that nobody writes to"):
        wgtrain.load_dataset(tmp_path / "fifo", tokenizer)
    for path in (tmp_path / "fifo", tmp_path):
        with pytest.raises(FileError, match="a FIFO that nobody writes to"):
            HOST.read_adapter(path, FakeModel().config)
    for load in (wgtrain.load_model, wgtrain.load_tokenizer):
        with pytest.raises(FileError, match="fifo: a FIFO; a model is read more than once"):
            load(tmp_path / "fifo")


@pytest.mark.parametrize("model", ["base.gguf", None, b"GGUF"])
def test_rows_without_a_model(model):
    with pytest.raises(
        OptionError, match="model: .*: what wgtrain.load_model or load_tokenizer gi"
    ):
        wgtrain.load_dataset(b'{"text": "ab"}', model)


ROWS = fake_rows()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("base.gguf", ROWS), r"model: 'base.gguf': load it first, with wgtrain.load_model"),
        ((b"GGUF" * 1000, ROWS), r"model: b'GGUF.*: load it first"),
        ((ROWS, FakeModel()), r"model: .*: load it first"),
        ((FakeModel(), "rows.jsonl"), r"rows: 'rows.jsonl': load them first, with wgtrain.load_da"),
        ((FakeModel(), b'{"text": "ab"}'), r"rows: b'.*: load them first"),
        ((FakeModel(), ROWS.rows), r"rows: \[.*: load them first"),
        ((FakeModel(), None), r"rows: None: load them first"),
        (
            (FakeModel(), ROWS, TrainConfig()),
            r"lora: a LoraConfig is needed, not TrainConfig; write config=TrainConfig\(...\)",
        ),
        ((FakeModel(), ROWS, None, LoraConfig()), r"config: a TrainConfig is needed, not LoraConf"),
        ((FakeModel(), ROWS, {"rank": 4}), r"lora: a LoraConfig is needed, not dict"),
        ((FakeModel(), ROWS, None, None, "valid.jsonl"), r"valid: 'valid.jsonl': load them first"),
    ],
)
def test_arguments_in_each_others_place(arguments, message):
    with pytest.raises(OptionError, match=f"^{message}") as e:
        wgtrain.Trainer(*arguments)
    assert len(str(e.value)) < 200


@pytest.mark.parametrize(
    ("field", "at", "value", "message"),
    [
        ("tokens", 2, VOCAB, rf"token id {VOCAB} is outside the model's vocabulary of {VOCAB}"),
        ("targets", 1, VOCAB + 9, rf"target id {VOCAB + 9} is outside the model's vocabulary of"),
        ("targets", 1, -2, r"target id -2 is outside"),
    ],
)
@pytest.mark.parametrize("where", [0, 3, 13, 600])
def test_ids_beyond_the_embedding(monkeypatch, field, at, value, message, where):
    install(monkeypatch.setattr)
    data = fake_rows(1200 if where > 13 else 14)
    row = data.rows[where]
    ids = getattr(row, field).copy()
    ids[at] = value
    data.rows[where] = dataclasses.replace(row, **{field: ids})
    with pytest.raises(FileError, match=rf"^{data.name} line {row.line}: {message}"):
        wgtrain.Trainer(FakeModel(), data)
    with pytest.raises(FileError, match=message):
        wgtrain.Trainer(FakeModel(), fake_rows(), valid=data)


@pytest.mark.parametrize(
    ("tokens", "targets"),
    [
        (np.ones(4, np.uint32), np.ones(4) * 1.5),
        (np.ones(4, np.float32), np.ones(4, np.int32)),
        (np.ones(4, np.uint32), np.ones(3, np.int32)),
        (np.ones(0, np.uint32), np.ones(0, np.int32)),
    ],
)
def test_rows_made_by_hand(tokens, targets):
    data = dataclasses.replace(ROWS, rows=[*ROWS.rows, Row(tokens, targets, 9)])
    with pytest.raises(
        FileError, match="tokens and targets of a row are whole numbers, as many of"
    ):
        wgtrain.Trainer(FakeModel(), data)


@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
def test_names_that_the_console_cannot_write(tmp_path, encoding):
    """A locale without letters beyond ASCII, in which Python reads names as surrogates."""
    name = "\u00e9\u4e2d"
    Path(tmp_path, f"{name}.gguf").write_bytes(b"x")
    write_rows(Path(tmp_path, f"{name}.jsonl"))
    more = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    environment = os.environ | more | {"PYTHONIOENCODING": encoding}
    files = ["--model", f"{name}.gguf", "--data", f"{name}.jsonl", "--out", name]
    command = [sys.executable, ROOT / "tests" / "fake_learner.py", "0", "train", *files]
    done = subprocess.run(
        [*command, "--iters", "2"], cwd=tmp_path, env=environment, capture_output=True
    )
    assert done.returncode == 0, done.stderr.decode(errors="replace")
    assert Path(tmp_path, name, "adapter.gguf").exists() and b"Traceback" not in done.stderr
