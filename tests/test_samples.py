"""Samples of a run: what base and tuned model answer while it trains, everywhere they are shown."""

import dataclasses
import json
import sys
import types
from pathlib import Path

import fake_learner
import numpy as np
import pytest
import tiny
from fake_learner import FakeAnswers, FakeModel, fake_rows, write_rows

import wgtrain
from wgtrain import OptionError
from wgtrain.cli.demo import BASE, FILES
from wgtrain.data.jsonl import Row
from wgtrain.data.prompts import row_prompt
from wgtrain.infer.generation import Request
from wgtrain.infer.samples import MAX_TOKENS, sample_prompts
from wgtrain.notebook import chart
from wgtrain.runs import progress, session
from wgtrain.runs import samples as shown
from wgtrain.train.config import LoraConfig, TrainConfig
from wgtrain.train.results import Sample

PROMPTS = ("Make a record.", "Anna is 30.")
LORA = LoraConfig(rank=2, alpha=8)
TRAIN = TrainConfig(
    epochs=None, iters=4, batch_size=2, learning_rate=4e-2, warmup_ratio=0, seq_len=96
)


@pytest.fixture(scope="module")
def model():
    with wgtrain.load_model(BASE, limits="default") as opened:
        yield opened


@pytest.fixture(scope="module")
def rows(model):
    """Eight rows to learn, and four for validation."""
    lines = (FILES / "train.jsonl").read_bytes().splitlines(keepends=True)[:12]
    parts = b"".join(lines[:8]), b"".join(lines[8:])
    return [wgtrain.load_dataset(part, model, seq_len=96) for part in parts]


def train(model, rows, **changes):
    return wgtrain.Trainer(
        model, rows[0], LORA, dataclasses.replace(TRAIN, **changes), rows[1] if rows[1:] else None
    )


def bits(trainer):
    return [(r.loss, r.grad_norm) for r in trainer.run()], trainer.adapter_gguf()


@pytest.mark.gpu
def test_samples_are_the_models_answers(model, rows):
    """Base and tuned are what the model generates, and numbers are those of a run without."""
    plain = train(model, rows)
    expected = bits(plain)
    plain.close()
    trainer = train(model, rows, sample=PROMPTS, sample_every=2)
    results = list(trainer.run())
    adapter = trainer.adapter_gguf()
    assert ([(r.loss, r.grad_norm) for r in results], adapter) == expected
    assert [len(r.samples) for r in results] == [0, 2, 0, 2]
    prompts = sample_prompts(PROMPTS, *rows, model.tokenizer)
    requests = [Request(prompt.ids, MAX_TOKENS) for prompt in prompts]
    answers = []
    for adapters in ([], [(adapter, 1.0)]):
        found = [""] * len(requests)
        for piece in model.answers(requests, adapters=adapters):
            found[piece.index] += piece.text
        answers.append(found)
    assert results[-1].samples == tuple(map(Sample, PROMPTS, *answers))
    assert answers[0] != answers[1] and all(map(len, answers[0]))
    assert [s.base for s in results[1].samples] == answers[0]
    assert [s.tuned for s in results[1].samples] != answers[1]
    trainer.close()


@pytest.mark.gpu
def test_their_memory_is_planned(model, rows):
    lent = model.device
    model._kept.drop_places()
    before = lent.allocated
    trainer = train(model, rows, sample_every=0)
    trainer.build()
    needs = trainer.needs
    assert needs.by_purpose["samples"] > 0
    assert needs.total == lent.allocated - before + model.weights.nbytes
    planned = wgtrain.plan(model, LORA, trainer.config, *rows)
    assert planned.by_purpose == dict(needs.by_purpose)
    assert planned.as_json()["by_purpose"]["samples"] == needs.by_purpose["samples"]
    trainer.close()
    assert lent.allocated == before
    assert "samples" not in wgtrain.plan(model, LORA, TRAIN, *rows).by_purpose
    # Without rows prompts are as long as rows may be.
    longest = wgtrain.plan(BASE, LORA, dataclasses.replace(TRAIN, sample=PROMPTS))
    assert longest.by_purpose["samples"] > needs.by_purpose["samples"]
    texts = dataclasses.replace(TRAIN, sample=PROMPTS)
    by_file, by_model = (wgtrain.plan(it, LORA, texts, *rows) for it in (BASE, model))
    assert by_file.by_purpose["samples"] == by_model.by_purpose["samples"]


@pytest.mark.gpu
def test_what_does_not_fit_recomputes_first(model, rows, monkeypatch):
    """Samples count where it is decided whether activations are recomputed."""
    free = train(model, rows)
    need = free.needs.total - free.needs.by_purpose["base"]
    free.close()
    monkeypatch.setattr(model.device, "budget", model.device.allocated + need)
    alone, sampled = train(model, rows), train(model, rows, sample_every=0)
    assert (alone.recompute, sampled.recompute) == (False, True)
    alone.close()
    sampled.close()


