"""Broken data sets: each fault, anywhere in a good file, reaches its check and names the line."""

import gzip
import json
import random
import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest
from test_jsonl import CHAT, letters

from wgtrain.chat import bounded
from wgtrain.chat.page import Page
from wgtrain.data import load_rows
from wgtrain.data.records import read_records
from wgtrain.errors import FileError

Make = Callable[[random.Random], bytes]
VOCAB = 259
N = 3  # files of each class


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Templates run here, as in a page: starting a process for each file would be the most."""
    monkeypatch.setattr(bounded, "_open", Page)


def row(value: Any) -> Make:
    return lambda rng: json.dumps(value).encode()


def raw(*choices: str | bytes) -> Make:
    """One of some lines that are not written by a JSON writer."""
    return lambda rng: c.encode() if isinstance(c := rng.choice(choices), str) else c


def messages(*items: Any, **more: Any) -> Make:
    return row({"messages": list(items), **more})


def cut_row(rng: random.Random) -> bytes:
    text = json.dumps({"prompt": "a question", "completion": "an answer"}).encode()
    return text[: rng.randrange(1, len(text))]


def bad_bytes(rng: random.Random) -> bytes:
    data = bytearray(json.dumps({"text": "some longer text that is fine"}).encode())
    data[rng.randrange(10, len(data) - 2)] = rng.choice([0x80, 0xC0, 0xF5, 0xFF, 0xE2])
    return bytes(data)


def ids(rng: random.Random, wrong: Any, field: str) -> bytes:
    n = rng.randrange(1, 9)
    value = {"input_ids": [5] * n, "labels": [-100] * n}
    value[field][rng.randrange(n)] = wrong
    return json.dumps(value).encode()


USER = {"role": "user", "content": "u"}
PART = {"type": "text", "text": "a"}
CALL = {"function": {"name": "f"}}
FAULTS: dict[str, tuple[Make, str]] = {
    "cut": (cut_row, r"no JSON: "),
    "empty object": (row({}), r"none of the known kinds \(text; prompt, completion; "),
    "no object": (raw("1", '"a"', "null", "true", "[]", "[1]"), r"is not a JSON object"),
    "two objects": (raw('{"text": "a"} {"text": "b"}', '{"text": "a"}x'), r"after the JSON object"),
    "no JSON": (raw("{text: 1}", "{'text': 'a'}", "abc", '{"text": "a",}'), r"no JSON: "),
    "control character": (
        raw('{"text": "a\x01b"}', '{"text": "\t"}'),
        r"Invalid control character",
    ),
    "escape": (raw('{"text": "\\x"}', '{"text": "\\u12"}'), r"no JSON: Invalid \\"),
    "NaN": (raw('{"text": NaN}', '{"input_ids": [NaN]}'), r"NaN is no number of JSON"),
    "infinity": (raw('{"text": -Infinity}', '{"a": Infinity}'), r"Infinity is no number of JSON"),
    "huge float": (raw('{"text": 1e999}', '{"a": [-1e9999]}'), r"1e9999?' is too large"),
    "huge integer": (raw('{"text": ' + "9" * 9999 + "}"), r"no usable JSON: Exceeds the limit"),
    "twice": (raw('{"text": "a", "text": "b"}'), r"field 'text' stands twice"),
    "twice inside": (raw('{"messages": [{"role": "user", "role": "x"}]}'), r"'role' stands twice"),
    "bytes": (bad_bytes, r"byte 0x[0-9a-f]{2} is no UTF-8"),
    "UTF-16": (raw('{"text": "a"}'.encode("utf-16")), r"byte 0xff is no UTF-8 .*; UTF-16 is not"),
    "lone surrogate": (raw('{"text": "a\\ud800b"}'), r"'text': a lone surrogate .* at character 1"),
    "surrogate in tools": (
        raw('{"messages": [{"role": "user", "content": "u"}], "tools": [{"a": ["\\udfff"]}]}'),
        r"field 'tools': a lone surrogate",
    ),
    "deep list": (lambda rng: b"[" * rng.choice([70, 900, 200_000]) + b"1", r"no (usable )?JSON"),
    "deep row": (
        lambda rng: b'{"text": ' + b"[" * (n := rng.choice([70, 200])) + b"]" * n + b"}",
        r"deeper than 64 levels",
    ),
    "very deep row": (
        lambda rng: b'{"text": ' + b'{"a":' * (n := 300_000) + b"1" + b"}" * n + b"}",
        r"deeper than 64 levels",
    ),
    "unknown kind": (row({"question": "a", "answer": "b"}), r"\['question', 'answer'\]: none of"),
    "mixed kinds": (
        row({"text": "a", "prompt": "b", "completion": "c"}),
        r"make 2 kinds of row, text and prompt: choose with --kind text or --kind prompt \(in Pyth",
    ),
    "no completion": (row({"prompt": "a"}), r"field 'completion' is missing beside 'prompt'"),
    "no output": (row({"instruction": "a"}), r"field 'output' is missing beside 'instruction'"),
    "no labels": (row({"input_ids": [1]}), r"field 'labels' is missing beside 'input_ids'"),
    "text type": (row({"text": ["a"]}), r"field 'text': \['a'\] is not a text"),
    "prompt type": (
        row({"prompt": 7, "completion": "a"}),
        r"field 'prompt': 7 is not a text",
    ),
    "null": (
        row({"prompt": None, "completion": "a"}),
        r"field 'prompt' is null beside 'completion'",
    ),
    "no instruction": (
        row({"response": "a"}),
        r"field 'instruction' is missing beside 'response'",
    ),
    "prompts of two kinds": (
        row({"prompt": [USER], "completion": "a"}),
        r"field 'completion': 'a' is not a list",
    ),
    "a completion of another kind": (
        row({"prompt": "a", "completion": [USER]}),
        r"field 'completion': \[.* is not a text",
    ),
    "completion type": (row({"prompt": "a", "completion": 7}), r"'completion': 7 is not a text"),
    "input type": (row({"instruction": "a", "input": {"a": 1}, "output": ""}), r"field 'input': "),
    "messages type": (row({"messages": {"role": "user"}}), r"field 'messages': .* is not a list"),
    "no messages": (row({"messages": []}), r"field 'messages': is empty"),
    "message type": (messages(USER, "hello"), r"'messages\[1\]': 'hello' is not an object"),
    "role": (
        messages(USER, {"role": "bot", "content": "a"}),
        r"field 'messages\[1\].role': 'bot' is not one of system, developer, user, assistant, tool",
    ),
    "role type": (
        messages({"role": ["user"], "content": "a"}),
        r"'messages\[0\].role': \['user'\]",
    ),
    "no role": (messages({"content": "a"}), r"field 'messages\[0\].role' is missing"),
    "no content": (messages({"role": "user"}), r"field 'messages\[0\].content' is missing"),
    "content type": (messages({**USER, "content": {"a": 1}}), r"\[0\].content': .* is not a text"),
    "image": (
        messages(USER, {"role": "assistant", "content": [PART, {"type": "image_url", "url": "x"}]}),
        r"field 'messages\[1\].content\[1\]': a part of type 'image_url'; only 'text' is trained",
    ),
    "part without a type": (
        messages({**USER, "content": [{"text": "a"}]}),
        r"'messages\[0\].content\[0\]': a part of type None",
    ),
    "part type": (
        messages({**USER, "content": ["a"]}),
        r"\[0\].content\[0\]': 'a' is not an object",
    ),
    "part text": (
        messages({**USER, "content": [{"type": "text", "text": 7}]}),
        r"\[0\].content\[0\].text': 7 is not a text",
    ),
    "weight": (
        messages({"role": "assistant", "content": "a", "weight": 0.5}),
        r"field 'messages\[0\].weight': 0.5 is not 0 or 1",
    ),
    "weight type": (
        messages({"role": "assistant", "content": "a", "weight": True}),
        r"field 'messages\[0\].weight': True is not 0 or 1",
    ),
    "weight of a user": (
        messages({**USER, "weight": 1}),
        r"field 'messages\[0\].weight': only an assistant's message has one",
    ),
    "two systems": (
        row(
            {
                "system": "s",
                "conversations": [{"from": "system", "value": "t"}, {"from": "gpt", "value": "a"}],
            }
        ),
        r"field 'system': the conversation begins with a system message of its own",
    ),
    "system type": (
        row({"system": 7, "conversations": [{"from": "gpt", "value": "a"}]}),
        r"field 'system': 7 is not a text",
    ),
    "calls of a user": (
        messages({**USER, "tool_calls": [CALL]}),
        r"'messages\[0\].tool_calls': only an assistant",
    ),
    "calls type": (
        messages(USER, {"role": "assistant", "content": "", "tool_calls": [7]}),
        r"'messages\[1\].tool_calls\[0\]': 7 is not an object",
    ),
    "tools type": (messages(USER, tools={"f": 1}), r"field 'tools': .* is not a list"),
    "speaker": (
        row({"conversations": [{"from": "bob", "value": "a"}]}),
        r"field 'conversations\[0\].from': 'bob' is not one of human, user, gpt",
    ),
    "no value": (
        row({"conversations": [{"from": "gpt"}]}),
        r"conversations\[0\].value' is missing",
    ),
    "value type": (
        row({"conversations": [{"from": "gpt", "value": 1}]}),
        r"field 'conversations\[0\].value': 1 is not a text",
    ),
    "ids type": (row({"input_ids": "1 2", "labels": [1, 2]}), r"'input_ids': '1 2' is not a list"),
    "no ids": (row({"input_ids": [], "labels": []}), r"field 'input_ids': is empty"),
    "id outside": (
        lambda rng: ids(rng, rng.choice([VOCAB, -1, 10**30]), "input_ids"),
        rf"field 'input_ids\[\d\]': \S+ is not a token id from 0 to {VOCAB - 1}",
    ),
    "id type": (
        lambda rng: ids(rng, rng.choice([1.0, "1", None, True, [1]]), "input_ids"),
        r"field 'input_ids\[\d\]': .* is not a token id",
    ),
    "label outside": (
        lambda rng: ids(rng, rng.choice([VOCAB, -1, -101, 2**31]), "labels"),
        rf"field 'labels\[\d\]': \S+ is not -100 or a token id from 0 to {VOCAB - 1}",
    ),
    "label type": (
        lambda rng: ids(rng, rng.choice([-100.0, "a", None, False]), "labels"),
        r"field 'labels\[\d\]': .* is not -100 or a token id",
    ),
    "lengths": (row({"input_ids": [1, 2], "labels": [1]}), r"'labels': 1 labels for 2 input_ids"),
    "template": (
        messages({"role": "user", "content": "RAISE"}),
        r"the chat template refuses it: not this",
    ),
    "noncharacter": (messages({"role": "user", "content": "\ufdd1"}), r"the text holds U\+FDD1"),
}
TEMPLATE = "{% if messages[0].content == 'RAISE' %}{{ raise_exception('not this') }}{% endif %}"
GOOD = [
    b'{"text": "abc"}',
    b'{"prompt": "a", "completion": "b"}',
    b'{"messages": [{"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}]}',
    b"",
    b'{"input_ids": [1, 2], "labels": [-100, 2]}',
]


def load(data: bytes) -> None:
    load_rows(data, letters(TEMPLATE + CHAT), seq_len=64, name="bad.jsonl")


def test_the_good_rows_are_good() -> None:
    load(b"\n".join(GOOD))


@pytest.mark.parametrize("fault", FAULTS)
def test_fault_names_its_line(fault: str) -> None:
    make, message = FAULTS[fault]
    for seed in range(N):
        rng = random.Random(f"{fault} {seed}")
        lines = [rng.choice(GOOD) for _ in range(rng.randrange(1, 12))]
        at = rng.randrange(len(lines))
        lines[at] = make(rng)
        if at == 0 or not any(lines[:at]):  # a "[" that comes first would begin an array
            lines.insert(0, GOOD[0])
            at += 1
        refused(b"\n".join(lines), rf"^bad\.jsonl line {at + 1}: .*({message})")


@pytest.mark.parametrize("fault", [name for name in FAULTS if name not in ("UTF-16", "no object")])
def test_fault_in_an_array_names_its_line(fault: str) -> None:
    """The same faults among the elements of a JSON array, one a line."""
    make, message = FAULTS[fault]
    rng = random.Random(fault)
    good = [line for line in GOOD if line]
    lines = [rng.choice(good) for _ in range(rng.randrange(2, 9))]
    at = rng.randrange(len(lines))
    lines[at] = make(rng)
    if fault in ("cut", "deep list"):
        message = "no JSON|no usable JSON|array is not closed"
    if fault == "two objects":
        message = "array is not closed"
    refused(b"[\n" + b",\n".join(lines) + b"\n]", rf"^bad\.jsonl line {at + 2}: .*({message})")


WHOLE = [
    (b"", r"^bad.jsonl: no rows in it"),
    (b"\xef\xbb\xbf", r"no rows in it"),
    (b" \n\r\n\t\n", r"no rows in it"),
    (b"[]", r"no rows in it"),
    (b"\n[\n]\n", r"no rows in it"),
    (b"[", r"line 1: no JSON"),
    (b'[{"text": "a"}', r"line 1: the JSON array is not closed"),
    (b'[{"text": "a"}\n{"text": "b"}]', r"line 2: the JSON array is not closed"),
    (b'[{"text": "ab"}]\n\n{"text": "b"}', r"line 3: .* after the end of the JSON array"),
    (b'[{"text": "ab"},\n,{"text": "b"}]', r"line 2: no JSON"),
    (b'[\n\n"a"]', r"line 3: 'a' is not a JSON object"),
    (b'[{"text": "ab"},\n{"text": "\xff"}]', r"line 2: byte 0xff is no UTF-8"),
    (b'[{"text": "ab"},\n\n{"text": "a"', r"line 3: no JSON"),
    (b'[{"text": "ab"}, 5]', r"line 1: 5 is not a JSON object"),
    (b"\0" * 1000, r"line 1: no JSON"),
    (b"\x89PNG\r\n\x1a\n" + bytes(range(256)), r"line 1: byte 0x89 is no UTF-8"),
    (b"PK\x03\x04" + b"a" * 100, r"bad.jsonl: this is a zip archive; JSONL, plain or as gzip"),
    (b"GGUF\x03\0\0\0" + b"\0" * 64, r"bad.jsonl: this is a GGUF file"),
    (b"\x28\xb5\x2f\xfd" + b"a" * 100, r"bad.jsonl: this is a zstandard file"),
    (gzip.compress(b'{"text": "ab"}')[:-3], r"bad.jsonl: this is gzip, and damaged"),
    (b"\x1f\x8b" + b"a" * 100, r"bad.jsonl: this is gzip, and damaged"),
    (gzip.compress(b""), r"bad.jsonl: no rows in it"),
    (gzip.compress(b'{"text": "ab"}\n{"a"'), r"bad.jsonl line 2: no JSON"),
    (b'{\n"text": "ab"\n}\n\n{\n"text": 7\n}', r"line 5: field 'text': 7 is not a text"),
    (b'{\n"text": "ab"\n}\n{"text": "ab",\n}', r"line 4: no JSON"),
    (b'{"text": "ab"}\n{\n"text": "ab"\n}', r"line 2: no JSON: .* at the end; an object that is"),
    (b"text\nabc\n", r"line 1: no JSON"),
    (b'{"text": ""}', r"bad.jsonl: none of its 1 rows has a token to learn"),
]


@pytest.mark.parametrize(("data", "message"), WHOLE)
def test_broken_as_a_whole(data: bytes, message: str) -> None:
    refused(data, message)


def test_random_damage_is_refused_or_read() -> None:
    """Flipped, cut and doubled bytes: an error that names the file, never anything else."""
    good = b"\n".join(GOOD * 3)
    refusals = 0
    for seed in range(300):
        rng = random.Random(seed)
        data = bytearray(good)
        for _ in range(rng.randrange(1, 4)):
            at = rng.randrange(len(data))
            kind = rng.randrange(3)
            if kind == 0:
                data[at] ^= 1 << rng.randrange(8)
            elif kind == 1:
                del data[at : at + rng.randrange(1, 40)]
            else:
                data[at:at] = data[at : at + rng.randrange(1, 40)]
        try:
            load(bytes(data))
        except FileError as error:
            assert str(error).startswith("bad.jsonl")
            refusals += 1
    assert refusals > 200


def refused(data: bytes, message: str) -> None:
    tokenizer = letters(TEMPLATE + CHAT)
    tracemalloc.start()
    try:
        with pytest.raises(FileError, match=message) as caught:
            load_rows(data, tokenizer, seq_len=64, name="bad.jsonl")
        assert tracemalloc.get_traced_memory()[1] < 200 << 20
    finally:
        tracemalloc.stop()
    assert len(str(caught.value)) < 400


def test_a_table_is_told_how_it_becomes_rows():
    for name in ("rows.csv", "ROWS.TSV.gz"):
        with pytest.raises(FileError, match=f"^{name}: a table, .*to_json"):
            list(read_records(b"prompt,completion\nhi,there\n", name))
        assert list(read_records(b'{"text": "a"}', name)) == [(1, {"text": "a"})]
