"""Rows as training sees them: text with every trained token marked, in plain text, in colour, in
HTML.
"""

import codecs
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from itertools import groupby
from typing import Any

from wgtrain.data.examples import in_rows
from wgtrain.data.jsonl import Dataset, Row, refusals
from wgtrain.data.tokenizer import Tokenizer
from wgtrain.errors import OptionError, printable
from wgtrain.files.source import shown

ALLOWED = "all, a number N (the first N), or lines such as 4-6,9-9"
_NAMED = 8  # lines that a list names
_ANSI = {"trained": "30;42", "next": "30;102", "odd": "41", "special": "2", "plain": ""}
_CSS = {
    "trained": "background:#9be59b;color:#000",
    "next": "background:#6fcf6f;color:#000",
    "odd": "background:#f08080;color:#000",
    "special": "opacity:.5",
    "plain": "",
}


@dataclass(frozen=True)
class Piece:
    """The text of one token, or of several that share a character; `odd` is one that stands for
    what is unknown, or a special one that somebody typed. `label` is what is trained in its place
    where that is another token.
    """

    text: str
    ids: tuple[int, ...]
    trained: bool
    special: bool = False
    odd: bool = False
    label: str = ""


class Preview:
    """What training would see of a data set; `refused` says why it would not train at all.

    In Jupyter it shows itself.
    """

    def __init__(self, data: Dataset, tokenizer: Tokenizer, rows: int | str = 3) -> None:
        self.data, self.tokenizer = data, tokenizer
        self.refused = refusals(data)
        self.rows = _chosen(data, rows)

    def __str__(self) -> str:
        return self.text

    @property
    def text(self) -> str:
        """All of it: what is trained between `[[` and `]]`, special tokens that were typed and
        unknown ones between `{{` and `}}`.
        """
        return self._written(_bracketed)

    @property
    def colored(self) -> str:
        """The same for a terminal: trained tokens on green, each in another shade than the last."""
        return self._written(_in_color)

    @property
    def html(self) -> str:
        """A page of its own."""
        return (
            '<!doctype html><html lang="en"><meta charset="utf-8">'
            f"<title>{escape(printable(self.data.name))}</title>"
            f'<body style="font-family:sans-serif;max-width:60em;margin:2em auto">'
            f"{self._repr_html_()}</body></html>\n"
        )

    def _repr_html_(self) -> str:
        out = [f"<p>{escape(line)}</p>" for line in self.summary()]
        for row in self.rows:
            text = "".join(map(_in_html, _shaded(self.pieces(row))))
            out.append(
                f"<p><b>{escape(self._head(row))}</b></p>"
                f'<pre style="white-space:pre-wrap;overflow-wrap:anywhere">{text}</pre>'
            )
        return f"<div>{''.join(out)}</div>"

    def summary(self) -> list[str]:
        """Counts, what is cut and dropped, what is wrong, notes: a line each."""
        data = self.data
        rows = data.rows
        tokens = sum(len(row.tokens) for row in rows)
        trained = sum(map(_trained, rows))
        lines = [
            f"{data.name}: {len(rows)} of {in_rows(len(rows) + len(data.without))}, {tokens:,} "
            f"tokens, {trained:,} of them trained"
            + (f" ({100 * trained / tokens:.0f} %)" if tokens else "")
        ]
        if rows:
            sizes = [len(row.tokens) for row in rows]
            lines[0] += f"; rows of {min(sizes):,} to {max(sizes):,} tokens"
        long = [*rows, *(row for row, _ in data.without)]
        cut = sorted((row.line, len(row.tokens) + row.cut) for row in long if row.cut)
        if cut:
            listed = _listed([(line, f"{size:,} tokens") for line, size in cut])
            lines.append(f"{in_rows(len(cut))} cut at {data.seq_len} tokens: {listed}")
        if data.without:
            listed = _listed([(row.line, why) for row, why in data.without])
            lines.append(f"{in_rows(len(data.without))} dropped: {listed}")
        lines += [f"error: {what}" for what in self.refused]
        return [printable(line) for line in [*lines, *data.notes]]

    def pieces(self, row: Row) -> list[Piece]:
        """The tokens of a row."""
        return list(_pieces(row, self.tokenizer))

    def as_json(self) -> dict[str, Any]:
        """All of it as values of JSON."""
        data = self.data
        return {
            "name": data.name,
            "rows": len(data.rows),
            "tokens": sum(len(row.tokens) for row in data.rows),
            "trained": sum(map(_trained, data.rows)),
            "cut": [[row.line, len(row.tokens) + row.cut] for row in data.rows if row.cut],
            "dropped": [[row.line, why] for row, why in data.without],
            "errors": self.refused,
            "notes": data.notes,
            "shown": [
                {
                    "line": row.line,
                    "tokens": row.tokens.tolist(),
                    "targets": row.targets.tolist(),
                    "pieces": [[piece.text, piece.trained] for piece in self.pieces(row)],
                }
                for row in self.rows
            ],
        }

    def _written(self, write: Any) -> str:
        parts = ["\n".join(self.summary())]
        parts += [f"--- {self._head(row)}\n{write(self.pieces(row))}" for row in self.rows]
        return "\n\n".join(parts) + "\n"

    def _head(self, row: Row) -> str:
        words = f"line {row.line}: {len(row.tokens):,} tokens, {_trained(row):,} trained"
        words += f", {row.cut:,} more cut off" if row.cut else ""
        why = next((why for other, why in self.data.without if other is row), None)
        return words if why is None else f"{words}; dropped, {why}"


