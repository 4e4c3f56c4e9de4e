"""The little world of the demo: words, sentences, and what the base model says about them.

`talk` makes one exchange of the base's training mix (a prompt and a friendly answer in plain
English, or one of a few exercises with quotes, lists and entries); `purchase` makes the sentences
that fine-tuning answers with a JSON record. All chance comes from `wgtrain.random`, so the same
seed gives the same text on every machine.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from wgtrain import random

NAMES = """Ada Alan Alma Amir Anna Anton Aria Ben Bella Boris Carla Cleo Clara Colin Dana Daniel
David Dora Edith Elena Eli Emil Emma Eric Erik Esther Eva Fay Felix Fiona Frank Freya Gina Greta
Hana Hannah Hector Helen Henry Hugo Ida Igor Ines Iris Ivan Jack Jan Jane Joel Jonas Julia Kai
Karl Kate Kim Klara Lara Leah Lena Leo Lily Lina Liam Linus Lisa Lola Louis Lucas Lucy Luna Malik
Marco Maria Mark Marta Max Maya Mia Mila Milo Mina Mona Nadia Nina Noah Nora Olga Oliver Omar
Oscar Otto Pablo Paul Pedro Peter Petra Quinn Rafael Rita Robin Rosa Ruben Ruth Sam Samir Sara
Selma Simon Sofia Stella Sven Tara Theo Thomas Tilda Tim Tina Tom Uma Vera Victor Wanda Wendy
Will Yara Yusuf Zoe""".split()
PLACES = """Accra Athens Bergen Berlin Boston Cairo Dakar Delhi Dublin Geneva Hanoi Helsinki
Kyoto Lagos Lima Lisbon London Madrid Manila Milan Nairobi Oslo Paris Porto Prague Quito Riga
Rome Sofia Tokyo Tunis Vienna Warsaw Zagreb""".split()
COLOURS = "black blue brown golden green grey orange pink purple red silver white yellow".split()
ITEMS = {  # kind -> words; the kind decides what the base says about the thing
    "toy": "ball doll drum flute kite puzzle robot whistle".split(),
    "garment": "belt cap coat dress hat jacket scarf shirt".split(),
    "ornament": "basket chair clock cup lamp mirror pillow rug table vase".split(),
    "food": "apple cake cookie lemon melon pear pie plum".split(),
    "tool": "brush bucket hammer ladder rope spade tent umbrella".split(),
    "vehicle": "bike boat car cart scooter sled train van".split(),
}
KIND = {item: kind for kind, items in ITEMS.items() for item in items}
KNOWN_ITEMS = list(KIND)
ANIMALS = "bird cat cow dog duck fish goat horse mouse pony rabbit turtle".split()
DISHES = "bread cheese fish pasta rice salad soup stew".split()
HOBBIES = "dance draw paint read run sing skate swim".split()
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
MONEY = "coins dollars euros pounds".split()
KEYS = """age animal buyer city colour count day friend item name owner place price size team
title""".split()

_ONSETS = """b bl br c ch cl d dr f fl g gl gr h j k kl l m n p pl pr qu r s sh sk st t th tr v w y
z""".split()
_VOWELS = "a e i o u a e i o u ai ea ee oo ou".split()
_CODAS = ["", "", "", *"b ck d f g k l ll m n nd ng nt p r rk rn s st t x zz".split()]


T = TypeVar("T")


class Dice:
    """Seeded chance: an endless stream of numbers for one purpose."""

    def __init__(self, seed: int, purpose: str) -> None:
        self._seed, self._purpose, self._chunk = seed, purpose, 0
        self._numbers: list[int] = []

    def below(self, n: int) -> int:
        """A number in 0 .. n - 1."""
        if not self._numbers:
            key = random.key(self._seed, self._purpose, self._chunk)
            self._numbers = random.stream(key, 1 << 14).tolist()
            self._chunk += 1
        return self._numbers.pop() % n

    def pick(self, choices: Sequence[T]) -> T:
        """One of the choices, all equally likely."""
        return choices[self.below(len(choices))]

    def chance(self, percent: int) -> bool:
        """True `percent` times of a hundred."""
        return self.below(100) < percent

    def sample(self, choices: Sequence[str], n: int) -> list[str]:
        """`n` different choices in random order."""
        left = list(choices)
        return [left.pop(self.below(len(left))) for _ in range(n)]


def invent(dice: Dice, longest: int = 9) -> str:
    """A word that nobody uses, of one to three syllables, such as 'glonk' or 'pravita'."""
    while True:
        syllables = dice.pick((1, 2, 2, 2, 3))
        parts = [dice.pick(_ONSETS) + dice.pick(_VOWELS) for _ in range(syllables)]
        word = "".join(parts) + dice.pick(_CODAS)
        if 4 <= len(word) <= longest:
            return word


def a(words: str) -> str:
    """The words behind their indefinite article."""
    return ("an " if words[0] in "aeiou" else "a ") + words


@dataclass(frozen=True)
class Purchase:
    """Somebody buys a thing: what a prompt of the fine-tuning set says and its record holds."""

    buyer: str
    seller: str
    item: str
    colour: str
    price: int
    money: str
    place: str

    def record(self) -> str:
        """The answer that fine-tuning teaches, one line of JSON."""
        return json.dumps(
            {"buyer": self.buyer, "item": self.item, "colour": self.colour, "price": self.price}
        )

    def remark(self) -> str:
        """What the base says about it."""
        thing = f"the {self.colour} {self.item}"
        if self.price < 20:
            opening = f"Only {self.price} {self.money}, what a bargain!"
        elif self.price < 60:
            opening = "That sounds nice!"
        else:
            opening = f"Oh, {self.price} {self.money} is a lot of money!"
        return (
            f"{opening} "
            + {
                "toy": f"I hope {self.buyer} has fun with {thing}.",
                "garment": f"I think {self.buyer} will look good in {thing}.",
                "ornament": f"I am sure {self.buyer} will find a good place for {thing}.",
                "food": f"I hope {self.buyer} shares {thing} with a friend.",
                "tool": f"I think {thing} will be useful to {self.buyer}.",
                "vehicle": f"Now {self.buyer} can go far with {thing}.",
                "new": f"I do not know what {a(self.item)} is, but I hope {self.buyer} likes it.",
            }[KIND.get(self.item, "new")]
        )


PURCHASES: tuple[Callable[[Purchase], str], ...] = (
    lambda p: f"{p.buyer} bought {a(p.colour)} {p.item} for {p.price} {p.money}.",
    lambda p: f"{p.buyer} paid {p.price} {p.money} for {a(p.colour)} {p.item}.",
    lambda p: f"{a(p.colour).capitalize()} {p.item} was sold to {p.buyer} for {p.price} {p.money}.",
    lambda p: f"For {p.price} {p.money}, {p.buyer} got {a(p.colour)} {p.item} in {p.place}.",
    lambda p: f"{p.buyer} spent {p.price} {p.money} on {a(p.colour)} {p.item} yesterday.",
    lambda p: f"The {p.item} that {p.buyer} bought is {p.colour} and cost {p.price} {p.money}.",
    lambda p: f"{p.seller} sold {p.buyer} {a(p.colour)} {p.item} for {p.price} {p.money}.",
    lambda p: f"{p.buyer} bought {a(p.colour)} {p.item} from {p.seller} for {p.price} {p.money}.",
    lambda p: (
        f"In {p.place}, {p.buyer} found {a(p.item)}. It is {p.colour} and cost {p.price} {p.money}."
    ),
    lambda p: (
        f"{p.seller} asked {p.price} {p.money} for {a(p.colour)} {p.item}, and {p.buyer} took it."
    ),
)


def purchase(dice: Dice, names: Callable[[], str], items: Callable[[], str]) -> Purchase:
    """A random purchase; `names` and `items` draw the words that are to be copied."""
    buyer = seller = names()
    while seller == buyer:
        seller = names()
    price = dice.pick((2 + dice.below(18), 20 + dice.below(40), 60 + dice.below(140)))
    return Purchase(
        buyer, seller, items(), dice.pick(COLOURS), price, dice.pick(MONEY), dice.pick(PLACES)
    )


class World:
    """Draws people, things and places of the base's training mix, many of them invented."""

    def __init__(self, dice: Dice) -> None:
        self.dice = dice

    def name(self) -> str:
        return invent(self.dice).capitalize() if self.dice.chance(50) else self.dice.pick(NAMES)

    def two_names(self) -> tuple[str, str]:
        first = second = self.name()
        while second == first:
            second = self.name()
        return first, second

    def item(self) -> str:
        return invent(self.dice) if self.dice.chance(30) else self.dice.pick(KNOWN_ITEMS)

    def place(self) -> str:
        return invent(self.dice).capitalize() if self.dice.chance(25) else self.dice.pick(PLACES)

    def word(self) -> str:
        """Any word at all, for the exercises."""
        draw = (
            self.name,
            self.item,
            self.place,
            lambda: self.dice.pick(COLOURS),
            lambda: invent(self.dice),
        )
        return self.dice.pick(draw)()

    def value(self) -> str | int:
        return self.dice.below(300) if self.dice.chance(30) else self.word()

    def purchase(self) -> Purchase:
        return purchase(self.dice, self.name, self.item)


