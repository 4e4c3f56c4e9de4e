"""A server over a model that is none: it says what it was asked, as fast as a test lets it."""

import contextlib
import http.client
import json
import threading
from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any

from wgtrain.infer.generation import Piece, Request, Token
from wgtrain.serve.server import Server
from wgtrain.serve.shelf import Shelf

CONTEXT = 400


class FakeTokenizer:
    """A byte is a token."""

    add_bos = False

    def encode(self, text: str, bos: bool = False, special: bool = False) -> list[int]:
        return list(text.encode())

    def decode_bytes(self, ids: Sequence[int], special: bool = False, start: bool = True) -> bytes:
        return bytes(ids)


class FakeModel:
    """Answers with what stood in the prompt behind the last blank, a letter a token, after the
    names of the adapters; text before a "|" is a thought. `gate` holds it up before each letter.
    """

    def __init__(self) -> None:
        self.name = "/a/place/base.gguf"
        self.config = SimpleNamespace(context=CONTEXT)
        self.tokenizer = FakeTokenizer()
        self.templating: Any = None
        self.prompts: list[tuple[Any, ...]] = []
        self.asked: list[tuple[list[Request], Any]] = []
        self.gate = threading.Event()
        self.gate.set()
        self.closed = 0  # answers that came to an end
        self.error: Exception | None = None  # raised after the first letter

    def prompt(self, messages: Any, tools: Any, template_args: Any, system: Any) -> list[int]:
        self.prompts.append((messages, tools, template_args, system))
        calls = [m["tool_calls"] for m in messages if "tool_calls" in m]
        shown = "" if "blind" in messages[0]["content"] else f"{tools or ''}{calls or ''}"
        return self.tokenizer.encode(shown + " ".join(m.get("content") or "" for m in messages))

    def check_tokens(self, tokens: Sequence[int]) -> list[int]:
        return list(tokens)

    def answers(self, requests: list[Request], adapters: Any = None) -> Iterator[Piece]:
        self.asked.append((requests, adapters))
        try:
            for i, one in enumerate(requests):
                yield from self._answer(i, one, adapters)
        finally:
            self.closed += 1

    def _answer(self, index: int, request: Request, adapters: Any) -> Iterator[Piece]:
        said = bytes(request.prompt).decode().rpartition(" ")[2]
        names = "".join(f"{adapter}*{scale:g}," for adapter, scale in adapters)
        thought, _, answer = f"{names}{said}".rpartition("|")
        letters = [(letter, True) for letter in thought] + [(letter, False) for letter in answer]
        for n, (letter, is_thought) in enumerate(letters):
            assert self.gate.wait(60)
            if n and self.error:
                raise self.error
            top = tuple((ord("a") + i, -1.0 - i) for i in range(request.logprobs or 0))
            token = Token(n, letter.encode(), -0.5, top)
            full = n + 1 == request.max_tokens
            done = full or n + 1 == len(letters)
            finish = ("length" if full else "stop") if done else None
            yield Piece(index, letter, (token,), is_thought, finish)
            if done:
                return


@contextlib.contextmanager
def serving(model: Any, shelf: Shelf | None = None, **options: Any) -> Iterator[Server]:
    """A server in a thread, which ends without waiting for anyone."""
    said: list[str] = []
    server = Server(model, shelf or Shelf("base"), say=said.append, **options)
    server.said = said  # type: ignore[attr-defined]
    failed: list[BaseException] = []

    def serve() -> None:
        try:
            server.serve_forever()
        except BaseException as error:
            failed.append(error)

    server.failed = failed  # type: ignore[attr-defined]
    thread = threading.Thread(target=serve)
    thread.start()
    server.thread = thread  # type: ignore[attr-defined]
    try:
        yield server
    finally:
        if isinstance(model, FakeModel):
            model.gate.set()
        server.shutdown()
        thread.join(60)
        assert not thread.is_alive()


def send(
    server: Server,
    path: str,
    body: Any = None,
    method: str | None = None,
    **headers: str,
) -> tuple[int, dict[str, str], Any]:
    """Status, headers and body of one answer; of JSON, its value."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    if data is not None:
        names.setdefault("Content-Type", "application/json")
    try:
        connection.request(method or ("GET" if data is None else "POST"), path, data, names)
        answer = connection.getresponse()
        raw = answer.read()
        found = {k.title(): v for k, v in answer.getheaders()}
        is_json = found.get("Content-Type", "") == "application/json"
        return answer.status, found, json.loads(raw) if is_json else raw
    finally:
        connection.close()


def chat(text: str = "say hello", **fields: Any) -> dict[str, Any]:
    """The body of a request for a chat."""
    return {"messages": [{"role": "user", "content": text}], **fields}


def events(raw: bytes) -> list[Any]:
    """What stood in a stream of events, the last one as text."""
    parts = raw.decode().split("\n\n")
    assert parts.pop() == "" and all(part.startswith("data: ") for part in parts)
    values = [part.removeprefix("data: ") for part in parts]
    return [value if value == "[DONE]" else json.loads(value) for value in values]
