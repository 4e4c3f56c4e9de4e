"""A folder's tokenizer as llama.cpp's converter writes it into a GGUF.

`data/huggingface.py` reads a folder such that its tokens are those of its own library; here they
are written such that llama.cpp's are, as far as it can.
"""

import hashlib
import json
from typing import Any

import numpy as np

from wgtrain.data.huggingface import (
    chat_templates,
    content_of,
    read_tokenizer_metadata,
    template_metadata,
)
from wgtrain.data.pre_hashes import NAMES, TEXT
from wgtrain.data.sentencepiece_model import read_pieces
from wgtrain.data.special_tokens import BYTE, CONTROL, NORMAL, UNKNOWN, UNUSED, USER_DEFINED
from wgtrain.data.tokenizer_json import SPACE
from wgtrain.data.vocabulary import EXACT_MERGES
from wgtrain.errors import FileError
from wgtrain.files.huggingface import (
    CONFIG,
    TOKENIZER,
    TOKENIZER_CONFIG,
    Files,
    read_json,
    read_small,
)
from wgtrain.files.source import shown

SENTENCEPIECE = "tokenizer.model"
ADDED = "added_tokens.json"
_KEPT = (UNKNOWN, CONTROL, UNUSED, BYTE)  # of a tokenizer.model's types; others are normal
_ADDED_SCORE, _PAD_SCORE = -1000.0, -10000.0
# special tokens by the names of tokenizer_config.json -> GGUF's
_IDS = {
    "bos": "bos_token_id",
    "eos": "eos_token_id",
    "unk": "unknown_token_id",
    "sep": "seperator_token_id",
    "pad": "padding_token_id",
    "mask": "mask_token_id",
    "eot": "eot_token_id",
    "eom": "eom_token_id",
}
_LLAMAS = ("llama", "mistral3", "smollm3", "granite")
_GEMMAS = ("gemma", "gemma2", "gemma3")
_CODE_LLAMA, _GRANITE_CODE = 32016, 49152  # sizes of vocabularies by which the converter knows them


async def tokenizer_for_gguf(
    files: Files, name: str, architecture: str, rows: int
) -> tuple[dict[str, Any], list[str]]:
    """The `tokenizer.*` keys of a GGUF whose embedding has `rows`, and what a person should know.

    FileError for a folder without a tokenizer, or with one that llama.cpp has no name for.
    """
    made = _Converter(files, name, architecture, rows)
    return await made.run(), made.notes


def looks_special(text: str) -> bool:
    """Whether a piece is a control token though its file does not say so."""
    pairs = (("<|", "|>"), ("<｜", "｜>"), ("<unused", ">"))
    named = text in ("<pad>", "<mask>", "<2mass>", "[@BOS@]")
    return named or any(text.startswith(a) and text.endswith(b) for a, b in pairs)