def test_answers_end_where_the_context_does():
    with wgtrain.load_model(tiny.tiny("llama").gguf, limits="default") as model:
        context, prompt = model.config.context, [5, 6, 7] * 40
        samples = model.answering({}, [prompt, prompt[:3]])
        wgtrain.run(samples.open())
        found = wgtrain.run(samples.answers())
        samples.close()
        asked = [Request(prompt, context - len(prompt)), Request(prompt[:3], MAX_TOKENS)]
        wanted = ["".join(p.text for p in model.answers([one])) for one in asked]
    assert asked[0].max_tokens == 8 and found == wanted


def test_prompts(model, rows):
    """Through the template where rows went through it; as they stand where they did not."""
    tokenizer = model.tokenizer
    chats = sample_prompts(PROMPTS, *rows, tokenizer)
    asked = model.prompt([{"role": "user", "content": PROMPTS[0]}])
    assert (chats[0].text, list(chats[0].ids)) == (PROMPTS[0], list(asked))
    data = b'{"prompt": "One", "completion": " two"}\n'
    raw = wgtrain.load_dataset(data, model, seq_len=96)
    assert raw.templating is None and rows[0].templating is not None
    (prompt,) = sample_prompts(PROMPTS[:1], raw, None, tokenizer)
    plain = tokenizer.encode(PROMPTS[0], bos=tokenizer.add_bos, special=True)
    assert list(prompt.ids) == plain != list(asked)


def test_prompts_of_validation_rows(model, rows):
    tokenizer = model.tokenizer
    found = sample_prompts((), *rows, tokenizer)
    for prompt, row in zip(found, rows[1].rows[:2], strict=True):
        first = int(np.argmax(row.targets >= 0))
        assert list(prompt.ids) == row.tokens[: first + 1].tolist()
        assert prompt.text == tokenizer.decode(prompt.ids, special=True)
    with pytest.raises(OptionError, match=r"sample_every: there are no validation rows"):
        sample_prompts((), rows[0], None, tokenizer)
    with pytest.raises(OptionError, match="sample_every: there are no validation rows"):
        train(model, rows[:1], sample_every=2)


@pytest.mark.parametrize(
    ("targets", "prompt"),
    [
        ([-1, -1, 4, 5, -1], [1, 2, 3]),
        ([2, 3, 4, 5, -1], [1, 2]),  # trained from its first token on
        ([2, -1], [1]),
        ([*range(2, 81), -1], list(range(1, 17))),
    ],
)
def test_prompt_of_a_row(targets, prompt):
    tokens = np.arange(1, len(targets) + 1, dtype=np.uint32)
    assert row_prompt(Row(tokens, np.array(targets, np.int32), 1)) == prompt


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sample": ("",)}, "sample = .*: allowed is a text, or a list of texts"),
        ({"sample": 5}, "sample = 5"),
        ({"sample": ["a", 7]}, "sample = .*7"),
        ({"sample_every": -1}, "sample_every = -1: allowed is a whole number, at least 0"),
    ],
)
def test_settings_that_cannot_be(changes, message):
    with pytest.raises(OptionError, match=message):
        TrainConfig(**changes)


def test_settings():
    assert not TrainConfig().samples
    assert TrainConfig(sample="Why?").sample == ("Why?",)
    assert TrainConfig(sample_every=0).samples and TrainConfig(sample=["a"]).samples


# ---- in the loop, the folder and the faces, with a learner in numpy ------------------------------


