"""Unicode's form NFC of a text, and where its bytes were in the text."""

import unicodedata
from functools import cache

import numpy as np


def composed(text: str) -> tuple[str, np.ndarray]:
    """NFC of a text, and the byte of the text at which each of its bytes is reached, int64 (n + 1,)
    from 0 on: letters that were composed count as one, which ends where the last of them does.
    """
    parts, sizes, ends = [], [], []
    end = start = 0
    for i in range(1, len(text) + 1):
        if i == len(text) or _begins(text[i]):
            part = unicodedata.normalize("NFC", text[start:i])
            end += len(text[start:i].encode())
            parts.append(part)
            sizes.append(len(part.encode()))
            ends.append(end)
            start = i
    places = np.repeat(np.array(ends, np.int64), sizes)
    return "".join(parts), np.concatenate([np.zeros(1, np.int64), places])


@cache
def _begins(letter: str) -> bool:
    """Whether no letter is ever composed with, or ordered behind, what stands before it."""
    first = unicodedata.normalize("NFD", letter)[0]
    return unicodedata.combining(first) == 0 and first not in _seconds()


@cache
def _seconds() -> frozenset[str]:
    """The second letters of all pairs that compose."""
    jamo = [*range(0x1161, 0x1176), *range(0x11A8, 0x11C3)]
    pairs = (unicodedata.decomposition(chr(i)).split() for i in range(0x30000))
    return frozenset(
        [chr(int(pair[1], 16)) for pair in pairs if len(pair) == 2 and pair[0][0] != "<"]
        + [chr(i) for i in jamo]
    )
