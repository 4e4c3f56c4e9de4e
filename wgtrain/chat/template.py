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
from datetime import datetime
from typing import Any

from jinja2 import TemplateSyntaxError

from wgtrain.chat import bounds
from wgtrain.chat.arguments import with_objects
from wgtrain.chat.losses import cut_turns, unwritten
from wgtrain.chat.places import Places, find_starts
from wgtrain.chat.rendered import Message, Rendered
from wgtrain.chat.sandbox import MARK_CLOSE, MARK_OPEN, Sandbox
from wgtrain.errors import FileError

_BLANKS = re.compile(r"\s*")
_ANY_MARK = re.compile(f"[{MARK_OPEN}{MARK_CLOSE}]")


class Template:
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
            self._template = self._sandbox.from_string(source)
        except TemplateSyntaxError as error:
            what = f"line {error.lineno}: {error.message}"
            raise FileError(f"the model's chat template is broken: {what}") from error
        except MemoryError:
            raise bounds.too_large() from None
        except Exception as error:  # of the parser or of Python's compiler
            raise FileError(f"the model's chat template is broken: {_said(error)}") from error
        self._prompts: bool | None = None

    def render(
        self, messages: list[Message], tools: list[Any] | None = None, prompt: bool = False
    ) -> str:
        """The text of a conversation; with `prompt` it ends where the assistant's answer begins."""
        return self._render(self._with_arguments(messages, tools), tools, prompt)

    def split(self, messages: list[Message], tools: list[Any] | None = None) -> Rendered:
        """The text of a conversation and its learnt spans; FileError where they cannot be told."""
        messages = self._with_arguments(messages, tools)
        text = self._render(messages, tools)
        if found := _ANY_MARK.search(text):
            what = f"U+{ord(found[0]):04X}, a noncharacter that the splitting needs"
            raise FileError(f"the text holds {what}")
        spans, ended = self._spans(text, messages, tools)
        cut = cut_turns(text, messages, spans)
        return Rendered(text, spans, ended, cut, unwritten(self, text, messages, tools))

    def _spans(
        self, text: str, messages: list[Message], tools: list[Any] | None
    ) -> tuple[list[tuple[int, int]], bool]:
        """The learnt characters, and whether tokens end all turns."""
        turns = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
        if not turns:
            return [], True
        if self._sandbox.has_generation:
            return self._generation_blocks(text, messages, tools)
        places = Places(self, text, messages, tools)
        starts = find_starts(places, turns) if self._prompting() else {}
        spans: list[tuple[int, int]] = []
        ended = True
        for i in turns:
            start = starts.get(i)
            start = places.content_start(i) if start is None else start
            if start is None:
                raise FileError(f"the chat template does not show where messages[{i}] begins")
            end, stopped = self._end(places, i, start)
            if start < (spans[-1][1] if spans else 0) or end <= start:
                raise FileError(f"the chat template loses the text of messages[{i}]")
            spans.append((start, end))
            ended &= stopped
        return spans, ended

    def _with_arguments(self, messages: list[Message], tools: list[Any] | None) -> list[Message]:
        """The messages, JSON text in calls' arguments decoded where the template writes JSON."""
        decoded = with_objects(messages)
        if decoded is None:
            return messages
        self._sandbox.objects_are_text = False
        try:
            return messages if self.attempt(decoded, tools) is None else decoded
        finally:
            self._sandbox.objects_are_text = True

    def _render(
        self,
        messages: list[Message],
        tools: list[Any] | None,
        prompt: bool = False,
        marking: bool = False,
    ) -> str:
        try:
            text = self._sandbox.run(
                self._template,
                marking,
                messages=messages,
                tools=tools,
                documents=None,
                add_generation_prompt=prompt,
                **self._tokens,
            )
            text.encode()  # a template can write half a character, as "\ud800"
            return text
        except MemoryError:
            raise bounds.too_large() from None
        except Exception as error:  # whatever a stranger's code does wrong
            raise FileError(f"the chat template refuses it: {_said(error)}") from error

    def attempt(
        self, messages: list[Message], tools: list[Any] | None, prompt: bool = False
    ) -> str | None:
        """As `render`, None where the template refuses."""
        try:
            return self._render(messages, tools, prompt)
        except FileError:
            return None

    def _generation_blocks(
        self, text: str, messages: list[Message], tools: list[Any] | None
    ) -> tuple[list[tuple[int, int]], bool]:
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
        return spans, all(self._stop.search(text, *span) for span in spans)

    def _prompting(self) -> bool:
        """Whether the template heeds `add_generation_prompt`."""
        if self._prompts is None:
            one = [{"role": "user", "content": "a"}]
            prompt = self.attempt(one, None, prompt=True)
            self._prompts = prompt is not None and prompt != self.attempt(one, None)
        return self._prompts

    def _end(self, places: Places, i: int, start: int) -> tuple[int, bool]:
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

    def _content_end(self, places: Places, i: int, start: int) -> int | None:
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

    def _end_of_other(self, places: Places, i: int, end: int) -> tuple[int, bool]:
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


def _blanks_end(text: str, at: int) -> int:
    match = _BLANKS.match(text, at)
    return match.end() if match else at


def _said(error: Exception) -> str:
    """The words of a template's error; its kind where it has none of its own."""
    kind = "" if type(error).__module__.startswith("jinja2") else f"{type(error).__name__}: "
    return (kind + str(error)).replace("\n", "\\n")[:300]
