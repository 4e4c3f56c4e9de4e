"""The page of a comparison: whole, alone, and only text where a stranger's text stands."""

import base64
import hashlib
import html
import re
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest
from test_chat import assistant, user
from test_jsonl import CHAT, letters, load

from wgtrain.data import Dataset
from wgtrain.data.questions import questions, same_answer
from wgtrain.infer.comparison import Comparison
from wgtrain.infer.comparison_page import MOST_ROWS, MOST_STEMS, MOST_TEXT
from wgtrain.infer.contender import Contender
from wgtrain.infer.evaluation import EvalResult, RowLoss

HOSTILE = (
    "</pre></script><script>alert(1)</script><img src=x onerror=alert(1)>\u202e\0{{ 7*7 }}&amp;"
)


def result(data: Dataset, losses: Any) -> EvalResult:
    rows = tuple(
        RowLoss(row.line, float(loss), int((row.targets >= 0).sum()))
        for row, loss in zip(data.rows, losses, strict=True)
    )
    count = sum(row.trained_tokens for row in rows)
    total = sum(row.loss * row.trained_tokens for row in rows)
    return EvalResult(total / count, count, 2 * count, 1.5, rows)


def comparison(rows: list[Any], answers: dict[str, list[str]], **losses: Any) -> Comparison:
    """Made-up losses and answers, which are those of a model for all that a page knows."""
    tokenizer = letters(CHAT)
    data = load(tokenizer, *rows, seq_len=8192)
    asked, notes = questions(data, tokenizer, 8192)
    contenders = []
    for name, values in losses.items():
        said = answers.get(name, [])
        right = [same_answer(a, one.wanted) for a, one in zip(said, asked, strict=False)]
        contenders.append(Contender(name, (0.5,), result(data, values), tuple(said), tuple(right)))
    n = len(next(iter(answers.values()), []))
    return Comparison(
        "folder/base.gguf", data, tokenizer, tuple(contenders), tuple(asked[:n]), tuple(notes)
    )


def row(question: str, answer: str) -> dict[str, Any]:
    return {"messages": [user(question), assistant(answer)]}


@pytest.fixture(scope="module")
def small() -> Comparison:
    rows = [row("one", "1"), row("two", "2"), row("three", "3"), row(HOSTILE, HOSTILE)]
    answers = {"base": ["1", "no", "3", HOSTILE], "tuned": ["1", " 2", "4", "?"]}
    return comparison(rows, answers, base=[4.0, 3.0, 2.0, 1.0], tuned=[1.0, 0.5, 2.5, 1.0])


class Reader(HTMLParser):
    """Elements of a page with their attributes, and its text by element."""

    VOID = frozenset({"meta", "br", "input", "img", "link"})

    def __init__(self, text: str):
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == [], "every element ends"

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open:
            self.texts.setdefault(self._open[-1], []).append(data)


def test_a_strangers_text_is_text(small: Comparison) -> None:
    page = Reader(small.html)
    tags = [tag for tag, _ in page.elements]
    assert tags.count("script") == 1 and "img" not in tags
    assert not [name for _, attributes in page.elements for name in attributes if name[:2] == "on"]
    shown = HOSTILE.replace("\u202e", "\\u202e").replace("\0", "\\x00")
    texts = page.texts["pre"]
    assert [shown in text for text in texts].count(True) >= 4  # prompt, wanted, answer, row
    assert "49" not in "".join(texts), "it went through the template"
    assert "\u202e" not in small.html and "\0" not in small.html


def test_nothing_is_asked_of_others(small: Comparison) -> None:
    """No address, and a policy under which the page's own script is the only one that runs."""
    page = Reader(small.html)
    for tag, attributes in page.elements:
        assert not {"src", "action", "srcset", "data", "poster"} & {*attributes}, tag
        assert (attributes.get("href") or "#").startswith("#")
    assert not re.search(r"url\(|@import|https?:", small.html)
    (policy,) = [a["content"] for t, a in page.elements if t == "meta" and "http-equiv" in a]
    (script,) = page.texts["script"]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy == (
        f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    )


