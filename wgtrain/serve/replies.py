"""Pieces of answers in OpenAI's forms: as chunks of a stream, or whole."""

import codecs
import secrets
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from wgtrain.infer.generation import Piece, Token
from wgtrain.serve.asked import Asked

LEAST_LOGPROB = -9999.0  # OpenAI's word for "as good as never"; JSON has no infinity
Spell = Callable[[int], bytes]  # the bytes of a token


class Reply(ABC):
    """One answer as it is made. `model` is what it calls itself, `spell` gives a token's bytes."""

    kind = ("", "")  # of the whole answer and of a chunk
    prefix = ""

    def __init__(self, asked: Asked, model: str, spell: Spell, choices: int = 1):
        self.asked, self.model, self._spell = asked, model, spell
        self.id = f"{self.prefix}-{secrets.token_hex(12)}"
        self.created = int(time.time())
        self.read = 0  # tokens of the prompts
        self.made = self.thought = 0  # tokens of the answers, and those of them that were thoughts
        self.finish: list[str | None] = [None] * choices

    @property
    def is_finished(self) -> bool:
        """Whether each answer has ended by itself."""
        return None not in self.finish

    def take(self, item: int | Piece) -> None:
        """Counts the tokens of the prompts, and a piece; keeps what a whole answer needs."""
        if isinstance(item, Piece):
            self.count(item)
            if not self.asked.stream:
                self.keep(item)
        else:
            self.read = item

    def said(self) -> Iterator[str]:
        """What a log may know."""
        yield f"model={self.model}"
        if self.read:
            yield f"prompt={self.read} answer={self.made}"
            yield f"finish={','.join(str(one) for one in self.finish)}"

    @abstractmethod
    def keep(self, piece: Piece) -> None:
        """Keeps a piece."""

    def count(self, piece: Piece) -> None:
        """Counts a piece."""
        self.made += len(piece.tokens)
        self.thought += len(piece.tokens) if piece.thought else 0
        self.finish[piece.index] = piece.finish or self.finish[piece.index]

    def head(self) -> Iterator[dict[str, Any]]:
        """The chunks before the first piece."""
        yield from ()

    @abstractmethod
    def chunk(self, piece: Piece) -> Iterator[dict[str, Any]]:
        """The chunks of a piece."""

    @abstractmethod
    def whole(self) -> dict[str, Any]:
        """What was kept, as one object."""

    def tail(self) -> Iterator[dict[str, Any]]:
        """The chunks after the last piece."""
        if self.asked.usage:
            yield self._object(self.kind[1], [], usage=self.usage())

    def usage(self) -> dict[str, Any]:
        """The counts of tokens."""
        return {
            "prompt_tokens": self.read,
            "completion_tokens": self.made,
            "total_tokens": self.read + self.made,
            "completion_tokens_details": {"reasoning_tokens": self.thought},
        }

    def _object(self, kind: str, choices: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
        head = {"id": self.id, "object": kind, "created": self.created, "model": self.model}
        return {**head, "choices": choices, **more}

    def _chunk(self, choice: dict[str, Any]) -> dict[str, Any]:
        # With usage asked for, every other chunk says that it has none.
        return self._object(self.kind[1], [choice], **({"usage": None} if self.asked.usage else {}))

    def _text(self, token: bytes) -> str:
        return token.decode("utf-8", "replace")


class ChatReply(Reply):
    """An answer of the assistant."""

    kind = ("chat.completion", "chat.completion.chunk")
    prefix = "chatcmpl"

    def __init__(self, *arguments: Any):
        super().__init__(*arguments)
        self._content: list[str] = []
        self._thoughts: list[str] = []
        self._tokens: list[dict[str, Any]] = []

    def keep(self, piece: Piece) -> None:
        """Keeps a piece."""
        (self._thoughts if piece.thought else self._content).append(piece.text)
        self._tokens += self._logprobs(piece)

    def head(self) -> Iterator[dict[str, Any]]:
        """Who speaks."""
        yield self._choice({"role": "assistant", "content": ""}, [], None)

    def chunk(self, piece: Piece) -> Iterator[dict[str, Any]]:
        """The text, and apart from it how it ended."""
        tokens = self._logprobs(piece)
        if piece.text or tokens:
            name = "reasoning_content" if piece.thought else "content"
            yield self._choice({name: piece.text}, tokens, None)
        if piece.finish is not None:
            yield self._choice({}, [], piece.finish)

    def whole(self) -> dict[str, Any]:
        """The answer as one object."""
        message: dict[str, Any] = {"role": "assistant", "content": "".join(self._content)}
        message["refusal"] = None
        if self._thoughts:
            message["reasoning_content"] = "".join(self._thoughts)
        choice = {"index": 0, "message": message, **self._shown(self._tokens)}
        choice["finish_reason"] = self.finish[0]
        return self._object(self.kind[0], [choice], usage=self.usage())

    def _choice(
        self, delta: dict[str, Any], tokens: list[dict[str, Any]], finish: str | None
    ) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, **self._shown(tokens), "finish_reason": finish}
        return self._chunk(choice)

    def _shown(self, tokens: list[dict[str, Any]]) -> dict[str, Any]:
        if self.asked.logprobs is None or (self.asked.stream and not tokens):
            return {"logprobs": None}
        return {"logprobs": {"content": tokens, "refusal": None}}

    def _logprobs(self, piece: Piece) -> list[dict[str, Any]]:
        """Of the answer's tokens alone; OpenAI's form has no place for those of thoughts."""
        if self.asked.logprobs is None or piece.thought:
            return []
        return [
            {
                **self._token(token.text, token.logprob),
                "top_logprobs": [self._token(self._spell(i), p) for i, p in token.top],
            }
            for token in piece.tokens
        ]

    def _token(self, token: bytes, logprob: float) -> dict[str, Any]:
        return {
            "token": self._text(token),
            "logprob": max(logprob, LEAST_LOGPROB),
            "bytes": list(token),
        }


