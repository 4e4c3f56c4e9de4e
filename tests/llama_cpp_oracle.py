"""Logits by llama.cpp, with and without an adapter: the judge of the files that leave here.

Set as exact as it goes: F32 key-value cache, no flash attention, no repacked weights, one thread.
"""

import ctypes
import tempfile
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import needs
import numpy as np

llama_cpp: Any = needs.package("llama_cpp")

GGML_TYPE_F32 = 0


@llama_cpp.llama_log_callback
def _log(level: int, text: bytes, _: Any) -> None:
    if level in (3, 4):  # warnings and errors: the last lines explain a refusal
        _messages.append(text.decode(errors="replace"))
        del _messages[:-20]


_messages: list[str] = []
llama_cpp.llama_log_set(_log, ctypes.c_void_p(0))
llama_cpp.llama_backend_init()

_default_params = llama_cpp.llama_model_default_params


def model_params() -> Any:
    """Its defaults, but for repacked weights: on some processors with AMX their kernels crash."""
    params = _default_params()
    params.use_extra_bufts = False
    return params


def quantised(w: np.ndarray, kind: Any) -> np.ndarray:
    """A matrix float32 (rows, n) as ggml quantises it to a type: bytes (rows, of a row)."""
    import gguf

    values, per_block = gguf.GGML_QUANT_SIZES[kind]
    w = np.ascontiguousarray(w, np.float32)
    out = np.zeros((len(w), w.shape[1] // values * per_block), np.uint8)
    of, count = ctypes.c_void_p, ctypes.c_int64
    make = _ggml().ggml_quantize_chunk
    make.argtypes = [ctypes.c_int, of, of, count, count, count, of]
    make.restype = ctypes.c_size_t
    assert make(int(kind), w.ctypes.data, out.ctypes.data, 0, *w.shape, None) == out.nbytes
    return out


def _ggml() -> ctypes.CDLL:
    """The library of llama.cpp that knows block types."""
    (path,) = Path(llama_cpp.__file__).parent.glob("lib/*ggml-base.so")
    return ctypes.CDLL(str(path))


class LlamaCpp:
    """A GGUF model in llama.cpp; a file it refuses raises `ValueError` with its own words."""

    def __init__(self, model: bytes | Path, n_ctx: int = 256) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self._adapters = 0
        params = model_params()
        params.n_gpu_layers = 0
        path = str(model).encode() if isinstance(model, Path) else self._write("model.gguf", model)
        self._model = llama_cpp.llama_model_load_from_file(path, params)
        if not self._model:
            self._folder.cleanup()
            raise ValueError("llama.cpp refuses the model: " + "".join(_messages))
        context = llama_cpp.llama_context_default_params()
        context.n_ctx = context.n_batch = context.n_ubatch = n_ctx
        context.n_threads = context.n_threads_batch = 1
        context.type_k = context.type_v = GGML_TYPE_F32
        context.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
        self._context = llama_cpp.llama_init_from_model(self._model, context)
        assert self._context, "".join(_messages)
        self.vocab = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self._model))
        self._close = weakref.finalize(self, _free, self._context, self._model, self._folder)

    def adapter(self, data: bytes) -> Any:
        """Loads an adapter GGUF; the handle belongs to this model."""
        self._adapters += 1
        path = self._write(f"adapter{self._adapters}.gguf", data)
        adapter = llama_cpp.llama_adapter_lora_init(self._model, path)
        if not adapter:
            raise ValueError("llama.cpp refuses the adapter: " + "".join(_messages))
        return adapter

    def logits(self, tokens: np.ndarray, adapter: Any = None, scale: float = 1.0) -> np.ndarray:
        """Logits float32 (T, V) of one row, from an empty cache."""
        return self.stacked(tokens, [] if adapter is None else [(adapter, scale)])

    def stacked(self, tokens: np.ndarray, adapters: Sequence[tuple[Any, float]]) -> np.ndarray:
        """The same under several adapters, each with its scale."""
        self._begin(adapters)
        return self._read(tokens, 0)

    def greedy(
        self, prompt: np.ndarray, count: int, adapters: Sequence[tuple[Any, float]] = ()
    ) -> tuple[list[int], np.ndarray]:
        """So many most likely tokens, from its own cache, and the logits (count, V) of each."""
        self._begin(adapters)
        found = [self._read(prompt, 0)[-1]]
        while len(found) < count:
            at = len(prompt) + len(found) - 1
            found.append(self._read(np.array([found[-1].argmax()]), at)[0])
        logits = np.stack(found)
        return logits.argmax(1).tolist(), logits

    def _begin(self, adapters: Sequence[tuple[Any, float]]) -> None:
        """An empty cache, and these adapters with their scales."""
        count = len(adapters)
        status = llama_cpp.llama_set_adapters_lora(
            self._context,
            (llama_cpp.llama_adapter_lora_p_ctypes * max(count, 1))(*(a for a, _ in adapters)),
            count,
            (ctypes.c_float * max(count, 1))(*(scale for _, scale in adapters)),
        )
        assert status == 0, status
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self._context), True)

    def _read(self, tokens: np.ndarray, position: int) -> np.ndarray:
        """Logits (T, V) of tokens that follow what was read."""
        n = len(tokens)
        batch = llama_cpp.llama_batch_init(n, 0, 1)
        batch.n_tokens = n
        for i, token in enumerate(tokens):
            batch.token[i] = int(token)
            batch.pos[i] = position + i
            batch.n_seq_id[i] = 1
            batch.seq_id[i][0] = 0
            batch.logits[i] = 1
        status = llama_cpp.llama_decode(self._context, batch)
        llama_cpp.llama_batch_free(batch)
        assert status == 0, f"llama_decode gave {status}: {''.join(_messages)}"
        out = llama_cpp.llama_get_logits(self._context)
        return np.ctypeslib.as_array(out, (n, self.vocab)).copy()

    def close(self) -> None:
        """Frees model, context and adapters."""
        self._close()

    def _write(self, name: str, data: bytes) -> bytes:
        path = Path(self._folder.name, name)
        path.write_bytes(data)
        return str(path).encode()


def _free(context: Any, model: Any, folder: tempfile.TemporaryDirectory) -> None:
    llama_cpp.llama_free(context)
    llama_cpp.llama_model_free(model)
    folder.cleanup()
