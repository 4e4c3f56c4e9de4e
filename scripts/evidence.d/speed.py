"""One training step of the stories15M shape, beside PEFT's on the same processor.

`wgtrain bench` measures; see docs/performance.md for more of it.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any


def main(folder: Path, figures: dict[str, Any]) -> None:
    """Times whole steps in turn; the record itself stays in `folder`."""
    out = folder / "step.json"
    command = ["bench", "step", "--shape", "stories15M", "--vs", "peft", "--out", str(out)]
    subprocess.run([sys.executable, "-m", "wgtrain", *command], check=True)
    record = json.loads(out.read_text())
    (peft,) = record["vs"]
    figures |= {
        "command": record["command"],
        "wgtrain, seconds a step": record["seconds"],
        "PEFT, seconds a step": peft["seconds"],
        "ratio, median of pairs": peft["ratio"]["median"],
        "share of the best product": record["share_of_ceiling"],
        "host microseconds a dispatch": 1e6 * record["host_seconds_per_dispatch"],
        "bytes on the GPU": record["memory"]["gpu"],
    }
