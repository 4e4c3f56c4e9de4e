"""Prompts that are answered while a run goes on."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from wgtrain.data.jsonl import Dataset, Row
from wgtrain.data.tokenizer import Tokenizer

DEFAULT_PROMPTS = 2  # rows of a file that give theirs
_BEGINNING = 16  # tokens at most of a row that is trained from its first token on


@dataclass(frozen=True)
class Prompt:
    """A prompt as people see it, and its tokens."""

    text: str
    ids: tuple[int, ...]


def row_prompt(row: Row) -> list[int]:
    """What stands before a row's first trained token; of one that is trained from its first token
    on, its beginning.
    """
    first = int(np.argmax(row.targets >= 0))
    if first == 0:
        first = min(_BEGINNING, len(row.tokens) // 2) - 1
    ids: list[int] = row.tokens[: max(first, 0) + 1].tolist()
    return ids


def row_prompts(data: Dataset) -> list[list[int]]:
    """Those of the first rows."""
    return [row_prompt(row) for row in data.rows[:DEFAULT_PROMPTS]]


def as_prompts(prompts: Sequence[Sequence[int]], tokenizer: Tokenizer) -> list[Prompt]:
    """Prompts of rows, with their texts."""
    return [Prompt(tokenizer.decode(ids, special=True), tuple(ids)) for ids in prompts]