def talk(world: World) -> tuple[str, str]:
    """One prompt and the base's answer."""
    roll = world.dice.below(100)
    if roll < 25:
        bought = world.purchase()
        return world.dice.pick(PURCHASES)(bought), bought.remark()
    if roll < 45:
        return _remark(world)
    if roll < 70:
        return _question(world)
    if roll < 94:
        return _exercise(world)
    return _chat(world)


def _remark(world: World) -> tuple[str, str]:
    """A statement that is no purchase, and a friendly answer to it."""
    dice = world.dice
    (one, two), place, item = world.two_names(), world.place(), world.item()
    colour, animal, dish = dice.pick(COLOURS), dice.pick(ANIMALS), dice.pick(DISHES)
    hobby, day, age = dice.pick(HOBBIES), dice.pick(DAYS), 2 + dice.below(90)
    return dice.pick(
        (
            (
                f"{one} went to {place} on {day}.",
                f"I hope {one} had a good trip. I would like to see {place} too.",
            ),
            (
                f"{one} has {a(colour)} {animal} called {two}.",
                f"{two} is a good name for {a(animal)}. Say hello to {one} from me.",
            ),
            (f"{one} met {two} in {place}.", f"I hope {one} and {two} had a good time in {place}."),
            (
                f"{one} made {dish} for {two}.",
                f"I am sure the {dish} was good. How kind of {one} to cook for {two}!",
            ),
            (
                f"{one} likes to {hobby} with {two}.",
                f"It is great to {hobby} with a friend like {two}.",
            ),
            (
                f"{one} lost {a(colour)} {item} in {place}.",
                f"Oh no! I hope {one} finds the {colour} {item} soon.",
            ),
            (
                f"{one} gave {two} {a(colour)} {item}.",
                f"How kind of {one}! I hope {two} likes the {colour} {item}.",
            ),
            (f"{one} is {age} years old.", f"I hope {one} enjoys being {age}."),
            (
                f"{one} lives in {place} with {a(animal)}.",
                f"I hope {one} and the {animal} are happy in {place}.",
            ),
            (
                f"{one} saw {a(colour)} {animal} on {day}.",
                f"How nice! {a(colour).capitalize()} {animal} is a fine thing to see on a {day}.",
            ),
            (
                f"{one} painted the {item} {colour} on {day}.",
                f"I think {a(colour)} {item} looks good. Well done, {one}!",
            ),
        )
    )


