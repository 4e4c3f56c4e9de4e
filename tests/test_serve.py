"""The endpoint over HTTP: forms, refusals, who is answered, the line before the GPU."""

import http.client
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from serving import CONTEXT, FakeModel, chat, events, send, serving

from wgtrain.data.templates import Templating
from wgtrain.errors import DeviceLostError, FileError, NonFiniteError, OptionError, OutOfMemoryError
from wgtrain.files import Adapter
from wgtrain.files.adapters import write_adapter_gguf
from wgtrain.infer.generation import Request
from wgtrain.infer.sampling import Sampling
from wgtrain.serve import server as serve_server
from wgtrain.serve import worker
from wgtrain.serve.app import MOST_BYTES
from wgtrain.serve.choice import Choice
from wgtrain.serve.server import Server, is_loopback
from wgtrain.serve.shelf import Shelf
from wgtrain.web import patience
from wgtrain.web.listener import listen

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"


@pytest.fixture(scope="module")
def model() -> FakeModel:
    return FakeModel()


@pytest.fixture(scope="module")
def server(model: FakeModel) -> Iterator[Any]:
    """One for all tests that leave it as it is."""
    with serving(model, Shelf("base", [("a", "A", 0.5), ("b", "B", 0.0)])) as opened:
        yield opened


def until(true: Callable[[], bool]) -> None:
    """Waits for what happens in another thread."""
    for _ in range(6000):
        if true():
            return
        time.sleep(0.01)
    raise AssertionError("it did not happen")


# --- forms


def test_an_answer_and_its_stream_say_the_same(server: Any) -> None:
    body = chat("say thought|text", lora_adapters=[])
    status, headers, whole = send(server, CHAT, body)
    assert status == 200 and headers["Cache-Control"] == "no-store"
    (choice,) = whole["choices"]
    message = {"role": "assistant", "content": "text", "refusal": None}
    assert choice == {
        "index": 0,
        "message": {**message, "reasoning_content": "thought"},
        "logprobs": None,
        "finish_reason": "stop",
    }
    counts = {"prompt_tokens": 16, "completion_tokens": 11, "total_tokens": 27}
    assert whole["usage"] == {**counts, "completion_tokens_details": {"reasoning_tokens": 7}}
    assert whole["object"] == "chat.completion" and whole["id"].startswith("chatcmpl-")

    options = {"stream": True, "stream_options": {"include_usage": True}}
    status, headers, raw = send(server, CHAT, {**body, **options})
    assert status == 200 and headers["Content-Type"].startswith("text/event-stream")
    *chunks, usage, done = events(raw)
    assert done == "[DONE]" and usage["choices"] == [] and usage["usage"] == whole["usage"]
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert len({chunk["id"] for chunk in chunks}) == 1 and chunks[0]["id"] != whole["id"]
    assert all(chunk["usage"] is None and chunk["model"] == "base" for chunk in chunks)
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert deltas[0] == {"role": "assistant", "content": ""} and deltas[-1] == {}
    assert "".join(delta.get("reasoning_content", "") for delta in deltas) == "thought"
    assert "".join(delta.get("content", "") for delta in deltas) == "text"
    finishes = [chunk["choices"][0]["finish_reason"] for chunk in chunks]
    assert finishes == [None] * (len(chunks) - 1) + ["stop"]


def test_usage_is_in_a_stream_where_it_is_asked_for(server: Any) -> None:
    for options in ({}, {"stream_options": {"include_usage": False}}):
        *chunks, done = events(send(server, CHAT, chat(stream=True, **options))[2])
        assert done == "[DONE]" and not any("usage" in chunk for chunk in chunks)


def test_texts_are_continued_each_with_its_number(server: Any) -> None:
    body = {"prompt": ["go on", [ord(c) for c in "x two"]], "lora_adapters": []}
    whole = send(server, TEXT, body)[2]
    assert [(c["index"], c["text"], c["logprobs"]) for c in whole["choices"]] == [
        (0, "on", None),
        (1, "two", None),
    ]
    assert whole["object"] == "text_completion" and whole["id"].startswith("cmpl-")
    assert whole["usage"]["prompt_tokens"] == 10 and whole["usage"]["completion_tokens"] == 5
    *chunks, done = events(send(server, TEXT, {**body, "stream": True})[2])
    texts = ["", ""]
    for chunk in chunks:
        texts[chunk["choices"][0]["index"]] += chunk["choices"][0]["text"]
    assert texts == ["on", "two"] and done == "[DONE]"


