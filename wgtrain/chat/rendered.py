"""What a template makes of a conversation."""

from dataclasses import dataclass
from typing import Any

Message = dict[str, Any]


@dataclass(frozen=True)
class Rendered:
    """A conversation as text; `spans` are the learnt (start, end) characters, in order.

    `ended` is False where an assistant's turn has no end-of-turn token: then the model does not
    learn to stop.
    """

    text: str
    spans: list[tuple[int, int]]
    ended: bool