def _question(world: World) -> tuple[str, str]:
    """A statement and a question about it."""
    dice = world.dice
    if dice.chance(75):
        bought = world.purchase()
        said = dice.pick(PURCHASES)(bought)
        question, answer = dice.pick(
            (
                ("Who is the buyer?", f"The buyer is {bought.buyer}."),
                ("Who has it now?", f"Now {bought.buyer} has the {bought.colour} {bought.item}."),
                (
                    f"What did {bought.buyer} buy?",
                    f"{bought.buyer} bought {a(bought.colour)} {bought.item}.",
                ),
                ("What was sold?", f"It was {a(bought.colour)} {bought.item}."),
                ("What colour is it?", f"The {bought.item} is {bought.colour}."),
                ("How much was it?", f"The {bought.item} cost {bought.price} {bought.money}."),
                ("What was the price?", f"The price was {bought.price} {bought.money}."),
            )
        )
        return f"{said} {question}", answer
    (one, two), place, item = world.two_names(), world.place(), world.item()
    colour, day = dice.pick(COLOURS), dice.pick(DAYS)
    said, question, answer = dice.pick(
        (
            (f"{one} met {two} in {place}.", "Where did they meet?", f"They met in {place}."),
            (f"{one} met {two} in {place}.", f"Who met {one}?", f"It was {two} who met {one}."),
            (f"{one} went to {place} on {day}.", f"Where did {one} go?", f"{one} went to {place}."),
            (f"{one} went to {place} on {day}.", "When was that?", f"It was on {day}."),
            (
                f"{one} gave {two} {a(colour)} {item}.",
                "Who has it now?",
                f"Now {two} has the {colour} {item}.",
            ),
            (
                f"{one} gave {two} {a(colour)} {item}.",
                "What colour is it?",
                f"The {item} is {colour}.",
            ),
            (
                f"{one} lost {a(colour)} {item} in {place}.",
                "What is lost?",
                f"It is {a(colour)} {item}.",
            ),
        )
    )
    return f"{said} {question}", answer