def test_logprobs_in_both_forms(server: Any) -> None:
    body = chat("say t|é!", logprobs=True, top_logprobs=2, lora_adapters=[])
    tops = [{"token": t, "logprob": p, "bytes": [ord(t)]} for t, p in (("a", -1.0), ("b", -2.0))]
    wanted = [
        {"token": t, "logprob": -0.5, "bytes": list(t.encode()), "top_logprobs": tops}
        for t in ("é", "!")
    ]
    choice = send(server, CHAT, body)[2]["choices"][0]
    assert choice["logprobs"] == {"content": wanted, "refusal": None}
    *chunks, _ = events(send(server, CHAT, {**body, "stream": True})[2])
    found = [c["choices"][0]["logprobs"] for c in chunks]
    assert [one["content"] for one in found if one] == [[token] for token in wanted]
    bare = send(server, CHAT, chat("say x", logprobs=True))[2]["choices"][0]["logprobs"]
    assert [token["top_logprobs"] for token in bare["content"]][-1] == []

    body = {"prompt": "é éa", "logprobs": 1, "lora_adapters": []}
    wanted = {
        "tokens": ["é", "a"],
        "text_offset": [0, 1],
        "token_logprobs": [-0.5, -0.5],
        "top_logprobs": [{"a": -1.0, "é": -0.5}, {"a": -0.5}],
    }
    assert send(server, TEXT, body)[2]["choices"][0]["logprobs"] == wanted
    *chunks, _ = events(send(server, TEXT, {**body, "stream": True})[2])
    found = [c["choices"][0]["logprobs"]["text_offset"] for c in chunks]
    assert found == [[0], [1]]


# --- fields


@pytest.mark.parametrize(
    ("fields", "wanted"),
    [
        ({}, {"sampling": Sampling(1.0, seed=7), "max_tokens": CONTEXT - 9, "stop": ()}),
        ({"temperature": 0}, {"sampling": Sampling(0.0, seed=7)}),
        ({"top_p": 0.5, "top_k": 3}, {"sampling": Sampling(1.0, 3, 0.5, seed=7)}),
        ({"top_k": -1}, {"sampling": Sampling(1.0, 0, seed=7)}),
        ({"min_p": 0.1}, {"sampling": Sampling(1.0, min_p=0.1, seed=7)}),
        ({"repeat_penalty": 1.5}, {"sampling": Sampling(1.0, repeat_penalty=1.5, seed=7)}),
        ({"repetition_penalty": 1.5}, {"sampling": Sampling(1.0, repeat_penalty=1.5, seed=7)}),
        ({"seed": -1}, {"sampling": Sampling(1.0, seed=-1)}),
        ({"stop": "x"}, {"stop": ("x",)}),
        ({"stop": ["x", "yz"]}, {"stop": ("x", "yz")}),
        ({"max_tokens": 3.0}, {"max_tokens": 3}),
        ({"max_completion_tokens": 4, "max_tokens": 4}, {"max_tokens": 4}),
        ({"max_tokens": -1}, {"max_tokens": CONTEXT - 9}),
        ({"max_tokens": 10**6}, {"max_tokens": CONTEXT - 9}),
        ({"logprobs": True}, {"logprobs": 0}),
        ({"logprobs": True, "top_logprobs": 20}, {"logprobs": 20}),
        ({"logprobs": None, "stop": None, "model": None, "max_tokens": None}, {"logprobs": None}),
    ],
)
def test_fields_say_how_is_answered(
    server: Any, model: FakeModel, fields: dict[str, Any], wanted: dict[str, Any]
) -> None:
    assert send(server, CHAT, {"seed": 7, **chat(), **fields})[0] == 200
    ((request,), _) = model.asked[-1]
    assert isinstance(request, Request)
    assert {name: getattr(request, name) for name in wanted} == wanted


def test_what_a_template_gets(server: Any, model: FakeModel) -> None:
    tools = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
    parts = [{"type": "text", "text": "say "}, {"type": "text", "text": "it"}]
    body = chat(tools=tools, chat_template_kwargs={"enable_thinking": False}, system="merge")
    body["messages"] = [
        {"role": "system", "content": "be brief"},
        {"role": "assistant", "content": "no", "refusal": None, "annotations": []},
        {"role": "user", "content": parts},
    ]
    assert send(server, CHAT, body)[0] == 200
    (messages, given, args, system), (_, without, *rest) = model.prompts[-2:]
    assert without is None and rest == [args, system]
    assert [m["content"] for m in messages] == ["be brief", "no", "say it"]
    assert (given, args, system) == (tools, {"enable_thinking": False}, "merge")
    assert send(server, CHAT, {**body, "tool_choice": "none"})[0] == 200
    assert model.prompts[-1][1] is None
    assert send(server, CHAT, chat(tool_choice="auto"))[0] == 200
    assert model.prompts[-1][1:] == (None, None, None)
    answer = send(server, CHAT, chat("blind", tools=tools))  # a template without a word of tools
    assert answer[0] == 400 and answer[2]["error"]["param"] == "tools"


def test_calls_of_tools_are_not_dropped(server: Any, model: FakeModel) -> None:
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    for word, status in (("seeing", 200), ("blind", 400)):
        turns = [
            {"role": "user", "content": word},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "content": "say it", "tool_call_id": "1"},
        ]
        code, _, answer = send(server, CHAT, {**chat(), "messages": turns})
        assert code == status
    assert answer["error"]["param"] == "messages" and "no tool_calls" in answer["error"]["message"]


class Refusing(FakeModel):
    """Its template takes no system messages."""

    def prompt(self, messages: Any, tools: Any, template_args: Any, system: Any) -> list[int]:
        found = super().prompt(messages, tools, template_args, system)
        if system != "merge" and messages[0]["role"] == "system":
            raise FileError("the chat template refuses it: no system here")
        return found


