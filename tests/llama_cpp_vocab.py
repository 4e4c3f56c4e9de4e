"""Token ids by llama.cpp, from metadata alone: the judge of the tokenizers."""

import ctypes
import tempfile
from pathlib import Path
from typing import Any

import llama_cpp
import llama_cpp_oracle  # silences the log, starts the backend

from wgtrain.files import write_gguf

assert llama_cpp_oracle.LlamaCpp


class LlamaCppVocab:
    """The tokenizer of some GGUF metadata, in llama.cpp."""

    def __init__(self, metadata: dict[str, Any]) -> None:
        metadata = {"general.architecture": "llama", **metadata}
        params = llama_cpp.llama_model_default_params()
        params.vocab_only = True
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "vocab.gguf")
            path.write_bytes(write_gguf(metadata, {}))
            self._model = llama_cpp.llama_model_load_from_file(str(path).encode(), params)
        assert self._model, "llama.cpp refuses the vocabulary"
        self._vocab = llama_cpp.llama_model_get_vocab(self._model)

    def encode(self, text: str, bos: bool = False, special: bool = False) -> list[int]:
        """The ids of a text; `bos` adds what the file asks for."""
        data = text.encode()
        out = (llama_cpp.llama_token * (len(data) + 8))()
        n = llama_cpp.llama_tokenize(self._vocab, data, len(data), out, len(out), bos, special)
        assert n >= 0
        return list(out[:n])

    def decode(self, ids: list[int]) -> str:
        """The text of ids, without control tokens."""
        array = (llama_cpp.llama_token * len(ids))(*ids)
        out = ctypes.create_string_buffer(64 * len(ids) + 64)
        n = llama_cpp.llama_detokenize(self._vocab, array, len(ids), out, len(out), False, False)
        assert n >= 0
        return out.raw[:n].decode("utf-8", "replace")

    def spell(self, ids: list[int], special: bool = False) -> bytes:
        """The bytes of ids one after another, as generation shows them; control tokens only with
        `special`.
        """
        out = ctypes.create_string_buffer(1 << 12)
        found = b""
        for i in ids:
            n = llama_cpp.llama_token_to_piece(self._vocab, i, out, len(out), 0, special)
            assert n >= 0
            found += out.raw[:n]
        return found

    def is_end(self, token: int) -> bool:
        """Whether generation ends at a token."""
        return bool(llama_cpp.llama_vocab_is_eog(self._vocab, token))

    def close(self) -> None:
        """Gives the memory back."""
        llama_cpp.llama_model_free(self._model)
