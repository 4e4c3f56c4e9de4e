"""A few steps on a real Gemma 3 270M Q4_K_M beside PEFT; `scripts/evidence gemma` goes further."""

import gguf
import needs
import numpy as np
import pytest
import real_gemma
from peft_oracle import Peft, Settings

import wgtrain

pytestmark = [pytest.mark.oracle, pytest.mark.slow, pytest.mark.gpu]
SETTINGS = Settings(3, 1, 1, 1e-3, "constant", 0, 0.0, 1.0)
LOSS = 1e-4  # relative


def test_steps_on_the_file_as_it_comes_are_those_of_peft() -> None:
    """An untrained adapter's losses at the last step would miss the bound by far."""
    path = real_gemma.model_file()
    lines = (needs.data() / "wikisql_train.jsonl").read_bytes().splitlines(keepends=True)[:3]
    with wgtrain.load_model(path) as model:
        rows = wgtrain.load_dataset(b"".join(lines), model, seq_len=64)
        config = wgtrain.TrainConfig(
            epochs=None,
            iters=SETTINGS.steps,
            batch_size=1,
            learning_rate=SETTINGS.learning_rate,
            lr_schedule="constant",
            warmup_steps=0,
            shuffle=False,
            seq_len=64,
        )
        trainer = wgtrain.Trainer(model, rows, wgtrain.LoraConfig(rank=8, alpha=16), config)
        start = trainer.adapter().tensors
        losses = [result.loss for result in trainer.run()]
        trainer.close()
    weights = real_gemma.dequantised(gguf.GGUFReader(path))
    theirs = Peft(real_gemma.base_for_peft(weights), start, 16.0)
    pairs = [(row.tokens, row.targets) for row in rows.rows]
    untrained = [total / count for total, count in (theirs.evaluate([pair]) for pair in pairs)]
    run = theirs.train(pairs, SETTINGS)
    np.testing.assert_allclose(losses, run.losses, rtol=LOSS)
    assert abs(untrained[-1] / run.losses[-1] - 1) > 10 * LOSS
