"""A real model on real rows: stories260K on wikisql, loss before and after, beside PEFT's.

Both sides train on the same rows in the same order with the same settings, from the same A and B.
"""

import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

import wgtrain
from wgtrain.data.batches import Batches

ROOT = Path(__file__).resolve().parents[2]
RANK, ALPHA, BATCH, EPOCHS, RATE, WARMUP, SEED = 8, 16.0, 4, 1, 2e-3, 10, 42


def main(folder: Path, figures: dict[str, Any]) -> None:
    """Trains one epoch on both sides; the adapter goes to `folder`."""
    sys.path.insert(0, str(ROOT / "tests"))
    import needs
    from peft_oracle import Peft, Settings
    from tiny import from_gguf

    data = needs.data()
    path = data / "stories260K.gguf"
    base = from_gguf(path)
    with wgtrain.load_model(path) as model:
        train, valid = (
            wgtrain.load_dataset((data / f"wikisql_{part}.jsonl").read_bytes(), model, seq_len=512)
            for part in ("train", "valid")
        )
        lora = wgtrain.LoraConfig(rank=RANK, alpha=ALPHA)
        config = wgtrain.TrainConfig(
            epochs=EPOCHS, batch_size=BATCH, learning_rate=RATE, warmup_steps=WARMUP, seed=SEED
        )
        trainer = wgtrain.Trainer(model, train, lora, config, valid)
        start = trainer.adapter().tensors
        before, count = trainer.evaluate()
        began = time.perf_counter()
        steps = list(trainer.run())
        seconds = time.perf_counter() - began
        after, _ = trainer.evaluate()
        final = trainer.adapter().tensors
        (folder / "adapter.gguf").write_bytes(trainer.adapter_gguf())
        trainer.close()

    batches = Batches(train.rows, batch_size=BATCH, seed=SEED, seq_len=train.seq_len)
    order = [i for epoch in range(EPOCHS) for batch in batches.per_epoch(epoch) for i in batch]
    rows, held = (
        [(row.tokens, row.targets) for row in part]
        for part in ([train.rows[i] for i in order], valid.rows)
    )
    settings = Settings(len(steps), BATCH, 1, RATE, "cosine", WARMUP, 0.0, 1.0)
    theirs = Peft(base, start, ALPHA)
    their_before, their_count = theirs.evaluate(held)
    began = time.perf_counter()
    run = theirs.train(rows, settings)
    their_seconds = time.perf_counter() - began
    their_after, _ = theirs.evaluate(held)
    theirs.set(final)
    judged, _ = theirs.evaluate(held)  # our adapter, judged by PEFT

    apart = np.abs(np.array([s.loss for s in steps]) / np.array(run.losses) - 1)
    figures |= {
        "settings": f"rank {RANK}, alpha {ALPHA}, all linears, {len(steps)} steps of {BATCH} rows, "
        f"{sum(len(t) for t, _ in rows)} tokens, rate {RATE}, cosine, warm-up {WARMUP}",
        "validation": f"{len(held)} rows, {count} trained tokens",
        "loss": [
            {"side": "wgtrain", "before": before, "after": after, "seconds": round(seconds, 1)},
            {
                "side": "PEFT (float32, CPU, one thread)",
                "before": their_before / their_count,
                "after": their_after / their_count,
                "seconds": round(their_seconds, 1),
            },
            {"side": "our adapter in PEFT", "before": "", "after": judged / their_count},
        ],
        "largest relative difference of a step's loss": float(apart.max()),
        "at step": int(apart.argmax()) + 1,
    }
    assert count == their_count, (count, their_count)
    for ours, reference, bound in (
        (before, their_before, 1e-5),
        (after, judged, 1e-5),
        (after, their_after, 1e-5),
    ):
        difference = abs(ours * count / reference - 1)
        assert difference <= bound, f"{difference} > {bound}"
    assert after < 0.8 * before
