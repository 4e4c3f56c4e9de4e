"""Agreement with PEFT and llama.cpp: the largest distances that their tests measure."""

import json
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


def main(folder: Path, figures: dict[str, Any]) -> None:
    """Runs the tests of both judges, those of architectures with every one in every type; the
    figures of every case go to `folder`.
    """
    path = folder / "figures.jsonl"
    path.unlink(missing_ok=True)
    tests = [str(ROOT / "tests" / f"test_{of}.py") for of in ("peft", "llama_cpp", "architectures")]
    command = [sys.executable, "-m", "pytest", "-q", *tests]
    more = {"WGTRAIN_FIGURES": str(path), "WGTRAIN_EVERY_TYPE": "1"}
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, **more})
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    figures["cases"] = len(lines)
    figures |= worst(line for line in lines if line["what"] != "control")
    figures["architectures by type"] = by_type(lines)
    controls = [flat(line) for line in lines if line["what"] == "control"]
    figures["negative controls, smallest distances"] = [
        {
            "change": change,
            **{
                key: f"{min(c[key] for c in controls if c['change'] == change):.1e}"
                for key in ("distance loss", "distance norm", "distance update")
            },
        }
        for change in dict.fromkeys(c["change"] for c in controls)
    ]
    assert done.returncode == 0, "tests failed"


def by_type(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The architectures that were held against PEFT in each type."""
    names: dict[str, set[str]] = {}
    for line in lines:
        if line["what"] == "architecture":
            name, type = line["model"].split(" ")
            names.setdefault(type, set()).add(name)
    return [
        {"type": type, "architectures": len(found), "names": " ".join(sorted(found))}
        for type, found in names.items()
    ]


def worst(lines: Iterable[dict[str, Any]]) -> dict[str, list[dict[str, str]]]:
    """A table for each measured thing: by file type, the largest of each number over the models."""
    tables: dict[str, dict[str, dict[str, float]]] = {}
    for line in map(flat, lines):
        type = str(line.get("model", "")).split(" ")[-1]
        row = tables.setdefault(line["what"], {}).setdefault(type, {})
        for name, value in line.items():
            if isinstance(value, float) and name != "largest_change":
                row[name] = max(value, row.get(name, 0.0))
    return {
        f"{what}, worst": [
            {"type": type, **{name: f"{value:.1e}" for name, value in row.items()}}
            for type, row in rows.items()
        ]
        for what, rows in tables.items()
    }


def flat(line: dict[str, Any]) -> dict[str, Any]:
    """{"ours": {"loss": x}} -> {"ours loss": x}."""
    out: dict[str, Any] = {}
    for key, value in line.items():
        if isinstance(value, dict):
            out |= {f"{key} {inner}": x for inner, x in value.items()}
        else:
            out[key] = value
    return out