def test_a_template_without_system_messages_gets_them_merged() -> None:
    model = Refusing()
    system = {"role": "system", "content": "be brief"}
    with serving(model) as server:
        body = {"messages": [system, {"role": "user", "content": "hi"}]}
        for _ in range(2):
            assert send(server, CHAT, body)[0] == 200
        assert [asked[-1] for asked in model.prompts] == [None, "merge", "merge"]
        assert len([line for line in server.said if "no system message" in line]) == 1
        answer = send(server, CHAT, {**body, "system": "keep"})
        assert answer[0] == 400 and "no system here" in answer[2]["error"]["message"]
        assert send(server, CHAT, {**chat(), "system": "keep"})[0] == 200


def test_a_template_is_fresh_each_day_and_after_it_took_too_much(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Noon(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> "Noon":
            return cls(2026, 5, 2, 12)

    class Slow(FakeModel):
        def prompt(self, messages: Any, *rest: Any) -> list[int]:
            if "loop" in messages[0]["content"]:
                raise FileError("the chat template computes for more than 1.0 s")
            return super().prompt(messages, *rest)

    monkeypatch.setattr(worker, "datetime", Noon)
    model = Slow()
    model.templating = first = Templating(now=datetime(2026, 5, 1, 23))
    with serving(model) as server:
        assert send(server, CHAT, chat())[0] == 200
        fresh = model.templating
        assert fresh is not first and fresh.now == Noon.now()
        assert send(server, CHAT, chat())[0] == 200 and model.templating is fresh
        set_again: list[Any] = []
        Slow.templating = property(lambda self: fresh, lambda self, new: set_again.append(new))
        for text, status in (("hello", 200), ("loop", 400), ("hello", 200)):
            assert send(server, CHAT, chat(text))[0] == status
        assert set_again == [fresh]  # which is what makes a model open it anew


def test_without_a_seed_answers_differ_and_without_a_limit_texts_are_short(
    server: Any, model: FakeModel
) -> None:
    for _ in range(2):
        assert send(server, TEXT, {"prompt": "x " + "y" * 40})[0] == 200
    (first, *_), (second, *_) = (asked for asked, _ in model.asked[-2:])
    assert first.sampling.seed != second.sampling.seed and first.max_tokens == 16


def test_fields_that_ask_for_nothing_pass(server: Any) -> None:
    neutral = {
        "n": 1,
        "presence_penalty": 0.0,
        "frequency_penalty": 0,
        "logit_bias": {},
        "response_format": {"type": "text"},
        "parallel_tool_calls": True,
        "store": False,
        "user": "someone",
        "metadata": {"a": "b"},
        "service_tier": "auto",
        "modalities": ["text"],
        "reasoning_effort": None,
        "audio": None,
        "cache_prompt": True,
        "unheard_of": None,
    }
    assert send(server, CHAT, chat(**neutral))[0] == 200
    assert send(server, TEXT, {"prompt": "x", "echo": False, "suffix": "", "best_of": 1})[0] == 200


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        (CHAT, chat(n=2), "n"),
        (CHAT, chat(n=True), "n"),
        (CHAT, chat(presence_penalty=0.5), "presence_penalty"),
        (CHAT, chat(logit_bias={"5": 1}), "logit_bias"),
        (CHAT, chat(response_format={"type": "json_object"}), "response_format"),
        (CHAT, chat(store=True), "store"),
        (CHAT, chat(reasoning_effort="low"), "reasoning_effort"),
        (CHAT, chat(parallel_tool_calls=False), "parallel_tool_calls"),
        (CHAT, chat(maxtokens=5), "maxtokens"),
        (CHAT, chat(prompt="x"), "prompt"),
        (CHAT, chat(**{"\ud800": 1}), r"\ud800"),
        (CHAT, chat(temperature="hot"), "temperature"),
        (CHAT, chat(temperature=-1), "temperature"),
        (CHAT, chat(temperature=10**400), "temperature"),
        (CHAT, chat(top_p=1.5), "top_p"),
        (CHAT, chat(top_k=1.5), "top_k"),
        (CHAT, chat(min_p=True), "min_p"),
        (CHAT, chat(repeat_penalty=0), "repeat_penalty"),
        (CHAT, chat(repetition_penalty=0), "repetition_penalty"),
        (CHAT, chat(repetition_penalty=2, repeat_penalty=1), "repetition_penalty"),
        (CHAT, chat(seed=1 << 64), "seed"),
        (CHAT, chat(seed="x"), "seed"),
        (CHAT, chat(max_tokens=0), "max_tokens"),
        (CHAT, chat(max_tokens=2.5), "max_tokens"),
        (CHAT, chat(max_tokens=1, max_completion_tokens=2), "max_tokens"),
        (CHAT, chat(stop=""), "stop"),
        (CHAT, chat(stop=[1]), "stop[0]"),
        (CHAT, chat(stop=["x"] * 17), "stop"),
        (CHAT, chat(stop={"x": 1}), "stop"),
        (CHAT, chat(stream="yes"), "stream"),
        (CHAT, chat(stream_options={"include_usage": True}), "stream_options"),
        (CHAT, chat(stream=True, stream_options={"x": 1}), "stream_options.x"),
        (CHAT, chat(logprobs=2), "logprobs"),
        (CHAT, chat(top_logprobs=2), "top_logprobs"),
        (CHAT, chat(logprobs=True, top_logprobs=21), "top_logprobs"),
        (CHAT, chat(tools=[{"type": "web_search"}]), "tools[0]"),
        (CHAT, chat(tools=[{"type": "function", "function": {}}]), "tools[0].function.name"),
        (CHAT, chat(tool_choice="required"), "tool_choice"),
        (CHAT, chat(tool_choice={"type": "function"}), "tool_choice"),
        (CHAT, chat(chat_template_kwargs=[1]), "chat_template_kwargs"),
        (CHAT, chat(chat_template_kwargs={"messages": 1}), "chat_template_kwargs"),
        (CHAT, chat(system="You are"), "system"),
        (CHAT, chat(model=5), "model"),
        (CHAT, {}, "messages"),
        (CHAT, {"messages": []}, "messages"),
        (CHAT, {"messages": "hello"}, "messages"),
        (CHAT, {"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role"),
        (CHAT, {"messages": [{"role": "user"}]}, "messages[0].content"),
        (CHAT, {"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
        (
            CHAT,
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            "messages[0].content[0].type",
        ),
        (TEXT, {}, "prompt"),
        (TEXT, {"prompt": []}, "prompt"),
        (TEXT, {"prompt": [1, "x"]}, "prompt[0]"),
        (TEXT, {"prompt": ["x"] * 33}, "prompt"),
        (TEXT, {"prompt": "x", "echo": True}, "echo"),
        (TEXT, {"prompt": "x", "best_of": 2}, "best_of"),
        (TEXT, {"prompt": "x", "suffix": "y"}, "suffix"),
        (TEXT, {"prompt": "x", "logprobs": True}, "logprobs"),
        (TEXT, {"prompt": "x", "messages": [{}]}, "messages"),
        (CHAT, chat(lora_adapters={}), "lora_adapters"),
        (CHAT, chat(lora_adapters=[{"path": "/etc/passwd"}]), "lora_adapters[0].path"),
        (CHAT, chat(lora_adapters=[{"name": "../a"}]), "lora_adapters[0].name"),
        (CHAT, chat(lora_adapters=[{"id": 9}]), "lora_adapters[0].id"),
        (CHAT, chat(lora_adapters=[{"scale": 1}]), "lora_adapters[0]"),
        (CHAT, chat(lora_adapters=[{"name": "a", "x": 1}]), "lora_adapters[0].x"),
        (CHAT, chat(lora_adapters=[{"name": "a", "scale": "1"}]), "lora_adapters[0].scale"),
        (CHAT, chat(lora_adapters=[{"name": "a"}, {"id": 0}]), "lora_adapters[1]"),
        (CHAT, chat(lora=[{"id": 2}]), "lora"),
        (CHAT, chat(lora=[{"scale": 2}]), "lora[0].id"),
        (CHAT, chat(lora=[{"id": 0}, {"id": 0}]), "lora"),
        (CHAT, chat(lora=[{"id": 0}], lora_adapters=[]), "lora"),
        (CHAT, chat(model="base+a", lora_adapters=[]), "lora_adapters"),
        (CHAT, chat(model="base+a", lora=[{"id": 0, "scale": 1}]), "lora"),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(
    server: Any, model: FakeModel, path: str, body: dict[str, Any], param: str
) -> None:
    before = len(model.asked)
    status, _, answer = send(server, path, body)
    assert status == 400 and len(model.asked) == before
    error = answer["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert (error["type"], error["param"]) == ("invalid_request_error", param), error
    assert param.partition("[")[0] in error["message"]
    assert f"{param}: {param}:" not in error["message"]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "no JSON"),
        (b"{", "no JSON"),
        (b"[]", "no JSON object"),
        (b'{"prompt": "x", "temperature": NaN}', "NaN"),
        (b'{"prompt": "x", "temperature": 1e999}', "too large"),
        (b'{"prompt": "x", "prompt": "y"}', "stands twice"),
        (b'{"prompt": "x", "seed": ' + b"9" * 5000 + b"}", "digits"),
        (b'{"prompt": "\xff"}', "UTF-8"),
        (b'{"prompt": "\\ud800"}', "surrogate"),
        (b'{"prompt": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "deeper than"),
        (b'{"chat_template_kwargs": ' + b'{"a":' * 70 + b"1" + b"}" * 71, "deeper than"),
    ],
)
def test_what_is_no_usable_json_is_refused(server: Any, body: bytes, words: str) -> None:
    status, _, answer = send(server, TEXT, body)
    assert status == 400 and words in answer["error"]["message"]


def test_a_prompt_that_fills_the_context_is_refused(server: Any, model: FakeModel) -> None:
    for path, body, param in (
        (CHAT, chat("x" * CONTEXT), "messages"),
        (CHAT, chat("x" * CONTEXT, stream=True), "messages"),
        (TEXT, {"prompt": ["x", "x" * CONTEXT]}, "prompt"),
    ):
        status, _, answer = send(server, path, body)
        assert status == 400 and answer["error"]["param"] == param
        assert answer["error"]["code"] == "context_length_exceeded"
    (whole,) = send(server, TEXT, {"prompt": "x" * (CONTEXT - 1)})[2]["choices"]
    assert whole["finish_reason"] == "length" and len(whole["text"]) == 1


# --- models and adapters


def test_models_are_the_base_with_each_adapter(server: Any) -> None:
    listed = send(server, "/v1/models")[2]
    assert listed["object"] == "list"
    assert [one["id"] for one in listed["data"]] == ["base", "base+a", "base+b"]
    for one in listed["data"]:
        assert send(server, f"/v1/models/{one['id']}")[2] == one
    for name in ("other", "base+", "base+c", "base+a+a", "basea", "ba", ""):
        for answer in (
            send(server, f"/v1/models/{name or 'x'}"),
            send(server, CHAT, chat(model=name)),
        ):
            assert answer[0] == 404 and answer[2]["error"]["code"] == "model_not_found"


def test_names_that_are_no_utf_8_are_escaped(model: FakeModel) -> None:
    names = os.fsdecode(b"m\xfe"), os.fsdecode(b"\xff")
    with serving(model, Shelf(names[0], [(names[1], "A", 1.0)])) as server:
        listed = [one["id"] for one in send(server, "/v1/models")[2]["data"]]
        assert listed == [r"m\udcfe", r"m\udcfe+\udcff"]
        assert send(server, "/lora-adapters")[2][0]["name"] == r"\udcff"
        assert send(server, CHAT, chat(model=listed[1]))[2]["model"] == listed[1]


@pytest.mark.parametrize(
    ("fields", "adapters"),
    [
        ({}, [("A", 0.5)]),
        ({"model": "base"}, [("A", 0.5)]),
        ({"model": "base+a"}, [("A", 0.5)]),
        ({"model": "base+b"}, [("B", 1.0)]),
        ({"model": "base+b+a"}, [("B", 1.0), ("A", 0.5)]),
        ({"lora_adapters": []}, []),
        ({"lora_adapters": [{"name": "b", "scale": -2}, {"id": 0}]}, [("B", -2.0), ("A", 0.5)]),
        ({"model": "base", "lora_adapters": [{"name": "b"}]}, [("B", 1.0)]),
        ({"lora": [{"id": 1, "scale": 0.25}]}, [("B", 0.25)]),
        ({"lora": [{"id": 1, "scale": 3}, {"id": 0, "scale": 2}]}, [("A", 2.0), ("B", 3.0)]),
        ({"lora": [{"id": 0, "scale": 0}]}, []),
        ({"lora": []}, [("A", 0.5)]),
    ],
)
def test_a_request_brings_its_own_adapters(
    server: Any, model: FakeModel, fields: dict[str, Any], adapters: list[Any]
) -> None:
    for path, body in ((CHAT, chat(**fields)), (TEXT, {"prompt": "x", **fields})):
        status, _, answer = send(server, path, body)
        assert status == 200 and answer["model"] == fields.get("model", "base")
        assert model.asked[-1][1] == adapters


def test_scales_are_told_and_set_as_llama_cpp_does(model: FakeModel) -> None:
    with serving(model, Shelf("base", [("a", "A", 0.5), ("b", "B", 0.0)])) as server:
        assert [(one["id"], one["scale"]) for one in send(server, "/lora-adapters")[2]] == [
            (0, 0.5),
            (1, 0.0),
        ]
        answer = send(server, "/lora-adapters", [{"id": 1, "scale": 0.75}])
        assert answer[0] == 200 and answer[2] == {"success": True}
        assert [one["scale"] for one in send(server, "/lora-adapters")[2]] == [0.0, 0.75]
        send(server, CHAT, chat())
        assert model.asked[-1][1] == [("B", 0.75)]
        for wrong in ({}, [{"id": 2, "scale": 1}], [{"id": 0, "scale": "x"}], [5]):
            assert send(server, "/lora-adapters", wrong)[0] == 400
        assert send(server, "/lora-adapters", [])[0] == 200
        send(server, CHAT, chat())
        assert model.asked[-1][1] == []


# --- who is answered


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil", "192.168.0.5", "[::2]", ""])
def test_only_names_of_this_machine_are_answered(server: Any, host: str) -> None:
    assert send(server, "/v1/models", Host=host)[0] == 421
    for own in ("localhost", "127.0.0.1:99", "[::1]", "[::1]:80"):
        assert send(server, "/v1/models", Host=own)[0] == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://localhost:3000"},
        {"Origin": "http://127.0.0.1"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ],
)
def test_a_page_of_another_origin_gets_nothing(
    server: Any, model: FakeModel, headers: dict[str, str]
) -> None:
    before = len(model.asked)
    preflight = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "x"}
    for answer in (
        send(server, CHAT, chat(), **headers),
        send(server, "/v1/models", **headers),
        send(server, "/health", **headers),
        send(server, "/lora-adapters", [], **headers),
        send(server, CHAT, method="OPTIONS", **headers, **preflight),
    ):
        assert answer[0] == 403 and answer[2]["error"]["code"] == "foreign_origin"
        assert not [name for name in answer[1] if name.startswith("Access-Control")]
        assert answer[1]["Cross-Origin-Resource-Policy"] == "same-origin"
    assert len(model.asked) == before
    own = {"Origin": f"http://127.0.0.1:{server.port}", "Sec-Fetch-Site": "same-origin"}
    assert send(server, "/v1/models", **own)[0] == 200


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/x-www-form-urlencoded", "", "application/jsonp"]
)
def test_only_json_is_read(server: Any, kind: str) -> None:
    for path, body in ((CHAT, chat()), (TEXT, {"prompt": "x"}), ("/lora-adapters", [])):
        assert send(server, path, body, Content_Type=kind)[0] == 415
        assert send(server, path, body, Content_Encoding="gzip")[0] == 415
    fine = "Application/JSON; charset=utf-8"
    assert send(server, CHAT, chat(), Content_Type=fine)[0] == 200


def test_pages_that_are_allowed_and_the_key(model: FakeModel) -> None:
    page = {"Origin": "https://page.example", "Sec-Fetch-Site": "cross-site"}
    ask = {
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,content-type,x-stainless-os",
        "Access-Control-Request-Private-Network": "true",
    }
    key = {"Authorization": "Bearer secret"}
    origins = ["https://page.example", "http://localhost:3000"]
    with serving(model, key="secret", origins=origins) as server:
        status, headers, _ = send(server, CHAT, method="OPTIONS", **page, **ask)
        assert status == 200 and headers["Access-Control-Allow-Origin"] == page["Origin"]
        assert headers["Access-Control-Allow-Private-Network"] == "true"
        assert "authorization" in headers["Access-Control-Allow-Headers"]
        assert "POST" in headers["Access-Control-Allow-Methods"]
        for body, path in ((chat(), CHAT), (None, "/v1/models"), (None, "/x")):
            for wrong in ({}, {"Authorization": "Bearer secre"}, {"Authorization": "secret"}):
                status, headers, answer = send(server, path, body, **page, **wrong)
                assert status == 401 and answer["error"]["code"] == "invalid_api_key"
                # A page may read why it is refused.
                assert headers["Access-Control-Allow-Origin"] == page["Origin"]
        status, headers, _ = send(server, CHAT, chat(), **page, **key)
        assert status == 200 and headers["Access-Control-Allow-Origin"] == page["Origin"]
        assert "Origin" in headers["Vary"]
        assert send(server, CHAT, chat(), **key)[0] == 200
        assert send(server, "/health")[0] == 200
        assert not any("secret" in line for line in server.said)  # type: ignore[attr-defined]
        foreign = {**page, "Origin": "https://page.example.evil"}
        assert send(server, CHAT, chat(), **foreign, **key)[0] == 403
    with serving(model, origins=["*"]) as server:
        assert send(server, CHAT, chat(), **page)[1]["Access-Control-Allow-Origin"] == "*"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"origins": ["page.example"]}, "allow_origin = 'page.example'"),
        ({"origins": ["null"]}, "allow_origin = 'null'"),
        ({"origins": ["https://page.example/"]}, "allow_origin"),
        ({"origins": ["https://Page.example"]}, "lower case"),
        ({"key": ""}, "api_key"),
        ({"key": "a\n"}, "api_key"),
        ({"host": "x" * 64}, "host = xxx"),
        ({"host": "192.0.2.1"}, "host = 192.0.2.1: [^(]*$"),
    ],
)
def test_options_that_cannot_work_are_refused(options: dict[str, Any], words: str) -> None:
    threads = threading.active_count()
    with pytest.raises(OptionError, match=words):
        Server(FakeModel(), Shelf("base"), **options)  # type: ignore[arg-type]
    until(lambda: threading.active_count() <= threads)


