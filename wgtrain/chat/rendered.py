"""What a template makes of a conversation."""

from dataclasses import dataclass, field
from typing import Any

Message = dict[str, Any]
Variables = dict[str, Any]  # of one conversation: `tools`, and what a caller gives beside them


@dataclass(frozen=True)
class Rendered:
    """A conversation as text; `spans` are the learnt (start, end) characters, in order.

    `cut` are (message, field) of the assistant's whose text is not all within its span, `unwritten`
    what else the template does not write. `added` says that the last answer got an end-of-turn
    token which the template does not write, `typed` are the characters of special tokens that
    stand in the conversation itself.
    """

    text: str
    spans: list[tuple[int, int]]
    cut: list[tuple[int, str]] = field(default_factory=list)
    unwritten: list[str] = field(default_factory=list)
    added: bool = False
    typed: list[tuple[int, int]] = field(default_factory=list)
