"""`wgtrain quantize` beside llama.cpp: error on a real Gemma, logits of its file, a large model.

The Gemma is a Q4_K_M, whose dequantised values are quantised again by both sides. The large model
has the shapes and vocabulary of Qwen2.5-0.5B and normal numbers for weights, in F16.
"""

import json
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np

import wgtrain
from wgtrain.files import parse_gguf
from wgtrain.files.encoding import decoded
from wgtrain.files.gguf import typed_metadata
from wgtrain.files.gguf_writer import Planned
from wgtrain.files.quantise_k import BLOCK, TYPES, quantise
from wgtrain.runs.output import write_model

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))
ERROR, LOGITS, SECONDS, MEMORY = 1.02, 1e-3, 300, 1 << 30
BLOCKS, ROWS, CHECKED = ("0", "9", "17"), 4096, 64
# Runs the command as a person would, and tells what it took.
COMMAND = """
import json, re, resource, sys, time
from wgtrain.cli.main import main
began = time.perf_counter()
try:
    main(sys.argv[1:])
except SystemExit as end:
    used = resource.getrusage(resource.RUSAGE_SELF)
    took = [round(time.perf_counter() - began, 1), round(used.ru_utime + used.ru_stime, 1)]
    # Linux's ru_maxrss begins with what the parent had.
    peak = re.search(r"VmHWM:\\s*([0-9]+) kB", open("/proc/self/status").read())
    print(json.dumps([end.code, *took, int(peak[1]) * 1024]))
"""


def main(folder: Path, figures: dict[str, Any]) -> None:
    """Raises where a bound is missed."""
    from real_gemma import model_file

    gemma = model_file()
    rows = figures["error over ggml's on Gemma's matrices"] = compare(gemma)
    figures["largest of them"] = max(max(row[kind] for kind in TYPES) for row in rows)
    assert figures["largest of them"] <= ERROR
    plain, small, again = (folder / f"{name}.gguf" for name in ("f32", "q4_k_m", "again-f32"))
    command(gemma, "F32", plain)
    command(plain, "Q4_K_M", small)
    command(small, "F32", again)
    logits(small, again, figures)
    for path in (plain, again):
        path.unlink()
    check_large(folder, figures)


def command(source: Path, kind: str, out: Path) -> list[Any]:
    """[exit code, seconds, seconds of processors, bytes of memory] of `wgtrain quantize`."""
    arguments = ["quantize", str(source), "--type", kind, "--out", str(out), "--force"]
    done = subprocess.run(
        [sys.executable, "-c", COMMAND, *arguments], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    took: list[Any] = json.loads(done.stdout.splitlines()[-1])
    assert took[0] == 0, done.stderr
    return took


def compare(gemma: Path) -> list[dict[str, Any]]:
    """The root mean square error of our quantisers over that of ggml's, by matrix."""
    from ggml_oracle import quantised

    rows = []
    for tensor in gguf.GGUFReader(gemma).tensors:
        block = tensor.name.split(".")[1]
        if len(tensor.shape) != 2 or (block not in BLOCKS and tensor.name != "token_embd.weight"):
            continue
        raw = np.ascontiguousarray(tensor.data[:ROWS])
        values = decoded(raw.tobytes(), tensor.tensor_type.name, int(tensor.shape[0]))
        x = values.reshape(-1)[: values.size // BLOCK * BLOCK].reshape(-1, BLOCK)
        row: dict[str, Any] = {"tensor": tensor.name, "type": tensor.tensor_type.name}
        for kind in TYPES:
            ours, theirs = (
                np.square(decoded(data.tobytes(), kind, BLOCK) - x, dtype=np.float64).mean()
                for data in (quantise(x, kind), quantised(x, kind))
            )
            row[kind] = round(float(np.sqrt(ours / theirs)) if theirs else float(1 + ours), 4)
        rows.append(row)
    return rows


def logits(small: Path, plain: Path, figures: dict[str, Any]) -> None:
    """Ours on the quantised file, llama.cpp's on the same numbers in F32."""
    from llama_cpp_oracle import LlamaCpp

    tokens = np.random.default_rng(0).integers(300, 200_000, CHECKED)
    with wgtrain.load_model(small) as model:
        ours = model.logits(tokens.tolist())
    judge = LlamaCpp(plain)
    theirs = judge.logits(tokens)
    judge.close()
    apart = float(np.abs(ours - theirs).max() / np.ptp(theirs))
    figures["logits of Gemma's file beside llama.cpp's, of their range"] = f"{apart:.1e}"
    assert apart <= LOGITS


def check_large(folder: Path, figures: dict[str, Any]) -> None:
    """Seconds and memory from F16 to Q4_K_M."""
    path, out = folder / "large-f16.gguf", folder / "large-q4_k_m.gguf"
    figures["values of the large model"] = write_large(path)
    _, seconds, of_processors, memory = command(path, "Q4_K_M", out)
    figures["seconds, large model"], figures["of processors"] = seconds, of_processors
    figures["memory of the process, MiB"] = round(memory / 2**20)
    figures["bytes before and after"] = [path.stat().st_size, out.stat().st_size]
    path.unlink()
    assert seconds <= SECONDS and memory <= MEMORY


def write_large(path: Path) -> int:
    """Writes the F16 file; its number of values."""
    import needs

    layers, width, feed_forward, shared, pieces = 24, 896, 4864, 128, 151_936
    vocabulary = parse_gguf((needs.data() / "vocab" / "ggml-vocab-qwen2.gguf").read_bytes())
    metadata = {k: v for k, v in typed_metadata(vocabulary).items() if k.startswith("tokenizer.")}
    metadata |= {"general.architecture": "qwen2", "qwen2.block_count": layers}
    shapes = {
        **dict.fromkeys(("attn_q", "attn_output"), (width, width)),
        **dict.fromkeys(("attn_k", "attn_v"), (shared, width)),
        **dict.fromkeys(("ffn_gate", "ffn_up"), (feed_forward, width)),
        "ffn_down": (width, feed_forward),
    }
    tensors = [normal("token_embd.weight", (pieces, width))]
    for layer in range(layers):
        tensors += [normal(f"blk.{layer}.{name}.weight", shape) for name, shape in shapes.items()]
    write_model(path, metadata, tensors, True)
    return sum(int(np.prod(tensor.shape)) for tensor in tensors)


def normal(name: str, shape: tuple[int, ...]) -> Planned:
    """A matrix of normal numbers."""
    return Planned(name, "F16", shape, lambda: made(name, int(np.prod(shape))))


async def made(name: str, count: int) -> AsyncIterator[bytes]:
    """Numbers that depend on the name, in pieces."""
    rng = np.random.default_rng(list(name.encode()))
    for at in range(0, count, 1 << 20):
        values = rng.standard_normal(min(1 << 20, count - at), np.float32)
        yield (values * np.float32(0.02)).astype("<f2").tobytes()
