"""Arguments of a tool's call, which data sets hold as an object or as its JSON text."""

import json
from collections.abc import Callable
from typing import Any

from wgtrain.chat.rendered import Message


def with_objects(messages: list[Message]) -> list[Message] | None:
    """The messages with objects in the place of JSON texts; None where there is no such text."""
    out = [_changed_message(message, _decoded) for message in messages]
    return out if any(a is not b for a, b in zip(out, messages, strict=True)) else None


def with_texts(messages: list[Message]) -> list[Message]:
    """The messages with JSON texts in the place of objects."""
    return [_changed_message(message, _encoded) for message in messages]


def _changed_message(message: Message, change: Callable[[Any], Any]) -> Message:
    calls = message.get("tool_calls")
    if not calls:
        return message
    out = [_changed_call(call, change) for call in calls]
    changed = any(a is not b for a, b in zip(out, calls, strict=True))
    return {**message, "tool_calls": out} if changed else message


def _changed_call(call: Any, change: Callable[[Any], Any]) -> Any:
    """A call, `{"function": {"arguments": ...}}` or flat."""
    if not isinstance(call, dict):
        return call
    if isinstance(call.get("function"), dict):
        function = _changed_call(call["function"], change)
        return call if function is call["function"] else {**call, "function": function}
    if "arguments" not in call:
        return call
    value = change(call["arguments"])
    return call if value is call["arguments"] else {**call, "arguments": value}


def _decoded(arguments: Any) -> Any:
    if not isinstance(arguments, str):
        return arguments
    try:
        value = json.loads(arguments)
    except (ValueError, RecursionError):
        return arguments
    return value if isinstance(value, dict) else arguments


def _encoded(arguments: Any) -> Any:
    return json.dumps(arguments, ensure_ascii=False) if isinstance(arguments, dict) else arguments
