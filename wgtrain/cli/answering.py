"""What generate and chat have in common: how answers are drawn, and how they are shown."""

import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TextIO

import click

from wgtrain.cli.options import options_of
from wgtrain.errors import OptionError, printable
from wgtrain.infer.generation import Piece, Request
from wgtrain.infer.sampling import Sampling
from wgtrain.train.settings import as_mapping, build, check, setting

MORE = "--max-tokens allows more"
_DIM, _PLAIN = "\x1b[2m", "\x1b[0m"


@dataclass(frozen=True)
class AnswerConfig:
    """How answers are drawn; which values are allowed, `Sampling` and `Request` say."""

    max_tokens: int | None = setting(
        None, int, "Most new tokens.  [default: 256, or what the context has room for]"
    )
    temperature: float = setting(
        0.0, float, "What logits are divided by; 0 takes the likeliest token."
    )
    top_k: int = setting(0, int, "Draw from the K likeliest tokens; 0 = all.", metavar="K")
    top_p: float = setting(
        1.0, float, "Draw from the likeliest tokens that have this probability together; 1 = all."
    )
    min_p: float = setting(
        0.0, float, "Draw from tokens with this share of the likeliest one's probability; 0 = all."
    )
    repeat_penalty: float = setting(
        1.0, float, "Makes tokens less likely that stand in the text already; 1 = off."
    )
    seed: int = setting(0, int, "Seed of the draws; with the same one come the same answers.")

    def __post_init__(self) -> None:
        check(self)


def answer_options(command: Any) -> Any:
    """Decorator that adds the options which `read_how` reads."""
    command = click.option(
        "--stop",
        multiple=True,
        metavar="TEXT",
        help="Text that ends an answer, without it; repeatable.",
    )(command)
    return options_of(AnswerConfig)(command)


@dataclass(frozen=True)
class How:
    """How answers are drawn."""

    max_tokens: int | None
    sampling: Sampling
    stop: tuple[str, ...]

    def request(self, ids: Sequence[int]) -> Request:
        """The request to continue these ids."""
        return Request(ids, self.max_tokens, self.sampling, self.stop)


def read_how(given: Mapping[str, Any]) -> How:
    """The values of `answer_options`, checked."""
    (config,) = build({n: given.get(n) for n in as_mapping(AnswerConfig())}, AnswerConfig)
    if "" in (given.get("stop") or ()):
        raise OptionError("stop = '': allowed is a text of one character or more")
    values = as_mapping(config)
    how = How(values.pop("max_tokens"), Sampling(**values), tuple(given.get("stop") or ()))
    how.request([0])
    return how


class Answer:
    """An answer as it comes: its text, its thoughts, its numbers."""

    def __init__(self, prompt_tokens: int, context: int):
        self.text = self.thoughts = ""
        self.prompt_tokens = prompt_tokens
        self.ids: list[int] = []
        self._context = context
        self.finish: str | None = None
        self._began = time.monotonic()
        self._first = self._last = self._began
        self._with_first = 0  # tokens of the first piece

    def add(self, piece: Piece) -> None:
        """Takes the next piece."""
        self._last = time.monotonic()
        if not self.ids:
            self._first, self._with_first = self._last, len(piece.tokens)
        self.ids += [token.id for token in piece.tokens]
        if piece.thought:
            self.thoughts += piece.text
        else:
            self.text += piece.text
        self.finish = piece.finish or self.finish

    def facts(self) -> dict[str, Any]:
        """What a program that reads JSON gets."""
        thoughts = {"reasoning_content": self.thoughts} if self.thoughts else {}
        return {
            "text": self.text,
            **thoughts,
            "finish_reason": self.finish,
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": len(self.ids),
        }

    def told(self, more: str = MORE) -> str:
        """The numbers in words."""
        n, seconds = len(self.ids), self._last - self._first
        words = f"{self.prompt_tokens:,} tokens and {n:,} new"
        if n:
            words += f", the first after {self._first - self._began:.2f} s"
        if n > self._with_first and seconds > 0:
            words += f", then {(n - self._with_first) / seconds:.1f} tokens/s"
        return f"{words}, {self.ending(more)}"

    def ending(self, more: str = MORE) -> str:
        """How it ended, in words; `more` is what lets it go on."""
        if self.finish is None:
            return "interrupted"
        if self.finish == "stop":
            return "ended by itself"
        if self.prompt_tokens + len(self.ids) >= self._context:
            return f"cut where the model's context of {self._context:,} tokens ends"
        return f"cut after {len(self.ids):,} tokens; {more}"


def as_json(value: Any, stream: TextIO) -> str:
    """A value as one line of JSON that a stream can write, whatever its encoding."""
    unicode = (stream.encoding or "").lower().replace("-", "") == "utf8"
    return json.dumps(value, ensure_ascii=not unicode)


class Screen:
    """Where answers go: standard output. In a terminal thoughts are dimmed, and what a terminal
    would obey is escaped; elsewhere there is the text alone, without thoughts.
    """

    def __init__(self, out: TextIO | None = None):
        self._out = sys.stdout if out is None else out
        self.terminal = self._out.isatty()
        plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
        self._dim, self._plain = ("", "") if plain else (_DIM, _PLAIN)
        self._thinks = False
        self._end = ""

    def show(self, piece: Piece) -> None:
        """Writes a piece at once."""
        if not self.terminal:
            if not piece.thought:
                self._write(piece.text)
            return
        if piece.text and piece.thought != self._thinks:
            self._turn(piece.thought)
        if piece.text:
            self._write(printable(piece.text))

    def end(self, newline: bool = False) -> None:
        """Ends an answer; in a terminal, or with `newline`, its last line too."""
        if self._thinks:
            self._turn(False)
        if (newline or self.terminal) and self._end != "\n":
            self._write("\n")
        self._end = ""

    def _turn(self, thinks: bool) -> None:
        self._thinks = thinks
        if thinks:
            self._out.write(self._dim)
        else:
            self._out.write(self._plain)
            self._write("\n" if self._end == "\n" else "\n\n")

    def _write(self, text: str) -> None:
        self._out.write(text)
        self._out.flush()
        self._end = text[-1:] or self._end
