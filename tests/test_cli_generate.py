"""`wgtrain generate` from outside: what is asked and drawn, where it goes, what is refused."""

import io
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import demo_model
import pytest
from demo_model import BASE, Terminal, type_in
from needs import ROOT
from test_cli import wgtrain

import wgtrain as package
from wgtrain.cli import using
from wgtrain.cli.answering import Answer, Screen
from wgtrain.errors import OptionError
from wgtrain.infer.generation import Piece, Token
from wgtrain.infer.model import Model

pytestmark = pytest.mark.gpu

ASKED = "Who are you?"
MESSAGE = ("--model", BASE, "--message", ASKED)
RAW = "a prompt is continued as it stands; messages go through the chat template\n"
SYSTEM = [{"role": "system", "content": "Be brief."}]


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a run on the demo's model."""
    return demo_model.train(tmp_path_factory.mktemp("runs") / "one")


@pytest.fixture(scope="module")
def model():
    with package.load_model(BASE) as opened:
        yield opened


def generate(capsys, *arguments):
    """(text, what was said beside it)."""
    code, out, error = wgtrain(capsys, "generate", *arguments)
    assert code == 0, error
    return out, error


def facts(capsys, *arguments):
    return json.loads(generate(capsys, *arguments, "--json")[0])


def test_the_text_alone_goes_to_standard_output(capsys, model):
    messages = [{"role": "user", "content": ASKED}]
    said = "".join(model.generate(messages))
    assert said and generate(capsys, *MESSAGE) == (said, "")
    told = "".join(model.generate("Hello", max_tokens=9))
    prompt = ("--model", BASE, "--prompt", "Hello", "--max-tokens", 9)
    assert generate(capsys, *prompt) == (told, RAW)
    text, stats = generate(capsys, *MESSAGE, "--stats", "--max-tokens", "2")
    assert said.startswith(text) and stats.startswith("12 tokens and 2 new, the first ")
    assert " s, then " in stats and stats.endswith("cut after 2 tokens; --max-tokens allows more\n")


def test_json(capsys, model):
    found = facts(capsys, *MESSAGE)
    ids = model.tokenizer.encode(found["text"])
    assert found == {
        "text": generate(capsys, *MESSAGE)[0],
        "finish_reason": "stop",
        "prompt_tokens": len(model.prompt([{"role": "user", "content": ASKED}])),
        "completion_tokens": len(ids),
    }
    cut = facts(capsys, *MESSAGE, "--max-tokens", "2")
    assert (cut["finish_reason"], cut["completion_tokens"]) == ("length", 2)


@pytest.mark.parametrize("option", ["--prompt", "--message"])
def test_standard_input(capsys, monkeypatch, option):
    given = generate(capsys, "--model", BASE, option, "Tell me ü", "--max-tokens", 5)
    type_in(monkeypatch, "Tell me ü\r\n")
    assert generate(capsys, "--model", BASE, option, "-", "--max-tokens", 5) == given


# An option -> what it is given beside, and what must hold of the text with it and without.
DRAWN = {
    "--max-tokens 3": ("", lambda new, old: old.startswith(new) and new != old),
    "--stop tiny": ("", lambda new, old: new == old[: old.index("tiny")]),
    "--temperature 2": ("", lambda new, old: new != old),
    "--seed 1": ("--temperature 2", lambda new, old: new != old),
    "--top-k 2": ("--temperature 2", lambda new, old: new != old),
    "--top-p 0.3": ("--temperature 2", lambda new, old: new != old),
    "--min-p 0.4": ("--temperature 2", lambda new, old: new != old),
    "--repeat-penalty 3": ("", lambda new, old: new != old),
}


@pytest.mark.parametrize("option", DRAWN)
def test_each_option_changes_the_answer(capsys, option):
    beside, holds = DRAWN[option]
    old = generate(capsys, *MESSAGE, "--max-tokens", "24", *beside.split())[0]
    new = generate(capsys, *MESSAGE, "--max-tokens", "24", *beside.split(), *option.split())[0]
    assert holds(new, old), (new, old)


