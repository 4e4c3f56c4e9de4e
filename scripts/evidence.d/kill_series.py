"""Killed twenty times at random moments and resumed: bitwise the run that was left alone.

stories260K on wikisql, with dropout, accumulation and validation; SIGKILL, anywhere from the start
of the process to its end.
"""

import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
KILLS, SEED = 20, 20
OPTIONS = """--rank 4 --dropout 0.1 --batch-size 2 --grad-accum 2 --iters 60 --eval-every 20
--save-every 3 --learning-rate 1e-3 --valid 0.05"""


def main(folder: Path, figures: dict[str, Any]) -> None:
    """Raises where a checkpoint is unreadable or a run differs."""
    sys.path.insert(0, str(ROOT / "tests"))
    import kills
    import needs

    data = needs.data()
    rows = (data / "wikisql_train.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    (folder / "rows.jsonl").write_text("".join(rows[:200]), encoding="utf-8")
    model = data / "stories260K.gguf"
    files = ["--model", str(model), "--data", str(folder / "rows.jsonl")]
    command = [sys.executable, "-m", "wgtrain", "train"]
    found = kills.series(command, [*files, *OPTIONS.split()], folder, KILLS, SEED)
    figures["kills"] = len(found)
    figures["runs"] = max(kill["run"] for kill in found)
    figures["differences"] = 0  # else there would have been an error
    figures["moments"] = [
        {"run": kill["run"], "seconds": kill["after"], "checkpoints": kill["checkpoints"]}
        for kill in found
    ]
