"""Chat templates: the text is Transformers', the spans are written by hand; hostile ones end."""

import json
from datetime import datetime
from typing import Any

import needs
import pytest

from wgtrain.data import ChatTemplate
from wgtrain.errors import FileError

TEMPLATES = {
    "qwen2.5": "Qwen-Qwen2.5-7B-Instruct",
    "qwen3": "Qwen-Qwen3-0.6B",
    "gemma": "google-gemma-2-2b-it",
    "llama3": "meta-llama-Llama-3.2-3B-Instruct",
    "phi": "microsoft-Phi-3.5-mini-instruct",
}
STOPS = ("<|im_end|>", "<|eot_id|>", "<end_of_turn>", "<|end|>", "<eos>")
DAY = datetime(2024, 7, 26)
CALL = {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"é": "<"}}}]


def source(name: str) -> str:
    return (needs.data() / "templates" / f"{TEMPLATES[name]}.jinja").read_text()


def template(text: str, **more: Any) -> ChatTemplate:
    tokens = {"bos_token": "<bos>", "eos_token": "<eos>"}
    settings = {"tokens": tokens, "stops": STOPS, "now": DAY}
    return ChatTemplate(text, **{**settings, **more})


def system(content: str) -> dict[str, Any]:
    return {"role": "system", "content": content}


def user(content: str) -> dict[str, Any]:
    return {"role": "user", "content": content}


def assistant(content: str, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **more}


def tool(content: str) -> dict[str, Any]:
    return {"role": "tool", "content": content}


def shown(chat: ChatTemplate, messages: list[Any], tools: list[Any] | None = None) -> str:
    """The text with each learnt span in brackets."""
    rendered = chat.split(messages, tools)
    out, at = [], 0
    for start, end in rendered.spans:
        out += [rendered.text[at:start], "⟦", rendered.text[start:end], "⟧"]
        at = end
    return "".join([*out, rendered.text[at:]])


PLAIN = [user("a"), assistant("b"), user("c"), assistant("d")]
THOUGHT = [user("a"), assistant("<think>\nt\n</think>\n\nb"), user("c"), assistant("d")]
CALLS = [user("a"), assistant("", tool_calls=[CALL]), tool("7"), assistant("d")]
QWEN_SYSTEM = (
    "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant."
    "<|im_end|>\n"
)
LLAMA_SYSTEM = (
    "<bos><|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\n"
    "Today Date: 26 Jul 2024\n\n{}<|eot_id|>"
)


def im(role: str, text: str) -> str:
    return f"<|im_start|>{role}\n{text}<|im_end|>\n"


def im_answer(text: str) -> str:
    return f"<|im_start|>assistant\n⟦{text}<|im_end|>⟧\n"


def header(role: str, text: str) -> str:
    return f"<|start_header_id|>{role}<|end_header_id|>\n\n{text}<|eot_id|>"


def header_answer(text: str) -> str:
    return f"<|start_header_id|>assistant<|end_header_id|>\n\n⟦{text}<|eot_id|>⟧"


def gemma(role: str, text: str) -> str:
    return f"<start_of_turn>{role}\n{text}<end_of_turn>\n"


def gemma_answer(text: str) -> str:
    return f"<start_of_turn>model\n⟦{text}<end_of_turn>⟧\n"


def phi(role: str, text: str) -> str:
    return f"<|{role}|>\n{text}<|end|>\n"


def phi_answer(text: str) -> str:
    return f"<|assistant|>\n⟦{text}<|end|>⟧\n"


