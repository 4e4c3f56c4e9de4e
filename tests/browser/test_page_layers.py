"""A model of one's own, and samples of a run, in the page."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import wgtrain
from wgtrain.cli.demo import FILES

pytestmark = [pytest.mark.browser, pytest.mark.gpu]

OWN_MODEL = '''
import numpy as np
import wgtrain
from wgtrain import Activation, Linear, LinearModel

async def learn(device=None):
    """Losses, what is saved of them, and whether that comes back to the bit."""
    rng = np.random.default_rng(1)
    sizes = {"fc1": (70, 64), "fc2": (33, 70), "out": (5, 33)}
    linears = [Linear(name, rng.standard_normal(shape) / 8) for name, shape in sizes.items()]
    layers = [linears[0], Activation("gelu"), linears[1], Activation("tanh"), linears[2]]
    x, classes = rng.standard_normal((19, 64)), rng.integers(0, 5, 19)
    model = LinearModel(layers, {"fc1": "nf4"}, device=device)
    wgtrain.inject_lora(model, 3, 6.0)
    losses = []
    for _ in range(4):
        losses.append(await model.aio.step(x, classes, "cross_entropy", learning_rate=1e-2))
    data = await wgtrain.aio.save_adapter(model)
    y = await model.aio.forward(x)
    model.close()
    again = LinearModel(layers, {"fc1": "nf4"}, device=device)
    wgtrain.load_adapter(again, data)
    same = bool((await again.aio.forward(x) == y).all())
    again.close()
    return losses, same
'''

SAMPLES = """
import wgtrain
from pyodide.http import pyfetch
from wgtrain.data import load_rows

base, train = [await (await pyfetch(name)).bytes() for name in ("base.gguf", "train.jsonl")]
model = await wgtrain.aio.load_model(base, limits="default")
lines = train.splitlines(keepends=True)[:6]
rows = load_rows(b"".join(lines), model.tokenizer, seq_len=96)
config = wgtrain.TrainConfig(
    epochs=None, iters=2, batch_size=2, learning_rate=4e-2, warmup_ratio=0, sample=["Anna is 30."]
)
trainer = wgtrain.Trainer(model, rows, wgtrain.LoraConfig(rank=2, alpha=8), config)
results = [result async for result in trainer.aio.run()]
adapter = await trainer.aio.adapter_gguf()
(sample,) = results[-1].samples
found = [[len(result.samples) for result in results], sample.prompt, sample.base, sample.tuned]
for adapters in ([], [(adapter, 1.0)]):
    messages = [{"role": "user", "content": sample.prompt}]
    pieces = model.aio.generate(messages, max_tokens=64, adapters=adapters)
    found.append("".join([piece async for piece in pieces]))
trainer.close()
model.close()
found
"""


def test_own_model(shared_tab: Any, device: Any) -> None:
    """Losses are those of the same run natively, on another driver."""
    losses, same = shared_tab.python(f"{OWN_MODEL}\nlist(await learn())")
    names: dict[str, Any] = {}
    exec(OWN_MODEL, names)
    expected, _ = wgtrain.run(names["learn"](device))
    assert same and losses[-1] < losses[0]
    np.testing.assert_allclose(losses, expected, rtol=1e-5)


def test_samples(shared_tab: Any, site: Path) -> None:
    for name in ("base.gguf", "train.jsonl"):
        (site / name).write_bytes((FILES / name).read_bytes())
    counts, prompt, base, tuned, *generated = shared_tab.python(SAMPLES)
    assert counts == [0, 1] and prompt == "Anna is 30."
    assert [base, tuned] == generated and base != tuned
