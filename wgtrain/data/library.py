"""The one door to the `tokenizers` package; a page puts a JavaScript library behind the same
call.
"""

from wgtrain.errors import FileError


class Library:
    """Merges plain text into token ids, as a `tokenizer.json` says."""

    def __init__(self, tokenizer_json: str, name: str) -> None:
        from tokenizers import Tokenizer

        try:
            self._tokenizer = Tokenizer.from_str(tokenizer_json)
        except Exception as error:  # the package raises plain Exception
            raise FileError(f"{name}: the tokenizer cannot be built: {error}") from error

    def encode(self, texts: list[str]) -> list[list[int]]:
        """The ids of each text."""
        encodings = self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        return [encoding.ids for encoding in encodings]
