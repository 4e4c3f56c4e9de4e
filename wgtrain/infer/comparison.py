"""One model under several stacks of adapters, side by side: losses of rows, answers to prompts."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from html import escape
from typing import Any

from wgtrain.data import Dataset
from wgtrain.data.questions import Question, questions, same_answer
from wgtrain.data.tokenizer import Tokenizer
from wgtrain.dual import dual_function
from wgtrain.errors import OptionError, printable
from wgtrain.files.source import shown
from wgtrain.infer.comparison_page import page
from wgtrain.infer.contender import Contender
from wgtrain.infer.evaluation import perplexity_in_words
from wgtrain.infer.model import AdapterLike, Model

Pairs = Sequence[tuple[AdapterLike, float]]
Compared = Callable[[str, int, int], None]  # called with a name, rows and answers done, and in all
AT_ONCE = 16  # prompts answered together


@dataclass(frozen=True)
class Comparison:
    """What was found; the first contender is the one that others are compared with.

    `notes` say which rows are cut, left out or not asked. In Jupyter it shows itself as its page
    does.
    """

    model: str
    data: Dataset
    tokenizer: Tokenizer
    contenders: tuple[Contender, ...]
    asked: tuple[Question, ...] = ()
    notes: tuple[str, ...] = ()

    def table(self) -> list[tuple[str, ...]]:
        """A row of names, and one for each contender."""
        compared = len(self.contenders) > 1
        names = ["", "loss", "perplexity"]
        names += ["change", "rows better"] * compared + ["exact"] * bool(self.asked)
        rows = [tuple(names)]
        for contender in self.contenders:
            result = contender.result
            perplexity = perplexity_in_words(result.perplexity)
            cells = [printable(contender.name), f"{result.loss:.4f}", perplexity]
            if compared:
                changes = contender.changes(self.contenders[0])
                first = contender is self.contenders[0]
                better = f"{sum(change < 0 for change in changes)} of {len(changes)}"
                change = f"{result.loss - self.contenders[0].result.loss:+.4f}"
                cells += ["", ""] if first else [change, better]
            if self.asked:
                cells.append(f"{sum(contender.right)} of {len(self.asked)}")
            rows.append(tuple(cells))
        return rows

    def as_json(self) -> dict[str, Any]:
        """All of it as values of JSON."""
        return {
            "model": self.model,
            "data": self.data.name,
            "rows": len(self.data.rows),
            "notes": list(self.notes),
            "compared": [
                {
                    "name": one.name,
                    "scales": list(one.scales),
                    "loss": one.result.loss,
                    "perplexity": one.result.perplexity,
                    "trained_tokens": one.result.trained_tokens,
                    "tokens": one.result.tokens,
                    "seconds": one.result.seconds,
                    "right": sum(one.right) if self.asked else None,
                }
                for one in self.contenders
            ],
            "row_losses": [
                {
                    "line": row.line,
                    "trained_tokens": row.trained_tokens,
                    "losses": [one.result.rows[i].loss for one in self.contenders],
                }
                for i, row in enumerate(self.contenders[0].result.rows)
            ],
            "answers": [
                {
                    "line": question.line,
                    "prompt": self.text(question.prompt),
                    "wanted": question.wanted,
                    "answers": [one.answers[i] for one in self.contenders],
                    "right": [one.right[i] for one in self.contenders],
                }
                for i, question in enumerate(self.asked)
            ],
        }

    def text(self, tokens: Sequence[int]) -> str:
        """Tokens as text, special ones too."""
        return self.tokenizer.decode(tokens, special=True)

    @cached_property
    def html(self) -> str:
        """A page of its own, which asks for nothing else."""
        return page(self.model, self.data, self.tokenizer, self.contenders, self.asked, self.notes)

    def _repr_html_(self) -> str:
        style = "width:100%;height:40em;border:0"
        return f'<iframe srcdoc="{escape(self.html)}" style="{style}"></iframe>'

    def __str__(self) -> str:
        rows = self.table()
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        lines = [
            "  ".join(f"{c:<{w}}" if i == 0 else f"{c:>{w}}" for i, (c, w) in enumerate(cells))
            for cells in (list(zip(row, widths, strict=True)) for row in rows)
        ]
        return printable("\n".join([f"{self.model} on {self.data.name}", *lines, *self.notes]))

    __repr__ = __str__


def _unseen(name: str, done: int, total: int) -> None:
    pass


@dual_function
async def compare(
    model: Model,
    rows: Dataset,
    stacks: Mapping[str, Pairs],
    answers: int | None = 0,
    max_tokens: int = 64,
    batch_size: int = 4,
    progress: Compared = _unseen,
) -> Comparison:
    """The losses of rows under stacks of adapters, which are [(adapter, strength), ...] by a name,
    [] being the bare base; the first is what others are compared with.

    `answers`: how many rows are asked as well, None = all of them: the prompt of a row's last
    answer is continued greedily for up to `max_tokens` tokens. Rows whose answer is longer are not
    asked. `progress(name, done, total)` is called with what was evaluated or answered.
    """
    if not isinstance(model, Model):
        raise OptionError(f"model: {shown(model)}: load it first, with wgtrain.load_model")
    if not isinstance(stacks, Mapping) or not stacks:
        raise OptionError(
            f"stacks = {shown(stacks)}: names with lists of (adapter, strength) are needed, as "
            '{"base": [], "tuned": [("adapter.gguf", 1.0)]}'
        )
    for name, value, least in (("answers", answers, 0), ("max_tokens", max_tokens, 1)):
        if value is not None and (type(value) is not int or value < least):
            raise OptionError(
                f"{name} = {shown(value)}: allowed is a whole number, at least {least}"
            )
    asked: list[Question] = []
    notes = [f"rows: {words}" for words in rows.shortened]
    longest = max((len(row.tokens) for row in rows.rows), default=0)
    if longest > model.config.context:
        context = f"{model.config.context:,}"
        notes.append(f"rows of up to {longest:,} tokens, but the model was made for {context}")
    if answers != 0:
        asked, unasked = questions(rows, model.tokenizer, max_tokens)
        asked, notes = asked[:answers], notes + unasked
    total = len(stacks) * (len(rows.rows) + len(asked))
    done = 0

    def moved(name: str, start: int, within: int, of: int) -> None:
        progress(name, start + within, total)

    results = {}
    for name, pairs in stacks.items():
        shown_as = partial(moved, name, done)
        results[name] = await model.aio.evaluate(rows, pairs, batch_size, shown_as)
        done += len(rows.rows)
    said: dict[str, list[str]] = {name: [] for name in stacks}
    for name, pairs in stacks.items():
        for first in range(0, len(asked), AT_ONCE):
            group = asked[first : first + AT_ONCE]
            made = await model.aio.complete([one.prompt for one in group], max_tokens, pairs)
            said[name] += [model.tokenizer.decode(ids, special=True) for ids in made]
            done += len(group)
            progress(name, done, total)
    contenders = []
    for name, pairs in stacks.items():
        right = [same_answer(a, one.wanted) for a, one in zip(said[name], asked, strict=True)]
        scales = tuple(float(strength) for _, strength in pairs)
        contenders.append(Contender(name, scales, results[name], tuple(said[name]), tuple(right)))
    return Comparison(
        model.name, rows, model.tokenizer, tuple(contenders), tuple(asked), tuple(notes)
    )
