"""One JSON object of a data set -> text pieces with what is to be learnt of them, or ready token
ids.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from wgtrain.data.chat import ChatTemplate, Message
from wgtrain.data.records import RowError
from wgtrain.errors import FileError
from wgtrain.files.source import shown

ROLES = ("system", "user", "assistant", "tool")
SPEAKERS = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
    "tool": "tool",
}
# The fields of each kind, the required ones first; a kind is known by its first field.
KINDS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "text": (("text",), ()),
    "prompt": (("prompt", "completion"), ()),
    "messages": (("messages",), ("tools",)),
    "instruction": (("instruction", "output"), ("input",)),
    "conversations": (("conversations",), ("tools",)),
    "input_ids": (("input_ids", "labels"), ()),
}
_MESSAGE_FIELDS = ("role", "content", "name", "reasoning_content", "tool_calls", "tool_call_id")

IGNORED = -100  # a label that is not learnt, as Transformers writes it


@dataclass(frozen=True)
class Segment:
    """Text, the learnt (start, end) characters in it, and whether the end token follows
    (learnt).
    """

    text: str
    spans: list[tuple[int, int]]
    end: bool


@dataclass(frozen=True)
class Example:
    """One row before it is tokenised: segments of text, or ids uint32 (n,) with labels int64
    (n,).
    """

    line: int
    segments: list[Segment]
    ids: tuple[np.ndarray, np.ndarray] | None = None
    ended: bool = True  # False if a template ends turns without an end-of-turn token


class ExampleReader:
    """Makes examples of one data set. `template()` is the model's chat template, None if it has
    none.
    """

    def __init__(self, template: Callable[[], ChatTemplate | None], vocab_size: int) -> None:
        self._template = template
        self._vocab_size = vocab_size
        self.chats_without_template = 0

    def read(self, line: int, row: Any) -> Example:
        """One row; RowError names the field that is wrong, FileError comes from the template."""
        if not isinstance(row, dict):
            raise RowError(f"{shown(row)} is not a JSON object")
        kind = _kind(row)
        if kind == "input_ids":
            return Example(line, [], self._ids(row))
        if kind == "text":
            text = _string(row["text"], "text")
            return Example(line, [Segment(text, [(0, len(text))], True)])
        if kind == "prompt":
            prompt = _string(row["prompt"], "prompt")
            text = prompt + _string(row["completion"], "completion")
            return Example(line, [Segment(text, [(len(prompt), len(text))], True)])
        messages = {
            "messages": _messages,
            "conversations": _conversations,
            "instruction": _instruction,
        }[kind](row)
        return self._chat(line, messages, _tools(row))

    def _chat(self, line: int, messages: list[Message], tools: list[Any] | None) -> Example:
        template = self._template()
        if template is None:
            self.chats_without_template += 1
            return Example(line, _plain_chat(messages, tools))
        rendered = template.split(messages, tools)
        return Example(line, [Segment(rendered.text, rendered.spans, False)], None, rendered.ended)

    def _ids(self, row: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
        ids, labels = _list(row["input_ids"], "input_ids"), _list(row["labels"], "labels")
        if not ids:
            raise RowError("field 'input_ids': is empty")
        if len(ids) != len(labels):
            raise RowError(f"field 'labels': {len(labels)} labels for {len(ids)} input_ids")
        self._check_ids(ids, "input_ids", None)
        self._check_ids(labels, "labels", IGNORED)
        return np.array(ids, np.uint32), np.array(labels, np.int64)

    def _check_ids(self, ids: list[Any], field: str, also: int | None) -> None:
        n = self._vocab_size
        for place, i in enumerate(ids):
            if type(i) is not int or not (0 <= i < n or i == also):
                allowed = ("" if also is None else f"{also} or ") + f"a token id from 0 to {n - 1}"
                raise RowError(f"field '{field}[{place}]': {shown(i)} is not {allowed}")


def _kind(row: dict[str, Any]) -> str:
    kind = next((kind for kind in KINDS if kind in row), None)
    if kind is None:
        kinds = "; ".join(", ".join(required) for required, _ in KINDS.values())
        raise RowError(f"fields {shown(list(row))}: none of the known kinds ({kinds})")
    required, optional = KINDS[kind]
    for field in required:
        if field not in row:
            raise RowError(f"field '{field}' is missing beside '{kind}'")
    _known_fields(row, (*required, *optional), "")
    return kind


def _known_fields(row: dict[str, Any], known: tuple[str, ...], where: str) -> None:
    for field in row:
        if field not in known:
            where = f" in '{where}'" if where else ""
            raise RowError(f"field {shown(field)}{where} is not one of {', '.join(known)}")


def _string(value: Any, field: str) -> str:
    if not isinstance(value, str):
        raise RowError(f"field '{field}': {shown(value)} is not a text")
    _check_unicode(value, field)
    return value


def _check_unicode(text: str, field: str) -> None:
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            problem = f"a lone surrogate {shown(text[error.start])} at character {error.start}"
            raise RowError(f"field '{field}': {problem}") from None


def _list(value: Any, field: str) -> list[Any]:
    if not isinstance(value, list):
        raise RowError(f"field '{field}': {shown(value)} is not a list")
    return value


def _objects(row: dict[str, Any], field: str) -> list[dict[str, Any]]:
    items = _list(row[field], field)
    if not items:
        raise RowError(f"field '{field}': is empty")
    for i, item in enumerate(items):
        if not isinstance(item, dict):
            raise RowError(f"field '{field}[{i}]': {shown(item)} is not an object")
    return items


def _free_form(value: Any, field: str) -> list[Any]:
    """A list of objects whose inside is the template's business; only its texts are checked."""
    for i, item in enumerate(_list(value, field)):
        if not isinstance(item, dict):
            raise RowError(f"field '{field}[{i}]': {shown(item)} is not an object")
    open_ = [value]
    while open_:
        item = open_.pop()
        if isinstance(item, str):
            _check_unicode(item, field)
        elif isinstance(item, dict):
            open_ += [*item.keys(), *item.values()]
        elif isinstance(item, list):
            open_ += item
    return value


