"""Conversations of a data set become text, while the rows before them are tokenised."""

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice

from wgtrain.chat.bounded import ChatTemplate
from wgtrain.data.examples import Chat, Example, Segment
from wgtrain.errors import FileError

_BATCH = 256  # rows


def rendered(
    examples: Iterator[Example], template: Callable[[], ChatTemplate | None], name: str
) -> Iterator[Example]:
    """The examples of the file `name`, with segments in the place of conversations.

    `template()` is opened at the first conversation, and closed at the end. The error at which
    the examples end comes where it would without this.
    """
    opened: ChatTemplate | None = None
    under_way: deque[list[Example]] = deque()
    more, failure = True, None
    try:
        while more or under_way:
            if more:
                batch, failure = _take(examples)
                more = bool(batch) and failure is None
                chats = [example.chat for example in batch if example.chat is not None]
                if chats and (opened := template()):
                    opened.send([(chat.messages, chat.tools) for chat in chats])
                under_way.append(batch)
            if len(under_way) > 1 or not more:
                for example in under_way.popleft():
                    if example.chat is not None and opened is not None:
                        example = _filled(example, example.chat, opened, name)
                    yield example
    finally:
        if opened is not None:
            opened.close()
    if failure is not None:
        raise failure


def _take(examples: Iterator[Example]) -> tuple[list[Example], FileError | None]:
    batch = []
    try:
        for example in islice(examples, _BATCH):
            batch.append(example)
    except FileError as error:
        return batch, error
    return batch, None


def _filled(example: Example, chat: Chat, template: ChatTemplate, name: str) -> Example:
    try:
        found = template.receive()
        spans = _learnt(chat, found.spans)
    except FileError as error:
        raise FileError(f"{name} line {example.line}: {error}") from error
    segment = Segment(found.text, spans, False)
    return replace(example, segments=[segment], chat=None, ended=found.ended)


def _learnt(chat: Chat, spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
    turns = [i for i, message in enumerate(chat.messages) if message["role"] == "assistant"]
    if chat.untrained.isdisjoint(turns):
        return spans
    if len(spans) != len(turns):
        raise FileError(
            f"the chat template marks {len(spans)} parts of {len(turns)} turns with {{% "
            "generation %}: which of them are not to be trained cannot be told"
        )
    return [span for i, span in zip(turns, spans, strict=True) if i not in chat.untrained]
