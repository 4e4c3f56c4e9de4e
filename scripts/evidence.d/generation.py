"""Generation with cached keys and values, beside llama.cpp: stories260K and a real Gemma.

Greedy tokens and the logits after each, of the bare model and under adapters: one, two stacked,
scales from -1 to 1. llama.cpp reads F32, of a quantised file a GGUF of its dequantised weights. A
cached answer is also held to what the model says of the whole row, read anew.
"""

import sys
import time
from pathlib import Path
from typing import Any

import gguf
import numpy as np

import wgtrain
from wgtrain.files.adapters import Adapter, write_adapter_gguf

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))
COUNT, CHECKED = 200, 40  # tokens; of them compared with the whole row read anew
LOGITS, CACHED = 1e-3, 1e-5  # of the range of a row of logits
STACKS = ((), (0.0,), (0.5,), (1.0,), (-1.0,), (1.0, 0.5))  # scales of the first, or both
PROMPT = "Once upon a time, in a village by the sea,"


def main(folder: Path, figures: dict[str, Any]) -> None:
    """Raises where a bound is missed."""
    import needs
    from gemma import write_f32
    from real_gemma import dequantised, model_file

    path = needs.data() / "stories260K.gguf"
    check(path, path, STACKS, "stories260K F32", figures)
    path = model_file()
    reader = gguf.GGUFReader(path)
    plain = folder / "f32.gguf"
    write_f32(reader, dequantised(reader), plain)
    check(path, plain, ((), (1.0, 0.5)), "Gemma 3 270M Q4_K_M", figures)
    plain.unlink()


def check(
    path: Path, judged: Path, stacks: tuple[tuple[float, ...], ...], name: str, figures: Any
) -> None:
    """All stacks of one model, as a table."""
    from llama_cpp_oracle import LlamaCpp

    judge = LlamaCpp(judged, n_ctx=512)
    rows: list[dict[str, Any]] = []
    figures[name] = rows
    with wgtrain.load_model(path) as model:
        prompt = model.tokenizer.encode(PROMPT, bos=model.tokenizer.add_bos)
        adapters = [random_adapter(model, 4, 1), random_adapter(model, 8, 2)]
        handles = [judge.adapter(write_adapter_gguf(adapter)) for adapter in adapters]
        for scales in stacks:
            stack = list(zip(adapters, scales, strict=False))
            began = time.perf_counter()
            made, ours = greedy(model, stack, prompt)
            seconds = time.perf_counter() - began
            told, theirs = judge.greedy(
                np.array(prompt), COUNT, list(zip(handles, scales, strict=False))
            )
            same = next((i for i in range(COUNT) if made[i] != told[i]), COUNT)
            upto = min(same + 1, COUNT)  # the rows are the same so far
            apart = (np.abs(ours - theirs)[:upto].max(1) / np.ptp(theirs[:upto], 1)).max()
            anew = model.logits([*prompt, *made[:CHECKED]], stack)[len(prompt) - 1 : -1]
            cached = (np.abs(ours[:CHECKED] - anew).max(1) / np.ptp(anew, 1)).max()
            rows.append(
                {
                    "scales": list(scales),
                    "equal tokens": same,
                    "logits apart": float(apart),
                    "cached from anew": float(cached),
                    "tokens a second": round(COUNT / seconds, 1),
                }
            )
            assert same == COUNT and apart <= LOGITS and cached <= CACHED, rows[-1]
    judge.close()


def greedy(model: Any, stack: Any, prompt: list[int]) -> tuple[list[int], np.ndarray]:
    """Tokens, and the logits (COUNT, V) of each."""
    room = len(prompt) + COUNT
    session = wgtrain.run(model.sequences(model.stack(stack), 1, room))
    logits, new = [], prompt
    for _ in range(COUNT):
        logits.append(wgtrain.run(session.extend({0: new}))[0])
        new = [int(logits[-1].argmax())]
    session.close()
    found = np.stack(logits)
    return found.argmax(1).tolist(), found


def random_adapter(model: Any, rank: int, seed: int) -> Adapter:
    """One that changes what is said, and leaves it text."""
    rng = np.random.default_rng(seed)
    pairs = {
        name: (
            (rng.standard_normal((rank, columns)) / columns**0.5).astype(np.float32),
            (rng.standard_normal((rows, rank)) * 0.02).astype(np.float32),
        )
        for name, (rows, columns) in model.config.linears().items()
    }
    return Adapter(model.config.architecture, rank, 2.0 * rank, pairs)