def _trained(row: Row) -> int:
    return int((row.targets >= 0).sum())


def _listed(lines: Sequence[tuple[int, str]]) -> str:
    """Lines with what is said of each, the first few."""
    words = "; ".join(f"line {line} ({said})" for line, said in lines[:_NAMED])
    return words + (f"; and {len(lines) - _NAMED} more" if len(lines) > _NAMED else "")


def _chosen(data: Dataset, rows: int | str) -> list[Row]:
    """The rows that are shown; OptionError for what names none."""
    every = sorted([*data.rows, *(row for row, _ in data.without)], key=lambda row: row.line)
    wrong = OptionError(f"rows = {shown(rows)}: allowed is {ALLOWED}")
    text = str(rows).replace(" ", "")
    if isinstance(rows, bool) or not isinstance(rows, int | str):
        raise wrong
    if text == "all":
        return every
    if text.isascii() and text.isdigit():
        return (data.rows or every)[: int(text)]
    wanted: set[int] = set()
    for part in text.split(","):
        match = re.fullmatch(r"([0-9]{1,12})(?:-([0-9]{1,12}))?", part, re.ASCII)
        if match is None:
            raise wrong
        first, last = int(match[1]), int(match[2] or match[1])
        found = {row.line for row in every if first <= row.line <= last}
        if not found:
            raise OptionError(f"rows = {shown(rows)}: {data.name} has no row at {part}")
        wanted |= found
    return [row for row in every if row.line in wanted]


def _pieces(row: Row, tokenizer: Tokenizer) -> Iterator[Piece]:
    labels = [-1, *row.targets[:-1].tolist()]
    decoder = codecs.getincrementaldecoder("utf-8")("backslashreplace")
    held: list[int] = []
    tokens = row.tokens.tolist()
    for i, token in enumerate(tokens):
        data = tokenizer.decode_bytes([token], special=True, start=False)
        last = i + 1 == len(tokens)
        ends = last or (labels[i] >= 0) != (labels[i + 1] >= 0)  # no character goes over an edge
        held.append(token)
        text = decoder.decode(data, ends)
        if not text and not ends:
            continue
        other = labels[i] >= 0 and labels[i] != token
        label = tokenizer.decode([labels[i]], special=True) if other else ""
        special = bool(tokenizer.control_ids[token])
        odd = token == tokenizer.unk_id or i in row.typed
        yield Piece(printable(text), tuple(held), labels[i] >= 0, special, odd, label)
        held = []


def _said(piece: Piece) -> str:
    text = f"{{{{{piece.text}}}}}" if piece.odd else piece.text
    return f"{text}=>{printable(piece.label)}" if piece.label else text


def _bracketed(pieces: list[Piece]) -> str:
    runs = groupby(pieces, lambda piece: piece.trained)
    parts = [(trained, "".join(map(_said, run))) for trained, run in runs]
    return "".join(f"[[{text}]]" if trained else text for trained, text in parts)


def _shaded(pieces: list[Piece]) -> Iterator[tuple[Piece, str]]:
    """Each piece with its kind; of trained ones every other is "next"."""
    n = 0
    for piece in pieces:
        kind = "special" if piece.special else "plain"
        if piece.trained:
            kind, n = ("trained", "next")[n % 2], n + 1
        yield piece, "odd" if piece.odd else kind


def _in_color(pieces: list[Piece]) -> str:
    out = []
    for piece, kind in _shaded(pieces):
        code, text = _ANSI[kind], _said(piece)
        if piece.trained:  # an end of a line has no background
            text = text.replace("\n", f"↵\x1b[0m\n\x1b[{code}m")
        out.append(f"\x1b[{code}m{text}\x1b[0m" if code else text)
    return "".join(out)


def _in_html(shaded: tuple[Piece, str]) -> str:
    piece, kind = shaded
    text = escape(_said(piece))
    if piece.trained:
        text = text.replace("\n", "↵\n")
    ids = " ".join(map(str, piece.ids))
    return f'<span style="{_CSS[kind]}" title="{ids}">{text}</span>'
