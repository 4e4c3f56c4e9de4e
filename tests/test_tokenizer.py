"""Tokenizers against llama.cpp's published ids, llama.cpp itself, and metadata that lies."""

import random
from typing import Any

import needs
import numpy as np
import pytest
import vocabs
from vocabs import NAMES, bpe, spm

from wgtrain.data import load_tokenizer, tokenizer_json
from wgtrain.data.vocabulary import read_vocabulary
from wgtrain.errors import FileError, OptionError


@pytest.mark.parametrize("name", NAMES)
def test_published_ids(name: str) -> None:
    path = needs.data() / "vocab" / f"ggml-vocab-{name}.gguf"
    texts = path.with_suffix(".gguf.inp").read_text().split("\n__ggml_vocab_test__\n")
    lines = path.with_suffix(".gguf.out").read_text().splitlines()
    assert len(lines) >= 40 and len(texts) - len(lines) in (0, 1)  # a last separator may follow
    tokenizer = vocabs.tokenizer(name)
    for text, line in zip(texts, lines, strict=False):
        assert tokenizer.encode(text) == [int(word) for word in line.split()], text


def random_text(rng: random.Random, specials: list[str]) -> str:
    """Scripts, runs of blanks and digits, emoji, controls, contractions and special tokens."""
    alphabets = [
        "abcdefghijklmnopqrstuvwxyz",
        "ABCXYZ",
        "0123456789",
        "àéîõüßñçšžœ",
        "абвгдежз",
        "αβγδ",
        "你好世界中文",
        "こんにちは",
        "한국어",
        "مرحبا",
        "שלום",
        "हिन्दी",
        "ไทย",
        "①½²",
        "😀🚀👩\u200d💻🇩🇪",
        "\t\n\r ",
        "\u00a0\u3000\u2003",
        "'stLR",
        '!?.,;:-_()[]{}<>/\\|@#$%^&*+=~`"',
        "\u2581",
        "\x00\x01\x7f\x85",
        "\u0301\u0308",
    ]
    words = ["Hello", "don't", "I'm", "WE'LL", "function", "3.14", "12345", "https://a.b/c?d", "ÄÖ"]
    parts = []
    for _ in range(rng.randint(1, 25)):
        dice = rng.random()
        if dice < 0.2:
            parts.append(rng.choice(" \n\t=-ae0") * rng.randint(1, 40))
        elif dice < 0.4:
            parts.append(" " + rng.choice(words))
        elif dice < 0.45 and specials:
            parts.append(rng.choice(specials))
        else:
            parts.append("".join(rng.choices(rng.choice(alphabets), k=rng.randint(1, 9))))
    return "".join(parts)


def special_pieces(metadata: dict[str, Any]) -> list[str]:
    vocabulary = read_vocabulary(metadata, "v")
    return [vocabulary.pieces[i] for i in np.flatnonzero(np.isin(vocabulary.types, (2, 3, 4)))[:10]]


@pytest.mark.oracle
@pytest.mark.parametrize("name", NAMES)
def test_random_texts_against_llama_cpp(name: str) -> None:
    needs.package("llama_cpp")
    from llama_cpp_vocab import LlamaCppVocab

    tokenizer, judge = vocabs.tokenizer(name), LlamaCppVocab(vocabs.metadata(name))
    specials = special_pieces(vocabs.metadata(name))
    rng = random.Random(name)
    for _ in range(400):
        text = random_text(rng, specials)
        for special in (False, True):
            assert tokenizer.encode(text, special=special) == judge.encode(text, special=special)
    assert judge.encode("a", bos=True) == tokenizer.encode("a", bos=tokenizer.add_bos)
    assert tokenizer.stop_ids == {i for i in range(tokenizer.vocab_size) if judge.is_end(i)}
    judge.close()


@pytest.mark.oracle
@pytest.mark.parametrize(
    "pieces",
    [
        ("aa", "aaa", "aaaa", "aaaaa"),
        ("aa", "aaa", "ba", "aab"),
        ("ab", "ba", "aba", "abab", "ababa", "bab"),
        ("\u2581\u2581", "\u2581\u2581\u2581", "\u2581a", "\u2581\u2581\u2581\u2581"),
    ],
)
def test_ties_between_overlapping_pairs(pieces: tuple[str, ...]) -> None:
    """Two pairs that overlap and make the same piece: the left one must win."""
    needs.package("llama_cpp")
    from llama_cpp_vocab import LlamaCppVocab

    metadata = spm(*pieces)
    tokenizer, judge = load_tokenizer(metadata), LlamaCppVocab(metadata)
    rng = random.Random(1)
    for _ in range(300):
        text = "".join(rng.choices("aab ", k=rng.randint(1, 30)))
        assert tokenizer.encode(text) == judge.encode(text), text
    judge.close()


@pytest.mark.oracle
def test_runs_of_spaces_against_llama_cpp() -> None:
    """Llama's pieces for runs of spaces all have one score."""
    needs.package("llama_cpp")
    from llama_cpp_vocab import LlamaCppVocab

    tokenizer, judge = vocabs.tokenizer("llama-spm"), LlamaCppVocab(vocabs.metadata("llama-spm"))
    for n in range(1, 200):
        for before, after in (("", ""), ("x", ""), ("", "the"), ("日", "\n")):
            text = before + " " * n + after
            assert tokenizer.encode(text) == judge.encode(text), (before, n, after)
    judge.close()


