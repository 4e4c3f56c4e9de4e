"""A comparison as one page: no request leaves it, and nothing of a row can be more than text."""

import base64
import hashlib
from collections.abc import Iterator, Sequence
from importlib import resources
from itertools import groupby
from pathlib import PurePath
from statistics import median
from typing import Any, NamedTuple

from jinja2 import Environment, StrictUndefined

from wgtrain.data import Dataset, Tokenizer
from wgtrain.data.questions import Question
from wgtrain.errors import printable
from wgtrain.infer.contender import Contender
from wgtrain.infer.evaluation import perplexity_in_words

MOST_ROWS = 1000  # in the table: those whose loss changed the most
MOST_STEMS = 250
MOST_TEXT = 2000  # characters of a row, a prompt or an answer
LEFT, WIDTH, HEIGHT = 42, 950, 210  # of a chart


class Stem(NamedTuple):
    """A row in a chart: its loss before and after, as heights from the top."""

    line: int
    x: float
    before: float
    after: float
    better: bool
    text: str


def page(
    model: str,
    data: Dataset,
    tokenizer: Tokenizer,
    contenders: Sequence[Contender],
    asked: Sequence[Question],
    notes: Sequence[str],
) -> str:
    """The page, HTML; the first contender is the one that others are compared with."""
    template, css, script = (
        (resources.files("wgtrain") / "infer" / f"comparison_page.{kind}").read_text("utf-8")
        for kind in ("html", "css", "mjs")
    )
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    first, last = contenders[0], contenders[-1]
    return environment.from_string(template).render(
        css=css,
        script=script,
        script_hash=digest,
        model=_name(model),
        data=_name(data.name),
        tokens=first.result.trained_tokens,
        cards=[_card(one, contenders, len(asked)) for one in contenders],
        names=[_text(one.name) for one in contenders],
        charts=[_chart(one, contenders) for one in contenders[1:]],
        answers=[_answers(i, one, contenders, tokenizer) for i, one in enumerate(asked)],
        rows=_rows(data, tokenizer, contenders, last.changes(first)),
        row_count=len(data.rows),
        notes=[_text(note) for note in [*notes, *data.notes]],
    )


def _text(text: str) -> str:
    """A stranger's text, with escapes for what is not seen; of a long one the beginning."""
    more = f" … ({len(text) - MOST_TEXT:,} more characters)" if len(text) > MOST_TEXT else ""
    return printable(text[:MOST_TEXT]) + more


def _name(path: str) -> str:
    """What a file is called, without the folders of the machine it is on."""
    return _text(PurePath(path).name or path)


def _card(one: Contender, contenders: Sequence[Contender], asked: int) -> dict[str, Any]:
    """A contender in numbers."""
    first = contenders[0]
    worst = max(other.result.loss for other in contenders)
    scales = [scale for scale in one.scales if scale != 1 and f":{scale:g}" not in one.name]
    return {
        "name": _text(one.name),
        "scales": ", ".join(f"× {scale:g}" for scale in scales),
        "loss": one.result.loss,
        "share": 100 * one.result.loss / worst if worst > 0 else 0,
        "perplexity": perplexity_in_words(one.result.perplexity),
        "change": one.result.loss - first.result.loss,
        "better": sum(change < 0 for change in one.changes(first)),
        "first": one is first,
        "right": sum(one.right) if asked else None,
        "asked": asked,
    }


def _chart(one: Contender, contenders: Sequence[Contender]) -> dict[str, Any]:
    """The loss of each row before and after, sorted; all charts of a page have one scale."""
    first, changes = contenders[0], one.changes(contenders[0])
    top = max(*(row.loss for other in contenders for row in other.result.rows), 1e-9)
    pairs = list(zip(first.result.rows, one.result.rows, strict=True))
    pairs.sort(key=lambda pair: -pair[0].loss)
    n = len(pairs)
    picked = [pairs[i * n // MOST_STEMS] for i in range(MOST_STEMS)] if n > MOST_STEMS else pairs
    step = WIDTH / len(picked)
    stems = [
        Stem(
            after.line,
            LEFT + (i + 0.5) * step,
            HEIGHT * (1 - before.loss / top),
            HEIGHT * (1 - after.loss / top),
            after.loss < before.loss,
            f"line {after.line}: {before.loss:.3f} → {after.loss:.3f}",
        )
        for i, (before, after) in enumerate(picked)
    ]
    return {
        "name": _text(one.name),
        "first": _text(first.name),
        "stems": stems,
        "radius": min(4.0, 0.4 * step),
        "grid": [(HEIGHT * (1 - part), f"{part * top:.2f}") for part in (0, 0.25, 0.5, 0.75, 1)],
        "height": HEIGHT,
        "right": LEFT + WIDTH,
        "median": median(changes),
        "better": sum(change < 0 for change in changes),
        "worse": sum(change > 0 for change in changes),
        "picked": len(picked),
        "count": n,
    }


def _answers(
    i: int, question: Question, contenders: Sequence[Contender], tokenizer: Tokenizer
) -> dict[str, Any]:
    """A question, number `i`, with its answers."""
    return {
        "line": question.line,
        "prompt": list(_marked(tokenizer, question.prompt)),
        "wanted": _text(question.wanted),
        "answers": [(_text(one.name), _text(one.answers[i]), one.right[i]) for one in contenders],
        "kind": _kind([one.right[i] for one in contenders]),
    }


def _kind(right: Sequence[bool]) -> str:
    """What became of a first answer with the last contender."""
    return {
        (True, True): "kept",
        (True, False): "lost",
        (False, True): "won",
        (False, False): "wrong",
    }[right[0], right[-1]]


def _marked(tokenizer: Tokenizer, tokens: Sequence[int]) -> Iterator[tuple[str, bool]]:
    """Pieces of a text, and whether each is made of special tokens; of a long text the end."""
    hidden = tokenizer.control_ids
    groups = [
        (tokenizer.decode(group, special=True), special)
        for special, group in groupby(tokens, lambda token: bool(hidden[token]))
    ]
    room, kept = MOST_TEXT, []
    for text, special in reversed(groups):
        kept.append((printable(text[-room:]), special))
        room -= len(text)
        if room <= 0:
            kept.append(("… ", True))
            break
    return reversed(kept)


def _rows(
    data: Dataset, tokenizer: Tokenizer, contenders: Sequence[Contender], changes: Sequence[float]
) -> list[dict[str, Any]]:
    """Rows with their losses; of many those that changed the most, in the order of the file."""
    losses = [one.result.rows for one in contenders]
    order = sorted(range(len(changes)), key=lambda i: -abs(changes[i]))[:MOST_ROWS]
    return [
        {
            "line": losses[0][i].line,
            "tokens": losses[0][i].trained_tokens,
            "losses": [rows[i].loss for rows in losses],
            "change": changes[i],
            "text": _text(tokenizer.decode(data.rows[i].tokens.tolist(), special=True)),
        }
        for i in sorted(order)
    ]
