"""What `wgtrain inspect` found, in words."""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from wgtrain.gpu import format_size


def lines(facts: Mapping[str, Any]) -> Iterable[str]:
    """Facts in words, a name and its value a line."""
    words = {"model": _model_words, "adapter": _adapter_words, "data": _data_words}
    named = [(name, text) for name, text in words[facts["kind"]](facts) if text]
    width = max(len(name) for name, _ in named) + 2
    for name, text in named:
        for number, part in enumerate(text.split("\n")):
            yield f"{'' if number else name:<{width}}{part}".rstrip()


def _model_words(facts: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    yield "model", facts["file"]
    if "architecture" in facts:
        yield "architecture", str(facts["architecture"])
        yield "name", facts["name"] or ""
        yield "parameters", f"{facts['parameters']:,}"
        yield (
            "types",
            "\n".join(
                f"{kind:<8}{count:>5} tensors {format_size(facts['type_bytes'][kind]):>12}"
                for kind, count in facts["types"].items()
            ),
        )
    if "layers" in facts:
        heads, shared = facts["heads"], facts["kv_heads"]
        yield (
            "shape",
            f"{facts['layers']} blocks of width {facts['width']}, feed-forward "
            f"{facts['feed_forward']}, {heads} heads of {facts['head_size']}, "
            f"{shared} of keys and values",
        )
        windows = ", ".join(map(str, facts["windows"]))
        yield "context", f"{facts['context']:,}" + (f", windows of {windows}" if windows else "")
        tied = ", the head is the embedding" if facts["tied_head"] else ""
        yield "vocabulary", f"{facts['vocabulary']:,}{tied}"
    if "tokenizer" in facts:
        yield "tokenizer", facts["tokenizer_refused"] or facts["tokenizer"] or "none"
        yield "chat template", {True: "yes", False: "none", None: ""}[facts["chat_template"]]
    if "gpu_bytes" in facts:
        yield (
            "GPU memory",
            f"{format_size(facts['gpu_bytes'])} for the weights; "
            "wgtrain plan tells what a run takes",
        )
    training = f"refused: {facts['refused']}" if facts["refused"] else "possible"
    if training == "possible" and facts.get("tokenizer_refused"):
        training = "only from Python, with rows of tokens: without a tokenizer none is made of text"
    yield "training", training
    yield "notes", "\n".join(facts.get("notes", []))


def _adapter_words(facts: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    yield "adapter", f"{facts['file']}, a {facts['form']}"
    yield "architecture", facts["architecture"] or ""
    yield "rank", str(facts["rank"])
    alpha = facts["alpha"]
    yield "alpha", f"{alpha:g}" if isinstance(alpha, float) else str(alpha)
    yield "parameters", f"{facts['parameters']:,}"
    targets = facts["targets"]
    yield "targets", ", ".join(map(str, targets)) if isinstance(targets, list) else str(targets)
    if facts.get("layers"):
        yield "layers", f"{len(facts['layers'])}, {facts['layers'][0]} to {facts['layers'][-1]}"
    yield "base", str(facts["base"] or "not said")
    if "fits" in facts:
        yield "fits", "yes" if facts["fits"] else f"no: {facts['refused']}"


def _data_words(facts: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    yield "data", facts["file"]
    yield "rows", f"{facts['rows']:,}"
    width = max([12, *map(len, facts["columns"])]) + 2
    for name in ("kinds", "columns"):
        yield name, "\n".join(f"{key:<{width}}{n:>9,}" for key, n in facts[name].items())
    yield "problems", "\n".join(facts["problems"])
    if "lengths" in facts:
        yield "tokens", f"{facts['tokens']:,}, of which {facts['trained_tokens']:,} are trained"
        least, median, p95, most = facts["lengths"].values()
        yield (
            "tokens a row",
            f"{least:,} to {most:,}, half up to {median:,}, 95 % up to {p95:,}",
        )
        yield "notes", "\n".join(facts["notes"])
    elif facts.get("refused"):
        yield "training", f"refused: {facts['refused']}"
    text = json.dumps(facts["first"], ensure_ascii=False)
    yield "first row", text if len(text) <= 600 else text[:600] + "..."
