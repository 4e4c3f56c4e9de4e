"""Conversations -> text by the model's own template, and which characters of it the model is to
learn.

Learnt are the assistant's turns and the tokens that end them. A turn begins where the text ends
that the template gives as the prompt for it, so at inference the model continues exactly there;
it ends behind the end-of-turn token that follows the message's content. Where neither the prompt
nor marks put around the contents tell this beyond doubt, the row is refused.
"""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from jinja2 import Template, TemplateSyntaxError

from wgtrain.data.sandbox import MARK_CLOSE, MARK_OPEN, Sandbox
from wgtrain.errors import FileError

Message = dict[str, Any]

_MARK = re.compile(f"{MARK_OPEN}(\\d+)([se]){MARK_CLOSE}")
_BLANKS = re.compile(r"\s*")
_ANY_MARK = re.compile(f"[{MARK_OPEN}{MARK_CLOSE}]")


@dataclass(frozen=True)
class Rendered:
    """A conversation as text; `spans` are the learnt (start, end) characters, in order.

    `ended` is False where an assistant's turn has no end-of-turn token: then the model does not
    learn to stop.
    """

    text: str
    spans: list[tuple[int, int]]
    ended: bool


class ChatTemplate:
    """A compiled chat template. `stops` are the texts of the tokens that end a turn."""

    def __init__(
        self,
        source: str,
        *,
        bos_token: str = "",
        eos_token: str = "",
        stops: Iterable[str] = (),
        now: datetime | None = None,
    ) -> None:
        self._tokens = {"bos_token": bos_token, "eos_token": eos_token}
        self._stops = sorted(stops, key=len, reverse=True)
        one = "|".join(map(re.escape, self._stops)) or "(?!)"
        self._stop = re.compile(one)
        self._stop_next = re.compile(rf"\s*(?:{one})")
        self._sandbox = Sandbox(now)
        try:
            self._template: Template = self._sandbox.from_string(source)
        except TemplateSyntaxError as error:
            what = f"line {error.lineno}: {error.message}"
            raise FileError(f"the model's chat template is broken: {what}") from error
        except Exception as error:  # of the parser or of Python's compiler
            raise FileError(f"the model's chat template is broken: {_said(error)}") from error
        self._prompts: bool | None = None

    def render(
        self, messages: list[Message], tools: list[Any] | None = None, prompt: bool = False
    ) -> str:
        """The text of a conversation; with `prompt` it ends where the assistant's answer begins."""
        return self._render(messages, tools, prompt)

    def split(self, messages: list[Message], tools: list[Any] | None = None) -> Rendered:
        """The text of a conversation and its learnt spans; FileError where they cannot be told."""
        text = self._render(messages, tools)
        if found := _ANY_MARK.search(text):
            what = f"U+{ord(found[0]):04X}, a noncharacter that the splitting needs"
            raise FileError(f"the text holds {what}")
        turns = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
        if not turns:
            return Rendered(text, [], True)
        if self._sandbox.has_generation:
            return self._generation_blocks(text, messages, tools)
        places = _Places(self, text, messages, tools)
        spans: list[tuple[int, int]] = []
        ended = True
        for i in turns:
            start = self._start(places, i)
            end, stopped = self._end(places, i, start)
            if start < (spans[-1][1] if spans else 0) or end <= start:
                raise FileError(f"the chat template loses the text of messages[{i}]")
            spans.append((start, end))
            ended &= stopped
        return Rendered(text, spans, ended)

    def _render(
        self,
        messages: list[Message],
        tools: list[Any] | None,
        prompt: bool = False,
        marking: bool = False,
    ) -> str:
        try:
            return self._sandbox.run(
                self._template,
                marking,
                messages=messages,
                tools=tools,
                documents=None,
                add_generation_prompt=prompt,
                **self._tokens,
            )
        except Exception as error:  # whatever a stranger's code does wrong
            raise FileError(f"the chat template refuses it: {_said(error)}") from error

    def _try(
        self, messages: list[Message], tools: list[Any] | None, prompt: bool = False
    ) -> str | None:
        try:
            return self._render(messages, tools, prompt)
        except FileError:
            return None

    def _generation_blocks(
        self, text: str, messages: list[Message], tools: list[Any] | None
    ) -> Rendered:
        """The spans that the template itself names, by `{% generation %}`."""
        marked = self._render(messages, tools, marking=True)
        spans: list[tuple[int, int]] = []
        starts: list[int] = []
        at = 0
        plain = []
        for part in re.split(f"({MARK_OPEN}|{MARK_CLOSE})", marked):
            if part == MARK_OPEN:
                starts.append(at)
            elif part == MARK_CLOSE and len(starts) == 1:
                spans.append((starts.pop(), at))
            elif part == MARK_CLOSE:
                raise FileError("the chat template puts {% generation %} into another one")
            else:
                plain.append(part)
                at += len(part)
        spans = [(start, end) for start, end in spans if end > start]
        if "".join(plain) != text or starts or not spans:
            raise FileError(
                "the chat template's {% generation %} blocks lose the assistant's turns"
            )
        ended = all(self._stop.search(text, *span) for span in spans)
        return Rendered(text, spans, ended)

    def _prompting(self) -> bool:
        """Whether the template heeds `add_generation_prompt`."""
        if self._prompts is None:
            one = [{"role": "user", "content": "a"}]
            prompt = self._try(one, None, prompt=True)
            self._prompts = prompt is not None and prompt != self._try(one, None)
        return self._prompts

    def _start(self, places: "_Places", i: int) -> int:
        if self._prompting():
            prompt = self._try(places.messages[:i], places.tools, prompt=True)
            if prompt is not None and places.text.startswith(prompt):
                return len(prompt)
        start = places.marks.get((i, "s"))
        if start is None:
            raise FileError(f"the chat template does not show where messages[{i}] begins")
        return start

    def _end(self, places: "_Places", i: int, start: int) -> tuple[int, bool]:
        """Where a turn ends, and whether an end-of-turn token does it."""
        message = places.messages[i]
        end = self._content_end(places, i, start)
        if end is None or end < start:
            raise FileError(f"the chat template does not show where messages[{i}] ends")
        if not message.get("tool_calls"):
            if found := self._stop_next.match(places.text, end):
                return found.end(), True
            if end > start:
                return end, False
        return self._end_of_other(places, i, end)

    def _content_end(self, places: "_Places", i: int, start: int) -> int | None:
        text, core = places.text, places.messages[i]["content"].strip()
        if not core:
            return start
        begin = _blanks_end(text, start)
        if text.startswith(core, begin):
            return begin + len(core)
        if i + 1 == len(places.messages) and (found := self._stop.search(text, start)):
            # Nothing but this turn is left; what stands before the content are its thoughts.
            end = start + len(text[start : found.start()].rstrip())
            if text.endswith(core, start, end):
                return end
        return places.marks.get((i, "e"))

    def _end_of_other(self, places: "_Places", i: int, end: int) -> tuple[int, bool]:
        """As `_end`, where the template writes something behind the content: calls of tools."""
        calls = json.dumps(places.messages[i].get("tool_calls"), ensure_ascii=False)
        found = self._stop.search(places.text, end)
        limit = places.marks.get((i + 1, "s"), len(places.text))
        if self._stop.search(calls) or not found or found.end() > limit:
            raise FileError(f"the chat template does not show where messages[{i}] ends")
        if i + 1 < len(places.messages) and (i + 1, "s") not in places.marks:
            raise FileError(f"the chat template does not show where messages[{i + 1}] begins")
        if not places.text[end : found.start()].strip():
            raise FileError(f"the chat template leaves out the tool_calls of messages[{i}]")
        return found.end(), True


