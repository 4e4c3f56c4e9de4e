"""One JSON object of a data set -> text pieces with what is to be learnt of them, or ready token
ids.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from wgtrain.chat.bounded import ChatTemplate
from wgtrain.chat.rendered import Message
from wgtrain.data.messages import (
    Conversation,
    free_form,
    items,
    question_and_answer,
    read_conversation,
    text,
)
from wgtrain.data.records import RowError
from wgtrain.data.templates import check_arguments
from wgtrain.errors import FileError, OptionError
from wgtrain.files.source import shown

# The fields of each kind, the required ones first; `a|b` are two names of one field.
_ARGS = "chat_template_kwargs"
KINDS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "text": (("text",), ()),
    "prompt": (("prompt", "completion"), ("tools", _ARGS)),
    "messages": (("messages",), ("tools", _ARGS)),
    "instruction": (("instruction", "output|response"), ("input|context", "system", _ARGS)),
    "conversations": (("conversations",), ("system", "tools", _ARGS)),
    "input_ids": (("input_ids", "labels"), ()),
}

IGNORED = -100  # a label that is not learnt, as Transformers writes it
_MOST_NAMED = 8  # ignored fields that a note names


@dataclass(frozen=True)
class Segment:
    """Text, the learnt (start, end) characters in it, and whether the end token follows, learnt
    where a span is. `typed` are the characters of special tokens that somebody wrote himself.
    """

    text: str
    spans: list[tuple[int, int]]
    end: bool
    typed: list[tuple[int, int]] = field(default_factory=list)


@dataclass(frozen=True)
class Chat:
    """A conversation for a chat template; `untrained` are turns that are not learnt, by index;
    `args` variables of this row alone.
    """

    messages: list[Message]
    tools: list[Any] | None
    untrained: set[int]
    args: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Example:
    """One row before it is tokenised: segments of text, or ids uint32 (n,) with labels int64
    (n,). One with a `chat` and no segments gets them by the chat template.
    """

    line: int
    segments: list[Segment]
    ids: tuple[np.ndarray, np.ndarray] | None = None
    chat: Chat | None = None


class ExampleReader:
    """Makes examples of one data set. `template()` is the model's chat template, None if it has
    none; `kind` that of every row, None where each row's fields tell; without `developer` the
    template knows no such role; with `merge` system texts go in front of the user's turns.
    """

    def __init__(
        self,
        template: Callable[[], ChatTemplate | None],
        vocab_size: int,
        kind: str | None = None,
        developer: bool = False,
        merge: bool = False,
    ) -> None:
        self._template = template
        self._vocab_size = vocab_size
        self._kind = kind
        self._developer = developer
        self._merge = merge
        self.chats_without_template = 0
        self._empty_answers = 0
        self._ignored: dict[str, tuple[int, bool]] = {}  # field -> rows, whether always null

    def read(self, line: int, row: Any) -> Example:
        """One row; RowError names the field that is wrong, FileError comes from the template."""
        if not isinstance(row, dict):
            raise RowError(f"{shown(row)} is not a JSON object")
        kind = self._kind_of(row)
        used = _used(row, kind)
        for name in row:
            if name not in used:
                self._ignore(name, row[name] is None)
        if kind == "input_ids":
            return Example(line, [], self._ids(row))
        if kind == "text":
            whole = text(row["text"], "text")
            return Example(line, [Segment(whole, [(0, len(whole))], True)])
        if kind == "prompt" and not isinstance(row["prompt"], list):
            prompt = text(row["prompt"], "prompt")
            whole = prompt + text(row["completion"], "completion")
            self._empty_answers += len(whole) == len(prompt)
            return Example(line, [Segment(whole, [(len(prompt), len(whole))], True)])
        conversation = _CONVERSATIONS[kind](row)
        for name in conversation.ignored:
            self._ignore(name, False)
        return self._chat(line, conversation, read_tools(row), read_arguments(row))

    def notes(self) -> list[str]:
        """What a person should know of the rows read so far."""
        out = []
        if self._empty_answers:
            n = in_rows(self._empty_answers)
            out.append(f"an answer without a text, of which only the end is trained, in {n}")
        if self._ignored:
            named = [
                f"{shown(name)} in {in_rows(n)}{' (null)' if null else ''}"
                for name, (n, null) in list(self._ignored.items())[:_MOST_NAMED]
            ]
            more = len(self._ignored) - len(named)
            words = ", ".join(named) + (f", and {more} more" if more else "")
            out.append(f"fields ignored: {words}")
        return out

    def _kind_of(self, row: dict[str, Any]) -> str:
        if self._kind is None:
            return kind_of_row(row)
        if missing := _missing(row, self._kind):
            raise RowError(f"kind = {self._kind}: field '{missing}' is missing")
        return self._kind

    def _ignore(self, name: str, null: bool) -> None:
        n, before = self._ignored.get(name, (0, True))
        self._ignored[name] = (n + 1, null and before)

    def _chat(
        self, line: int, chat: Conversation, tools: list[Any] | None, args: dict[str, Any]
    ) -> Example:
        if self._merge:
            chat.merge_system()
        messages = chat.messages
        if not self._developer:
            messages = [without_developer(message) for message in messages]
        turns = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
        self._empty_answers += any(
            not messages[i].get("content") and not messages[i].get("tool_calls")
            for i in turns
            if i not in chat.untrained
        )
        template = self._template()
        if template is None:
            self.chats_without_template += 1
            segments = _plain_chat(messages, tools, chat.untrained)
        else:
            segments = []
        return Example(line, segments, chat=Chat(messages, tools, chat.untrained, args))

    def _ids(self, row: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
        ids, labels = items(row["input_ids"], "input_ids"), items(row["labels"], "labels")
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


def kind_of_row(row: dict[str, Any]) -> str:
    """The one kind whose required fields are all there."""
    whole = [kind for kind in KINDS if not _missing(row, kind)]
    if len(whole) == 1:
        return whole[0]
    if whole:
        options = " or ".join(f"--kind {kind}" for kind in whole)
        raise RowError(
            f"its fields make {len(whole)} kinds of row, {' and '.join(whole)}: choose with "
            f"{options} (in Python kind={whole[0]!r})"
        )
    for kind, (required, _) in KINDS.items():
        there = [name for group in required if (name := _name(row, group))]
        if there:
            missing = _missing(row, kind)
            state = "null" if missing in row else "missing"
            raise RowError(f"field '{missing}' is {state} beside '{there[0]}'")
    kinds = "; ".join(", ".join(map(_first, required)) for required, _ in KINDS.values())
    raise RowError(f"fields {shown(list(row))}: none of the known kinds ({kinds})")


def _missing(row: dict[str, Any], kind: str) -> str | None:
    """The first required field of a kind that a row does not have."""
    return next((_first(group) for group in KINDS[kind][0] if _name(row, group) is None), None)


def _first(group: str) -> str:
    return group.split("|")[0]


def _name(row: dict[str, Any], group: str) -> str | None:
    """The name by which a row has a field, None for one that is missing or null."""
    return next((name for name in group.split("|") if row.get(name) is not None), None)


def _used(row: dict[str, Any], kind: str) -> set[str]:
    required, optional = KINDS[kind]
    if kind == "prompt" and not isinstance(row["prompt"], list):
        optional = ()
    return {name for group in (*required, *optional) if (name := _name(row, group))}


def _optional_text(row: dict[str, Any], group: str) -> str:
    name = _name(row, group)
    return "" if name is None else text(row[name], name)


def _required_text(row: dict[str, Any], group: str) -> str:
    name = str(_name(row, group))
    return text(row[name], name)


def read_tools(row: dict[str, Any]) -> list[Any] | None:
    """A row's descriptions of tools; RowError for what are none."""
    tools = row.get("tools")
    return free_form(tools, "tools") or None if tools is not None else None


