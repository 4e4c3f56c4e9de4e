"""Rows as questions: where a prompt ends, what is wanted, which rows are none."""

from typing import Any

import pytest
from test_chat import assistant, user
from test_jsonl import CHAT, letters, load

from wgtrain.data import Dataset
from wgtrain.data.questions import questions, same_answer

ASKED = "<|im_start|>user\nu<|im_end|>\n<|im_start|>assistant\n"
TWO = [user("u"), assistant("one"), user("v"), assistant("two")]
CASES: list[tuple[Any, str, str]] = [
    ({"prompt": "ab", "completion": "c\nd"}, "ab", "c\nd"),
    ({"messages": [user("u"), assistant("a")]}, ASKED, "a"),
    ({"instruction": "u", "output": "a"}, ASKED, "a"),
    (
        {"messages": TWO},
        f"{ASKED}one<|im_end|>\n<|im_start|>user\nv<|im_end|>\n<|im_start|>assistant\n",
        "two",
    ),
    # What stands behind a turn that is not learnt is no question.
    ({"messages": [*TWO[:3], {**TWO[3], "weight": 0}]}, ASKED, "one"),
    ({"input_ids": [60, 61, 62, 63], "labels": [-100, -100, 62, 63]}, "]^", "_`"),
]


@pytest.mark.parametrize(("row", "prompt", "wanted"), CASES)
def test_a_prompt_ends_where_the_answer_is_learnt(row: Any, prompt: str, wanted: str) -> None:
    tokenizer = letters(CHAT)
    data = load(tokenizer, {"prompt": "xy", "completion": "z"}, row)
    (_, found), notes = questions(data, tokenizer, 8)
    assert notes == [] and found.line == 2
    assert tokenizer.decode(found.prompt, special=True) == prompt
    assert found.wanted == wanted


def test_rows_that_are_no_questions() -> None:
    tokenizer = letters(CHAT)
    rows = [
        {"text": "abc"},
        {"prompt": "ab", "completion": "x" * 40},
        {"prompt": "ab", "completion": "x" * 9},
        {"prompt": "ab", "completion": "x" * 8},
        {"prompt": "", "completion": "cd"},
    ]
    data = load(tokenizer, *rows, seq_len=20)
    found, notes = questions(data, tokenizer, 8)
    assert [one.line for one in found] == [4]
    assert sorted(notes) == [
        "1 row not asked: an answer of more than 8 tokens",
        "1 row not asked: cut, so that its answer is not whole",
        "2 rows not asked: no prompt, it is trained from its first token on",
    ]
    everything = load(tokenizer, rows[3], train_on="all")
    assert questions(everything, tokenizer, 8)[0] == []
    assert questions(Dataset([], "rows", 8), tokenizer, 8) == ([], [])


def test_white_space_does_not_matter() -> None:
    assert same_answer(" a  b\n", "a b") and same_answer("", " \n")
    assert not same_answer("ab", "a b") and not same_answer("A b", "a b")
