"""The turns of a conversation, in the spellings of data sets -> what a chat template takes."""

from dataclasses import dataclass, field
from typing import Any

from wgtrain.chat.rendered import Message
from wgtrain.chat.turns import merge_system
from wgtrain.data.records import RowError
from wgtrain.files.source import shown

ROLES = ("system", "developer", "user", "assistant", "tool")
SPEAKERS = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
    "developer": "developer",
    "tool": "tool",
}
_TEXTS = ("content", "name", "reasoning_content", "thinking", "reasoning", "tool_call_id")
_FIELDS = ("role", *_TEXTS, "tool_calls")


@dataclass
class Conversation:
    """Messages for a template; `untrained` are the assistant's turns that are not learnt, by
    index; `ignored` the fields of messages that nothing uses.
    """

    messages: list[Message]
    untrained: set[int] = field(default_factory=set)
    ignored: set[str] = field(default_factory=set)

    def add(self, other: "Conversation") -> None:
        """Appends the turns of another one."""
        n = len(self.messages)
        self.messages += other.messages
        self.untrained |= {n + i for i in other.untrained}
        self.ignored |= other.ignored

    def put_system(self, text: str) -> None:
        """A system message in front; RowError where another one stands there."""
        first = self.messages[0]
        if first["role"] in ("system", "developer") and first["content"] != text:
            raise RowError(
                "field 'system': the conversation begins with a system message of its own"
            )
        if text and first["role"] not in ("system", "developer"):
            self.messages.insert(0, {"role": "system", "content": text})
            self.untrained = {i + 1 for i in self.untrained}

    def merge_system(self) -> None:
        """Puts system texts in front of the user's turn that follows; RowError where none does."""
        try:
            self.messages, places = merge_system(self.messages)
        except ValueError as error:
            raise RowError(str(error)) from None
        self.untrained = {i for i, place in enumerate(places) if place in self.untrained}


def read_conversation(value: Any, name: str) -> Conversation:
    """The turns of a list of `role`, `content` or `from`, `value`; RowError names what is wrong."""
    out = Conversation([])
    for i, item in enumerate(_objects(value, name)):
        where = f"{name}[{i}]"
        message = {key: part for key, part in item.items() if part is not None}
        if "role" not in message and ("from" in message or "value" in message):
            message = _renamed(message, where)
        _role(message, where)
        if not _weight(message, where):
            out.untrained.add(i)
        _calls(message, where)
        if isinstance(message.get("content"), list):
            message["content"] = _joined(message["content"], f"{where}.content", name, out.ignored)
        for key in _TEXTS:
            if key in message:
                text(message[key], f"{where}.{key}")
        out.ignored |= {f"{name}[].{key}" for key in message if key not in _FIELDS}
        out.messages.append({key: message[key] for key in message if key in _FIELDS})
    return out


def question_and_answer(question: str, answer: str) -> Conversation:
    """A conversation of one exchange."""
    return Conversation(
        [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    )


def _renamed(message: dict[str, Any], where: str) -> dict[str, Any]:
    """ShareGPT's names of a turn's fields."""
    for key in ("from", "value"):
        if key not in message:
            raise RowError(f"field '{where}.{key}' is missing")
    speaker = message["from"]
    if not isinstance(speaker, str) or speaker not in SPEAKERS:
        allowed = ", ".join(SPEAKERS)
        raise RowError(f"field '{where}.from': {shown(speaker)} is not one of {allowed}")
    if not isinstance(message["value"], list):
        text(message["value"], f"{where}.value")
    rest = {key: part for key, part in message.items() if key not in ("from", "value")}
    return {"role": SPEAKERS[speaker], "content": message["value"], **rest}


def _role(message: dict[str, Any], where: str) -> None:
    if "role" not in message:
        raise RowError(f"field '{where}.role' is missing")
    role = message["role"]
    if role not in ROLES:
        raise RowError(f"field '{where}.role': {shown(role)} is not one of {', '.join(ROLES)}")


def _weight(message: dict[str, Any], where: str) -> bool:
    """Whether a turn is learnt, as OpenAI's rows say it: `weight` 0 or 1, taken out."""
    if "weight" not in message:
        return True
    weight = message.pop("weight")
    if isinstance(weight, bool) or not isinstance(weight, int | float) or weight not in (0, 1):
        raise RowError(f"field '{where}.weight': {shown(weight)} is not 0 or 1")
    if message["role"] != "assistant":
        raise RowError(f"field '{where}.weight': only an assistant's message has one")
    return weight == 1


def _calls(message: dict[str, Any], where: str) -> None:
    calls = message.get("tool_calls")
    if calls is not None:
        if message["role"] != "assistant":
            raise RowError(f"field '{where}.tool_calls': only an assistant calls tools")
        free_form(calls, f"{where}.tool_calls")
    if "content" not in message and not calls:
        raise RowError(f"field '{where}.content' is missing")


def _joined(parts: list[Any], where: str, name: str, ignored: set[str]) -> str:
    """The text of a content that is a list of parts; RowError for a part that is no text."""
    texts = []
    for i, part in enumerate(parts):
        here = f"{where}[{i}]"
        if not isinstance(part, dict):
            raise RowError(f"field '{here}': {shown(part)} is not an object")
        if part.get("type") != "text":
            what = shown(part.get("type"))
            raise RowError(f"field '{here}': a part of type {what}; only 'text' is trained")
        texts.append(text(part.get("text"), f"{here}.text"))
        extra = (key for key in part if key not in ("type", "text") and part[key] is not None)
        ignored |= {f"{name}[].content[].{key}" for key in extra}
    return "".join(texts)


def text(value: Any, field: str) -> str:
    """A text of valid Unicode; RowError for anything else."""
    if not isinstance(value, str):
        raise RowError(f"field '{field}': {shown(value)} is not a text")
    _check_unicode(value, field)
    return value


def items(value: Any, field: str) -> list[Any]:
    """A list; RowError for anything else."""
    if not isinstance(value, list):
        raise RowError(f"field '{field}': {shown(value)} is not a list")
    return value


def free_form(value: Any, field: str) -> list[Any]:
    """A list of objects whose inside is the template's business; only its texts are checked."""
    for i, item in enumerate(items(value, field)):
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


def _objects(value: Any, field: str) -> list[dict[str, Any]]:
    if not items(value, field):
        raise RowError(f"field '{field}': is empty")
    for i, item in enumerate(value):
        if not isinstance(item, dict):
            raise RowError(f"field '{field}[{i}]': {shown(item)} is not an object")
    return value


def _check_unicode(text: str, field: str) -> None:
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            problem = f"a lone surrogate {shown(text[error.start])} at character {error.start}"
            raise RowError(f"field '{field}': {problem}") from None
