"""What a request asks for, read out of its body."""

import secrets
from dataclasses import dataclass
from typing import Any

from wgtrain.data.templates import SYSTEM, check_arguments
from wgtrain.errors import OptionError
from wgtrain.files.source import shown
from wgtrain.infer.prompting import read_messages
from wgtrain.infer.sampling import Sampling
from wgtrain.serve.choice import Choice, read_choice
from wgtrain.serve.fields import (
    Fields,
    Reader,
    flag,
    json_object,
    listed,
    number,
    one_of,
    text,
    whole,
)
from wgtrain.serve.refusals import Refused, by_field, wrong_field

MOST_STOPS, MOST_PROMPTS, MOST_TOP = 16, 32, 20
# Of an answer where nothing is said, as OpenAI's API has it; a chat goes on to the context's end.
COMPLETION_TOKENS = 16


@dataclass(frozen=True)
class Asked:
    """What chats and plain completions have in common. `logprobs`: the likeliest tokens that are
    to be shown beside each, None = no log-probabilities. `max_tokens`: None = to the context's end.
    """

    choice: Choice
    sampling: Sampling
    stop: tuple[str, ...]
    max_tokens: int | None
    logprobs: int | None
    stream: bool
    usage: bool  # in the stream, too


@dataclass(frozen=True)
class Chat(Asked):
    """Messages to be answered."""

    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None
    template_args: dict[str, Any] | None
    system: str | None


@dataclass(frozen=True)
class Completion(Asked):
    """Texts, or token ids, to be continued."""

    prompts: list[str | list[int]]


def read_chat(body: dict[str, Any], temperature: float) -> Chat:
    """The body of /v1/chat/completions; Refused names the field that is wrong. `temperature` is
    that of a request which names none.
    """
    fields = Fields(body)
    messages = fields.take("messages", _messages, [])
    if not messages:
        raise wrong_field("a list of messages is needed", "messages")
    tools = fields.take("tools", _tools, [])
    use = fields.take("tool_choice", one_of("auto", "none"), "auto")
    args = fields.take("chat_template_kwargs", _arguments, None)
    system = fields.take("system", one_of(*SYSTEM), None)
    shows = fields.take("logprobs", flag, False)
    top = fields.take("top_logprobs", whole(0, MOST_TOP), 0)
    if top and not shows:
        raise wrong_field("only with logprobs true", "top_logprobs")
    limits = [
        fields.take(name, _tokens, None)
        for name in ("max_completion_tokens", "max_tokens")
        if name in body
    ]
    if len(set(limits)) > 1:
        raise wrong_field("max_completion_tokens says something else", "max_tokens")
    common = _common(fields, temperature, limits[0] if limits else None, top if shows else None)
    return Chat(
        **common,
        messages=messages,
        tools=tools if tools and use == "auto" else None,
        template_args=args,
        system=system,
    )


def read_completion(body: dict[str, Any], temperature: float) -> Completion:
    """The body of /v1/completions, as `read_chat`."""
    fields = Fields(body)
    prompts = fields.take("prompt", _prompts, [])
    if not prompts:
        raise wrong_field("a text, token ids, or a list of these is needed", "prompt")
    top = fields.take("logprobs", _shown_logprobs, None)
    limit = fields.take("max_tokens", _tokens, COMPLETION_TOKENS)
    return Completion(**_common(fields, temperature, limit, top), prompts=prompts)