class TextReply(Reply):
    """Texts that go on where prompts end."""

    kind = ("text_completion", "text_completion")
    prefix = "cmpl"

    def __init__(self, *arguments: Any):
        super().__init__(*arguments)
        n = len(self.finish)
        self._texts: list[list[str]] = [[] for _ in range(n)]
        self._tokens: list[list[Token]] = [[] for _ in range(n)]
        self._offset = [0] * n
        self._characters = [codecs.getincrementaldecoder("utf-8")("replace") for _ in range(n)]

    def keep(self, piece: Piece) -> None:
        """Keeps a piece."""
        self._texts[piece.index].append(piece.text)
        self._tokens[piece.index] += piece.tokens

    def chunk(self, piece: Piece) -> Iterator[dict[str, Any]]:
        """The text, with how it ended in the last one."""
        if piece.text or piece.tokens or piece.finish:
            yield self._chunk(self._choice(piece.index, piece.text, piece.tokens, piece.finish))

    def whole(self) -> dict[str, Any]:
        """The answer as one object."""
        choices = [
            self._choice(i, "".join(texts), self._tokens[i], self.finish[i])
            for i, texts in enumerate(self._texts)
        ]
        return self._object(self.kind[0], choices, usage=self.usage())

    def _choice(
        self, index: int, text: str, tokens: Sequence[Token], finish: str | None
    ) -> dict[str, Any]:
        logprobs = None if self.asked.logprobs is None else self._logprobs(index, tokens)
        return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish}

    def _logprobs(self, index: int, tokens: Sequence[Token]) -> dict[str, Any]:
        offsets, tops = [], []
        for token in tokens:
            offsets.append(self._offset[index])
            self._offset[index] += len(self._characters[index].decode(token.text))
            likely = [(self._spell(i), p) for i, p in token.top] + [(token.text, token.logprob)]
            tops.append({self._text(t): max(p, LEAST_LOGPROB) for t, p in likely})
        return {
            "text_offset": offsets,
            "token_logprobs": [max(token.logprob, LEAST_LOGPROB) for token in tokens],
            "tokens": [self._text(token.text) for token in tokens],
            "top_logprobs": tops,
        }
