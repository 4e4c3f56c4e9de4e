"""A GGUF split into several files, -00001-of-0000N.gguf, seen as one."""

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from wgtrain.errors import FileError
from wgtrain.files.gguf import read_gguf
from wgtrain.files.gguf_parser import GGUF, TensorInfo
from wgtrain.files.joined import JoinedSource, Part, Plain
from wgtrain.files.source import Source, shown, source_name, source_size

_NUMBER, _COUNT, _TENSORS = "split.no", "split.count", "split.tensors.count"
_MOST, _LISTED = 65_535, 20  # parts there may be, and of those missing that are named
_NAME = re.compile(r"(.*)-([0-9]{5})-of-([0-9]{5})\.gguf", re.DOTALL)


def part_names(name: str) -> list[str]:
    """The names of all parts, in order, of which `name` is one; none for any other name."""
    match = _NAME.fullmatch(name)
    if match is None or not 1 <= int(match[2]) <= int(match[3]):
        return []
    count = int(match[3])
    return [f"{match[1]}-{number:05d}-of-{count:05d}.gguf" for number in range(1, count + 1)]


def part_count(gguf: GGUF) -> int:
    """Of how many parts a file is one; 1 for a whole model."""
    return gguf.get(_COUNT, int, 1) or 1


async def read_parts(sources: Sequence[Source]) -> tuple[Source, GGUF]:
    """All parts of a model, in any order, as one file; a whole model as it is.

    FileError where one is missing, there twice or of another model. Of several files, what stands
    before their tensors comes first, then the tensors of each.
    """
    files = [(source, await read_gguf(source)) for source in sources]
    if len(files) == 1 and part_count(files[0][1]) == 1:
        return files[0]
    files = _in_order(files)
    heads: list[Part] = []
    bodies: list[Part] = []
    for source, gguf in files:
        size = source_size(source)
        end = min((info.offset for info in gguf.tensors.values()), default=size)
        heads.append(Plain(source, 0, end))
        bodies.append(Plain(source, end, size - end))
    start = sum(part.nbytes for part in heads)
    _check_same(files)
    tensors: dict[str, TensorInfo] = {}
    for (_, gguf), head, body in zip(files, heads, bodies, strict=True):
        for name, info in gguf.tensors.items():
            if name in tensors:
                raise FileError(f"{gguf.name}: tensor {shown(name)} is in another part, too")
            tensors[name] = replace(info, offset=info.offset - head.nbytes + start)
        start += body.nbytes
    first = files[0][1]
    expected = first.get(_TENSORS, int, len(tensors))
    if len(tensors) != expected:
        raise FileError(
            f"{first.name}: {len(tensors)} tensors in all parts, {_TENSORS} is {expected}"
        )
    kept: dict[str, Any] = {
        key: value
        for key, value in first.metadata.items()
        if key not in (_NUMBER, _COUNT, _TENSORS)
    }
    parts = [part for part in heads + bodies if part.nbytes]
    numbers = {name: values for _, gguf in files for name, values in gguf.numbers.items()}
    whole = replace(first, metadata=kept, tensors=tensors, numbers=numbers)
    return JoinedSource(first.name, parts), whole


def _check_same(files: list[tuple[Source, GGUF]]) -> None:
    """FileError where a part says that it is one of another model than the first."""
    first = files[0][1]
    for _, gguf in files[1:]:
        for key in (_TENSORS, "general.architecture", "general.name"):
            found, other = (str(one.metadata.get(key, "")) for one in (gguf, first))
            if found and other and found != other:
                raise FileError(
                    f"{gguf.name}: {key} is {shown(found)}, in {first.name} it is {shown(other)}: "
                    "parts of two models"
                )


def _in_order(files: list[tuple[Source, GGUF]]) -> list[tuple[Source, GGUF]]:
    """By number; every number once."""
    count = part_count(files[0][1])
    if not 1 <= count <= _MOST:
        raise FileError(f"{files[0][1].name}: {_COUNT} is {count}; 1 to {_MOST} are possible")
    places: dict[int, tuple[Source, GGUF]] = {}
    for source, gguf in files:
        name = source_name(source)
        if (found := part_count(gguf)) != count:
            raise FileError(f"{name}: {_COUNT} is {found}, in {files[0][1].name} it is {count}")
        if found == 1:
            raise FileError(f"{name}: a whole model, no part of one; name it alone")
        number = gguf.get(_NUMBER, int)
        if not 0 <= number < count:
            raise FileError(f"{name}: {_NUMBER} is {number}; 0 to {count - 1} are possible")
        if number in places:
            other = places[number][1].name
            raise FileError(f"{name}: part {number + 1} of {count}, which {other} is, too")
        places[number] = source, gguf
    if missing := [str(number + 1) for number in range(count) if number not in places]:
        parts = "part" if len(missing) == 1 else "parts"
        listed = ", ".join(missing[:_LISTED])
        listed += f" and {len(missing) - _LISTED} more" if len(missing) > _LISTED else ""
        raise FileError(
            f"{files[0][1].name}: {parts} {listed} of {count} "
            f"{'is' if len(missing) == 1 else 'are'} missing; of paths, files are found that end "
            f"in -00001-of-{count:05d}.gguf and so on; of others, a list of all parts is needed"
        )
    return [places[number] for number in range(count)]
