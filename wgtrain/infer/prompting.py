"""Messages -> the tokens of a prompt that the assistant's answer follows."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import date
from typing import Any

from wgtrain.data import ChatTemplate
from wgtrain.data.examples import without_developer
from wgtrain.data.messages import Conversation, free_form, read_conversation
from wgtrain.data.records import RowError
from wgtrain.data.templates import (
    SYSTEM,
    Templating,
    all_texts,
    check_arguments,
    foreign_tokens,
    unread,
)
from wgtrain.data.tokenizer import Tokenizer
from wgtrain.errors import FileError, OptionError
from wgtrain.files.source import shown
from wgtrain.infer.thoughts import ChatPrompt, Thoughts, find_thoughts, thoughts_of
from wgtrain.turn import Turn

_NONCHARACTERS = range(0xFDD2, 0xFDF0)  # in no real text; the first two mark things in templates


class Prompter:
    """Makes prompts by a model's chat template, which stays open between them until `close`.

    `templating`: what goes in the place of the model's own template; None = that.
    """

    def __init__(self, tokenizer: Tokenizer, templating: Templating | None = None) -> None:
        self._tokenizer, self._given = tokenizer, templating
        self._day: date | None = None
        self._open: ChatTemplate | None = None
        self._marks: tuple[str, Thoughts | None, str] | None = None
        self._known: dict[str, bool] = {}
        self._turn = Turn("the chat template")

    def prompt(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Any] | None = None,
        template_args: Mapping[str, Any] | None = None,
        system: str | None = None,
    ) -> ChatPrompt:
        """See `Model.prompt`."""
        with self._turn(wait=True):
            return self._prompt(messages, tools, template_args, system)

    def close(self) -> None:
        """Ends the template's process, once no other thread uses it."""
        with self._turn(wait=True):
            self._shut()

    def _shut(self) -> None:
        if self._open is not None:
            self._open.close()
        self._open = self._marks = None

    def _prompt(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Any] | None,
        template_args: Mapping[str, Any] | None,
        system: str | None,
    ) -> ChatPrompt:
        templating = self._templating()
        if system not in (None, *SYSTEM):
            raise OptionError(f"system = {shown(system)}: allowed is {' or '.join(SYSTEM)}")
        check_arguments({} if template_args is None else template_args, "template_args")
        chat = read_messages(messages, (system or templating.system) == "merge")
        tools = read_tools(tools)
        args = {**templating.args, **(template_args or {})}
        if wrong := unread(template_args or {}, self._template(templating), self._tokenizer):
            raise wrong
        if not any("developer" in text for text in templating.sources(self._tokenizer).values()):
            chat = [without_developer(message) for message in chat]
        given = list(all_texts([chat, tools]))
        guard = _guard(given)
        pieces = (self._tokenizer.pieces[i] for i in {*self._tokenizer.control_in(given)})
        typed = [piece for piece in pieces if len(piece) > 1]  # a guard fits into these
        chat, shielded = _shielded([chat, tools], typed, guard)
        text = self._template(templating).render(chat, shielded, True, args)
        if templating.template is not None:
            asked = [given, args]
            if wrong := foreign_tokens(text, templating, self._tokenizer, asked, self._known):
                raise wrong
        ids = self._tokenizer.encode(text, bos=self._tokenizer.add_bos, special=True, guard=guard)
        return ChatPrompt(ids, self._thoughts(text, templating, tools, args))

    def _thoughts(
        self, text: str, templating: Templating, tools: list[Any] | None, args: dict[str, Any]
    ) -> Thoughts | None:
        """How the answer to a prompt marks its thoughts."""
        key = json.dumps([tools, args], sort_keys=True, default=repr)
        if self._marks is None or self._marks[0] != key:
            self._marks = key, *self._find_thoughts(templating, tools, args)
        _, marks, probe = self._marks
        return marks and thoughts_of(text, marks, probe)

    def _find_thoughts(
        self, templating: Templating, tools: list[Any] | None, args: dict[str, Any]
    ) -> tuple[Thoughts | None, str]:
        tokenizer = self._tokenizer

        def render(messages: list[dict[str, Any]], prompt: bool) -> str | None:
            try:
                return self._template(templating).render(messages, tools, prompt, args)
            except FileError:
                return None

        sources = templating.sources(tokenizer).values()
        stops = [tokenizer.pieces[i] for i in tokenizer.stop_ids]
        marks, probe = find_thoughts(render, sources, stops)
        return marks and seen(marks, tokenizer), probe

    def _templating(self) -> Templating:
        """How conversations become text now; a template that tells the day gets today's."""
        today = date.today()
        if self._given is not None:
            return self._given
        if self._day != today:
            self._shut()
            self._own, self._day = Templating(), today
        return self._own

    def _template(self, templating: Templating) -> ChatTemplate:
        if self._open is None:
            self._open = templating.open(self._tokenizer)
        if self._open is None:
            raise OptionError(
                f"{self._tokenizer.name} has no chat template, so that messages cannot become a "
                "prompt: give the prompt as a text, or bring a template with --chat-template FILE "
                'or chatml (in Python model.templating = wgtrain.templating("chatml"))'
            )
        return self._open


