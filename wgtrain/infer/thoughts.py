"""What a model thinks before it answers: how its template marks that, and the two told apart.

The marks are found by rendering: a conversation whose last answer has thoughts shows what stands
around them, and the prompt whether it opens them already. Where a template writes no thoughts, the
pairs of marks in its source count whose names speak of thinking.
"""

import re
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from wgtrain.infer.text import overlap

Render = Callable[[list[dict[str, Any]], bool], str | None]  # messages, as a prompt; None: refused

_QUESTION, _THOUGHTS, _ANSWER = "Question 17", "Thoughts 23", "Answer 42"
_FUNCTION = {"name": "name31", "arguments": {"key": "value"}}
_CALL = {"id": "abcdefg12", "type": "function", "function": _FUNCTION}
_MARKER = re.compile(r"<[^<>\n]{1,60}>|\[[^\[\]\n]{1,60}\]|◁[^◁▷\n]{1,60}▷")
_HALF_MARKER = re.compile(r"(?:<[^<>\n]{0,60}|\[[^\[\]\n]{0,60}|◁[^◁▷\n]{0,60})\Z")
_NAME = re.compile(r"[a-z]+")
_SIDES = {"start", "end", "begin", "open", "close"}  # which side of a pair a mark is
_THINKING = re.compile(r"think|thought|reason", re.IGNORECASE)
_FIELDS = ("reasoning_content", "reasoning")  # where templates look for thoughts
_TAIL = 16  # characters at its end by which a prompt is known


@dataclass(frozen=True)
class Thoughts:
    """How a prompt's answer marks its thoughts, which come before it.

    They stand between `open`, "" where no text opens them, and `close`; `leads` are what may stand
    before the answer itself, `end` what does behind it, "" = nothing. `inside`: the prompt ends
    within thoughts. `shown`: the tokens of marks that are not written out elsewhere. `taken`: the
    field of a message from which the template writes the thoughts of a conversation, "" = none.
    """

    open: str
    close: str
    leads: tuple[str, ...] = ()
    end: str = ""
    inside: bool = False
    shown: frozenset[int] = frozenset()
    taken: str = ""


class ChatPrompt(list[int]):
    """The ids of a prompt that a template made; `thoughts`: how its answer marks them, if so."""

    def __init__(self, ids: Iterable[int], thoughts: Thoughts | None) -> None:
        super().__init__(ids)
        self.thoughts = thoughts


class Part(NamedTuple):
    """What becomes of `size` characters that came: `text`, of a thought or of the answer."""

    size: int
    text: str
    thought: bool


class Splitter:
    """Tells thoughts from the answer in a text that comes in pieces; marks are left out, and blanks
    beside them. Without marks all is answer.

    Thoughts can begin only before the answer does: later a mark is text, as in an answer about it.
    """

    def __init__(self, thoughts: Thoughts | None) -> None:
        self._marks = thoughts
        self._state = "start" if thoughts else "plain"
        if thoughts and thoughts.inside:
            self._state = "opened"
        self._held = ""
        self._bare = thoughts is not None  # no mark was there yet: blanks are the answer's

    @property
    def thinking(self) -> bool:
        """Whether what comes next is a thought, as far as can be told."""
        return self._state in ("opened", "thought")

    def add(self, text: str) -> list[Part]:
        """More of the text -> the parts of it that are known to be one or the other."""
        return self._split(text, False)

    def end(self) -> list[Part]:
        """What was held back."""
        return self._split("", True)

    def _split(self, text: str, last: bool) -> list[Part]:
        self._held += text
        if self._marks is None:
            out = [Part(len(self._held), self._held, False)] if self._held else []
            self._held = ""
            return out
        parts: list[Part] = []
        step = True
        while step and self._held:
            step = {
                "start": self._start,
                "opened": self._opened,
                "thought": self._thought,
                "answer": self._answer,
            }[self._state](self._marks, parts, last)
        return parts

    def _take(self, size: int, parts: list[Part], upto: int | None = None) -> None:
        """Hands out characters, of which only those before `upto` are written."""
        text = self._held[: size if upto is None else upto]
        parts.append(Part(size, text, self.thinking))
        self._held = self._held[size:]

    def _start(self, marks: Thoughts, parts: list[Part], last: bool) -> bool:
        """Before the answer: marks, of which the closing one alone says that there were no
        thoughts, blanks, or its first character. Each of these says whether there is more to do.
        """
        core = self._held.lstrip()
        every = [mark for mark in (marks.open, marks.close, *marks.leads) if mark]
        if not last and (not core or any(m != core and m.startswith(core) for m in every)):
            return False
        mark = max((m for m in every if core.startswith(m)), key=len, default=None)
        blanks = len(self._held) - len(core)
        if mark is not None:
            self._take(blanks + len(mark), parts, 0)
            self._bare = False
            self._state = "opened" if mark == marks.open else "start"
            return True
        if not self._bare:
            self._take(blanks, parts, 0)
        self._state = "answer"
        return True

    def _opened(self, marks: Thoughts, parts: list[Part], last: bool) -> bool:
        """Between the mark and the first thought: blanks, or the mark once more where the prompt
        had it already.
        """
        self._take(len(self._held) - len(self._held.lstrip()), parts, 0)
        if marks.open and self._held.startswith(marks.open):
            self._take(len(marks.open), parts, 0)
            return True
        if not self._held or (not last and marks.open.startswith(self._held)):
            return False
        self._state = "thought"
        return True

    def _thought(self, marks: Thoughts, parts: list[Part], last: bool) -> bool:
        at = self._held.find(marks.close)
        if at >= 0:
            self._take(at + len(marks.close), parts, len(self._held[:at].rstrip()))
            self._state, self._bare = "start", False
            return True
        sure = len(self._held)
        if not last:
            sure -= overlap(self._held, marks.close)
            sure = len(self._held[:sure].rstrip())
        self._take(sure, parts)
        return False

    def _answer(self, marks: Thoughts, parts: list[Part], last: bool) -> bool:
        at = self._held.find(marks.end) if marks.end else -1
        if at >= 0:
            self._take(at + len(marks.end), parts, at)
            return True
        held = overlap(self._held, marks.end) if marks.end and not last else 0
        self._take(len(self._held) - held, parts)
        return False


