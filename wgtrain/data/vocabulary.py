"""What a GGUF's metadata says about its tokenizer, checked: pieces, types, scores, merges,
special ids.
"""

from array import array
from dataclasses import dataclass
from typing import Any

import numpy as np

from wgtrain.errors import FileError
from wgtrain.files.source import shown

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
NO_ID = 0xFFFFFFFF  # how files write "there is none"
# A tokenizer.json's merges for model `llama`, where llama.cpp ignores tokenizer.ggml.merges.
EXACT_MERGES = "wgtrain.tokenizer.merges"
LONGEST_PIECE = 1024  # characters; finding the ways to merge a piece takes the square of its length

# Pieces that end a turn or a text, by the names models give them; the first found is the end of
# turn.
END_OF_TURN = (
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<end_of_turn>",
    "<|end_of_turn|>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "<end_of_utterance>",
    "<｜end▁of▁sentence｜>",
)
END_OF_MESSAGE = "<|eom_id|>"
# Tokens that chat templates may name, beside BOS, EOS and the unknown one.
SPECIAL = {
    "pad_token": "padding_token_id",
    "sep_token": "seperator_token_id",  # so GGUF spells it
    "cls_token": "cls_token_id",
    "mask_token": "mask_token_id",
}

# How `gpt2` vocabularies split text into words before merging. A pre-tokenizer is a list of
# patterns, each applied to the parts that the one before left; matches and what lies between them
# become parts.
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
CONTRACTION = r"'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD]"
_MODERN = (
    CONTRACTION
    + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_LLAMA3 = [_MODERN % "{1,3}"]
_QWEN2 = [_MODERN % ""]
_DEFAULT = [r"[\p{P}$+<=>^~|]+", _GPT2, r"\p{N}+", r"[0-9][0-9][0-9]"]
PRE_TOKENIZERS = {
    "default": _DEFAULT,
    "gpt-2": [_GPT2],
    "phi-2": [_GPT2],
    "olmo": [_GPT2],
    "smollm": [r"\p{N}", _GPT2],
    "llama-bpe": _LLAMA3,
    "llama3": _LLAMA3,
    "llama-v3": _LLAMA3,
    "falcon3": _LLAMA3,
    "qwen2": _QWEN2,
    "deepseek-r1-qwen": _QWEN2,
    "stablelm2": _QWEN2,
}
# A word that is a piece is taken whole, whatever the merges say, and rows begin with BOS.
WHOLE_WORDS = ("llama-bpe", "llama3", "llama-v3", "falcon3")


@dataclass(frozen=True)
class Vocabulary:
    """The tokenizer part of a GGUF's metadata; every id lies in range, every merge joins known
    pieces.
    """

    model: str  # "llama" (SentencePiece) or "gpt2" (byte-level BPE)
    pre: str  # of gpt2: a key of PRE_TOKENIZERS
    pieces: list[str]
    ids: dict[str, int]  # piece -> id
    types: np.ndarray  # (V,) int32
    scores: np.ndarray  # (V,) float32; of llama: the higher, the earlier a piece is merged
    merges: np.ndarray  # (M, 2) int32 ids of pairs to join, the earliest first; of llama empty
    # where the scores say it
    whole_words: bool
    bos_id: int | None
    eos_id: int | None
    eot_id: int | None
    unk_id: int | None
    stop_ids: frozenset[int]
    add_bos: bool
    add_space_prefix: bool
    chat_templates: dict[str, str]  # by name, "default" the one of all conversations
    special_tokens: dict[str, str]  # by the names templates know them by, as bos_token


def read_vocabulary(metadata: dict[str, Any], name: str) -> Vocabulary:
    """Checks the `tokenizer.*` keys; FileError naming the key and the value that is wrong."""
    get = _Getter(metadata, name)
    model = get.text("tokenizer.ggml.model")
    if model not in ("gpt2", "llama"):
        raise get.error("tokenizer.ggml.model", shown(model), "one of gpt2, llama")
    pre = get.text("tokenizer.ggml.pre", "default")
    if model == "gpt2" and pre not in PRE_TOKENIZERS:
        raise get.error("tokenizer.ggml.pre", shown(pre), "one of " + ", ".join(PRE_TOKENIZERS))
    pieces = _pieces(get)
    ids = {piece: i for i, piece in enumerate(pieces)}
    if len(ids) != len(pieces):
        first: dict[str, int] = {}
        i = next(i for i, piece in enumerate(pieces) if first.setdefault(piece, i) != i)
        raise get.error(f"tokenizer.ggml.tokens[{i}]", shown(pieces[i]), "no piece twice")
    n = len(pieces)
    types = _types(get, n)
    spm = model == "llama"
    bos = get.id("tokenizer.ggml.bos_token_id", n, 1 if spm and n > 1 else None)
    eos = get.id("tokenizer.ggml.eos_token_id", n, 2 if spm and n > 2 else None)
    eot = get.id("tokenizer.ggml.eot_token_id", n, None)
    eom = get.id("tokenizer.ggml.eom_token_id", n, ids.get(END_OF_MESSAGE))
    ends = [ids[piece] for piece in END_OF_TURN if piece in ids]
    if eot is None:
        eot = next(iter(ends), None)
    # Some files call these normal or user-defined, and text would then hold them by accident.
    types[[i for i in (eot, eom) if i is not None]] = CONTROL
    whole_words = not spm and pre in WHOLE_WORDS
    add_bos = get.flag("tokenizer.ggml.add_bos_token", spm or whole_words)
    if add_bos and bos is None:
        raise get.error("tokenizer.ggml.bos_token_id", "missing", f"an id below {n}: rows need one")
    unk = get.id("tokenizer.ggml.unknown_token_id", n, 0 if spm else None)
    special = {name: get.id(f"tokenizer.ggml.{key}", n, None) for name, key in SPECIAL.items()}
    special |= {"bos_token": bos, "eos_token": eos, "unk_token": unk}
    return Vocabulary(
        model=model,
        pre=pre,
        pieces=pieces,
        ids=ids,
        types=types,
        scores=_scores(get, n) if spm else np.zeros(n, np.float32),
        merges=_merges(get, ids, EXACT_MERGES if spm else "tokenizer.ggml.merges"),
        whole_words=whole_words,
        bos_id=bos,
        eos_id=eos,
        eot_id=eot,
        unk_id=unk,
        stop_ids=frozenset(i for i in (eos, eot, eom, *ends) if i is not None),
        add_bos=add_bos,
        add_space_prefix=spm and get.flag("tokenizer.ggml.add_space_prefix", True),
        chat_templates=_templates(get),
        special_tokens={name: pieces[i] for name, i in special.items() if i is not None},
    )


class _Getter:
    """Typed access to metadata."""

    def __init__(self, metadata: dict[str, Any], name: str) -> None:
        self.metadata, self.name = metadata, name

    def error(self, key: str, value: str, expected: str) -> FileError:
        return FileError(f"{self.name}: {key} is {value}; expected {expected}")

    def text(self, key: str, default: str | None = None) -> str:
        value = self.metadata.get(key, default)
        if not isinstance(value, str):
            raise self.error(key, "missing" if value is None else shown(value), "a text")
        return value

    def flag(self, key: str, default: bool) -> bool:
        value = self.metadata.get(key, default)
        if not isinstance(value, bool | np.bool_):
            raise self.error(key, shown(value), "true or false")
        return bool(value)

    def id(self, key: str, n: int, default: int | None) -> int | None:
        value = self.metadata.get(key)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int | np.integer):
            raise self.error(key, shown(value), f"an id below {n}")
        if value in (NO_ID, -1):
            return None
        if not 0 <= value < n:
            raise self.error(key, str(value), f"an id below {n}")
        return int(value)

    def texts(self, key: str) -> list[str]:
        value = self.metadata.get(key)
        if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
            shown = "missing" if value is None else f"a {type(value).__name__}"
            raise self.error(key, shown, "an array of strings")
        return value

    def numbers(self, key: str, kinds: str, n: int) -> np.ndarray | None:
        value = self.metadata.get(key)
        if value is None:
            return None
        if not isinstance(value, np.ndarray) or value.ndim != 1 or value.dtype.kind not in kinds:
            raise self.error(key, f"a {type(value).__name__}", "an array of numbers")
        if len(value) != n:
            raise self.error(
                key, f"of length {len(value)}", f"length {n}, as tokenizer.ggml.tokens"
            )
        return value


