"""Random texts over the whole of Unicode, for tokenizers against each other."""

import random
import unicodedata

# Words that patterns tell apart: capitals beyond ASCII, marks, digits, blanks and breaks.
AWKWARD = "éÉa приВЕТ नमस्ते 1234 \r\n \n"
_PLAIN = [
    *"aZ09",
    *" \n\r\t'.,/-_(|",
    "'s",
    "'RE",
    "   ",
    "\n\n",
    " \n",
    "1234567",
    "hello",
    "\u2581",
]


def old_letters() -> list[str]:
    """The characters that Unicode has had since 3.2 and whose category never changed: every table
    in use agrees on them.
    """
    then = unicodedata.ucd_3_2_0
    every = (chr(i) for i in range(0x110000) if not 0xD800 <= i < 0xE000)
    return [c for c in every if then.category(c) == unicodedata.category(c) not in ("Cn", "Co")]


def by_category(letters: list[str]) -> list[list[str]]:
    """Letters by their category, so that rare kinds are not rare in texts."""
    found: dict[str, list[str]] = {}
    for letter in letters:
        found.setdefault(unicodedata.category(letter), []).append(letter)
    return list(found.values())


def random_text(rng: random.Random, kinds: list[list[str]], specials: list[str]) -> str:
    """Some words: runs of letters of one kind or of several, plain ones and special tokens."""
    parts: list[str] = []
    for _ in range(rng.randint(1, 12)):
        dice = rng.random()
        if dice < 0.1 and specials:
            parts.append(rng.choice(specials))
        elif dice < 0.5:
            parts.append(rng.choice(_PLAIN))
        elif dice < 0.75:
            parts.append("".join(rng.choices(rng.choice(kinds), k=rng.randint(1, 5))))
        else:
            parts.append("".join(rng.choice(rng.choice(kinds)) for _ in range(rng.randint(1, 6))))
    return "".join(parts)
