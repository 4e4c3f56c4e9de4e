"""Arguments of a tool's call, which data sets hold as an object or as its JSON text."""

import json
from typing import Any

from wgtrain.chat.rendered import Message


def with_objects(messages: list[Message]) -> list[Message] | None:
    """The messages with objects in the place of JSON texts; None where there is no such text."""
    out = [_decoded_message(message) for message in messages]
    return out if any(a is not b for a, b in zip(out, messages, strict=True)) else None


def _decoded_message(message: Message) -> Message:
    calls = message.get("tool_calls")
    if not calls:
        return message
    out = [_decoded_call(call) for call in calls]
    changed = any(a is not b for a, b in zip(out, calls, strict=True))
    return {**message, "tool_calls": out} if changed else message


def _decoded_call(call: Any) -> Any:
    """A call, `{"function": {"arguments": ...}}` or flat."""
    if not isinstance(call, dict):
        return call
    if isinstance(call.get("function"), dict):
        function = _decoded_call(call["function"])
        return call if function is call["function"] else {**call, "function": function}
    if not isinstance(call.get("arguments"), str):
        return call
    try:
        value = json.loads(call["arguments"])
    except (ValueError, RecursionError):
        return call
    return {**call, "arguments": value} if isinstance(value, dict) else call
