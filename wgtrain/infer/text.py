"""Tokens as they come, turned into pieces of text; and where a stop string ends them."""

import codecs
from collections.abc import Collection, Sequence

from wgtrain.data.tokenizer import Tokenizer


class TextStream:
    """The text behind a prompt's tokens. A piece ends where a character does; bytes that never
    become one are shown as U+FFFD. `shown`: control tokens that are written out.
    """

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int], shown: Collection[int] = ()):
        self._tokenizer = tokenizer
        self._last = list(prompt[-1:])  # it decides whether a space opens the answer
        self._shown = shown
        self._characters = codecs.getincrementaldecoder("utf-8")("replace")

    def read(self, token: int) -> tuple[bytes, str]:
        """The bytes of the next token, and the characters that end with it."""
        if token in self._shown:
            new = self._tokenizer.decode_bytes([token], special=True, start=False)
        else:
            before = self._tokenizer.decode_bytes(self._last, start=False)
            new = self._tokenizer.decode_bytes([*self._last, token], start=False)[len(before) :]
        self._last = [token]
        return new, self._characters.decode(new)

    @property
    def within(self) -> bool:
        """Whether the last token ended within a character."""
        return bool(self._characters.getstate()[0])

    def end(self) -> str:
        """What is left of a character that did not end."""
        return self._characters.decode(b"", final=True)


class StopFinder:
    """Looks for stop strings in a text that comes in pieces, and holds back what may begin one.

    The first one to be complete counts, of those that end at one place the longest, so that it does
    not matter how the text is cut into pieces.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = stops
        self._held = ""

    def add(self, text: str) -> tuple[str, bool]:
        """More of the text -> what of it cannot belong to a stop string, and whether one is there;
        that and what follows it are dropped.
        """
        self._held += text
        places = ((self._held.find(stop), stop) for stop in self._stops)
        found = [(at + len(stop), at) for at, stop in places if at >= 0]
        if found:
            free = min(found)[1]
            out, self._held = self._held[:free], ""
            return out, True
        held = max((overlap(self._held, stop) for stop in self._stops), default=0)
        free = len(self._held) - held
        out, self._held = self._held[:free], self._held[free:]
        return out, False

    def end(self) -> str:
        """What was held back, where the text ends without a stop string."""
        out, self._held = self._held, ""
        return out


def overlap(text: str, mark: str) -> int:
    """How many characters at the end of a text begin a mark that is not complete there."""
    longest = min(len(text), len(mark) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(mark[:n])), 0)
