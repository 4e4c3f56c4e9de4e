"""Adapters folded into the weights of a model: W + sum of scale alpha / rank B A, a slice of rows
at a time.

Products and sums are computed in float64 and rounded once, to float32; then a value becomes what
its tensor's type can hold. Tensors that no adapter touches keep their bytes unless their type
changes.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from wgtrain.errors import FileError, OptionError
from wgtrain.files import GGUF, Adapter, TensorInfo
from wgtrain.files.file_types import TARGETS, choose_types, has_wide_v
from wgtrain.files.floats import FLOATS
from wgtrain.files.huggingface import Files, open_folder_model
from wgtrain.files.source import Source
from wgtrain.model.convert import Conversion, plan_conversion
from wgtrain.model.quantise_file import (
    check_choices,
    check_decoded,
    kept_metadata,
    named,
    plan_quantisation,
    planned,
)

# What a matrix may be when it is written.
WRITABLE = tuple(
    dict.fromkeys(
        kind for row in TARGETS.values() for kind in (row.type, row.more, row.head) if kind
    )
)


@dataclass(frozen=True)
class Scaled:
    """An adapter that fits the model, how strong it is put on, and what it is called."""

    adapter: Adapter
    scale: float = 1.0
    name: str = "adapter"

    @property
    def factor(self) -> float:
        """Of B A."""
        return self.scale * self.adapter.alpha / self.adapter.rank


@dataclass(frozen=True)
class Delta:
    """What adapters add to one matrix: the sum of factor B A over (factor, A, B)."""

    products: tuple[tuple[float, np.ndarray, np.ndarray], ...]  # float32, of the adapters

    def rows(self, first: int, n: int) -> np.ndarray:
        """float64 (n, inputs), for the rows from `first`."""
        total: np.ndarray = sum(
            b[first : first + n].astype(np.float64) @ (factor * a.astype(np.float64))
            for factor, a, b in self.products
        )  # type: ignore[assignment]
        return total


def fold(adapters: Sequence[Scaled]) -> dict[str, Delta]:
    """What is added to each tensor; adapters of factor 0 touch none."""
    parts: dict[str, list[tuple[float, np.ndarray, np.ndarray]]] = {}
    for each in adapters:
        for name, (a, b) in each.adapter.tensors.items() if each.factor else ():
            parts.setdefault(name, []).append((each.factor, a, b))
    return {name: Delta(tuple(products)) for name, products in parts.items()}


def plan_merge(
    source: Source, gguf: GGUF, adapters: Sequence[Scaled], target: str | None = None
) -> Conversion:
    """The GGUF with the adapters in it, of which no tensor is read yet: of the types it has, or as
    `target`, one of TARGETS.

    OptionError for another target; FileError where a tensor that changes cannot be read, or has a
    type that is not written.
    """
    deltas = fold(adapters)
    if target is not None:
        made = plan_quantisation(source, gguf, target, True, deltas)
        return replace(made, metadata=_told(made.metadata, adapters))
    changed = [gguf.tensors[name] for name in deltas]
    if wrong := [info for info in changed if info.type not in WRITABLE]:
        kinds = ", ".join(sorted({info.type for info in wrong}))
        raise FileError(
            f"{gguf.name}: {named(wrong)} {kinds}, which cannot be written; --type makes the whole "
            f"model one of {', '.join(TARGETS)}"
        )
    check_decoded(gguf.name, changed)
    tensors = [
        planned(source, info, info.type, deltas.get(info.name)) for info in gguf.tensors.values()
    ]
    sizes: Counter[str] = Counter()
    for info in gguf.tensors.values():
        sizes[info.type] += math.prod(info.shape)
    metadata = _told(kept_metadata(gguf), adapters)
    return Conversion(metadata, tensors, sizes.most_common(1)[0][0], list(gguf.notes))


async def plan_folder_merge(
    files: Files, name: str, adapters: Sequence[Scaled], target: str | None = None
) -> Conversion:
    """The GGUF of a Hugging Face folder with the adapters in it: of the type it has, or `target`.

    Errors as in `plan_merge` and `plan_conversion`.
    """
    if target is not None and target not in TARGETS:
        raise OptionError(f"type: {target!r} is not one of {', '.join(TARGETS)}")
    model = await open_folder_model(files, name)
    made = await plan_conversion(files, name, target if target in FLOATS else None)
    types = {tensor.name: tensor.type for tensor in made.tensors}
    metadata: dict[str, Any] = made.metadata
    if target is not None and target not in FLOATS:
        check_choices(model.gguf, model.translation.architecture)
        layers = model.gguf.get(f"{model.translation.architecture}.block_count", int)
        like = [replace(info, type=types[info.name]) for info in model.gguf.tensors.values()]
        types = choose_types(like, target, layers, has_wide_v(metadata))
        metadata |= {"general.file_type": TARGETS[target].number}
    deltas = fold(adapters)
    tensors = [
        planned(model.source, info, types[info.name], deltas.get(info.name))
        for info in model.gguf.tensors.values()
    ]
    return Conversion(_told(metadata, adapters), tensors, target or made.type, made.notes)


def _told(metadata: dict[str, Any], adapters: Sequence[Scaled]) -> dict[str, Any]:
    """Metadata that says what is in the weights. The name stays: llama.cpp knows some models'
    vocabularies by it alone.
    """
    listed = ", ".join(
        f"{each.name} (scale {each.scale:g}, rank {each.adapter.rank}, alpha "
        f"{each.adapter.alpha:g})"
        for each in adapters
    )
    before = metadata.get("general.description")
    parts = [before] if isinstance(before, str) and before else []
    parts.append(f"LoRA adapters merged by wgtrain: {listed}")
    return metadata | {"general.description": "; ".join(parts)}


def touched(adapters: Sequence[Scaled]) -> set[str]:
    """The tensors that change."""
    return {name for each in adapters if each.factor for name in each.adapter.tensors}


def lossy(before: Mapping[str, TensorInfo], made: Conversion, adapters: Sequence[Scaled]) -> bool:
    """Whether values are rounded to fewer bits than float32 has."""
    names = touched(adapters)
    return any(
        tensor.type != "F32" and (tensor.name in names or tensor.type != before[tensor.name].type)
        for tensor in made.tensors
    )
