"""`wgtrain chat`: through a pipe, and in a terminal."""

import json
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import demo_model
import pytest
from demo_model import BASE, type_in
from needs import ROOT
from test_cli import wgtrain

import wgtrain as package
from wgtrain.cli import lines
from wgtrain.cli.conversation import Conversation
from wgtrain.errors import FileError, NonFiniteError, OptionError
from wgtrain.infer.generation import Piece, Token
from wgtrain.infer.model import Model

gpu = pytest.mark.gpu
TOKEN = Token(0, b"", 0.0, ())


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a run on the demo's model."""
    return demo_model.train(tmp_path_factory.mktemp("runs") / "one")


@gpu
def test_a_run_ends_with_how_to_talk_to_it(tmp_path):
    said = []
    run = demo_model.train(tmp_path / "a run", said.append, iters=1)
    assert said[-1].splitlines()[-1] == f"talk to it: wgtrain chat --adapter '{run}'"


@pytest.fixture
def chat(capsys, monkeypatch):
    """Says some lines; (answers, what was said beside them)."""

    def say(*said, options=(), code=0):
        type_in(monkeypatch, "".join(line + "\n" for line in said))
        ended, out, error = wgtrain(capsys, "chat", "--model", BASE, *options)
        assert ended == code, error
        return out.splitlines(), error.splitlines()

    return say


@pytest.fixture
def answering(monkeypatch):
    """The model gives these pieces; what it was asked."""
    asked = []

    def give(*answers):
        left = iter(answers)

        def generate(self, requests, adapters=None):
            asked.append((self.tokenizer.decode(requests[0].prompt, special=True), requests[0]))
            for piece in next(left):
                if callable(piece):
                    piece()
                else:
                    yield piece

        monkeypatch.setattr(Model, "answers", generate)
        return asked

    return give


def answer(text, finish="stop", **more):
    return Piece(0, text, (TOKEN,), finish=finish, **more)


def turns(*contents):
    roles = ("user", "assistant")
    return "".join(
        f"<|im_start|>{roles[i % 2]}\n{text}<|im_end|>\n" for i, text in enumerate(contents)
    )


# ---- a conversation -----------------------------------------------------------------------------


@gpu
def test_answers_are_those_of_the_model_with_all_that_was_said(chat):
    with package.load_model(BASE) as model:
        first = [{"role": "user", "content": "Who are you?"}]
        one = "".join(model.generate(first, max_tokens=20))
        both = [*first, {"role": "assistant", "content": one}, {"role": "user", "content": "Why?"}]
        two = "".join(model.generate(both, max_tokens=20))
    out, said = chat("Who are you?", "", "Why?", "/quit", "never", options=["--max-tokens", "20"])
    assert out == [one, two] and said == []
    shorter, _ = chat("Who are you?", options=["--max-tokens", "2"])
    assert one.startswith(shorter[0]) and shorter[0] != one


@gpu
def test_history(chat, answering):
    asked = answering(*([answer(text)] for text in "ABCDE"))
    out, said = chat(
        *("one", "two", "/undo", "three\\", "more", "/reset", "four", "/system Be kind.", "five"),
        options=["--system", "S"],
    )
    system = "<|im_start|>system\n{}<|im_end|>\n"
    begin, end = system.format("S"), "<|im_start|>assistant\n"
    assert [prompt for prompt, _ in asked] == [
        begin + turns("one") + end,
        begin + turns("one", "A", "two") + end,
        begin + turns("one", "A", "three\nmore") + end,
        begin + turns("four") + end,
        system.format("Be kind.") + turns("four", "D", "five") + end,
    ]
    assert out == list("ABCDE")
    assert said == ["forgotten: two", "the conversation begins anew", "system message: Be kind."]


@gpu
def test_again_with_the_next_seed(chat, answering):
    asked = answering([answer("A")], [answer("B")], [answer("C")], [])
    given = ["--temperature", "1", "--seed", "5"]
    out, _ = chat("one", "/retry", "/regen", "/save f", "/retry", "/save f", options=given)
    assert out == ["A", "B", "C", ""] and [r.sampling.seed for _, r in asked] == [5, 6, 7, 8]
    assert {prompt for prompt, _ in asked} == {turns("one") + "<|im_start|>assistant\n"}
    rows = Path("f").read_text().splitlines()
    assert rows[0] == rows[1] and '"C"' in rows[0]  # what was not answered again is as it was
    answering([answer("A")], [answer("A")])
    assert "--temperature is 0: the answer will be the same" in chat("one", "/retry")[1]