def thoughts_of(prompt: str, marks: Thoughts, probe: str) -> Thoughts:
    """The marks for one prompt: it may end within thoughts, as `probe` does where `marks` say."""
    end = prompt.rstrip()
    if marks.open:
        return replace(marks, inside=end.endswith(marks.open))
    return replace(marks, inside=marks.inside and end.endswith(probe.rstrip()[-_TAIL:]))


def find_thoughts(
    render: Render, sources: Iterable[str], stops: Collection[str]
) -> tuple[Thoughts | None, str]:
    """How a template marks thoughts, None where it does not, and the prompt that tells `inside`.

    `sources`: its texts; `stops`: the pieces that end an answer.
    """
    question = {"role": "user", "content": _QUESTION}
    answer = {"role": "assistant", "content": _ANSWER}
    prompt = render([question], True) or ""
    plain = render([question, answer], False) or ""
    marks = Thoughts(*_named(sources))
    for name in _FIELDS:
        text = render([question, {**answer, name: _THOUGHTS}], False) or ""
        found = _around(prompt, text, _ANSWER)
        if found is None:  # it may write those alone that lead to a call
            call = {"role": "assistant", name: _THOUGHTS, "tool_calls": [_CALL]}
            found = _around(prompt, render([question, call], False) or "", "name31")
            found = found and (*found[:2], "", found[3])
        if found is not None:
            marks = Thoughts(*found[:2], (found[2],), inside=found[3], taken=name)
            break
    head, _, tail = plain.partition(_ANSWER)
    bare = head[_known(head, prompt) :].lstrip()
    if any(mark and mark in bare for mark in (marks.open, marks.close)):
        bare = ""  # thoughts that are empty
    end = tail[: min((tail.find(stop) for stop in stops if stop in tail), default=0)].strip()
    if not (marks.close or bare or end):
        return None, prompt
    leads = {bare, *marks.leads, *(lead.removesuffix(bare).strip() for lead in marks.leads)}
    return replace(marks, leads=tuple(sorted(leads - {""})), end=end), prompt


def _around(prompt: str, text: str, behind: str) -> tuple[str, str, str, bool] | None:
    """What opens and closes the thoughts in a text, what follows up to what comes `behind` them,
    and whether the prompt opens them; None where they do not stand there.
    """
    before, there, after = text.partition(_THOUGHTS)
    between, answered, _ = after.partition(behind)
    close = _first_marker(between.strip())
    if not there or not answered or not close:
        return None
    known = _known(before, prompt)
    opening = before[known:].strip()
    prefilled = prompt[known:]
    if not opening:
        last = max(_MARKER.finditer(before), key=lambda found: found.start(), default=None)
        if last is not None and _name(last[0]) == _name(close):
            opening = before[last.start() :].strip()
    inside = close not in prefilled and (bool(prefilled.strip()) or not before[known:].strip())
    return opening, close, between.strip().removeprefix(close), inside


def _first_marker(text: str) -> str:
    """The mark that a text begins with, all of it where that is none."""
    found = _MARKER.match(text)
    return found[0] if found else text


def _known(text: str, prompt: str) -> int:
    """How much of a text is the prompt's, up to a mark that is not."""
    if text.startswith(prompt):
        return len(prompt)
    n = min(len(text), len(prompt))
    same = next((i for i in range(n) if text[i] != prompt[i]), n)
    half = _HALF_MARKER.search(text[:same])
    return half.start() if half else same


def _name(mark: str) -> str:
    """What a mark is called, alike for both of a pair."""
    return " ".join(word for word in _NAME.findall(mark.lower()) if word not in _SIDES)


def _named(sources: Iterable[str]) -> tuple[str, str]:
    """The first pair of marks in a template's source whose name speaks of thinking."""
    marks = [m for source in sources for m in dict.fromkeys(_MARKER.findall(source))]
    marks = [mark for mark in marks if _THINKING.search(mark) and not re.search(r"\s", mark)]
    for close in marks:
        if "/" in close or re.search("end", close, re.IGNORECASE):
            for open_ in marks:
                if open_ != close and _name(open_) == _name(close) and "/" not in open_:
                    return open_, close
    return "", ""
