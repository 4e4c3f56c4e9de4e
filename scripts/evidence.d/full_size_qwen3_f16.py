"""Full size: Qwen3-0.6B as F16."""

from pathlib import Path
from typing import Any

from _full_size import Real, measure

MODEL = Real("Qwen3-0.6B-F16", "qwen3", 1024, 28, 16, 8, 128, 3072, 151_936, "F16", rope_theta=1e6)


def main(folder: Path, figures: dict[str, Any]) -> None:
    """Two steps of 512 tokens."""
    measure(MODEL, figures)
