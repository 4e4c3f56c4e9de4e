"""A conversation as it grows: what was said, what a template gets of it, and what is kept."""

import json
import os
from pathlib import Path
from typing import Any

from wgtrain.data.messages import read_conversation
from wgtrain.data.records import RowError, read_records
from wgtrain.errors import FileError, OptionError
from wgtrain.runs import disk
from wgtrain.runs.paths import read_input

Message = dict[str, Any]


class Conversation:
    """A system message, maybe, and exchanges: each a message of the user and the answer to it."""

    def __init__(self, system: str = ""):
        self.system = system
        self.exchanges: list[tuple[Message, Message]] = []

    def messages(self, question: str | None = None) -> list[Message]:
        """All that was said, and a question to be answered."""
        first = [{"role": "system", "content": self.system}] if self.system else []
        said = [message for exchange in self.exchanges for message in exchange]
        last = [] if question is None else [{"role": "user", "content": question}]
        return [*first, *said, *last]

    def add(self, question: str, answer: str, thoughts: str = "") -> None:
        """One more exchange; thoughts stand beside the answer, where templates look for them."""
        reply: Message = {"role": "assistant", "content": answer}
        if thoughts:
            reply["reasoning_content"] = thoughts
        self.exchanges.append(({"role": "user", "content": question}, reply))

    def extend(self, answer: str, thoughts: str = "") -> None:
        """Goes on with the last answer."""
        question, reply = self.exchanges.pop()
        thoughts = reply.get("reasoning_content", "") + thoughts
        self.add(str(question["content"]), reply["content"] + answer, thoughts)

    def drop_oldest(self) -> str:
        """Forgets the first exchange; its question."""
        return str(self.exchanges.pop(0)[0]["content"])

    def undo(self) -> str | None:
        """Forgets the last exchange; its question, None where there is none."""
        return str(self.exchanges.pop()[0]["content"]) if self.exchanges else None

    def save(self, path: str) -> int:
        """Adds the conversation as a row of `messages` to a JSONL file, a new one if there is none;
        the number of rows in it. FileError where the file holds something else.
        """
        if not self.exchanges:
            raise OptionError("save: nothing was said yet")
        file = Path(os.path.expanduser(path))
        before, rows = b"", 0
        if os.path.lexists(file):
            before = read_input(file)
            rows = _rows(before, path)
        row = json.dumps({"messages": self.messages()}, ensure_ascii=False)
        gap = b"\n" if before and not before.endswith(b"\n") else b""
        try:
            disk.write_file(file, before + gap + row.encode() + b"\n")
        except OSError as error:
            raise FileError(f"{path}: {error.strerror or error}") from None
        return rows + 1


def _rows(content: bytes, name: str) -> int:
    """How many conversations a file holds; FileError for anything else, one a line."""
    if not content.strip():
        return 0
    lines = [line for line in content.split(b"\n") if line.strip()]
    if not all(line.lstrip().startswith(b"{") for line in lines):
        raise FileError(f"{name}: no JSONL; a conversation is added only to rows of messages")
    rows = 0
    for line, row in read_records(content, name):
        try:
            read_conversation(row.get("messages") if isinstance(row, dict) else None, "messages")
        except RowError:
            raise FileError(
                f"{name} line {line}: no row of messages; a conversation is added only to these"
            ) from None
        rows += 1
    if rows != len(lines):
        raise FileError(f"{name}: not one row a line; a conversation is added only to JSONL")
    return rows