def read_arguments(row: dict[str, Any]) -> dict[str, Any]:
    """A row's variables for the template, as TRL's rows have them; RowError for what are none."""
    args = row.get(_ARGS)
    if args is None:
        return {}
    if not isinstance(args, dict):
        raise RowError(f"field '{_ARGS}': {shown(args)} is not an object")
    free_form([args], _ARGS)
    try:
        check_arguments(args, f"field '{_ARGS}'")
    except OptionError as error:
        raise RowError(str(error)) from None
    return args


def _prompted(row: dict[str, Any]) -> Conversation:
    """TRL's conversational form: lists of messages, of which only the completion is learnt."""
    out = read_conversation(row["prompt"], "prompt")
    out.untrained = set(range(len(out.messages)))
    out.add(read_conversation(row["completion"], "completion"))
    return out


def _with_system(row: dict[str, Any], conversation: Conversation) -> Conversation:
    if system := _optional_text(row, "system"):
        conversation.put_system(system)
    return conversation


def _instruction(row: dict[str, Any]) -> Conversation:
    question = text(row["instruction"], "instruction")
    if more := _optional_text(row, "input|context"):
        question += "\n\n" + more
    answer = _required_text(row, "output|response")
    return _with_system(row, question_and_answer(question, answer))


_CONVERSATIONS: dict[str, Callable[[dict[str, Any]], Conversation]] = {
    "prompt": _prompted,
    "messages": lambda row: read_conversation(row["messages"], "messages"),
    "conversations": lambda row: _with_system(
        row, read_conversation(row["conversations"], "conversations")
    ),
    "instruction": _instruction,
}


def without_developer(message: dict[str, Any]) -> dict[str, Any]:
    """A message for a template that knows no developers: their role is the system's."""
    return {**message, "role": "system"} if message["role"] == "developer" else message


def _plain_chat(
    messages: list[dict[str, Any]], tools: list[Any] | None, untrained: set[int]
) -> list[Segment]:
    """A conversation for a model without a template: what precedes an answer, a blank line, the
    answer, the end.
    """
    if tools or any("tool_calls" in message or message["role"] == "tool" for message in messages):
        raise FileError(
            "tools need a chat template, and the model has none; --chat-template FILE (in Python "
            "chat_template=) brings one"
        )
    segments = []
    before: list[str] = []
    for i, message in enumerate(messages):
        if message["role"] == "assistant":
            prompt = "".join(content + "\n\n" for content in before)
            whole = prompt + message["content"]
            spans = [] if i in untrained else [(len(prompt), len(whole))]
            segments.append(Segment(whole, spans, True))
            before = []
        else:
            before.append(message["content"])
    return segments


def in_rows(n: int) -> str:
    """A number of rows in words."""
    return f"{n} row{'s' * (n != 1)}"
