"""`wgtrain eval` from outside: which rows, under what, in which words; what is refused."""

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from needs import ROOT
from test_cli import wgtrain as command

import wgtrain
from wgtrain.cli.demo import BASE, FILES
from wgtrain.runs import session

pytestmark = pytest.mark.gpu
SETTINGS: dict[str, Any] = {
    "model": str(BASE),
    "rank": 2,
    "iters": 3,
    "batch_size": 4,
    "learning_rate": 0.01,
    "target_modules": "q_proj,v_proj",
    "eval_every": 0,
    "save_every": 0,
}
Eval = Callable[..., tuple[int, str, str]]


def some(source: str, path: Path, n: int) -> Path:
    """The first rows of one of the demo's files."""
    lines = (FILES / source).read_text("utf-8").splitlines(keepends=True)[:n]
    path.write_text("".join(lines), "utf-8")
    return path


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data in a folder, and two runs: with a file of validation rows, and with a part held out."""
    folder = tmp_path_factory.mktemp("eval")
    (folder / "data").mkdir()
    for name, n in (("train", 12), ("valid", 5), ("test", 4)):
        some(f"{name}.jsonl", folder / "data" / f"{name}.jsonl", n)
    runs = {
        "run": {"data": str(folder / "data"), "seq_len": 50, "train_on": "all"},
        "part": {"data": str(folder / "data" / "train.jsonl"), "valid": 0.3},
    }
    for name, more in runs.items():
        settings = {**SETTINGS, **more, "out": str(folder / name)}
        assert session.start(settings, lambda text: None)
    return folder


@pytest.fixture
def evaluate(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Eval:
    """(exit code, standard output, standard error) of the command, within the folder."""
    monkeypatch.chdir(place)
    return lambda *arguments: command(capsys, "eval", *arguments)


def last_loss(run: str) -> float:
    found: float = json.loads(Path(run, "summary.json").read_text())["last_eval_loss"]
    return found


@pytest.mark.parametrize("run", ["run", "part"])
def test_a_run_knows_its_model_and_its_validation_rows(evaluate: Eval, run: str) -> None:
    code, text, error = evaluate("--adapter", run, "--json")
    assert code == 0, error
    found = json.loads(text)
    assert found["loss"] == pytest.approx(last_loss(run), rel=1e-6)
    assert found["rows"] == {"run": 5, "part": 4}[run] and found["seconds"] > 0
    assert found["trained_tokens"] < found["tokens"] and found["perplexity"] > 1
    assert [row["line"] for row in found["row_losses"]] == (
        [1, 2, 3, 4, 5] if run == "run" else sorted(row["line"] for row in found["row_losses"])
    )
    rows = "valid.jsonl" if run == "run" else "train.jsonl, the 30 % of it that were held out"
    assert f"evaluating the validation rows of {run}: " in error and rows in error
    told = "rows are read as for run: --seq-len 50 --train-on all"
    assert (told in error) is (run == "run")


def test_rows_are_found_again_or_not_at_all(
    evaluate: Eval, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(place, moved)
    summary = json.loads((moved / "run" / "summary.json").read_text())
    summary["inputs"]["valid"]["path"] = str(tmp_path / "gone.jsonl")
    (moved / "run" / "summary.json").write_text(json.dumps(summary))
    monkeypatch.chdir(moved)
    code, text, error = evaluate("--adapter", "run", "--json")
    assert code == 0 and json.loads(text)["loss"] == pytest.approx(last_loss("run"), rel=1e-6)
    some("test.jsonl", moved / "data" / "valid.jsonl", 3)
    code, _, error = evaluate("--adapter", "run")
    assert code == 2 and "has changed since the run in run was started; --data names rows" in error
    (moved / "data" / "valid.jsonl").unlink()
    code, _, error = evaluate("--adapter", "run")
    assert code == 2 and "validation rows of run: " in error and "--data names rows" in error
    shutil.copy(place / "data" / "valid.jsonl", moved / "data")
    summary["inputs"]["test"] = summary["inputs"].pop("valid")
    (moved / "run" / "summary.json").write_text(json.dumps(summary))
    code, text, error = evaluate("--adapter", "run", "--json")
    assert code == 0 and json.loads(text)["loss"] == pytest.approx(last_loss("run"), rel=1e-6)
    assert "evaluating the test rows of run: " in error
    del summary["inputs"]["test"]
    (moved / "run" / "summary.json").write_text(json.dumps(summary))
    code, _, error = evaluate("--adapter", "run")
    assert code == 2 and "--data: needed: run had no validation or test rows; a file" in error


def test_a_folder_gives_its_test_rows_or_its_validation_rows(
    evaluate: Eval, tmp_path: Path
) -> None:
    losses = {}
    for name in ("test.jsonl", "valid.jsonl"):
        shutil.copy(f"data/{name}", tmp_path / name)
        arguments = ["--model", str(BASE), "--json", "--data"]
        losses[name] = json.loads(evaluate(*arguments, f"data/{name}")[1])["loss"]
    for name in ("test.jsonl", "valid.jsonl"):
        code, text, error = evaluate(*arguments, str(tmp_path))
        assert code == 0 and f"evaluating {tmp_path / name}" in error
        assert json.loads(text)["loss"] == losses[name]
        (tmp_path / name).unlink()
    code, _, error = evaluate(*arguments, str(tmp_path))
    assert code == 2
    assert f"{tmp_path}: neither test.jsonl nor valid.jsonl is in this folder" in error


def test_each_option_changes_what_is_found(evaluate: Eval, tmp_path: Path) -> None:
    template = tmp_path / "other.jinja"
    template.write_text(
        "{% for m in messages %}<|im_start|>{{ m.role }}:{{ word }}\n{{ m.content }}<|im_end|>"
        "\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant:{{ word }}\n{% endif %}"
    )
    rows = tmp_path / "two.jsonl"
    both = {"text": "a red dog", "prompt": "a red", "completion": " dog"}
    rows.write_text(json.dumps(both) + "\n")
    plain = ["--model", str(BASE), "--data", "data/test.jsonl", "--json"]
    adapter = str(Path("part", "adapter.gguf"))
    config = tmp_path / "stack.json"
    listed = [{"path": str(Path("part").absolute()), "scale": 2.0}]
    config.write_text(json.dumps({"model": {"path": str(BASE)}, "lora_adapters": listed}))
    cases = {
        "plain": [],
        "limit": ["--limit", "2"],
        "seq_len": ["--seq-len", "30"],
        "train_on": ["--train-on", "all"],
        "chat_template": ["--chat-template", str(template)],
        "template_args": ["--chat-template", str(template), "--template-args", '{"word": "!"}'],
        "adapter": ["--adapter", adapter],
        "scale": ["--adapter", f"{adapter}:-1"],
        "config": ["--config", str(config)],
    }
    losses = {}
    for name, more in cases.items():
        code, text, error = evaluate(*plain, *more)
        assert code == 0, error
        losses[name] = json.loads(text)["loss"]
    assert len(set(losses.values())) == len(losses), losses
    code, text, _ = evaluate(*plain, "--no-mask-prompt")
    assert json.loads(text)["loss"] == losses["train_on"]
    kinds = []
    for kind in ("text", "prompt"):
        code, text, error = evaluate(*plain[:3], str(rows), "--json", "--kind", kind)
        assert code == 0, error
        kinds.append(json.loads(text)["trained_tokens"])
    assert kinds[0] > kinds[1]
    assert evaluate(*plain[:3], str(rows))[0] == 2
    code, _, error = evaluate(*plain, "--batch-size", "2", "--gpu-memory", "1MB")
    assert code == 3, error
    for size in ("2", "1"):
        _, text, _ = evaluate(*plain, "--batch-size", size)
        assert json.loads(text)["loss"] == pytest.approx(losses["plain"], rel=1e-6)


def test_system_messages_may_go_before_the_question(evaluate: Eval, tmp_path: Path) -> None:
    chat = [
        {"role": "system", "content": "short"},
        {"role": "user", "content": "a dog?"},
        {"role": "assistant", "content": "yes"},
    ]
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"messages": chat}) + "\n")
    losses = []
    for how in ("keep", "merge"):
        code, text, error = evaluate(
            "--model", str(BASE), "--data", str(rows), "--system", how, "--json"
        )
        assert code == 0, error
        losses.append(json.loads(text)["loss"])
    assert losses[0] != losses[1]


def test_answers_are_compared_with_those_of_rows(evaluate: Eval, tmp_path: Path) -> None:
    """Rows whose answers are what the base says, but for white space, and one that is not."""
    prompts = ["Tom bought a red ball.", "Ann sold a hat."]
    with wgtrain.load_model(BASE, limits="default") as model:
        asked = [[{"role": "user", "content": text}] for text in prompts]
        said = ["".join(model.generate(messages, max_tokens=40)) for messages in asked]
    assert all(len(text) > 20 for text in said)
    rows = [
        {"instruction": prompts[0], "output": said[0].replace(" ", "\n  ", 1)},
        {"instruction": prompts[1], "output": said[1][:-1] + "#"},
        {"instruction": prompts[1], "output": " long" * 60},
        {"text": prompts[0]},
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = ["--model", str(BASE), "--data", str(path), "--exact-match", "--max-tokens", "40"]
    code, text, error = evaluate(*arguments, "--json")
    assert code == 0, error
    found = json.loads(text)
    assert [one["answers"] for one in found["answers"]] == [[said[0]], [said[1]]]
    assert found["exact_match"] == {"asked": 2, "right": 1, "wrong_lines": [2]}
    assert sorted(found["notes"]) == [
        "1 row not asked: an answer of more than 40 tokens",
        "1 row not asked: no prompt, it is trained from its first token on",
    ]
    code, text, _ = evaluate(*arguments, "--samples", "1", "--answers", "all")
    assert code == 0
    assert "exact answers: 1 of 2 (50 %); not those of lines 2\n" in text
    assert text.count("  prompt  ") == 1 and f"  base    {said[0]}" in text
    code, text, _ = evaluate(*arguments, "--answers", "1")
    assert "exact answers: 1 of 1 (100 %)\n" in text and "  prompt  " not in text
    code, _, error = evaluate(*arguments, "--train-on", "all")
    assert code == 2 and "no row of" in error and "can be asked\n4 rows not asked" in error


def test_side_by_side(evaluate: Eval, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    arguments = ["--adapter", "part", "--adapter", "run:0.5", "--data", "data/test.jsonl"]
    arguments += ["--limit", "2", "--compare", "--answers", "1", "--max-tokens", "40"]
    code, text, error = evaluate(*arguments, "--html", str(page), "--json")
    assert code == 0, error
    found = json.loads(text)
    compared = found["compared"]
    base, *single, whole = [one["loss"] for one in compared]
    assert [one["scales"] for one in compared] == [[], [1.0], [0.5], [1.0, 0.5]]
    names = ["base", "+ part", "+ run:0.5", "+ part + run:0.5"]
    assert [one["name"] for one in compared] == names and "× 0.5" not in page.read_text("utf-8")
    assert found["loss"] == whole and len({base, *single, whole}) == 4
    one = ["--model", str(BASE), "--data", "data/test.jsonl", "--limit", "2", "--json"]
    assert json.loads(evaluate(*one)[1])["loss"] == base
    assert json.loads(evaluate(*one, "--adapter", "run:0.5", "--seq-len", "512")[1])["loss"] != base
    assert len(found["answers"]) == 1 and len(found["answers"][0]["answers"]) == 4
    assert f"written to {page}" in error
    assert page.read_text("utf-8").startswith("<!doctype html>")
    code, _, error = evaluate(*arguments, "--html", str(page))
    assert code == 2 and "exists already; --force replaces it" in error
    page.write_text("mine")
    code, text, error = evaluate(*arguments, "--html", str(page), "--force")
    assert code == 0 and f"written to {page}\n" in text
    assert page.read_text("utf-8").startswith("<!doctype html>")
    table = [line.split() for line in text.splitlines() if " of 2 " in line or "base " in line]
    assert f"{base:.4f}" in table[0] and f"{whole:.4f}" in table[3]
    assert "  wanted " in text, "samples are shown"


def test_rows_that_are_cut_or_left_out_are_told(evaluate: Eval, tmp_path: Path) -> None:
    rows, page = tmp_path / "rows.jsonl", tmp_path / "page.html"
    pairs = [("Hi", " there"), ("a b " * 300, " c"), ("a", " b" * 600)]
    rows.write_text("".join(json.dumps({"prompt": p, "completion": c}) + "\n" for p, c in pairs))
    arguments = ["--model", str(BASE), "--data", str(rows), "--seq-len", "300"]
    notes = [
        "rows: 2 cut at 300 tokens",
        "rows: 1 dropped, no token of them counts",
        "rows of up to 300 tokens, but the model was made for 256",
    ]
    code, text, error = evaluate(*arguments, "--html", str(page))
    assert code == 0 and set(notes) <= set(text.splitlines()), error
    assert all(note in page.read_text("utf-8") for note in notes)
    assert json.loads(evaluate(*arguments, "--json")[1])["notes"] == notes
    code, text, _ = evaluate("--model", str(BASE), "--data", "data/test.jsonl")
    assert code == 0 and "rows of" not in text and "rows: " not in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", BASE], "--data: needed: a file of rows, or a folder with test.jsonl"),
        (["--data", "data"], "--model: needed; "),
        (["--adapter", "run", "--adapter", "part"], "valid.jsonl; several runs are named"),
        (["--model", BASE, "--data", "data", "--compare"], "--compare: there is no adapter"),
        (["--model", BASE, "--data", "data", "--answers", "3"], "--answers: only with"),
        (["--model", BASE, "--data", "data", "--samples", "3"], "--samples: only with"),
        (["--model", BASE, "--data", "data", "--force"], "--force: only with --html"),
        (
            ["--model", BASE, "--data", "data", "--exact-match", "--answers", "-1"],
            "--answers -1: allowed is all, or a whole number above 0",
        ),
        (["--model", BASE, "--data", "data", "--limit", "0"], "--limit"),
        (["--model", BASE, "--data", "no.jsonl"], "no.jsonl: No such file"),
        (["--model", BASE, "--data", "data", "--html", "no/page.html"], "there is no folder"),
        (["--model", BASE, "--data", "data", "--batch-size", "0"], "--batch-size 0: allowed"),
        (["--adapter", "run", "--data", "data", "--html", "data/test.jsonl"], "also the input"),
    ],
)
def test_what_cannot_be_is_refused(evaluate: Eval, arguments: list[Any], message: str) -> None:
    before = sorted(os.listdir())
    code, text, error = evaluate(*arguments)
    assert code == 2 and message in error, error
    assert text == "" and sorted(os.listdir()) == before


def test_the_page_in_docs(
    place: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Its commands, then its program."""
    text = (ROOT / "docs" / "evaluate.md").read_text("utf-8")
    (commands,) = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
    (program,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    shutil.copytree(place / "data", tmp_path / "data")
    shutil.copy(BASE, tmp_path / "base.gguf")
    monkeypatch.chdir(tmp_path)
    said = []
    for line in commands.splitlines():
        name, *arguments = line.split()
        assert name == "wgtrain"
        code, out, error = command(capsys, *arguments)
        assert code == 0, error
        said.append(out)
    summary = json.loads(Path("run/summary.json").read_text())
    assert f"loss {summary['last_eval_loss']:.4f}" in said[1]
    assert f"loss {summary['test_loss']:.4f}" in said[2] and "exact answers: " in said[2]
    rows = [line for line in said[3].splitlines() if "base " in line]
    assert f"{summary['base_test_loss']:.4f}" in rows[0] and Path("page.html").is_file()
    assert json.loads(said[4])["rows"] == 3
    exec(compile(program, "docs/evaluate.md", "exec"), {})
    out = capsys.readouterr().out
    assert out.startswith(str(summary["test_loss"])[:6]) and "tuned" in out
    assert Path("compared.html").read_text("utf-8").startswith("<!doctype html>")
