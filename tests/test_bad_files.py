"""Broken GGUF files and adapters: each is refused by its own check, quickly, in little memory."""

import random
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import broken
import broken_adapters
import gguf as oracle
import numpy as np
import pytest
from broken import Case

from wgtrain.errors import FileError, WgtrainError
from wgtrain.files import (
    GGUF,
    BytesSource,
    gguf,
    parse_gguf,
    read_adapter_gguf,
    read_adapter_peft,
    write_adapter_gguf,
)

NAME = "some/bad.file"
SEED = 2024
AT_LEAST = 40  # files of each class
SECONDS, BYTES = 2.0, 200 << 20  # what one broken file may cost


@pytest.fixture(autouse=True)
def traced() -> Iterator[None]:
    tracemalloc.start()
    yield
    tracemalloc.stop()


def cost_is_small(read: Callable[[], object]) -> None:
    tracemalloc.reset_peak()
    before, start = tracemalloc.get_traced_memory()[0], time.process_time()
    try:
        read()
    finally:
        assert time.process_time() - start < SECONDS
        assert tracemalloc.get_traced_memory()[1] - before < BYTES


def ranged(data: bytes, monkeypatch: pytest.MonkeyPatch) -> GGUF:
    """Reads through ranges that begin tiny, so that every entry is cut somewhere."""
    monkeypatch.setattr(gguf, "READ", 16)
    reading = gguf.read_gguf(BytesSource(data, NAME))
    try:
        reading.send(None)
    except StopIteration as done:
        return done.value
    raise AssertionError("a source of bytes never waits")


def refuse(cases: list[Case], read: Callable[[bytes], object]) -> list[str]:
    """Every case raises a WgtrainError that names the file and says what is expected of it."""
    assert len(cases) >= AT_LEAST
    messages = []
    for case in cases:
        with pytest.raises(WgtrainError) as caught:
            cost_is_small(lambda case=case: read(case.data))
        message = str(caught.value)
        message.encode()
        assert message.startswith(NAME), (case.label, message)
        assert case.says in message, (case.label, message)
        assert len(message) < 2000, case.label
        messages.append(message)
    return messages


