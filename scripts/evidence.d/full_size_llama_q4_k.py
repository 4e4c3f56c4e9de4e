"""Full size: Llama-3.2-1B as Q4_K."""

from pathlib import Path
from typing import Any

from _full_size import Real, measure

MODEL = Real(
    "Llama-3.2-1B-Q4_K", "llama", 2048, 16, 32, 8, 64, 8192, 128_256, "Q4_K", rope_theta=5e5,
    vocab="llama-bpe",
)  # fmt: skip


def main(folder: Path, figures: dict[str, Any]) -> None:
    """Two steps of 512 tokens."""
    measure(MODEL, figures)
