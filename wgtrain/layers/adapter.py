"""LoRA beside the linear layers of a model of one's own: put in, counted, saved and loaded."""

import numbers
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from wgtrain.dual import dual_function
from wgtrain.errors import FileError, OptionError
from wgtrain.files import GGUF, TensorInfo
from wgtrain.files.gguf import parse_gguf, write_gguf
from wgtrain.files.source import Data, shown
from wgtrain.layers.description import A_NAME, B_NAME
from wgtrain.layers.model import LinearModel, is_number
from wgtrain.model.lora import initial_parameters
from wgtrain.runs.disk import write_file
from wgtrain.runs.output import check_output
from wgtrain.runs.paths import read_input, unusable

ALL = "all-linear"
_KIND = {"general.type": "adapter", "adapter.type": "lora", "general.architecture": "layers"}
_RANK, _ALPHA = "adapter.lora.rank", "adapter.lora.alpha"
_TENSOR = re.compile(r"lora\.(.+)\.weight_([ab])")
_MOST = 6  # problems of a file that a message lists
AnyFile = str | os.PathLike[str]


def inject_lora(
    model: LinearModel,
    rank: int,
    alpha: float,
    target_modules: str | Sequence[str] = ALL,
    *,
    seed: int = 42,
) -> None:
    """Puts a LoRA adapter beside linear layers, y += alpha / rank B (A x); everything else is
    frozen. A comes of the seed, B is zero, so that nothing changes until a step is made.

    `target_modules`: names of layers, as a list or with commas, or "all-linear". OptionError for an
    unknown one, and where the model has an adapter.
    """
    _check_model(model)
    if not _is_whole(rank) or rank < 1:
        raise OptionError(f"rank = {shown(rank)}: a whole number, at least 1, is needed")
    if not is_number(alpha) or not 1e-30 <= alpha <= 1e30:
        raise OptionError(f"alpha = {shown(alpha)}: a number from 1e-30 to 1e+30 is needed")
    if not _is_whole(seed) or not 0 <= seed < 1 << 64:
        raise OptionError(f"seed = {shown(seed)}: a whole number, at least 0, is needed")
    names = _targets(model, target_modules)
    if model.targets:
        raise OptionError(f"this model has an adapter already, beside {', '.join(model.targets)}")
    model.adapt(names, int(rank), float(np.float32(alpha)))  # as a file holds it
    model.set_parameters(initial_parameters(model.trainables.layout.shapes, int(seed)))


def trainable_param_count(model: LinearModel) -> int:
    """Values that train: those of the adapter; 0 without one."""
    _check_model(model)
    return model.trainables.layout.count


def total_param_count(model: LinearModel) -> int:
    """All values: weights, biases and the adapter."""
    return trainable_param_count(model) + sum(layer.size for layer in model.linears.values())


@dual_function
async def save_adapter(model: LinearModel, path: AnyFile | None = None) -> bytes:
    """The adapter as the bytes of a GGUF, written to `path` too where one is given: float32 tensors
    `lora.<layer>.weight_a` (rank, inputs) and `.weight_b` (outputs, rank).
    """
    _check_model(model)
    if path is not None and not isinstance(path, str | os.PathLike):
        raise OptionError(f"path = {shown(path)}: a path is needed")
    found = await model.aio.parameters()
    tensors = {}
    for name in model.targets:
        tensors[A_NAME.format(name)] = found[f"{name}.lora_a"]
        tensors[B_NAME.format(name)] = found[f"{name}.lora_b"]
    data = write_gguf({**_KIND, _RANK: model.rank, _ALPHA: np.float32(model.alpha)}, tensors)
    if path is not None:
        check_output(Path(path), True)
        try:
            write_file(Path(path), data)
        except (OSError, ValueError) as error:
            raise unusable(path, error) from None
    return data


def load_adapter(model: LinearModel, source: AnyFile | Data) -> None:
    """Sets a model's adapter to that of a GGUF, by path or its bytes; a model without one gets it.
    What AdamW kept of earlier steps is forgotten.

    FileError naming what is missing, too much or of the wrong shape: layers are matched by name.
    """
    _check_model(model)
    if isinstance(source, str | os.PathLike):
        data: Data = read_input(Path(source))
        name = str(source)
    elif isinstance(source, bytes | bytearray | memoryview):
        data, name = source, "adapter"
    else:
        raise OptionError(f"adapter: {shown(source)}: a path or the bytes of a GGUF are needed")
    gguf = parse_gguf(data, name)
    rank, alpha = _head(gguf)
    names, tensors = _matched(model, gguf, rank, alpha, memoryview(data).cast("B"))
    model.adapt(names, rank, alpha)
    model.set_parameters(tensors)


