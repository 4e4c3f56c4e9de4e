"""Seeded broken GGUF files by class, each with a piece of the message that its own check gives.

They are put together by hand here, so that any field can lie and no writer is trusted.
"""

import random
import struct
from typing import Any, NamedTuple

import numpy as np

from wgtrain.files import Raw, write_gguf

HUGE = (2**40, 2**48, 2**60, 2**62 + 1, 2**63 - 1, 2**63, 2**64 - 1)
U8, BOOL, U32, F32, STRING, ARRAY, U64 = 0, 7, 4, 6, 8, 9, 10


class Case(NamedTuple):
    """One broken file, and what the error must say beside the file's name."""

    label: str
    data: bytes
    says: str


def text(content: str | bytes, length: int | None = None) -> bytes:
    data = content.encode() if isinstance(content, str) else content
    return struct.pack("<Q", len(data) if length is None else length) + data


def entry(key: str | bytes, kind: int, value: bytes, key_length: int | None = None) -> bytes:
    return text(key, key_length) + struct.pack("<I", kind) + value


def array(kind: int, count: int, items: bytes = b"") -> bytes:
    return struct.pack("<IQ", kind, count) + items


def tensor(
    name: str | bytes = "x",
    dims: tuple[int, ...] = (8, 2),
    kind: int = 0,
    offset: int = 0,
    n_dims=None,
) -> bytes:
    n = len(dims) if n_dims is None else n_dims
    return text(name) + struct.pack(f"<I{len(dims)}QIQ", n, *dims, kind, offset)


def gguf(
    entries: list[bytes],
    tensors: list[bytes],
    data: int = 64,
    *,
    version=3,
    n_keys=None,
    n_tensors=None,
) -> bytes:
    """A file of these entries with `data` bytes of tensor data; counts as they are unless given."""
    n_keys = len(entries) if n_keys is None else n_keys
    n_tensors = len(tensors) if n_tensors is None else n_tensors
    front = b"GGUF" + struct.pack("<IQQ", version, n_tensors, n_keys)
    front += b"".join(entries) + b"".join(tensors)
    return front + bytes(-len(front) % 32) + bytes(data)


def some_entries(rng: random.Random, n: int | None = None) -> list[bytes]:
    """A few good entries in random order, so that the bad one lies anywhere."""
    words = b"".join(text("w" * rng.randrange(9)) for _ in range(7))
    good = [
        entry("general.architecture", STRING, text("llama")),
        entry("llama.block_count", U32, struct.pack("<I", rng.randrange(99))),
        entry("llama.eps", F32, struct.pack("<f", rng.random())),
        entry("some.flag", BOOL, b"\x01"),
        entry("some.words", ARRAY, array(STRING, 7, words)),
        entry("some.bytes", ARRAY, array(U8, 5, rng.randbytes(5))),
    ]
    return rng.sample(good, rng.randrange(len(good) + 1) if n is None else n)


def with_entry(rng: random.Random, bad: bytes) -> bytes:
    entries = some_entries(rng)
    entries.insert(rng.randrange(len(entries) + 1), bad)
    return gguf(entries, [tensor()])


def sample(seed: int = 0) -> bytes:
    """A good file with values and tensors of many types."""
    rng = np.random.default_rng(seed)
    metadata: dict[str, Any] = {
        "general.architecture": "llama",
        "llama.block_count": 3,
        "llama.rope.freq_base": 10000.0,
        "tokenizer.ggml.tokens": ["<s>", "", "▁the", "né", "x" * 50],
        "tokenizer.ggml.scores": rng.random(5, np.float32),
        "tokenizer.ggml.add_bos_token": True,
        "a.negative": -7,
    }
    return write_gguf(
        metadata,
        {
            "token_embd.weight": rng.random((5, 7), np.float32),
            "blk.0.attn_q.weight": Raw("Q8_0", (3, 64), rng.bytes(3 * 68)),
            "output_norm.weight": rng.random(7, np.float32),
        },
    )


def truncated(rng: random.Random, whole: bytes, end: int, n: int = 50) -> list[Case]:
    """`whole` cut at random places before `end`, where its last needed byte lies."""
    cuts = rng.sample(range(end), min(n, end))
    return [Case(f"cut at {cut}", whole[:cut], "") for cut in cuts]


