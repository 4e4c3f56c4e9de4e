"""Makes wgtrain/data/ollama_templates.json: chat templates in Go's language for Ollama's Modelfile.

The table is that of npm's @huggingface/ollama-utils, fetched at one version, or read in a folder
that holds the package. Each of its templates is rendered by Go's own text/template
(tests/ollama_template.go) for a few conversations. Those that come with a chat template of
transformers are kept where both make the same of a system message and three turns, or of the turns
where the template takes no system message; those that come without are kept as they are. What Go
made is stored, so that a model's own template can be held to it where there is no Go.

    .venv/bin/python scripts/ollama_templates.py [FOLDER]

Needs npm, node and go.
"""

import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
from datetime import datetime
from pathlib import Path
from typing import Any

from wgtrain.chat.template import Template

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))
OUT = ROOT / "wgtrain" / "data" / "ollama_templates.json"
PACKAGE, VERSION = "@huggingface/ollama-utils", "0.0.18"
# Hands out the tables of the built package; its one dependency is not needed for them.
READ = """
const fs = require("fs");
const source = fs.readFileSync(process.argv[1] + "/dist/index.js", "utf8");
const made = { exports: {} };
new Function("require", "module", "exports", source +
  "\\nmodule.exports = { map: OLLAMA_CHAT_TEMPLATE_MAPPING, custom: CUSTOM_TEMPLATE_MAPPING };"
)(() => ({}), made, made.exports);
const custom = made.exports.custom.map((entry) => entry({ match: () => true }));
process.stdout.write(JSON.stringify({ map: made.exports.map, custom }));
"""
SYSTEM = {"role": "system", "content": "Sys-tem"}
TURNS = [
    {"role": "user", "content": "Ask-1"},
    {"role": "assistant", "content": "Say-1"},
    {"role": "user", "content": "Ask-2"},
]
CONVERSATIONS = [[SYSTEM, *TURNS], TURNS, [SYSTEM, TURNS[0]], TURNS[:1]]
BOS = "\x01"  # not in any text
LIKELY_EOS = ("</s>", "<|endoftext|>", "<|im_end|>", "<|eot_id|>")
BEGIN = 128  # characters by which the package knows a template


def main() -> None:
    """Writes the file and tells how many there are."""
    from needs import render_go

    with tempfile.TemporaryDirectory() as temporary:
        package = Path(sys.argv[1]) if len(sys.argv) > 1 else fetch(Path(temporary))
        about = json.loads((package / "package.json").read_text())
        assert (about["name"], about["version"]) == (PACKAGE, VERSION), about["version"]
        node = ["node", "-e", READ, str(package)]
        tables = json.loads(subprocess.run(node, capture_output=True, check=True).stdout)
        terms = (package / "LICENSE").read_text()
    entries = [entry_of(row) for row in tables["map"]]
    for number, row in enumerate(tables["custom"], 1):
        stop = [row["stop"]] if row.get("stop") else []
        alone = {"begin": "", "tokens": [], "own": None}
        entries.append(
            {"model": f"custom {number}", "template": row["ollamaTmpl"], "stop": stop, **alone}
        )
    tasks = [
        {"template": entry["template"], "messages": messages}
        for entry in entries
        for messages in CONVERSATIONS
    ]
    answers = render_go(tasks)
    kept: list[dict[str, Any]] = []
    left: dict[str, str] = {}
    for number, entry in enumerate(entries):
        made = answers[number * len(CONVERSATIONS) : (number + 1) * len(CONVERSATIONS)]
        own = entry.pop("own")
        error = next((answer["error"] for answer in made if answer.get("error")), None)
        texts = [answer["text"] for answer in made]
        if error or (own is not None and (error := differs(own, entry, texts))):
            left[entry["model"]] = error
        elif all((entry["template"], entry["begin"]) != (k["template"], k["begin"]) for k in kept):
            kept.append(entry | {"renders": texts})
    content = {
        "package": f"{PACKAGE} {VERSION}",
        "made": "by scripts/ollama_templates.py",
        "license": terms,
        "conversations": CONVERSATIONS,
        "entries": kept,
        "left_out": left,
    }
    OUT.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"{OUT.relative_to(ROOT)}: {len(kept)} templates; {len(left)} left out")


def fetch(folder: Path) -> Path:
    """The package, as npm has it."""
    command = ["npm", "pack", "--silent", f"{PACKAGE}@{VERSION}"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    with tarfile.open(folder / done.stdout.split()[-1]) as archive:
        archive.extractall(folder, filter="data")
    return folder / "package"


def entry_of(row: dict[str, Any]) -> dict[str, Any]:
    """A row of the table; `own` is the chat template that it stands for."""
    ollama = row["ollama"]
    return {
        "model": row["model"].removeprefix("library/"),
        "begin": row["gguf"][:BEGIN],
        "tokens": ollama["tokens"],
        "template": ollama["template"],
        "stop": (ollama.get("params") or {}).get("stop", []),
        "own": row["gguf"],
    }


def differs(own: str, entry: dict[str, Any], texts: list[str]) -> str | None:
    """How a chat template differs from what Go made of a system message and three turns, or where
    it takes no system message, of the turns.
    """
    for eos in (*entry["tokens"], *LIKELY_EOS):
        template = Template(
            own, tokens={"bos_token": BOS, "eos_token": eos}, now=datetime(2024, 1, 1)
        )
        tried = [template.attempt(messages, {}, prompt=True) for messages in CONVERSATIONS[:2]]
        made = [(found, text) for found, text in zip(tried, texts, strict=False) if found]
        if not made:
            return "cannot be rendered"
        if made[0][0].removeprefix(BOS) == made[0][1]:
            return None
    return "writes another prompt"


if __name__ == "__main__":
    if missing := [name for name in ("npm", "node") if shutil.which(name) is None]:
        sys.exit(f"{', '.join(missing)} is needed")
    main()