@gpu
def test_an_answer_that_was_cut_goes_on(chat):
    whole, _ = chat("Who are you?", "Why?", options=["--max-tokens", "30"])
    parts, said = chat(
        "Who are you?", *["/more"] * 9, "Why?", "/save f", options=["--max-tokens", "3"], code=2
    )
    assert said == ["error: /more: no answer was cut that has room to go on"]
    n = len(parts) - 1
    parts, said = chat(
        *("Who are you?", *["/more"] * n, "Why?", "/save f", "/undo", "/more"),
        options=["--max-tokens", "3", "--stats"],
        code=2,
    )
    assert 2 < n < 9 and "".join(parts[: n + 1]) == whole[0] and whole[1].startswith(parts[n + 1])
    assert said[0].endswith("cut after 3 tokens; /more goes on")
    saved = json.loads(Path("f").read_text())["messages"]
    assert saved[1]["content"] == whole[0]
    assert said[-1].startswith("error: /more: no answer was cut")


@gpu
def test_thoughts_stand_beside_the_answer(chat, answering):
    asked = answering([answer("hm", None, thought=True), answer("A")], [answer("B")])
    Path("t").write_text(
        "{% for m in messages %}{{ m.content }}({{ m.reasoning_content }}){% endfor %}"
    )
    out, _ = chat("one", "two", "/save f", options=["--chat-template", "t"])
    assert out == ["A", "B"] and asked[1][0] == "one()A(hm)two()"
    assert json.loads(Path("f").read_text())["messages"][1] == {
        "role": "assistant",
        "content": "A",
        "reasoning_content": "hm",
    }


@gpu
def test_a_conversation_is_saved_as_a_row_to_train_on(chat, answering, monkeypatch):
    answering([answer("A\nb")], [answer("ü")])
    monkeypatch.setenv("HOME", str(Path.cwd()))
    given = ["--system", "S"]
    _, said = chat("one", "/save ~/c.jsonl", "two", "/save c.jsonl", options=given)
    assert said == ["~/c.jsonl: 1 row", "c.jsonl: 2 rows"]
    with package.load_model(BASE) as model:
        rows = package.load_dataset("c.jsonl", model).rows
        texts = [model.tokenizer.decode(row.tokens.tolist(), special=True) for row in rows]
    system = "<|im_start|>system\nS<|im_end|>\n"
    assert texts[0].startswith(system + turns("one", "A\nb"))
    assert texts[1].startswith(system + turns("one", "A\nb", "two", "ü"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"prompt": "a"}\n', "c line 1: no row of messages"),
        ("notes of mine\n", "c: no JSONL; a conversation"),
        ('[{"messages": [{"role": "user", "content": "a"}]}]', "c: no JSONL; a conversation"),
        ('{"messages":\n[{"role": "user", "content": "a"}]}', "c: no JSONL; a conversation"),
    ],
)
def test_a_file_of_something_else_is_left_alone(content, message):
    said = Conversation()
    with pytest.raises(OptionError, match="nothing was said yet"):
        said.save("c")
    said.add("a", "b")
    Path("c").write_text(content)
    with pytest.raises(FileError, match=message):
        said.save("c")
    assert Path("c").read_text() == content
    with pytest.raises(FileError, match="no/c: No such file"):
        said.save("no/c")


def test_a_row_is_added_behind_one_without_a_line_end():
    said = Conversation()
    said.add("a", "b")
    for before in ("", "\n"):
        Path("c").write_text(before)
        assert said.save("c") == 1
    Path("c").write_text(Path("c").read_text().strip())
    assert said.save("c") == 2
    first, second = Path("c").read_text().splitlines()
    assert first == second


# ---- adapters -----------------------------------------------------------------------------------


@gpu
def test_adapters_come_and_go(chat, run):
    given = ["--max-tokens", "8"]
    (base,), _ = chat("Who?", options=given)
    (tuned,), _ = chat("Who?", options=[*given, "--adapter", run])
    assert base != tuned
    name = "one"  # after the folder of the run
    out, said = chat(
        *("/adapter", f"/adapter {run}", "Who?", "/reset", f"/adapter {name}:0", "Who?", "/reset"),
        *(f"/adapter {run}", "Who?", "/reset", f"/adapter -{name}", "Who?", "/adapter none"),
        options=given,
    )
    assert out == [tuned, base, tuned, base]
    assert [line for line in said if line.startswith("adapters: ")] == [
        "adapters: none",
        f"adapters: {name} at 1",
        f"adapters: {name} at 0",
        f"adapters: {name} at 1",
        *["adapters: none"] * 2,
    ]


# ---- room ---------------------------------------------------------------------------------------

LONG = "word " * 21  # a third of the 256 tokens of the model's context


