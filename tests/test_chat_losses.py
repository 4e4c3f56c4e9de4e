"""What a row holds and its template does not write: told, counted, or written as it should be."""

import json
from typing import Any

import pytest
from test_chat import CALL, CALLED, assistant, shown, source, system, template, tool, user
from test_jsonl import CHAT, letters, load

from wgtrain.chat.template import Template
from wgtrain.errors import FileError

ARGUMENTS = {"town": "Köln", "n": [1, 2.5], "deep": {"a": None}}
THOUGHT = "<think>\nt\n</think>\n\nb"
CUT = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}"
    "{{ m.content.split('</think>')[-1] }}{% else %}{{ m.content }}{% endif %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
PREFILLED = CUT.replace("assistant\n{% endif %}", "assistant\n<think>\n{% endif %}")


def calls(arguments: Any) -> list[dict[str, Any]]:
    one = {"type": "function", "function": {"name": "f", "arguments": arguments}}
    return [user("a"), assistant("", tool_calls=[one]), tool("7"), assistant("d")]


@pytest.mark.parametrize("spaces", [(",", ":"), (", ", ": ")])
@pytest.mark.parametrize("name", ["qwen2.5", "qwen3", "llama3"])
def test_arguments_are_the_same_as_text_and_as_object(name: str, spaces: tuple[str, str]) -> None:
    text = json.dumps(ARGUMENTS, separators=spaces)
    chat = template(source(name))
    assert chat.split(calls(text)) == chat.split(calls(ARGUMENTS))
    assert chat.render(calls(text)) == chat.render(calls(ARGUMENTS))


@pytest.mark.parametrize(
    "form", ["{{ @ }}", "{{ '' + @ }}", "{{ '' ~ @ }}", "{{ @|string }}", "{{ '%s' % (@) }}"]
)
def test_arguments_stay_text_where_a_template_writes_text(form: str) -> None:
    text = '{"town":"Köln"}'
    form = form.replace("@", "c.function.arguments")
    loop = "{% for m in messages %}{% for c in m.tool_calls %}" + form + "{% endfor %}{% endfor %}"
    assert template(loop).render(calls(text)) == text


@pytest.mark.parametrize("text", ["no JSON", "[1]", "7", "null", "[" * 5000])
def test_arguments_that_are_no_object_stay(text: str) -> None:
    rendered = template(source("qwen2.5")).render(calls(text))
    assert f'"arguments": {json.dumps(text)}' in rendered


def test_what_is_missing_is_named() -> None:
    broken = [user("a"), assistant("", tool_calls=[CALL, {"function": {"name": "f"}}])]
    with pytest.raises(
        FileError, match=r"messages\[1\]\.tool_calls\[1\]\.function\.arguments is m"
    ):
        template(source("qwen2.5")).split(broken)
    with pytest.raises(FileError, match=r"refuses it: messages\[0\]\.name is missing"):
        template("{{ messages[0].name.first }}").render([user("a")])


def test_fields_that_are_not_written_are_counted() -> None:
    messages = [
        system("be"),
        user("a"),
        assistant("", tool_calls=[CALL]),
        {**tool("7"), "tool_call_id": "c1", "name": "f"},
        assistant("b"),
    ]
    found = template(source("qwen2.5")).split(messages, [CALL])
    assert found.unwritten == ["name", "tool_call_id"] and found.cut == []
    silent = "{% for m in messages if m.role in ('user', 'assistant') %}" + CHAT.partition("%}")[2]
    found = template(silent).split([system("be"), user("a"), assistant("b")], [CALL])
    assert found.unwritten == ["content of role 'system'", "tools"]
    row = {"messages": [system("be"), user("a"), assistant("b")], "tools": [CALL]}
    plain = {"messages": [user("a"), assistant("b")]}
    data = load(letters(silent), row, row, plain)
    assert data.notes == [
        "fields that the chat template does not write: content of role 'system' in 2 rows, "
        "tools in 2 rows"
    ]


@pytest.mark.parametrize("content", ["7", '{"a": "é\n"}', "  x  "])
@pytest.mark.parametrize("name", ["qwen2.5", "qwen3", "llama3"])
def test_nothing_is_counted_where_all_is_written(name: str, content: str) -> None:
    chat = template(source(name))
    messages = [user(content), assistant(content, tool_calls=[CALL]), tool(content), assistant("d")]
    if name == "llama3":  # writes calls in the place of contents
        messages[1]["content"] = ""
    found = chat.split(messages, [CALL])
    assert (found.cut, found.unwritten) == ([], [])