def test_a_system_message_and_another_template(capsys, model):
    ids = model.prompt([*SYSTEM, {"role": "user", "content": ASKED}])
    assert facts(capsys, *MESSAGE, "--system", "Be brief.")["prompt_tokens"] == len(ids)
    Path("t.jinja").write_text("{{ mood }}{{ messages[-1].content }}")
    other = (*MESSAGE, "--max-tokens", "5", "--chat-template", "t.jinja")
    plain = model.tokenizer.encode(ASKED)
    assert facts(capsys, *other)["prompt_tokens"] == len(plain)
    for name in ("--template-args", "--chat-template-kwargs"):
        found = facts(capsys, *other, name, '{"mood": "x y z "}')
        assert found["prompt_tokens"] == len(model.tokenizer.encode("x y z " + ASKED))
    Path("t.jinja").write_text(
        "{% if messages[0].role == 'system' %}{{ raise_exception('none') }}{% endif %}"
        "{{ messages[0].content }}"
    )
    text, said = generate(capsys, *other, "--system", "Be brief.", "--json")
    merged = model.tokenizer.encode(f"Be brief.\n\n{ASKED}")
    assert json.loads(text)["prompt_tokens"] == len(merged)
    assert said == "the chat template takes no system message: it goes before the user's turn\n"


def test_adapters(capsys, model, run):
    base = generate(capsys, *MESSAGE, "--max-tokens", "9")[0]
    alone = ("--message", ASKED, "--max-tokens", "9", "--adapter")
    tuned, said = generate(capsys, *alone, run)
    assert tuned != base and said == f"using {BASE}: the base that the adapter was trained on\n"
    checkpoint = max((run / "checkpoints").iterdir())
    for named in (run / "adapter.gguf", checkpoint):
        assert generate(capsys, *alone, named)[0] == tuned
    for scale, wanted in (("1", tuned), ("0", base)):
        given = ("--model", BASE, *alone, f"{run}:{scale}")
        assert generate(capsys, *given) == (wanted, "")
    twice = generate(capsys, *alone, f"{run}:0.5", "--adapter", f"{checkpoint}:0.5")[0]
    assert twice == tuned
    code, _, error = wgtrain(capsys, "generate", *alone, run, "--adapter", run / "adapter.gguf")
    assert code == 2 and f"{run / 'adapter.gguf'}: an adapter is named twice" in error


def test_runs_of_other_bases(capsys, tmp_path, run):
    other = tmp_path / "other.gguf"
    other.write_bytes(BASE.read_bytes())
    second = demo_model.train(tmp_path / "two", model=str(other), iters=1)
    both = ("--message", ASKED, "--adapter", run, "--adapter", second)
    code, _, error = wgtrain(capsys, "generate", *both)
    assert code == 2 and f"--model: needed; {run} was trained with model = {BASE}, " in error
    assert generate(capsys, *both, "--model", BASE, "--max-tokens", "1")
    other.unlink()
    code, _, error = wgtrain(capsys, "generate", "--message", ASKED, "--adapter", second)
    assert code == 2 and "other.gguf: No such file" in error and "--model names it" in error
    assert generate(capsys, *both, "--model", BASE, "--max-tokens", "1")


def test_a_run_is_asked_as_it_was_trained(capsys, tmp_path, run):
    Path("t.jinja").write_text(
        "<|im_start|>{{ messages[0].content }}\n{% for m in messages[1:] %}"
        "{{ m.content }}<|im_end|>{% endfor %}"
    )
    odd = demo_model.train(tmp_path / "odd", chat_template="t.jinja", iters=1)
    Path("t.jinja").unlink()
    text, said = generate(capsys, "--message", ASKED, "--adapter", odd, "--json")
    assert json.loads(text)["prompt_tokens"] < facts(capsys, *MESSAGE)["prompt_tokens"]
    assert said == f"using {BASE}: the base that the adapter was trained on\n"
    both = ("--model", BASE, "--message", ASKED, "--adapter", run, "--adapter", odd)
    _, said = generate(capsys, *both, "--max-tokens", "1")
    assert said.startswith("warning: ") and "wrote conversations in different ways" in said