def test_what_it_says(small: Comparison) -> None:
    page = Reader(small.html)
    text = " ".join(re.sub(r"<[^>]*>", " ", small.html.split("<body>")[1]).split())
    text = html.unescape(text)
    base, tuned = (one.result for one in small.contenders)
    for words in (
        "base.gguf",
        f"data : 4 rows, {base.trained_tokens} trained tokens",
        f"{base.loss:.4f} loss",
        f"perplexity {base.perplexity:,.4g}",
        f"change of the loss {tuned.loss - base.loss:+.4f}",
        "rows better 2 of 4",
        "exact answers 3 of 4 (75 %)",
        "exact answers 2 of 4 (50 %)",
        "tuned × 0.5",
        "2 of 4 got better, 1 worse; the median changed by -1.250",
    ):
        assert words in text, words
    assert small.html.count('<th scope="row" class="short">tuned') == 4
    assert "folder/" not in small.html
    kinds = [a["data-kind"] for _, a in page.elements if "data-kind" in a]
    assert kinds == ["kept", "won", "lost", "lost"]
    marks = [(t == "right") for t in re.findall(r'<tr class="(right|wrong)">', small.html)]
    assert marks == [True, True, False, True, True, False, True, False]
    assert page.texts["i"].count("<|im_start|>") == 8, "special tokens are faint"
    lines = [a for t, a in page.elements if t == "line" and a.get("class") != "grid"]
    heights = [(a["y1"], a["y2"]) for a in lines]
    assert heights == [("0.0", "157.5"), ("52.5", "183.8"), ("105.0", "78.8"), ("157.5", "157.5")]
    assert small.html == small.html and small.html.startswith("<!doctype html>")
    shown = small._repr_html_()
    assert shown.startswith("<iframe srcdoc=") and html.escape(small.html) in shown


def test_one_contender_has_no_comparison() -> None:
    found = comparison([row("one", "1")], {}, alone=[0.0])
    page = Reader(found.html)
    assert "svg" not in [tag for tag, _ in page.elements]
    body = found.html.split("<body>")[1].split("<script>")[0]
    assert "change" not in body and "Answers" not in body
    assert str(found).splitlines()[1:] == ["         loss  perplexity", "alone  0.0000           1"]


def test_many_and_long_rows_do_not_make_a_large_page() -> None:
    n = MOST_ROWS + 500
    rows = [row("long " * 900, "yes")] + [row("short", "yes")] * (n - 1)
    losses = np.linspace(2, 1, n)
    tuned = losses.copy()
    tuned[-MOST_ROWS:] -= 1
    found = comparison(rows, {"base": ["a" * 5000], "tuned": ["yes"]}, base=losses, tuned=tuned)
    page = Reader(found.html)
    ids = [int(a["id"][5:]) for t, a in page.elements if t == "tr" and a.get("id")]
    assert ids == list(range(501, n + 1)), "those that changed the most, in the file's order"
    assert f"The {MOST_ROWS:,} of {n:,} rows" in found.html
    assert [t for t, _ in page.elements].count("circle") == 2 * MOST_STEMS
    assert f"{MOST_STEMS} of them, evenly" in found.html
    assert "(3,000 more characters)" in found.html
    assert max(len(text) for text in page.texts["pre"]) < MOST_TEXT + 50
    assert len(found.html) < 1_500_000
    (prompt,) = re.findall(r'<pre class="prompt">(.*?)</pre>', found.html, re.DOTALL)
    assert prompt.startswith("<i>… </i>") and prompt.endswith("assistant\n")


def test_as_values(small: Comparison) -> None:
    values = small.as_json()
    assert [one["name"] for one in values["compared"]] == ["base", "tuned"]
    assert values["compared"][1]["right"] == 2 and values["compared"][1]["scales"] == [0.5]
    assert values["row_losses"][1] == {"line": 2, "trained_tokens": 2, "losses": [3.0, 0.5]}
    first = values["answers"][0]
    assert first["prompt"].endswith("<|im_start|>assistant\n") and first["wanted"] == "1"
    assert first["answers"] == ["1", "1"] and first["right"] == [True, True]
    assert str(small).splitlines()[2:4] == [
        "base   1.1290       3.093                        3 of 4",
        "tuned  1.0215       2.777  -0.1075       2 of 4  2 of 4",
    ]
