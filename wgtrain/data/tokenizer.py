"""Text <-> token ids, as llama.cpp does it: special tokens are cut out first, the rest is
merged.

Every token knows the bytes it stands for, so decoding, and telling which part of a text a token
covers, are sums over pieces and need nothing of the library that merges.
"""

import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from wgtrain.data.composed import composed
from wgtrain.data.cutter import Cutter
from wgtrain.data.library import open_library, release_memory
from wgtrain.data.special_tokens import BYTE, CONTROL, UNKNOWN, UNUSED, USER_DEFINED
from wgtrain.data.tokenizer_json import SPACE
from wgtrain.data.vocabulary import Vocabulary, read_vocabulary
from wgtrain.errors import FileError, OptionError

LARGE_VOCABULARY = 200_000  # pieces; in a page such a one takes some five seconds
_BYTE_PIECE = re.compile(r"<0x([0-9A-F]{2})>\Z")
_LINES = re.compile(r"\n+|[^\n]+")
_SPACE = SPACE.encode()


class Encoding(NamedTuple):
    """One text as tokens: `ids` uint32 (n,), and `ends` int64 (n,), where each token's UTF-8
    bytes end.
    """

    ids: np.ndarray
    ends: np.ndarray


class _Part(NamedTuple):
    """A part of a text: a token cut out of it, or text to merge."""

    token: int | None
    text: str  # what merges, without a space put in front
    places: np.ndarray | None  # of text that was composed: where its bytes were
    prefixed: bool  # whether a space goes in front
    before: int  # bytes that the token swallows before it
    size: int  # bytes from there on, with those it swallows behind it