class _Converter:
    def __init__(self, files: Files, name: str, architecture: str, rows: int) -> None:
        self.files, self.name, self.architecture, self.rows = files, name, architecture, rows
        self.spec: dict[str, Any] = {}  # tokenizer.json
        self.settings: dict[str, Any] = {}  # tokenizer_config.json
        self.config: dict[str, Any] = {}
        self.added: list[dict[str, Any]] = []
        self.notes: list[str] = []

    async def run(self) -> dict[str, Any]:
        files, name = self.files, self.name
        for file, attribute in (
            (TOKENIZER, "spec"),
            (TOKENIZER_CONFIG, "settings"),
            (CONFIG, "config"),
        ):
            if file in files:
                setattr(self, attribute, await read_json(files, file, name))
        listed = self.spec.get("added_tokens")
        self.added = [t for t in listed if isinstance(t, dict)] if isinstance(listed, list) else []
        read, problem = await self.read()
        if SENTENCEPIECE in files and self.architecture in (*_LLAMAS, *_GEMMAS, "phi3", "qwen2"):
            found = await self.sentencepiece()
        elif read is None:
            raise problem or FileError(f"{name}: {TOKENIZER} is missing")
        elif read["tokenizer.ggml.model"] == "llama":
            found = self.scored(read)
        else:
            found = self.byte_level(read)
        found |= self.specials(read)
        template = await self.template(read)
        return {f"tokenizer.ggml.{key}": value for key, value in found.items()} | template

    async def read(self) -> tuple[dict[str, Any] | None, FileError | None]:
        """What this program makes of tokenizer.json, or why it cannot."""
        try:
            return await read_tokenizer_metadata(self.files, self.name), None
        except FileError as error:
            return None, error

    async def template(self, read: dict[str, Any] | None) -> dict[str, Any]:
        if read is not None:
            keys = "tokenizer.chat_template"
            return {key: value for key, value in read.items() if key.startswith(keys)}
        return template_metadata(await chat_templates(self.files, self.settings, self.name))

    async def sentencepiece(self) -> dict[str, Any]:
        """Pieces and scores of a tokenizer.model, and the tokens added to it."""
        data = await read_small(self.files, SENTENCEPIECE, self.name)
        where = f"{self.name}/{SENTENCEPIECE}"
        pieces = read_pieces(data, where)[: self.rows]
        tokens = [piece.text for piece in pieces]
        scores = [piece.score for piece in pieces]
        types = [piece.type if piece.type in _KEPT else NORMAL for piece in pieces]
        for i in range(len(pieces), self.rows):
            tokens.append(f"[PAD{i}]")
            scores.append(_PAD_SCORE)
            types.append(UNUSED)
        simple = await read_json(self.files, ADDED, self.name) if ADDED in self.files else {}
        for text, i in simple.items():
            if type(i) is int and 0 <= i < self.rows:
                tokens[i], scores[i], types[i] = text, _ADDED_SCORE, USER_DEFINED
        decoder = self.settings.get("added_tokens_decoder")
        added = [(i, t) for i, t in decoder.items()] if isinstance(decoder, dict) else []
        if not added or self.architecture == "phi3":
            added += [(token.get("id"), token) for token in self.added]
        for key, token in added:
            i = int(key) if isinstance(key, str) and key.isdecimal() else key
            content = token.get("content") if isinstance(token, dict) else None
            if type(i) is not int or not isinstance(content, str):
                raise FileError(f"{self.name}: added token {shown(key)} is {shown(token)}")
            if not 0 <= i < self.rows:
                continue
            special, plain = bool(token.get("special")), content
            if self.architecture != "phi3":
                special = special or looks_special(content)
                plain = content if special else content.replace(SPACE, " ")
            tokens[i], scores[i] = plain, _ADDED_SCORE
            types[i] = CONTROL if special else USER_DEFINED
        return self.whole(tokens, scores, types)

    def scored(self, read: dict[str, Any]) -> dict[str, Any]:
        """The same without a tokenizer.model: a piece's score is the place of its merge."""
        tokens, types = self.filled(read)
        scores = np.full(len(tokens), _PAD_SCORE, np.float32)
        known = read["tokenizer.ggml.scores"]
        scores[: len(known)] = known
        found = self.whole(tokens, scores, types)
        if read.get("tokenizer.ggml.add_space_prefix") is False:
            found["add_space_prefix"] = False
        return found

    def whole(self, tokens: list[str], scores: Any, types: Any) -> dict[str, Any]:
        """What all vocabularies of SentencePiece have."""
        found: dict[str, Any] = {
            "model": "llama",
            "pre": "default",
            "tokens": tokens,
            "scores": np.array(scores, np.float32),
            "token_type": np.array(types, np.int32),
        }
        if self.architecture in _GEMMAS:
            found["add_space_prefix"] = False
        return found

    def filled(self, read: dict[str, Any]) -> tuple[list[str], np.ndarray]:
        """Pieces and types, as many as the embedding has rows."""
        tokens = list(read["tokenizer.ggml.tokens"])
        types = np.full(max(self.rows, len(tokens)), UNUSED, np.int32)
        types[: len(tokens)] = read["tokenizer.ggml.token_type"]
        tokens += [f"[PAD{i}]" for i in range(len(tokens), self.rows)]
        if len(tokens) > self.rows:
            raise FileError(
                f"{self.name}/{TOKENIZER}: {len(tokens)} pieces, but vocab_size is {self.rows}"
            )
        return tokens, types

    def byte_level(self, read: dict[str, Any]) -> dict[str, Any]:
        tokens, types = self.filled(read)
        for token in self.added:
            i, text = token["id"], token["content"]
            if token.get("special") or looks_special(text):
                types[i] = CONTROL
            else:
                types[i], tokens[i] = USER_DEFINED, text.replace(SPACE, " ")
        pieces = read["tokenizer.ggml.tokens"]
        return {
            "model": "gpt2",
            "pre": self.pre(read.get("tokenizer.ggml.pre")),
            "tokens": tokens,
            "token_type": types,
            "merges": [f"{pieces[a]} {pieces[b]}" for a, b in read[EXACT_MERGES].tolist()],
        }

    def pre(self, known: str | None) -> str:
        """The name of how text is split: the converter's, where the library is here to ask for
        it, else that of the patterns.
        """
        ids = _library_ids(self.spec)
        name = NAMES.get(hashlib.sha256(str(ids).encode()).hexdigest()[:16])
        if name is not None:
            return name
        if known is None:
            raise FileError(
                f"{self.name}/{TOKENIZER}: llama.cpp has no name for the way this tokenizer "
                "splits text into words, so no GGUF can be made of it; it can be trained as it is"
            )
        return known

    def specials(self, read: dict[str, Any] | None) -> dict[str, Any]:
        """Ids of special tokens, and which a text gets in front and behind."""
        ids, add = _Specials(self.settings, self.config, self.spec, self.added).found(self.rows)
        if self.architecture == "glm4":
            ends = {t.get("content"): t.get("id") for t in self.added}
            for kind, text in (
                *(("eos", "<|endoftext|>"), ("eot", "<|user|>")),
                *(("unk", "<|endoftext|>"), ("bos", "<|endoftext|>")),
            ):
                if type(i := ends.get(text)) is int:
                    ids[kind] = i
        elif self.architecture == "gemma":
            ids["eot"] = 107
        elif self.architecture in _LLAMAS:
            if self.rows == _CODE_LLAMA:
                ids["eot"] = 32010
            if self.rows == _GRANITE_CODE:
                add["bos"] = False
        found: dict[str, Any] = {_IDS[kind]: i for kind, i in ids.items()}
        found |= {f"add_{kind}_token": value for kind, value in add.items()}
        prefix = self.settings.get("add_prefix_space")
        if self.architecture in _LLAMAS and type(prefix) is bool:
            found["add_space_prefix"] = prefix
        return found


