"""What a GGUF's metadata says about its tokenizer, checked: pieces, types, scores, merges,
special ids.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from wgtrain.data.merges import LONGEST_PIECE, first_of_each, listed_merges, scored_merges
from wgtrain.data.pretokenizers import PRE_TOKENIZERS
from wgtrain.data.special_tokens import (
    BYTE,
    END_OF_MESSAGE,
    END_OF_TURN,
    FILL_IN_KEYS,
    NORMAL,
    end_ids,
    stripping,
)
from wgtrain.errors import FileError
from wgtrain.files.source import shown

NO_ID = 0xFFFFFFFF  # how files write "there is none"
# Tokens that chat templates may name, beside BOS, EOS and the unknown one; `seperator` is GGUF's.
SPECIAL = {
    "pad_token": "padding",
    "sep_token": "seperator",
    "cls_token": "cls",
    "mask_token": "mask",
}
MODELS = ("gpt2", "llama", "gemma4")
_OTHERS = {
    "t5": "unigram, of T5 and some embedders",
    "bert": "WordPiece, of encoders",
    "rwkv": "of RWKV, whose architecture is not supported either",
    "plamo2": "of PLaMo 2, whose architecture is not supported either",
    "no_vocab": "there is none in this file",
    "none": "there is none in this file",
}
# What a folder's tokenizer.json says, for which llama.cpp has no keys or others: the merges as
# (M, 2) ids, the patterns of a pre-tokenizer and whether its words that are pieces are taken whole,
# whether text is composed (NFC) first, and the ids of special tokens that swallow the blanks before
# and behind them.
EXACT_MERGES = "wgtrain.tokenizer.merges"
EXACT_PATTERNS = "wgtrain.tokenizer.patterns"
WHOLE_WORDS = "wgtrain.tokenizer.whole_words"
COMPOSED = "wgtrain.tokenizer.nfc"
STRIP_LEFT = "wgtrain.tokenizer.strip_left"
STRIP_RIGHT = "wgtrain.tokenizer.strip_right"
_C_BLANKS = " \t\n\v\f\r"
_BLANKS = (
    _C_BLANKS
    + "\x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000"
    + "".join(map(chr, range(0x2000, 0x200B)))
)


@dataclass(frozen=True)
class Vocabulary:
    """The tokenizer part of a GGUF's metadata; every id lies in range, every merge joins known
    pieces.
    """

    model: str  # of MODELS: SentencePiece is "llama", byte-level BPE "gpt2", BPE of text "gemma4"
    patterns: list[str]  # of gpt2: how text is split into words
    pieces: list[str]
    ids: dict[str, int]  # piece -> id
    types: np.ndarray  # (V,) int32
    merges: np.ndarray  # (M, 2) int32 ids of pairs to join, the earliest first
    whole_words: bool  # a word that is a piece is taken whole, whatever the merges say
    bos_id: int | None
    eos_id: int | None
    eot_id: int | None
    unk_id: int | None
    stop_ids: frozenset[int]
    add_bos: bool
    add_space_prefix: bool
    chat_templates: dict[str, str]  # by name, "default" the one of all conversations
    special_tokens: dict[str, str]  # by the names templates know them by, as bos_token
    composed: bool  # text is brought to Unicode's form NFC
    strip_left: frozenset[int]  # special tokens that swallow the `blanks` before them
    strip_right: frozenset[int]  # and behind them
    blanks: str


def read_vocabulary(metadata: dict[str, Any], name: str) -> Vocabulary:
    """Checks the `tokenizer.*` keys; FileError naming the key and the value that is wrong."""
    get = _Getter(metadata, name)
    model = get.text("tokenizer.ggml.model")
    if model not in MODELS:
        what = shown(model) + (f" ({_OTHERS[model]})" if model in _OTHERS else "")
        raise get.error("tokenizer.ggml.model", what, "one of " + ", ".join(MODELS))
    patterns, whole_words, add_bos = _words(get, model)
    pieces = _pieces(get)
    ids = {piece: i for i, piece in enumerate(pieces)}
    if len(ids) != len(pieces):
        first: dict[str, int] = {}
        i = next(i for i, piece in enumerate(pieces) if first.setdefault(piece, i) != i)
        raise get.error(f"tokenizer.ggml.tokens[{i}]", shown(pieces[i]), "no piece twice")
    n = len(pieces)
    types = _types(get, n)
    spm = model == "llama"
    bos = get.id("bos", n, 1 if spm and n > 1 else None)
    eos = get.id("eos", n, 2 if spm and n > 2 else None)
    eot = get.id("eot", n, next((ids[piece] for piece in END_OF_TURN if piece in ids), None))
    eom = get.id("eom", n, ids.get(END_OF_MESSAGE))
    named = {"eos": eos, "eot": eot, "eom": eom}
    stops = end_ids(ids, types, named | {key: get.id(key, n, None) for key in FILL_IN_KEYS})
    if model != "gemma4":
        add_bos = get.flag("tokenizer.ggml.add_bos_token", add_bos)
    if add_bos and bos is None:
        raise get.error("tokenizer.ggml.bos_token_id", "missing", f"an id below {n}: rows need one")
    unk = get.id("unknown", n, 0 if spm else None)
    special = {name: get.id(key, n, None) for name, key in SPECIAL.items()}
    special |= {"bos_token": bos, "eos_token": eos, "unk_token": unk}
    left, right = get.ids(STRIP_LEFT, n), get.ids(STRIP_RIGHT, n)
    named_right = stripping(get.text("general.name", ""), ids, types)
    return Vocabulary(
        model=model,
        patterns=patterns,
        pieces=pieces,
        ids=ids,
        types=types,
        merges=_merges(get, pieces, ids, model),
        whole_words=whole_words,
        bos_id=bos,
        eos_id=eos,
        eot_id=eot,
        unk_id=unk,
        stop_ids=frozenset(stops),
        add_bos=add_bos,
        add_space_prefix=spm and get.flag("tokenizer.ggml.add_space_prefix", True),
        composed=get.flag(COMPOSED, False),
        strip_left=frozenset(left or ()),
        strip_right=frozenset(named_right if right is None else right),
        blanks=_C_BLANKS if right is None else _BLANKS,
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

    def id(self, name: str, n: int, default: int | None) -> int | None:
        key = f"tokenizer.ggml.{name}_token_id"
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

    def ids(self, key: str, n: int) -> list[int] | None:
        value = self.metadata.get(key)
        if value is None:
            return None
        if not isinstance(value, list) or not all(type(i) is int and 0 <= i < n for i in value):
            raise self.error(key, shown(value), f"a list of ids below {n}")
        return value

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
    return {name: text for name, text in found.items() if text} if found["default"] else {}


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


def _words(get: _Getter, model: str) -> tuple[list[str], bool, bool]:
    """The patterns that split text into words, whether words that are pieces are taken whole, and
    whether rows begin with BOS where the file does not say.
    """
    pre = get.text("tokenizer.ggml.pre", "default")
    if model != "gpt2":
        return [], False, True
    if EXACT_PATTERNS in get.metadata:
        return get.texts(EXACT_PATTERNS), get.flag(WHOLE_WORDS, False), False
    if pre not in PRE_TOKENIZERS:
        raise get.error("tokenizer.ggml.pre", shown(pre), "one of " + ", ".join(PRE_TOKENIZERS))
    row = PRE_TOKENIZERS[pre]
    return row.patterns, row.whole, row.bos


def _exact_merges(get: _Getter, n: int) -> np.ndarray | None:
    merges = get.metadata.get(EXACT_MERGES)
    if merges is None:
        return None
    if not isinstance(merges, np.ndarray) or merges.dtype != np.int32 or merges.shape[1:] != (2,):
        raise get.error(EXACT_MERGES, f"a {type(merges).__name__}", "pairs of ids")
    wrong = np.flatnonzero(((merges < 0) | (merges >= n)).any(1))
    if len(wrong):
        i = int(wrong[0])
        raise get.error(f"{EXACT_MERGES}[{i}]", str(merges[i].tolist()), f"ids below {n}")
    return first_of_each(merges, n)


def _merges(get: _Getter, pieces: list[str], ids: dict[str, int], model: str) -> np.ndarray:
    exact = _exact_merges(get, len(pieces))
    if model == "llama":  # there llama.cpp does not read them
        scores = _scores(get, len(pieces))
        return scored_merges(pieces, scores, get.name) if exact is None else exact
    if exact is not None:
        return exact
    key = "tokenizer.ggml.merges"
    texts = get.texts(key)
    return listed_merges(
        texts, ids, lambda i, expected: get.error(f"{key}[{i}]", shown(texts[i]), expected)
    )
