"""What a template makes of a conversation."""

from dataclasses import dataclass, field
from typing import Any

Message = dict[str, Any]


@dataclass(frozen=True)
class Rendered:
    """A conversation as text; `spans` are the learnt (start, end) characters, in order.

    `ended` is False where an assistant's turn has no end-of-turn token: then the model does not
    learn to stop. `cut` are (message, field) of the assistant's whose text is not all within its
    span, `unwritten` other fields that the template does not write.
    """

    text: str
    spans: list[tuple[int, int]]
    ended: bool
    cut: list[tuple[int, str]] = field(default_factory=list)
    unwritten: list[str] = field(default_factory=list)
