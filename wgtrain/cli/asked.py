"""What generate is asked: a text to continue, a message, or a file of many."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wgtrain.data.examples import read_arguments, read_tools
from wgtrain.data.messages import read_conversation, text
from wgtrain.data.records import RowError, read_records
from wgtrain.errors import FileError, OptionError
from wgtrain.runs.paths import read_input

STDIN = "-"
# What is added to a row.
ADDED = ("text", "reasoning_content", "finish_reason", "prompt_tokens", "completion_tokens")


@dataclass(frozen=True)
class Asked:
    """A text to continue, or messages to answer; `row` is what a file holds, `where` its place."""

    prompt: str | None = None
    messages: list[dict[str, Any]] = field(default_factory=list)
    tools: list[Any] | None = None
    args: Mapping[str, Any] = field(default_factory=dict)
    row: Mapping[str, Any] = field(default_factory=dict)
    where: str = ""


def read_asked(
    prompt: str | None, message: str | None, prompts: str | None, system: str | None
) -> list[Asked]:
    """What the options ask; OptionError unless it is one of them, FileError for a wrong file."""
    given = {"prompt": prompt, "message": message, "prompts": prompts}
    if len([value for value in given.values() if value is not None]) != 1:
        raise OptionError(f"{', '.join(given)}: one of them is needed, and only one")
    if system is not None and message is None:
        raise OptionError(
            "system: it goes with --message; in a file it is a message with the role system"
        )
    if prompts is not None:
        return read_prompts(prompts)
    if message is not None:
        first = [] if system is None else [{"role": "system", "content": _typed(system, "system")}]
        content = _typed(_text_of(message, "message"), "message")
        return [Asked(messages=[*first, {"role": "user", "content": content}])]
    return [Asked(prompt=_typed(_text_of(str(prompt), "prompt"), "prompt"))]


def _text_of(value: str, name: str) -> str:
    """An option's text, or that of standard input."""
    if value != STDIN:
        return value
    try:
        found = sys.stdin.buffer.read().decode()
    except UnicodeDecodeError as error:
        raise FileError(f"standard input: no valid UTF-8 at byte {error.start}") from None
    if not found:
        raise OptionError(f"{name} = -: standard input is empty")
    return found.removesuffix("\n").removesuffix("\r")


def _typed(value: str, name: str) -> str:
    """A text of the command line, where half a character may stand."""
    try:
        return text(value, name)
    except RowError as error:
        raise OptionError(f"{name}: {str(error).partition(': ')[2]}") from None


def read_prompts(path: str) -> list[Asked]:
    """The rows of a file, or of standard input; FileError names the line of a wrong one."""
    name = "standard input" if path == STDIN else path
    content = sys.stdin.buffer.read() if path == STDIN else read_input(Path(path))
    asked = []
    for line, row in read_records(content, name):
        where = f"{name} line {line}"
        try:
            asked.append(_read_row(row, where))
        except RowError as error:
            raise FileError(f"{where}: {error}") from None
    return asked


def _read_row(row: Any, where: str) -> Asked:
    if not isinstance(row, dict):
        raise RowError("no JSON object")
    kinds = [name for name in ("prompt", "messages") if row.get(name) is not None]
    if len(kinds) != 1:
        both = "both stand in it" if kinds else "neither is in it"
        raise RowError(f"fields 'prompt' and 'messages': {both}; a row has one of them")
    if taken := [name for name in ADDED if name in row]:
        raise RowError(f"field '{taken[0]}' is there already, where the answer is to be put")
    if kinds == ["prompt"] and not isinstance(row["prompt"], list):
        for name in ("tools", "chat_template_kwargs"):
            if row.get(name) is not None:
                raise RowError(f"field '{name}': only 'messages' go through a chat template")
        return Asked(text(row["prompt"], "prompt"), row=row, where=where)
    (name,) = kinds  # a list of messages may also be called a prompt, as in TRL's rows
    messages = read_conversation(row[name], name).messages
    if messages[-1]["role"] == "assistant":
        raise RowError(f"field '{name}': the last one is the assistant's; there is no question")
    return Asked(None, messages, read_tools(row), read_arguments(row), row, where)