@gpu
@pytest.mark.parametrize("reply", ["y", "n", "two"])
def test_near_the_end_of_the_context(chat, answering, reply):
    asked = answering(*([answer(text)] for text in "ABCD"))
    _, said = chat(LONG, LONG, "last", reply, "/save c")
    assert len(said) == {"y": 3, "n": 2, "two": 3}[reply], said
    assert said[0].startswith("the conversation takes ") and "context of 256" in said[0]
    prompts = [prompt for prompt, _ in asked]
    whole = turns(LONG, "A", LONG, "B", "last") + "<|im_start|>assistant\n"
    assert (prompts[2] == whole) == (reply == "n")
    assert prompts[2] == whole or prompts[2] == whole.removeprefix(turns(LONG, "A"))
    assert (len(prompts) == 4) == (reply == "two")  # which is the next message
    request = asked[2][1]
    assert len(request.prompt) + request.max_tokens <= 256


@gpu
def test_no_room_at_all(chat, answering):
    answering([answer("A")])
    _, said = chat("Hi", LONG * 4, "n")
    assert "and leaves 0 for the answer" in said[0]
    assert said[1] == "the message is not sent; /undo drops the last exchange, /reset all"
    _, said = chat(LONG * 4, code=2)
    assert said[0].startswith("error: the prompt has ") and "context is 256 tokens" in said[0]


# ---- commands and errors ------------------------------------------------------------------------


@gpu
@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("/nothing", "error: /nothing is no command; /help lists them."),
        ("/undo", "error: nothing was said yet"),
        ("/retry", "error: nothing was said yet"),
        ("/more", "error: /more: no answer was cut"),
        ("/save", "error: /save: the name of a file is needed"),
        ("/save c", "error: save: nothing was said yet"),
        ("/adapter gone.gguf", "error: gone.gguf: No such file"),
        ("/adapter x:y", "error: --adapter 'x:y': allowed is PATH"),
        ("/adapter -x", "error: adapter 'x' is not loaded; loaded: none"),
    ],
)
def test_commands_that_cannot_be_done(chat, line, message):
    """In a pipe they end it."""
    _, said = chat(line, "/never", code=2)
    assert said[-1].startswith(message) and "never" not in said[-1]


@gpu
def test_help_and_words_of_other_programs(chat):
    _, said = chat("/?", "/clear", "/system", "/system x", "/system none", "/bye", "/nothing")
    assert said[0].startswith("/reset ") and any("/adapter A[:SCALE]" in line for line in said)
    assert said[-4:] == [
        "the conversation begins anew",
        "system message: none",
        "system message: x",
        "system message: none",
    ]


@gpu
def test_numbers_of_each_answer(chat):
    _, said = chat("a", "b", options=["--stats", "--max-tokens", "2"])
    assert len(said) == 2 and all(" tokens and 2 new, " in line for line in said)


@gpu
def test_a_model_without_a_template(capsys, monkeypatch, data_dir):
    type_in(monkeypatch, "Hi\n")
    stories = ("chat", "--model", data_dir / "stories260K.gguf")
    code, _, said = wgtrain(capsys, *stories)
    assert code == 2 and "has no chat template; --chat-template chatml, or" in said
    code, _, said = wgtrain(capsys, *stories, "--chat-template", "chatml")
    assert code == 2 and "<|im_start|>" in said and "a template for this model is needed" in said
    Path("t").write_text("{{ messages[-1].content }}")
    code, out, said = wgtrain(capsys, *stories, "--chat-template", "t", "--max-tokens", "3")
    assert code == 0 and out.count("\n") >= 1, said


@gpu
def test_half_a_character(capsys, monkeypatch):
    type_in(monkeypatch, b"\xff\n")
    code, _, said = wgtrain(capsys, "chat", "--model", BASE)
    assert code == 2 and said == "error: standard input: no valid UTF-8 at byte 0\n"


# ---- Ctrl-C -------------------------------------------------------------------------------------


def interrupt():
    signal.raise_signal(signal.SIGINT)


@gpu
def test_ctrl_c_stops_an_answer_and_keeps_what_was_said(chat, answering):
    asked = answering(
        [interrupt, answer("", None), answer("never")],
        [answer("half", None), interrupt, answer(" more", None), answer("never")],
        [answer("B")],
    )
    before = signal.getsignal(signal.SIGINT)
    out, _ = chat("one", "two", "three")
    assert out == ["", "half more", "B"] and signal.getsignal(signal.SIGINT) is before
    assert asked[2][0] == turns("two", "half more", "three") + "<|im_start|>assistant\n"