class Tokenizer:
    """The tokenizer a GGUF carries; made by `load_tokenizer`."""

    def __init__(self, vocabulary: Vocabulary, name: str) -> None:
        self.name = name
        self.pieces = vocabulary.pieces
        self.vocab_size = len(vocabulary.pieces)
        self.bos_id = vocabulary.bos_id
        self.eos_id = vocabulary.eos_id
        self.eot_id = vocabulary.eot_id
        self.stop_ids = vocabulary.stop_ids
        self.add_bos = vocabulary.add_bos
        self.chat_templates = vocabulary.chat_templates
        self.special_tokens = vocabulary.special_tokens
        self.unk_id = self._unk_id = vocabulary.unk_id
        self._prefix = vocabulary.add_space_prefix
        self._strips = (vocabulary.strip_left, vocabulary.strip_right, vocabulary.blanks)
        self._composed = vocabulary.composed
        self._lines = vocabulary.model == "gemma4"
        self._library = open_library(vocabulary, name)
        self._bytes = _Spelling(vocabulary)
        self._sizes = self._bytes.sizes
        types = vocabulary.types
        self._silent = types == UNUSED
        self._hidden = np.isin(types, (CONTROL, UNKNOWN, UNUSED))
        special = np.isin(types, (CONTROL, UNKNOWN, USER_DEFINED))
        always = types == USER_DEFINED
        self._cutters = {
            True: Cutter({self.pieces[i]: int(i) for i in np.flatnonzero(special)}, name),
            False: Cutter({self.pieces[i]: int(i) for i in np.flatnonzero(always)}, name),
        }
        self._special = special

    @property
    def chat_template(self) -> str | None:
        """The source of the model's own chat template."""
        return self.chat_templates.get("default")

    @property
    def control_ids(self) -> np.ndarray:
        """Which tokens stand for no text of their own, bool (V,)."""
        return self._hidden

    def control_in(self, texts: Iterable[str]) -> list[int]:
        """The control tokens that are written out in some texts."""
        cut = self._cutters[True]
        parts = (part for text in texts for part in cut(text) if isinstance(part, int))
        return [part for part in parts if self._hidden[part]]

    @property
    def end_id(self) -> int | None:
        """The token that ends a text: EOS, or the end of turn in a file without one."""
        return self.eot_id if self.eos_id is None else self.eos_id

    def encode(
        self, text: str, bos: bool = False, special: bool = False, guard: str = ""
    ) -> list[int]:
        """The ids of a text. With `special`, special tokens written out in it become themselves.

        With `bos` the BOS token goes in front, unless the text begins with it already. A character
        `guard` within a special token keeps it from being one, and is left out.
        """
        ids = self.encode_batch([text], special, guard)[0].ids.tolist()
        if bos:
            if self.bos_id is None:
                raise OptionError(f"{self.name}: bos=True, but the file names no BOS token")
            if ids[:1] != [self.bos_id]:
                ids.insert(0, self.bos_id)
        return ids

    def encode_batch(
        self, texts: Sequence[str], special: bool = False, guard: str = ""
    ) -> list[Encoding]:
        """Each text as tokens, with the place where each of them ends; no BOS is added.

        A token covers the bytes from the end of the one before; where SentencePiece puts a space in
        front of a text, a token may cover none.
        """
        cut = self._cutters[special]
        for text in texts:
            if not text.isascii():
                try:
                    text.encode()
                except UnicodeEncodeError as error:
                    raise OptionError(f"text is not valid Unicode: {error.reason}") from None
        parts = [self._parts(self._unguarded(cut(text), guard)) for text in texts]
        plain = [
            " " + part.text if part.prefixed else part.text
            for of_text in parts
            for part in of_text
            if part.token is None
        ]
        merged = iter(self._library.encode(plain))
        return [self._join(of_text, merged) for of_text in parts]

    def decode(self, ids: Iterable[int], special: bool = False) -> str:
        """The text of tokens; control tokens only with `special`. Bytes that are no UTF-8 become
        U+FFFD.
        """
        return self.decode_bytes(ids, special).decode("utf-8", "replace")

    def decode_bytes(self, ids: Iterable[int], special: bool = False, start: bool = True) -> bytes:
        """The UTF-8 bytes of tokens, which may end within a character.

        With `start` the tokens begin a text, and the space that encoding puts in front is taken
        away.
        """
        out = []
        fresh = start
        for i in ids:
            if not 0 <= i < self.vocab_size:
                raise OptionError(f"token {i} is outside the vocabulary of {self.vocab_size}")
            piece = self._bytes[i]
            if not (self._silent if special else self._hidden)[i]:
                out.append(piece[1:] if fresh and self._prefix and piece[:1] == b" " else piece)
            fresh = bool(self._special[i])
        return b"".join(out)

    def id_of(self, piece: str) -> int | None:
        """The id of a piece of the vocabulary, None for what is none."""
        return self._library.id_of(piece)

    def _unguarded(self, cut: list[str | int], guard: str) -> list[str | int]:
        """A text that was cut, without the guards in it."""
        if not guard:
            return cut
        out: list[str | int] = []
        for part in cut:
            if isinstance(part, str) and guard in part:
                out += self._cutters[False](part.replace(guard, ""))
            else:
                out.append(part)
        return out

    def _parts(self, cut: list[str | int]) -> list[_Part]:
        """What is to be merged and what is not, from a text cut at its special tokens."""
        parts: list[_Part] = []
        left, right, blanks = self._strips
        fresh, before = True, 0
        for i, part in enumerate(cut):
            if isinstance(part, int):
                size = before + int(self._sizes[part])
                parts.append(_Part(part, "", None, False, before, size))
                fresh, before = True, 0
                continue
            text = part
            if parts and parts[-1].token in right:
                text = text.lstrip(blanks)
                swallowed = len(part.encode()) - len(text.encode())
                parts[-1] = parts[-1]._replace(size=parts[-1].size + swallowed)
            follower = cut[i + 1] if i + 1 < len(cut) else None
            if follower in left:
                size = len(text.encode())
                text = text.rstrip(blanks)
                before = size - len(text.encode())
            for line in self._cut_lines(text):
                prefixed = self._prefix and fresh and not isinstance(line, int)
                fresh = isinstance(line, int)
                if isinstance(line, int):
                    parts.append(_Part(line, "", None, False, 0, int(self._sizes[line])))
                else:
                    size, places = len(line.encode()), None
                    if self._composed and not unicodedata.is_normalized("NFC", line):
                        line, places = composed(line)
                    parts.append(_Part(None, line, places, prefixed, 0, size))
        return parts

    def _cut_lines(self, text: str) -> list[str | int]:
        """Gemma 4's words are lines and the breaks between them, which may be pieces."""
        if not self._lines:
            return [text] if text else []
        found: list[str | int] = []
        for word in _LINES.findall(text):
            i = self.id_of(word) if word[0] == "\n" else None
            found.append(word if i is None else i)
        return found

    def _join(self, parts: list[_Part], merged: Any) -> Encoding:
        ids: list[list[int]] = []
        ends: list[np.ndarray] = []
        at = 0
        for part in parts:
            if part.token is not None:
                ids.append([part.token])
                ends.append(np.array([at + part.size], np.int64))
            else:
                ids.append(next(merged))
                found = self._ends(ids[-1], part.text.encode(), part.prefixed)
                ends.append(at + (found if part.places is None else part.places[found]))
            at += part.size
        flat = np.array([i for group in ids for i in group], np.uint32)
        return Encoding(flat, np.concatenate(ends) if ends else np.zeros(0, np.int64))

    def _ends(self, ids: list[int], data: bytes, prefixed: bool) -> np.ndarray:
        """Where the tokens of a part end in its bytes."""
        ends = np.cumsum(self._sizes[ids]) - prefixed
        if len(ids) == 0 or ends[-1] != len(data) or _SPACE in data or self._unk_id in ids:
            ends = self._walk(ids, b" " + data if prefixed else data) - prefixed
        return ends

    def _walk(self, ids: list[int], data: bytes) -> np.ndarray:
        """As `_ends`, where tokens do not simply spell the bytes: unknown ones, bytes that have
        no piece.
        """
        ends = []
        at = 0
        for i in ids:
            piece = self._bytes[i]
            if i == self._unk_id:
                size = 1
                while at + size < len(data) and data[at + size] & 0xC0 == 0x80:
                    size += 1
            else:
                while (size := _match(piece, data, at)) < 0:
                    # Byte-level merging drops bytes without a piece of their own.
                    if at == len(data) or bytes([data[at]]) in self._single_bytes:
                        raise FileError(
                            f"{self.name}: token {i} ({self.pieces[i]!r}) does not spell the text"
                            f" at {data[at : at + 20]!r}"
                        )
                    at += 1
            at += size
            ends.append(at)
        return np.array(ends, np.int64)

    @cached_property
    def _single_bytes(self) -> set[bytes]:
        return {self._bytes[i] for i in np.flatnonzero(self._sizes == 1).tolist()}


