"""The one door to a library that merges text into tokens, as a `tokenizer.json` says.

Natively that is the `tokenizers` package, in a page `@huggingface/tokenizers`, which the wheel of a
built site carries.
"""

import sys
from functools import cache
from importlib import resources
from typing import Any, Protocol

from wgtrain.errors import FileError

PAGE_LIBRARY = "tokenizers.cjs"  # put beside this file by scripts/build_web.py


class Library(Protocol):
    """Merges plain text into token ids."""

    def encode(self, texts: list[str]) -> list[list[int]]:
        """The ids of each text."""


def open_library(tokenizer_json: str, name: str) -> Library:
    """This platform's library; FileError where it cannot read the file's vocabulary."""
    kind = _PageLibrary if sys.platform == "emscripten" else _NativeLibrary
    try:
        return kind(tokenizer_json)
    except Exception as error:  # the package raises plain Exception
        raise FileError(f"{name}: the tokenizer cannot be built: {error}") from error


class _NativeLibrary:
    def __init__(self, tokenizer_json: str) -> None:
        from tokenizers import Tokenizer

        self._tokenizer = Tokenizer.from_str(tokenizer_json)

    def encode(self, texts: list[str]) -> list[list[int]]:
        encodings = self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        return [encoding.ids for encoding in encodings]


class _PageLibrary:
    def __init__(self, tokenizer_json: str) -> None:
        self._encode = _javascript()(tokenizer_json)

    def encode(self, texts: list[str]) -> list[list[int]]:
        from pyodide.ffi import to_js

        found: list[list[int]] = self._encode(to_js(texts)).to_py()
        return found


@cache
def _javascript() -> Any:
    from pyodide.code import run_js

    folder = resources.files("wgtrain.data")
    library = folder / PAGE_LIBRARY
    if not library.is_file():
        raise FileError("this wheel has no tokenizer for pages: use that of scripts/build_web.py")
    return run_js((folder / "library.js").read_text("utf-8"))(library.read_text("utf-8"))
