"""What writing a merged model changed: base and adapters beside it, on the same rows."""

import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from wgtrain.data import Dataset
from wgtrain.infer.evaluation import perplexity, perplexity_in_words
from wgtrain.infer.model import AdapterLike, Model

ROW = 128  # tokens of a row, where nobody names rows
_KEPT = 16 << 20  # bytes of logits that are compared

# What is read where nobody names rows.
TEXTS = (
    "The harbour was quiet when the first boats came in. A woman in a blue coat stood at the end "
    "of the pier and counted the crates as they were lifted out: seven of herring, two of "
    'mackerel, and one that nobody had expected. "What is in that one?" she asked. The captain '
    'shrugged. "We found it on the line, ten miles out. It was heavier than it looks."',
    "Water boils at 100 degrees Celsius at sea level, and at about 71 degrees on the highest "
    "mountain, because the pressure of the air is lower there. The reason is simple: a liquid "
    "boils when the pressure of its vapour equals the pressure around it.",
    "def mean(values):\n    total = 0.0\n    for value in values:\n        total += value\n"
    "    return total / len(values)\n",
    "Question: Which planet is closest to the sun?\nAnswer: Mercury, which goes around it in 88 "
    "days.\nQuestion: Which is the largest?\nAnswer: Jupiter.",
)
JSONL = "".join(json.dumps({"text": text}) + "\n" for text in TEXTS).encode()


@dataclass(frozen=True)
class Reading:
    """What a model makes of some rows."""

    loss: float
    tokens: int
    logits: np.ndarray  # float32 (K, V), of the first positions


@dataclass(frozen=True)
class Effect:
    """Differences of the logits in parts of their range, and the perplexities; one of them None
    where no float is as large. `notes` say which rows are cut or left out.
    """

    largest: float
    mean: float
    positions: int  # whose logits were compared
    before: float | None
    after: float | None
    tokens: int  # whose losses were
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        before, after = (perplexity_in_words(value, 5) for value in (self.before, self.after))
        return (
            f"logits differ by at most {self.largest:.1e} of their range, {self.mean:.1e} on "
            f"average ({self.positions} positions); perplexity {before} with base and adapters, "
            f"{after} merged ({self.tokens:,} tokens)"
        )


async def read_rows(
    model: Model, rows: Dataset, adapters: Sequence[tuple[AdapterLike, float]] = ()
) -> Reading:
    """The loss of rows, and logits of the first tokens of some."""
    found = await model.aio.evaluate(rows, adapters, batch_size=1)
    room = max(_KEPT // (4 * model.config.vocabulary), 1)
    logits: list[np.ndarray] = []
    for row in rows.rows:
        if room:
            logits.append(await model.aio.logits(row.tokens[:room].tolist(), adapters))
            room -= len(logits[-1])
    return Reading(found.loss, found.trained_tokens, np.concatenate(logits))


def compare(before: Reading, after: Reading) -> Effect:
    """The effect by two readings of the same rows."""
    apart = np.abs(after.logits - before.logits)
    span = float(np.ptp(before.logits)) or 1.0
    return Effect(
        largest=float(apart.max()) / span,
        mean=float(apart.mean(dtype=np.float64)) / span,
        positions=len(before.logits),
        before=perplexity(before.loss),
        after=perplexity(after.loss),
        tokens=before.tokens,
    )
