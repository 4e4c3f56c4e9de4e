"""What a conversation holds and the text that a template makes of it does not."""

import json

from wgtrain.chat.places import Attempts
from wgtrain.chat.rendered import Message, Variables
from wgtrain.chat.turns import content

_LABELS = ("name", "tool_call_id", "reasoning_content")  # of messages that are not learnt


def cut_turns(
    text: str, messages: list[Message], spans: list[tuple[int, int]]
) -> list[tuple[int, str]]:
    """(turn, field) for each text of an assistant's that its span does not hold, blanks aside."""
    turns = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    if len(spans) != len(turns):  # a template's own marks: they are not those of turns
        spans = [(spans[0][0], spans[-1][1])] * len(turns) if spans else [(0, 0)] * len(turns)
    out = []
    for i, (start, end) in zip(turns, spans, strict=True):
        for field in ("content", "reasoning_content"):
            part = messages[i].get(field) or ""
            if not text.startswith(part, start) and not _holds(text[start:end], part):
                out.append((i, field))
    return out


def unwritten(
    template: Attempts, text: str, messages: list[Message], given: Variables
) -> list[str]:
    """Names of what makes no difference to the text, beside the assistant's own words."""
    found = []
    hidden: dict[str, list[Message]] = {}
    at = 0
    for message in messages:
        if message["role"] != "assistant":
            here = _find(text, content(message).strip(), at)
            at = max(at, here)
            if here < 0:
                hidden.setdefault(message["role"], []).append(message)
    for role, some in hidden.items():
        if template.attempt(_without(messages, some, "content"), given) == text:
            found.append(f"content of role {role!r}")
    others = [m for m in messages if m["role"] != "assistant"]
    for field in _LABELS:
        having = [m for m in (messages if field == "name" else others) if m.get(field)]
        if having and template.attempt(_without(messages, having, field), given) == text:
            found.append(field)
    if given["tools"] and template.attempt(messages, {**given, "tools": None}) == text:
        found.append("tools")
    return found


def _without(messages: list[Message], some: list[Message], field: str) -> list[Message]:
    """Copies, in which a field of some messages is missing, or empty where it must not be."""
    ids = set(map(id, some))
    empty = {field: ""} if field == "content" else {}
    return [
        {**{key: value for key, value in m.items() if key != field}, **empty} if id(m) in ids else m
        for m in messages
    ]


def _find(text: str, part: str, at: int) -> int:
    """Where a part stands, from `at` on if it does there; written out or within JSON."""
    found = text.find(part, at)
    if found < 0:
        found = text.find(part)
    return text.find(json.dumps(part, ensure_ascii=False)[1:-1]) if found < 0 else found


def _holds(text: str, part: str) -> bool:
    return part.strip() in text or "".join(part.split()) in "".join(text.split())
