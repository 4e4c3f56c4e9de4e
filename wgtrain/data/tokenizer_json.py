"""GGUF metadata -> the `tokenizer.json` of Hugging Face tokenizers, which natively and in a page
does the merging.

It covers plain text alone: special tokens and the space that SentencePiece puts in front are the
work of `wgtrain.data.tokenizer`, so that they follow llama.cpp's rules and no library's.
"""

import json
from typing import Any

from wgtrain.data.vocabulary import Vocabulary, read_vocabulary

# The blanks up to the last line break among them. The package's engine gives a match up after
# 10,000,000 steps back, and a long run of blanks without a break takes as many to find none; so
# they are taken at once (`(?>`) where a break ends them, else line by line.
_BREAKS = r"\s*[\r\n]+"
_BREAKS_AT_ONCE = r"(?>\s+)(?<=[\r\n])|(?:(?>[^\S\r\n]*)[\r\n]+)+"
SPACE = "\u2581"  # how SentencePiece writes a space


def tokenizer_json(metadata: dict[str, Any], name: str = "model") -> str:
    """The `tokenizer.json` of a GGUF's metadata; FileError for what is broken or not supported."""
    return vocabulary_json(read_vocabulary(metadata, name))


def vocabulary_json(vocabulary: Vocabulary) -> str:
    """The `tokenizer.json` of a checked vocabulary."""
    settings = library_settings(vocabulary)
    settings["model"] |= {"vocab": vocabulary.ids, "merges": merge_pieces(vocabulary)}
    return json.dumps(settings, ensure_ascii=False)


def merge_pieces(vocabulary: Vocabulary) -> list[tuple[str, str]]:
    """The merges as pairs of pieces."""
    pieces = vocabulary.pieces
    left, right = vocabulary.merges.T.tolist()
    return [(pieces[a], pieces[b]) for a, b in zip(left, right, strict=True)]


def library_settings(vocabulary: Vocabulary, at_once: bool = False) -> dict[str, Any]:
    """A `tokenizer.json` whose vocabulary and merges are empty. With `at_once` its patterns split
    into the same words, and the `tokenizers` package does not give up over long runs of blanks.
    """
    bytes_ = vocabulary.model == "gpt2"
    unknown = None if vocabulary.unk_id is None else vocabulary.pieces[vocabulary.unk_id]
    patterns = vocabulary.patterns
    if at_once:
        patterns = [pattern.replace(_BREAKS, _BREAKS_AT_ONCE) for pattern in patterns]
    model: dict[str, Any] = {
        "type": "BPE",
        "dropout": None,
        "unk_token": unknown if vocabulary.model == "llama" else None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": not bytes_,
        "ignore_merges": vocabulary.whole_words,
        "vocab": {},
        "merges": [],
    }
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": None if bytes_ else _replace_spaces(),
        "pre_tokenizer": _words(patterns) if bytes_ else None,
        "post_processor": None,
        "decoder": None,
        "model": model,
    }


def _replace_spaces() -> dict[str, Any]:
    return {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}


def _words(patterns: list[str]) -> dict[str, Any]:
    splits = [
        {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}
        for regex in patterns
    ]
    bytes_ = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": False,
        "use_regex": False,
    }
    return {"type": "Sequence", "pretokenizers": [*splits, bytes_]}
