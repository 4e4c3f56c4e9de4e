"""Short runs of the trainer, natively and in the page, by the same code.

Natively: `python page_train.py MODEL ROWS` prints the outcome as JSON.
"""

import hashlib
import json
import sys
import time
from base64 import b64encode
from pathlib import Path
from typing import Any

import wgtrain
from wgtrain import LoraConfig, TrainConfig, Trainer
from wgtrain.data import load_rows
from wgtrain.train.windows import At, Windows

LORA = LoraConfig(rank=4, alpha=8, dropout=0.1)
STEPS = 20


def settings(steps: int = STEPS) -> TrainConfig:
    return TrainConfig(
        epochs=None,
        iters=steps,
        batch_size=2,
        grad_accum=2,
        learning_rate=1e-2,
        warmup_steps=2,
        seq_len=64,
    )


async def make(
    source: Any,
    rows: bytes,
    *,
    lora: LoraConfig = LORA,
    config: TrainConfig | None = None,
    limits: str | None = "default",
) -> Trainer:
    """A trainer on a model opened with WebGPU's default limits."""
    config = config or settings()
    model = await wgtrain.aio.load_model(source, limits=limits)
    tokenizer: Any = model
    data = load_rows(rows, tokenizer.tokenizer, seq_len=config.seq_len, name="rows")
    return Trainer(model, data, lora, config)


def batches(trainer: Trainer) -> str:
    """A hash of everything that all the steps are fed with."""
    windows, digest, at = Windows(trainer.rows, trainer.config), hashlib.sha256(), At()
    for _ in range(trainer.total_steps):
        window, at = windows.window(at)
        for batch in window:
            for array in (batch.tokens, batch.targets, batch.starts, batch.ends):
                digest.update(array.tobytes())
    return digest.hexdigest()


async def outcome(source: Any, rows: bytes) -> dict[str, Any]:
    """Losses, gradient norms, batches and adapter of a run of `STEPS` steps, and of all rows the
    losses without the adapter and with it.
    """
    trainer = await make(source, rows)
    results = [result async for result in trainer.aio.run()]
    adapter = await trainer.aio.adapter_gguf()
    stacks: dict[str, Any] = {"base": [], "tuned": [(adapter, 1.0)]}
    compared = await wgtrain.compare.aio(trainer.model, trainer.rows, stacks, 1, 30)
    assert "<svg" in compared.html
    found = {
        "losses": [result.loss for result in results],
        "norms": [result.grad_norm for result in results],
        "counts": [result.trained_tokens for result in results],
        "batches": batches(trainer),
        "adapter": b64encode(adapter).decode(),
        "evaluated": [one.result.loss for one in compared.contenders],
        "device": trainer.model.device.info.name,
    }
    trainer.close()
    trainer.model.close()
    return found


async def speed(source: Any, lengths: list[int], steps: int, text: str = "") -> dict[str, Any]:
    """Seconds of a step over rows of random tokens of these lengths; a text is encoded before."""
    import numpy as np

    from wgtrain.data import make_batch
    from wgtrain.data.jsonl import Row
    from wgtrain.train.learner import lora_learner

    model = await wgtrain.aio.load_model(source, limits="default")
    if text:
        model.tokenizer.encode(text)
    rng = np.random.default_rng(5)
    rows = []
    for n in lengths:
        tokens = rng.integers(0, model.config.vocabulary, n).astype(np.uint32)
        rows.append(Row(tokens, np.append(tokens[1:], -1).astype(np.int32), 1))
    batch = make_batch(rows)
    lora = LoraConfig(rank=8, alpha=16)
    sizes = {"max_tokens": len(batch.tokens), "max_row": max(lengths)}
    learner = lora_learner(model.base, lora, device=model.device, **sizes)
    await learner.build()
    javascript = getattr(model.device, "javascript", None)
    before = javascript.seconds if javascript else 0.0
    seconds, queueing, losses = [], [], []
    for step in range(1, steps + 1):
        began = time.perf_counter()
        learner.micro(batch)
        learner.update(step=step, learning_rate=1e-4)
        queueing.append(time.perf_counter() - began)
        losses += [report.loss for report in await learner.reports()]
        seconds.append(time.perf_counter() - began)
    # Of `queueing`, what the replay itself takes in the browser.
    inside = javascript.seconds - before if javascript else 0.0
    learner.close()
    model.close()
    return {"seconds": seconds, "queueing": queueing, "losses": losses, "inside": inside}


def main() -> None:
    """Prints what a native run gives; `speed MODEL STEPS` times one."""
    if sys.argv[1] == "speed":
        source = Path(sys.argv[2]).read_bytes()
        found = wgtrain.run(speed(source, [128] * 4, int(sys.argv[3])))
    else:
        model, rows = (Path(path).read_bytes() for path in sys.argv[1:])
        found = wgtrain.run(outcome(model, rows))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
