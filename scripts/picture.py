"""Draws the README's picture from a demo's run folder: scripts/picture.py RUN docs/demo.svg"""

import json
import re
import sys
from pathlib import Path

from rich.console import Console

SHOWN = 3  # answers


def main(run: Path, picture: Path) -> None:
    """Renders what the demo measured as a terminal window."""
    summary = json.loads((run / "demo.json").read_text("utf-8"))
    console = Console(record=True, width=94, file=sys.stderr, highlight=False)
    console.print("$ scripts/demo", style="bold")
    for answer in summary["answers"][:SHOWN]:
        console.print(f"\n  prompt  {answer['prompt']}", markup=False)
        console.print(f"  base    {answer['base']}", style="yellow", markup=False)
        console.print(f"  tuned   {answer['tuned']}", style="green", markup=False)
    losses = " -> ".join(f"{loss:.2f}" for _, loss in summary["held_out_losses"])
    console.print(f"\n  held-out loss  {losses}")
    n = summary["prompts"]
    score = f"base {summary['base_right']}/{n}, tuned {summary['tuned_right']}/{n}"
    console.print(f"  right answers to held-out prompts: {score}", style="bold")
    svg = console.export_svg(title="wgtrain demo")
    svg = re.sub(r"\s*@font-face\s*\{[^}]*\}", "", svg)  # no request to anybody's font server
    picture.write_text(svg.replace("Fira Code", "ui-monospace, Menlo, Consolas"), "utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