def test_what_others_reach_is_asked_by_address_or_by_name(model: FakeModel) -> None:
    with serving(model, host="0.0.0.0", names=["gpu.example"]) as server:
        assert server.address == f"http://0.0.0.0:{server.port}"
        for host in ("192.168.0.5", "[fe80::1]:80", "gpu.example:80", socket.gethostname()):
            assert send(server, "/v1/models", Host=host)[0] == 200
        assert send(server, "/v1/models", Host="evil.example")[0] == 421
    loopbacks = {host: is_loopback(host) for host in ("127.0.0.2", "::1", "localhost", "::", "x")}
    assert list(loopbacks.values()) == [True, True, True, False, False]


def test_loopback_of_ipv6(model: FakeModel) -> None:
    try:
        listening = listen("::1")
    except OptionError:
        pytest.skip("no IPv6 on this machine")
    with serving(model, host="::1", listening=listening) as server:
        assert server.address == f"http://[::1]:{server.port}"
        connection = http.client.HTTPConnection("::1", server.port, timeout=60)
        connection.request("GET", "/v1/models")
        assert connection.getresponse().status == 200
        connection.close()


def test_other_paths_and_methods_are_errors_in_the_same_form(server: Any) -> None:
    for path, method, status in (
        ("/v1/embeddings", "POST", 404),
        ("/", "GET", 404),
        (CHAT, "GET", 405),
        ("/v1/models", "POST", 405),
    ):
        answer = send(server, path, {} if method == "POST" else None, method)
        assert answer[0] == status and answer[2]["error"]["code"] == "unknown_url"
        assert f"; there are POST {CHAT}, POST {TEXT}, GET /v1/m" in answer[2]["error"]["message"]


