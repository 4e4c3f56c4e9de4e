"""Modelfiles for Ollama: a model, or a base with an adapter, its chat template in Go's language,
and where its answers end.

Templates come from a table (scripts/ollama_templates.py) together with what Go's text/template made
of a few conversations. A template is taken where the model's own makes the same of them; nothing is
translated, and where none does, none is written.
"""

import json
import re
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from wgtrain.data.templates import Templating
from wgtrain.data.tokenizer import Tokenizer
from wgtrain.errors import FileError

_BEGIN = 128  # characters by which the table knows a template at once, else by its special tokens
_TOKEN = re.compile(r"<[|_A-Za-z0-9]+>|\[[A-Z]+\]|<\uFF5C[\u2581A-Za-z]+\uFF5C>")
_PLAIN = re.compile(r"[\w./-]+")  # paths that need no quotes
_SYSTEM = 0, 1  # of the table's conversations: with a system message, and the same without


@dataclass(frozen=True)
class OllamaTemplate:
    """What of a Modelfile depends on the chat template; `text` None where there is none for it."""

    text: str | None
    system: str | None  # what the model's template says where nobody gives a system message
    stops: tuple[str, ...]
    notes: tuple[str, ...]  # what a person should know


def ollama_template(tokenizer: Tokenizer, chat: Templating) -> OllamaTemplate:
    """The table's template that writes what the model's own, or `chat`'s, does."""
    own = chat.sources(tokenizer).get("default")
    if own is None:
        note = "the model has no chat template: Ollama gets the text as it is"
        return OllamaTemplate(None, None, _stops(tokenizer, ""), (note,))
    made = _rendered(tokenizer, chat)
    with_system, without = (made[i] for i in _SYSTEM)
    checked = 0 if with_system is not None else 1
    fits = [e for e in _entries(own) if made[checked] and e["renders"][checked] == made[checked]]
    if not fits:
        note = (
            "no template in Go's language is known that writes what this model's chat template "
            "does, so there is no TEMPLATE line: Ollama guesses one by the model's own"
        )
        return OllamaTemplate(None, None, _stops(tokenizer, with_system or without or ""), (note,))
    found = max(fits, key=lambda e: sum(a == b for a, b in zip(e["renders"], made, strict=True)))
    notes: list[str] = []
    default = None
    if with_system is None:
        notes.append("this model's chat template takes no system message: give Ollama none either")
    elif without != found["renders"][1]:
        dated = "strftime_now" in own  # it would be that of today for ever
        default = None if dated else _default_system(found["renders"][0], made)
        if default is None:
            why = ", which writes a date" if dated else ""
            notes.append(
                f"without a system message Ollama's prompts differ from the template's{why}"
            )
    stops = dict.fromkeys([*_stops(tokenizer, made[checked] or ""), *found["stop"]])
    return OllamaTemplate(found["template"], default, tuple(stops), tuple(notes))


def modelfile(
    model: str, template: OllamaTemplate, adapter: str | None = None
) -> tuple[str, list[str]]:
    """The text of a Modelfile, and what could not be said in it. `model` and `adapter` are paths,
    from where the Modelfile lies. FileError for a path that cannot be written in one.
    """
    lines, left = [], list(template.notes)
    for name, path in (("FROM", model), ("ADAPTER", adapter)):
        if path is not None:
            if (value := _quoted(path)) is None:
                raise FileError(f"{path!r}: a Modelfile cannot hold such a name")
            lines.append(f"{name} {path if _PLAIN.fullmatch(path) else value}")
    for name, text in (
        ("TEMPLATE", template.text),
        ("SYSTEM", template.system),
        *(("PARAMETER stop", stop) for stop in template.stops),
    ):
        if text is None:
            continue
        if (value := _quoted(text)) is None:
            left.append(f"{name} {text!r} cannot be written in a Modelfile and is left out")
        else:
            lines.append(f"{name} {value}")
    return "\n".join(lines) + "\n", left


def _quoted(text: str) -> str | None:
    """A value as Ollama's reader takes it, which drops what is not printable; None for others."""
    if '"""' in text or not all(c.isprintable() or c in "\n\t" for c in text):
        return None
    mark = '"""' if "\n" in text or '"' in text else '"'
    return f"{mark}{text}{mark}"


@cache
def _table() -> dict[str, Any]:
    file = resources.files("wgtrain") / "data" / "ollama_templates.json"
    table: dict[str, Any] = json.loads(file.read_text("utf-8"))
    return table


def _entries(own: str) -> list[dict[str, Any]]:
    """The table, first what its package would take for such a template."""
    tokens = set(_TOKEN.findall(own))

    def rank(entry: dict[str, Any]) -> int:
        if entry["begin"] and entry["begin"] == own[:_BEGIN]:
            return 0
        return 1 if tokens and tokens == set(entry["tokens"]) else 2

    return sorted(_table()["entries"], key=rank)


def _rendered(tokenizer: Tokenizer, chat: Templating) -> list[str | None]:
    """What the template makes of the table's conversations, without the BOS that Ollama adds as the
    model's file asks; None where it refuses one.
    """
    bos = ""
    if tokenizer.add_bos and tokenizer.bos_id is not None:
        bos = tokenizer.pieces[tokenizer.bos_id]
    template = chat.open(tokenizer)
    assert template is not None  # it has a source
    made: list[str | None] = []
    with template:
        for messages in _table()["conversations"]:
            try:
                text = template.render(messages, prompt=True, args=dict(chat.args))
            except FileError:
                made.append(None)
            else:
                made.append(text.removeprefix(bos))
    return made


def _default_system(go: str, made: list[str | None]) -> str | None:
    """The system text that the template puts where none is given."""
    text, without = _table()["conversations"][0][0]["content"], made[1]
    before, found, after = go.partition(text)
    if not found or without is None or text in after:
        return None
    if not without.startswith(before) or not without.endswith(after):
        return None
    inside = without[len(before) : len(without) - len(after)]
    return inside if len(before) + len(after) < len(without) else None


def _stops(tokenizer: Tokenizer, text: str) -> tuple[str, ...]:
    """The tokens at which answers end: those of the file, and others that a conversation has."""
    always = (tokenizer.eos_id, tokenizer.eot_id)
    pieces = ((i, tokenizer.pieces[i]) for i in sorted(tokenizer.stop_ids))
    return tuple(piece for i, piece in pieces if i in always or piece in text)