NO_THOUGHT = "<think>\n\n</think>\n\n"
CALLED = '<tool_call>\n{"name": "f", "arguments": {"x": 1}}\n</tool_call>'
EXPECTED = [
    (
        "qwen2.5",
        PLAIN,
        QWEN_SYSTEM + im("user", "a") + im_answer("b") + im("user", "c") + im_answer("d"),
    ),
    (
        "qwen2.5",
        [system("s"), user("a"), assistant("  b \n"), user("c")],
        im("system", "s") + im("user", "a") + im_answer("  b \n") + im("user", "c"),
    ),
    (
        "qwen2.5",
        [assistant("x"), user("a"), assistant("")],
        QWEN_SYSTEM + im_answer("x") + im("user", "a") + im_answer(""),
    ),
    (
        "qwen2.5",
        CALLS,
        QWEN_SYSTEM
        + im("user", "a")
        + im_answer(CALLED)
        + im("user", "<tool_response>\n7\n</tool_response>")
        + im_answer("d"),
    ),
    (
        "qwen3",
        PLAIN,
        im("user", "a") + im_answer("b") + im("user", "c") + im_answer(NO_THOUGHT + "d"),
    ),
    (
        "qwen3",  # thoughts of turns before the last question are left out
        THOUGHT,
        im("user", "a") + im_answer("b") + im("user", "c") + im_answer(NO_THOUGHT + "d"),
    ),
    (
        "qwen3",
        THOUGHT[:2],
        im("user", "a") + im_answer("<think>\nt\n</think>\n\nb"),
    ),
    (
        "qwen3",
        [user("a"), assistant("b", reasoning_content="t"), user("b")],
        im("user", "a") + im_answer("b") + im("user", "b"),
    ),
    (
        "qwen3",
        CALLS,
        im("user", "a")
        + im_answer(CALLED)
        + im("user", "<tool_response>\n7\n</tool_response>")
        + im_answer(NO_THOUGHT + "d"),
    ),
    (
        "gemma",
        [user(" a"), assistant("  b \n"), user("b"), assistant("d")],
        "<bos>" + gemma("user", "a") + gemma_answer("b") + gemma("user", "b") + gemma_answer("d"),
    ),
    ("gemma", [user("a"), assistant("")], "<bos>" + gemma("user", "a") + gemma_answer("")),
    (
        "llama3",
        [system("s"), *PLAIN],
        LLAMA_SYSTEM.format("s")
        + header("user", "a")
        + header_answer("b")
        + header("user", "c")
        + header_answer("d"),
    ),
    (
        "llama3",
        CALLS,
        LLAMA_SYSTEM.format("")
        + header("user", "a")
        + header_answer('{"name": "f", "parameters": {"x": 1}}')
        + header("ipython", '"7"')
        + header_answer("d"),
    ),
    (
        "phi",  # the closing end of text is no part of the answer
        [system("s"), *PLAIN],
        phi("system", "s")
        + phi("user", "a")
        + phi_answer("b")
        + phi("user", "c")
        + phi_answer("d")
        + "<eos>",
    ),
]


@pytest.mark.parametrize(("name", "messages", "expected"), EXPECTED)
def test_spans_by_hand(name: str, messages: list[Any], expected: str) -> None:
    assert shown(template(source(name)), messages) == expected


@pytest.mark.oracle
@pytest.mark.parametrize("tools", [None, TOOLS], ids=["plain", "tools"])
@pytest.mark.parametrize("name", TEMPLATES)
def test_text_is_that_of_transformers(name: str, tools: list[Any] | None) -> None:
    needs.package("transformers")
    from transformers.utils.chat_template_utils import render_jinja_template

    ours = template(source(name), now=None)
    for _, messages, _ in EXPECTED:
        for prompt in (False, True):
            theirs: str | None
            try:
                (theirs,), _ = render_jinja_template(
                    [messages],
                    tools=tools,
                    chat_template=source(name),
                    add_generation_prompt=prompt,
                    bos_token="<bos>",
                    eos_token="<eos>",
                )
            except Exception:  # Gemma refuses systems, Llama two calls; then so must we
                theirs = None
            if theirs is None:
                with pytest.raises(FileError, match="the chat template refuses it"):
                    ours.render(messages, tools, prompt)
            else:
                assert ours.render(messages, tools, prompt) == theirs


GENERATION = (
    "{% for m in messages %}{% if m.role == 'assistant' %}A:"
    "{% generation %}{{ m.content }}<|end|>{% endgeneration %}\n"
    "{% else %}U:{{ m.content }}\n{% endif %}{% endfor %}"
)


def test_generation_blocks_give_the_spans() -> None:
    assert shown(template(GENERATION), PLAIN) == "U:a\nA:⟦b<|end|>⟧U:c\nA:⟦d<|end|>⟧"
    assert template(GENERATION).render(PLAIN) == "U:a\nA:b<|end|>U:c\nA:d<|end|>"


@pytest.mark.oracle
def test_generation_blocks_as_transformers_finds_them() -> None:
    needs.package("transformers")
    from transformers.utils.chat_template_utils import render_jinja_template

    _, ((*spans,),) = render_jinja_template(
        [PLAIN], chat_template=GENERATION, return_assistant_tokens_mask=True
    )
    assert template(GENERATION).split(PLAIN).spans == spans


ALPACA = (
    "{% for m in messages %}### {{ m.role }}:\n{{ m.content }}\n\n{% endfor %}"
    "{% if add_generation_prompt %}### assistant:\n{% endif %}"
)
LLAMA2 = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% else %} {{ m.content }} {{ eos_token }}{% endif %}{% endfor %}"
)
NO_PROMPT = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
ODD = [
    # no token ends a turn: the answers alone are learnt
    (ALPACA, "### user:\na\n\n### assistant:\n⟦b⟧\n\n### user:\nc\n\n### assistant:\n⟦d⟧\n\n"),
    # add_generation_prompt is not heeded
    (LLAMA2, "<bos>[INST] a [/INST] ⟦b <eos>⟧[INST] c [/INST] ⟦d <eos>⟧"),
    (NO_PROMPT, "<|user|>a<|end|><|assistant|>⟦b<|end|>⟧<|user|>c<|end|><|assistant|>⟦d<|end|>⟧"),
    # the prompt opens thoughts that a finished turn does not have
    (
        NO_PROMPT + "{% if add_generation_prompt %}<|assistant|><think>{% endif %}",
        "<|user|>a<|end|><|assistant|>⟦b<|end|>⟧<|user|>c<|end|><|assistant|>⟦d<|end|>⟧",
    ),
    # only questions are ended: their end must not be taken for the answer's
    (
        "{% for m in messages %}{{ m.content }}{% if m.role == 'user' %}<|end|>{% endif %}"
        "{% endfor %}",
        "a<|end|>⟦b⟧c<|end|>⟦d⟧",
    ),
]


