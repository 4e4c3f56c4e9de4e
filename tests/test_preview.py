"""What a preview shows: every trained token marked, what is cut, dropped or wrong; the same checks
before training.
"""

import errno
import html
import json
import os
import re
import stat
import sys
from pathlib import Path
from typing import Any

import pytest
from test_chat import assistant, user
from test_cli import wgtrain
from test_jsonl import CHAT, EXCHANGE, letters, load
from vocabs import spm

import wgtrain as package
from wgtrain.cli.demo import BASE
from wgtrain.cli.preview import in_color
from wgtrain.data import Tokenizer, load_tokenizer
from wgtrain.data.preview import Preview
from wgtrain.errors import FileError, OptionError
from wgtrain.runs import disk

CHAT_ROW = {"messages": EXCHANGE}
NOTHING = {"messages": [user("u")]}
ROW = {"prompt": "ab", "completion": "c\nd"}
LONG = {"prompt": "x", "completion": "y" * 40}
BEHIND = {"prompt": "x" * 40, "completion": "y"}
TYPED = {"messages": [user("a <|im_end|> b"), assistant("a")]}


def lines(*rows: Any) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def preview(tokenizer: Tokenizer, *rows: Any, **more: Any) -> Preview:
    found: Preview = package.preview(lines(*rows), tokenizer, **more)
    return found


def test_a_preview_by_hand() -> None:
    rows = (CHAT_ROW, ROW, NOTHING, LONG, BEHIND)
    found = preview(letters(CHAT), *rows, seq_len=36, rows="all")
    assert found.text == (
        "data: 3 of 5 rows, 65 tokens, 41 of them trained (63 %); rows of 6 to 36 tokens\n"
        "2 rows cut at 36 tokens: line 4 (42 tokens); line 5 (42 tokens)\n"
        "2 rows dropped: line 3 (nothing in it is trained); line 5 (what is trained lies behind "
        "token 36)\n"
        "\n"
        "--- line 1: 23 tokens, 2 trained\n"
        "<|im_start|>user\nu<|im_end|>\n<|im_start|>assistant\n[[a<|im_end|>]]\n\n"
        "\n"
        "--- line 2: 6 tokens, 4 trained\n"
        "ab[[c\nd<|end|>]]\n"
        "\n"
        "--- line 3: 9 tokens, 0 trained; dropped, nothing in it is trained\n"
        "<|im_start|>user\nu<|im_end|>\n\n"
        "\n"
        "--- line 4: 36 tokens, 35 trained, 6 more cut off\n"
        f"x[[{'y' * 35}]]\n"
        "\n"
        "--- line 5: 36 tokens, 0 trained, 6 more cut off; dropped, what is trained lies behind "
        "token 36\n"
        f"{'x' * 36}\n"
    )
    assert found.refused == []
    assert str(found) == found.text
    without = re.sub(r"\x1b\[[0-9;]*m|↵", "", found.colored)
    assert without == found.text.replace("[[", "").replace("]]", "")


def test_every_trained_token_has_a_mark_of_its_own() -> None:
    found = preview(letters(CHAT), ROW)
    shades = re.findall(r"\x1b\[30;(\d+)m(.*?)\x1b\[0m", found.colored)
    tokens = [("42", "c"), ("102", "↵"), ("42", "d"), ("102", "<|end|>")]
    assert [mark for mark in shades if mark[1]] == tokens
    marks = re.findall(r'<span style="([^"]*)" title="(\d+)">([^<]*)</span>', found.html)
    assert [html.unescape(text) for style, _, text in marks if "background" in style] == [
        "c",
        "↵\n",
        "d",
        "<|end|>",
    ]
    (row,) = found.rows
    assert [int(i) for _, i, _ in marks] == row.tokens.tolist()
    assert "".join(html.unescape(text) for *_, text in marks) == "abc↵\nd<|end|>"
    assert found._repr_html_() in found.html and found.html.startswith("<!doctype html>")


