"""Where LoRA adapters sit in a model."""

import math
from collections.abc import Collection, Iterable, Mapping

import numpy as np

from wgtrain import random
from wgtrain.engine.lora import Lora, LoraKind
from wgtrain.engine.trainables import Shape, Trainables
from wgtrain.errors import OptionError
from wgtrain.files import split_tensor, tensor_name
from wgtrain.gpu import Limits
from wgtrain.model.config import ModelConfig

_TOGETHER = (("attn_q", "attn_k", "attn_v"), ("ffn_gate", "ffn_up"))  # linears of the same x


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


def linear_groups(config: ModelConfig, tensors: Collection[str]) -> list[dict[str, Shape]]:
    """Those of a model's linears that are among `tensors`, name -> (outputs, inputs), those that
    read the same x together, in the order of the forward pass.
    """
    groups: dict[tuple[int, str], dict[str, Shape]] = {}
    head = {config.head_name: (config.vocabulary, config.width)}
    for name, shape in {**config.linears(), **head}.items():
        if name in tensors:
            block, target = split_tensor(name) or (-1, name)
            read = next((together[0] for together in _TOGETHER if target in together), target)
            groups.setdefault((block, read), {})[name] = shape
    return list(groups.values())


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
