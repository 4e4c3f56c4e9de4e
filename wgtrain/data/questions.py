"""Rows as questions: the prompt of a row's last answer, and what the row has as that answer."""

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field

import numpy as np

from wgtrain.data.examples import in_rows
from wgtrain.data.jsonl import Dataset, Row
from wgtrain.data.tokenizer import Tokenizer

_REASONS = {
    "no prompt": "no prompt, it is trained from its first token on",
    "cut": "cut, so that its answer is not whole",
    "long": "an answer of more than {} tokens",
}


@dataclass(frozen=True)
class Question:
    """The tokens up to the last answer of the row of a line, and that answer as text."""

    line: int
    prompt: list[int] = field(repr=False)
    wanted: str


def questions(
    data: Dataset, tokenizer: Tokenizer, max_tokens: int
) -> tuple[list[Question], list[str]]:
    """The questions of all rows whose answers have at most so many tokens, and how many rows are
    none, for each reason.

    A prompt ends where training begins to learn the answer; an answer ends at its stop token.
    """
    found, left_out = [], Counter[str]()
    for row in data.rows:
        prompt, answer = _parted(row, tokenizer.stop_ids)
        reason = "no prompt" if not prompt else "cut" if row.cut else ""
        reason = reason or ("long" if len(answer) > max_tokens else "")
        if reason:
            left_out[reason] += 1
        else:
            found.append(Question(row.line, prompt, tokenizer.decode(answer, special=True)))
    notes = [
        f"{in_rows(n)} not asked: {_REASONS[reason].format(max_tokens)}"
        for reason, n in left_out.items()
    ]
    return found, notes


def _parted(row: Row, stops: Collection[int]) -> tuple[list[int], list[int]]:
    """(what comes before the last trained stretch of a row, that stretch up to its stop token)."""
    trained = np.flatnonzero(row.targets >= 0)
    gaps = np.flatnonzero(np.diff(trained) > 1)
    start = int(trained[gaps[-1] + 1] if len(gaps) else trained[0])
    if start == 0:
        return [], []
    answer = row.targets[start : int(trained[-1]) + 1].tolist()
    ends = [i for i, token in enumerate(answer) if token in stops]
    return row.tokens[: start + 1].tolist(), answer[: ends[0]] if ends else answer


def same_answer(answer: str, wanted: str) -> bool:
    """Whether two texts are one but for their white space."""
    return answer.split() == wanted.split()