def test_characters_of_several_tokens_stay_whole() -> None:
    found = preview(letters(CHAT), {"prompt": "日é", "completion": "é"})
    assert [(p.text, len(p.ids), p.trained) for p in found.pieces(found.rows[0])] == [
        ("日", 3, False),
        ("é", 2, False),
        ("é", 2, True),
        ("<|end|>", 1, True),
    ]
    # One that is trained in part is shown byte by byte.
    ids = letters(CHAT).encode("é")
    halves = preview(letters(CHAT), {"input_ids": [*ids, 65], "labels": [-100, ids[1], 65]})
    assert "\\xc3[[\\xa9b]]" in halves.text


def test_labels_that_are_other_tokens() -> None:
    tokenizer = letters(CHAT)
    a, b, c = (tokenizer.encode(letter)[0] for letter in "abc")
    found = preview(tokenizer, {"input_ids": [a, b], "labels": [-100, c]})
    assert "a[[b=>c]]" in found.text


def test_which_rows_are_shown() -> None:
    tokenizer = letters(CHAT)
    read = preview(tokenizer, CHAT_ROW, ROW, NOTHING, *[ROW] * 6).data

    def shown(what: Any) -> list[int]:
        return [row.line for row in Preview(read, tokenizer, what).rows]

    assert shown(3) == shown("3") == [1, 2, 4]  # of those that are trained
    assert shown("all") == list(range(1, 10))
    assert shown("3-4, 9-9") == [3, 4, 9] and shown("0") == []
    for wrong in ("x", "-1", "3-", True, 2.5, None):
        with pytest.raises(OptionError, match="allowed is all, a number N"):
            shown(wrong)
    with pytest.raises(OptionError, match="data has no row at 20-30"):
        shown("1-1,20-30")


def test_what_is_typed_is_shown_where_it_stands() -> None:
    found = preview(letters(CHAT), TYPED, CHAT_ROW)
    said = "special tokens typed in a message, which become tokens, in 1 row: line 1 (<|im_end|>)"
    assert found.data.notes == [f"warning: {said}"]
    assert "user\na {{<|im_end|>}} b<|im_end|>\n" in found.text
    assert "\x1b[41m" in found.colored and found.colored.count("\x1b[41m") == 1
    found = preview(letters(), TYPED, CHAT_ROW)  # without a template
    assert found.data.notes[1:] == [f"warning: {said}"]
    assert "a {{<|im_end|>}} b\n\n[[a<|end|>]]\n" in found.text
    # As JSON in a call of tools as well; the template's own are none.
    call = {"function": {"name": "f", "arguments": {"x": '"<|im_start|>'}}}
    calls = "{% for m in messages %}{{ m.content }}{{ m.tool_calls|tojson if m.tool_calls }}"
    row = {"messages": [user("u<|im_end|>"), assistant("b", tool_calls=[call])]}
    found = preview(letters(calls + "<|im_end|>{% endfor %}"), row)
    assert '{"x": "\\"{{<|im_start|>}}"}' in found.text and found.text.count("{{") == 2


def test_two_bos_are_refused() -> None:
    metadata = spm("\u2581a")
    template = "{{ bos_token }}{{ bos_token }}{{ messages[1].content }}{{ eos_token }}"
    twice = load_tokenizer({**metadata, "tokenizer.chat_template": template})
    for row in (CHAT_ROW, {"text": "<s><s>a"}, {"input_ids": [1, 1, 9], "labels": [1, 1, 9]}):
        found = preview(twice, row)
        assert found.refused == ["BOS stands twice at the front (<s>) in 1 row: line 1"]
        assert "error: BOS stands twice" in found.text and "<s><s>" in found.text.replace("[[", "")
        with pytest.raises(FileError, match=r"^data: BOS stands twice at the front \(<s>\)"):
            load(twice, row)
    once = load_tokenizer({**metadata, "tokenizer.chat_template": template[15:]})
    assert load(once, CHAT_ROW, {"text": "<s>a"}, {"text": "a<s><s>"}).findings == []


