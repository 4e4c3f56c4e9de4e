"""JSONL -> token rows with targets: every kind of row, masks, truncation."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import cache
from itertools import islice
from typing import Any

import numpy as np

from wgtrain.data.chat import Chats
from wgtrain.data.checks import Checks, Finding
from wgtrain.data.examples import IGNORED, KINDS, Example, ExampleReader, Segment, in_rows
from wgtrain.data.library import TooSlow
from wgtrain.data.records import RowError, read_records
from wgtrain.data.templates import Templating
from wgtrain.data.tokenizer import Encoding, Tokenizer
from wgtrain.errors import FileError, OptionError

TRAIN_ON = ("completions", "all", "whole")
_CHUNK = 512  # rows tokenised in one call of the library

NO_TEMPLATE = (
    "the model has no chat template: user and system texts, a blank line, the answer and the end"
    " token make a row; --chat-template (in Python chat_template=) brings one"
)
NO_END_TOKEN = "the model names no end token: the rows end without one"
NOTHING = "nothing in it is trained"


@dataclass(frozen=True)
class Row:
    """One row: `tokens` uint32 (n,); `targets` int32 (n,), the token to follow each, -1 where
    not learnt. `cut` tokens more it had, beyond the longest row; `typed` are the places of special
    tokens that somebody wrote in a message.
    """

    tokens: np.ndarray
    targets: np.ndarray
    line: int
    cut: int = 0
    typed: tuple[int, ...] = ()


@dataclass(frozen=True)
class Dataset:
    """The rows of one file. `truncated` were longer than `seq_len`, `dropped` have nothing to
    learn; `train_on` is what they were marked by, "" where somebody marked them himself; `chat`
    how conversations became text, where that is not by the model's file alone. `findings` are what
    may be wrong with them, `without` the dropped ones, with the reason; `templating` is how
    conversations went through a chat template, None where none did.
    """

    rows: list[Row]
    name: str
    seq_len: int
    truncated: int = 0
    dropped: int = 0
    notes: list[str] = field(default_factory=list)
    train_on: str = ""
    chat: dict[str, Any] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)
    without: list[tuple[Row, str]] = field(default_factory=list)
    templating: Templating | None = None

    @property
    def shortened(self) -> list[str]:
        """How many rows of the file are cut or left out, in words."""
        said = []
        if self.truncated:
            said.append(f"{self.truncated} cut at {self.seq_len} tokens")
        if self.dropped:
            said.append(f"{self.dropped} dropped, no token of them counts")
        return said

    def __repr__(self) -> str:
        return f"<Dataset {self.name}: {in_rows(len(self.rows))}>"


def load_rows(
    data: bytes,
    tokenizer: Tokenizer,
    *,
    seq_len: int,
    train_on: str = "completions",
    name: str = "data",
    now: datetime | None = None,
    kind: str | None = None,
    chat: Templating | None = None,
) -> Dataset:
    """The rows of a JSONL file (or a JSON array) of the kinds in `KINDS`.

    `train_on="all"` learns every token of a row, "whole" only turns of chats whose text the
    template writes in full; ids that come with labels are taken as they are. `now` is the date for
    chat templates that write one, today's if None. `kind` is that of every row, for rows with the
    fields of two. `chat` says how conversations become text, if not by the model's own template.
    FileError names the line and the field.
    """
    found = read_rows(
        data,
        tokenizer,
        seq_len=seq_len,
        train_on=train_on,
        name=name,
        now=now,
        kind=kind,
        chat=chat,
    )
    if refused := refusals(found):
        raise FileError("\n".join(f"{name}: {what}" for what in refused))
    return found


def refusals(data: Dataset) -> list[str]:
    """Why rows that were read cannot be trained."""
    out = [str(finding) for finding in data.findings if finding.serious]
    if not data.rows:
        behind = [len(row.tokens) + row.cut for row, why in data.without if why != NOTHING]
        n, longer = data.dropped, ""
        if behind:
            longer = f"; a longer --seq-len (in Python seq_len) helps, up to {max(behind):,}"
        out.append(
            f"none of its {n} rows has a token to learn within {data.seq_len} tokens{longer}"
        )
    return out


def read_rows(
    data: bytes,
    tokenizer: Tokenizer,
    *,
    seq_len: int,
    train_on: str = "completions",
    name: str = "data",
    now: datetime | None = None,
    kind: str | None = None,
    chat: Templating | None = None,
) -> Dataset:
    """As `load_rows`, also for rows that cannot be trained; `refusals` tells."""
    _check_options(seq_len, train_on, kind)
    chat = chat or Templating()
    if now is not None:
        chat = replace(chat, now=now)
    opened = cache(lambda: chat.open(tokenizer))
    reader = ExampleReader(
        opened,
        tokenizer.vocab_size,
        kind,
        developer=any("developer" in text for text in chat.sources(tokenizer).values()),
        merge=chat.system == "merge",
    )
    rows: list[Row] = []
    truncated = 0
    without: list[tuple[Row, str]] = []
    no_end = False
    checks = Checks(tokenizer)
    chats = Chats(opened, train_on == "whole", chat, tokenizer)
    examples = chats.rendered(_examples(data, reader, name), name)
    while chunk := list(islice(examples, _CHUNK)):
        encodings = _encode(chunk, tokenizer, name)
        marked = _tokenise(chunk, encodings, tokenizer, train_on == "all")
        for example, tokens, learnt, typed in marked:
            no_end |= tokenizer.end_id is None and any(part.end for part in example.segments)
            cut = max(0, len(tokens) - seq_len)
            truncated += cut > 0
            checks.look(example, tokens[:seq_len], learnt[:seq_len], cut > 0)
            targets = _targets(tokens[:seq_len], learnt[:seq_len], example)
            row = Row(tokens[:seq_len], targets, example.line, cut, typed)
            if (targets >= 0).any():
                rows.append(row)
            else:
                behind = f"what is trained lies behind token {seq_len}"
                without.append((row, behind if learnt[1:].any() else NOTHING))
    if not chats.rows:
        chat.check_plain(reader.chats_without_template, name)
    notes = [NO_TEMPLATE] if reader.chats_without_template else []
    notes += [NO_END_TOKEN] if no_end else []
    if chat.template is not None and chats.rows:
        notes.append(f"chat template: {chat.name}, in place of the model's own")
    notes += reader.notes() + chats.notes()
    findings = checks.findings()
    notes += [f"warning: {finding}" for finding in findings if not finding.serious]
    return Dataset(
        rows,
        name,
        seq_len,
        truncated,
        len(without),
        notes,
        train_on,
        chat.record(tokenizer) if chats.rows else {},
        findings,
        without,
        chat if chats.rows else None,
    )


def _check_options(seq_len: object, train_on: str, kind: str | None) -> None:
    if train_on not in TRAIN_ON:
        raise OptionError(f"train_on is {train_on!r}; one of {', '.join(TRAIN_ON)}")
    if kind is not None and kind not in KINDS:
        raise OptionError(f"kind is {kind!r}; one of {', '.join(KINDS)}")
    if isinstance(seq_len, bool) or not isinstance(seq_len, int) or seq_len < 2:
        raise OptionError(f"seq_len is {seq_len!r}; a number from 2 on")


def check_vocabulary(data: Dataset, size: int) -> None:
    """FileError naming the first row whose ids are not all below a model's vocabulary `size`."""
    for first in range(0, len(data.rows), _CHUNK):
        rows = data.rows[first : first + _CHUNK]
        tokens, targets = ([getattr(row, name) for row in rows] for name in ("tokens", "targets"))
        flat = [np.concatenate(part) for part in (tokens, targets)]
        sizes = [[len(array) for array in part] for part in (tokens, targets)]
        whole = all(part.dtype.kind in "iu" for part in flat) and all(sizes[0])
        if not whole or sizes[0] != sizes[1]:
            raise FileError(
                f"{data.name}: tokens and targets of a row are whole numbers, as many of each"
            )
        low = min(int(flat[0].min()), int(flat[1].min()) + 1)
        if max(int(part.max()) for part in flat) >= size or low < 0:
            _refuse(data.name, rows, size)


