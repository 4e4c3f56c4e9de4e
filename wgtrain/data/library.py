"""The one door to a library that merges text into tokens, as a `tokenizer.json` says.

Natively that is the `tokenizers` package, in a page `@huggingface/tokenizers`, which the wheel of a
built site carries as `tokenizers.cjs`. Vocabulary and merges are handed over as objects, in a page
as arrays: as text and as objects made of it, those of Qwen2 took 200 MB.
"""

import json
import sys
import threading
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Any, Protocol

import numpy as np

from wgtrain.data.merges import keys
from wgtrain.data.pretokenizers import OWN_PATTERNS, PRE_TOKENIZERS
from wgtrain.data.tokenizer_json import library_settings, merge_pieces
from wgtrain.data.vocabulary import Vocabulary
from wgtrain.errors import FileError
from wgtrain.files.scripts import script
from wgtrain.files.source import shown

# What a file's own patterns may take; a usual one needs a microsecond a character.
SECONDS, SECONDS_CHARACTER = 30.0, 1e-4
_GLANCE = 0.05  # s between two looks at it while it is waited for


class TooSlow(FileError):
    """A file's own patterns take too long."""


class Library(Protocol):
    """Merges plain text into token ids."""

    def encode(self, texts: list[str]) -> list[list[int]]:
        """The ids of each text; FileError where the library gives up."""

    def id_of(self, piece: str) -> int | None:
        """The id of a piece, None for what is none."""


def open_library(vocabulary: Vocabulary, name: str) -> Library:
    """This platform's library; FileError where it cannot read the file's vocabulary."""
    kind = _PageLibrary if sys.platform == "emscripten" else _NativeLibrary
    try:
        return kind(vocabulary, name)
    except FileError:
        raise
    except Exception as error:  # the package raises plain Exception
        raise FileError(f"{name}: the tokenizer cannot be built: {error}") from error


class _NativeLibrary:
    def __init__(self, vocabulary: Vocabulary, name: str) -> None:
        from tokenizers import Tokenizer
        from tokenizers.models import BPE

        self._name, self._patterns = name, vocabulary.patterns
        known = [row.patterns for row in PRE_TOKENIZERS.values()]
        self._known = vocabulary.patterns in [[], *known, *OWN_PATTERNS.values()]
        settings = library_settings(vocabulary, at_once=True)
        given = ("unk_token", "fuse_unk", "byte_fallback", "ignore_merges")
        model = {key: settings["model"].pop(key) for key in given}
        self._tokenizer = Tokenizer.from_str(json.dumps(settings))
        self._tokenizer.model = BPE(vocabulary.ids, merge_pieces(vocabulary), **model)

    def encode(self, texts: list[str]) -> list[list[int]]:
        if self._known:
            return self._encode(texts)
        size = sum(map(len, texts))
        seconds = SECONDS + SECONDS_CHARACTER * size
        try:
            return _within(seconds, lambda: self._encode(texts))
        except TimeoutError:
            raise TooSlow(
                f"{self._name}: the tokenizer needs more than {seconds:.0f} s for {size:,} "
                f"characters: patterns of its own, {shown(self._patterns, 200)}, split text"
            ) from None

    def _encode(self, texts: list[str]) -> list[list[int]]:
        try:
            encodings = self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        except BaseException as error:
            if isinstance(error, Exception) or type(error).__name__ == "PanicException":
                raise _gave_up(texts, error) from None
            raise
        return [encoding.ids for encoding in encodings]

    def id_of(self, piece: str) -> int | None:
        try:
            found: int | None = self._tokenizer.token_to_id(piece)
        except UnicodeEncodeError:  # half a surrogate pair
            found = None
        return found


class _PageLibrary:
    def __init__(self, vocabulary: Vocabulary, name: str) -> None:
        from pyodide.ffi import to_js

        pieces = vocabulary.pieces
        merges = keys(vocabulary.merges, len(pieces))
        ranks = np.argsort(merges).astype(np.int32)
        units = (len(piece.encode("utf-16-le")) // 2 for piece in pieces)
        ends = np.cumsum(np.fromiter(units, np.int32), dtype=np.int32)
        text = to_js("".join(pieces).encode())
        settings = json.dumps(library_settings(vocabulary))
        arrays = map(to_js, (ends, merges[ranks], ranks))
        self._javascript = _javascript()(settings, text, *arrays)

    def encode(self, texts: list[str]) -> list[list[int]]:
        from pyodide.ffi import to_js

        try:
            found: list[list[int]] = self._javascript.encode(to_js(texts)).to_py()
        except Exception as error:  # of JavaScript, such as a stack that is full
            raise _gave_up(texts, error) from None
        return found

    def id_of(self, piece: str) -> int | None:
        found: int = self._javascript.idOf(piece)
        return None if found < 0 else found


def _within(seconds: float, work: Callable[[], list[list[int]]]) -> list[list[int]]:
    """What `work` gives, which may take so long, else TimeoutError. The library cannot be ended: it
    goes on in a thread that ends with the program.
    """
    found: SimpleQueue[list[list[int]] | BaseException] = SimpleQueue()

    def run() -> None:
        try:
            found.put(work())
        except BaseException as error:
            found.put(error)

    threading.Thread(target=run, daemon=True).start()
    for _ in range(int(seconds / _GLANCE) + 1):  # a machine that slept has not computed
        try:
            given = found.get(timeout=_GLANCE)
        except Empty:
            continue
        if isinstance(given, BaseException):
            raise given
        return given
    raise TimeoutError


def release_memory() -> None:
    """Gives the system what the C library keeps of memory that is free; of a large vocabulary,
    whose merges the package takes apart, that is half as much as it needs.
    """
    if sys.platform == "linux":
        import ctypes

        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # of glibc
        if trim is not None:
            trim(0)


def _gave_up(texts: list[str], error: BaseException) -> FileError:
    longest = max(map(len, texts), default=0)
    what = f"the tokenizer's library gives up on a text of {longest:,} characters"
    return FileError(f"{what}: {str(error)[:200]}")


def _javascript() -> Any:
    try:
        return script("data/library.js")(script("data/tokenizers.cjs"))
    except FileNotFoundError:
        raise FileError(
            "this wheel has no tokenizer for pages: use that of scripts/build_web.py"
        ) from None