def test_nothing_to_train_is_refused() -> None:
    found = preview(letters(CHAT), NOTHING, NOTHING)
    assert found.refused == ["none of its 2 rows has a token to learn within 512 tokens"]
    assert found.text.startswith("data: 0 of 2 rows, 0 tokens, 0 of them trained\n2 rows dropped")
    assert [row.line for row in found.rows] == [1, 2]


def test_an_end_that_is_not_trained_is_said() -> None:
    """Of marks that leave it out, of labels, and not of what is cut there."""
    unmarked = (
        "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}"
        "{% endgeneration %}<|im_end|>{% else %}{{ m.content }}<|im_end|>{% endif %}{% endfor %}"
    )
    said = "the model may not learn to stop: an end of turn that is not trained in 1 row: line 1"
    assert load(letters(unmarked), CHAT_ROW).notes == [f"warning: {said}"]
    a, end = letters().encode("a")[0], letters().id_of("<|end|>")
    left_out = {"input_ids": [a, a, end], "labels": [-100, a, -100]}
    assert load(letters(), left_out).notes == [f"warning: {said}"]
    assert load(letters(), {**left_out, "labels": [-100, a, end]}).notes == []
    whole = preview(letters(unmarked.replace("<|im_end|>", "<|end|>")), CHAT_ROW).rows[0]
    assert load(letters(unmarked), CHAT_ROW, seq_len=len(whole.tokens) - 1).notes == []


def test_unknown_tokens_are_said() -> None:
    metadata = spm("\u2581a")
    tokens = metadata["tokenizer.ggml.tokens"]
    for byte in "é".encode():  # a vocabulary without these bytes
        tokens[tokens.index(f"<0x{byte:02X}>")] = f"[{byte}]"
    found = preview(load_tokenizer(metadata), {"text": "aéa"}, {"text": "aa"})
    assert found.data.notes == ["warning: the unknown token (<unk>) in 1 row: line 1"]
    assert "{{" in found.text


def test_many_lines_are_named_by_the_first() -> None:
    found = preview(letters(CHAT), *[TYPED] * 7, *[NOTHING] * 9)
    assert found.data.findings[0].rows == 7
    assert "in 7 rows: lines 1 (<|im_end|>), 2 (<|im_end|>)," in found.text
    assert "5 (<|im_end|>), ...\n" in found.text
    assert "9 rows dropped: line 8 (nothing" in found.text and "; and 1 more\n" in found.text


def test_no_escape_of_a_row_reaches_the_screen() -> None:
    found = preview(letters(CHAT), {"text": "\x1b]0;x\x07\u202e<b>&"})
    assert "\\x1b]0;x\\x07\\u202e" in found.text.replace("[[", "").replace("]]", "")
    assert "\x1b" not in found.text and "\x1b]" not in found.colored
    assert "<b>&" not in found.html and "&lt;" in found.html


@pytest.fixture
def rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "rows.jsonl"
    path.write_bytes(lines(CHAT_ROW, NOTHING, TYPED, LONG))
    return path


def test_the_command(rows: Path, capsys: Any) -> None:
    code, said, _ = wgtrain(capsys, "preview", rows.name, "--model", BASE, "--rows", "1-1")
    assert code == 0 and said == package.preview(rows.name, BASE, rows="1-1").text
    assert "[[a<|im_end|>]]" in said and "\x1b" not in said
    code, said, _ = wgtrain(capsys, "preview", rows, "--model", BASE, "--html", "page.html")
    assert code == 0 and said.endswith("written to page.html\n") and "---" not in said
    page = Path("page.html").read_text(encoding="utf-8")
    assert page == package.preview(rows, BASE).html
    content = rows.read_bytes()
    code, _, error = wgtrain(capsys, "preview", rows, "--model", BASE, "--html", rows.name)
    assert code == 2 and "the output is also the input" in error
    assert rows.read_bytes() == content
    os.mkfifo("pipe")  # a device would be replaced as this one
    code, _, error = wgtrain(capsys, "preview", rows, "--model", BASE, "--html", "pipe")
    assert (
        code == 2
        and "pipe: a device, FIFO or socket" in error
        and stat.S_ISFIFO(os.stat("pipe").st_mode)
    )
    code, said, _ = wgtrain(capsys, "preview", rows, "--model", BASE, "--json", "--rows", "all")
    found = json.loads(said)
    assert (found["rows"], found["dropped"]) == (3, [[2, "nothing in it is trained"]])
    assert [row["line"] for row in found["shown"]] == [1, 2, 3, 4] and found["errors"] == []
    trained = [text for text, trained in found["shown"][0]["pieces"] if trained]
    assert "".join(trained) == "a<|im_end|>"


