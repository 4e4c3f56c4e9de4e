"""Full size: Qwen2.5-0.5B as Q4_K_M files of it are mixed, Q5_0 with Q8_0 and Q4_K."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from _full_size import measure
from full_size_qwen2_q8_0 import MODEL

# Only rows of ffn_down, 4864 values, are whole blocks of a K-quant.
TYPES = {"token_embd.weight": "Q8_0"}
for layer in range(MODEL.layers):
    TYPES[f"blk.{layer}.ffn_down.weight"] = "Q4_K"
    TYPES[f"blk.{layer}.attn_v.weight"] = "Q8_0" if layer % 2 else "Q5_0"


def main(folder: Path, figures: dict[str, Any]) -> None:
    """Two steps of 512 tokens."""
    measure(
        replace(MODEL, name="Qwen2.5-0.5B-mix", type="Q5_0", types=tuple(TYPES.items())), figures
    )
