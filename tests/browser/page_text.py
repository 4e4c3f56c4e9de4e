"""Ids and masks of the shared vocabularies and templates; runs natively and in the page."""

import datetime
import json
from typing import Any

from wgtrain.data import load_rows, load_tokenizer, read_rows
from wgtrain.data.preview import Preview
from wgtrain.data.templates import Templating
from wgtrain.errors import WgtrainError
from wgtrain.files import parse_gguf

NAMES = ("gpt-2", "llama-bpe", "llama-spm", "qwen2")
NOW = datetime.datetime(2026, 7, 26)
STRANGE = [
    "",
    " ",
    "\t\n\r \u00a0\u2003\u3000 \u200b\ufeff",
    "don't I'LL we've 's 'S 'ſ İi ß",
    "a\u0301e\u0301 \u0928\u093f \U0001f469\u200d\U0001f4bb \U0001d54f \u4f60\u597d\uff01",
    "x = 12345678901 + 1.5e-10; // ½ ² ٣ ⅷ",
    "\x00\x01\x7f\x85\u2028\u2029end",
    "   many   spaces\n\n\n  and lines  \r\n\r\n tail   ",
    "ab" * 300 + " " * 70 + "é" * 100,
]
CHAT = [
    {"role": "user", "content": "Where is Größe?  "},
    {"role": "assistant", "content": "\n In Köln \U0001f600.\n"},
    {"role": "user", "content": "And <|im_end|> or </s>?"},
    {"role": "assistant", "content": "Nowhere."},
]
SYSTEM = {"role": "system", "content": "Be brief."}
TOOLS = [
    {"type": "function", "function": {"name": "f", "description": "d", "parameters": {"a": 1.5}}}
]


def ids(vocabulary: bytes, texts: list[str]) -> list[list[int]]:
    """The ids of each text."""
    tokenizer = load_tokenizer(parse_gguf(vocabulary, "vocab").metadata, "vocab")
    return [e.ids.tolist() for e in tokenizer.encode_batch([*texts, *STRANGE])]


def words(
    pieces: list[str], merges: list[str], names: list[str], texts: list[str]
) -> dict[str, list[list[int]]]:
    """The ids of each text under the words of each name."""
    metadata = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.tokens": pieces,
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.add_bos_token": False,
    }
    found = {}
    for name in names:
        tokenizer = load_tokenizer(metadata | {"tokenizer.ggml.pre": name}, "pairs")
        found[name] = [e.ids.tolist() for e in tokenizer.encode_batch(texts)]
    return found


def rows(vocabulary: bytes, template: str) -> list[Any]:
    """[tokens, targets] of conversations under a template, or what is said against them; and what
    a preview shows of rows under another.
    """
    metadata = {**parse_gguf(vocabulary, "vocab").metadata, "tokenizer.chat_template": template}
    tokenizer = load_tokenizer(metadata, "vocab")
    found: list[Any] = []
    for line in (
        {"messages": CHAT},
        {"messages": [SYSTEM, *CHAT]},
        {"messages": CHAT[:2], "tools": TOOLS},
        {"instruction": "Add.", "input": "1 2", "output": "3"},
        {"prompt": "Q: ü ", "completion": "A\n"},
        {"text": "plain text \U0001f600"},
    ):
        try:
            data = load_rows(json.dumps(line).encode(), tokenizer, seq_len=300, now=NOW)
            found += [[row.tokens.tolist(), row.targets.tolist()] for row in data.rows]
        except WgtrainError as error:
            found.append(str(error))
    own = Templating(
        "{% for m in messages %}{{ m.content }}{{ x }}{% endfor %}", {"x": "ü"}, now=NOW
    )
    lines = "\n".join(json.dumps(row) for row in ({"messages": CHAT}, {"text": "a<é>"}))
    shown = Preview(read_rows(lines.encode(), tokenizer, seq_len=300, chat=own), tokenizer)
    return [*found, shown.text, shown.colored, shown.html]