def test_a_configuration(capsys, run):
    config = {"model": {"path": str(BASE)}, "lora_adapters": [{"path": str(run), "scale": 0.0}]}
    Path("c.json").write_text(json.dumps(config))
    base = generate(capsys, *MESSAGE, "--max-tokens", "9")[0]
    given = ("--config", "c.json", "--message", ASKED, "--max-tokens", "9")
    assert generate(capsys, *given) == (base, "")
    tuned, _ = generate(capsys, *given, "--adapter", run)  # in place of those in the file
    assert tuned != base
    config["lora_adapters"].insert(0, {"path": "gone.gguf"})
    Path("c.json").write_text(json.dumps(config))
    text, said = generate(capsys, *given)
    assert text == base
    assert said == "warning: the adapter gone.gguf is skipped: No such file or directory\n"
    Path("c.json").write_text(json.dumps({**config, "on_error": "error"}))
    code, _, error = wgtrain(capsys, "generate", *given)
    assert code == 2 and error == "error: gone.gguf: No such file or directory\n"
    Path("c.json").write_text(json.dumps({"model": {"path": str(BASE), "rank": 3}}))
    code, _, error = wgtrain(capsys, "generate", *given)
    assert code == 2 and "c.json: model: unknown 'rank'; allowed are path, " in error


def test_settings_of_runs(monkeypatch):
    """A run's own go under those of a configuration, and these under the command line."""
    first = {"model": "m", "precision": "f16", "quantize_base": "nf4", "system": "merge"}
    runs = {"a": first, "b": {**first, "quantize_base": "int8"}, "c": None}
    monkeypatch.setattr(using, "model_of_run", runs.get)
    for name in runs:
        Path(name).touch()
    said = []

    def wanted(**given):
        said.clear()
        paths = using.read_wanted(given, said.append).paths
        return paths.model, paths.precision, paths.quantize_base, paths.system

    assert wanted(adapter=("a", "c")) == ("m", "f16", "nf4", "merge")
    own = ": the base that the adapter was trained on"
    assert said == [f"using m, quantize_base nf4, precision f16{own}"]
    given = {"adapter": ("a",), "precision": "f32", "quantize_base": "int4"}
    assert wanted(**given) == ("m", "f32", "int4", "merge")
    assert said == [f"using m, quantize_base int4{own}"]
    assert wanted(adapter=("a",), model="other") == ("other", "f32", None, "merge")
    assert said == []
    with pytest.raises(OptionError, match="a was trained with quantize_base = nf4, b with int8"):
        wanted(adapter=("a", "b"))
    config = {"model": {"path": "theirs", "precision": "f16", "system": "keep"}}
    Path("c.json").write_text(json.dumps({**config, "lora_adapters": [{"path": "b"}]}))
    assert wanted(config_file="c.json") == ("theirs", "f16", None, "keep")
    assert wanted(config_file="c.json", model="mine") == ("mine", "f16", None, "keep")


def test_what_the_model_is_opened_with(monkeypatch):
    opened = []

    def load(path, **options):
        opened.append((path, options))
        raise OptionError("enough")

    monkeypatch.setattr("wgtrain.api.load_model", load)
    given = {"model": "m", "adapter_index": "3", "precision": "f16", "quantize_base": "int8"}
    with pytest.raises(OptionError, match="enough"), using.opened({**given, "gpu_memory": "2MiB"}):
        pass
    options = {**given, "adapter_index": 3, "gpu_memory": 2 << 20}
    assert opened == [(options.pop("model"), options)]


# ---- many ---------------------------------------------------------------------------------------

ROWS = [
    {"prompt": "Hello", "id": 7},
    {"messages": [*SYSTEM, {"role": "user", "content": ASKED}], "tools": None},
    {"prompt": "The ü", "completion": "kept"},
    {"prompt": [{"role": "user", "content": ASKED}]},
]