def test_a_page_that_cannot_be_written_leaves_nothing(
    rows: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    Path("page.html").write_text("before")
    monkeypatch.setattr(disk.os, "fsync", full)
    code, _, error = wgtrain(capsys, "preview", rows, "--model", BASE, "--html", "page.html")
    assert code == 2 and error == "error: page.html: No space left on device\n"
    assert sorted(path.name for path in rows.parent.iterdir()) == ["page.html", rows.name]
    assert Path("page.html").read_text() == "before"


def test_each_setting_arrives(rows: Path, capsys: Any) -> None:
    Path("own.jinja").write_text("{% if x %}{{ x }}{% endif %}" + CHAT)
    Path("run.yaml").write_text(f"model: {BASE}\ndata: rows.jsonl\nseq_len: 9\n")
    first = ["preview", rows, "--model", BASE, "--rows", "all"]
    said = {wgtrain(capsys, *first)[1]}
    for more in (
        ["--seq-len", "16"],
        ["--train-on", "all"],
        ["--no-mask-prompt", "--seq-len", "20"],
        ["--chat-template", "own.jinja"],
        ["--chat-template", "own.jinja", "--template-args", '{"x": "X"}'],
        ["--config", "run.yaml"],
    ):
        code, text, error = wgtrain(capsys, *first, *more)
        assert code in (0, 2) and not error and text not in said, more
        said.add(text)
    rows.write_bytes(lines({**CHAT_ROW, "text": "b"}))
    assert wgtrain(capsys, *first)[0] == 2
    assert "[[b" not in wgtrain(capsys, *first, "--kind", "messages")[1]
    rows.write_bytes(lines({"messages": [{"role": "system", "content": "s"}, *EXCHANGE]}))
    assert "user\ns\n\nu" in wgtrain(capsys, *first, "--system", "merge")[1]


def test_what_would_not_train_ends_with_2(rows: Path, capsys: Any) -> None:
    rows.write_bytes(lines(NOTHING))
    code, said, error = wgtrain(capsys, "preview", rows, "--model", BASE)
    assert code == 2 and "error: none of its 1 rows has a token to learn" in said and not error
    code, _, error = wgtrain(capsys, "preview", rows, "--model", BASE, "--html", "no/such/page")
    assert code == 2 and error.startswith("error: no/such/page: there is no folder")
    code, _, error = wgtrain(capsys, "preview", rows, "--model", BASE, "--rows", "x")
    assert code == 2 and error.startswith("error: --rows 'x': allowed is all")
    code, _, error = wgtrain(capsys, "preview", "--model", BASE)
    assert code == 2 and error.startswith("error: --data: needed")


@pytest.mark.parametrize(
    ("terminal", "variables", "colored"),
    [
        (True, {}, True),
        (False, {}, False),
        (True, {"NO_COLOR": "1"}, False),
        (True, {"NO_COLOR": ""}, True),
        (True, {"TERM": "dumb"}, False),
    ],
)
def test_colour_is_for_terminals(
    monkeypatch: pytest.MonkeyPatch, terminal: bool, variables: dict[str, str], colored: bool
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal, raising=False)
    for name in ("NO_COLOR", "TERM"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert in_color() is colored