class TestGGUF:
    def refuse(self, cases: list[Case], monkeypatch: pytest.MonkeyPatch) -> None:
        whole = refuse(cases, lambda data: parse_gguf(data, NAME))
        assert all(" byte " in message for message in whole)
        assert refuse(cases, lambda data: ranged(data, monkeypatch)) == whole

    @pytest.mark.parametrize(
        "make", [broken.hostile_counts, broken.hostile_offsets, broken.hostile_strings]
    )
    def test_hostile(
        self, make: Callable[..., list[Case]], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.refuse(make(random.Random(SEED)), monkeypatch)

    def test_truncated(self, monkeypatch: pytest.MonkeyPatch) -> None:
        whole = broken.sample()
        last = max(parse_gguf(whole).tensors.values(), key=lambda info: info.offset)
        end = last.offset + last.nbytes
        parse_gguf(whole[:end])  # the padding after the last tensor may be missing
        self.refuse(broken.truncated(random.Random(SEED), whole, end, 150), monkeypatch)

    def test_bits_flipped(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        """A flip is refused, or changes one thing, and then the gguf package reads the same."""
        whole = broken.sample()
        good = parse_gguf(whole)
        end = min(info.offset for info in good.tensors.values())
        refused, valid = [], 0
        for case in broken.flipped(random.Random(SEED), whole, end, 600):
            try:
                cost_is_small(lambda case=case: parse_gguf(case.data, NAME))
            except WgtrainError:
                refused.append(case)
                continue
            valid += 1
            found = ranged(case.data, monkeypatch)
            assert changes(good, found) <= 1, case.label
            path = tmp_path / "flipped.gguf"
            path.write_bytes(case.data)
            other = oracle.GGUFReader(path)
            theirs = {tensor.name: tensor for tensor in other.tensors}
            assert [name for name in other.fields if not name.startswith("GGUF.")] == [
                *found.metadata
            ]
            assert [*theirs] == [*found.tensors]
            for name, info in found.tensors.items():
                assert theirs[name].data_offset == info.offset
                assert theirs[name].n_bytes == info.nbytes
                assert theirs[name].tensor_type.name == info.type
                assert info.offset + info.nbytes <= len(case.data)
        assert valid >= AT_LEAST  # both ways have been gone
        self.refuse(refused, monkeypatch)

    @pytest.mark.parametrize("file", ["stories260K.gguf", "vocab/ggml-vocab-llama-spm.gguf"])
    def test_real_files(self, file: str, data_dir: Path) -> None:
        tracemalloc.stop()  # it makes half a million strings slow
        whole = (data_dir / file).read_bytes()
        rng = random.Random(SEED)
        good = parse_gguf(whole)
        end = min((info.offset for info in good.tensors.values()), default=len(whole) - 64)
        for case in broken.truncated(rng, whole, end, 20):
            with pytest.raises(FileError, match="byte"):
                parse_gguf(case.data, NAME)
        outcomes = set()
        for case in broken.flipped(rng, whole, end, 40):
            start = time.process_time()
            try:
                outcomes.add(changes(good, parse_gguf(case.data, NAME)))
            except FileError:
                outcomes.add(-1)
            assert time.process_time() - start < SECONDS
        assert outcomes <= {-1, 0, 1}

    def test_metadata_without_end(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A file may be huge; what is read of it is not."""

        class Endless:
            size, name = 1 << 50, NAME
            upto = 0

            def read_range(self, offset: int, n: int) -> bytes:
                self.upto = max(self.upto, offset + n)
                return whole[offset : offset + n].ljust(n, b"\0")

        for kind, count in ((broken.U8, 1 << 40), (broken.STRING, 1 << 40), (broken.U64, 1 << 30)):
            whole = broken.gguf([broken.entry("k", broken.ARRAY, broken.array(kind, count))], [])
            source = Endless()
            with pytest.raises(FileError, match="key 'k', byte .*(metadata are read|at most)"):
                cost_is_small(lambda source=source: gguf.read_gguf(source).send(None))
            assert source.upto <= gguf.METADATA_LIMIT


def changes(before: GGUF, after: GGUF) -> int:
    """How many values and tensors differ, in order of the file; a renamed one counts once."""
    assert len(before.metadata) == len(after.metadata) and len(before.tensors) == len(after.tensors)
    keys = zip(before.metadata.items(), after.metadata.items(), strict=True)
    tensors = zip(before.tensors.values(), after.tensors.values(), strict=True)
    count = sum(x != y for x, y in tensors)
    return count + sum(k != l or not same(v, w) for (k, v), (l, w) in keys)


def same(x: object, y: object) -> bool:
    if type(x) is not type(y):
        return False
    return x.tobytes() == y.tobytes() if isinstance(x, np.ndarray) else repr(x) == repr(y)


class TestAdapters:
    def read_peft(self, **files: bytes) -> object:
        whole = broken_adapters.peft_files() | {
            name.replace("__", "."): data for name, data in files.items()
        }
        return read_adapter_peft(whole, NAME, architecture="llama", n_head=2, n_head_kv=1)

    def test_gguf(self) -> None:
        refuse(
            broken_adapters.bad_adapters(random.Random(SEED)),
            lambda data: read_adapter_gguf(data, NAME),
        )

    def test_safetensors(self) -> None:
        def read(data: bytes) -> object:
            return self.read_peft(adapter_model__safetensors=data)

        messages = refuse(broken_adapters.bad_safetensors(random.Random(SEED)), read)
        assert all(text.startswith(f"{NAME}/adapter_model.safetensors") for text in messages)

    def test_config(self) -> None:
        def read(data: bytes) -> object:
            return self.read_peft(adapter_config__json=data)

        messages = refuse(broken_adapters.bad_configs(random.Random(SEED)), read)
        assert all(text.startswith(f"{NAME}/adapter_config.json") for text in messages)

    def test_missing_file(self) -> None:
        for name in broken_adapters.peft_files():
            files = {key: data for key, data in broken_adapters.peft_files().items() if key != name}
            files["adapter_model.bin"] = b""
            with pytest.raises(
                FileError, match=rf"{name} is missing; there is .*adapter_model\.bin"
            ):
                read_adapter_peft(files, architecture="llama", n_head=2, n_head_kv=1)

    @pytest.mark.parametrize("kind", ["gguf", "safetensors", "config"])
    def test_bits_flipped(self, kind: str) -> None:
        """Whatever one bit does, it is an error of ours or an adapter of the right shapes."""
        good = broken_adapters.adapter()
        files = broken_adapters.peft_files()
        whole = {
            "gguf": write_adapter_gguf(good),
            "safetensors": files["adapter_model.safetensors"],
            "config": files["adapter_config.json"],
        }[kind]
        refused = []
        for case in broken.flipped(random.Random(SEED), whole, len(whole), 400):
            try:
                if kind == "gguf":
                    found = read_adapter_gguf(case.data, NAME)
                elif kind == "safetensors":
                    found = self.read_peft(adapter_model__safetensors=case.data)
                else:
                    found = self.read_peft(adapter_config__json=case.data)
            except WgtrainError as error:
                refused.append(str(error))
                continue
            assert found.rank == good.rank and len(found.tensors) == len(good.tensors)
            assert found.alpha and np.isfinite(found.alpha)
            for a, b in found.tensors.values():
                assert a.shape[0] == b.shape[1] == good.rank
                assert np.isfinite(a).all() and np.isfinite(b).all()
        assert len(refused) >= AT_LEAST
        assert all(message.startswith(NAME) for message in refused)
