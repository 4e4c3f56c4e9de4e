"""A person's own template, its variables, merged system texts: what they change, and that a run
keeps them.
"""

import json
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from fake_learner import fake_rows
from test_chat import CALL, assistant, im, system, template, tool, user
from test_cli import toy as toy  # a fixture
from test_cli import train, wgtrain
from test_jsonl import CHAT, letters, load, marked
from test_trainer import make as make_trainer
from test_trainer import numpy_learner as numpy_learner
from vocabs import bpe, spm

import wgtrain as package
from wgtrain.chat.turns import merge_system
from wgtrain.data import Tokenizer, load_tokenizer
from wgtrain.data.messages import read_conversation
from wgtrain.data.templates import Templating
from wgtrain.errors import FileError, OptionError
from wgtrain.runs import session

EXCHANGE = {"messages": [user("u"), assistant("a")]}
THINKING = "{% if enable_thinking %}T{% endif %}" + CHAT
GEMMA = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}"
    "{% endif %}" + CHAT
)


def text(tokenizer: Tokenizer, row: Any, **more: Any) -> str:
    """The text of a row."""
    return tokenizer.decode(load(tokenizer, row, **more).rows[0].tokens, special=True)


def test_a_template_goes_in_the_place_of_the_models() -> None:
    tokenizer = letters("{{ raise_exception('not this one') }}")
    own = "{% for m in messages %}{{ m.role }}={{ m.content }}<|end|>{% endfor %}"
    data = load(tokenizer, EXCHANGE, chat=Templating(own))
    assert marked(tokenizer, data.rows[0]) == "user=u<|end|>assistant=[a][<|end|>]"
    assert data.notes == ["chat template: the text given, in place of the model's own"]
    data = load(tokenizer, EXCHANGE, chat=Templating("chatml"))
    expected = im("user", "u") + "<|im_start|>assistant\n[a][<|im_end|>]\n"
    assert marked(tokenizer, data.rows[0]) == expected
    assert load(letters(), EXCHANGE, chat=Templating("chatml")).chat == {
        "chat_template": Templating("chatml").source
    }


def test_a_template_must_write_pieces_of_the_vocabulary() -> None:
    plain = load_tokenizer(spm("\u2581a"), "llama.gguf")
    with pytest.raises(OptionError) as caught:
        load(plain, EXCHANGE, chat=Templating("chatml"))
    assert str(caught.value) == (
        "chat_template = chatml: it writes <|im_start|> <|im_end|>, not single tokens of the "
        "vocabulary of llama.gguf: a template for this model is needed"
    )
    # What a person typed is none of the template's, nor what it would write for other rows.
    other = (
        "{% if tools %}<|tools|>{% endif %}{% for m in messages %}{{ m.content }}</s>{% endfor %}"
    )
    typed = {"messages": [user("<|im_start|> b"), assistant("a")]}
    assert load(plain, typed, chat=Templating(other)).rows
    # The model's own may write what it likes.
    own = load_tokenizer({**spm(), "tokenizer.chat_template": "<|x|>" + other})
    assert load(own, EXCHANGE).rows


def test_variables_of_a_run_and_of_a_row() -> None:
    tokenizer = letters(THINKING)
    on = {"enable_thinking": True}
    plain, thinking = text(tokenizer, EXCHANGE), "T" + text(tokenizer, EXCHANGE)
    row = {**EXCHANGE, "chat_template_kwargs": {"enable_thinking": False}}
    assert text(tokenizer, EXCHANGE, chat=Templating(args=on)) == thinking
    assert text(tokenizer, {**EXCHANGE, "chat_template_kwargs": on}) == thinking
    assert text(tokenizer, row, chat=Templating(args=on)) == plain
    assert load(tokenizer, EXCHANGE, chat=Templating(args=on)).chat == {"template_args": on}
    unread = {**EXCHANGE, "chat_template_kwargs": {"enable_thinkng": True}}
    assert load(tokenizer, unread, EXCHANGE).notes == [
        "fields that the chat template does not write: chat_template_kwargs.enable_thinkng in 1 row"
    ]
    with pytest.raises(
        OptionError,
        match="'enable_thinkng': the chat template does not read it; it reads enable_thinking",
    ):
        load(tokenizer, EXCHANGE, chat=Templating(args={"enable_thinkng": True}))


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ([1], "allowed is an object"),
        ({"messages": []}, "'messages' comes from the row"),
        ({"a b": 1}, "'a b' is no name of a variable"),
    ],
)
def test_what_are_no_variables(args: Any, says: str) -> None:
    with pytest.raises(OptionError, match=says):
        Templating(args=args)
    if isinstance(args, dict):
        with pytest.raises(FileError, match=f"line 1: field 'chat_template_kwargs': {says}"):
            load(letters(CHAT), {**EXCHANGE, "chat_template_kwargs": args})


