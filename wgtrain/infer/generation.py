"""Answers to several requests at once: tokens are drawn, stops found, whole pieces handed out."""

import math
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from wgtrain.data.tokenizer import Tokenizer
from wgtrain.errors import OptionError, OutOfMemoryError
from wgtrain.files.source import shown
from wgtrain.infer.places import Places
from wgtrain.infer.sampling import Sampler, Sampling, log_probability
from wgtrain.infer.text import StopFinder, TextStream
from wgtrain.infer.thoughts import ChatPrompt, Splitter
from wgtrain.turn import Turn

MAX_TOKENS = 256  # of an answer to a request that says nothing of it
AHEAD = 256  # tokens that room is made for at once
PLACES = 32  # rows at once, at most

GREEDY = Sampling()

OpenPlaces = Callable[[int, int, int], Awaitable[Places]]  # rows, room needed, room wanted


@dataclass(frozen=True)
class Request:
    """A prompt (token ids) to be continued; OptionError for a setting that is out of range.

    `max_tokens`: None = 256, or as many as the context has room for; `stop`: strings that end the
    answer before them; `logprobs`: how many of the likeliest tokens come with each token, None =
    no log-probabilities at all.
    """

    prompt: Sequence[int]
    max_tokens: int | None = None
    sampling: Sampling = GREEDY
    stop: tuple[str, ...] = ()
    logprobs: int | None = None

    def __post_init__(self) -> None:
        for name in ("max_tokens", "logprobs"):
            value = getattr(self, name)
            if value is not None and (type(value) is not int or value < 0):
                raise OptionError(
                    f"{name} = {shown(value)}: allowed is a whole number, at least 0, or None"
                )
        if not isinstance(self.sampling, Sampling):
            raise OptionError(f"sampling = {shown(self.sampling)}: allowed is a Sampling")
        if not isinstance(self.stop, tuple | list) or not all(map(_is_text, self.stop)):
            raise OptionError(
                f"stop = {shown(self.stop)}: allowed are texts of one character or more"
            )


def as_texts(stop: Any) -> Any:
    """One text or several as a tuple; what is neither, `Request` refuses."""
    if isinstance(stop, str):
        return (stop,)
    return tuple(stop) if isinstance(stop, set | frozenset) else stop


def checked_requests(requests: Any) -> list[Request]:
    """Requests as a list; OptionError for what are none."""
    found = list(requests) if isinstance(requests, Iterable) else [requests]
    if not isinstance(requests, Iterable) or not all(isinstance(one, Request) for one in found):
        raise OptionError(
            f"requests = {shown(requests)}: a list of them is needed, as in [Request(ids)]"
        )
    return found


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and value != ""


@dataclass(frozen=True)
class Token:
    """A token of an answer and the bytes that it adds to it.

    `logprob`: natural logarithm of its probability by the model's own logits, NaN where none was
    asked for; `top`: (id, logprob) of the likeliest tokens in its place, the likeliest first.
    """

    id: int
    text: bytes
    logprob: float
    top: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class Piece:
    """More of the answer to request number `index`: whole characters, and the tokens that end with
    them. Tokens that stop the answer are in none.

    `thought`: it belongs to the reasoning before the answer. `finish`, with the last piece of a
    request: "stop" where the model or a stop string ended it, "length" where its room did.
    """

    index: int
    text: str
    tokens: tuple[Token, ...]
    thought: bool = False
    finish: str | None = None


class Row:
    """One request as it is answered. `context`: tokens that the model's positions reach."""

    def __init__(
        self, index: int, request: Request, ids: list[int], tokenizer: Tokenizer, context: int
    ) -> None:
        self.ids = ids  # the prompt, then what follows it
        self.index = index
        self._request = request
        self._limit = len(ids) + room_for(len(ids), request.max_tokens, context)
        self._tokenizer = tokenizer
        self._sampler = Sampler(request.sampling, ids)
        thoughts = getattr(request.prompt, "thoughts", None)
        self._stream = TextStream(tokenizer, ids, thoughts.shown if thoughts else ())
        self._finder, self._splitter = StopFinder(request.stop), Splitter(thoughts)
        self._read = self._free = 0  # characters: that came, and that were handed out
        self._held: deque[tuple[int, int, Token]] = deque()  # where in them tokens begin and end
        self._loose: list[Token] = []  # of marks: they go with the next piece

    @property
    def full(self) -> bool:
        """Whether it may have no further token."""
        return len(self.ids) >= self._limit

    @property
    def wanted(self) -> int:
        """Tokens that room is to be made for."""
        return min(len(self.ids) + AHEAD, self._limit)

    def take(self, logits: Any) -> tuple[list[Piece], bool]:
        """Draws the next token by the logits float32 (V,) after the last one; what can be handed
        out now, and whether that was all.
        """
        logits = logits[: self._tokenizer.vocab_size]
        token = self._sampler.draw(logits)
        if token in self._tokenizer.stop_ids:
            return self.finish("stop"), True
        self.ids.append(token)
        new, text = self._stream.read(token)
        top = self._request.logprobs
        chance = (math.nan, ()) if top is None else log_probability(logits, token, top)
        begin, self._read = self._read, self._read + len(text)
        self._held.append((begin, self._read + self._stream.within, Token(token, new, *chance)))
        free, stopped = self._finder.add(text)
        if stopped:
            return self._pieces(free, "stop", whole=False), True
        if self.full:
            return self.finish("length", free), True
        return self._pieces(free), False

    def finish(self, why: str, free: str = "") -> list[Piece]:
        """The rest, where nothing follows; `free` comes before what is held back."""
        rest, stopped = self._finder.add(self._stream.end())
        if stopped:
            return self._pieces(free + rest, "stop", whole=False)
        return self._pieces(free + rest + self._finder.end(), why)

    def _pieces(self, text: str, finish: str | None = None, whole: bool = True) -> list[Piece]:
        """Text in which no stop string begins, as pieces. With `finish` all that is left is handed
        out: if `whole`, with the tokens that gave no text.
        """
        parts = self._splitter.add(text) + (self._splitter.end() if finish else [])
        pieces = []
        for part in parts:
            self._free += part.size
            while self._held and self._held[0][1] <= self._free:
                self._loose.append(self._held.popleft()[2])
            if part.text:
                pieces.append(Piece(self.index, part.text, tuple(self._loose), part.thought))
                self._loose = []
        if finish is None:
            return pieces
        rest = [*self._loose, *(token for at, _, token in self._held if whole or at < self._free)]
        last = pieces.pop() if pieces else Piece(self.index, "", (), self._splitter.thinking)
        return [*pieces, replace(last, tokens=(*last.tokens, *rest), finish=finish)]


