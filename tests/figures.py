"""Measured figures of a test session, for a report: JSON lines in a file."""

import json
import os
from typing import Any


def record(what: str, **figures: Any) -> None:
    """Prints a line, shown by -rA or a failure, and appends it to the file WGTRAIN_FIGURES."""
    line = json.dumps({"what": what, **figures}, default=float)
    print(line)
    if path := os.environ.get("WGTRAIN_FIGURES"):
        with open(path, "a") as file:
            file.write(line + "\n")