def test_bodies_are_bounded(server: Any) -> None:
    body = json.dumps({"prompt": "x" * MOST_BYTES}).encode()
    assert send(server, TEXT, body)[0] == 413
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    parts = (b"x" * (1 << 16) for _ in range(1 + (MOST_BYTES >> 16)))
    headers = {"Content-Type": "application/json"}
    connection.request("POST", TEXT, parts, headers, encode_chunked=True)
    assert connection.getresponse().status == 413
    connection.close()


def test_a_request_of_two_lengths_is_the_last_of_its_connection(server: Any) -> None:
    """Nothing is smuggled past a proxy that believes the other one."""
    inner = b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n"
    body = b"0\r\n\r\n" + inner
    head = b"POST /lora-adapters HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n"
    head += b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body)
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as client:
        client.sendall(head + body)
        with client.makefile("rb") as answers:
            found = answers.read()
    assert found.startswith(b"HTTP/1.1 400 ") and found.count(b"HTTP/1.1") == 1


def test_clients_that_say_nothing_are_let_go(
    model: FakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patience, "REQUEST_SECONDS", 0.2)
    head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    with serving(model) as server:
        for said in (b"", head, head + b"Content-Length: 9\r\n\r\n{"):
            with socket.create_connection(("127.0.0.1", server.port), timeout=60) as client:
                client.sendall(said)
                assert client.recv(100) == b""
        assert send(server, TEXT, {"prompt": "x"})[0] == 200


