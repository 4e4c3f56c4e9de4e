"""A GGUF -> a GGUF of another type, as llama.cpp quantises it, a slice of rows at a time."""

import math
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from types import MappingProxyType
from typing import Any, Protocol

import numpy as np

from wgtrain.errors import FileError, OptionError
from wgtrain.files import GGUF, TensorInfo
from wgtrain.files.blocks import BLOCKS
from wgtrain.files.encoding import can_decode, decoded, encoded
from wgtrain.files.file_types import (
    QUANTIZATION_VERSION,
    TARGETS,
    choose_types,
    has_wide_v,
    is_matrix,
)
from wgtrain.files.floats import FLOATS
from wgtrain.files.gguf import typed_metadata
from wgtrain.files.gguf_parser import ALIGNMENT
from wgtrain.files.gguf_writer import Planned, copied
from wgtrain.files.source import Data, Source, read_range, source_name
from wgtrain.model.convert import Conversion
from wgtrain.model.covered import check_kind

_VALUES = 1 << 20  # of a tensor at a time
_LISTED = 4


class Change(Protocol):
    """What is added to a matrix on its way."""

    def rows(self, first: int, n: int) -> np.ndarray:
        """float64 (n, columns), for the rows from `first`."""


def plan_quantisation(
    source: Source,
    gguf: GGUF,
    target: str,
    requantise: bool = False,
    changes: Mapping[str, Change] = MappingProxyType({}),
) -> Conversion:
    """The file with its matrices as `target`, one of TARGETS, of which no tensor is read yet.

    `changes` are added to the tensors they name. OptionError for another target; FileError for a
    file that is no model or cannot be decoded, and, unless `requantise`, where what is quantised
    would be quantised to another type.
    """
    row = TARGETS.get(target)
    if row is None:
        raise OptionError(f"type: {target!r} is not one of {', '.join(TARGETS)}")
    check_kind(gguf)
    architecture = gguf.get("general.architecture", str)
    n_layer = gguf.get(f"{architecture}.block_count", int)
    if row.type not in FLOATS:
        check_choices(gguf, architecture)
    types = choose_types(gguf.tensors.values(), target, n_layer, has_wide_v(gguf.metadata))
    changed = [
        info
        for info in gguf.tensors.values()
        if types[info.name] != info.type or info.name in changes
    ]
    check_decoded(gguf.name, changed)
    again = [info for info in changed if info.type not in FLOATS]
    lossy = [info for info in again if types[info.name] not in FLOATS]
    if lossy and not requantise:
        raise FileError(
            f"{gguf.name}: {named(lossy)} quantised already, and what that lost stays lost: "
            "quantise the original model, or add --allow-requantize"
        )
    metadata = kept_metadata(gguf) | {
        "general.quantization_version": np.uint32(QUANTIZATION_VERSION),
        "general.file_type": np.uint32(row.number),
    }
    tensors = [
        planned(source, info, types[info.name], changes.get(info.name))
        for info in gguf.tensors.values()
    ]
    return Conversion(metadata, tensors, target, _notes(gguf, types, target, again))


def kept_metadata(gguf: GGUF) -> dict[str, Any]:
    """The metadata of a file for one that is written anew and whole, each number as it was."""
    metadata = typed_metadata(gguf)
    for key in ("split.no", "split.count", "split.tensors.count"):
        metadata.pop(key, None)
    if metadata.get("general.alignment", ALIGNMENT) != ALIGNMENT:
        del metadata["general.alignment"]
    return metadata


def check_choices(gguf: GGUF, architecture: str) -> None:
    """Models for which llama.cpp chooses types by rules of their own."""
    experts = gguf.get(f"{architecture}.expert_count", int, 0)
    if architecture in ("falcon", "glm5-next") or experts not in (0, 1):
        what = "experts" if experts not in (0, 1) else f"the architecture {architecture}"
        raise FileError(
            f"{gguf.name}: a model with {what} is quantised by rules that are not supported; "
            f"possible are {', '.join(FLOATS)}"
        )


def check_decoded(name: str, changed: list[TensorInfo]) -> None:
    """FileError for tensors whose values cannot be known."""
    readable = {kind: can_decode(kind) for kind in {info.type for info in changed}}
    if wrong := [info for info in changed if not readable[info.type]]:
        kinds = ", ".join(sorted({info.type for info in wrong}))
        raise FileError(f"{name}: {named(wrong)} {kinds}, which cannot be decoded")


def named(infos: list[TensorInfo]) -> str:
    """Some tensors for a message, with their verb."""
    names = ", ".join(info.name for info in infos[:_LISTED])
    more = f" and {len(infos) - _LISTED} more" if len(infos) > _LISTED else ""
    return f"{names}{more} {'is' if len(infos) == 1 else 'are'}"


def _notes(gguf: GGUF, types: dict[str, str], target: str, again: list[TensorInfo]) -> list[str]:
    notes = list(gguf.notes)
    if again:
        kinds = ", ".join(sorted({info.type for info in again}))
        notes.append(
            f"{named(again)} {kinds} in {gguf.name}: what that lost stays lost"
            + ("" if TARGETS[target].type in FLOATS else ", and more is")
        )
    size = BLOCKS[TARGETS[target].type].size
    odd = Counter(
        types[info.name]
        for info in gguf.tensors.values()
        if is_matrix(info) and size > 1 and info.shape[-1] % size
    )
    if odd:
        instead = ", ".join(f"{n} {kind}" for kind, n in sorted(odd.items()))
        notes.append(
            f"{sum(odd.values())} matrices have rows that are no multiple of {size} values and get "
            f"other types, as in llama.cpp: {instead}"
        )
    return notes


def planned(source: Source, info: TensorInfo, kind: str, change: Change | None = None) -> Planned:
    """A tensor as it will be: copied where neither its type nor a value changes."""
    chunks = copied(source, info.offset, info.nbytes)
    if kind != info.type or change is not None:
        chunks = _recoded(source, info, kind, change)
    return Planned(info.name, kind, info.shape, chunks)


def _recoded(
    source: Source, info: TensorInfo, kind: str, change: Change | None
) -> Callable[[], AsyncIterator[Data]]:
    columns, rows = info.shape[-1], math.prod(info.shape[:-1])
    row, slice_rows = info.nbytes // rows, max(1, _VALUES // columns)

    async def chunks() -> AsyncIterator[Data]:
        for first in range(0, rows, slice_rows):
            n = min(slice_rows, rows - first)
            data = await read_range(source, info.offset + first * row, n * row)
            values = decoded(data, info.type, columns)
            if change is not None:
                with np.errstate(over="ignore"):
                    values = (values + change.rows(first, n)).astype(np.float32)
            finite = np.isfinite(values)
            if not finite.all():
                at = np.argwhere(~finite)[0]
                place = f"{first + int(at[0])}, {int(at[1])}"
                raise _wrong(source, info, f"[{place}] is {values[tuple(at)]}")
            try:
                yield encoded(values, kind)
            except OverflowError as error:
                place = f", rows {first} to {first + n - 1}"
                raise _wrong(source, info, f"{place}: {error}; {kind} cannot hold it") from None

    return chunks


def _wrong(source: Any, info: TensorInfo, what: str) -> FileError:
    return FileError(f"{source_name(source)}: tensor {info.name}{what}")
