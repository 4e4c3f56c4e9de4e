"""`wgtrain merge` of a real Gemma, the Q4_K_M as it comes, and an adapter on all its linears:
sizes, seconds, memory and effect by type; in F32 the same as base and adapter, here and in
llama.cpp. And of a large F16 model, whose memory is no more.

The adapter is random, as strong as one of a few hundred steps: the perplexities are those of no
use, their differences those of the types.
"""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

import wgtrain
from wgtrain.api import opened_base
from wgtrain.files import GGUF, Adapter, parse_gguf, split_tensor, write_adapter_gguf
from wgtrain.runs.output import write_model

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "scripts" / "evidence.d")]
RANK, SPREAD, CHECKED = 8, 0.01, 32
EXACT, MEMORY = 1e-5, 400 << 20
TYPES = ("", "Q8_0", "F16")
EFFECT = re.compile(
    r"at most (\S+) of their range, (\S+) on average.*perplexity (\S+) with.*, (\S+) merged"
)


def main(folder: Path, figures: dict[str, Any]) -> None:
    """Raises where a bound is missed."""
    from real_gemma import model_file

    gemma, adapter = model_file(), folder / "adapter.gguf"
    write_adapter(parse_gguf(gemma.read_bytes()), adapter)
    figures["bytes of the base"] = gemma.stat().st_size
    figures["of Gemma"] = [merged(gemma, adapter, folder, kind) for kind in TYPES]
    assert all(row["MiB of the process"] << 20 <= MEMORY for row in figures["of Gemma"])
    check_exact(gemma, adapter, folder, figures)
    check_large(folder, figures)


def write_adapter(gguf: GGUF, path: Path) -> None:
    """Random matrices on the linears of all blocks."""
    rng = np.random.default_rng(0)
    pairs = {}
    for name, info in gguf.tensors.items():
        place = split_tensor(name)
        if place is not None and place[0] >= 0:
            a = rng.standard_normal((RANK, info.shape[1]), np.float32)
            b = rng.standard_normal((info.shape[0], RANK), np.float32)
            pairs[name] = a / np.float32(np.sqrt(info.shape[1])), b * np.float32(SPREAD)
    architecture = gguf.get("general.architecture", str)
    path.write_bytes(write_adapter_gguf(Adapter(architecture, RANK, 2.0 * RANK, pairs)))


def merged(base: Path, adapter: Path, folder: Path, kind: str) -> dict[str, Any]:
    """A merge as a person would run it, and what it says of its effect."""
    out = folder / f"merged-{kind or 'same'}.gguf"
    arguments = ["merge", "--model", base, "--adapter", adapter, "--out", out, "--force"]
    arguments += ["--type", kind] if kind else []
    seconds, memory = command([*arguments, "--no-check"])
    done = subprocess.run(
        [sys.executable, "-m", "wgtrain", *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    effect = EFFECT.search(done.stdout)
    assert effect is not None, done.stdout
    row = {
        "type": kind or "as the base",
        "bytes": out.stat().st_size,
        "seconds": seconds,
        "MiB of the process": round(memory / 2**20),
        "largest difference of logits, of their range": effect[1],
        "mean": effect[2],
        "perplexity with base and adapter": effect[3],
        "merged": effect[4],
    }
    out.unlink()
    return row


def command(arguments: list[Any]) -> tuple[float, int]:
    """(seconds, bytes of memory) of a command."""
    from quantise import COMMAND

    done = subprocess.run(
        [sys.executable, "-c", COMMAND, *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    code, seconds, _, memory = json.loads(done.stdout.splitlines()[-1])
    assert code == 0, done.stderr
    return seconds, memory


def check_exact(gemma: Path, adapter: Path, folder: Path, figures: dict[str, Any]) -> None:
    """Merged in F32: the logits of base and adapter; llama.cpp's of the same file."""
    from llama_cpp_oracle import LlamaCpp

    out = folder / "merged-f32.gguf"
    wgtrain.merge(gemma, [(adapter, 1.0)], out, "F32", True)
    tokens = np.random.default_rng(0).integers(300, 200_000, CHECKED)
    with wgtrain.load_model(gemma) as model:
        stacked = model.logits(tokens.tolist(), [(adapter, 1.0)])
        plain = model.logits(tokens.tolist())
    with wgtrain.load_model(out) as model:
        ours = model.logits(tokens.tolist())
    judge = LlamaCpp(out)
    theirs = judge.logits(tokens)
    judge.close()
    out.unlink()
    span = np.ptp(stacked)
    apart = {
        "base and adapter": float(np.abs(ours - stacked).max() / span),
        "llama.cpp on the same file": float(np.abs(ours - theirs).max() / span),
        "the base alone": float(np.abs(ours - plain).max() / span),
    }
    figures["logits of F32, largest difference over their range"] = apart
    assert apart["base and adapter"] <= EXACT < 100 * EXACT < apart["the base alone"]
    assert apart["llama.cpp on the same file"] <= 1e-3


def check_large(folder: Path, figures: dict[str, Any]) -> None:
    """Memory of a model of 944 MB in F16."""
    path, adapter, out = (folder / name for name in ("large.gguf", "large-a.gguf", "merged.gguf"))
    write_large(path)
    with opened_base(path) as base:
        write_adapter(base.gguf, adapter)
    arguments = ["merge", "--model", path, "--adapter", adapter, "--out", out, "--force"]
    seconds, memory = command([*arguments, "--no-check", "--no-modelfile"])
    figures["large model"] = {
        "bytes": path.stat().st_size,
        "seconds": seconds,
        "MiB of the process": round(memory / 2**20),
    }
    for file in (path, out):
        file.unlink()
    assert memory <= MEMORY


def write_large(path: Path) -> None:
    """A llama of normal numbers."""
    from quantise import normal

    layers, width, feed_forward, shared, pieces = 24, 896, 4864, 128, 128_000
    metadata = {
        "general.architecture": "llama",
        "llama.block_count": layers,
        "llama.context_length": 2048,
        "llama.embedding_length": width,
        "llama.feed_forward_length": feed_forward,
        "llama.attention.head_count": 14,
        "llama.attention.head_count_kv": 2,
        "llama.attention.layer_norm_rms_epsilon": 1e-6,
    }
    shapes: dict[str, tuple[int, ...]] = {
        **dict.fromkeys(("attn_norm", "ffn_norm"), (width,)),
        **dict.fromkeys(("attn_q", "attn_output"), (width, width)),
        **dict.fromkeys(("attn_k", "attn_v"), (shared, width)),
        **dict.fromkeys(("ffn_gate", "ffn_up"), (feed_forward, width)),
        "ffn_down": (width, feed_forward),
    }
    tensors = [normal("token_embd.weight", (pieces, width)), normal("output_norm.weight", (width,))]
    for layer in range(layers):
        tensors += [normal(f"blk.{layer}.{name}.weight", shape) for name, shape in shapes.items()]
    write_model(path, metadata, tensors, True)
