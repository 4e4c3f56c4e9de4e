"""What the parts `full_size_*` share: a model of real shapes, with a real vocabulary and random
weights, is planned, opened and trained for two steps on one row, with recomputation.
"""

import json
import resource
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import wgtrain
from wgtrain.bench.shapes import Shape
from wgtrain.bench.weights import RandomWeights
from wgtrain.files import BytesSource, read_gguf
from wgtrain.gpu import run

RANK, TOKENS, RATE, STEPS = 16, 512, 1e-3, 2
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))


@dataclass(frozen=True)
class Real(Shape):
    """A shape with the tokenizer of a vocabulary file of the shared data."""

    vocab: str = "qwen2"

    def metadata(self) -> dict[str, Any]:
        """With the tokenizer's."""
        import needs

        path = needs.data() / "vocab" / f"ggml-vocab-{self.vocab}.gguf"
        vocabulary = run(read_gguf(BytesSource(path.read_bytes()))).metadata
        tokenizer = {k: v for k, v in vocabulary.items() if k.startswith("tokenizer.")}
        return super().metadata() | tokenizer


def one_row() -> bytes:
    """A text that is longer than a row."""
    import needs

    text = (needs.data() / "wikisql_train.jsonl").read_text()[: 16 * TOKENS]
    return json.dumps({"text": text}).encode()


def measure(shape: Real, figures: dict[str, Any]) -> None:
    """Fills `figures`; raises where the plan is not what the device counts, or nothing is learned.

    On a software adapter GPU memory is memory of the process, and is taken off its peak.
    """
    lora = wgtrain.LoraConfig(rank=RANK)
    config = wgtrain.TrainConfig(
        iters=STEPS,
        batch_size=1,
        seq_len=TOKENS,
        learning_rate=RATE,
        lr_schedule="constant",
        warmup_steps=0,
        grad_checkpoint="on",
        train_on="all",
        tuning="default",
    )
    began = time.perf_counter()
    source = RandomWeights(shape)
    planned = wgtrain.plan(source, lora, config)
    figures["seconds to plan"] = round(time.perf_counter() - began, 2)
    figures["file, bytes"], figures["parameters"] = source.size, planned.frozen
    figures["trainable parameters"] = planned.trainable
    began = time.perf_counter()
    model = wgtrain.load_model(source)
    figures["seconds to load"] = round(time.perf_counter() - began, 1)
    rows = wgtrain.load_dataset(one_row(), model, seq_len=TOKENS, train_on="all")
    assert [len(row.tokens) for row in rows.rows] == [TOKENS]
    trainer = wgtrain.Trainer(model, rows, lora, config, valid=rows)
    trainer.build()
    counted = model.device.allocated
    figures["planned, bytes"], figures["on the device, bytes"] = planned.total_bytes, counted
    figures["by purpose, bytes"] = planned.by_purpose
    figures["largest binding"] = planned.needs.largest_binding
    began = time.perf_counter()
    results = list(trainer.run())
    figures["seconds for two steps and two validations"] = round(time.perf_counter() - began, 1)
    before, after = (evaluation.loss for evaluation in trainer.evaluations)
    losses = [result.loss for result in results]
    figures["loss of each step, then after both"] = [*losses, after]
    figures["gradient norms"] = [result.grad_norm for result in results]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    software = model.device.info.type == "CPU"
    figures["process above GPU memory, bytes"] = above = peak - counted if software else peak
    assert model.device.allocated == counted, "steps allocate nothing"
    trainer.close()
    model.close()
    assert counted == planned.total_bytes, (counted, planned.total_bytes)
    assert np.isfinite([*losses, after, above]).all()
    assert abs(before - losses[0]) < 1e-5 * losses[0], (before, losses)
    assert losses[0] > losses[1] > after, (losses, after)