@gpu
def test_ctrl_c_twice_ends_all(chat, answering):
    answering([answer("half", None), interrupt, interrupt, answer("never")])
    out, said = chat("one", "two", code=130)
    assert out == ["half"] and said[-1] == "interrupted"


@gpu
def test_errors_do_not_end_what_is_typed(chat, answering, monkeypatch):
    def broken():
        raise NonFiniteError("no number")

    answering([answer("A")], [broken], [answer("cut", "length")])
    typed = iter(["one", "two", "/nothing", "three", None])
    monkeypatch.setattr(lines.Lines, "read", lambda self: next(typed))
    monkeypatch.setattr("wgtrain.cli.chat.Lines", terminal_lines)
    out, said = chat()
    assert out == ["A", "", "cut"]
    assert said == [
        f"{BASE}; /help lists commands, Ctrl-D ends",
        "adapters: none",
        "error: no number",
        "error: /nothing is no command; /help lists them. A blank before it sends it to the model",
        "cut after 1 tokens; /more goes on",
    ]


def terminal_lines():
    made = lines.Lines()
    made.terminal = True
    return made


# ---- a terminal ---------------------------------------------------------------------------------


# Makes the terminal on standard input the one whose keys send signals.
START = "import os, sys; os.open(os.ttyname(0), os.O_RDWR); os.execv(sys.argv[1], sys.argv[1:])"


class Typing:
    """A command in a terminal of its own."""

    def __init__(self, *command):
        pty = pytest.importorskip("pty", reason="a terminal that a program types in")
        self.mine, theirs = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-c", START, sys.executable, *command],
            cwd=ROOT,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env={**os.environ, "TERM": "xterm", "INPUTRC": os.devnull},
            start_new_session=True,
        )
        os.close(theirs)
        self.said = ""

    def until(self, wanted):
        """What came up to a text."""
        while wanted not in self.said:
            if not select.select([self.mine], [], [], 300)[0]:
                raise AssertionError(f"{wanted!r} never came: {self.said!r}")
            try:
                self.said += os.read(self.mine, 4096).decode("utf-8", "replace")
            except OSError:
                raise AssertionError(f"it ended before {wanted!r}: {self.said!r}") from None
        before, _, self.said = self.said.partition(wanted)
        return before

    def type(self, text):
        os.write(self.mine, text.encode())

    def interrupt(self):
        """Ctrl-C, once it waits for a key: an editor that is at work would see it with the next."""
        stat = Path(f"/proc/{self.process.pid}/stat")
        while stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "S":
            time.sleep(0.01)
        self.type("\x03")

    def close(self):
        self.process.kill()
        self.process.wait()
        os.close(self.mine)


SCRIPT = """
import sys
from wgtrain.cli.lines import Lines
lines = Lines()
while True:
    try:
        line = lines.read()
    except KeyboardInterrupt:
        print("interrupted", flush=True)
        break
    print("got", repr(line), flush=True)
    if line is None:
        break
    if line == "ask":
        print("said", lines.confirm("Sure?"), flush=True)
"""


@pytest.fixture
def typing():
    made = []

    def start(*command):
        made.append(Typing(*command))
        return made[-1]

    yield start
    for one in made:
        one.close()


def test_lines_that_are_typed(typing):
    terminal = typing("-c", SCRIPT)
    for typed, got in (
        ("one\r", "'one'"),
        ("a\\\r", None),
        ("b\r", r"'a\nb'"),
        ("\x1b[200~first\nsecond\x1b[201~\r", r"'first\nsecond'"),
        ("ac\x1b[Db\r", "'abc'"),  # the cursor goes back
        ("\x1b[A\r", "'abc'"),  # the line before
        ("ask\r", "'ask'"),
    ):
        terminal.until("> " if typed != "b\r" else ". ")
        terminal.type(typed)
        if got:
            terminal.until(f"got {got}")
    for reply, said in (("what\r", None), ("Yes\r", "said True")):
        terminal.until("Sure? [y/n] ")
        terminal.type(reply)
        if said:
            terminal.until(said)
    terminal.until("> ")
    terminal.type("half")
    terminal.until("half")
    terminal.interrupt()  # drops it
    terminal.until("> ")
    terminal.interrupt()
    terminal.until("interrupted")
    assert terminal.process.wait() == 0


@gpu
def test_a_conversation_in_a_terminal(typing):
    terminal = typing("-m", "wgtrain", "chat", "--model", str(BASE), "--max-tokens", "6")
    head = terminal.until("> ")
    assert f"{BASE}; /help lists commands" in head and "adapters: none" in head
    terminal.type("Who are you?\r")
    assert "I am" in terminal.until("cut after 6 tokens")
    terminal.until("> ")
    terminal.type("\x04")
    assert terminal.process.wait() == 0