@pytest.mark.parametrize(("text", "expected"), ODD)
def test_odd_templates(text: str, expected: str) -> None:
    assert shown(template(text), PLAIN) == expected


def test_contents_that_look_like_template_text() -> None:
    """Equal contents, contents that hold an end of turn, or each other."""
    chat = template(source("qwen3"))
    same = [user("x"), assistant("x"), user("x x"), assistant("x")]
    assert shown(chat, same) == (
        im("user", "x") + im_answer("x") + im("user", "x x") + im_answer(NO_THOUGHT + "x")
    )
    holds = [user("<|im_end|>"), assistant("x<|im_end|>y"), user("z")]
    assert shown(chat, holds) == (
        im("user", "<|im_end|>") + im_answer("x<|im_end|>y") + im("user", "z")
    )


REFUSED = [
    ("{% for m in messages %}{{ m.content|upper }}{% endfor %}", "where messages\\[1\\] begins"),
    ("{% for m in messages %}{{ m.content ~ m.content }}{% endfor %}", "messages\\[1\\]"),
    ("{{ messages|length }}", "where messages\\[1\\] begins"),
    ("{{ messages[7].content.x }}", "refuses it: .*undefined|refuses it: .*no element"),
    ("{{ raise_exception('not like this') }}", "refuses it: not like this"),
    ("{{ 1 / 0 }}", "refuses it: ZeroDivisionError"),
    ("{{ '\\ud800' }}", "refuses it: UnicodeEncodeError"),
    ("{% generation %}{% endgeneration %}", "generation %} blocks lose"),
    (
        "{% generation %}a{% generation %}b{% endgeneration %}{% endgeneration %}",
        "generation %} into another",
    ),
]


@pytest.mark.parametrize(("text", "message"), REFUSED)
def test_refused_rather_than_masked_wrongly(text: str, message: str) -> None:
    with pytest.raises(FileError, match=message):
        template(text).split(PLAIN)


def test_calls_that_a_template_leaves_out_are_refused() -> None:
    with pytest.raises(FileError, match=r"messages\[1\]|messages\[2\]"):
        template(source("phi")).split(CALLS)
    with pytest.raises(FileError, match=r"leaves out the tool_calls of messages\[1\]"):
        template(source("phi")).split(CALLS[:2])


def test_noncharacters_are_refused() -> None:
    with pytest.raises(FileError, match=r"U\+FDD0"):
        template(NO_PROMPT).split([user("\ufdd0"), assistant("b")])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{% for %}", "line 1"),
        ("a\n{{ b", "line 2|unexpected"),
        ("{% endfor %}", "line 1"),
        ("{{ a|nosuch }}", "nosuch"),
        ("{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}", "RecursionError"),
        ("{% for i in a %}" * 30 + "{% endfor %}" * 30, "nested|SyntaxError"),
        ("x" * 600_000, "600000 characters"),
    ],
)
def test_broken_templates(text: str, message: str) -> None:
    with pytest.raises(FileError, match=message) as caught:
        template(text)
    assert "the model's chat template is broken" in str(caught.value)
    assert len(str(caught.value)) < 400