def _templates(get: _Getter) -> dict[str, str]:
    """The chat templates by name."""
    key = "tokenizer.chat_template"
    names = (
        get.texts("tokenizer.chat_templates") if "tokenizer.chat_templates" in get.metadata else []
    )
    found = {name: get.text(f"{key}.{name}", "") for name in names}
    found["default"] = get.text(key, "") or found.get("default", "")
    return {name: text for name, text in found.items() if text}


def _pieces(get: _Getter) -> list[str]:
    key = "tokenizer.ggml.tokens"
    pieces = [piece or f"[EMPTY_{i}]" for i, piece in enumerate(get.texts(key))]
    if not pieces:
        raise get.error(key, "empty", "at least one piece")
    for i, piece in enumerate(pieces):
        if len(piece) > LONGEST_PIECE:
            what = f"{shown(piece)}, of {len(piece)} characters"
            raise get.error(f"{key}[{i}]", what, f"at most {LONGEST_PIECE}")
    try:
        "".join(pieces).encode()
    except UnicodeEncodeError:
        i = next(i for i, piece in enumerate(pieces) if not _encodes(piece))
        raise get.error(f"{key}[{i}]", shown(pieces[i]), "valid Unicode") from None
    return pieces


def _encodes(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _types(get: _Getter, n: int) -> np.ndarray:
    key = "tokenizer.ggml.token_type"
    types = get.numbers(key, "iu", n)
    if types is None:
        return np.full(n, NORMAL, np.int32)
    wrong = np.flatnonzero((types < NORMAL) | (types > BYTE))
    if len(wrong):
        i = int(wrong[0])
        raise get.error(f"{key}[{i}]", str(types[i]), f"{NORMAL} to {BYTE}")
    return types.astype(np.int32)


def _scores(get: _Getter, n: int) -> np.ndarray:
    key = "tokenizer.ggml.scores"
    scores = get.numbers(key, "fiu", n)
    if scores is None:
        raise get.error(key, "missing", f"{n} numbers: they order the merges")
    with np.errstate(over="ignore"):
        single = scores.astype(np.float32)
    wrong = np.flatnonzero(np.isnan(single) | (np.isinf(single) & np.isfinite(scores)))
    if len(wrong):
        i = int(wrong[0])
        raise get.error(f"{key}[{i}]", str(scores[i]), "a number that f32 can hold")
    return single


def _merges(get: _Getter, ids: dict[str, int], key: str) -> np.ndarray:
    if key == EXACT_MERGES and key not in get.metadata:
        return pairs(array("i"))
    merges = array("i")
    for i, text in enumerate(get.texts(key)):
        cut = text.find(" ", 1)
        left, right = text[:cut], text[cut + 1 :]
        if cut < 0 or not right:
            raise get.error(f"{key}[{i}]", shown(text), "two pieces and a space between them")
        for piece in (left, right, left + right):
            if piece not in ids:
                expected = f"pieces of the vocabulary, and {shown(piece)} is none"
                raise get.error(f"{key}[{i}]", shown(text), expected)
        merges.append(ids[left])
        merges.append(ids[right])
    found = pairs(merges)
    first = np.unique(keys(found, len(ids)), return_index=True)[1]
    return found[np.sort(first)]  # of a merge listed twice the first counts


def pairs(flat: array) -> np.ndarray:
    """Left and right ids that follow one another as (M, 2) int32."""
    return np.array(flat, np.int32).reshape(-1, 2)


def keys(merges: np.ndarray, vocab_size: int) -> np.ndarray:
    """One number for each pair of ids: left * V + right, (M,) float64 and exact, as JavaScript's
    numbers are.
    """
    return merges[:, 0] * float(vocab_size) + merges[:, 1]