def test_a_template_that_takes_no_system_message() -> None:
    row = {"messages": [system("be"), user("u"), assistant("a"), user("v"), assistant("b")]}
    tokenizer = letters(GEMMA)
    with pytest.raises(FileError) as caught:
        load(tokenizer, row)
    assert "takes no system message" in str(caught.value)
    assert "System role not supported" in str(caught.value)
    assert "--system merge (in Python system='merge')" in str(caught.value)
    merged = {"messages": [user("be\n\nu"), *row["messages"][2:]]}
    given = Templating(system="merge")
    assert text(tokenizer, row, chat=given) == text(tokenizer, merged)
    assert load(tokenizer, row, chat=given).chat == {"system": "merge"}
    # Another refusal is not taken for that.
    with pytest.raises(FileError, match="refuses it: no more") as caught:
        load(letters("{{ raise_exception('no more') }}"), row)
    assert "system" not in str(caught.value)
    with pytest.raises(OptionError, match="system is 'join'; one of keep, merge"):
        Templating(system="join")


def test_system_texts_are_merged_where_they_stand() -> None:
    mixed = [system("s"), system("t"), assistant("h"), user("u"), assistant("a"), system("x")]
    found, places = merge_system([*mixed, user("v")])
    contents = [message["content"] for message in found]
    assert contents == ["h", "s\n\nt\n\nu", "a", "x\n\nv"] and places == [2, 3, 4, 6]
    with pytest.raises(FileError, match="line 1: no user's turn follows the system message"):
        load(letters(CHAT), {"messages": mixed}, chat=Templating(system="merge"))
    # Turns that are not trained stay those.
    mixed[4]["weight"] = 0
    row = {"messages": [*mixed[:5], user("v"), assistant("b")]}
    data = load(letters(CHAT), row, chat=Templating(system="merge"))
    assert "".join(marked(letters(CHAT), data.rows[0])).count("[") == 4  # h and b, and their ends


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"template": "chatml"}, "chat_template = 'chatml'"),
        ({"args": {"a": 1}}, "template_args = "),
        ({"system": "merge"}, "system = 'merge'"),
    ],
)
def test_settings_that_would_do_nothing_are_refused(given: Any, says: str) -> None:
    with pytest.raises(OptionError, match=f"{says}.*: data has no conversations"):
        load(letters(CHAT), {"text": "ab"}, chat=Templating(**given))
    if "args" in given:
        with pytest.raises(OptionError, match=f"{says}.*: the model has no chat template"):
            load(letters(), EXCHANGE, chat=Templating(**given))


def test_several_templates() -> None:
    """With tools that for tools, else the default; also where all are named."""
    named = {
        "tokenizer.chat_templates": ["tool_use", "rag", "default"],
        "tokenizer.chat_template.tool_use": "T{{ tools|length }}" + CHAT,
        "tokenizer.chat_template.rag": "R",
        "tokenizer.chat_template.default": "D" + CHAT,
    }
    row = {"messages": [user("u"), assistant("a")], "tools": [CALL]}
    for first, key in (("D", {}), ("E", {"tokenizer.chat_template": "E" + CHAT})):
        tokenizer = load_tokenizer({**bpe(specials=("<|im_start|>", "<|im_end|>")), **named, **key})
        assert text(tokenizer, EXCHANGE).startswith(first + "<|im_start|>")
        assert text(tokenizer, row).startswith("T1<|im_start|>")
    with pytest.raises(FileError, match="chat_templates is a int; expected an array of strings"):
        load_tokenizer({**bpe(), "tokenizer.chat_templates": 7})


def test_tokens_that_a_model_does_not_have_are_undefined() -> None:
    """Not empty texts: templates ask whether they are defined."""
    names = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "nosuch")
    seen = "".join(f"{{% if {n} is defined %}}{{{{ {n} }}}},{{% endif %}}" for n in names)
    byte_level = letters(seen + CHAT)
    assert text(byte_level, EXCHANGE).startswith("<|end|>,<|im_start|>")
    metadata = spm("\u2581a", specials=("<pad>",), padding_token_id=3)
    pieces = load_tokenizer(
        {**metadata, "tokenizer.chat_template": seen + "{{ messages[0].content }}"}
    )
    assert pieces.special_tokens == {
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "pad_token": "<pad>",
    }