def flipped(rng: random.Random, whole: bytes, end: int, n: int) -> list[Case]:
    """`whole` with one bit before `end` turned."""
    cases = []
    for bit in rng.sample(range(8 * end), min(n, 8 * end)):
        data = bytearray(whole)
        data[bit // 8] ^= 1 << bit % 8
        cases.append(Case(f"bit {bit}", bytes(data), ""))
    return cases


def hostile_counts(rng: random.Random) -> list[Case]:
    cases = []
    for huge in HUGE:
        near = huge - rng.randrange(1000)
        entries = some_entries(rng)
        cases += [
            Case(
                "tensors", gguf(entries, [tensor()], n_tensors=near), f"{near} tensors of at least"
            ),
            Case("keys", gguf(entries, [], n_keys=near), f"{near} metadata entries of at least"),
            Case(
                "dimensions",
                gguf(entries, [tensor(n_dims=near % 2**32 | 8)]),
                " dimensions, 1 to 4",
            ),
        ]
        for kind, name in ((STRING, "string"), (U8, "u8"), (U64, "u64"), (ARRAY, "array")):
            bad = entry("some.list", ARRAY, array(kind, near))
            cases.append(Case(name, with_entry(rng, bad), f"{near} {name} elements of at least"))
    deep = array(U8, 1, b"\0")
    for _ in range(rng.randrange(5, 50)):
        deep = array(ARRAY, 1, deep)
    cases.append(
        Case("nesting", with_entry(rng, entry("deep", ARRAY, deep)), "nested deeper than 4")
    )
    many = gguf([], [], 33 * 70_000, n_tensors=70_000)
    cases.append(Case("too many", many, "at most 65536 are read"))
    lists = [entry(f"k{n}", ARRAY, array(STRING, n, bytes(8 * n))) for n in (1000, 2**21 - 999)]
    cases.append(Case("too many strings", gguf(lists, []), "elements, at most 2096152 are read"))
    for extra in (1, 2, 3):  # a little too many: the data is taken for entries, or the file ends
        cases.append(Case("one more", gguf([], [], 0, n_keys=extra), f"{extra} metadata entries"))
    return cases


def hostile_offsets(rng: random.Random) -> list[Case]:
    cases = []
    for huge in HUGE:
        far = huge // 32 * 32
        cases += [
            Case("far", gguf(some_entries(rng), [tensor(offset=far)]), "end outside the file"),
            Case("wide", gguf(some_entries(rng), [tensor(dims=(huge, 2))]), "in a file of"),
            Case("product", gguf([], [tensor(dims=(2**32, 2**32, huge | 1))]), "in a file of"),
        ]
    for _ in range(6):
        odd = rng.randrange(1, 32)
        twice = [tensor("a"), tensor("b", offset=32)]
        cases += [
            Case("unaligned", gguf([], [tensor(offset=odd)], 128), "multiple of the alignment 32"),
            Case("past the end", gguf([], [tensor(offset=32)]), "end outside the file"),
            Case(
                "overlap", gguf(some_entries(rng), twice, 96), "overlaps tensor 'a', which ends at"
            ),
            Case("same place", gguf([], [tensor("a"), tensor("b")], 96), "overlaps tensor"),
            Case("empty", gguf([], [tensor(dims=(8, 0))]), "shape (0, 8) of F32"),
            Case("row", gguf([], [tensor(dims=(odd, 2), kind=8)], 512), "a multiple of 32 needed"),
            Case(
                "type",
                gguf([], [tensor(kind=rng.choice((4, 5, 31, 99, 2**32 - 1)))]),
                "tensor type",
            ),
        ]
    for value in (0, 3, 24, 2**31 - 1):
        bad = entry("general.alignment", U32, struct.pack("<I", value))
        cases.append(Case("alignment", with_entry(rng, bad), "a power of two expected"))
    return cases


def hostile_strings(rng: random.Random) -> list[Case]:
    cases = []
    for huge in HUGE:
        near = huge - rng.randrange(1000)
        value, items = text("abc", near), text("a") + text("b", near)
        words = entry("some.list", ARRAY, array(STRING, 2, items))
        cases += [
            Case(
                "value", with_entry(rng, entry("k", STRING, value)), f"a string needs {near} bytes"
            ),
            Case(
                "key", with_entry(rng, entry("k", U8, b"\0", near)), f"a key of {near} bytes, 1 to"
            ),
            Case("item", with_entry(rng, words), f"string 1 of 2 needs {near} bytes"),
        ]
    for _ in range(5):
        bad = rng.choice((b"\xff", b"\xc3", b"\xed\xa0\x80", b"\xf8\x88\x80\x80\x80", b"\xc0\xaf"))
        content = b"good " * rng.randrange(4) + bad
        words = array(STRING, 3, text("a") + text("") + text(content))
        long = "n" * rng.randrange(64, 200)
        cases += [
            Case(
                "utf-8 value", with_entry(rng, entry("k", STRING, text(content))), "no valid UTF-8"
            ),
            Case(
                "utf-8 key", with_entry(rng, entry(content, U8, b"\0")), "a key is no valid UTF-8"
            ),
            Case(
                "utf-8 item", with_entry(rng, entry("k", ARRAY, words)), "string 2 of 3 is no valid"
            ),
            Case("utf-8 name", gguf([], [tensor(content)]), "a tensor name is no valid UTF-8"),
            Case("long name", gguf([], [tensor(long)]), "bytes, 1 to 63 allowed"),
            Case("no name", gguf(some_entries(rng), [tensor("")]), "a tensor name of 0 bytes"),
            Case("no key", with_entry(rng, entry("", U8, b"\0")), "a key of 0 bytes"),
            Case("twice", gguf(some_entries(rng, 6) * 2, []), "a second time in this file"),
            Case("tensor twice", gguf([], [tensor(), tensor()], 128), "'x', byte"),
            Case(
                "type", with_entry(rng, entry("k", rng.randrange(13, 2**32), b"\0")), "value type"
            ),
            Case(
                "bool", with_entry(rng, entry("k", BOOL, bytes([rng.randrange(2, 256)]))), "bool "
            ),
        ]
    return cases