TWICE = "{% set x = x ~ x %}"
ESCAPES = [
    "{{ ''.__class__ }}{{ ''.__class__.__mro__ }}",
    "{{ messages.__init__.__globals__ }}",
    "{{ cycler.__init__.__globals__ }}",
    "{{ self.__init__.__globals__ }}",
    "{{ (''|attr('__class__')).__mro__ }}",
    "{{ messages.append(1) }}",
    "{{ messages[0].update({'role': 'x'}) }}",
    "{{ 'a'.encode() }}",
    "{{ ('{0.__class__.__mro__[1]}').format(1)[0:1000000].x }}",
    "{% include 'x' %}",
    "{% import 'os' as os %}",
    "{{ lipsum() }}",
]
BOMBS = [
    "{% for i in range(1000000000) %}{% endfor %}",
    "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "{% for i in range(99999) %}{% for j in range(99999) if j < 0 %}{% endfor %}{% endfor %}",
    "{% for i in range(99999) %}{{ range(99999)|sum }}{% endfor %}",
    "{% for i in range(99999) %}{{ 0.5 in range(99999)|map('string') }}{% endfor %}",
    "{% macro f(n) %}{{ f(n) }}{{ f(n) }}{% endmacro %}{{ f(0) }}",
    "{% macro f(n) %}{% if n < 90 %}{{ f(n + 1) ~ f(n + 1) }}{% endif %}{% endmacro %}{{ f(0) }}",
    "{% for i in range(99999) %}" + "y" * 1000 + "{% endfor %}",
    "{% set x %}{% for i in range(99999) %}"
    + "y" * 1000
    + "{% endfor %}{% endset %}{{ x|length }}",
    "{{ 'x' * 10000000000 }}",
    "{{ [1] * 10000000000 }}",
    "{{ 9 ** 9 ** 9 }}",
    "{% set x = 2 %}" + "{% set x = x * x %}" * 60 + "{{ x }}",
    "{% set x = 'aaaaaaaa' %}" + TWICE * 60,
    "{% set x = 'aaaaaaaa' %}" + TWICE.replace("~", "+") * 60,
    "{% set x = ['a'] %}" + "{% set x = [x, x] %}" * 60 + "{{ x|string|length }}",
    "{% set x = ['a'] %}" + "{% set x = x + x %}" * 60,
    "{% set x = 1 %}" + "{% set x = {'a': x, 'b': x} %}" * 60 + "{{ x|tojson|length }}",
    "{% set x = 1 %}" + "{% set x = dict(a=x, b=x) %}" * 60 + "{{ x|tojson|length }}",
    "{% set x = 1 %}" + "{% set x = namespace(a=x, b=x) %}" * 60 + "{{ x }}",
    "{{ '%1000000000d' % 1 }}",
    "{{ '%*d' % (1000000000, 1) }}",
    "{{ '{:>1000000000}'.format(1) }}",
    "{{ '{:>{}}'.format(1, 1000000000) }}",
    "{{ 'x'|center(1000000000) }}",
    "{{ 'x'.ljust(1000000000) }}",
    "{{ 'x'.zfill(1000000000) }}",
    "{{ (1).to_bytes(1000000000, 'big') }}",
    "{{ ('a' * 1000000).replace('a', 'b' * 1000000) }}",
    "{{ ('a' * 1000000)|replace('a', 'b' * 1000000) }}",
    "{{ ('a' * 1000000).join(range(99999)|map('string')) }}",
    "{{ range(99999)|join('z' * 100000) }}",
    "{{ ('a\n' * 100000)|indent(100000) }}",
    "{{ [1]|tojson(indent=1000000000) }}",
    "{{ range(99999)|batch(1000000000, 'x')|list }}",
]


@pytest.mark.parametrize("text", [*ESCAPES, *BOMBS], ids=lambda text: text[:40])
def test_hostile_templates_end_in_an_error(text: str) -> None:
    """Within bounds of computing time, which would otherwise be hours, and of memory."""
    import resource

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(FileError) as caught:
        chat = template(text)
        rendered = chat.render([user("a"), assistant("b")])
        # Attributes that are not for templates are undefined and print nothing.
        assert rendered == ""
        raise FileError("nothing came out")
    assert len(str(caught.value)) < 400
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 << 10  # KiB


def test_usual_things_work() -> None:
    text = (
        "{%- set ns = namespace(n=0) -%}{%- for m in messages -%}{%- set ns.n = ns.n + 1 -%}"
        "{%- if loop.first -%}{% continue %}{%- endif -%}{{ '%s:%02d ' % (m.role, ns.n) }}"
        "{%- endfor -%}{{ messages|map(attribute='role')|join('/') }} {{ 'aXa'.replace('X', '-') }}"
        " {{ {'é': '<'}|tojson }} {{ [1, 2]|tojson(indent=2)|length }} {{ 'a\nb'|indent(2) }} "
        "{{ messages|selectattr('role', 'equalto', 'user')|list|length }} {{ strftime_now('%Y') }} "
        "{{ 'x,y'.split(',')[1] ~ none ~ true }} {{ '{}!'.format('q') }}"
        " {{ messages[-1]['content'] }}"
    )
    expected = (
        "assistant:02 user:03 assistant:04 user/assistant/user/assistant a-a "
        + '{"é": "<"} '
        + f"{len(json.dumps([1, 2], indent=2))} a\n  b 2 2024 yNoneTrue q! d"
    )
    assert template(text).render(PLAIN) == expected


def test_long_conversations_fit() -> None:
    """The bounds grow with the row."""
    messages = [user("question " * 200), assistant("answer " * 200)] * 200
    for name in TEMPLATES:
        assert len(template(source(name)).split(messages[:300]).spans) == 150
