"""Models in several GGUF files: opened as one by any of their names, refused where one lacks."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import tiny

import wgtrain as package
from wgtrain.api import opened_base
from wgtrain.cli import main as cli
from wgtrain.errors import FileError, OptionError, WgtrainError
from wgtrain.files import BytesSource, Raw, parse_gguf, read_range, write_gguf
from wgtrain.files.parts import part_names, read_parts
from wgtrain.gpu import run
from wgtrain.runs.inputs import Inputs
from wgtrain.train.config import RunConfig, TrainConfig

COUNT = 4
WHOLE = tiny("llama", "Q8_0").gguf
Make = Callable[..., list[Path]]


def split(data: bytes, count: int = COUNT, **changes: Any) -> list[bytes]:
    """The parts of a file; the first has no tensors, as where metadata is large."""
    gguf = parse_gguf(data)
    names = list(gguf.tensors)
    cuts = [0, 0, *np.linspace(0, len(names), count)[1:].astype(int)]
    parts = []
    for number in range(count):
        own = {
            "split.no": np.uint16(number),
            "split.count": np.uint16(count),
            "split.tensors.count": np.int32(len(names)),
        }
        infos = [gguf.tensors[name] for name in names[cuts[number] : cuts[number + 1]]]
        tensors: dict[str, Any] = {
            info.name: Raw(info.type, info.shape, data[info.offset : info.offset + info.nbytes])
            for info in infos
        }
        parts.append(write_gguf((gguf.metadata if not number else {}) | own | changes, tensors))
    return parts


@pytest.fixture
def parted(tmp_path: Path) -> list[Path]:
    names = part_names(f"base-00001-of-{COUNT:05d}.gguf")
    paths = [tmp_path / name for name in names]
    for path, data in zip(paths, split(WHOLE), strict=True):
        path.write_bytes(data)
    return paths


def sources(*parts: bytes) -> list[BytesSource]:
    return [BytesSource(data, f"part {i}") for i, data in enumerate(parts)]


def refused(words: str, *parts: bytes) -> None:
    with pytest.raises(FileError) as error:
        run(read_parts(sources(*parts)))
    assert words in str(error.value), error.value


def test_names() -> None:
    assert part_names("a-00002-of-00003.gguf") == [f"a-0000{i}-of-00003.gguf" for i in (1, 2, 3)]
    for name in ("a.gguf", "a-00004-of-00003.gguf", "a-00000-of-00003.gguf", "a-1-of-3.gguf", ""):
        assert part_names(name) == []


def test_parts_of_other_models_and_counts_that_cannot_be() -> None:
    good = split(WHOLE)
    for key, value, words in (
        ("general.architecture", "qwen2", "general.architecture is 'qwen2', in part 0 it is 'll"),
        ("split.tensors.count", np.int32(7), "parts of two models"),
    ):
        other = split(WHOLE, **{key: value})
        refused(words, *good[:2], other[2], good[3])
    for count in (2**32 - 1, -1, 65_536):
        parts = split(WHOLE, **{"split.count": np.int64(count)})
        refused(f"split.count is {count}; 1 to 65535 are possible", *parts)
    refused("parts 5, 6, 7", *split(WHOLE, **{"split.count": np.uint16(65_535)}))
    refused(
        "and 65511 more of 65535 are missing", *split(WHOLE, **{"split.count": np.uint16(65_535)})
    )


def test_as_one(parted: list[Path]) -> None:
    """Metadata, tensors and every byte of them, from any part, a list in any order, and bytes."""
    whole = parse_gguf(WHOLE)
    in_a_list = [path.read_bytes() for path in reversed(parted)]
    for given in (parted[0], str(parted[2]), parted[::-1], tuple(in_a_list)):
        with opened_base(given) as base:
            assert base.gguf.metadata.keys() == whole.metadata.keys()
            assert base.gguf.kinds["llama.block_count"] == np.uint32
            assert list(base.gguf.tensors) == list(whole.tensors)
            for name, info in whole.tensors.items():
                found = base.gguf.tensors[name]
                assert (found.shape, found.type) == (info.shape, info.type)
                data = run(read_range(base.source, found.offset, found.nbytes))
                assert bytes(data) == WHOLE[info.offset : info.offset + info.nbytes]
    assert package.load_tokenizer(parted[1]).encode("hello") == package.load_tokenizer(
        WHOLE
    ).encode("hello")


@pytest.mark.gpu
def test_logits_and_fingerprint(parted: list[Path]) -> None:
    """The same to the bit as of the whole file; the fingerprint covers what stands in any part."""
    tokens = np.arange(3, 20)
    with package.load_model(parted[0]) as model, package.load_model(WHOLE) as whole:
        assert np.array_equal(model.logits(tokens), whole.logits(tokens))
        fingerprint = model.fingerprint
    parted[2].write_bytes(split(WHOLE, note="another")[2])
    with package.load_model(parted[0]) as model:
        assert model.fingerprint != fingerprint


@pytest.mark.oracle
def test_llama_cpp_opens_them(parted: list[Path]) -> None:
    from llama_cpp_oracle import LlamaCpp

    tokens = np.arange(3, 20)
    assert np.array_equal(LlamaCpp(parted[0]).logits(tokens), LlamaCpp(WHOLE).logits(tokens))


def test_hash_covers_all_parts(parted: list[Path], tmp_path: Path) -> None:
    """That by which a run knows its model again."""

    def sha() -> str:
        data = tmp_path / "rows.jsonl"
        data.write_text('{"text": "a"}\n')
        inputs = Inputs(RunConfig(model=str(parted[0]), data=str(data)), TrainConfig())
        return inputs.model_hash()

    before = sha()
    last = parted[-1].read_bytes()
    parted[-1].write_bytes(last[:-1] + bytes([last[-1] ^ 1]))
    assert before and sha() != before
    assert before != hashlib.sha256(parted[0].read_bytes()).hexdigest()


def test_missing_and_wrong_parts(parted: list[Path]) -> None:
    parts = [path.read_bytes() for path in parted]
    refused(f"parts 2, 4 of {COUNT} are missing", parts[0], parts[2])
    refused(f"part 2 of {COUNT} is missing", parts[0], *parts[2:])
    refused(f"parts 2, 3, 4 of {COUNT} are missing", parts[0])
    refused(f"part 3 of {COUNT}, which part 2 is, too", *parts[:3], parts[2])
    refused("split.count is 3, in part 0 it is 4", *parts[:3], split(WHOLE, 3)[2])
    refused("split.count is 1", parts[0], WHOLE)
    refused("a whole model", WHOLE, WHOLE)
    refused("split.no is 9", *parts[:3], split(WHOLE, **{"split.no": 9})[3])
    refused("is in another part, too", *parts[:3], split(WHOLE, **{"split.no": 3})[2])
    refused("split.tensors.count is 99", *split(WHOLE, **{"split.tensors.count": 99}))
    refused("'split.no' is missing", *parts[:3], write_gguf({"split.count": 4}, {}))
    with pytest.raises(FileError, match="parts 2, 3, 4 of 4 are missing"):
        package.load_model(BytesSource(parts[0]))
    with pytest.raises(OptionError, match="a list without files"):
        package.load_model([])
    parted[2].unlink()
    for path in (parted[0], parted[3]):
        with pytest.raises(FileError, match=f"part 3 of {COUNT} is missing: .*{parted[2].name}"):
            package.load_model(path)
    moved = parted[0].with_name("other.gguf")
    parted[0].rename(moved)
    with pytest.raises(WgtrainError, match=r"missing; of paths, files are found that end in"):
        package.load_model(moved)


def test_a_name_alone_is_no_part(tmp_path: Path) -> None:
    """A whole model that somebody called so."""
    path = tmp_path / "base-00001-of-00002.gguf"
    path.write_bytes(WHOLE)
    with opened_base(path) as base:
        assert len(base.gguf.tensors) == len(parse_gguf(WHOLE).tensors)


def test_quantised_to_one_file(parted: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    out = parted[0].with_name("one.gguf")
    with pytest.raises(SystemExit):
        cli.main(["quantize", str(parted[0]), "--type", "Q8_0", "--out", str(out)])
    assert "3 matrices" not in capsys.readouterr().err
    gguf = parse_gguf(out.read_bytes())
    assert set(gguf.tensors) == set(parse_gguf(WHOLE).tensors)
    assert not [key for key in gguf.metadata if key.startswith("split.")]
    with pytest.raises(SystemExit):
        cli.main(["quantize", str(parted[0]), "--type", "F16", "--out", str(parted[3]), "--force"])
    assert "the output is also the input" in capsys.readouterr().err


def test_numbers_of_the_configuration_may_lie_in_any_part() -> None:
    """What rotations are divided by is read wherever it is."""
    whole = parse_gguf(tiny("llama-freqs").gguf)
    parts = split(tiny("llama-freqs").gguf)
    assert "rope_freqs.weight" not in parse_gguf(parts[0]).tensors
    found = run(read_parts(sources(*parts)))[1].numbers
    np.testing.assert_array_equal(found["rope_freqs.weight"], whole.numbers["rope_freqs.weight"])
