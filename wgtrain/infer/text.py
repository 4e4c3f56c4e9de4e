"""Tokens as they come, turned into pieces of text."""

import codecs
from collections.abc import Iterable, Sequence

from wgtrain.data.tokenizer import Tokenizer


class TextStream:
    """The text behind a prompt's tokens. A piece ends where a character does; bytes that never
    become one are shown as U+FFFD.
    """

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int]):
        self._tokenizer = tokenizer
        self._tail = list(prompt[-1:])  # it decides whether a space opens the answer
        self._said = len(self._bytes())
        self._characters = codecs.getincrementaldecoder("utf-8")("replace")

    def add(self, tokens: Iterable[int]) -> str:
        """What the next tokens add, maybe nothing yet."""
        self._tail += tokens
        whole = self._bytes()
        piece = self._characters.decode(whole[self._said :])
        self._said = len(whole)
        return piece

    def end(self) -> str:
        """What is left of a character that did not end."""
        return self._characters.decode(b"", final=True)

    def _bytes(self) -> bytes:
        return self._tokenizer.decode_bytes(self._tail, start=False)