def load_tokenizer(
    metadata: dict[str, Any], name: str = "model", say: Callable[[str], None] | None = None
) -> Tokenizer:
    """The tokenizer of a GGUF's metadata; `name` is for messages. FileError if it is unusable.

    `say` hears a line before a vocabulary is read that may take seconds.
    """
    pieces = metadata.get("tokenizer.ggml.tokens")
    if say is not None and isinstance(pieces, list) and len(pieces) >= LARGE_VOCABULARY:
        say(f"{name}: a vocabulary of {len(pieces):,} pieces is read")
    tokenizer = Tokenizer(read_vocabulary(metadata, name), name)
    release_memory()
    return tokenizer


def _match(piece: bytes, data: bytes, at: int) -> int:
    """How many bytes of `data` a piece spells, -1 if it does not; both ways to write a space are
    one.
    """
    if data.startswith(piece, at):
        return len(piece)
    begin = at
    for part in re.split(b"( |" + _SPACE + b")", piece):
        if part in (b" ", _SPACE):
            part = _SPACE if data.startswith(_SPACE, at) else b" "
        if not data.startswith(part, at):
            return -1
        at += len(part)
    return at - begin


class _Spelling:
    """The bytes that each token stands for, by id."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        letters = byte_alphabet() if vocabulary.model == "gpt2" else {}
        spelled = [
            _spell(piece, kind, letters)
            for piece, kind in zip(vocabulary.pieces, vocabulary.types.tolist(), strict=True)
        ]
        self.sizes = np.array([len(text) for text in spelled], np.int64)
        self._all = b"".join(spelled)
        self._ends = np.cumsum(self.sizes)

    def __getitem__(self, i: int) -> bytes:
        end = self._ends[i]
        return self._all[end - self.sizes[i] : end]


def _spell(piece: str, kind: int, letters: dict[str, int]) -> bytes:
    """The bytes of a piece; `letters`: of byte-level pieces."""
    if kind in (CONTROL, UNKNOWN, USER_DEFINED):
        return piece.encode()
    if letters:
        try:
            return bytes([letters[letter] for letter in piece])
        except KeyError:  # no merge makes it: padding, or a piece that stands for itself
            return piece.encode()
    # Merging falls back to a byte's piece by its name, whatever type the file gives it.
    byte = _BYTE_PIECE.match(piece) if kind == BYTE or piece.startswith("<0x") else None
    return bytes([int(byte[1], 16)]) if byte else piece.replace(SPACE, " ").encode()


def byte_alphabet() -> dict[str, int]:
    """GPT-2's letters for the 256 bytes: itself where printable, else the next one from U+0100
    on.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    letters = {chr(byte): byte for byte in sorted(printable)}
    rest = [byte for byte in range(256) if byte not in printable]
    return letters | {chr(0x100 + i): byte for i, byte in enumerate(rest)}
