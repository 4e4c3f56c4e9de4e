"""The messages of a conversation as Transformers hands them to a template, or as a template needs
them.
"""

from wgtrain.chat.rendered import Message

_THOUGHTS = ("reasoning_content", "thinking", "reasoning")  # the first that is there counts
_SYSTEM = ("system", "developer")


def as_given(messages: list[Message]) -> list[Message]:
    """Without what is null, and thoughts under both names that templates know them by."""
    out = []
    for message in messages:
        message = {key: value for key, value in message.items() if value is not None}
        thoughts = next((message[name] for name in _THOUGHTS if name in message), None)
        if thoughts is not None:
            message = {"thinking": thoughts, **message, "reasoning_content": thoughts}
        out.append(message)
    return out


def content(message: Message) -> str:
    """A message's text; one that calls tools may have none."""
    return message.get("content") or ""


def has_system(messages: list[Message]) -> bool:
    """Whether a conversation has a system message."""
    return any(message["role"] in _SYSTEM for message in messages)


def merge_system(messages: list[Message]) -> tuple[list[Message], list[int]]:
    """System texts in front of the user's turn that follows, a blank line between them.

    And where in `messages` each of the result stood. ValueError where no user's turn follows.
    """
    out: list[Message] = []
    places: list[int] = []
    waiting: list[str] = []
    for i, message in enumerate(messages):
        if message["role"] in _SYSTEM:
            waiting.append(content(message))
            continue
        if message["role"] == "user" and waiting:
            message = {**message, "content": "\n\n".join([*waiting, content(message)])}
            waiting = []
        out.append(message)
        places.append(i)
    if waiting:
        raise ValueError("no user's turn follows the system message, which was to be merged")
    return out, places
