"""LoRA for a model of one's own: three linear layers, adapted to data that they do not fit.

    python examples/own_model.py [adapter.gguf]

The frozen weights are arrays of float32, here random ones; of PyTorch they would be
`layer.weight.detach().numpy()` and `layer.bias.detach().numpy()`.
"""

import sys

import numpy as np

import wgtrain
from wgtrain import Activation, Linear, LinearModel

rng = np.random.default_rng(0)


def weight(outputs: int, inputs: int) -> np.ndarray:
    """A matrix that keeps the size of what goes through it."""
    return (rng.standard_normal((outputs, inputs)) / inputs**0.5).astype(np.float32)


layers = [
    Linear("fc1", weight(128, 64), np.zeros(128)),
    Activation("gelu"),
    Linear("fc2", weight(128, 128), np.zeros(128)),
    Activation("gelu"),
    Linear("out", weight(4, 128)),
]
x = rng.standard_normal((256, 64))
classes = (x @ rng.standard_normal((64, 4))).argmax(axis=1)  # what the model is to learn

with LinearModel(layers, quantize="nf4") as model:
    wgtrain.inject_lora(model, rank=8, alpha=16, target_modules=["fc1", "fc2"])
    trainable, total = wgtrain.trainable_param_count(model), wgtrain.total_param_count(model)
    print(f"{trainable:,} of {total:,} values train ({100 * trainable / total:.1f} %)")
    for step in range(1, 101):
        rows = rng.integers(0, len(x), 64)
        loss = model.step(x[rows], classes[rows], "cross_entropy", learning_rate=5e-3)
        if step == 1 or step % 20 == 0:
            print(f"step {step:3}  loss {loss:.4f}")
    found = model.forward(x)
    data = wgtrain.save_adapter(model, *sys.argv[1:2])

with LinearModel(layers, quantize="nf4") as model:
    before = model.forward(x)
    wgtrain.load_adapter(model, data)
    after = model.forward(x)
right = [int((y.argmax(axis=1) == classes).sum()) for y in (before, after)]
print(f"right of {len(x)}: {right[0]} without the adapter, {right[1]} with it")
print(f"as before it was saved, to the bit: {np.array_equal(found, after)}")
