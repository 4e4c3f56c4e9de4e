"""JSONL rows: every kind with its mask written by hand, truncation, notes, dates."""

import gzip
import json
from collections.abc import Sequence
from datetime import datetime
from typing import Any

import needs
import numpy as np
import pytest
import vocabs
from vocabs import bpe, spm

from wgtrain.data import Dataset, Row, Tokenizer, load_rows, load_tokenizer
from wgtrain.data.jsonl import NO_END_TOKEN, NO_TEMPLATE
from wgtrain.errors import FileError, OptionError

IM = ("<|im_start|>", "<|im_end|>", "<|end|>")
CHAT = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


EXCHANGE = [{"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}]


def letters(template: str | None = None, **more: Any) -> Tokenizer:
    """A tokenizer of single bytes, with the end token <|end|>."""
    metadata = bpe(specials=IM, **more)
    if template:
        metadata["tokenizer.chat_template"] = template
    return load_tokenizer(metadata)


def load(tokenizer: Tokenizer, *rows: Any, seq_len: int = 512, **more: Any) -> Dataset:
    data = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    return load_rows(data.encode(), tokenizer, seq_len=seq_len, **more)


def marked(tokenizer: Tokenizer, row: Row) -> str:
    """The row's text with each learnt token in brackets; checks that targets are shifted labels."""
    learnt = [False, *(row.targets[:-1] >= 0).tolist()]
    assert row.targets[-1] == -1 and row.tokens.dtype == np.uint32 and row.targets.dtype == np.int32
    out = []
    for i, token in enumerate(row.tokens.tolist()):
        if learnt[i]:
            assert row.targets[i - 1] == token
        text = tokenizer.decode_bytes([token], special=True, start=False).decode("utf-8", "replace")
        out.append(f"[{text}]" if learnt[i] else text)
    return "".join(out)


def bracket(text: str, *more: str) -> str:
    return "".join(f"[{letter}]" for letter in [*text, *more])


CASES: list[tuple[Any, str]] = [
    # The first token of a row follows nothing, so it is never learnt.
    ({"text": "abc"}, "a[b][c][<|end|>]"),
    ({"prompt": "ab", "completion": "cd"}, "ab[c][d][<|end|>]"),
    ({"prompt": "", "completion": "cd"}, "c[d][<|end|>]"),
    ({"prompt": "日", "completion": "a"}, "\ufffd\ufffd\ufffd[a][<|end|>]"),
    (
        {"messages": [{"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}]},
        "<|im_start|>user\nu<|im_end|>\n<|im_start|>assistant\n[a][<|im_end|>]\n",
    ),
    (
        {"conversations": [{"from": "human", "value": "u"}, {"from": "gpt", "value": "a"}]},
        "<|im_start|>user\nu<|im_end|>\n<|im_start|>assistant\n[a][<|im_end|>]\n",
    ),
    (
        {
            "conversations": [
                {"from": "system", "value": "s"},
                {"from": "user", "value": "u"},
                {"from": "assistant", "value": "a"},
                {"from": "tool", "value": "t"},
                {"from": "gpt", "value": "b"},
            ]
        },
        "<|im_start|>system\ns<|im_end|>\n<|im_start|>user\nu<|im_end|>\n<|im_start|>assistant\n"
        "[a][<|im_end|>]\n<|im_start|>tool\nt<|im_end|>\n<|im_start|>assistant\n[b][<|im_end|>]\n",
    ),
    (
        {"instruction": "i", "output": "o"},
        "<|im_start|>user\ni<|im_end|>\n<|im_start|>assistant\n[o][<|im_end|>]\n",
    ),
    (
        {"instruction": "i", "input": "j", "output": "o"},
        "<|im_start|>user\ni\n\nj<|im_end|>\n<|im_start|>assistant\n[o][<|im_end|>]\n",
    ),
    (
        {"instruction": "i", "input": "", "output": "o"},
        "<|im_start|>user\ni<|im_end|>\n<|im_start|>assistant\n[o][<|im_end|>]\n",
    ),
    # Dolly's names.
    (
        {"instruction": "i", "context": "j", "response": "o"},
        "<|im_start|>user\ni\n\nj<|im_end|>\n<|im_start|>assistant\n[o][<|im_end|>]\n",
    ),
    (
        {"instruction": "i", "context": "", "response": "o"},
        "<|im_start|>user\ni<|im_end|>\n<|im_start|>assistant\n[o][<|im_end|>]\n",
    ),
    (
        {"system": "s", "instruction": "i", "output": "o"},
        "<|im_start|>system\ns<|im_end|>\n<|im_start|>user\ni<|im_end|>\n"
        "<|im_start|>assistant\n[o][<|im_end|>]\n",
    ),
    # ShareGPT with its system text, and with the names of messages.
    (
        {
            "system": "s",
            "conversations": [
                {"from": "gpt", "value": "h", "weight": 0},
                {"from": "human", "value": "u"},
                {"from": "gpt", "value": "a"},
            ],
        },
        "<|im_start|>system\ns<|im_end|>\n<|im_start|>assistant\nh<|im_end|>\n"
        "<|im_start|>user\nu<|im_end|>\n<|im_start|>assistant\n[a][<|im_end|>]\n",
    ),
    (
        {
            "system": "s",
            "conversations": [
                {"role": "system", "content": "s"},
                {"role": "user", "content": "u"},
                {"role": "assistant", "content": "a"},
            ],
        },
        "<|im_start|>system\ns<|im_end|>\n<|im_start|>user\nu<|im_end|>\n"
        "<|im_start|>assistant\n[a][<|im_end|>]\n",
    ),
    # TRL's conversational form: what the prompt holds is not learnt.
    (
        {
            "prompt": [
                {"role": "user", "content": "u"},
                {"role": "assistant", "content": "a"},
                {"role": "user", "content": "v"},
            ],
            "completion": [{"role": "assistant", "content": "b"}],
        },
        "<|im_start|>user\nu<|im_end|>\n<|im_start|>assistant\na<|im_end|>\n"
        "<|im_start|>user\nv<|im_end|>\n<|im_start|>assistant\n[b][<|im_end|>]\n",
    ),
    # OpenAI's parts and weights, and its role that this template does not know.
    (
        {
            "messages": [
                {"role": "developer", "content": "d"},
                {
                    "role": "user",
                    "content": [{"type": "text", "text": "u"}, {"type": "text", "text": "v"}],
                },
                {"role": "assistant", "content": "a", "weight": 0},
                {"role": "user", "content": "w", "weight": None},
                {"role": "assistant", "content": [{"type": "text", "text": "b"}], "weight": 1},
            ]
        },
        "<|im_start|>system\nd<|im_end|>\n<|im_start|>user\nuv<|im_end|>\n"
        "<|im_start|>assistant\na<|im_end|>\n<|im_start|>user\nw<|im_end|>\n"
        "<|im_start|>assistant\n[b][<|im_end|>]\n",
    ),
    # Labels are unshifted: that of the first token is nobody's target.
    ({"input_ids": [64, 65, 66, 67], "labels": [64, -100, 66, -100]}, "ab[c]d"),
]


@pytest.mark.parametrize(("row", "expected"), CASES)
def test_kinds_by_hand(row: Any, expected: str) -> None:
    tokenizer = letters(CHAT)
    data = load(tokenizer, row)
    assert marked(tokenizer, data.rows[0]) == expected
    assert (data.truncated, data.dropped, data.notes, data.rows[0].line) == (0, 0, [], 1)


def test_fields_that_nothing_uses_are_named_and_counted() -> None:
    tokenizer = letters(CHAT)
    data = load(
        tokenizer,
        {"text": "abc", "id": 7},
        {"text": "abc", "id": None, "source": "x", "\x1b[2J": 1},
        # UltraChat
        {
            "prompt": "u",
            "messages": [
                {"role": "user", "content": "u", "time": 1},
                {"role": "assistant", "content": "a", "name": None},
            ],
            "tools": None,
        },
        {"instruction": "i", "output": "o", "response": "p"},
        {"prompt": "ab", "completion": "c", "tools": []},
    )
    assert [marked(tokenizer, row) for row in data.rows][:2] == ["a[b][c][<|end|>]"] * 2
    assert marked(tokenizer, data.rows[2]).endswith("assistant\n[a][<|im_end|>]\n")
    assert marked(tokenizer, data.rows[3]).endswith("assistant\n[o][<|im_end|>]\n")
    assert data.notes == [
        "fields ignored: 'id' in 2 rows, 'source' in 1 row, "
        r"'\x1b[2J' in 1 row, 'prompt' "
        "in 1 row, 'tools' in 2 rows, 'messages[].time' in 1 row, 'response' in 1 row"
    ]
    null = load(tokenizer, *[{"text": "abc", "tools": None}] * 3)
    assert null.notes == ["fields ignored: 'tools' in 3 rows (null)"]
    many = load(tokenizer, {"text": "abc", **{f"f{i}": i for i in range(1000)}}).notes
    assert len(many) == 1 and many[0].endswith("'f7' in 1 row, and 992 more") and len(many[0]) < 400


TWO = {"instruction": "i", "output": "o", "text": "abc", "extra": 1}


@pytest.mark.parametrize("kind", ["instruction", "text"])
def test_two_kinds_in_a_row_want_an_option(kind: str) -> None:
    tokenizer = letters(CHAT)
    with pytest.raises(FileError, match="data line 2: .* --kind text or --kind instruction ") as e:
        load(tokenizer, {"text": "a"}, TWO)
    assert f"--kind {kind}" in str(e.value)
    data = load(tokenizer, TWO, kind=kind)
    expected = {"instruction": "o][<|im_end|>]\n", "text": "a[b][c][<|end|>]"}[kind]
    assert marked(tokenizer, data.rows[0]).endswith(expected)
    other = {"instruction": "'text' in 1 row", "text": "'instruction' in 1 row, 'output' in 1 row"}
    assert f"{other[kind]}, 'extra' in 1 row" in data.notes[0]
    with pytest.raises(FileError, match=f"line 1: kind = {kind}: field '.*' is missing"):
        load(tokenizer, {"prompt": "a", "completion": "b"}, kind=kind)
    # A field that is null is not there, so this row is of one kind.
    assert load(tokenizer, {**TWO, "instruction": None}).rows[0].tokens.tolist()[0] == 64


def test_unknown_kind() -> None:
    with pytest.raises(OptionError, match="kind is 'alpaca'; one of text, prompt, messages, inst"):
        load(letters(), {"text": "ab"}, kind="alpaca")


def test_developer_where_the_template_knows_it() -> None:
    template = CHAT + "{% if messages[0].role == 'developer' %}{% endif %}"
    row = {
        "messages": [
            {"role": "developer", "content": "d"},
            {"role": "assistant", "content": "a"},
        ]
    }
    knows, plain = letters(template), letters()
    assert marked(knows, load(knows, row).rows[0]).startswith("<|im_start|>developer\nd<|im_end|>")
    assert marked(plain, load(plain, row).rows[0]) == "d\n\n[a][<|end|>]"


def test_turns_that_are_not_trained() -> None:
    messages = [
        {"role": "user", "content": "u"},
        {"role": "assistant", "content": "a", "weight": 0},
        {"role": "user", "content": "v"},
        {"role": "assistant", "content": "b", "weight": 1.0},
    ]
    plain = letters()
    data = load(plain, {"messages": messages})
    assert marked(plain, data.rows[0]) == "u\n\na<|end|>v\n\n[b][<|end|>]"
    blocks = letters(
        "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}"
        "<|im_end|>{% endgeneration %}{% else %}{{ m.content }}{% endif %}{% endfor %}"
    )
    assert (
        marked(blocks, load(blocks, {"messages": messages}).rows[0])
        == "ua<|im_end|>v[b][<|im_end|>]"
    )
    one = letters(
        "{% generation %}{% for m in messages %}{{ m.content }}{% endfor %}{% endgeneration %}"
    )
    with pytest.raises(FileError, match="line 1: the chat template marks 1 parts of 2 turns"):
        load(one, {"messages": messages})
    none = [{**m, **({"weight": 0} if m["role"] == "assistant" else {})} for m in messages]
    assert load(plain, {"messages": none}, {"text": "ab"}).dropped == 1


def test_empty_answers_are_said() -> None:
    tokenizer = letters(CHAT)
    data = load(
        tokenizer,
        {"prompt": "ab", "completion": ""},
        {"prompt": "a<|end|>", "completion": ""},
        {"instruction": "i", "output": ""},
        {"instruction": "i", "output": "o"},
        {"messages": [{"role": "user", "content": "u"}, {"role": "assistant", "content": ""}]},
    )
    said = [marked(tokenizer, row) for row in data.rows]
    assert said[:2] == ["ab[<|end|>]", "a<|end|>[<|end|>]"]
    assert said[2] == said[4].replace("u<", "i<") and said[2].endswith("assistant\n[<|im_end|>]\n")
    assert data.notes == ["an answer without a text, of which only the end is trained, in 4 rows"]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"text": "ab<|end|>"}, "a[b][<|end|>]"),
        ({"prompt": "a", "completion": "b<|end|>"}, "a[b][<|end|>]"),
        ({"prompt": "a<|end|>", "completion": "b"}, "a<|end|>[b][<|end|>]"),
        ({"instruction": "a", "output": "b<|end|>"}, "a\n\n[b][<|end|>]"),
        ({"text": "ab<|end|>\n"}, "a[b][<|end|>][\n][<|end|>]"),
    ],
)
def test_end_token_once(row: Any, expected: str) -> None:
    tokenizer = letters()
    assert marked(tokenizer, load(tokenizer, row).rows[0]) == expected


def test_labels_may_differ_from_the_ids() -> None:
    data = load(letters(), {"input_ids": [1, 2, 3], "labels": [-100, 9, 8]})
    assert data.rows[0].tokens.tolist() == [1, 2, 3]
    assert data.rows[0].targets.tolist() == [9, 8, -1]


def test_train_on_all() -> None:
    tokenizer = letters(CHAT)
    row = {"instruction": "i", "output": "o"}
    text = tokenizer.encode(
        "<|im_start|>user\ni<|im_end|>\n<|im_start|>assistant\no<|im_end|>\n", special=True
    )
    data = load(tokenizer, row, {"prompt": "ab", "completion": "c"}, train_on="all")
    assert data.rows[0].targets.tolist() == [*text[1:], -1]
    assert marked(tokenizer, data.rows[1]) == "a[b][c][<|end|>]"


def test_without_a_template() -> None:
    tokenizer = letters()
    messages = [
        {"role": "system", "content": "s"},
        {"role": "user", "content": "u"},
        {"role": "assistant", "content": "a"},
        {"role": "user", "content": "v"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "w"},
    ]
    data = load(
        tokenizer, {"messages": messages}, {"instruction": "i", "input": "j", "output": "o"}
    )
    assert marked(tokenizer, data.rows[0]) == "s\n\nu\n\n[a][<|end|>]v\n\n[b][<|end|>]"
    assert marked(tokenizer, data.rows[1]) == "i\n\nj\n\n[o][<|end|>]"
    assert data.notes == [NO_TEMPLATE]
    assert load(tokenizer, {"text": "ab"}).notes == []


def test_bos_once() -> None:
    """A SentencePiece file asks for BOS; the text, or the template, may have written it already."""
    metadata = spm("\u2581a", "\u2581b")
    plain = load_tokenizer(metadata)
    a = plain.id_of("\u2581a")
    rows = load(plain, {"text": "a"}, {"text": "<s>a"}, {"prompt": "", "completion": "a"}).rows
    assert [row.tokens.tolist() for row in rows] == [[1, a, 2]] * 3
    assert [row.targets.tolist() for row in rows] == [[a, 2, -1]] * 3
    for begin in ("", "{{ bos_token }}"):
        template = begin + "{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}"
        chat = load_tokenizer({**metadata, "tokenizer.chat_template": template})
        row = load(chat, {"instruction": "a", "output": "b"}).rows[0]
        assert row.tokens.tolist() == [1, a, 2, plain.id_of("\u2581b"), 2]
        assert row.targets.tolist() == [-1, -1, plain.id_of("\u2581b"), 2, -1]
    ids = {"input_ids": [5, 6], "labels": [5, 6]}
    assert load(plain, ids).rows[0].tokens.tolist() == [5, 6]


def test_a_token_across_the_boundary_is_learnt() -> None:
    tokenizer = load_tokenizer(bpe("a b", "ab c"))
    assert marked(tokenizer, load(tokenizer, {"prompt": "xa", "completion": "bcd"}).rows[0]) == (
        "x[abc][d][<|end|>]"
    )
    space = load_tokenizer(spm("\u2581b"))
    row = load(space, {"prompt": "a ", "completion": "b"}).rows[0]
    assert marked(space, row) == "<s> a[ b][</s>]"


def test_truncated_and_dropped() -> None:
    tokenizer = letters()
    data = load(
        tokenizer,
        {"prompt": "abcdef", "completion": "gh"},  # no answer left within 5
        {"prompt": "abc", "completion": "defg"},
        {"text": "abcd"},  # 5 with the end token
        {"input_ids": [1], "labels": [1]},  # one token has no target
        {"input_ids": [1, 2], "labels": [1, -100]},
        {"text": "a"},
        seq_len=5,
    )
    assert [marked(tokenizer, row) for row in data.rows] == [
        "abc[d][e]",
        "a[b][c][d][<|end|>]",
        "a[<|end|>]",
    ]
    assert [row.line for row in data.rows] == [2, 3, 6]
    assert (data.truncated, data.dropped, data.seq_len, data.name) == (2, 3, 5, "data")
    assert repr(data) == "<Dataset data: 3 rows>"
    none = r"^data: none of its 1 rows has a token to learn within 5 tokens"
    with pytest.raises(FileError, match=none + r"; a longer --seq-len .* helps, up to 9$"):
        load(tokenizer, {"prompt": "abcdef", "completion": "gh"}, seq_len=5)
    with pytest.raises(FileError, match=none + "$"):
        load(tokenizer, {"input_ids": [1, 2], "labels": [1, -100]}, seq_len=5)
    no_answer = {"messages": [{"role": "user", "content": "u"}]}
    assert load(letters(CHAT), no_answer, {"text": "ab"}).dropped == 1


def test_notes() -> None:
    silent = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    chats = {"instruction": "i", "output": "o"}, {"messages": [*EXCHANGE, *EXCHANGE]}
    data = load(letters(silent), *chats)
    assert data.notes == [
        "the chat template ends no answer at the end of a conversation: <|im_end|> is put there "
        "and trained, in 2 rows",
        "warning: the model may not learn to stop: answers without an end-of-turn token in 1 row: "
        "line 2",
    ]
    assert marked(letters(silent), data.rows[0]) == "user: i\nassistant: [o][<|im_end|>]"
    endless = load_tokenizer(bpe(specials=(), eos_token_id=np.uint32(0xFFFFFFFF)))
    data = load(endless, {"text": "abc"})
    assert data.notes == [NO_END_TOKEN]
    assert marked(endless, data.rows[0]) == "a[b][c]"


@pytest.mark.parametrize(
    "layout",
    [
        b"\xef\xbb\xbf%s\n\n  \r\n%s\r\n\t\n%s",
        b"[%s,\n\n%s,%s]",
        b"\xef\xbb\xbf \n [\n%s\n,%s\n\n,\n%s\n] \n",
        b"[%s, %s, %s,]\n",
    ],
)
def test_layouts(layout: bytes) -> None:
    tokenizer = letters()
    rows = (b'{"text": "ab"}', b'{"prompt": "a", "completion": "b"}', '{"text": "é"}'.encode())
    data = load_rows(layout % rows, tokenizer, seq_len=9)
    assert [marked(tokenizer, row) for row in data.rows][:2] == ["a[b][<|end|>]"] * 2
    lines = (layout % rows).decode("utf-8-sig").split("\n")
    found = [next(i for i, line in enumerate(lines, 1) if row.decode() in line) for row in rows]
    assert [row.line for row in data.rows] == found


def test_objects_over_several_lines() -> None:
    tokenizer = letters()
    rows = [{"text": "ab"}, {"prompt": "a", "completion": "b"}]
    text = "\n".join(json.dumps(row, indent=2) for row in rows) + '\n{"text": "ab"}\n'
    data = load_rows(b"\xef\xbb\xbf\n" + text.encode(), tokenizer, seq_len=9)
    assert [marked(tokenizer, row) for row in data.rows] == ["a[b][<|end|>]"] * 3
    assert [row.line for row in data.rows] == [2, 5, 9]


@pytest.mark.parametrize("members", [1, 2])
def test_gzip(members: int) -> None:
    tokenizer = letters()
    packed = gzip.compress(b'{"text": "ab"}\n') * members
    assert [row.line for row in load_rows(packed, tokenizer, seq_len=9).rows] == [1, 2][:members]


def test_tools_reach_the_template() -> None:
    path = needs.data() / "templates" / "Qwen-Qwen2.5-7B-Instruct.jinja"
    metadata = dict(vocabs.metadata("qwen2"))
    metadata["tokenizer.chat_template"] = path.read_text()
    tokenizer = load_tokenizer(metadata)
    call = {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
    row = {
        "messages": [
            {"role": "user", "content": "u"},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "content": "7", "name": "f", "tool_call_id": "1"},
            {"role": "assistant", "content": "seven"},
        ],
        "tools": [{"type": "function", "function": {"name": "f"}}],
    }
    data = load(tokenizer, row)
    learnt = tokenizer.decode(data.rows[0].targets[data.rows[0].targets >= 0], special=True)
    assert learnt == (
        '<tool_call>\n{"name": "f", "arguments": {"x": 1}}\n</tool_call><|im_end|>seven<|im_end|>'
    )
    text = tokenizer.decode(data.rows[0].tokens, special=True)
    assert '<tools>\n{"type": "function", "function": {"name": "f"}}\n</tools>' in text


def test_dates() -> None:
    tokenizer = letters("{{ strftime_now('%d %b %Y') }}" + CHAT)
    row = {"instruction": "i", "output": "o"}
    data = load(tokenizer, row, now=datetime(2020, 2, 29))
    assert tokenizer.decode(data.rows[0].tokens[:11]) == "29 Feb 2020"


def test_real_rows() -> None:
    """The shared data set: every token of every row is learnt, and the text is what was written."""
    tokenizer = vocabs.tokenizer("llama-spm")
    path = needs.data() / "wikisql_valid.jsonl"
    data = load_rows(path.read_bytes(), tokenizer, seq_len=4096, name=path.name)
    texts = [json.loads(line)["text"] for line in path.read_text().splitlines()]
    assert len(data.rows) == len(texts)
    for row, text in zip(data.rows, texts, strict=True):
        assert tokenizer.decode(row.tokens) == text
        assert row.tokens[0] == 1 and row.tokens[-1] == 2
        assert row.targets.tolist() == [*row.tokens[1:].tolist(), -1]


def test_many_rows_go_through_in_chunks() -> None:
    tokenizer = letters()
    rows: Sequence[Any] = [{"prompt": "p" * (i % 7), "completion": str(i)} for i in range(1500)]
    data = load(tokenizer, *rows)
    for i, row in enumerate(data.rows):
        assert row.line == i + 1
        assert tokenizer.decode(row.tokens) == "p" * (i % 7) + str(i)


@pytest.mark.parametrize("settings", [{"seq_len": 1}, {"seq_len": True}, {"seq_len": 2.5}])
def test_impossible_lengths(settings: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match="seq_len is"):
        load(letters(), {"text": "ab"}, **settings)


def test_unknown_train_on() -> None:
    with pytest.raises(OptionError, match="train_on is 'answers'; one of completions, all"):
        load(letters(), {"text": "ab"}, train_on="answers")


def test_broken_template_matters_only_for_chats() -> None:
    tokenizer = letters("{% for %}")
    assert len(load(tokenizer, {"text": "ab"}).rows) == 1
    with pytest.raises(FileError, match="data line 2: the model's chat template is broken"):
        load(tokenizer, {"text": "ab"}, {"instruction": "i", "output": "o"})
