"""Rows and vocabularies that cost more than their size: runs without a break, many special tokens.

None of these tests looks at a clock. Without the care they are about, they take hours, or end in
what is no error of this package.
"""

import random

import numpy as np
import pytest
from test_jsonl import letters
from tokenizers import Regex
from tokenizers import pre_tokenizers as pre
from vocabs import bpe

from wgtrain.data import Tokenizer, cutter, library, load_rows, load_tokenizer
from wgtrain.data.cutter import Cutter
from wgtrain.data.jsonl import _covered
from wgtrain.data.pretokenizers import PRE_TOKENIZERS
from wgtrain.data.tokenizer_json import library_settings
from wgtrain.data.vocabulary import read_vocabulary
from wgtrain.errors import FileError


def one_after_the_other(ids: dict[str, int], text: str) -> list[str | int]:
    """As llama.cpp does it: looks for the longest special token everywhere, then for the next."""
    parts: list[str | int] = [text]
    for piece in sorted(ids, key=lambda piece: -len(piece.encode())):
        new: list[str | int] = []
        for part in parts:
            if isinstance(part, int):
                new.append(part)
                continue
            for i, plain in enumerate(part.split(piece)):
                new += [ids[piece]] * (i > 0) + [plain] * bool(plain)
        parts = new
    return parts


@pytest.mark.parametrize("letters", ["ab", "aé<|>", "abcdefgh"])
def test_special_tokens_are_cut_as_one_after_the_other(letters: str) -> None:
    rng = random.Random(letters)
    for _ in range(1500):
        pieces = [
            "".join(rng.choices(letters, k=rng.randint(1, 5))) for _ in range(rng.randint(0, 9))
        ]
        ids = {piece: i for i, piece in enumerate(dict.fromkeys(pieces))}
        text = "".join(rng.choices(letters + "x", k=rng.randint(1, 30)))
        assert Cutter(ids, "v")(text) == one_after_the_other(ids, text), (ids, text)


@pytest.mark.parametrize(
    ("pieces", "text", "expected"),
    [
        ([f"<|special_{i}|>" for i in range(30_000)], "a <|special_7|> b > |>" * 50_000, 100_001),
        (["a" * n for n in range(1, 1000)], "a" * 100_000, 101),
        (["a" * 1000 + "b", "b"], "a" * 1_000_000 + "b", 2),
        (["a" * n + "b" * 400 for n in range(1, 400)] + ["a" * 399], "a" * 399 + "b" * 400, 1),
    ],
)
def test_many_special_tokens(pieces: list[str], text: str, expected: int) -> None:
    parts = Cutter({piece: i for i, piece in enumerate(pieces)}, "v")(text)
    assert len(parts) == expected
    assert "".join(pieces[part] if isinstance(part, int) else part for part in parts) == text


def test_more_special_tokens_than_are_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cutter, "MOST_CHARACTERS", 19)
    load_tokenizer(bpe(specials=("<|end|>", "<|start|>")))
    with pytest.raises(
        FileError, match=r"^big.gguf: .*token_type makes 2 pieces special tokens, of"
    ):
        load_tokenizer(bpe(specials=("<|end|>", "<|beginning|>")), "big.gguf")


@pytest.mark.parametrize("name", sorted(PRE_TOKENIZERS))
def test_words_are_those_of_the_published_patterns(name: str) -> None:
    """What the library is given splits as the pattern of the models does."""
    spec = library_settings(read_vocabulary(bpe(pre=name), "v"), at_once=True)
    steps = [s for s in spec["pre_tokenizer"]["pretokenizers"] if s["type"] == "Split"]
    given, published = (
        pre.Sequence([pre.Split(Regex(pattern), "isolated") for pattern in patterns])
        for patterns in ([s["pattern"]["Regex"] for s in steps], PRE_TOKENIZERS[name].patterns)
    )
    rng = random.Random(name)
    blanks, others = " \t\n\r\x0b\x0c\x85\u00a0\u2028\u3000\u200b", "ab1!'s.é😀"
    for i in range(3000):
        some = blanks[: rng.choice([2, 4, 11])]
        weights = [0.8, 0.2] if i % 2 else [0.5, 0.5]
        kinds = rng.choices([some, others], weights, k=rng.randint(1, 16))
        text = "".join(map(rng.choice, kinds))
        assert given.pre_tokenize_str(text) == published.pre_tokenize_str(text), text


def test_blanks_without_a_break() -> None:
    """More of them than the library's engine would step back over to find one."""
    spec = library_settings(read_vocabulary(bpe(pre="qwen2"), "v"), at_once=True)
    split = pre.Split(
        Regex(spec["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"]), "isolated"
    )
    n = 10_000_100
    assert [place for _, place in split.pre_tokenize_str(" " * n + "x")] == [
        (0, n - 1),
        (n - 1, n + 1),
    ]


class Panic(BaseException):
    pass


Panic.__name__ = "PanicException"


def broken(error: BaseException) -> Tokenizer:
    """A tokenizer whose library raises an error for texts with "boom" in them."""

    class Broken:
        def encode_batch_fast(self, texts: list[str], add_special_tokens: bool) -> list[object]:
            if any("boom" in text for text in texts):
                raise error
            return [type("", (), {"ids": [64] * len(text)}) for text in texts]

    tokenizer = letters()
    inner = tokenizer._library
    assert isinstance(inner, library._NativeLibrary)
    inner._tokenizer = Broken()
    return tokenizer


@pytest.mark.parametrize("error", [Panic("retry-limit"), RuntimeError("retry-limit")])
def test_a_library_that_gives_up_is_told_by_line(error: BaseException) -> None:
    rows = b'{"text": "aaa"}\n' * 5 + b'{"text": "a boom"}\n{"text": "aaa"}'
    message = r"^data line 6: the tokenizer's library gives up on a text of 6 characters: retry-lim"
    with pytest.raises(FileError, match=message):
        load_rows(rows, broken(error), seq_len=9)


def test_an_interrupt_stays_one() -> None:
    with pytest.raises(KeyboardInterrupt):
        broken(KeyboardInterrupt()).encode("boom")


def test_learnt_tokens_are_those_that_reach_into_a_span() -> None:
    rng = random.Random(5)
    for _ in range(500):
        text = "".join(rng.choices("aé日😀", k=rng.randint(1, 20)))
        cuts = sorted(rng.choices(range(len(text) + 1), k=2 * rng.randint(0, 3)))
        spans = list(zip(cuts[::2], cuts[1::2], strict=True))
        size = len(text.encode())
        ends = np.array(sorted([*rng.choices(range(size + 1), k=rng.randint(0, 9)), size]))
        starts = [0, *ends[:-1].tolist()]
        expected = []
        for start, end in zip(starts, ends.tolist(), strict=True):
            bytes_ = [(len(text[:a].encode()), len(text[:b].encode())) for a, b in spans]
            expected.append(any(start < b and (end > a or start >= a) for a, b in bytes_))
        assert _covered(text, ends, spans).tolist() == expected


def test_a_field_twice_among_many() -> None:
    fields = "".join(f'"{i}": 1, ' for i in range(100_000))
    with pytest.raises(FileError, match=r"line 1: field '99999' stands twice in an object"):
        load_rows(f'{{{fields}"99999": 2}}'.encode(), letters(), seq_len=9)
