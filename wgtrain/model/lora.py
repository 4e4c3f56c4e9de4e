"""Where LoRA adapters sit in a model."""

import math
from collections.abc import Iterable, Mapping

import numpy as np

from wgtrain import random
from wgtrain.engine.lora import Lora, LoraKind
from wgtrain.engine.trainables import Trainables
from wgtrain.errors import OptionError
from wgtrain.files import Adapter, split_tensor, tensor_name
from wgtrain.gpu import Limits
from wgtrain.model.config import ModelConfig


def target_tensors(
    config: ModelConfig, targets: Iterable[str], layers: Iterable[int]
) -> dict[str, tuple[int, int]]:
    """The base tensors that get an adapter, name -> (outputs, inputs), in the order of the forward
    pass.

    `targets`: short names ("attn_q", ..., "output"); `layers`: block numbers. OptionError for a
    tied head.
    """
    chosen, blocks = set(targets), set(layers)
    found = {
        name: shape
        for name, shape in config.linears().items()
        if (place := split_tensor(name)) and place[0] in blocks and place[1] in chosen
    }
    if "output" in chosen:
        if config.tied_head:
            raise OptionError(
                "target_modules: 'lm_head' (output) cannot be a target, because this model's head "
                "is tied to its embedding and llama.cpp refuses an adapter for it"
            )
        found[tensor_name("output", 0)] = (config.vocabulary, config.width)
    return found


def lora_trainables(
    bases: Mapping[str, tuple[int, int]],
    limits: Limits,
    rank: int,
    scale: float,
    dropout: float = 0.0,
    name: str = "parameters",
) -> Trainables[Lora]:
    """Matrices beside the linears `bases`, name -> (outputs, inputs)."""
    kinds = [LoraKind(base, *shape, rank, scale, dropout) for base, shape in bases.items()]
    return Trainables(kinds, limits, name)


def adapter_trainables(
    adapter: Adapter, strength: float, limits: Limits, name: str
) -> Trainables[Lora]:
    """Those of an adapter from a file, set to its values."""
    bases = {base: (b.shape[0], a.shape[1]) for base, (a, b) in adapter.tensors.items()}
    scale = strength * adapter.alpha / adapter.rank
    found = lora_trainables(bases, limits, adapter.rank, scale, name=name)
    found.values.set(adapter.matrices)
    return found


def initial_parameters(shapes: Mapping[str, tuple[int, int]], seed: int) -> dict[str, np.ndarray]:
    """A (r, n_in) from U(-1 / sqrt(n_in), 1 / sqrt(n_in)), B zero; float32 by parameter name.

    Each A has its own stream, so that what else is trained does not change it.
    """
    result = {}
    for name, (rows, columns) in shapes.items():
        if name.endswith(".lora_a"):
            u = random.uniform(random.key(seed, f"lora_a {name}"), rows * columns)
            bound = np.float32(1 / math.sqrt(columns))
            result[name] = ((u * 2 - 1) * bound).reshape(rows, columns)
        else:
            result[name] = np.zeros((rows, columns), np.float32)
    return result
