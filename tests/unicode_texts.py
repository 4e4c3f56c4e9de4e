"""Random texts over the whole of Unicode, for tokenizers against each other."""

import random
import unicodedata

# Words that patterns tell apart: capitals beyond ASCII, marks, digits, blanks and breaks.
AWKWARD = "éÉa приВЕТ नमस्ते 1234 \r\n \n"
# One or two characters of each category, and what single patterns name.
FEW = "aZéÉßǅʰª中あ한नſKİ\u0301\u0903\u20dd09٣Ⅷ½_-\u2014()«»“”.,!。！'/|$€+^~`☃😀\u0378"
FEW += " \u00a0\u3000\u2028\u2029\r\n\t\x00\x85\u200b\u00ad"
PLAIN = [
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
            parts.append(rng.choice(PLAIN))
        elif dice < 0.75:
            parts.append("".join(rng.choices(rng.choice(kinds), k=rng.randint(1, 5))))
        else:
            parts.append("".join(rng.choice(rng.choice(kinds)) for _ in range(rng.randint(1, 6))))
    return "".join(parts)