def test_by_path_by_text_and_by_name(tmp_path: Path) -> None:
    tokenizer = letters("never")
    path = tmp_path / "own.jinja"
    path.write_text(CHAT, encoding="utf-8")
    data = json.dumps(EXCHANGE).encode()
    rows = [
        package.load_dataset(data, tokenizer, chat_template=given).rows[0].tokens.tolist()
        for given in (path, str(path), CHAT, "chatml")
    ]
    assert rows == [rows[0]] * 4
    with pytest.raises(FileError, match="nosuch.jinja: No such file"):
        package.load_dataset(data, tokenizer, chat_template="nosuch.jinja")
    path.write_bytes(b"\xff")
    with pytest.raises(FileError, match="own.jinja: no valid UTF-8 at byte 0"):
        package.load_dataset(data, tokenizer, chat_template=path)
    path.write_text("{% for %}")
    with pytest.raises(FileError, match=r"the chat template .*own.jinja is broken: line 1"):
        package.load_dataset(data, tokenizer, chat_template=path)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[Templating]:
    """What each data set of a run was read with."""
    read, out = session.load_dataset, []

    def watched(*arguments: Any, chat: Templating, **more: Any) -> Any:
        out.append(chat)
        made = read(*arguments, chat=chat, **more)
        return replace(made, chat={"now": chat.now.isoformat()})

    monkeypatch.setattr(session, "load_dataset", watched)
    return out


def test_a_run_keeps_its_template(toy: Path, capsys: Any, seen: list[Templating]) -> None:
    """Resumed it is read from the run's folder, wherever the file went."""
    Path("own.jinja").write_text(CHAT)
    given = ["--chat-template", "own.jinja", "--template-args", '{"a": [1]}', "--system", "merge"]
    train(capsys, *given, "--iters", "2")
    assert Path("out/chat_template.jinja").read_text() == CHAT
    Path("own.jinja").unlink()
    code, said, error = wgtrain(capsys, "train", "--resume", "out", "--iters", "3")
    assert code == 0, said + error
    first, again = seen
    assert first.args == again.args == {"a": [1]} and first.system == again.system == "merge"
    assert (first.source, first.now) == (CHAT, again.now) and again.source == CHAT
    Path("out/chat_template.jinja").unlink()
    code, said, error = wgtrain(capsys, "train", "--resume", "out", "--iters", "4")
    assert code == 2 and "chat_template.jinja" in error


def test_the_built_in_template_is_kept_as_text(toy: Path, capsys: Any, seen: Any) -> None:
    train(capsys, "--chat-template", "chatml", "--iters", "2")
    assert Path("out/chat_template.jinja").read_text() == Templating("chatml").source


def test_the_day_is_in_the_checkpoint_too(toy: Path, capsys: Any, seen: list[Templating]) -> None:
    train(capsys, "--iters", "2")
    summary = Path("out/summary.json")
    day = json.loads(summary.read_text())["started"]
    summary.unlink()
    code, said, error = wgtrain(capsys, "train", "--resume", "out", "--iters", "3")
    assert code == 0, said + error
    assert [chat.now.isoformat() for chat in seen] == [day, day]


def test_a_date_is_one_for_all_rows_and_recorded() -> None:
    dated = letters("{{ strftime_now('%Y-%m-%d') }}" + CHAT)
    data = load(dated, EXCHANGE, now=datetime(2024, 7, 26))
    assert data.chat == {"now": "2024-07-26T00:00:00"}
    assert dated.decode(data.rows[0].tokens).startswith("2024-07-26")
    today = datetime.fromisoformat(load(dated, EXCHANGE).chat["now"])
    assert dated.decode(load(dated, EXCHANGE, now=today).rows[0].tokens).startswith(
        f"{today:%Y-%m-%d}"
    )
    assert load(letters(CHAT), EXCHANGE, now=datetime(2024, 7, 26)).chat == {}


def test_other_rows_say_what_the_checkpoint_had(numpy_learner: Any) -> None:
    rows = replace(fake_rows(), chat={"now": "2024-07-26T00:00:00"})
    first = make_trainer(rows=rows, iters=2)
    list(first.run())
    other = make_trainer(rows=replace(fake_rows(9), chat={"system": "merge"}), iters=2)
    with pytest.raises(OptionError) as caught:
        other.restore(first.checkpoint())
    said = "was made with other rows; its conversations had now = '2024-07-26T00:00:00', system = N"
    assert said in str(caught.value)


