"""Where the turns of a conversation stand in the text that a template makes of it.

A turn begins where the text ends that the template gives as the prompt for it. Each prompt is a
rendering of its own, so in a long conversation only some are rendered: between two turns whose
prompts go on in the same way behind the message before, those of the others do as well.
"""

import re
from itertools import pairwise
from typing import Protocol

from wgtrain.chat.rendered import Message, Variables
from wgtrain.chat.sandbox import MARK_CLOSE, MARK_OPEN
from wgtrain.chat.turns import content as content_of

_MARK = re.compile(f"{MARK_OPEN}(\\d+)([se]){MARK_CLOSE}")
_CLOSING = re.compile(r"</\w+>|\[/\w+\]")  # of thoughts, as `</think>`
_NO_PROMPT = MARK_OPEN  # no text holds it
_PROMPTS = 8  # of the turns behind one role that are always rendered


class Attempts(Protocol):
    """What is needed of a template."""

    def attempt(
        self, messages: list[Message], given: Variables, prompt: bool = False
    ) -> str | None:
        """The text of a conversation, or the prompt for its next turn; None if it is refused."""


def find_starts(places: "Places", turns: list[int]) -> dict[int, int | None]:
    """Where the turns begin by their prompts; None where a prompt is not how the text goes on."""
    groups: dict[str, list[int]] = {}
    for i in turns:
        groups.setdefault(places.messages[i - 1]["role"] if i else "", []).append(i)
    starts: dict[int, int | None] = {}
    for group in groups.values():
        starts |= _starts(places, group)
    return starts


def _starts(places: "Places", group: list[int]) -> dict[int, int | None]:
    """The same for turns that follow one role; `some` are rendered."""
    last = len(group) - 1
    some = sorted({k * last // (_PROMPTS - 1) for k in range(_PROMPTS)})
    some = list(range(last + 1)) if last < _PROMPTS else some
    starts = {group[k]: places.prompt_end(group[k]) for k in some}
    if len(some) == len(group) and None not in starts.values():
        return starts
    found = {places.tail(i, start) for i, start in starts.items()}
    tails = sorted(tail for tail in found if tail is not None and tail != _NO_PROMPT)
    ranges = list(pairwise(some))
    while ranges:
        first, last = ranges.pop()
        tail = places.tail(group[first], starts[group[first]])
        alike = tail is not None and tail == places.tail(group[last], starts[group[last]])
        if not alike or tail == _NO_PROMPT:
            starts |= places.sure(group[first + 1 : last], tails, starts)
        between = [i for i in group[first + 1 : last] if i not in starts]
        if alike and tail is not None:
            starts |= {i: places.follow(i, tail) for i in between}
        elif between:
            middle = (first + last) // 2
            if group[middle] not in starts:
                starts[group[middle]] = places.prompt_end(group[middle])
            ranges += [(first, middle), (middle, last)]
    return starts | places.sure(group, tails, starts)


class Places:
    """One conversation as rendered; `marks` are where contents begin ("s") and end ("e"), by
    message.
    """

    def __init__(
        self, template: Attempts, text: str, messages: list[Message], given: Variables
    ) -> None:
        self.template, self.text, self.messages, self.given = template, text, messages, given
        self._marks: dict[tuple[int, str], int] | None = None
        self._rests: dict[tuple[int, str], int] | None = None

    def prompt_end(self, i: int) -> int | None:
        """Where the prompt for turn `i` ends; None where the text does not begin with it."""
        prompt = self.template.attempt(self.messages[:i], self.given, prompt=True)
        fits = prompt is not None and self.text.startswith(prompt)
        return len(prompt) if fits and prompt is not None else None

    def tail(self, i: int, start: int | None) -> str | None:
        """What stands between the message before and the turn that begins at `start`.

        _NO_PROMPT where the turn does not begin by its prompt; None where it cannot be told.
        """
        before = self.marks.get((i - 1, "e"))
        if start is None:
            return _NO_PROMPT
        return None if before is None or before > start else self.text[before:start]

    def follow(self, i: int, tail: str) -> int | None:
        """Where turn `i` begins if its prompt ends with `tail`, or by its prompt otherwise."""
        if tail == _NO_PROMPT and (i, "s") in self.marks:
            return None
        before = self.marks.get((i - 1, "e"))
        if before is not None and self.text.startswith(tail, before):
            return before + len(tail)
        return self.prompt_end(i)

    def sure(
        self, turns: list[int], tails: list[str], starts: dict[int, int | None]
    ) -> dict[int, int]:
        """Turns without a start that begin behind the one of these ends of prompts that fits.

        Their contents begin just there, or are empty.
        """
        out = {}
        for i in turns:
            before, content = self.marks.get((i - 1, "e")), self.marks.get((i, "s"))
            if before is None or starts.get(i) is not None:
                continue
            ends = [before + len(tail) for tail in tails if self.text.startswith(tail, before)]
            if len(ends) == 1 and content in (None, ends[0]):
                out[i] = ends[0]
        return out

    def content_start(self, i: int) -> int | None:
        """Where the content of turn `i` begins, or what the template leaves of it."""
        start = self.marks.get((i, "s"))
        if start is None:
            if self._rests is None:
                self._rests = self._marked("s", everyone=False, thoughts=False) or {}
            start = self._rests.get((i, "s"))
        return start

    def empty_start(self, i: int, bare: bool) -> int | None:
        """Where turn `i`, which calls tools and has no content, begins: where a content would.

        Where the template writes none beside calls and heeds no prompt (`bare`), behind the
        messages before.
        """
        before, message, after = self.messages[:i], self.messages[i], self.messages[i + 1 :]
        with_mark = [*before, {**message, "content": MARK_OPEN}, *after]
        head, mark, _ = (self.template.attempt(with_mark, self.given) or "").partition(MARK_OPEN)
        if not mark and bare and before:
            head = self.template.attempt(before, self.given) or ""
        return len(head) if head and self.text.startswith(head) else None

    @property
    def marks(self) -> dict[tuple[int, str], int]:
        """Found by rendering with marks inside the contents; trusted if the text is otherwise
        the same.

        A template may look at how a content begins, so if all marks change the text, those at
        the ends of the assistant's contents may still not.
        """
        if self._marks is None:
            self._marks = self._marked("se", everyone=True)
        if self._marks is None:
            self._marks = self._marked("e", everyone=False) or {}
        return self._marks

    def _marked(self, sides: str, **which: bool) -> dict[tuple[int, str], int] | None:
        marked = self.template.attempt(_marked(self.messages, sides, **which), self.given)
        same = marked is not None and _MARK.sub("", marked) == self.text
        return _positions(marked) if same and marked is not None else None


def _marked(
    messages: list[Message], sides: str, everyone: bool, thoughts: bool = True
) -> list[Message]:
    """Copies with marks within the blanks around each content, since templates trim them.

    Without `thoughts` they stand around what follows these.
    """
    out = []
    for i, message in enumerate(messages):
        content = content_of(message)
        core = content.strip()
        if not thoughts:
            core = _CLOSING.split(core)[-1].strip()
        if core and (everyone or message["role"] == "assistant"):
            at = content.rindex(core)
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