def _head(gguf: GGUF) -> tuple[int, float]:
    """(rank, alpha) of a file that is an adapter."""
    for key, value in _KIND.items():
        if gguf.metadata.get(key) != value:
            raise FileError(
                f"{gguf.name}: no adapter of save_adapter: {key} is "
                f"{shown(gguf.metadata.get(key))}, {value!r} expected"
            )
    rank, alpha = gguf.get(_RANK, int), gguf.get(_ALPHA, float)
    if rank < 1 or not alpha > 0:
        raise FileError(f"{gguf.name}: rank {rank} and alpha {alpha}, both have to be above 0")
    return rank, alpha


def _matched(
    model: LinearModel, gguf: GGUF, rank: int, alpha: float, data: memoryview
) -> tuple[list[str], dict[str, np.ndarray]]:
    """The layers that get an adapter, and its matrices by their names in the model."""
    problems = []
    if model.targets and (rank, alpha) != (model.rank, model.alpha):
        problems.append(
            f"rank {rank} and alpha {alpha:g}, the model has {model.rank} and {model.alpha:g}"
        )
    places = {name: _TENSOR.fullmatch(name) for name in gguf.tensors}
    found = {place[1] for place in places.values() if place}
    names = [name for name in model.linears if name in (model.targets or found)]
    expected = {}
    for name in names:
        outputs, inputs = model.linears[name].weight.shape
        expected[A_NAME.format(name)] = (f"{name}.lora_a", (rank, inputs))
        expected[B_NAME.format(name)] = (f"{name}.lora_b", (outputs, rank))
    problems += [f"{name!r} is missing" for name in expected if name not in gguf.tensors]
    tensors = {}
    for name, tensor in gguf.tensors.items():
        place = places[name]
        if name not in expected:
            problems.append(f"{shown(name)}: {_why_not(model, place[1] if place else None)}")
            continue
        own, shape = expected[name]
        if (tensor.type, tensor.shape) != ("F32", shape):
            problems.append(f"{name!r} is {tensor.type} {tensor.shape}, F32 {shape} expected")
            continue
        tensors[own] = _values(tensor, data)
        if not np.isfinite(tensors[own]).all():
            problems.append(f"{name!r} has values that are infinite or NaN")
    if not names and not problems:
        problems.append("no tensor is in it")
    if problems:
        more = [f"and {len(problems) - _MOST} more"] if len(problems) > _MOST else []
        listed = "; ".join([*problems[:_MOST], *more])
        raise FileError(f"{gguf.name} does not fit the model: {listed}")
    return names, tensors


def _why_not(model: LinearModel, layer: str | None) -> str:
    if layer is None:
        return "no lora.<layer>.weight_a or .weight_b"
    if layer in model.linears:
        return "the model has no adapter there"
    return f"the model has no such layer; it has {', '.join(model.linears)}"


def _values(tensor: TensorInfo, data: memoryview) -> np.ndarray:
    raw = data[tensor.offset : tensor.offset + tensor.nbytes]
    return np.frombuffer(raw, "<f4").reshape(tensor.shape).astype(np.float32)


def _targets(model: LinearModel, targets: str | Sequence[str]) -> list[str]:
    """The layers named, in the model's order."""
    named = targets.split(",") if isinstance(targets, str) else targets
    if not isinstance(named, Iterable) or not all(isinstance(name, str) for name in named):
        raise OptionError(f"target_modules: {shown(targets)}: names of layers are needed")
    chosen = [name.strip() for name in named]
    if not chosen:
        raise OptionError("target_modules: none named")
    for name in (name for name in chosen if name != ALL and name not in model.linears):
        raise OptionError(
            f"target_modules: there is no layer {shown(name)}; allowed: {ALL}, "
            f"{', '.join(model.linears)}"
        )
    return [name for name in model.linears if name in chosen or ALL in chosen]


def _check_model(model: Any) -> None:
    if not isinstance(model, LinearModel):
        raise OptionError(
            f"model: {shown(model)}: a LinearModel is needed; Trainer trains language models"
        )


def _is_whole(value: Any) -> bool:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)
