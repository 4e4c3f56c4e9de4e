"""What `wgtrain eval` found, on the screen and as JSON."""

from typing import Any

from wgtrain.errors import printable
from wgtrain.infer.comparison import Comparison
from wgtrain.infer.evaluation import perplexity_in_words

_LISTED = 20  # lines that are named
_LONGEST = 600  # characters of a text that is shown


def as_json(found: Comparison, side_by_side: bool) -> dict[str, Any]:
    """All of it, the stack of all adapters at the top."""
    last = found.contenders[-1]
    facts: dict[str, Any] = {
        "model": found.model,
        "data": found.data.name,
        "adapters": last.name,
        "loss": last.result.loss,
        "perplexity": last.result.perplexity,
        "trained_tokens": last.result.trained_tokens,
        "rows": len(last.result.rows),
        "tokens": last.result.tokens,
        "seconds": last.result.seconds,
    }
    if found.asked:
        facts["exact_match"] = {
            "asked": len(found.asked),
            "right": sum(last.right),
            "wrong_lines": _wrong(found),
        }
    more = found.as_json()
    names = ("notes", "row_losses", *(("answers",) if found.asked else ()))
    return facts | {name: more[name] for name in (*names, *(("compared",) if side_by_side else ()))}


def told(found: Comparison, samples: int) -> None:
    """Prints it: a table where several are compared, lines for one."""
    from rich.console import Console

    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 1000  # whoever reads a file wraps its lines himself

    def say(text: str, style: str = "") -> None:
        console.print(printable(text), style=style, markup=False, soft_wrap=True)

    result = found.contenders[-1].result
    rows = f"{len(result.rows):,} rows" if len(result.rows) != 1 else "1 row"
    counts = f"{result.trained_tokens:,} of {result.tokens:,} tokens trained"
    say(f"{found.model}, {found.data.name}: {rows}, {counts}")
    if len(found.contenders) > 1:
        _table(console, found)
    else:
        perplexity = perplexity_in_words(result.perplexity)
        speed = f"{result.tokens / max(result.seconds, 1e-9):,.0f} tokens a second"
        name = found.contenders[0].name
        say(f"{name}: loss {result.loss:.4f}, perplexity {perplexity}", "bold")
        say(f"{result.seconds:.1f} s, {speed}")
    if found.asked:
        wrong = _wrong(found)
        right = len(found.asked) - len(wrong)
        lines = ", ".join(map(str, wrong[:_LISTED])) + (", ..." if len(wrong) > _LISTED else "")
        which = f"; not those of lines {lines}" if wrong else ""
        share = f"{100 * right / len(found.asked):.0f} %"
        say(f"exact answers: {right} of {len(found.asked)} ({share}){which}")
    for note in found.notes:
        say(note)
    for i in range(min(samples, len(found.asked))):
        _sample(say, found, i)


def _wrong(found: Comparison) -> list[int]:
    """The lines of rows that the whole stack does not answer as they do."""
    pairs = zip(found.asked, found.contenders[-1].right, strict=True)
    return [question.line for question, right in pairs if not right]


def _table(console: Any, found: Comparison) -> None:
    from rich.box import SIMPLE
    from rich.table import Table
    from rich.text import Text

    head, *rows = found.table()
    table = Table(box=SIMPLE, pad_edge=False)
    for i, name in enumerate(head):
        table.add_column(name, justify="right" if i else "left", overflow="fold")
    best = min(range(len(rows)), key=lambda i: found.contenders[i].result.loss)
    for i, cells in enumerate(rows):
        style = "bold green" if i == best and i else ""
        table.add_row(*(Text(cell, style) for cell in cells))
    console.print(table)


def _sample(say: Any, found: Comparison, i: int) -> None:
    """A prompt with what was wanted and what was answered."""
    question = found.asked[i]
    names = ["prompt", "wanted", *(one.name for one in found.contenders)]
    width = min(max(map(len, names)), 24)

    def part(name: str, text: str, style: str = "") -> None:
        text = text if len(text) <= _LONGEST else f"... {text[-_LONGEST:]}"
        first, *others = text.split("\n")
        lines = [f"  {name:<{width}}  {first}", *(f"  {'':<{width}}  {line}" for line in others)]
        say("\n".join(line.rstrip() for line in lines), style)

    say(f"\nline {question.line}", "bold")
    part("prompt", found.text(question.prompt), "dim")
    part("wanted", question.wanted)
    for one in found.contenders:
        part(one.name, one.answers[i], "green" if one.right[i] else "yellow")
