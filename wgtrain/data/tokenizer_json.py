"""GGUF metadata -> the `tokenizer.json` of Hugging Face tokenizers, which natively and in a page
does the merging.

It covers plain text alone: special tokens and the space that SentencePiece puts in front are the
work of `wgtrain.data.tokenizer`, so that they follow llama.cpp's rules and no library's.
"""

import json
from array import array
from typing import Any

import numpy as np

from wgtrain.data.vocabulary import PRE_TOKENIZERS, Vocabulary, pairs, read_vocabulary
from wgtrain.errors import FileError
from wgtrain.files.source import shown

MOST_MERGES = 20_000_000  # characters; a vocabulary of 256k pieces has some 5 million
# The blanks up to the last line break among them. The package's engine gives a match up after
# 10,000,000 steps back, and a long run of blanks without a break takes as many to find none; so
# they are taken at once (`(?>`) where a break ends them, else line by line.
_BREAKS = r"\s*[\r\n]+"
_BREAKS_AT_ONCE = r"(?>\s+)(?<=[\r\n])|(?:(?>[^\S\r\n]*)[\r\n]+)+"
SPACE = "\u2581"  # how SentencePiece writes a space


def tokenizer_json(metadata: dict[str, Any], name: str = "model") -> str:
    """The `tokenizer.json` of a GGUF's metadata; FileError for what is broken or not supported."""
    return vocabulary_json(read_vocabulary(metadata, name), name)


def vocabulary_json(vocabulary: Vocabulary, name: str, once: bool = False) -> str:
    """The `tokenizer.json` of a checked vocabulary; with `once` its patterns split into the same
    words, and the `tokenizers` package does not give up over long runs of blanks.
    """
    settings = library_settings(vocabulary)
    if once and vocabulary.model == "gpt2":
        for step in settings["pre_tokenizer"]["pretokenizers"][:-1]:
            pattern = step["pattern"]
            pattern["Regex"] = pattern["Regex"].replace(_BREAKS, _BREAKS_AT_ONCE)
    pieces = vocabulary.pieces
    merges = [(pieces[a], pieces[b]) for a, b in all_merges(vocabulary, name).tolist()]
    settings["model"] |= {"vocab": vocabulary.ids, "merges": merges}
    return json.dumps(settings, ensure_ascii=False)


def all_merges(vocabulary: Vocabulary, name: str) -> np.ndarray:
    """The merges of a vocabulary as `Vocabulary.merges`, where need be from its scores."""
    if vocabulary.model == "llama" and not len(vocabulary.merges):
        return merges_by_score(vocabulary, name)
    return vocabulary.merges


def library_settings(vocabulary: Vocabulary) -> dict[str, Any]:
    """A `tokenizer.json` whose vocabulary and merges are empty."""
    spm = vocabulary.model == "llama"
    unknown = None if vocabulary.unk_id is None else vocabulary.pieces[vocabulary.unk_id]
    model: dict[str, Any] = {
        "type": "BPE",
        "dropout": None,
        "unk_token": unknown if spm else None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": spm,
        "ignore_merges": vocabulary.whole_words,
        "vocab": {},
        "merges": [],
    }
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": _replace_spaces() if spm else None,
        "pre_tokenizer": None if spm else _words(vocabulary.pre),
        "post_processor": None,
        "decoder": None,
        "model": model,
    }


def merges_by_score(vocabulary: Vocabulary, name: str) -> np.ndarray:
    """Every way to join two pieces into a third, in the order in which SentencePiece prefers
    them.

    There the best score goes first and, among equals, the leftmost pair. Here each pair has a
    rank of its own, so the ways to make one piece are ordered such that the leftmost pair wins
    where two overlap: that of x + y over y + z with x + y = y + z. Then y is both head and tail
    of the piece. Different pieces of equal score go by id, where SentencePiece looks at places
    alone; Llama's runs of spaces are such pieces, and come out the same.
    """
    ids, scores = vocabulary.ids, vocabulary.scores.tolist()
    order = sorted(range(len(scores)), key=lambda i: (-scores[i], i))
    merges = array("i")
    size = 0
    for i in order:
        piece = vocabulary.pieces[i]
        cuts = [cut for cut in range(1, len(piece)) if piece[:cut] in ids and piece[cut:] in ids]
        if len(cuts) > 1:
            cuts.sort(key=lambda cut: (_overlap(piece, cut), -cut))
        size += len(piece) * len(cuts)
        if size > MOST_MERGES:
            raise FileError(
                f"{name}: tokenizer.ggml.tokens[{i}] is {shown(piece)}: with it the ways to merge"
                f" pieces take more than {MOST_MERGES} characters"
            )
        for cut in cuts:
            merges.append(ids[piece[:cut]])
            merges.append(ids[piece[cut:]])
    return pairs(merges)


def _overlap(piece: str, cut: int) -> int:
    """-1 for a pair that must go before the other one of an overlap, 1 for one that must go
    after.
    """
    return piece.endswith(piece[:cut]) - piece.startswith(piece[cut:])


def _replace_spaces() -> dict[str, Any]:
    return {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}


def _words(pre: str) -> dict[str, Any]:
    splits = [
        {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}
        for regex in PRE_TOKENIZERS[pre]
    ]
    bytes_ = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": False,
        "use_regex": False,
    }
    return {"type": "Sequence", "pretokenizers": [*splits, bytes_]}