@pytest.mark.parametrize("name", NAMES)
def test_decoding_inverts_encoding(name: str) -> None:
    tokenizer = vocabs.tokenizer(name)
    rng = random.Random(3)
    specials = special_pieces(vocabs.metadata(name))
    spaces = name == "llama-spm"
    for _ in range(200):
        text = random_text(rng, specials)
        text = text.replace("\u2581", " ") if spaces else text
        assert tokenizer.decode(tokenizer.encode(text)) == text
        assert tokenizer.decode(tokenizer.encode(text, special=True), special=True) == text


@pytest.mark.parametrize("name", NAMES)
def test_ends_cut_the_text_where_the_tokens_do(name: str) -> None:
    """The bytes between two ends are what the token spells."""
    tokenizer = vocabs.tokenizer(name)
    rng = random.Random(4)
    specials = special_pieces(vocabs.metadata(name))
    for _ in range(200):
        text = random_text(rng, specials)
        data = text.encode()
        (encoding,) = tokenizer.encode_batch([text], special=True)
        at = 0
        for i, end in zip(encoding.ids.tolist(), encoding.ends.tolist(), strict=True):
            spelt = tokenizer.decode_bytes([i], special=True, start=False)
            taken = data[at:end].replace("\u2581".encode(), b" ")
            assert taken == spelt or (b" " + taken == spelt and name == "llama-spm")
            at = end
        assert at == len(data)


def test_space_in_front_and_special_tokens() -> None:
    tokenizer = load_tokenizer(spm("\u2581a", specials=("<x>",)))
    a, x = tokenizer.id_of("\u2581a"), tokenizer.id_of("<x>")
    assert tokenizer.encode("a<x>a", special=True) == [a, x, a]
    assert tokenizer.decode([a, x, a], special=True) == "a<x>a"
    assert tokenizer.decode([a, x, a]) == "aa"
    assert tokenizer.decode_bytes([a], start=False) == b" a"
    assert tokenizer.encode("a", bos=True) == [1, a]
    assert tokenizer.encode("<s>a", bos=True, special=True) == [1, a]
    assert len(tokenizer.encode("<x>")) > 1
    bare = load_tokenizer(spm("\u2581a", add_space_prefix=False))
    assert bare.encode("a") == [bare.id_of("a")]


def test_longest_special_token_first() -> None:
    """As llama.cpp cuts: a longer one anywhere goes before a shorter one that begins earlier."""
    tokenizer = load_tokenizer(bpe(specials=("<a", "a><b", "<b>", "<|end|>")))
    ids = [tokenizer.id_of(piece) for piece in ("<", "a><b", ">")]
    assert tokenizer.encode("<a><b>", special=True) == ids
    assert tokenizer.encode("<b><b>", special=True) == [tokenizer.id_of("<b>")] * 2


def test_unknown_characters_and_bytes_keep_the_ends() -> None:
    metadata = spm("ab", specials=())
    keep = [i for i in range(len(metadata["tokenizer.ggml.tokens"])) if not 3 <= i < 259]
    for key in ("tokens", "scores", "token_type"):
        values = metadata[f"tokenizer.ggml.{key}"]
        metadata[f"tokenizer.ggml.{key}"] = (
            [values[i] for i in keep] if isinstance(values, list) else values[keep]
        )
    tokenizer = load_tokenizer(metadata)  # no bytes to fall back to
    (encoding,) = tokenizer.encode_batch(["é日ab"])
    assert [tokenizer.pieces[i] for i in encoding.ids] == ["\u2581", "<unk>", "<unk>", "ab"]
    assert encoding.ends.tolist() == [0, 2, 5, 7]

    holes = bpe()
    letter = "\u0120"  # the byte of a space
    at = holes["tokenizer.ggml.tokens"].index(letter)
    holes["tokenizer.ggml.tokens"][at] = "unused"
    (encoding,) = load_tokenizer(holes).encode_batch(["a  b"])
    assert encoding.ends.tolist() == [1, 4]


def test_end_tokens() -> None:
    tokenizer = load_tokenizer(bpe(specials=("<|im_end|>", "<|eom_id|>", "<|endoftext|>", "<|x|>")))
    named = {tokenizer.pieces[i] for i in tokenizer.stop_ids}
    assert named == {"<|im_end|>", "<|eom_id|>", "<|endoftext|>", "<|x|>"}
    assert tokenizer.pieces[tokenizer.eot_id or 0] == "<|im_end|>"
    none = load_tokenizer(bpe(eos_token_id=np.uint32(0xFFFFFFFF), specials=("<|x|>",)))
    assert none.eos_id is None and none.eot_id is None and none.end_id is None
    with pytest.raises(OptionError, match="no BOS"):
        none.encode("a", bos=True)


