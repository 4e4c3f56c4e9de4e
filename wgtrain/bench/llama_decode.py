"""Decoding by llama.cpp on the processor: a process of its own.

F32 keys and values, as ours; its repacked weights are off, whose kernels crash on some processors
with AMX.
"""

import ctypes
import os
import tempfile
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from wgtrain.bench.child import serve
from wgtrain.bench.shapes import Shape
from wgtrain.bench.weights import RandomWeights

_PIECE = 16 << 20
_COMPARED = 64  # logits that are told


class LlamaDecode:
    """Reads the first prompt of a shape, then one token after the other."""

    def __init__(self, shape: Shape, job: dict[str, Any]):
        import llama_cpp

        self._llama = llama_cpp
        self._quiet = llama_cpp.llama_log_callback(lambda level, text, data: None)
        llama_cpp.llama_log_set(self._quiet, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
        threads = os.cpu_count() or 1
        params = llama_cpp.llama_model_default_params()
        params.n_gpu_layers, params.use_extra_bufts = 0, False
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "model.gguf")
            _write(shape, path)
            self._model = llama_cpp.llama_model_load_from_file(str(path).encode(), params)
        if not self._model:
            raise RuntimeError("llama.cpp does not read the model")
        context = llama_cpp.llama_context_default_params()
        context.n_ctx = context.n_batch = context.n_ubatch = shape.length + 256
        context.n_threads = context.n_threads_batch = threads
        context.type_k = context.type_v = 0  # F32
        context.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
        self._context = llama_cpp.llama_init_from_model(self._model, context)
        self._prompt = shape.stream()[0, :-1].tolist()
        self._vocabulary = shape.vocabulary
        self.about = {
            "versions": {"llama-cpp-python": metadata.version("llama-cpp-python")},
            "device": "CPU",
            "threads": threads,
            "dtype": shape.type,
        }

    def steps(self, count: int) -> dict[str, Any]:
        """Seconds of reading the prompt and of each of `count` tokens behind it, after a first one;
        some of the logits behind the prompt.
        """
        memory = self._llama.llama_get_memory(self._context)
        self._llama.llama_memory_clear(memory, True)
        began = time.perf_counter()
        logits = self._read(self._prompt, 0)
        prefill = time.perf_counter() - began
        first = logits[:_COMPARED].tolist()
        self._read([0], len(self._prompt))
        began = time.perf_counter()
        for number in range(count):
            self._read([number % self._vocabulary], len(self._prompt) + 1 + number)
        seconds = (time.perf_counter() - began) / count
        return {"seconds": seconds, "prefill": prefill, "logits": first}

    def _read(self, tokens: list[int], position: int) -> np.ndarray:
        """The logits after the last token."""
        llama = self._llama
        batch = llama.llama_batch_init(len(tokens), 0, 1)
        batch.n_tokens = len(tokens)
        for i, token in enumerate(tokens):
            batch.token[i], batch.pos[i] = token, position + i
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, 0
            batch.logits[i] = i == len(tokens) - 1
        status = llama.llama_decode(self._context, batch)
        llama.llama_batch_free(batch)
        if status:
            raise RuntimeError(f"llama_decode gave {status}")
        found = llama.llama_get_logits_ith(self._context, -1)
        return np.ctypeslib.as_array(found, (self._vocabulary,)).copy()


def _write(shape: Shape, path: Path) -> None:
    """The model of random weights, without a tokenizer."""
    more = {
        "tokenizer.ggml.model": "none",
        f"{shape.architecture}.vocab_size": shape.vocabulary,
    }
    source = RandomWeights(shape, more)
    with path.open("wb") as file:
        for at in range(0, source.size, _PIECE):
            file.write(source.read_range(at, min(_PIECE, source.size - at)))


if __name__ == "__main__":
    serve(LlamaDecode)
