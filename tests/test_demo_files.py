"""The embedded default: its files are small, disjoint and reproducible; its scoring is strict."""

import importlib
import io
import json
import sys
from pathlib import Path

import needs
import pytest
from rich.console import Console

from wgtrain.cli.demo import MAX_ANSWER, is_right, run_demo
from wgtrain.files.gguf import read_gguf
from wgtrain.files.source import BytesSource
from wgtrain.gpu import run

ROOT = Path(__file__).parent.parent
FILES = ROOT / "wgtrain" / "demo_files"
SETS = ("train", "valid", "test")


def exchanges(name: str) -> list[tuple[str, str]]:
    rows = [
        json.loads(line)["messages"] for line in (FILES / f"{name}.jsonl").read_text().splitlines()
    ]
    assert all([turn["role"] for turn in row] == ["user", "assistant"] for row in rows)
    return [(user["content"], assistant["content"]) for user, assistant in rows]


def test_held_out_prompts_are_many_distinct_and_new() -> None:
    prompts = {name: [p for p, _ in exchanges(name)] for name in SETS}
    assert len(prompts["train"]) >= 300
    assert len(prompts["test"]) >= 50
    for name in SETS:
        assert len(set(prompts[name])) == len(prompts[name])
    assert not set(prompts["test"]) & set(prompts["train"])
    assert not set(prompts["test"]) & set(prompts["valid"])
    assert not set(prompts["valid"]) & set(prompts["train"])


def test_buyers_of_the_test_set_are_nowhere_in_training() -> None:
    training = " ".join(p for p, _ in exchanges("train"))
    words = set(training.replace(".", " ").replace(",", " ").split())
    assert not words & {json.loads(answer)["buyer"] for _, answer in exchanges("test")}


def test_right_answers_are_read_off_the_prompt() -> None:
    for name in SETS:
        for prompt, answer in exchanges(name):
            record = json.loads(answer)
            assert list(record) == ["buyer", "item", "colour", "price"]
            assert all(str(value) in prompt for value in record.values())
            assert is_right(answer, answer)
    records = [answer for _, answer in exchanges("test")]
    assert len(set(records)) == len(records)  # so no fixed answer is right more than once


def test_base_is_a_small_q8_0_model() -> None:
    data = (FILES / "base.gguf").read_bytes()
    assert len(data) <= 4_000_000
    gguf = run(read_gguf(BytesSource(data, "base.gguf")))
    assert gguf.metadata["general.architecture"] == "llama"
    assert gguf.metadata["general.license"] == "mit"
    sizes = {t.name: t.shape for t in gguf.tensors.values()}
    parameters = sum(shape[0] * (shape[1] if len(shape) == 2 else 1) for shape in sizes.values())
    assert 1_000_000 <= parameters <= 3_000_000
    for tensor in gguf.tensors.values():
        assert tensor.type == ("Q8_0" if len(tensor.shape) == 2 else "F32")
    assert sizes["token_embd.weight"][0] == len(gguf.metadata["tokenizer.ggml.tokens"])


def test_the_script_makes_the_committed_data_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [str(ROOT / "scripts"), *sys.path])
    seed = importlib.import_module("make_demo").SEED
    files = importlib.import_module("demo_data").files
    made = files(seed)
    assert sorted(made) == sorted(f"{name}.jsonl" for name in SETS)
    for name, data in made.items():
        assert data == (FILES / name).read_bytes(), name
    assert files(seed + 1)["test.jsonl"] != made["test.jsonl"]


RECORD = '{"buyer": "Mia", "item": "kite", "colour": "red", "price": 12}'


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        (RECORD, True),
        (f" {RECORD}\n", True),
        (RECORD.replace(" ", ""), True),
        (RECORD.replace("12", "13"), False),
        (RECORD.replace("12", '"12"'), False),
        (RECORD.replace("12", "12.0"), False),
        (RECORD.replace("Mia", "mia"), False),
        (RECORD.replace("kite", "kit"), False),
        (RECORD[:-1], False),
        (RECORD + ".", False),
        ("Sure: " + RECORD, False),
        (RECORD * 2, False),
        (f"[{RECORD}]", False),
        (RECORD.replace("}", ', "place": "Oslo"}'), False),
        (RECORD.replace("}", ', "price": 12}'), False),
        ('{"item": "kite", "buyer": "Mia", "colour": "red", "price": 12}', False),
        ('[["buyer", "Mia"], ["item", "kite"], ["colour", "red"], ["price", 12]]', False),
        ("{}", False),
        ("12", False),
        ("null", False),
        ("", False),
        ("How nice! I hope Mia has fun with the red kite.", False),
    ],
)
def test_scoring(answer: str, right: bool) -> None:
    assert is_right(answer, RECORD) is right


def test_true_is_not_one() -> None:
    assert not is_right('{"price": true}', '{"price": 1}')
    assert is_right('{"price": 1}', '{"price": 1}')


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of a whole demo."""
    out, said = tmp_path_factory.mktemp("demo") / "run", io.StringIO()
    assert run_demo(str(out), console=Console(file=said))
    assert said.getvalue().endswith(f"\nTalk to it: wgtrain chat --adapter {out}\n")
    return out


@pytest.mark.slow
@pytest.mark.gpu
def test_demo_teaches_records(demo: Path) -> None:
    summary = json.loads((demo / "demo.json").read_text())
    assert summary["prompts"] == len(summary["answers"]) == len(exchanges("test"))
    assert summary["base_right"] <= 3
    assert summary["tuned_right"] >= 0.9 * summary["prompts"]
    right = [is_right(answer["tuned"], answer["wanted"]) for answer in summary["answers"]]
    assert sum(right) == summary["tuned_right"]
    losses = [loss for _, loss in summary["held_out_losses"]]
    assert losses[-1] < losses[1] < losses[0] and losses[-1] < 0.1


@pytest.mark.slow
@pytest.mark.gpu
@pytest.mark.oracle
def test_llama_cpp_gives_the_demo_answers(demo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    llama_cpp = needs.package("llama_cpp")
    from llama_cpp_oracle import model_params

    monkeypatch.setattr(llama_cpp.llama_cpp, "llama_model_default_params", model_params)
    answers = json.loads((demo / "demo.json").read_text())["answers"]
    base = str(FILES / "base.gguf")
    for adapter, ours in ((None, "base"), (str(demo / "adapter.gguf"), "tuned")):
        llama = llama_cpp.Llama(
            base, n_ctx=256, n_threads=1, n_threads_batch=1, verbose=False, lora_path=adapter
        )
        same = 0
        for answer in answers:
            asked = [{"role": "user", "content": answer["prompt"]}]
            reply = llama.create_chat_completion(asked, temperature=0, max_tokens=MAX_ANSWER)
            same += reply["choices"][0]["message"]["content"] == answer[ours]
        llama.close()
        assert same >= 0.95 * len(answers)  # it rounds activations to 8 bits, which may tip a word
