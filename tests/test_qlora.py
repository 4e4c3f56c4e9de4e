"""QLoRA beside PEFT on the weights that bitsandbytes dequantises, and runs that know their base."""

from dataclasses import replace
from typing import Any

import gguf
import needs
import numpy as np
import pytest
from peft_oracle import Peft
from test_peft import GRADIENT, LOSS, our_gradients, relative, worst
from tiny import (
    SPECS,
    Tiny,
    hf_weights,
    random_adapter,
    random_rows,
    random_weights,
    targets,
    write,
)

import wgtrain
from wgtrain.data.jsonl import Dataset, Row
from wgtrain.errors import OptionError
from wgtrain.files import quantise_base as q

pytestmark = pytest.mark.gpu
torch: Any = needs.Later("torch")
bnb: Any = needs.Later("bitsandbytes.functional")
SPEC = replace(SPECS["qwen3"], dim=128, heads=4, kv_heads=2, head_dim=32, ff=192, layers=2)


def base(kind: str | None = None) -> Tiny:
    """The F32 file, beside the weights for PEFT: of a kind, as bitsandbytes dequantises them."""
    plain = random_weights(SPEC, 0)
    file = write(SPEC, {k: (w, gguf.GGMLQuantizationType.F32) for k, w in plain.items()})
    for name, values in plain.items():
        if kind and name.startswith("blk.") and values.ndim == 2:
            double = kind == "nf4-double"
            packed, state = bnb.quantize_4bit(
                torch.from_numpy(values),
                quant_type="nf4",
                blocksize=q.BLOCK,
                compress_statistics=double,
            )
            if double:  # of which few codes differ by one
                nested = q.nest(q.encode_nf4(values)[1])
                state.absmax, state.state2.absmax, state.offset = map(
                    torch.from_numpy, (nested.codes, nested.scales, np.array(nested.offset))
                )
            plain[name] = bnb.dequantize_4bit(packed, state).numpy()
    return Tiny(SPEC, "F32", file, file, hf_weights(SPEC, plain))


@pytest.mark.oracle
@pytest.mark.parametrize("kind", ["nf4", "nf4-double"])
def test_a_step_is_that_of_peft_on_the_same_weights(kind: str) -> None:
    """The base as it was misses both bounds."""
    tiny = base(kind)
    rows = random_rows(SPEC, [9, 17, 5, 12], 1)
    with wgtrain.load_model(tiny.gguf, quantize_base=kind) as model:
        pairs = random_adapter(SPEC, targets(SPEC), 3, 1)
        loss, gradients = our_gradients(model, pairs, rows)
    for reference, right in ((tiny, True), (base(), False)):
        total, count, expected = Peft(reference, pairs, 6.0, "float64").gradients(rows)
        assert (relative(np.float64(loss), np.float64(total / count)) <= LOSS) == right
        assert (worst(gradients, expected)[0] <= GRADIENT) == right


def test_runs_repeat_and_checkpoints_know_their_base() -> None:
    rows = Dataset(
        [Row(*pair, line) for line, pair in enumerate(random_rows(SPEC, [9, 17, 5, 12], 0), 1)],
        "rows",
        32,
    )
    config = wgtrain.TrainConfig(iters=3, epochs=None, batch_size=2, learning_rate=1e-2)
    lora = wgtrain.LoraConfig(rank=2)
    file, results, states = base().gguf, [], []
    for kind in ("nf4", "nf4", "int8", "int4", "nf4-double", None):
        with wgtrain.load_model(file, quantize_base=kind) as model:
            trainer = wgtrain.Trainer(model, rows, lora, config)
            results.append(tuple((r.loss, r.grad_norm) for r in trainer.run()))
            states.append(trainer.checkpoint())
            trainer.close()
            if kind is None:
                trainer = wgtrain.Trainer(model, rows, lora, config)
                with pytest.raises(OptionError, match="quantize_base = None: .* with 'nf4'"):
                    trainer.restore(states[0])
                trainer.restore(states[-1])
                trainer.close()
    assert results[0] == results[1] and len(set(results)) == 5
