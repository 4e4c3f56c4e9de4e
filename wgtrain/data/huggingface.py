"""A Hugging Face folder's tokenizer.json -> the `tokenizer.*` metadata of a GGUF.

Ids are those of the `tokenizers` library wherever llama.cpp's rules, which `wgtrain.data.tokenizer`
follows, give the same. They do not where Metaspace puts its space: here it stands in front of every
text, also of one that begins with a space, and after every special token; and where special tokens
overlap in a text, since here a longer one goes before one that begins earlier.
"""

from typing import Any

import numpy as np

from wgtrain.data.merges import paired_merges
from wgtrain.data.pretokenizers import CONTRACTION, OWN_PATTERNS, PRE_TOKENIZERS
from wgtrain.data.special_tokens import BYTE, CONTROL, NORMAL, UNKNOWN, UNUSED, USER_DEFINED
from wgtrain.data.tokenizer import byte_alphabet
from wgtrain.data.tokenizer_json import SPACE
from wgtrain.data.vocabulary import (
    COMPOSED,
    EXACT_MERGES,
    EXACT_PATTERNS,
    NO_ID,
    SPECIAL,
    STRIP_LEFT,
    STRIP_RIGHT,
    WHOLE_WORDS,
)
from wgtrain.errors import FileError
from wgtrain.files.huggingface import (
    CHAT_TEMPLATE,
    CHAT_TEMPLATE_JSON,
    CONFIG,
    GENERATION_CONFIG,
    MORE_TEMPLATES,
    TOKENIZER,
    TOKENIZER_CONFIG,
    Files,
    read_json,
    read_small,
)
from wgtrain.files.source import shown

MAX_VOCABULARY = 1 << 21  # pieces
_BYTE_PIECES = [f"<0x{byte:02X}>" for byte in range(256)]
_FOLDED = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"  # how tokenizer.json files write CONTRACTION
_REPLACE = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
_PREPEND = {"type": "Prepend", "prepend": SPACE}
# Gemma's words end with a space, of which its normaliser leaves none.
_SPLIT_SPACES = {
    "type": "Split",
    "pattern": {"String": " "},
    "behavior": "MergedWithPrevious",
    "invert": False,
}
# Settings of the model that change ids, and the values under which they do not.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "dropout": (None, 0),
    "continuing_subword_prefix": (None, ""),
    "end_of_word_suffix": (None, ""),
}


async def read_tokenizer_metadata(files: Files, name: str = "folder") -> dict[str, Any]:
    """The `tokenizer.*` keys for `load_tokenizer`; FileError names what is missing or not read."""
    spec = await read_json(files, TOKENIZER, name)
    settings, config, generation = [
        await read_json(files, file, name) if file in files else {}
        for file in (TOKENIZER_CONFIG, CONFIG, GENERATION_CONFIG)
    ]
    templates = await chat_templates(files, settings, name)
    reader = _Reader(spec, f"{name}/{TOKENIZER}")
    rows = config.get("vocab_size")
    metadata = reader.metadata(rows if type(rows) is int else None)
    ids = {piece: i for i, piece in enumerate(metadata["tokenizer.ggml.tokens"])}
    bos = _special("bos", ids, settings, config, generation, name)
    first, add_bos = reader.first_special(), settings.get("add_bos_token")
    if first is not None:
        bos = ids.get(first) if bos is None else bos
    if type(add_bos) is not bool:
        add_bos = first is not None
        if first is not None and (bos is None or ids.get(first) != bos):
            found = None if bos is None else metadata["tokenizer.ggml.tokens"][bos]
            what = f"puts {shown(first)} in front of a text, but the BOS token is {shown(found)}"
            raise reader.error(f"post_processor {what}")
    metadata |= {
        "tokenizer.ggml.bos_token_id": NO_ID if bos is None else bos,
        "tokenizer.ggml.add_bos_token": add_bos,
    }
    eos = _special("eos", ids, settings, config, generation, name)
    metadata["tokenizer.ggml.eos_token_id"] = NO_ID if eos is None else eos
    pieces = {
        f"{kind}_token": content_of(settings.get(f"{kind}_token"))
        for kind in ("pad", "sep", "cls", "mask")
    }
    for kind, piece in pieces.items():  # named by chat templates alone
        if piece is not None and piece in ids:
            metadata[f"tokenizer.ggml.{SPECIAL[kind]}_token_id"] = ids[piece]
    return metadata | template_metadata(templates)