def _guard(texts: list[str]) -> str:
    """A character that is in none of the texts."""
    there = "".join(texts)
    free = (chr(code) for code in _NONCHARACTERS if chr(code) not in there)
    found = next(free, None)
    if found is None:
        raise OptionError("messages: they hold all the noncharacters from U+FDD2 to U+FDEF")
    return found


def seen(marks: Thoughts, tokenizer: Tokenizer) -> Thoughts:
    """The marks as they are in an answer's text, where control tokens are not written out but for
    those that open and close thoughts.
    """
    shown = frozenset(tokenizer.control_in([marks.open, marks.close]))
    hidden = [tokenizer.pieces[i] for i in tokenizer.control_in([marks.end, *marks.leads])]
    hidden = [piece for piece in hidden if tokenizer.id_of(piece) not in shown]

    def text(mark: str) -> str:
        for piece in hidden:
            mark = mark.replace(piece, "")
        return mark

    leads = tuple(sorted({text(lead) for lead in marks.leads} - {""}))
    return replace(marks, leads=leads, end=text(marks.end), shown=shown)


def read_messages(messages: Sequence[Mapping[str, Any]], merge: bool) -> list[dict[str, Any]]:
    """The turns of a conversation, checked; OptionError names what is wrong. With `merge` system
    texts go in front of the user's turns.
    """
    if isinstance(messages, str | bytes | Mapping) or not isinstance(messages, Sequence):
        raise OptionError(
            f"messages = {shown(messages)}: a list of objects with role and content is needed"
        )
    given = [dict(item) if isinstance(item, Mapping) else item for item in messages]
    try:
        chat: Conversation = read_conversation(given, "messages")
        if unused := sorted(_unused(chat, given)):
            raise RowError(f"field '{unused[0]}': nothing uses it")
        if merge:
            chat.merge_system()
    except RowError as error:
        raise OptionError(f"messages: {error}") from None
    return chat.messages


def _unused(chat: Conversation, given: list[Any]) -> Iterator[str]:
    """Fields that hold something and that no template is given."""
    for field in chat.ignored:
        name = field.rpartition(".")[2]
        if field != f"messages[].{name}" or any(item.get(name) for item in given):
            yield field


def read_tools(tools: Sequence[Any] | None) -> list[Any] | None:
    """The tools of a conversation, None for none; OptionError for what are no objects."""
    if tools is None:
        return None
    try:
        return free_form(list(tools) if isinstance(tools, tuple) else tools, "tools") or None
    except RowError as error:
        raise OptionError(str(error)) from None


def _shielded(value: Any, pieces: list[str], guard: str) -> Any:
    """A value of JSON in whose texts no piece stands whole: a guard is within each."""
    if not pieces:
        return value
    if isinstance(value, str):
        for piece in sorted(pieces, key=len, reverse=True):
            while piece in value:  # occurrences may overlap
                value = value.replace(piece, piece[0] + guard + piece[1:])
        return value
    if isinstance(value, list):
        return [_shielded(item, pieces, guard) for item in value]
    if isinstance(value, dict):
        pairs = [[key, item] for key, item in value.items()]
        return dict(_shielded(pairs, pieces, guard))
    return value