class _Places:
    """One conversation as rendered; `marks` are where contents begin ("s") and end ("e"), by
    message.
    """

    def __init__(
        self, template: ChatTemplate, text: str, messages: list[Message], tools: list[Any] | None
    ) -> None:
        self.template, self.text, self.messages, self.tools = template, text, messages, tools
        self._marks: dict[tuple[int, str], int] | None = None

    @property
    def marks(self) -> dict[tuple[int, str], int]:
        """Found by rendering with marks inside the contents; trusted if the text is otherwise
        the same.

        A template may look at how a content begins, so if all marks change the text, those at
        the ends of the assistant's contents may still not.
        """
        if self._marks is None:
            self._marks = {}
            for sides, everyone in (("se", True), ("e", False)):
                marked = self.template._try(_marked(self.messages, sides, everyone), self.tools)
                if marked is not None and _MARK.sub("", marked) == self.text:
                    self._marks = _positions(marked)
                    break
        return self._marks


def _marked(messages: list[Message], sides: str, everyone: bool) -> list[Message]:
    """Copies with marks within the blanks around each content, since templates trim them."""
    out = []
    for i, message in enumerate(messages):
        content = message["content"]
        core = content.strip()
        if core and (everyone or message["role"] == "assistant"):
            at = content.index(core)
            start = f"{MARK_OPEN}{i}s{MARK_CLOSE}" if "s" in sides else ""
            end = f"{MARK_OPEN}{i}e{MARK_CLOSE}" if "e" in sides else ""
            content = content[:at] + start + core + end + content[at + len(core) :]
            message = {**message, "content": content}
        out.append(message)
    return out


def _positions(marked: str) -> dict[tuple[int, str], int]:
    """Where the marks stand in the text without them; one that stands twice tells nothing."""
    found: dict[tuple[int, str], int] = {}
    twice = set()
    taken = 0
    for match in _MARK.finditer(marked):
        mark = (int(match[1]), match[2])
        if mark in found:
            twice.add(mark)
        found[mark] = match.start() - taken
        taken += len(match[0])
    return {mark: at for mark, at in found.items() if mark not in twice}


def _blanks_end(text: str, at: int) -> int:
    match = _BLANKS.match(text, at)
    return match.end() if match else at


def _said(error: Exception) -> str:
    """The words of a template's error; its kind where it has none of its own."""
    kind = "" if type(error).__module__.startswith("jinja2") else f"{type(error).__name__}: "
    return (kind + str(error))[:300]