def history(prompt: Sequence[int], pieces: Iterable[Piece]) -> dict[str, Any]:
    """The assistant's message that an answer to `prompt` (of `Model.prompt`) becomes in the
    conversation: its content, and its thoughts where the template writes such, which may leave out
    those of old answers.
    """
    pieces = list(pieces)
    content = "".join(piece.text for piece in pieces if not piece.thought)
    thoughts = "".join(piece.text for piece in pieces if piece.thought)
    marks = prompt.thoughts if isinstance(prompt, ChatPrompt) else None
    message = {"role": "assistant", "content": content}
    return {**message, marks.taken: thoughts} if thoughts and marks and marks.taken else message


def room_for(prompt: int, max_tokens: int | None, context: int) -> int:
    """How many tokens may follow a prompt of so many; OptionError where they do not fit."""
    left = context - prompt
    if left < 1:
        raise OptionError(
            f"the prompt has {prompt:,} tokens, which leaves no room for an answer: the model's "
            f"context is {context:,} tokens"
        )
    if max_tokens is None:
        return min(MAX_TOKENS, left)
    if max_tokens > left:
        raise OptionError(
            f"max_tokens = {max_tokens:,}: the prompt has {prompt:,} tokens, and the model's "
            f"context of {context:,} has room for {left:,} more"
        )
    return max_tokens


async def generate(
    open_places: OpenPlaces, turn: Turn, rows: Sequence[Row]
) -> AsyncGenerator[Piece, None]:
    """The pieces of all rows, as they come. Rows wait where memory has no place for all at once.

    Between two pieces nothing is held: who else uses the model meanwhile, also its places, costs
    this one time, for reading again, and nothing else.
    """
    waiting = deque(row for row in rows if not row.full)
    for row in rows:
        if row.full:
            for piece in row.finish("length"):
                yield piece
    active: list[Row] = []
    most = PLACES
    while waiting or active:
        while waiting and len(active) < most:
            active.append(waiting.popleft())
        with turn(wait=True):
            try:
                places = await _beside_others(open_places, active)
            except OutOfMemoryError:
                if len(active) == 1:
                    raise
                most = len(active) // 2
                waiting.extendleft(reversed(active[most:]))
                del active[most:]
                continue
            seats = places.seat(active)
            logits = await places.read({seats[row]: row.ids for row in active})
        for row in list(active):
            pieces, done = row.take(logits[seats[row]])
            if done:
                active.remove(row)
            for piece in pieces:
                yield piece


async def _beside_others(open_places: OpenPlaces, rows: Sequence[Row]) -> Places:
    """Places for these rows, and for those of others that are under way, so that none of them reads
    again what another one took the place of.
    """
    places = await _opened(open_places, rows, len(rows))
    n = len(rows) + places.others(rows)
    if n <= places.sequences.places or places.widest:
        return places
    try:
        return await _opened(open_places, rows, n)
    except OutOfMemoryError:
        places = await _opened(open_places, rows, len(rows))
        places.widest = True
        return places


async def _opened(open_places: OpenPlaces, rows: Sequence[Row], n: int) -> Places:
    """At least `n` places; a single one makes do with less room ahead where memory is short."""
    least = max(len(row.ids) for row in rows)
    wanted = max(row.wanted for row in rows)
    while True:
        try:
            return await open_places(n, least, wanted)
        except OutOfMemoryError as error:
            if n > 1:
                raise
            if wanted - least < 2:
                raise OutOfMemoryError(
                    f"there is no room for more than the {least:,} tokens of the prompt and the "
                    f"answer so far: {error}"
                ) from None
            wanted = least + (wanted - least) // 2
