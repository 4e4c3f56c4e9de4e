"""The files that a run was started with, as its summary has them: where they are, and were."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from wgtrain.runs.paths import native

NAMES = ("model", "data", "valid", "init_adapter")
INPUTS = (*NAMES, "test")  # the last is found by the place of the data


def read_entries(raw: Any) -> dict[str, dict[str, Any]]:
    """The `inputs` of a summary, checked; ValueError, KeyError or TypeError for other things."""
    entries = {}
    for name, entry in raw.items():
        if name not in INPUTS:
            raise ValueError(f"inputs: {name!r} is no input")
        texts = [key for key in ("path", "relative", "sha256", "fingerprint") if key in entry]
        if not all(isinstance(entry[key], str) and "\0" not in entry[key] for key in texts):
            raise ValueError(f"inputs: {name}: not usable")
        for key in {"path", "relative"} & set(texts):
            native(entry[key])
        entries[name] = {**entry, "path": entry["path"]}
    return entries


def places(entry: Mapping[str, Any], folder: Path) -> list[Path]:
    """Where a file of the run in `folder` may be: where it was, or as it lay beside the run."""
    found = [native(entry["path"])]
    if "relative" in entry:
        found.append(Path(os.path.normpath(folder / native(entry["relative"]))))
    return found