def _common(
    fields: Fields, temperature: float, limit: int | None, logprobs: int | None
) -> dict[str, Any]:
    choice = read_choice(fields)
    stop = fields.take("stop", _stops, ())
    stream = fields.take("stream", flag, False)
    usage = fields.take("stream_options", _include_usage(stream), False)
    theirs = fields.take("repetition_penalty", _penalty, None)
    penalty = fields.take("repeat_penalty", _penalty, theirs)
    if theirs not in (None, penalty):
        raise wrong_field("repeat_penalty says something else", "repetition_penalty")
    settings: dict[str, Any] = {
        "temperature": fields.take("temperature", number, temperature),
        "top_p": fields.take("top_p", number, 1.0),
        "top_k": max(0, fields.take("top_k", whole(-1), 0)),
        "min_p": fields.take("min_p", number, 0.0),
        "repeat_penalty": 1.0 if penalty is None else penalty,
        "seed": fields.take("seed", whole(-(1 << 63), (1 << 64) - 1), secrets.randbits(63)),
    }
    fields.end()
    try:
        sampling = Sampling(**settings)
    except OptionError as error:
        raise by_field(error) from None
    return {
        "choice": choice,
        "sampling": sampling,
        "stop": stop,
        "max_tokens": limit,
        "logprobs": logprobs,
        "stream": stream,
        "usage": usage,
    }


def _tokens(value: Any, name: str) -> int | None:
    """How long an answer may be; -1, as llama.cpp has it, is to the context's end."""
    found = whole(-1)(value, name)
    if found == 0:
        raise wrong_field("0; a whole number from 1 on is allowed", name)
    return None if found < 0 else found


def _penalty(value: Any, name: str) -> float:
    found = number(value, name)
    if found <= 0:
        raise wrong_field(f"{shown(value)}; a number above 0 is allowed, 1 = off", name)
    return found


def _stops(value: Any, name: str) -> tuple[str, ...]:
    values = [value] if isinstance(value, str) else value
    found = listed(text, MOST_STOPS)(values, name)
    if "" in found:
        raise wrong_field("an empty text stops nothing", name)
    return tuple(found)


def _include_usage(stream: bool) -> Reader[bool]:
    def read(value: Any, name: str) -> bool:
        if not stream:
            raise wrong_field("only with stream true", name)
        options = Fields(json_object(value, name), f"{name}.")
        found = options.take("include_usage", flag, False)
        options.take("include_obfuscation", flag, False)
        options.end({})
        return found

    return read


def _shown_logprobs(value: Any, name: str) -> int | None:
    if value is False:
        return None
    return whole(0, MOST_TOP)(value, name)


def _prompts(value: Any, name: str) -> list[str | list[int]]:
    if isinstance(value, str):
        return [text(value, name)]
    if isinstance(value, list) and value and all(type(item) is int for item in value):
        return [value]
    return listed(_prompt, MOST_PROMPTS)(value, name)


def _prompt(value: Any, name: str) -> str | list[int]:
    if isinstance(value, list) and value and all(type(item) is int for item in value):
        return value
    return text(value, name)


def _arguments(value: Any, name: str) -> dict[str, Any]:
    found = json_object(value, name)
    try:
        check_arguments(found, name)
    except OptionError as error:
        raise Refused(str(error), param=name) from None
    return found


def _tools(value: Any, name: str) -> list[dict[str, Any]]:
    tools = listed(json_object, 1 << 10)(value, name)
    for i, tool in enumerate(tools):
        if tool.get("type") != "function" or not isinstance(tool.get("function"), dict):
            raise wrong_field('{"type": "function", "function": {...}} is needed', f"{name}[{i}]")
        text(tool["function"].get("name"), f"{name}[{i}].function.name")
    return tools


def _messages(value: Any, name: str) -> list[dict[str, Any]]:
    for i, message in enumerate(value if isinstance(value, list) else []):
        if isinstance(message, dict):
            _check_content(message.get("content"), f"{name}[{i}].content")
    try:
        return read_messages(value, False)
    except OptionError as error:
        raise by_field(error, name) from None


def _check_content(value: Any, name: str) -> None:
    if not isinstance(value, list):
        return
    for i, part in enumerate(value):
        kind = part.get("type") if isinstance(part, dict) else part
        if kind != "text":
            raise wrong_field(
                f"a part of type {shown(kind)}; only texts are read", f"{name}[{i}].type"
            )
