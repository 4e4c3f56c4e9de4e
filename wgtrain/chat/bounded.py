"""A chat template as the package uses it: bounded in time and memory, whatever it calls."""

import json
import sys
from collections import deque
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any, Protocol

from wgtrain.chat import bounds
from wgtrain.chat.rendered import Message, Rendered, Variables
from wgtrain.errors import FileError

# Messages, tools, more variables for the template, and special tokens that stand in these.
Conversation = tuple[list[Message], list[Any] | None, Variables | None, list[str]]


class Runner(Protocol):
    """Runs one template for the rows it is sent, in their order.

    `variables` are the names that the template reads from outside.
    """

    variables: list[str]

    def send(self, rows: list[str]) -> None:
        """Hands over rows as JSON."""

    def receive(self) -> Any:
        """The answer to the next row, with the `seconds` it took; FileError at a bound."""

    def close(self) -> Any:
        """Ends it."""


class ChatTemplate:
    """A compiled chat template, or several by name, of which "tool_use" is for conversations with
    tools and "default" for all others.

    `tokens` are the special tokens a template may name, such as `bos_token`; `stops` the texts of
    the tokens that end a turn; `end` the one of them that is put behind a last answer which the
    template leaves open; `label` what messages call the template.

    Natively it runs in a process of its own, which lives until `close`; what it may use is one
    limit for each row and one for all that this object is given (`bounds`).
    """

    def __init__(
        self,
        source: str | Mapping[str, str],
        *,
        tokens: Mapping[str, str] | None = None,
        stops: Iterable[str] = (),
        end: str | None = None,
        now: datetime | None = None,
        label: str = "the model's chat template",
    ) -> None:
        self._settings = {
            "sources": {"default": source} if isinstance(source, str) else dict(source),
            "tokens": dict(tokens or {}),
            "stops": list(stops),
            "end": end,
            "now": now and now.isoformat(),
            "label": label,
        }
        self._account = bounds.Account()
        self._sent: deque[int] = deque()  # the lengths of rows that are not answered
        self._runner: Runner | None = None
        self.variables = self._running().variables

    def render(
        self,
        messages: list[Message],
        tools: list[Any] | None = None,
        prompt: bool = False,
        args: Variables | None = None,
    ) -> str:
        """The text of a conversation; with `prompt` it ends where the assistant's answer begins.

        `args` are more variables for the template.
        """
        self._send([{"messages": messages, "tools": tools, "prompt": prompt, "args": args}])
        text: str = self._receive()["text"]
        return text

    def split(
        self,
        messages: list[Message],
        tools: list[Any] | None = None,
        args: Variables | None = None,
    ) -> Rendered:
        """The text of a conversation and its learnt spans; FileError where they cannot be told."""
        self.send([(messages, tools, args, [])])
        return self.receive()

    def send(self, conversations: list[Conversation]) -> None:
        """Conversations to split, while this process does something else; `receive` has each."""
        names = ("messages", "tools", "args", "typed")
        self._send([dict(zip(names, one, strict=True)) for one in conversations])

    def receive(self) -> Rendered:
        """The next conversation that was sent, as `split` gives it."""
        found = self._receive()
        for name in ("spans", "cut", "typed"):
            found[name] = [tuple(pair) for pair in found[name]]
        return Rendered(**found)

    def close(self) -> None:
        """Ends the process; the next row would start another one."""
        if self._runner is not None:
            self._runner.close()
        self._runner = None
        self._sent.clear()

    def __enter__(self) -> "ChatTemplate":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _running(self) -> Runner:
        if self._runner is None:
            self._runner = _open(self._settings)
        return self._runner

    def _send(self, rows: list[dict[str, Any]]) -> None:
        texts = [json.dumps(row) for row in rows]
        self._running().send(texts)
        self._sent += map(len, texts)

    def _receive(self) -> dict[str, Any]:
        assert self._runner is not None
        n_bytes = self._sent.popleft()
        try:
            found: dict[str, Any] = self._runner.receive()
            self._account.charge(n_bytes, found.pop("seconds"))
        except BaseException as error:
            if isinstance(error, FileError):
                self._account.spent += bounds.row_seconds(n_bytes)
            self.close()
            raise
        if "error" in found:
            raise FileError(found["error"])
        return found


def _open(settings: dict[str, Any]) -> Runner:
    if sys.platform == "emscripten":
        from wgtrain.chat.page import Page

        return Page(settings)
    from wgtrain.chat.process import Process

    return Process(settings)