def test_what_cannot_be_encoded_or_decoded() -> None:
    tokenizer = load_tokenizer(bpe())
    with pytest.raises(OptionError, match="Unicode"):
        tokenizer.encode("\ud800")
    with pytest.raises(OptionError, match=r"257.*vocabulary of 257"):
        tokenizer.decode([257])
    assert tokenizer.decode(tokenizer.encode("é")[:1]) == "\ufffd"


def test_json_is_the_same_twice() -> None:
    assert tokenizer_json(spm("ab", "bc")) == tokenizer_json(spm("ab", "bc"))


V = len(bpe("a b")["tokenizer.ggml.tokens"])
S = len(spm("ab")["tokenizer.ggml.tokens"])
LIES: list[tuple[dict[str, Any], str]] = [
    (
        bpe(model="bert"),
        r"model is 'bert' \(WordPiece, of encoders\); expected one of gpt2, llama, gemma4",
    ),
    (bpe(model=7), r"tokenizer.ggml.model is 7; expected a text"),
    ({}, r"tokenizer.ggml.model is missing"),
    (bpe(model="t5"), r"model is 't5' \(unigram"),
    (bpe(model="rwkv"), r"model is 'rwkv' \(of RWKV"),
    (bpe(model="plamo2"), r"model is 'plamo2' \(of PLaMo 2"),
    (bpe(pre="tekkken"), r"pre is 'tekkken'; expected one of llama-bpe, .*, tekken, .*, viking"),
    (bpe(pre=1.5), r"tokenizer.ggml.pre is 1.5"),
    (bpe(tokens=[]), r"tokenizer.ggml.tokens is empty"),
    (bpe(tokens=None), r"tokenizer.ggml.tokens is missing"),
    (bpe(tokens=np.zeros(3)), r"tokenizer.ggml.tokens is a ndarray"),
    (bpe(tokens=["a", "b", "a"]), r"tokens\[2\] is 'a'; expected no piece twice"),
    (bpe(tokens=["a", "\ud800"]), r"tokens\[1\] is .*valid Unicode"),
    (bpe(tokens=["a", "b" * 2000]), r"tokens\[1\] is .*of 2000 characters"),
    (bpe(token_type=np.ones(5, np.int32)), r"token_type is of length 5; expected length 257"),
    (bpe(token_type=np.full(257, 9, np.int32)), r"token_type\[0\] is 9; expected 1 to 6"),
    (bpe(token_type=np.full(257, 0, np.int32)), r"token_type\[0\] is 0"),
    (bpe(token_type="x"), r"token_type is a str"),
    (bpe(merges=None), r"merges is missing"),
    (bpe(merges=["ab"]), r"merges\[0\] is 'ab'; expected two pieces and a space"),
    (bpe(merges=[" a"]), r"merges\[0\] is ' a'"),
    (bpe(merges=["a "]), r"merges\[0\] is 'a '"),
    (bpe(merges=["a b", "zz b"]), r"merges\[0\] is 'a b'; expected .*'ab' is none"),
    (bpe("a b", merges=["a b", "zz b"]), r"merges\[1\] is 'zz b'; expected .*'zz' is none"),
    (bpe("a b", eos_token_id=np.uint32(V)), rf"eos_token_id is {V}; expected an id below {V}"),
    (bpe("a b", eos_token_id=np.int32(-7)), r"eos_token_id is -7"),
    (bpe("a b", bos_token_id=2**31), r"bos_token_id is 2147483648"),
    (bpe("a b", eot_token_id="1"), r"eot_token_id is '1'"),
    (bpe("a b", eom_token_id=True), r"eom_token_id is True"),
    (bpe("a b", unknown_token_id=9999), r"unknown_token_id is 9999"),
    (bpe("a b", add_bos_token=True), r"bos_token_id is missing"),
    (bpe("a b", add_bos_token=1), r"add_bos_token is 1; expected true or false"),
    (spm("ab", add_space_prefix="no"), r"add_space_prefix is 'no'"),
    (spm("ab", scores=None), r"scores is missing"),
    (spm("ab", scores=np.zeros(2, np.float32)), rf"scores is of length 2; expected length {S}"),
    (spm("ab", scores=np.full(S, np.nan, np.float32)), r"scores\[0\] is nan"),
    (spm("ab", scores=["0"] * S), r"scores is a list"),
    (spm("ab", bos_token_id=S), rf"bos_token_id is {S}"),
    (
        spm(*("a" * n for n in range(2, 600))),
        r"tokens\[\d+\] is 'a+.*: with it the ways to cut pieces in two take more than 33,554,432",
    ),
    (spm("ab") | {"general.name": 5}, r"general.name is 5; expected a text"),
    ({**spm("ab"), "tokenizer.chat_template": 5}, r"chat_template is 5; expected a text"),
]


@pytest.mark.parametrize(("metadata", "message"), LIES, ids=[message for _, message in LIES])
def test_metadata_that_lies(metadata: dict[str, Any], message: str) -> None:
    with pytest.raises(FileError, match=message) as caught:
        load_tokenizer(metadata, "lies.gguf")
    assert str(caught.value).startswith("lies.gguf: ") and len(str(caught.value)) < 900