@pytest.fixture
def toy(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fake_learner.install(monkeypatch.setattr)
    monkeypatch.setattr(FakeAnswers, "open_now", 0)
    write_rows(tmp_path / "rows.jsonl")
    write_rows(tmp_path / "valid.jsonl", 5)
    (tmp_path / "base.gguf").write_bytes(b"toy")
    return tmp_path


def start(out="out", **settings):
    said = []
    paths = {"model": "base.gguf", "data": "rows.jsonl", "out": out}
    assert session.start({**paths, "iters": 6, "rank": 2, **settings}, said.append)
    return "\n".join(said)


def lines(out="out"):
    return [json.loads(line) for line in Path(out, "samples.jsonl").read_text().splitlines()]


def test_a_run_keeps_its_samples(toy):
    text = start(sample=["Why?", "And\nso?"], sample_every=4)
    found = lines()
    steps = [(line["step"], line["prompt"]) for line in found]
    assert steps == [(4, "Why?"), (4, "And\nso?"), (6, "Why?"), (6, "And\nso?")]
    assert [line["base"] for line in found] == ["base\n4", "base\n7"] * 2
    assert found[0]["tuned"] != found[2]["tuned"]
    assert FakeAnswers.open_now == 0
    for where in (text, Path("out/train.log").read_text()):
        assert where.count("sample 1 after step") == where.count("sample 2 after step") == 2
        assert where.count("sample 1\n") == 1  # what the base answers, at the start
        assert "  base:   base" in where and f"tuned:  {found[0]['tuned'][:8]}" in where
    assert text.index("the base answers 2 sample prompts\n") < text.index("sample 1\n")
    metrics = Path("out/metrics.jsonl").read_text()
    assert "samples" not in metrics and "Why?" not in metrics
    assert "sample" not in start("none")
    assert not Path("none/samples.jsonl").exists()


def test_without_a_number_of_steps_they_come_at_the_end(toy):
    start(sample="Why?")
    assert [line["step"] for line in lines()] == [6]
    start("rows", sample_every=0, valid="valid.jsonl")
    assert [line["prompt"] for line in lines("rows")] == ["row 1", "row 2"]
    start("part", sample_every=0, valid=0.3)
    assert len(lines("part")) == 2


@pytest.mark.parametrize("save_every", [2, 3])
def test_a_run_goes_on_with_its_samples(toy, monkeypatch, save_every):
    """Those after the checkpoint are dropped and come again, the same; no line is there twice."""
    settings = {"sample": "Why?", "sample_every": 1, "save_every": save_every}
    start("whole", **settings)
    monkeypatch.setattr(fake_learner.FakeLearner, "update", broken_at(5))
    with pytest.raises(RuntimeError, match="power is gone"):
        start("cut", **settings)
    monkeypatch.undo()
    monkeypatch.chdir(toy)
    fake_learner.install(monkeypatch.setattr)
    assert [line["step"] for line in lines("cut")] == [1, 2, 3, 4]
    with open("cut/samples.jsonl", "a") as file:
        file.write('{"step": 4, "prompt": "W')
    assert session.resume("cut", lambda text: None)
    assert lines("cut") == lines("whole")


def broken_at(step, update=fake_learner.FakeLearner.update):
    def broken(self, **options):
        if options["step"] == step:
            raise RuntimeError("the power is gone")
        update(self, **options)

    return broken


def test_lines_that_are_damaged_are_kept(tmp_path):
    path = tmp_path / "samples.jsonl"
    shown.rewind(tmp_path, 3)
    assert not path.exists()
    kept = b'{"step": 3, "prompt": "a"}\nno JSON\n[1]\n'
    path.write_bytes(kept + b'{"step": 4}\n{"step": 2')
    shown.rewind(tmp_path, 3)
    assert path.read_bytes() == kept


@pytest.fixture
def trainer(toy):
    config = TrainConfig(epochs=None, iters=3, sample=("<b>\nWhy?",), sample_every=2)
    return wgtrain.Trainer(FakeModel(), fake_rows(), LoraConfig(rank=2), config)


def test_lines_and_bar_show_them(trainer, capsys):
    said = []
    with progress.lines(trainer, said.append) as show:
        for result in trainer.run():
            show(result)
    told = [text for text in said if text.startswith("sample")]
    assert [text.split("\n")[0] for text in told] == [
        "sample 1 after step 2",
        "sample 1 after step 3",
    ]
    assert "  prompt: <b>\n          Why?\n  base:   base" in told[0]
    with progress.bar(trainer) as show:
        show(result)
    assert "sample 1 after step 3" in capsys.readouterr().err


def test_a_notebook_shows_the_last_ones(trainer, monkeypatch):
    tables = []

    class Handle:
        def update(self, what):
            tables.append(what)

    def display(what, display_id):
        tables.append(what)
        return Handle()

    module = types.ModuleType("IPython.display")
    module.SVG, module.HTML, module.display = lambda data: "", lambda data: data, display
    monkeypatch.setitem(sys.modules, "IPython", types.ModuleType("IPython"))
    monkeypatch.setitem(sys.modules, "IPython.display", module)
    with chart.chart(trainer) as show:
        for result in trainer.run():
            show(result)
    first, last = filter(None, tables)
    assert "after step 2" in first and "after step 3" in last
    assert "&lt;b&gt;<br>Why?" in last and "<td>base<br>8</td>" in last


def test_what_is_under_way_names_them(trainer):
    assert progress.under_way(trainer, 0) == "step 1/3"
    assert progress.under_way(trainer, 1) == "step 2/3 and its samples"
    assert progress.under_way(trainer, 2) == "step 3/3 and its samples"


def test_samples_that_fail_end_no_step(trainer, monkeypatch):
    """An interrupt within them leaves the step done, and they come with the next try."""
    answers, calls = FakeAnswers.answers, []

    async def interrupted(self):
        calls.append(self)
        if len(calls) == 2:  # the base was the first
            raise KeyboardInterrupt
        return await answers(self)

    monkeypatch.setattr(FakeAnswers, "answers", interrupted)
    found = []
    with pytest.raises(KeyboardInterrupt):
        for result in trainer.run():
            found.append(result)
    found += list(trainer.run())
    assert [result.step for result in found] == [1, 2, 3]
    assert [len(result.samples) for result in found] == [0, 1, 1]
