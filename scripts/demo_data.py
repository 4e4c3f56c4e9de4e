"""The demo's fine-tuning set: sentences about purchases, answered with one strict JSON record.

No person of the held-out files occurs in the training file, neither as buyer nor as seller, and
two fifths of all names and a fifth of all things are invented: answers have to be read off the
prompt.
"""

import json

import demo_text as text

ROWS = {"train": 560, "valid": 40, "test": 60}
LONGEST = 6  # letters of an invented word


def files(seed: int) -> dict[str, bytes]:
    """File name -> JSONL bytes, one `{"messages": [user, assistant]}` a line."""
    dice = text.Dice(seed, "records")
    people = dice.sample(text.NAMES, len(text.NAMES))
    cuts = {"train": people[:80], "valid": people[80:96], "test": people[96:]}
    used: set[str] = set(text.NAMES)
    return {f"{name}.jsonl": _rows(dice, cuts[name], n, used) for name, n in ROWS.items()}


def _rows(dice: text.Dice, people: list[str], n: int, used: set[str]) -> bytes:
    """`n` rows in random order, every phrasing equally often.

    Invented names go into `used` and never come again.
    """

    def name() -> str:
        if dice.chance(60):
            return dice.pick(people)
        while (made := text.invent(dice, LONGEST).capitalize()) in used:
            pass
        used.add(made)
        return made

    def item() -> str:
        return text.invent(dice, LONGEST) if dice.chance(20) else dice.pick(text.KNOWN_ITEMS)

    lines = []
    for i in range(n):
        bought = text.purchase(dice, name, item)
        turns = (
            {"role": "user", "content": text.PURCHASES[i % len(text.PURCHASES)](bought)},
            {"role": "assistant", "content": bought.record()},
        )
        lines.append(json.dumps({"messages": turns}))
    return "".join(line + "\n" for line in dice.sample(lines, n)).encode()
