"""Chat templates as published, beside Transformers: texts equal, and which turns are told apart.

They are among llama.cpp's sources, or those of the folder WGTRAIN_TEMPLATES.
"""

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from _sources import llama_cpp_sources

from wgtrain.data import ChatTemplate
from wgtrain.errors import FileError

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))
# What ends a turn in one template or another; a model's own vocabulary says it in earnest.
STOPS = (
    "<eos> </s> <|im_end|> <|eot_id|> <|eom_id|> <end_of_turn> <|end|> <|endoftext|> <turn|> "
    "<|end_of_text|> <|END_OF_TURN_TOKEN|> <|return|> <|call|> <|user|> <|observation|> [e~[ "
    "<｜end▁of▁sentence｜> <|assistant_end|> <|role_end|> <|message_sep|> <seed:eos> <SPECIAL_12>"
).split()


def main(folder: Path, figures: dict[str, Any]) -> None:
    """Raises where a text differs, or where turns without tools cannot be told apart."""
    given = os.environ.get("WGTRAIN_TEMPLATES")
    templates = Path(given) if given else llama_cpp_sources(folder) / "models" / "templates"
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "tests/test_chat_families.py"]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, "WGTRAIN_TEMPLATES": str(templates)},
        capture_output=True,
        text=True,
    )
    figures["templates"] = len(list(templates.glob("*.jinja")))
    figures["tests of their texts"] = done.stdout.strip().splitlines()[-1]
    assert done.returncode == 0, done.stdout
    refused: dict[str, list[str]] = {}
    told: Counter[str] = Counter()
    for path in sorted(templates.glob("*.jinja")):
        for kind, reason in masked(path.read_text()).items():
            told[kind] += not reason
            if reason:
                refused.setdefault(kind, []).append(f"{path.stem}: {reason[:120]}")
    figures["templates in which the trained turns are told, by conversation"] = dict(told)
    figures["refused"] = refused
    lost = [text for text in refused.get("turns", []) if "refuses it" not in text]
    assert not lost, lost


def masked(text: str) -> dict[str, str]:
    """Why the turns of a conversation cannot be told, "" where they can; and checks them."""
    from test_chat_families import CONVERSATIONS, DAY

    out = {}
    tokens = {"bos_token": "<bos>", "eos_token": "<eos>"}
    with ChatTemplate(text, tokens=tokens, stops=STOPS, end="<eos>", now=DAY) as template:
        for kind, (messages, tools) in CONVERSATIONS.items():
            try:
                found = template.split(messages, tools)
            except FileError as error:
                out[kind] = str(error)
                continue
            out[kind] = ""
            answers = [m for m in messages if m["role"] == "assistant"]
            assert len(found.spans) == len(answers), (text[:80], kind)
            for (start, end), answer in zip(found.spans, answers, strict=True):
                assert (answer["content"] or "") in found.text[start:end], (text[:80], kind)
    return out