def test_what_is_wrong_with_validation_rows_is_said(
    toy: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = session.load_dataset

    def told(*arguments: Any, name: str, **more: Any) -> Any:
        found = read(*arguments, name=name, **more)
        if name == "rows.jsonl":
            return found
        return replace(found, truncated=2, dropped=1, notes=[*found.notes, "warning: so"])

    monkeypatch.setattr(session, "load_dataset", told)
    Path("valid.jsonl").write_bytes(Path("rows.jsonl").read_bytes())
    given = ("--model", "base.gguf", "--data", "rows.jsonl", "--out", "out", "--iters", "2")
    code, said, error = wgtrain(capsys, "train", *given, "--valid", "valid.jsonl")
    assert code == 0, error
    lines = [line for line in said.splitlines() if line.startswith("valid.jsonl: ")]
    assert lines == [
        "valid.jsonl: 2 cut at 512 tokens",
        "valid.jsonl: 1 dropped, no token of them counts",
        "valid.jsonl: warning: so",
    ]


def test_yaml(toy: Path, capsys: Any, seen: list[Templating]) -> None:
    Path("run.yaml").write_text("chat_template_kwargs: {enable_thinking: false}\nsystem: merge\n")
    train(capsys, "--config", "run.yaml", "--iters", "2")
    assert (seen[0].args, seen[0].system) == ({"enable_thinking": False}, "merge")


@pytest.mark.parametrize("value", ["{", "[1]", "7", '{"messages": 1}', '{"a b": 1}', '{"a": NaN}'])
def test_arguments_that_are_none(toy: Path, capsys: Any, value: str) -> None:
    given = ("--model", "base.gguf", "--data", "rows.jsonl", "--template-args", value)
    code, _, error = wgtrain(capsys, "train", *given)
    assert code == 2 and "--template-args" in error


def test_a_call_without_a_content() -> None:
    """Undefined, as in Transformers; empty where the template cannot do without."""
    call = {"role": "assistant", "tool_calls": [CALL]}
    asks = "{% for m in messages %}{{ m.content is defined }}{% endfor %}"
    for given in (call, {**call, "content": None}):
        turns = [user("u"), given, tool("7"), assistant("a")]
        messages = read_conversation(turns, "messages").messages
        assert template(asks).render(messages) == "TrueFalseTrueTrue"
        needs_it = "{% for m in messages %}{{ 'x' + m.content }}{% endfor %}"
        assert template(needs_it).render(messages) == "xuxx7xa"


def test_arguments_as_text_where_a_template_adds_them_to_text() -> None:
    calls = [user("u"), assistant("", tool_calls=[CALL])]
    adds = "{% for m in messages %}{% for c in m.tool_calls %}{{ 'x' + c.function.arguments }}"
    assert template(adds + "{% endfor %}{% endfor %}").render(calls) == 'x{"x": 1}'


def test_thoughts_by_any_of_their_names() -> None:
    writes = "{% for m in messages %}{{ m.reasoning_content }}{{ m.thinking }},{% endfor %}"
    for name in ("reasoning_content", "thinking", "reasoning"):
        turns = [user("u"), assistant("a", **{name: "why"})]
        messages = read_conversation(turns, "messages").messages
        assert template(writes).render(messages) == ",whywhy,"
    both = [user("u"), assistant("a", thinking="b", reasoning_content=None, reasoning="c")]
    assert template(writes).render(both) == ",bb,"


def test_what_templates_may_make() -> None:
    for text, made in (
        ("{{ dict(a=1) }}{{ dict.fromkeys(['a']) }}", "{'a': 1}{'a': None}"),
        ("{% set n = namespace(a=1, self=2) %}{% set n.a = 3 %}{{ n.a }}{{ n.self }}", "32"),
        ("{% for i in [1, 2, 3] %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}", "1"),
        ("{{ {'a': '<é>'}|tojson }}{{ tools }}{{ documents is none }}", '{"a": "<é>"}NoneTrue'),
        ("{{ dict.__class__ }}{{ dict.mro }}", ""),
    ):
        assert template(text).render([user("u")]) == made
    for text in ("{{ namespace(_a=1) }}", "{% set n = namespace() %}{% set n._a = 1 %}"):
        with pytest.raises(FileError, match="no name that begins with _"):
            template(text).render([user("u")])