# --- the line


def ask_raw(server: Server, body: dict[str, Any]) -> socket.socket:
    """A request whose answer nobody has read yet."""
    client = socket.create_connection(("127.0.0.1", server.port), timeout=60)
    data = json.dumps(body).encode()
    head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    client.sendall(f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data)
    return client


def test_one_request_is_at_work_and_the_others_follow_in_order() -> None:
    model = FakeModel()
    model.gate.clear()
    with serving(model) as server:
        clients = []
        for i in range(5):
            clients.append(ask_raw(server, chat(f"x {i}")))
            until(lambda i=i: len(server._line) == i + 1)  # type: ignore[misc]
        until(lambda: len(model.asked) == 1)
        model.gate.set()
        for client in clients:
            assert client.recv(1 << 16).startswith(b"HTTP/1.1 200")
            client.close()
        prompts = [bytes(asked[0].prompt).decode() for asked, _ in model.asked]
        assert prompts == [f"x {i}" for i in range(5)]
        assert model.closed == 5


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_goes_away_frees_its_place(stream: bool) -> None:
    model = FakeModel()
    model.gate.clear()
    with serving(model) as server:
        at_work = ask_raw(server, chat("say something", stream=stream))
        until(lambda: len(model.asked) == 1)
        waiting = [ask_raw(server, chat("x", stream=stream)) for _ in range(3)]
        until(lambda: len(server._line) == 4)
        for client in waiting[:2]:
            client.close()
        until(lambda: len(server._line) == 2)
        at_work.close()
        until(lambda: len(server.said) == 3)
        model.gate.set()
        assert waiting[2].recv(1 << 16).startswith(b"HTTP/1.1 200")
        until(lambda: model.closed == 2)
        waiting[2].close()
        until(lambda: len(server._line) == 0)
        assert len(model.asked) == 2  # those that went were never begun


