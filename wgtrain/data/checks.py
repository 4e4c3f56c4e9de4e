"""What may be wrong with rows that read well: looked for in each as it becomes tokens."""

from dataclasses import dataclass

import numpy as np

from wgtrain.data.examples import Example, in_rows
from wgtrain.data.tokenizer import Tokenizer

_NAMED = 5  # lines that a finding names
_NO_STOP = "the model may not learn to stop"
_REACH = 3  # tokens at the end of an answer among which its end-of-turn token is


@dataclass(frozen=True)
class Finding:
    """What is wrong with some `rows`; `lines` are the first of them, as (line, detail).

    A `serious` one keeps the rows from being trained.
    """

    what: str
    rows: int
    lines: tuple[tuple[int, str], ...]
    serious: bool = False

    def __str__(self) -> str:
        several = len({line for line, _ in self.lines}) > 1
        shown = ", ".join(f"{line} ({said})" if said else str(line) for line, said in self.lines)
        more = ", ..." if self.rows > len(self.lines) else ""
        return f"{self.what} in {in_rows(self.rows)}: line{'s' * several} {shown}{more}"


class Checks:
    """Looks at the rows of one data set; `findings` are told at the end."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._stops = np.zeros(tokenizer.vocab_size, bool)
        self._stops[list(tokenizer.stop_ids)] = True
        self._found: dict[tuple[bool, str], tuple[int, list[tuple[int, str]]]] = {}

    def look(self, example: Example, tokens: np.ndarray, learnt: np.ndarray, cut: bool) -> None:
        """One row: `tokens` uint32 (n,), which are `learnt`, bool (n,), and whether it was cut."""
        line, bos = example.line, self._tokenizer.bos_id
        if len(tokens) > 1 and tokens[0] == tokens[1] == bos:
            self._add(True, f"BOS stands twice at the front ({self._piece(bos)})", line)
        unknown = self._tokenizer.unk_id
        if unknown is not None and (tokens == unknown).any():
            self._add(False, f"the unknown token ({self._piece(unknown)})", line)
        typed = [part.text[a:b] for part in example.segments for a, b in part.typed]
        if typed:
            said = " ".join(dict.fromkeys(typed))
            self._add(False, "special tokens typed in a message, which become tokens,", line, said)
        self._look_at_ends(example, tokens, learnt, cut)

    def _look_at_ends(
        self, example: Example, tokens: np.ndarray, learnt: np.ndarray, cut: bool
    ) -> None:
        edges = np.flatnonzero(np.diff(learnt, prepend=False, append=False)).reshape(-1, 2)
        runs = edges.tolist()  # (first token, the one behind the last)
        if cut and runs and runs[-1][1] == len(learnt):
            runs.pop()
        if example.ids is not None:  # what somebody masked himself may be any part of an answer
            runs = runs[-1:]
        open_ = [
            end for start, end in runs if not self._stop_in(tokens, max(start, end - _REACH), end)
        ]
        if not open_:
            return
        if any(self._stop_in(tokens, end, end + _REACH) for end in open_):
            self._add(False, f"{_NO_STOP}: an end of turn that is not trained", example.line)
        elif example.chat is not None and not any(part.end for part in example.segments):
            self._add(False, f"{_NO_STOP}: answers without an end-of-turn token", example.line)

    def _stop_in(self, tokens: np.ndarray, first: int, last: int) -> bool:
        """Whether an end-of-turn token is in a range of tokens."""
        return bool(self._stops[tokens[first:last]].any())

    def findings(self) -> list[Finding]:
        """All that was found, the serious first."""
        return [
            Finding(what, rows, tuple(lines), serious)
            for (serious, what), (rows, lines) in sorted(
                self._found.items(), key=lambda item: not item[0][0]
            )
        ]

    def _add(self, serious: bool, what: str, line: int, said: str = "") -> None:
        rows, lines = self._found.get((serious, what), (0, []))
        if len(lines) < _NAMED:
            lines.append((line, said))
        self._found[serious, what] = (rows + 1, lines)

    def _piece(self, i: int | None) -> str:
        return "" if i is None else self._tokenizer.pieces[i]
