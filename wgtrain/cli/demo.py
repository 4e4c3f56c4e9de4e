"""`wgtrain demo`: a small model that chats learns to answer with JSON records.

Base and rows are made by scripts/make_demo.py. Training is that of `wgtrain train`, in a run folder
of its own.
"""

import json
import shlex
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

    from wgtrain.data.jsonl import Row
    from wgtrain.infer.model import Model

FILES = Path(__file__).parents[1] / "demo_files"
BASE, TEST = FILES / "base.gguf", FILES / "test.jsonl"
SETTINGS: dict[str, Any] = {
    "rank": 8,
    "alpha": 16.0,
    "epochs": 2,
    "batch_size": 8,
    "learning_rate": 4e-3,
    "warmup_ratio": 0.1,
    "seq_len": 128,
    "eval_every": 35,
    "save_every": 70,
}
MAX_ANSWER = 48  # tokens; right answers have fewer
SHOWN = 5  # held-out prompts that are shown with their answers


@dataclass(frozen=True)
class Exam:
    """Held-out prompts as text and as tokens, and the right answers."""

    texts: list[str]
    prompts: list[list[int]]
    wanted: list[str]


def run_demo(
    out: str | None = None,
    adapter_index: int | None = None,
    console: "Console | None" = None,
    **settings: Any,
) -> bool:
    """Asks the base, trains, asks again, compares; False if interrupted.

    `out`: the run folder, runs/<time>-demo if None. `settings` go over those of the demo.
    """
    from rich.console import Console

    from wgtrain.api import load_model
    from wgtrain.runs import session
    from wgtrain.runs.folder import check_free

    started = time.monotonic()
    console = console or Console(highlight=False)
    out = out or f"runs/{time.strftime('%Y%m%d-%H%M%S')}-demo"
    check_free(out)
    settings = SETTINGS | settings

    def say(text: str = "", style: str = "") -> None:
        console.print(text, style=style, markup=False, soft_wrap=True)

    with load_model(BASE, adapter_index=adapter_index) as model:
        exam = load_exam(model)
        say("A small language model that chats will learn to answer with JSON records.", "bold")
        say(f"model  {BASE.name}: {_parameters(model):,} parameters, {BASE.stat().st_size:,} bytes")
        say(f"GPU    {model.device.info.name} ({model.device.info.backend})")
        say(f"exam   {len(exam.texts)} held-out prompts about people that no training row names")
        say()
        say("1. What the base answers", "bold")
        base = _answer(console, model, exam)
        for i in range(SHOWN):
            say(f"  prompt  {exam.texts[i]}")
            say(f"  base    {base[i]}\n", "yellow")

        say("2. Training an adapter", "bold")
        files = {"model": str(BASE), "data": str(FILES), "out": out}
        if not session.start({**files, **settings, "adapter_index": adapter_index}, say):
            return False
        losses = held_out_losses(Path(out))
        say("held-out loss " + ", ".join(f"{loss:.3f} at step {step}" for step, loss in losses))
        say()
        say("3. What the tuned model answers", "bold")
        adapter = Path(out) / "adapter.gguf"
        tuned = _answer(console, model, exam, [(adapter, 1.0)])

    right = [[is_right(*pair) for pair in zip(a, exam.wanted, strict=True)] for a in (base, tuned)]
    for i in range(SHOWN):
        say(f"  prompt  {exam.texts[i]}")
        say(f"  base    {base[i]}", "yellow")
        say(f"  tuned   {tuned[i]}", "green" if right[1][i] else "red")
        say("" if right[1][i] else f"  wanted  {exam.wanted[i]}\n")
    n, seconds = len(exam.texts), time.monotonic() - started
    score = f"base {sum(right[0])}/{n}, tuned {sum(right[1])}/{n}"
    say(f"Right answers to {n} held-out prompts: {score}", "bold")
    say(f"The adapter, for llama.cpp and others: {adapter} ({seconds:.0f} s in all)")
    say(f"Talk to it: wgtrain chat --adapter {shlex.quote(str(out))}")
    summary = {
        "prompts": n,
        "base_right": sum(right[0]),
        "tuned_right": sum(right[1]),
        "held_out_losses": losses,
        "seconds": seconds,
        "answers": [
            {"prompt": prompt, "wanted": wanted, "base": before, "tuned": after}
            for prompt, wanted, before, after in zip(
                exam.texts, exam.wanted, base, tuned, strict=True
            )
        ],
    }
    (Path(out) / "demo.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    return True


def load_exam(model: "Model") -> Exam:
    """The held-out rows; prompts end exactly where training would begin to learn the answer."""
    from wgtrain.api import load_dataset

    rows: Sequence[Row] = load_dataset(TEST, model, SETTINGS["seq_len"]).rows
    turns = [json.loads(line)["messages"] for line in TEST.read_text("utf-8").splitlines()]
    first = [int((row.targets >= 0).argmax()) for row in rows]
    return Exam(
        [user["content"] for user, _ in turns],
        [row.tokens[: n + 1].tolist() for row, n in zip(rows, first, strict=True)],
        [assistant["content"] for _, assistant in turns],
    )


def _answer(
    console: "Console", model: "Model", exam: Exam, adapters: Sequence[tuple[Any, float]] = ()
) -> list[str]:
    """Greedy answers to all prompts at once."""
    with console.status(f"answering {len(exam.prompts)} prompts ..."):
        said = model.complete(exam.prompts, MAX_ANSWER, adapters)
    decode: Callable[[list[int]], str] = model.tokenizer.decode
    return [decode(ids) for ids in said]


def _parameters(model: "Model") -> int:
    sizes = [tensor.shape for tensor in model.gguf.tensors.values()]
    return sum(shape[0] * (shape[1] if len(shape) == 2 else 1) for shape in sizes)


def held_out_losses(folder: Path) -> list[tuple[int, float]]:
    """(step, mean loss) of each validation of a run."""
    lines = map(json.loads, (folder / "metrics.jsonl").read_text("utf-8").splitlines())
    return [(line["step"], line["eval_loss"]) for line in lines if "eval_loss" in line]


def is_right(answer: str, wanted: str) -> bool:
    """Whether an answer is the wanted JSON record: same keys in the same order, values and types.

    White space around and in the record does not matter; anything else before or after it does.
    """
    try:
        said, right = _pairs(answer), _pairs(wanted)
    except ValueError:
        return False
    return said == right and [type(v) for _, v in said] == [type(v) for _, v in right]


def _pairs(text: str) -> list[tuple[str, Any]]:
    """The (key, value) pairs of one JSON object; ValueError for any other text."""
    pairs = json.loads(text, object_pairs_hook=list)
    if not text.lstrip().startswith("{"):
        raise ValueError("not an object")
    return list(pairs)
