"""GGUF files in pieces: the same bytes as at once, and a file that is whole or not there."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest

from wgtrain import gpu
from wgtrain.errors import FileError
from wgtrain.files import BytesSource, write_gguf
from wgtrain.files.gguf import Raw
from wgtrain.files.gguf_writer import Planned, copied, gguf_chunks, planned_nbytes
from wgtrain.files.source import Data
from wgtrain.runs import output
from wgtrain.runs.output import check_output, write_output

METADATA = {"general.architecture": "llama", "n": 3, "f": 0.5, "words": ["a", "é"], "none": []}
RNG = np.random.default_rng(0)
TENSORS: dict[str, Raw] = {
    "a": Raw("F32", (3, 5), RNG.bytes(60)),
    "b": Raw("Q8_0", (2, 64), RNG.bytes(4 * 34)),
    "c": Raw("F16", (1,), RNG.bytes(2)),
}


def planned(raw: Raw, name: str, size: int) -> Planned:
    source = BytesSource(bytes(7) + bytes(raw.data), "x")
    return Planned(name, raw.type, raw.shape, copied(source, 7, len(bytes(raw.data)), size))


async def joined(chunks: AsyncIterator[Data]) -> bytes:
    return b"".join([bytes(chunk) async for chunk in chunks])


@pytest.mark.parametrize("size", [1, 33, 1000])
def test_the_same_bytes_as_at_once(size: int) -> None:
    tensors = [planned(raw, name, size) for name, raw in TENSORS.items()]
    data = gpu.run(joined(gguf_chunks(METADATA, tensors)))
    assert data == write_gguf(METADATA, dict(TENSORS))
    assert len(data) == planned_nbytes(METADATA, tensors)
    assert data == asyncio.run(joined(gguf_chunks(METADATA, tensors)))  # a second time


def test_a_tensor_of_another_size_is_no_file() -> None:
    tensor = planned(TENSORS["a"], "a", 10)
    short = Planned("a", "F32", (3, 6), tensor.chunks)
    with pytest.raises(ValueError, match="'a': 60 bytes, 72 expected"):
        gpu.run(joined(gguf_chunks(METADATA, [short])))
    with pytest.raises(ValueError, match="two tensors"):
        gpu.run(joined(gguf_chunks(METADATA, [tensor, tensor])))


async def some(*chunks: bytes, fails: bool = False) -> AsyncIterator[Data]:
    for chunk in chunks:
        yield chunk
    if fails:
        raise FileError("source: cut short")


def test_a_file_appears_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, seen = tmp_path / "x.gguf", list[tuple[int, int]]()
    shown = nullcontext(lambda *now: seen.append(now))
    monkeypatch.setattr(output, "transfer", {"writing": shown}.__getitem__)
    with pytest.raises(FileError, match="cut short"):
        write_output(path, some(b"abc", fails=True))
    assert list(tmp_path.iterdir()) == []
    seen.clear()
    assert write_output(path, some(b"abc", b"de"), total=5) == 5
    assert (path.read_bytes(), seen) == (b"abcde", [(3, 5), (5, 5)])
    with pytest.raises(FileError, match="exists already; --force"):
        write_output(path, some(b"new"))
    with pytest.raises(FileError, match="cut short"):
        write_output(path, some(b"new", fails=True), force=True)
    assert path.read_bytes() == b"abcde"
    write_output(path, some(b"new"), force=True)
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


def test_outputs_that_cannot_be(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(b"x")
    cases = [
        (tmp_path, True, "a folder"),
        (tmp_path / "no" / "x.gguf", True, "there is no folder"),
        (path, True, "also the input"),
        (Path("a\0b"), True, "null byte"),
    ]
    for place, force, message in cases:
        with pytest.raises(FileError, match=message):
            check_output(place, force, path)
    with pytest.raises(FileError, match="exists already"):
        check_output(path, False)
    check_output(path, True)
