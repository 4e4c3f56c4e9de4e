"""Tokenizers of tests: the shared vocabularies, and small ones made by hand."""

import functools
from typing import Any

import needs
import numpy as np

from wgtrain.data import Tokenizer, load_tokenizer
from wgtrain.data.tokenizer import byte_alphabet
from wgtrain.files import parse_gguf

NAMES = ("gpt-2", "llama-bpe", "llama-spm", "qwen2")


@functools.cache
def metadata(name: str) -> dict[str, Any]:
    """The metadata of a shared vocabulary; copy before changing."""
    path = needs.data() / "vocab" / f"ggml-vocab-{name}.gguf"
    return parse_gguf(path.read_bytes(), path.name).metadata


@functools.cache
def tokenizer(name: str) -> Tokenizer:
    """The tokenizer of a shared vocabulary."""
    return load_tokenizer(metadata(name), name)


def spm(*pieces: str, specials: tuple[str, ...] = (), **more: Any) -> dict[str, Any]:
    """SentencePiece metadata: <unk>, <s>, </s>, the specials, 256 bytes, letters, then `pieces`
    by rank.

    A keyword replaces a key of `tokenizer.ggml`.
    """
    control = ["<unk>", "<s>", "</s>", *specials]
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    letters = ["\u2581", *map(chr, range(ord("!"), 127))]
    tokens = [*control, *bytes_, *letters, *pieces]
    types = [2] + [3] * (len(control) - 1) + [6] * 256 + [1] * (len(letters) + len(pieces))
    n_plain = len(control) + 256
    scores = [0.0] * n_plain + [-float(i) for i in range(len(tokens) - n_plain)]
    scores[n_plain : n_plain + len(letters)] = [-1e6] * len(letters)
    base = {
        "model": "llama",
        "tokens": tokens,
        "scores": np.array(scores, np.float32),
        "token_type": np.array(types, np.int32),
        "bos_token_id": np.uint32(1),
        "eos_token_id": np.uint32(2),
        "unknown_token_id": np.uint32(0),
    }
    return {f"tokenizer.ggml.{key}": value for key, value in {**base, **more}.items()}


def bpe(*merges: str, specials: tuple[str, ...] = ("<|end|>",), **more: Any) -> dict[str, Any]:
    """Byte-level metadata: 256 bytes, what `merges` make, then control pieces; `add_bos_token`
    false.
    """
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = [chr(byte) for byte in plain] + [chr(256 + i) for i in range(256 - len(plain))]
    tokens = [*letters, *(merge.replace(" ", "") for merge in merges), *specials]
    base = {
        "model": "gpt2",
        "pre": "qwen2",
        "tokens": tokens,
        "token_type": np.array([1] * (len(tokens) - len(specials)) + [3] * len(specials), np.int32),
        "merges": list(merges),
        "eos_token_id": np.uint32(len(tokens) - 1),
        "add_bos_token": False,
    }
    return {f"tokenizer.ggml.{key}": value for key, value in {**base, **more}.items()}


@functools.cache
def pairs(text: str = "") -> dict[str, Any]:
    """Byte-level metadata in which any two bytes (of `text`) merge, so that where words end always
    shows; give it a `pre`.
    """
    letters = bpe()["tokenizer.ggml.tokens"][:256]
    known = byte_alphabet()
    some = [a for a in letters if not text or known[a] in text.encode()]
    merges = [f"{a} {b}" for a in some for b in some]
    return bpe(*merges, specials=("<|end|>", "<|x|>"))
