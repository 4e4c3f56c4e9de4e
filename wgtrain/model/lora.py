"""Where LoRA adapters sit in a model, and their matrices as parameters in arenas."""

from collections.abc import Iterable

import numpy as np

from wgtrain import random
from wgtrain.engine.arena import Arena
from wgtrain.engine.graph import Storage
from wgtrain.engine.products import Lora, Parameter
from wgtrain.errors import OptionError
from wgtrain.files import Adapter, split_tensor, tensor_name
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


def adapter_shapes(bases: dict[str, tuple[int, int]], rank: int) -> dict[str, tuple[int, int]]:
    """The adapter's own matrices: A (rank, inputs) as `.lora_a`, B (outputs, rank) as `.lora_b`."""
    shapes = {}
    for name, (outputs, inputs) in bases.items():
        shapes[f"{name}.lora_a"] = (rank, inputs)
        shapes[f"{name}.lora_b"] = (outputs, rank)
    return shapes


def dropout_site(name: str) -> int:
    """The number of a linear's dropout mask: a hash of its name."""
    return random.key(0, name)


def make_lora(
    name: str,
    arena: Arena,
    values: list[Storage],
    gradients: list[Storage] | None,
    scale: float,
    dropout: float = 0.0,
) -> Lora:
    """The correction of base tensor `name`, whose matrices lie in `values` (and `gradients`)."""

    def parameter(suffix: str) -> Parameter:
        full = f"{name}.{suffix}"
        gradient = arena.window(gradients, full) if gradients else None
        return Parameter(full, *arena.shapes[full], arena.window(values, full), gradient)

    return Lora(parameter("lora_a"), parameter("lora_b"), scale, dropout, dropout_site(name))


def adapter_arrays(adapter: Adapter) -> dict[str, np.ndarray]:
    """An adapter's matrices by their own names."""
    arrays = {}
    for name, (a, b) in adapter.tensors.items():
        arrays[f"{name}.lora_a"], arrays[f"{name}.lora_b"] = a, b
    return arrays