def test_a_client_that_breaks_off_a_stream_ends_its_answer() -> None:
    model = FakeModel()
    model.gate.clear()
    with serving(model) as server:
        client = ask_raw(server, chat(f"say {'x' * 300}", stream=True))
        until(lambda: len(model.asked) == 1)
        assert client.recv(100).startswith(b"HTTP/1.1 200")
        client.close()
        until(lambda: len(server.said) == 1)
        assert server.said[0].endswith(" model=base prompt=304 answer=0 finish=None")
        model.gate.set()
        assert send(server, CHAT, chat("and next"))[2]["choices"][0]["message"]["content"] == "next"
        assert len(model.asked) == model.closed == 2


def test_a_full_line_says_when_to_come_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve_server, "MOST_WAITING", 2)
    model = FakeModel()
    model.gate.clear()
    with serving(model) as server:
        clients = [ask_raw(server, chat()) for _ in range(2)]
        until(lambda: len(server._line) == 2)
        status, headers, answer = send(server, CHAT, chat())
        assert status == 503 and int(headers["Retry-After"]) > 0
        assert answer["error"]["code"] == "server_busy"
        model.gate.set()
        for client in clients:
            assert client.recv(1 << 16).startswith(b"HTTP/1.1 200")
            client.close()
        until(lambda: len(server._line) == 0)
        assert send(server, CHAT, chat())[0] == 200