def content_of(entry: Any) -> str | None:
    """The piece that an entry of tokenizer_config.json names: a text, or an object with one."""
    content = entry.get("content") if isinstance(entry, dict) else entry
    return content if isinstance(content, str) else None


def template_metadata(templates: dict[str, str]) -> dict[str, Any]:
    """Chat templates by name as metadata."""
    found: dict[str, Any] = {}
    others = {name: text for name, text in templates.items() if name != "default"}
    if default := templates.get("default"):
        found["tokenizer.chat_template"] = default
    if others:
        named = {f"tokenizer.chat_template.{name}": text for name, text in others.items()}
        found |= {"tokenizer.chat_templates": list(others), **named}
    return found


async def chat_templates(files: Files, settings: dict[str, Any], name: str) -> dict[str, str]:
    """The chat templates by name: those that lie there as files, else those of the JSON files."""
    found = {}
    for file in files:
        folder, _, base = file.rpartition("/")
        if file == CHAT_TEMPLATE or (folder == MORE_TEMPLATES and base.endswith(".jinja")):
            try:
                text = str(await read_small(files, file, name), "utf-8")
            except UnicodeDecodeError as error:
                raise FileError(f"{name}/{file}: no valid UTF-8 at byte {error.start}") from None
            found["default" if file == CHAT_TEMPLATE else base.removesuffix(".jinja")] = text
    if found:
        return found
    found = _named(settings, f"{name}/{TOKENIZER_CONFIG}")
    if not found and CHAT_TEMPLATE_JSON in files:
        older = await read_json(files, CHAT_TEMPLATE_JSON, name)
        found = _named(older, f"{name}/{CHAT_TEMPLATE_JSON}")
    return found


def _named(settings: dict[str, Any], where: str) -> dict[str, str]:
    """The chat templates in a JSON file, by name: one text, or several as {name, template}."""
    template = settings.get("chat_template")
    if template is None:
        return {}
    listed = template if isinstance(template, list) else [{"name": "default", "template": template}]
    found: dict[str, Any] = {
        str(t.get("name")): t.get("template") for t in listed if isinstance(t, dict)
    }
    if "default" not in found:
        raise FileError(f"{where}: chat_template has {shown(list(found))}, but no 'default'")
    for text in found.values():
        if not isinstance(text, str):
            raise FileError(f"{where}: chat_template is {shown(text)}; a text is needed")
    return found


def _special(
    kind: str,
    ids: dict[str, int],
    settings: dict[str, Any],
    config: dict[str, Any],
    generation: dict[str, Any],
    name: str,
) -> int | None:
    """The id of "bos" or "eos": the piece the tokenizer names, else the (first) id of the model."""
    piece = settings.get(f"{kind}_token")
    piece = piece.get("content") if isinstance(piece, dict) else piece
    if piece is not None:
        if not isinstance(piece, str) or piece not in ids:
            what = f"{kind}_token is {shown(piece)}, no piece of the vocabulary"
            raise FileError(f"{name}/{TOKENIZER_CONFIG}: {what}")
        return ids[piece]
    for file, values in ((CONFIG, config), (GENERATION_CONFIG, generation)):
        value = values.get(f"{kind}_token_id")
        if isinstance(value, list) and value:
            value = value[0]
        if value is not None:
            if type(value) is not int or not 0 <= value < len(ids):
                expected = f"an id below {len(ids)} is needed"
                raise FileError(f"{name}/{file}: {kind}_token_id is {shown(value)}; {expected}")
            return value
    return None