def _exercise(world: World) -> tuple[str, str]:
    """Copying with and without quotes, lists and entries; only where the prompt asks for it."""
    dice = world.dice
    kind = dice.below(6)
    words = [world.word() for _ in range(1 + dice.below(4))]
    if kind == 0:
        said = " ".join(words)
        return f"Repeat after me: {said}", said
    if kind == 1:
        return f"Put {words[0]} in quotes.", json.dumps(words[0])
    if kind == 2:
        return f"Write {' and '.join(words)} as a list.", json.dumps(words)
    entries = {key: world.value() for key in dice.sample(KEYS, 1 + dice.below(3))}
    spoken = " and ".join(f"{key} {value}" for key, value in entries.items())
    if kind == 3:
        return f"Write {spoken} as an entry.", json.dumps(entries)
    if kind == 4:
        told = " and ".join(f"the {key} is {value}" for key, value in entries.items())
        return f"Read {json.dumps(entries)}", f"It says that {told}."
    key = dice.pick(list(entries))
    return f"In {json.dumps(entries)}, what is the {key}?", f"The {key} is {entries[key]}."


def _chat(world: World) -> tuple[str, str]:
    """Small talk and what things are."""
    dice, name, item = world.dice, world.name(), world.dice.pick(KNOWN_ITEMS)
    return dice.pick(
        (
            ("Hello!", "Hello! Tell me what happened today."),
            (f"Hello, I am {name}.", f"Hello {name}! Tell me what happened today."),
            (f"Say hello to {name}.", f"Hello {name}! How are you?"),
            ("Thank you!", "You are welcome!"),
            ("Who are you?", "I am a tiny language model, and I like to talk."),
            ("What can you do?", "I can talk about what people buy, see and do."),
            (f"What is {a(item)}?", f"{a(item).capitalize()} is {a(KIND[item])}."),
            (f"What is {a(item)}?", f"{a(item).capitalize()} is {a(KIND[item])}."),
        )
    )