def _tools(row: dict[str, Any]) -> list[Any] | None:
    tools = row.get("tools")
    return _free_form(tools, "tools") or None if tools is not None else None


def _messages(row: dict[str, Any]) -> list[Message]:
    out = []
    for i, item in enumerate(_objects(row, "messages")):
        where = f"messages[{i}]"
        _known_fields(item, _MESSAGE_FIELDS, where)
        role = item.get("role")
        if "role" not in item:
            raise RowError(f"field '{where}.role' is missing")
        if role not in ROLES:
            raise RowError(f"field '{where}.role': {shown(role)} is not one of {', '.join(ROLES)}")
        message = {key: value for key, value in item.items() if value is not None}
        calls = message.get("tool_calls")
        if calls is not None:
            if role != "assistant":
                raise RowError(f"field '{where}.tool_calls': only an assistant calls tools")
            _free_form(calls, f"{where}.tool_calls")
        if "content" not in message:
            if not calls:
                raise RowError(f"field '{where}.content' is missing")
            message["content"] = ""
        for field in ("content", "name", "reasoning_content", "tool_call_id"):
            if field in message:
                _string(message[field], f"{where}.{field}")
        out.append(message)
    return out


def _conversations(row: dict[str, Any]) -> list[Message]:
    out = []
    for i, item in enumerate(_objects(row, "conversations")):
        where = f"conversations[{i}]"
        _known_fields(item, ("from", "value"), where)
        for field in ("from", "value"):
            if field not in item:
                raise RowError(f"field '{where}.{field}' is missing")
        speaker = item["from"]
        if not isinstance(speaker, str) or speaker not in SPEAKERS:
            allowed = ", ".join(SPEAKERS)
            raise RowError(f"field '{where}.from': {shown(speaker)} is not one of {allowed}")
        content = _string(item["value"], f"{where}.value")
        out.append({"role": SPEAKERS[speaker], "content": content})
    return out


def _instruction(row: dict[str, Any]) -> list[Message]:
    content = _string(row["instruction"], "instruction")
    if more := _string(row.get("input") or "", "input"):
        content += "\n\n" + more
    answer = _string(row["output"], "output")
    return [{"role": "user", "content": content}, {"role": "assistant", "content": answer}]


def _plain_chat(messages: list[Message], tools: list[Any] | None) -> list[Segment]:
    """A conversation for a model without a template: what precedes an answer, a blank line, the
    answer, the end.
    """
    if tools or any("tool_calls" in message or message["role"] == "tool" for message in messages):
        raise FileError("tools need a chat template, and the model has none")
    segments = []
    before: list[str] = []
    for message in messages:
        if message["role"] == "assistant":
            prompt = "".join(content + "\n\n" for content in before)
            text = prompt + message["content"]
            segments.append(Segment(text, [(len(prompt), len(text))], True))
            before = []
        else:
            before.append(message["content"])
    return segments
