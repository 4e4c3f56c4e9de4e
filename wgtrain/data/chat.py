"""Conversations of a data set become text, while the rows before them are tokenised."""

import re
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice
from typing import Any

from wgtrain.chat.bounded import ChatTemplate, Conversation
from wgtrain.data.examples import Chat, Example, Segment, in_rows
from wgtrain.data.templates import Templating, foreign_tokens, last_token
from wgtrain.data.tokenizer import Tokenizer
from wgtrain.errors import FileError

_BATCH = 256  # rows
LEFT_OUT = "such turns are not trained"
TRAINED = (
    "such turns are trained without it; --train-on whole (in Python train_on='whole') leaves them"
    " out, a model whose template keeps thoughts trains them whole"
)


class Chats:
    """The conversations of one file. `template()` is opened at the first, and closed at the end.

    With `whole`, turns whose text the template does not write in full are not learnt.
    """

    def __init__(
        self,
        template: Callable[[], ChatTemplate | None],
        whole: bool,
        templating: Templating,
        tokenizer: Tokenizer,
    ) -> None:
        self._template, self._whole = template, whole
        self._templating, self._tokenizer = templating, tokenizer
        self._known: dict[str, bool] = {}
        self._added = 0
        self.rows = 0
        self._unwritten: Counter[str] = Counter()  # field -> rows
        self._cut_rows = self._cut_turns = 0
        self._cut_fields: set[str] = set()

    def rendered(self, examples: Iterator[Example], name: str) -> Iterator[Example]:
        """The examples of the file `name`, with segments in the place of conversations.

        The error at which the examples end comes where it would without this.
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
                    if chats and (opened := self._template()):
                        opened.send(self._sent(chats))
                    under_way.append(batch)
                if len(under_way) > 1 or not more:
                    for example in under_way.popleft():
                        if example.chat is not None and opened is not None:
                            example = self._filled(example, example.chat, opened, name)
                        elif example.chat is not None:
                            segments = [self._with_typed(part) for part in example.segments]
                            example = replace(example, segments=segments)
                        yield example
        finally:
            if opened is not None:
                opened.close()
        if failure is not None:
            raise failure

    def _sent(self, chats: list[Chat]) -> list[Conversation]:
        """What a template gets of them; special tokens are looked for in all at once first."""
        args = [{**self._templating.args, **chat.args} for chat in chats]
        given = [(c.messages, c.tools, more) for c, more in zip(chats, args, strict=True)]
        there = self._tokenizer.control_in(["\0".join(texts_in(given))])
        out: list[Conversation] = []
        for messages, tools, more in given:
            typed = self._tokenizer.control_in(texts_in([messages, tools, more])) if there else []
            out.append((messages, tools, more, [self._tokenizer.pieces[i] for i in {*typed}]))
        return out

    def notes(self) -> list[str]:
        """What a person should know of the rows rendered so far."""
        out = []
        if self._cut_turns:
            fields = " and ".join(sorted(self._cut_fields))
            plural = "s" if self._cut_turns > 1 else ""
            out.append(
                f"the chat template leaves out text ({fields}), as many do with thoughts, in "
                f"{self._cut_turns} turn{plural} of {in_rows(self._cut_rows)}: "
                + (LEFT_OUT if self._whole else TRAINED)
            )
        if self._added:
            out.append(
                "the chat template ends no answer at the end of a conversation: "
                f"{last_token(self._tokenizer)} is put there and trained, in {in_rows(self._added)}"
            )
        if self._unwritten:
            named = ", ".join(f"{field} in {in_rows(n)}" for field, n in self._unwritten.items())
            out.append(f"fields that the chat template does not write: {named}")
        return out

    def _filled(self, example: Example, chat: Chat, template: ChatTemplate, name: str) -> Example:
        try:
            found = template.receive()
            cut = [(i, field) for i, field in found.cut if i not in chat.untrained]
            untrained = chat.untrained | {i for i, _ in cut if self._whole}
            spans = _learnt(chat, untrained, found.spans)
        except FileError as error:
            raise FileError(f"{name} line {example.line}: {error}") from error
        if self._templating.template is not None:
            given = [chat.messages, chat.tools, chat.args]
            if wrong := foreign_tokens(
                found.text, self._templating, self._tokenizer, given, self._known
            ):
                raise wrong
        self.rows += 1
        self._added += found.added
        self._cut_turns += len({i for i, _ in cut})
        self._cut_rows += bool(cut)
        self._cut_fields |= {field for _, field in cut}
        self._unwritten.update(found.unwritten)
        segment = Segment(found.text, spans, False, found.typed)
        return replace(example, segments=[segment])

    def _with_typed(self, part: Segment) -> Segment:
        """A part of a conversation that no template wrote: all special tokens in it were typed."""
        pieces = {self._tokenizer.pieces[i] for i in self._tokenizer.control_in([part.text])}
        if not pieces:
            return part
        one = re.compile("|".join(map(re.escape, sorted(pieces, key=len, reverse=True))))
        return replace(part, typed=[found.span() for found in one.finditer(part.text)])


def texts_in(value: Any) -> Iterator[str]:
    """All texts in a value of JSON, but for the names of fields."""
    open_ = [value]
    while open_:
        item = open_.pop()
        if isinstance(item, str):
            yield item
        elif isinstance(item, list | tuple | dict):
            open_ += item.values() if isinstance(item, dict) else item


def _take(examples: Iterator[Example]) -> tuple[list[Example], FileError | None]:
    batch = []
    try:
        for example in islice(examples, _BATCH):
            batch.append(example)
    except FileError as error:
        return batch, error
    return batch, None


def _learnt(chat: Chat, untrained: set[int], spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """The spans without those of turns that are not to be learnt."""
    turns = [i for i, message in enumerate(chat.messages) if message["role"] == "assistant"]
    if untrained.isdisjoint(turns):
        return spans
    if len(spans) != len(turns):
        raise FileError(
            f"the chat template marks {len(spans)} parts of {len(turns)} turns with {{% "
            "generation %}: which of them are not to be trained cannot be told"
        )
    return [span for i, span in zip(turns, spans, strict=True) if i not in untrained]
