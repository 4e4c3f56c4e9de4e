"""Runs the parts beside this file, each in a process of its own, and writes their figures.

A part is `NAME.py` with a docstring, whose first line is its title, and `main(folder, figures)`
that fills the dict `figures` with JSON values, or with lists of flat dicts, which become tables. It
raises where a figure misses its bound; what it found until then is written all the same. `folder`
is its own, for what it makes on the way. Written are `runs/evidence/NAME.json` and
`runs/evidence/README.md`, over all parts so far.
"""

import argparse
import ast
import datetime
import importlib
import json
import platform
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
OUT = ROOT / "runs" / "evidence"
PARTS = sorted(path.stem for path in HERE.glob("*.py") if not path.stem.startswith("_"))


def title(part: str) -> str:
    """The first line of a part's docstring, read without running it."""
    text = ast.get_docstring(ast.parse((HERE / f"{part}.py").read_text())) or part
    return text.splitlines()[0]


def surroundings() -> dict[str, Any]:
    """What a figure depends on: commit, machine, adapter."""
    from wgtrain.gpu import list_adapters

    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True
    )
    return {
        "commit": commit.stdout.strip(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
        "adapter": next((f"{a.name} ({a.backend})" for a in list_adapters()), None),
    }


def run_part(part: str) -> None:
    """Runs one part in this process and writes its JSON; its failure is written, then raised."""
    folder = OUT / part
    folder.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    figures: dict[str, Any] = {}
    record = {"part": part, "title": title(part), "status": "failed", "figures": figures}
    try:
        importlib.import_module(part).main(folder, figures)
        record["status"] = "passed"
    except BaseException as error:
        record["error"] = "".join(traceback.format_exception_only(error)).strip()
        raise
    finally:
        record |= {"seconds": round(time.monotonic() - start, 1), **surroundings()}
        (OUT / f"{part}.json").write_text(json.dumps(record, indent=2, default=str) + "\n")


def table(rows: list[dict[str, Any]]) -> str:
    """A list of flat dicts as a markdown table, with the columns of all rows."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    lines = [columns, ["---"] * len(columns)]
    lines += [[str(row.get(column, "")) for column in columns] for row in rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def report(records: list[dict[str, Any]]) -> str:
    """The figures of all parts as markdown."""
    text = "# Evidence\n"
    for record in records:
        text += f"\n## {record['title']}\n\n`{record['part']}`: **{record['status']}**, "
        text += f"{record['seconds']} s, commit {record['commit']}, {record['date']}, "
        text += f"{record['adapter']}\n"
        if "error" in record:
            text += f"\n```\n{record['error']}\n```\n"
        for name, value in record["figures"].items():
            if isinstance(value, list) and value and all(isinstance(row, dict) for row in value):
                text += f"\n### {name}\n\n{table(value)}\n"
            else:
                text += f"\n- {name}: {value}\n"
    return text


def main() -> int:
    """The command; 0 where every part passed."""
    parser = argparse.ArgumentParser(prog="scripts/evidence", description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help="which parts to run; none = all")
    parser.add_argument("--list", action="store_true", help="show the parts and stop")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        run_part(options.one)
        return 0
    if options.list:
        for part in PARTS:
            print(f"{part:20} {title(part)}")
        return 0
    if unknown := sorted(set(options.parts) - set(PARTS)):
        parser.error(f"no such part: {', '.join(unknown)}; there are: {', '.join(PARTS) or 'none'}")
    failed = []
    OUT.mkdir(parents=True, exist_ok=True)
    for part in options.parts or PARTS:
        print(f"== {part}: {title(part)}", flush=True)
        if subprocess.run([sys.executable, HERE, "--one", part]).returncode:
            failed.append(part)
        records = [json.loads(path.read_text()) for path in sorted(OUT.glob("*.json"))]
        (OUT / "README.md").write_text(report(records))
    if (OUT / "README.md").exists():
        print((OUT / "README.md").read_text())
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
