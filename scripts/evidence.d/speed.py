"""One training step of the stories15M shape, beside PEFT's on the same processor.

Random weights, LoRA r=8 on all linears, 4 rows of 128 tokens, steps of both sides in turn.
"""

import os
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

import wgtrain
from wgtrain.data import Row, make_batch
from wgtrain.train.learner import Learner

ROOT = Path(__file__).resolve().parents[2]
ROWS, LENGTH, RANK, ALPHA, STEPS = 4, 128, 8, 16.0, 5


def main(folder: Path, figures: dict[str, Any]) -> None:
    """Times whole steps: forward, backward, clipping and update, until the loss is read."""
    sys.path.insert(0, str(ROOT / "tests"))
    import torch
    from peft_oracle import Peft, Settings
    from random_model import Shape, build
    from tiny import from_gguf

    shape = Shape(
        width=288,
        heads=6,
        kv_heads=6,
        head_size=48,
        feed_forward=768,
        layers=6,
        vocabulary=32_000,
    )
    path = folder / "stories15M-shape.gguf"
    path.write_bytes(build(shape))
    rng = np.random.default_rng(0)
    targets = rng.integers(0, shape.vocabulary, (ROWS, LENGTH + 1)).astype(np.int32)
    rows = [Row(row[:-1].astype(np.uint32), row[1:], i) for i, row in enumerate(targets)]

    with wgtrain.load_model(path) as model:
        lora = wgtrain.LoraConfig(rank=RANK, alpha=ALPHA)
        learner = Learner(model, lora, max_tokens=ROWS * LENGTH, max_row=LENGTH)
        values = {
            name: rng.normal(0, 0.05, size).astype(np.float32)
            for name, size in learner.shapes.items()
        }
        learner.set_parameters(values)
        wgtrain.run(learner.build())
        names = [name.removesuffix(".lora_a") for name in values if name.endswith("a")]
        pairs = {name: (values[f"{name}.lora_a"], values[f"{name}.lora_b"]) for name in names}
        torch.set_num_threads(os.cpu_count() or 1)
        reference = Peft(from_gguf(path), pairs, ALPHA)
        tuples = [(row.tokens, row.targets) for row in rows]
        settings = Settings(1, ROWS, 1, 1e-4, "constant", 0, 0.0, 1.0)
        ours, theirs = [], []
        for number in range(1, STEPS + 2):
            began = time.perf_counter()
            learner.micro(make_batch(rows))
            learner.update(step=number, learning_rate=1e-4, max_grad_norm=1.0)
            (report,) = wgtrain.run(learner.reports())
            ours.append(time.perf_counter() - began)
            began = time.perf_counter()
            run = reference.train(tuples, settings)
            theirs.append(time.perf_counter() - began)
            if number == 1:
                assert abs(report.loss / run.losses[0] - 1) < 1e-5
        figures |= {
            "device": f"{model.device.info.name}, {os.cpu_count()} cores",
            "wgtrain, seconds a step": [round(s, 3) for s in ours[1:]],
            "PEFT float32 on the CPU, seconds a step": [round(s, 3) for s in theirs[1:]],
            "median, wgtrain": round(median(ours[1:]), 3),
            "median, PEFT": round(median(theirs[1:]), 3),
            "ratio, median of pairs": round(
                median(a / b for a, b in zip(ours[1:], theirs[1:], strict=True)), 2
            ),
            "first step, with compiling": round(ours[0], 2),
            "plan, bytes": learner.nbytes,
        }
    path.unlink()