def write(rows, name="p.jsonl"):
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return name


def test_many_prompts(capsys, monkeypatch, model):
    given = ("--model", BASE, "--max-tokens", "6", "--prompts", write(ROWS))
    out, said = generate(capsys, *given)
    found = [json.loads(line) for line in out.splitlines()]
    assert said == RAW and len(found) == 4
    for row, answer in zip(ROWS, found, strict=True):
        prompt = row.get("prompt") or row["messages"]
        text = "".join(model.generate(prompt, max_tokens=6))
        assert answer["text"] == text and answer["finish_reason"] in ("stop", "length")
        assert {**answer, **row} == answer
    assert found[0]["prompt_tokens"] == 1 and "ü" in out
    type_in(monkeypatch, Path("p.jsonl").read_bytes())
    assert generate(capsys, *given[:-1], "-")[0] == out
    assert generate(capsys, *given, "--out", "o.jsonl")[0] == ""
    assert Path("o.jsonl").read_text(encoding="utf-8") == out
    code, _, error = wgtrain(capsys, "generate", *given, "--out", "o.jsonl")
    assert code == 2 and error == "error: o.jsonl: exists already; --force replaces it\n"
    Path("o.jsonl").write_text("old")
    generate(capsys, *given, "--out", "o.jsonl", "--force")
    assert Path("o.jsonl").read_text(encoding="utf-8") == out
    assert sorted(os.listdir()) == ["o.jsonl", "p.jsonl"]


def test_rows_come_as_soon_as_those_before_are_there(capsys, monkeypatch):
    """In their order, whichever is ready first; cut short, they stay in a file of another name."""
    token = Token(0, b"", 0.0, ())

    def answers(self, requests, adapters=None):
        assert [request.max_tokens for request in requests] == [4, 4, 4, 4]
        yield Piece(2, "c", (token,), finish="stop")
        yield Piece(0, "th", (token,), thought=True)
        yield Piece(0, "a", (token, token), finish="length")
        yield Piece(1, "b", (token,))
        raise KeyboardInterrupt

    monkeypatch.setattr(Model, "answers", answers)
    given = ("generate", "--model", BASE, "--max-tokens", "4", "--prompts", write(ROWS))
    code, out, error = wgtrain(capsys, *given)
    added = {"text": "a", "reasoning_content": "th", "finish_reason": "length"}
    first = {**ROWS[0], **added, "prompt_tokens": 1, "completion_tokens": 3}
    assert code == 130 and json.loads(out) == first and error == f"{RAW}\ninterrupted\n"
    code, out, error = wgtrain(capsys, *given, "--out", "o.jsonl")
    assert code == 130 and "the answers up to here are in o.jsonl.part" in error
    assert json.loads(Path("o.jsonl.part").read_text()) == first and not Path("o.jsonl").exists()
    code, _, error = wgtrain(capsys, *given, "--out", "o.jsonl")
    assert code == 2 and "o.jsonl.part: answers of an earlier try" in error


WRONG_ROWS = {
    "[1]": "line 1: no JSON object",
    '{"a": 1}': "line 1: fields 'prompt' and 'messages': neither is in it",
    '{"prompt": "a", "messages": []}': "line 1: fields 'prompt' and 'messages': both stand in it",
    '\n{"prompt": 3}': "line 2: field 'prompt': 3 is not a text",
    '{"prompt": "a", "text": "b"}': "line 1: field 'text' is there already",
    '{"prompt": "a", "tools": []}': "line 1: field 'tools': only 'messages' go through",
    '{"messages": []}': "line 1: field 'messages': is empty",
    '{"messages": [{"role": "assistant", "content": "a"}]}': "the last one is the assistant's",
    '{"messages": [{"role": "user", "content": "a"}], "chat_template_kwargs": {"b": 1}}': (
        "line 1: --template-args 'b': the chat template does not read it"
    ),
    json.dumps({"prompt": "a " * 300}): "line 1: the prompt has ",
    "": "no rows in it",
    "{": "line 1: no JSON: ",
}