class _Reader:
    """One tokenizer.json; its methods raise FileError for what is broken or not supported."""

    def __init__(self, spec: dict[str, Any], where: str) -> None:
        self.spec, self.where = spec, where
        self.model: dict[str, Any] = self.object(spec.get("model"), "model")
        if self.model.get("type", "BPE") != "BPE":
            raise self.error(f"model.type {shown(self.model['type'])} is not supported, only 'BPE'")
        for key, neutral in _NEUTRAL.items():
            if self.model.get(key) not in neutral:
                raise self.error(f"model.{key} = {shown(self.model[key])} is not supported")
        self.spm = self.model.get("byte_fallback", False) is True
        self.vocab = self.object(self.model.get("vocab"), "model.vocab")
        self.added = [
            self.object(token, "added_tokens") for token in self.steps(spec.get("added_tokens"))
        ]

    def error(self, what: str) -> FileError:
        return FileError(f"{self.where}: {what}")

    def object(self, value: Any, what: str) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise self.error(f"{what} is {shown(value)}; an object is needed")
        return value

    def steps(self, value: Any) -> list[Any]:
        """A list as it is, none for null."""
        if value is not None and not isinstance(value, list):
            raise self.error(f"{shown(value)}; a list is needed")
        return value or []

    def chain(self, key: str, inner: str) -> list[dict[str, Any]]:
        """The steps of "normalizer", "pre_tokenizer" or "post_processor", in order."""
        value = self.spec.get(key)
        if value is None:
            return []
        step = self.object(value, key)
        steps = self.steps(step.get(inner)) if step.get("type") == "Sequence" else [step]
        return [self.object(step, key) for step in steps]

    def metadata(self, rows: int | None) -> dict[str, Any]:
        """All keys but those of BOS and EOS; pieces are padded to the `rows` of the embedding."""
        pieces, types = self.pieces(rows)
        merges, made = self.merges(pieces)
        common = {
            "tokenizer.ggml.model": "llama" if self.spm else "gpt2",
            "tokenizer.ggml.tokens": pieces,
            "tokenizer.ggml.token_type": np.array(types, np.int32),
            EXACT_MERGES: merges,
            STRIP_LEFT: self.stripping("lstrip"),
            STRIP_RIGHT: self.stripping("rstrip"),
        }
        if not self.spm:
            return common | self.words()
        common["tokenizer.ggml.pre"] = "default"
        missing = [piece for piece in _BYTE_PIECES if piece not in self.vocab]
        if missing:
            raise self.error(f"model: byte_fallback is true, but there is no piece {missing[0]!r}")
        if self.model.get("ignore_merges") or not len(merges):
            what = "ignore_merges with byte_fallback" if len(merges) else "no merges"
            raise self.error(f"model: {what}: not supported")
        unknown = next((i for i, kind in enumerate(types) if kind == UNKNOWN), None)
        ranks = np.full(len(pieces), len(merges), np.float32)
        # Of several ways to a piece the first counts.
        np.minimum.at(ranks, made, np.arange(len(merges), dtype=np.float32))
        return common | {
            "tokenizer.ggml.scores": -ranks,
            "tokenizer.ggml.unknown_token_id": NO_ID if unknown is None else unknown,
            "tokenizer.ggml.add_space_prefix": self.space_prefix(),
        }

    def pieces(self, rows: int | None) -> tuple[list[str], list[int]]:
        """Every piece and its type, by id."""
        found: dict[int, tuple[str, int]] = {}

        def add(piece: Any, i: Any, kind: int) -> None:
            if not isinstance(piece, str) or type(i) is not int or not 0 <= i < MAX_VOCABULARY:
                raise self.error(f"piece {shown(piece)} has the id {shown(i)}")
            if found.get(i, (piece, 0))[0] != piece:
                raise self.error(f"{shown(piece)} and {shown(found[i][0])} have the same id, {i}")
            found[i] = piece, kind

        bytes_ = set(_BYTE_PIECES) if self.spm else set()
        unknown = self.model.get("unk_token") if self.spm else None
        for text, i in self.vocab.items():
            add(text, i, BYTE if text in bytes_ else UNKNOWN if text == unknown else NORMAL)
        for token in self.added:
            piece = token.get("content")
            if token.get("single_word"):
                raise self.error(f"added token {shown(piece)}: single_word is not supported")
            kind = CONTROL if token.get("special") else USER_DEFINED
            if kind == USER_DEFINED and self.spm and piece in self.vocab and SPACE in piece:
                kind = NORMAL  # text has no such letter, and merging makes the piece of spaces
            add(piece, token.get("id"), UNKNOWN if unknown and piece == unknown else kind)
        n = max(found, default=-1) + 1
        if rows is not None and n > rows:
            raise self.error(f"the largest id is {n - 1}, but vocab_size of {CONFIG} is {rows}")
        every = [found.get(i, (f"[PAD{i}]", UNUSED)) for i in range(max(n, rows or 0))]
        return [piece for piece, _ in every], [kind for _, kind in every]

    def merges(self, pieces: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """The pairs of ids, (M, 2), and what each makes, (M,)."""
        listed = self.steps(self.model.get("merges"))
        ids = {piece: i for i, piece in enumerate(pieces) if piece and " " not in piece}
        return paired_merges(
            listed,
            ids,
            lambda i, why: self.error(f"model.merges[{i}] is {shown(listed[i])}; {why}"),
        )

    def stripping(self, side: str) -> list[int]:
        """The ids of added tokens that swallow the blanks on one side, "lstrip" or "rstrip"."""
        return [token["id"] for token in self.added if token.get(side)]

    def words(self) -> dict[str, Any]:
        """How byte-level text is split into words: a name where there is one for it, and the
        patterns where no name says the same.
        """
        normalizers = self.chain("normalizer", "normalizers")
        composed = {COMPOSED: True} if normalizers else {}
        for step in normalizers:
            if step.get("type") != "NFC":
                raise self.error(f"normalizer {shown(step.get('type'))} is not supported, only NFC")
        unknown = self.model.get("unk_token")
        if unknown and any(letter not in self.vocab for letter in byte_alphabet()):
            raise self.error(f"unk_token {shown(unknown)}: bytes without a piece are not supported")
        steps = self.chain("pre_tokenizer", "pretokenizers")
        patterns = [pattern for step in steps for pattern in self.patterns(step)]
        if not steps or steps[-1].get("type") != "ByteLevel":
            raise self.error("model: neither byte_fallback nor ByteLevel as last pre_tokenizer")
        whole = bool(self.model.get("ignore_merges"))
        same = [name for name, row in PRE_TOKENIZERS.items() if row.patterns == patterns]
        exact = [name for name in same if PRE_TOKENIZERS[name].whole == whole]
        if exact:
            return {"tokenizer.ggml.pre": exact[0]} | composed
        same += [name for name, own in OWN_PATTERNS.items() if own == patterns]
        named = {"tokenizer.ggml.pre": same[0]} if same else {}
        return named | composed | {EXACT_PATTERNS: patterns, WHOLE_WORDS: whole}

    def patterns(self, step: dict[str, Any]) -> list[str]:
        """The patterns by which one pre-tokenizer splits."""
        kind = step.get("type")
        if kind == "ByteLevel" and not step.get("add_prefix_space", True):
            return PRE_TOKENIZERS["gpt-2"].patterns if step.get("use_regex", True) else []
        if kind == "Digits":
            return [r"\p{N}" if step.get("individual_digits") else r"\p{N}+"]
        if kind == "Split":
            pattern = self.object(step.get("pattern"), "pre_tokenizer: pattern").get("Regex")
            how: tuple[Any, bool] = step.get("behavior"), bool(step.get("invert"))
            if isinstance(pattern, str) and how in (("Isolated", False), ("Removed", True)):
                if pattern.startswith(_FOLDED + "|"):
                    pattern = CONTRACTION + pattern.removeprefix(_FOLDED)
                return [pattern.replace(_FOLDED, f"(?:{CONTRACTION})")]
        raise self.error(f"pre_tokenizer {shown(step, 200)} is not supported")

    def space_prefix(self) -> bool:
        """Whether a text gets a space in front, in SentencePiece's manner."""
        normalizer = self.chain("normalizer", "normalizers")
        pre = self.chain("pre_tokenizer", "pretokenizers")
        if pre == [_SPLIT_SPACES] and normalizer == [_REPLACE]:
            return False
        if not pre and normalizer in ([_REPLACE], [_PREPEND, _REPLACE]):
            return len(normalizer) == 2
        if len(pre) != 1 or normalizer not in ([], [_REPLACE]):
            found = f"normalizer {shown(normalizer, 200)}, pre_tokenizer {shown(pre, 200)}"
            raise self.error(f"{found}: not the way of SentencePiece, which alone is supported")
        step = pre[0]
        inner = next((piece for piece in self.vocab if SPACE in piece[1:]), None)
        if step.get("type") != "Metaspace" or step.get("replacement") != SPACE:
            raise self.error(f"pre_tokenizer {shown(step, 200)} is not supported, only Metaspace")
        if step.get("split", True) and inner is not None:
            raise self.error(f"Metaspace with split, but the piece {shown(inner)} spans words")
        always = "always" if step.get("add_prefix_space", True) else "never"
        scheme = step.get("prepend_scheme", always)
        if scheme not in ("always", "first", "never"):
            raise self.error(f"Metaspace: prepend_scheme {shown(scheme)} is not supported")
        return bool(scheme != "never")

    def first_special(self) -> str | None:
        """The token that the library puts in front of a text."""
        first = None
        for step in self.chain("post_processor", "processors"):
            kind = step.get("type")
            if kind == "TemplateProcessing":
                single = self.steps(step.get("single"))
                token = self.object(single[0], "single").get("SpecialToken") if single else None
                first = str(self.object(token, "SpecialToken").get("id")) if token else None
            elif kind != "ByteLevel":
                raise self.error(f"post_processor {shown(kind)} is not supported")
        return first