def _refuse(name: str, rows: list[Row], size: int) -> None:
    for row in rows:
        for what, ids, least in (("token", row.tokens, 0), ("target", row.targets, -1)):
            wrong = np.flatnonzero((ids >= size) | (ids < least))
            if len(wrong):
                raise FileError(
                    f"{name} line {row.line}: {what} id {int(ids[wrong[0]])} is outside the model's"
                    f" vocabulary of {size}: are these rows of another tokenizer?"
                )


def _examples(data: bytes, reader: ExampleReader, name: str) -> Iterator[Example]:
    for line, value in read_records(data, name):
        try:
            yield reader.read(line, value)
        except (RowError, FileError) as error:
            raise FileError(f"{name} line {line}: {error}") from error


def _encode(examples: list[Example], tokenizer: Tokenizer, name: str) -> Iterator[Encoding]:
    """The texts of all segments as tokens, in order."""
    texts = [segment.text for example in examples for segment in example.segments]
    try:
        return iter(tokenizer.encode_batch(texts, special=True))
    except TooSlow:  # whichever row it was: none is tried again
        raise
    except FileError:  # which row was it?
        for example in examples:
            try:
                tokenizer.encode_batch([part.text for part in example.segments], special=True)
            except FileError as error:
                raise FileError(f"{name} line {example.line}: {error}") from None
        raise