def _library_ids(spec: dict[str, Any]) -> list[int] | None:
    """What the library makes of the text by which tokenizers are known; None in a page."""
    try:
        from tokenizers import Tokenizer
    except ImportError:
        return None
    ids: list[int] = Tokenizer.from_str(json.dumps(spec)).encode(TEXT).ids
    return ids


class _Specials:
    """Which tokens are special, by the rules of the `gguf` package."""

    def __init__(
        self,
        settings: dict[str, Any],
        config: dict[str, Any],
        spec: dict[str, Any],
        added: list[dict[str, Any]],
    ) -> None:
        self.there = bool(settings)
        self.config, self.spec, self.added = config, spec, added
        self.kinds = ["bos", "eos", "unk", "sep", "pad", "mask"]
        self.texts = {
            kind: content_of(settings.get(f"{kind}_token")) for kind in (*self.kinds, "cls")
        }
        self.given = {kind: settings.get(f"add_{kind}_token") for kind in ("bos", "eos", "sep")}
        self.add: dict[str, bool] = {}

    def found(self, rows: int) -> tuple[dict[str, int], dict[str, bool]]:
        texts = self.texts
        if self.spec:
            texts["bos"] = texts["bos"] or texts["cls"]
            texts["eos"] = texts["eos"] or texts["sep"]
            processor = self.spec.get("post_processor")
            if isinstance(processor, dict):
                for step in processor.get("processors", [processor]):
                    self.processor(step if isinstance(step, dict) else {})
        ids: dict[str, int] = {}
        if self.there:
            for kind in ("bos", "eos", "sep"):
                if type(value := self.given[kind]) is bool:
                    self.add.setdefault(kind, value)
            by_text = {t.get("content"): t.get("id") for t in reversed(self.added)}
            for kind in self.kinds:
                self.put(ids, kind, by_text.get(texts[kind]) if texts[kind] else None, rows)
        text = self.config.get("text_config")
        for kind in self.kinds:
            value = self.config.get(f"{kind}_token_id")
            if value is None and isinstance(text, dict):
                value = text.get(f"{kind}_token_id")
            self.put(ids, kind, value, rows)
        return ids, self.add

    def put(self, ids: dict[str, int], kind: str, value: Any, rows: int) -> None:
        if type(value) is int and 0 <= value < rows:
            ids.setdefault(kind, value)

    def processor(self, step: dict[str, Any]) -> None:
        if step.get("type") == "ByteLevel":
            self.add.setdefault("bos", False)
            self.add.setdefault("eos", False)
        elif step.get("type") == "TemplateProcessing":
            single = [part for part in step.get("single") or [] if isinstance(part, dict)]
            if len(single) > 1:
                self.ends(self.special(single[0]), self.special(single[-1]))
            if isinstance(step.get("pair"), list):
                self.separated(single, step["pair"])

    @staticmethod
    def special(part: Any) -> str | None:
        token = part.get("SpecialToken") if isinstance(part, dict) else None
        return token.get("id") if isinstance(token, dict) else None

    def ends(self, first: str | None, last: str | None) -> None:
        texts = self.texts
        if first:
            if first not in (texts["bos"], texts["cls"]):
                texts["bos"] = texts["bos"] or first
                texts["cls"] = texts["cls"] or first
            self.add["bos"] = first in (texts["bos"], texts["cls"])
        if last:
            if last != texts["eos"] and self.there:  # what was the end is the end of a turn
                kind = "eot" if "eot" not in self.kinds else "eom"
                if kind not in self.kinds:
                    self.kinds.append(kind)
                    texts[kind] = texts["eos"]
            texts["eos"] = last
            self.add["eos"] = True

    def separated(self, single: list[Any], pair: list[Any]) -> None:
        """Whether something stands between two texts: A [sep] [eos] B."""
        first = self.special(single[0]) if len(single) > 1 else None
        last = self.special(single[-1]) if len(single) > 1 else None
        begin = 1 if first and pair and self.special(pair[0]) == first else 0
        end = -1 if last and pair and self.special(pair[-1]) == last else len(pair)
        middle = pair[begin:end][1:-1]
        if not middle:
            return
        known = {self.texts["sep"], self.texts["eos"]} - {None}
        found = self.special(middle[0]) in known and not last
        if len(middle) == 2 and self.special(middle[1]) in known:
            found = True
        if found and self.there and not self.texts["sep"]:
            self.texts["sep"] = self.texts["eos"]
        self.add["sep"] = found