@pytest.mark.parametrize("content", WRONG_ROWS)
def test_wrong_rows(capsys, content):
    Path("p.jsonl").write_text(content)
    code, out, error = wgtrain(capsys, "generate", "--model", BASE, "--prompts", "p.jsonl")
    assert (code, out) == (2, "") and error.startswith("error: p.jsonl")
    assert WRONG_ROWS[content].replace("--template-args", "template_args =") in error, error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--model {base}", "--prompt, --message, --prompts: one of them is needed, and only one"),
        ("--model {base} --prompt a --message b", "--prompt, --message, --prompts: one of"),
        ("--prompt a", "--model: needed; a GGUF file, or a Hugging Face folder\n"),
        ("--prompt a --adapter {base}", "of these adapters none is a run, which knows its own"),
        ("--prompt a --adapter runs/gone", "error: runs/gone: No such file or directory\n"),
        ("--model gone --prompt a --adapter runs/gone", "error: runs/gone: No such file"),
        ("--prompt a --adapter .", "no adapter_model.safetensors is in it; there is 'p.jsonl'"),
        ("--model {run} --prompt a", "an adapter, not a base model; --adapter uses it"),
        ("--model {run}/adapter.gguf --prompt a", "an adapter, not a base model; --adapter uses"),
        ("--model {base} --prompt a --system b", "--system: it goes with --message"),
        ("--model {base} --prompt a --out b", "--out: only with --prompts"),
        ("--model {base} --prompt a --force", "--force: only with --prompts"),
        ("--model {base} --prompts a --json", "--json: not with --prompts"),
        ("--model {base} --prompts a --stats", "--stats: not with --prompts"),
        ("--model {base} --prompts p.jsonl --force", "--force: only with --out"),
        ("--model {base} --prompts p.jsonl --out no/o", "no/o: there is no folder"),
        ("--model {base} --prompts p.jsonl --out p.jsonl", "the output is also the input"),
        ("--model {base} --prompts gone", "gone: No such file"),
        ("--model {base} --prompt a --temperature -1", "--temperature -1.0: allowed is a number"),
        ("--model {base} --prompt a --top-k x", "--top-k x: allowed is a whole number"),
        ("--model {base} --prompt a --max-tokens -1", "--max-tokens -1: allowed is"),
        ("--model {base} --prompt a --max-tokens 999", "--max-tokens 999: the prompt has 1"),
        ("--model {base} --prompt a --stop=", "--stop '': allowed is a text of one character"),
        ("--model {base} --prompt a --adapter x:y", "--adapter 'x:y': allowed is PATH"),
        ("--model {base} --prompt a --adapter gone", "gone: No such file"),
        ("--model {base} --prompt a --adapter {base}", "base.gguf: "),
        ("--model {base} --prompt a --config gone.json", "gone.json: No such file"),
        ("--model {base} --prompt a --precision f8", "--precision f8: allowed is f32 or f16"),
        ("--model {base} --prompt a --chat-template gone", "gone: No such file"),
        ("--model {base} --message a --template-args [1]", "--template-args [1]: allowed is"),
        (
            "--model {base} --prompt a --gpu-memory 1",
            "needs 16 bytes, 0 are in use and the budget is 1",
        ),
        ("--model {base} --prompt a --quantize-base nf5", "--quantize-base nf5: allowed is"),
        ("--model {base} --prompt a --adapter-index 99", "adapter"),
        ("--model {base} --prompt a --temp 1", "did you mean --temperature?"),
        ("--model {base} --prompt a --n-predict 1", "did you mean --max-tokens?"),
        ("--model {base} --prompt a --lora x", "did you mean --adapter?"),
        ("{base}", "files are named by --model FILE"),
    ],
)
def test_unusable_input(capsys, run, arguments, message):
    write(ROWS)
    given = arguments.format(base=BASE, run=run).split()
    code, out, error = wgtrain(capsys, "generate", *given)
    assert code in (2, 3) and out == "" and message in error, error