CASES = [
    ("qwen2.5", [user("a"), assistant("b", reasoning_content="t")], [(1, "reasoning_content")]),
    ("qwen3", [user("a"), assistant("b", reasoning_content="t")], []),
    ("qwen3", [user("a"), assistant(THOUGHT), user("c"), assistant(THOUGHT)], [(1, "content")]),
    ("qwen3", [user("a"), assistant("<think>t</think>b")], []),  # with other blanks
]


@pytest.mark.parametrize(("name", "messages", "cut"), CASES)
def test_turns_that_lose_text(name: str, messages: list[Any], cut: list[Any]) -> None:
    assert template(source(name)).split(messages).cut == cut


@pytest.mark.parametrize("text", [CUT, PREFILLED], ids=["cut", "prefilled"])
def test_thoughts_that_are_cut(text: str) -> None:
    """What is left of a turn is trained, also where the prompt opens thoughts."""
    blanks = ("⟦\n\n", "\n\n⟦")[text == PREFILLED]
    expected = f"<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n{blanks}b<|im_end|>⟧\n"
    assert shown(template(text), [user("a"), assistant(THOUGHT)]) == expected


def test_only_whole_turns() -> None:
    tokenizer = letters(CUT)
    chat = {"messages": [user("a"), assistant(THOUGHT), user("c"), assistant("d")]}
    plain = {"messages": [user("a"), assistant("b")]}
    lost = {"messages": [user("a"), assistant(THOUGHT)]}
    rows = (chat, plain, lost)
    data = load(tokenizer, *rows)
    (note,) = data.notes
    assert note.startswith(
        "the chat template leaves out text (content), as many do with thoughts, in 2 turns of "
        "2 rows: such turns are trained without it; --train-on whole"
    )
    whole = load(tokenizer, *rows, train_on="whole")
    (note,) = whole.notes
    assert note.endswith("in 2 turns of 2 rows: such turns are not trained")
    assert len(data.rows) == 3 and len(whole.rows) == 2 and whole.dropped == 1
    learnt = [row.targets[row.targets >= 0] for row in whole.rows]
    assert [tokenizer.decode(ids, special=True) for ids in learnt] == ["d<|im_end|>", "b<|im_end|>"]


def test_long_conversations_take_linear_time() -> None:
    """Counted in renderings: each prompt of a turn is one."""
    counts = []
    for turns in (10, 40, 160):
        chat = Template(source("qwen3"), stops=("<|im_end|>",))
        ran = chat._sandbox.run
        n = 0

        def counted(*arguments: Any, ran: Any = ran, **values: Any) -> str:
            nonlocal n
            n += 1
            return ran(*arguments, **values)

        chat._sandbox.run = counted  # type: ignore[method-assign]
        messages = [m for i in range(turns) for m in (user(f"q{i}"), assistant(f"a{i}"))]
        found = chat.split(messages)
        assert [found.text[a:b] for a, b in found.spans[:-1]] == [
            f"a{i}<|im_end|>" for i in range(turns - 1)
        ]
        counts.append(n)
    assert counts[0] == counts[1] == counts[2] < 16


def test_prompts_between_are_found_where_they_change() -> None:
    """The place of each turn is that of a rendering of its own, wherever templates turn."""
    text = (
        "{% for m in messages %}<|{{ m.role }}|>"
        "{% if m.role == 'assistant' and loop.index > 41 %}<x>{% endif %}{{ m.content }}<|end|>"
        "{% endfor %}{% if add_generation_prompt %}<|assistant|>"
        "{% if messages|length > 90 %}<x>{% endif %}{% endif %}"
    )
    chat = Template(text, stops=("<|end|>",))
    messages = [m for i in range(60) for m in (user(f"q{i}"), assistant(f"a{i}"))]
    found = chat.split(messages)
    for i, (start, _) in enumerate(found.spans):
        prompt = chat.render(messages[: 2 * i + 1], None, True)
        assert found.text.startswith(prompt) and start == len(prompt), i


def test_calls_whose_thoughts_are_gone() -> None:
    """A call of an earlier question has no content and no thoughts left to show where it begins."""
    call = assistant("", tool_calls=[CALL], reasoning_content="why")
    turns = [user("q"), call, tool("7"), call, tool("8"), assistant("d", reasoning_content="so")]
    for n in (2, 40):
        found = template(source("qwen3")).split(turns * n)
        learnt = [found.text[start:end] for start, end in found.spans]
        assert learnt[:-3] == [f"{CALLED}<|im_end|>", f"{CALLED}<|im_end|>", "d<|im_end|>"] * (
            n - 1
        )
        assert learnt[-1] == "<think>\nso\n</think>\n\nd<|im_end|>"
        assert found.cut == [
            (i, "reasoning_content")
            for i, message in enumerate((turns * n)[:-6])
            if message["role"] == "assistant"
        ]
