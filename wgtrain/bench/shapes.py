"""The named shapes: models and the rows of a step, with everything random made from a seed.

Another trainer's process gets the fields of a `Shape` and makes the same weights, adapter and rows.
"""

import difflib
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from wgtrain.bench.random_model import RandomModel
from wgtrain.data import Batch, Row, make_batch
from wgtrain.engine.weight import MATRIX_TYPES
from wgtrain.errors import OptionError
from wgtrain.files import BLOCKS, Adapter

TYPES = MATRIX_TYPES  # that `weights.py` can make


@dataclass(frozen=True)
class Shape(RandomModel):
    """A model, `rows` rows of `length` tokens, and LoRA of `rank` on all seven linears."""

    rows: int = 1
    length: int = 128
    rank: int = 8

    @property
    def tokens(self) -> int:
        """T, all of them trained."""
        return self.rows * self.length

    @property
    def alpha(self) -> float:
        """Of the adapter."""
        return 2.0 * self.rank

    @property
    def values(self) -> dict[str, int | float]:
        """Its numbers by `Key.field`; the context holds a row."""
        return {**super().values, "context": max(self.length, self.context)}

    def adapter(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """A (rank, inputs) and B (outputs, rank) of each linear, B not zero, in the file's order of
        rows.
        """
        rng = np.random.default_rng(1)
        return {
            name: (
                rng.standard_normal((self.rank, inputs), np.float32) / np.float32(inputs**0.5),
                rng.standard_normal((outputs, self.rank), np.float32) * np.float32(0.02),
            )
            for name, (outputs, inputs) in self.config.linears().items()
        }

    def adapters(self, count: int) -> list[Adapter]:
        """So many of them, each of another strength, as equal ones lie in one place."""
        made = Adapter(self.architecture, self.rank, self.alpha, self.adapter())
        return [replace(made, alpha=made.alpha / (1 + i)) for i in range(count)]

    def stream(self) -> np.ndarray:
        """Random tokens, (rows, length + 1): inputs are all but the last of a row, targets all but
        the first.
        """
        rng = np.random.default_rng(2)
        return rng.integers(0, self.vocabulary, (self.rows, self.length + 1)).astype(np.int32)

    def batch(self) -> Batch:
        """The rows of `stream` as one batch."""
        stream = self.stream()
        return make_batch(
            [Row(row[:-1].astype(np.uint32), row[1:], i) for i, row in enumerate(stream, 1)]
        )

    def facts(self) -> dict[str, Any]:
        """What a record says of it."""
        return {
            "name": self.name,
            "architecture": self.architecture,
            "type": self.type,
            "layers": self.layers,
            "width": self.width,
            "vocabulary": self.vocabulary,
            "rows": self.rows,
            "length": self.length,
            "rank": self.rank,
            "targets": list(self.config.block_linears),
        }


def _qwen(name: str, type_: str) -> Shape:
    if name == "Qwen2.5-0.5B":
        sizes = ("qwen2", 896, 24, 14, 2, 64, 4864)
    else:
        sizes = ("qwen3", 2048, 28, 16, 8, 128, 6144)
    return Shape(f"{name}-{type_}", *sizes, 151_936, type_, rope_theta=1e6)


_SMOLLM2 = Shape("SmolLM2-135M", "llama", 576, 30, 9, 3, 64, 1536, 49_152, rope_theta=100_000.0)
# "tiny" says nothing of speed: it shows within seconds that everything runs.
SHAPES = {
    shape.name: shape
    for shape in (
        Shape("tiny", "llama", 32, 2, 4, 2, 8, 64, 96, rows=2, length=16),
        Shape("stories260K", "llama", 64, 5, 8, 4, 8, 172, 512),
        Shape("stories15M", "llama", 288, 6, 6, 6, 48, 768, 32_000, rows=4),
        _SMOLLM2,
        replace(_SMOLLM2, name="SmolLM2-135M-4x512", rows=4, length=512),
        # Products alone, by which weight types are compared: 512 x 2048 x 2048.
        Shape("square", "llama", 2048, 1, 16, 16, 128, 2048, 32, length=512),
        *(_qwen(name, t) for name in ("Qwen2.5-0.5B", "Qwen3-1.7B") for t in ("Q8_0", "Q4_0")),
    )
}


def find_shape(name: str, **changed: Any) -> Shape:
    """A named shape with fields changed; what is None stays. OptionError for what cannot be."""
    if name not in SHAPES:
        near = difflib.get_close_matches(name, SHAPES, 1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise OptionError(f"shape = {name!r}{hint}: allowed are {', '.join(SHAPES)}")
    given = {field: value for field, value in changed.items() if value is not None}
    type_ = given.get("type", "F32")
    if type_ not in TYPES:
        raise OptionError(f"type = {type_!r}: allowed are {', '.join(TYPES)}")
    for field in ("rows", "length", "rank", "layers"):
        if given.get(field, 1) < 1:
            raise OptionError(f"{field} = {given[field]}: a number above 0 is needed")
    shape = replace(SHAPES[name], **given)
    block = BLOCKS[shape.type].size
    lengths = (shape.width, shape.feed_forward, shape.heads * shape.head_size)
    wrong = [n for n in lengths if n % block]
    if wrong:
        raise OptionError(
            f"type = {shape.type!r}: rows of {wrong[0]} values, as {name} has them, are no whole "
            f"blocks of {block}"
        )
    return shape
