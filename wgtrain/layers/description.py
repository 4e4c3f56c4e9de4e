"""What a model of one's own consists of: arrays by name, and activations between."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from wgtrain.errors import OptionError
from wgtrain.files.gguf_parser import MAX_TENSOR_NAME
from wgtrain.files.source import shown

# As people write them -> files of shaders/lib.
ACTIVATIONS = {
    "relu": "activation_relu",
    "gelu": "activation_gelu_erf",
    "gelu_tanh": "activation_gelu",
    "silu": "activation_silu",
    "tanh": "activation_tanh",
}
A_NAME, B_NAME = "lora.{}.weight_a", "lora.{}.weight_b"  # of a layer's matrices in a file


@dataclass(frozen=True, eq=False)
class Linear:
    """y = x weight^T + bias, frozen: `weight` (outputs, inputs), `bias` (outputs,) or None; both
    are taken as float32. OptionError for what they cannot be.
    """

    name: str
    weight: np.ndarray
    bias: np.ndarray | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name.isprintable() or not self.name:
            raise OptionError(f"a layer's name is {shown(self.name)}; a printable text is needed")
        most = MAX_TENSOR_NAME - len(A_NAME.format(""))
        if len(self.name.encode()) > most:
            raise OptionError(f"layer {shown(self.name)}: a name of at most {most} bytes is needed")
        weight = floats(f"layer {self.name!r}: weight", self.weight, 2)
        if not weight.size:
            raise OptionError(f"layer {self.name!r}: weight is empty, {weight.shape}")
        object.__setattr__(self, "weight", weight)
        if self.bias is not None:
            bias = floats(f"layer {self.name!r}: bias", self.bias, 1)
            if len(bias) != self.outputs:
                raise OptionError(
                    f"layer {self.name!r}: bias has {len(bias)} values for {self.outputs} outputs"
                )
            object.__setattr__(self, "bias", bias)

    @property
    def outputs(self) -> int:
        """Rows of the weight."""
        return len(self.weight)

    @property
    def inputs(self) -> int:
        """Columns of the weight."""
        return self.weight.shape[1]

    @property
    def size(self) -> int:
        """Values of weight and bias."""
        return self.weight.size + (0 if self.bias is None else self.bias.size)


@dataclass(frozen=True)
class Activation:
    """A function of each value: "relu", "gelu" (with erf, PyTorch's default), "gelu_tanh", "silu"
    or "tanh".
    """

    kind: str

    def __post_init__(self) -> None:
        if not isinstance(self.kind, str) or self.kind not in ACTIVATIONS:
            raise OptionError(f"activation {shown(self.kind)}: allowed is {', '.join(ACTIVATIONS)}")


Layer = Linear | Activation


def check_layers(layers: Sequence[Any]) -> tuple[Layer, ...]:
    """The layers; OptionError where they are none, share a name or do not fit each other."""
    if not isinstance(layers, Sequence):
        raise OptionError(f"layers = {shown(layers)}: a list of Linear and Activation is needed")
    found: list[Layer] = []
    linears: list[Linear] = []
    for number, layer in enumerate(layers):
        if not isinstance(layer, Linear | Activation):
            what = f"layers[{number}] is {shown(layer)}; a Linear or an Activation is needed"
            raise OptionError(what)
        found.append(layer)
        if isinstance(layer, Activation):
            continue
        if layer.name in [other.name for other in linears]:
            raise OptionError(f"layers[{number}]: there are two layers of name {layer.name!r}")
        if linears and linears[-1].outputs != layer.inputs:
            raise OptionError(
                f"layer {layer.name!r} takes {layer.inputs} values, {linears[-1].name!r} before it "
                f"gives {linears[-1].outputs}"
            )
        linears.append(layer)
    if not linears:
        raise OptionError("layers: none is a Linear")
    return tuple(found)


def floats(what: str, values: Any, dimensions: int) -> np.ndarray:
    """An array of finite numbers as float32, of so many dimensions; OptionError for others."""
    try:
        array = np.asarray(values)
        if array.dtype.kind not in "fiu":
            raise TypeError
        with np.errstate(over="ignore"):
            found = np.ascontiguousarray(array, np.float32)
    except (TypeError, ValueError):
        raise OptionError(f"{what} is {shown(values)}; an array of numbers is needed") from None
    if array.ndim != dimensions:
        form = {1: "(values,)", 2: "(rows, columns)"}[dimensions]
        raise OptionError(f"{what} has the shape {array.shape}; {form} is needed")
    wrong = np.argwhere(~np.isfinite(found))
    if len(wrong):
        at = tuple(int(i) for i in wrong[0])
        raise OptionError(f"{what}{list(at)} is {array[at]}; numbers that float32 holds are needed")
    return found
