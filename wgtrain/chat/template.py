"""Conversations -> text by the model's own template, and which characters of it the model is to
learn.

Learnt are the assistant's turns and the tokens that end them. A turn begins where the text ends
that the template gives as the prompt for it, so at inference the model continues exactly there;
it ends behind the end-of-turn token that follows the message's content. Where neither the prompt
nor marks put around the contents tell this beyond doubt, the row is refused.
"""

import json
import re
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

from jinja2 import TemplateSyntaxError
from jinja2.meta import find_undeclared_variables

from wgtrain.chat import bounds
from wgtrain.chat.arguments import with_objects, with_texts
from wgtrain.chat.losses import cut_turns, unwritten
from wgtrain.chat.places import Places, find_starts
from wgtrain.chat.rendered import Message, Rendered, Variables
from wgtrain.chat.sandbox import MARK_CLOSE, MARK_OPEN, Sandbox
from wgtrain.chat.turns import as_given, content, has_system, merge_system
from wgtrain.errors import FileError

_BLANKS = re.compile(r"\s*")
_ANY_MARK = re.compile(f"[{MARK_OPEN}{MARK_CLOSE}]")


class Broken(FileError):
    """What keeps a template from being compiled."""


class Template:
    """A compiled chat template.

    `tokens` are the special tokens it may name, as `bos_token`; `stops` the texts of the tokens
    that end a turn, `end` the one that is put behind a last answer which the template leaves open.
    """

    def __init__(
        self,
        source: str,
        *,
        tokens: Mapping[str, str] | None = None,
        stops: Iterable[str] = (),
        end: str | None = None,
        now: datetime | None = None,
    ) -> None:
        self._tokens = dict(tokens or {})
        self._stops = sorted(stops, key=len, reverse=True)
        self._put_end = end
        one = "|".join(map(re.escape, self._stops)) or "(?!)"
        self._stop = re.compile(one)
        self._stop_next = re.compile(rf"\s*(?:{one})")
        self._stop_last = re.compile(rf"(?:{one})\s*\Z")
        self._sandbox = Sandbox(now)
        try:
            self._template = self._sandbox.from_string(source)
            self.variables = sorted(find_undeclared_variables(self._sandbox.parse(source)))
        except TemplateSyntaxError as error:
            what = f"line {error.lineno}: {error.message}"
            raise Broken(what) from error
        except MemoryError:
            raise bounds.too_large() from None
        except Exception as error:  # of the parser or of Python's compiler
            raise Broken(_said(error)) from error
        self._prompts: bool | None = None

    def render(
        self,
        messages: list[Message],
        tools: list[Any] | None = None,
        prompt: bool = False,
        args: Variables | None = None,
    ) -> str:
        """The text of a conversation; with `prompt` it ends where the assistant's answer begins.

        `args` are more variables for the template.
        """
        given = {**(args or {}), "tools": tools}
        return self._render(self._prepared(messages, given), given, prompt)

    def split(
        self,
        messages: list[Message],
        tools: list[Any] | None = None,
        args: Variables | None = None,
        typed: Iterable[str] = (),
    ) -> Rendered:
        """The text of a conversation and its learnt spans; FileError where they cannot be told.

        `typed` are special tokens that stand in the conversation itself, to be found in the text.
        """
        given = {**(args or {}), "tools": tools}
        messages = self._prepared(messages, given)
        try:
            text = self._render(messages, given)
        except FileError as error:
            self._explain(error, messages, given)
            raise
        if found := _ANY_MARK.search(text):
            what = f"U+{ord(found[0]):04X}, a noncharacter that the splitting needs"
            raise FileError(f"the text holds {what}")
        spans = self._spans(text, messages, given)
        cut = cut_turns(text, messages, spans)
        lost = unwritten(self, text, messages, given)
        lost += [f"chat_template_kwargs.{name}" for name in args or {} if not self._reads(name)]
        found_typed = self._typed(text, messages, given, typed)
        added = self._is_open(text, messages, spans)
        if added:
            start, end = spans[-1]
            text = text[:end] + str(self._put_end)
            spans[-1] = (start, len(text))
        return Rendered(text, spans, cut, lost, added, found_typed)

    def _typed(
        self, text: str, messages: list[Message], given: Variables, pieces: Iterable[str]
    ) -> list[tuple[int, int]]:
        """Where pieces of a conversation's own stand in the text: found by marks around them."""
        if not pieces:
            return []
        one = re.compile("|".join(map(re.escape, sorted(pieces, key=len, reverse=True))))
        inside = [m | {k: _marked(v, one) for k, v in m.items() if k != "role"} for m in messages]
        marked = self.attempt(inside, {name: _marked(value, one) for name, value in given.items()})
        if marked is None or _ANY_MARK.sub("", marked) != text:
            return []
        out, taken = [], 0
        for match in re.finditer(f"{MARK_OPEN}([^{MARK_CLOSE}]*){MARK_CLOSE}", marked):
            start = match.start() - taken
            out.append((start, start + len(match[1])))
            taken += 2
        return out

    def _reads(self, name: str) -> bool:
        return name in self.variables

    def _is_open(self, text: str, messages: list[Message], spans: list[tuple[int, int]]) -> bool:
        """Whether the text ends with an answer that no token ends, and one is to be put there."""
        marked = self._sandbox.has_generation  # then the template says itself what is learnt
        if self._put_end is None or not spans or marked or messages[-1]["role"] != "assistant":
            return False
        start, end = spans[-1]
        return not text[end:].strip() and not self._stop_last.search(text, start, end)

    def _explain(self, error: FileError, messages: list[Message], given: Variables) -> None:
        """Raises a better error where it is the system message that a template refuses."""
        if not has_system(messages):
            return
        try:
            merged, _ = merge_system(messages)
        except ValueError:
            return
        if self.attempt(merged, given) is not None:
            raise FileError(
                f"the chat template takes no system message ({error}); --system merge (in Python "
                "system='merge') puts its text before the first user turn"
            ) from error

    def _spans(self, text: str, messages: list[Message], given: Variables) -> list[tuple[int, int]]:
        """The learnt characters."""
        turns = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
        if not turns:
            return []
        if self._sandbox.has_generation:
            return self._generation_blocks(text, messages, given)
        places = Places(self, text, messages, given)
        starts = find_starts(places, turns) if self._prompting(given) else {}
        spans: list[tuple[int, int]] = []
        for i in turns:
            start = starts.get(i)
            start = places.content_start(i) if start is None else start
            if start is None and not content(messages[i]).strip():
                start = places.empty_start(i, bare=not self._prompting(given))
            if start is None:
                raise FileError(f"the chat template does not show where messages[{i}] begins")
            end = self._end(places, i, start)
            if start < (spans[-1][1] if spans else 0) or end <= start:
                raise FileError(f"the chat template loses the text of messages[{i}]")
            spans.append((start, end))
        return spans

    def _prepared(self, messages: list[Message], given: Variables) -> list[Message]:
        """The messages as the template gets them.

        JSON text in calls' arguments is decoded where the template writes JSON. Where it cannot do
        without, a call without a content has an empty one, and its arguments are text.
        """
        messages = as_given(messages)
        decoded = with_objects(messages)
        if decoded is not None:
            self._sandbox.objects_are_text = False
            try:
                messages = messages if self.attempt(decoded, given) is None else decoded
            finally:
                self._sandbox.objects_are_text = True
        if not any(message.get("tool_calls") for message in messages):
            return messages
        filled = [{"content": "", **message} for message in messages]
        for tried in (messages, filled, with_texts(messages), with_texts(filled)):
            if self.attempt(tried, given) is not None:
                return tried
        return messages

    def _render(
        self,
        messages: list[Message],
        given: Variables,
        prompt: bool = False,
        marking: bool = False,
    ) -> str:
        values = {"documents": None, **self._tokens, **given}
        values |= {"messages": messages, "add_generation_prompt": prompt}
        try:
            text = self._sandbox.run(self._template, marking, **values)
            text.encode()  # a template can write half a character, as "\ud800"
            return text
        except MemoryError:
            raise bounds.too_large() from None
        except Exception as error:  # whatever a stranger's code does wrong
            raise FileError(f"the chat template refuses it: {_said(error)}") from error

    def attempt(
        self, messages: list[Message], given: Variables, prompt: bool = False
    ) -> str | None:
        """As `render`, None where the template refuses."""
        try:
            return self._render(messages, given, prompt)
        except FileError:
            return None

    def _generation_blocks(
        self, text: str, messages: list[Message], given: Variables
    ) -> list[tuple[int, int]]:
        """The spans that the template itself names, by `{% generation %}`."""
        marked = self._render(messages, given, marking=True)
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
        return spans

    def _prompting(self, given: Variables) -> bool:
        """Whether the template heeds `add_generation_prompt`."""
        if self._prompts is None:
            one = [{"role": "user", "content": "a"}]
            prompt, plain = self.attempt(one, given, prompt=True), self.attempt(one, given)
            if prompt is None or plain is None:
                return False
            self._prompts = prompt != plain
        return self._prompts

    def _end(self, places: Places, i: int, start: int) -> int:
        """Where a turn ends, behind its end-of-turn token where there is one."""
        message = places.messages[i]
        end = self._content_end(places, i, start)
        if end is None or end < start:
            raise FileError(f"the chat template does not show where messages[{i}] ends")
        if not message.get("tool_calls"):
            if found := self._stop_next.match(places.text, end):
                return found.end()
            if end > start:
                return self._stop_behind(places, i, end)
        return self._end_of_other(places, i, end)

    def _stop_behind(self, places: Places, i: int, end: int) -> int:
        """Where the end-of-turn token ends that follows more of the template's words; `end` where
        none does before the next message.
        """
        last = i + 1 == len(places.messages)
        limit = len(places.text) if last else places.marks.get((i + 1, "s"), end)
        found = self._stop.search(places.text, end, limit)
        return found.end() if found else end

    def _content_end(self, places: Places, i: int, start: int) -> int | None:
        text, core = places.text, content(places.messages[i]).strip()
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

    def _end_of_other(self, places: Places, i: int, end: int) -> int:
        """As `_end`, where the template writes something behind the content: calls of tools."""
        calls = json.dumps(places.messages[i].get("tool_calls"), ensure_ascii=False)
        found = self._stop.search(places.text, end)
        limit = places.marks.get((i + 1, "s"), len(places.text))
        if self._stop.search(calls) or not found or found.end() > limit:
            ends = " ".join(self._stops[:8]) or "it has none"
            raise FileError(
                f"the chat template does not show where messages[{i}] ends: no token that ends a "
                f"turn of this model ({ends}) stands behind its calls alone"
            )
        if i + 1 < len(places.messages) and (i + 1, "s") not in places.marks:
            raise FileError(f"the chat template does not show where messages[{i + 1}] begins")
        if not places.text[end : found.start()].strip():
            raise FileError(f"the chat template leaves out the tool_calls of messages[{i}]")
        return found.end()


def _marked(value: Any, one: re.Pattern[str]) -> Any:
    """A value of JSON with marks around what a pattern finds in its texts."""
    if isinstance(value, str):
        return one.sub(lambda found: MARK_OPEN + found[0] + MARK_CLOSE, value)
    if isinstance(value, list):
        return [_marked(item, one) for item in value]
    if isinstance(value, dict):
        return {key: _marked(item, one) for key, item in value.items()}
    return value


def _blanks_end(text: str, at: int) -> int:
    match = _BLANKS.match(text, at)
    return match.end() if match else at


def _said(error: Exception) -> str:
    """The words of a template's error; its kind where it has none of its own."""
    kind = "" if type(error).__module__.startswith("jinja2") else f"{type(error).__name__}: "
    return (kind + str(error)).replace("\n", "\\n")[:300]