def _tokenise(
    examples: list[Example], encodings: Iterable[Encoding], tokenizer: Tokenizer, everything: bool
) -> Iterator[tuple[Example, np.ndarray, np.ndarray, tuple[int, ...]]]:
    """Tokens uint32 (n,), which are learnt, bool (n,), and the places of those that were typed, of
    each example; BOS once, at the front.
    """
    for example in examples:
        if example.ids is not None:
            ids, labels = example.ids
            yield example, ids, labels != IGNORED, ()
            continue
        tokens: list[np.ndarray] = []
        learnt: list[np.ndarray] = []
        typed: list[int] = []
        for segment, (ids, ends) in zip(example.segments, encodings, strict=False):
            first = not tokens
            if first and tokenizer.add_bos and (len(ids) == 0 or ids[0] != tokenizer.bos_id):
                tokens.append(np.array([tokenizer.bos_id], np.uint32))
                learnt.append(np.array([False]))
            if segment.typed:
                there = np.flatnonzero(_covered(segment.text, ends, segment.typed))
                typed += (sum(map(len, tokens)) + there).tolist()
            tokens.append(ids)
            learnt.append(_covered(segment.text, ends, segment.spans))
            if _wants_end(segment, ids, learnt[-1], tokenizer.end_id):
                tokens.append(np.array([tokenizer.end_id], np.uint32))
                learnt.append(np.array([bool(segment.spans)]))
        flat = np.concatenate(tokens) if tokens else np.zeros(0, np.uint32)
        mask = np.concatenate(learnt) if learnt else np.zeros(0, bool)
        yield example, flat, mask | everything, tuple(typed)


def _wants_end(segment: Segment, ids: np.ndarray, learnt: np.ndarray, end: int | None) -> bool:
    """Whether the end token is to follow a text: it may be written out there already."""
    there = len(ids) > 0 and ids[-1] == end and bool(learnt[-1])
    return segment.end and end is not None and not there


def _covered(text: str, ends: np.ndarray, spans: list[tuple[int, int]]) -> np.ndarray:
    """Which tokens belong to the spans of characters, bool (n,).

    A token that reaches into a span belongs to it, also when it begins before: the text that is
    learnt would otherwise lose a piece. One that covers nothing (SentencePiece's added space)
    belongs to the text behind it.
    """
    starts = np.concatenate([np.zeros(1, np.int64), ends[:-1]]) if len(ends) else ends
    out = np.zeros(len(ends), bool)
    at = first = 0  # in characters and in bytes
    for begin, end in spans:
        first += begin - at if text.isascii() else len(text[at:begin].encode())
        last = first + (end - begin if text.isascii() else len(text[begin:end].encode()))
        inside = min(np.searchsorted(ends, first, "right"), np.searchsorted(starts, first))
        out[inside : np.searchsorted(starts, last)] = True
        at, first = end, last
    return out


def _targets(tokens: np.ndarray, learnt: np.ndarray, example: Example) -> np.ndarray:
    """int32 (n,): the label of the next token, -1 for what is not learnt and at the end."""
    labels = tokens if example.ids is None else example.ids[1][: len(tokens)]
    targets = np.full(len(tokens), -1, np.int32)
    targets[:-1] = np.where(learnt[1:], labels[1:], -1)
    return targets