def test_empty_standard_input_and_half_characters(capsys, monkeypatch):
    for text, said in ((b"", "--prompt -: standard input is empty"), (b"\xff", "UTF-8 at byte 0")):
        type_in(monkeypatch, text)
        code, _, error = wgtrain(capsys, "generate", "--model", BASE, "--prompt", "-")
        assert code == 2 and said in error
    code, _, error = wgtrain(capsys, "generate", "--model", BASE, "--message", "\udcff")
    assert (code == 2 and "--message: holds" in error) or "surrogate" in error


# ---- where it goes ------------------------------------------------------------------------------


def show(out, *pieces):
    screen = Screen(out)
    for text, thought in pieces:
        screen.show(Piece(0, text, (), thought))
    screen.end()
    return out.getvalue()


def test_thoughts_are_dimmed_in_a_terminal_alone(monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    pieces = (("hm", True), ("m\n", True), ("a", False), ("\x1b[2Jb", False))
    assert show(io.StringIO(), *pieces) == "a\x1b[2Jb"
    assert show(Terminal(), *pieces) == "\x1b[2mhmm\n\x1b[0m\na\\x1b[2Jb\n"
    assert show(Terminal(), ("hm", True)) == "\x1b[2mhm\x1b[0m\n\n"
    for name, value in (("NO_COLOR", "1"), ("TERM", "dumb")):
        with monkeypatch.context() as patch:
            patch.setenv(name, value)
            assert show(Terminal(), *pieces) == "hmm\n\na\\x1b[2Jb\n"


def test_how_an_answer_ended():
    token = Token(0, b"", 0.0, ())
    for n, finish, said in (
        (2, "stop", "ended by itself"),
        (2, "length", "cut after 2 tokens; --max-tokens allows more"),
        (7, "length", "cut where the model's context of 10 tokens ends"),
        (1, None, "interrupted"),
    ):
        answer = Answer(3, 10)
        answer.add(Piece(0, "", (token,) * n, finish=finish))
        assert answer.told().endswith(said)


def test_an_interrupt_ends_with_130_after_what_was_said(capsys, monkeypatch):
    def answers(self, requests, adapters=None):
        yield Piece(0, "so far", ())
        raise KeyboardInterrupt

    monkeypatch.setattr(Model, "answers", answers)
    code, out, error = wgtrain(capsys, "generate", *MESSAGE)
    assert (code, out, error) == (130, "so far", "\ninterrupted\n")


def test_nobody_reads_on():
    """As with `| head -c 1`: a pipe is closed after the first byte."""
    command = [sys.executable, "-m", "wgtrain", "generate", *map(str, MESSAGE)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, cwd=ROOT, **pipes) as process:
        assert process.stdout.read(1) == b"I"
        process.stdout.close()
        assert (process.stderr.read(), process.wait()) == (b"", 0)


def test_the_page_on_commands(capsys, monkeypatch, tmp_path):
    """Its lines, run as they stand."""
    text = (ROOT / "docs" / "commands.md").read_text("utf-8")
    blocks = dict(re.findall(r"```(\w+)\n(.*?)```", text, re.DOTALL))
    (tmp_path / "wgtrain").mkdir()
    (tmp_path / "wgtrain" / "demo_files").symlink_to(BASE.parent)
    Path("prompts.jsonl").write_text(blocks["jsonl"], encoding="utf-8")
    for line in blocks["sh"].splitlines():
        program, *arguments = shlex.split(line)
        type_in(monkeypatch, "Aria spent 136 coins on a purple spade.\n")
        code, out, error = wgtrain(capsys, *arguments)
        assert program == "wgtrain" and code == 0, error
        assert out or "--out" in arguments
    assert len(Path("answers.jsonl").read_text(encoding="utf-8").splitlines()) == 2
    Path("base.gguf").symlink_to(BASE)
    Path("c.json").write_text(blocks["json"], encoding="utf-8")
    text, said = generate(capsys, "--config", "c.json", "--prompt", "A", "--max-tokens", "3")
    assert text and said == RAW