# --- errors


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (OptionError("adapters[0]: too strong"), 400, None),
        (OptionError("top_p = 3: allowed is less"), 400, None),
        (NonFiniteError("a logit is not a number"), 500, "not_finite"),
        (OutOfMemoryError("/a/place/base.gguf:\nno room"), 500, "out_of_memory"),
        (RuntimeError("a bug with a secret"), 500, None),
    ],
)
def test_an_error_ends_its_answer_and_no_other(
    error: Exception, status: int, code: str | None
) -> None:
    model = FakeModel()
    with serving(model) as server:
        model.error = error
        answer = send(server, CHAT, chat())
        assert answer[0] == status and answer[2]["error"]["code"] == code
        *chunks, last = events(send(server, CHAT, chat(stream=True))[2])
        assert last == answer[2] and len(chunks) == 2
        said = "\n".join(server.said)
        assert ("a bug with a secret" in said) == isinstance(error, RuntimeError)
        assert ("base.gguf: no room" in said) == isinstance(error, OutOfMemoryError)
        assert "a bug" not in json.dumps(last) and "/a/place" not in json.dumps(last)
        model.error = None
        assert send(server, CHAT, chat())[0] == 200


@pytest.mark.parametrize("error", [OptionError("wrong"), RuntimeError("a bug")])
def test_an_error_leaves_the_connection_open(error: Exception) -> None:
    model = FakeModel()
    with serving(model) as server:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
        for body in (chat(), chat(n=2), chat("x" * CONTEXT), chat(model="x"), chat(stream=True)):
            for model.error in (error, None):
                head = {"Content-Type": "application/json"}
                connection.request("POST", CHAT, json.dumps(body), head)
                sock = connection.sock
                assert connection.getresponse().read()
                assert connection.sock is sock is not None
        connection.close()
        assert len({line.split()[2] for line in server.said if line.startswith("POST")}) > 2


def test_a_gpu_that_is_lost_ends_the_server() -> None:
    model = FakeModel()
    with serving(model) as server:
        model.error = DeviceLostError("the driver was reset")
        answer = send(server, CHAT, chat())
        assert answer[0] == 500 and answer[2]["error"]["code"] == "gpu_failed"
        server.thread.join(60)  # type: ignore[attr-defined]
        (failed,) = server.failed  # type: ignore[attr-defined]
        assert failed is model.error


@pytest.mark.parametrize("stream", [False, True])
def test_a_server_that_ends_does_not_wait_for_answers(stream: bool) -> None:
    model = FakeModel()
    model.gate.clear()
    with serving(model) as server:
        clients = [ask_raw(server, chat(stream=stream)) for _ in range(3)]
        until(lambda: len(server._line) == 3)
        server.shutdown()
        until(lambda: all("POST" in line for line in server.said) and len(server.said) == 3)
        model.gate.set()
        server.thread.join(60)  # type: ignore[attr-defined]
        assert model.closed == 1 and not server.failed  # type: ignore[attr-defined]
        for client in clients:
            while client.recv(1 << 16):
                pass
            client.close()
    assert not [t for t in threading.enumerate() if t.name == "generation" and t.is_alive()][1:]


def test_a_log_has_counts_and_no_texts(model: FakeModel) -> None:
    with serving(model, Shelf("base", [("a", "A", 0.5)])) as server:
        send(server, CHAT, chat("say sesame", model="base+a"))
        send(server, CHAT, chat("say sesame", sesame=1))
        send(server, "/health")
        send(server, "/%0a%1b[2J")
        until(lambda: len(server.said) == 3)  # a line comes behind the answer
        first, second, third = server.said
    assert first.startswith(f"POST {CHAT} 200 ")
    assert first.endswith("model=base+a prompt=10 answer=12 finish=stop")
    assert second.startswith(f"POST {CHAT} 400 ") and second.endswith("unknown_parameter")
    assert third.startswith("GET /%0A") and "\n" not in third
    assert not any("sesame" in line for line in server.said)


def test_nothing_is_left_of_two_hundred_requests(server: Any, model: FakeModel) -> None:
    def counts() -> tuple[int, int]:
        fds = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
        return threading.active_count(), fds

    def ask(i: int) -> None:
        if i % 4 == 0:
            client = ask_raw(server, chat(f"say {'x' * 50}", stream=True))
            client.recv(10)
            client.close()
        else:
            assert send(server, CHAT, chat(stream=i % 2 == 0))[0] == 200

    for i in range(8):
        ask(i)
    until(lambda: len(server._line) == 0)
    before = counts()
    closed = model.closed
    for i in range(200):
        ask(i)
    until(lambda: len(server._line) == 0 and not server._server.server_state.tasks)
    until(lambda: counts() <= before)
    assert model.closed - closed <= 200 and len(model.asked) - model.closed == 0


def test_an_adapter_that_is_written_while_it_is_read_is_read_again(tmp_path: Path) -> None:
    file = tmp_path / "x.gguf"
    read: list[Path] = []
    pair = np.ones((1, 4), np.float32), np.ones((4, 1), np.float32)
    file.write_bytes(write_adapter_gguf(Adapter("llama", 1, 1.0, {"blk.0.attn_q.weight": pair})))

    def reading(path: Path) -> str:
        read.append(path)
        if len(read) == 1:
            os.utime(file, ns=(1, 1))
            shelf.look()  # as another request does
        return f"reading {len(read)}"

    shelf = Shelf("base", [], tmp_path, reading)
    for wanted in ("reading 1", "reading 2", "reading 2"):
        _, chosen = shelf.choose(Choice("base+x"))
        assert shelf.load(chosen) == [(wanted, 1.0)]
