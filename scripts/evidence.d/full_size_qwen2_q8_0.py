"""Full size: Qwen2.5-0.5B as Q8_0, within 0.9 GiB of GPU memory and 700 MB of the process."""

from pathlib import Path
from typing import Any

from _full_size import Real, measure

MODEL = Real(
    "Qwen2.5-0.5B-Q8_0", "qwen2", 896, 24, 14, 2, 64, 4864, 151_936, "Q8_0", rope_theta=1e6
)


def main(folder: Path, figures: dict[str, Any]) -> None:
    """Two steps of 512 tokens."""
    measure(MODEL, figures)
    assert figures["on the device, bytes"] <= 0.9 * 2**30, figures
    assert figures["process above GPU memory, bytes"] <= 700e6, figures
