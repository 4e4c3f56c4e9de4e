"""Every kind of vocabulary of GGUF files, beside llama.cpp on the same file."""

import random
from typing import Any

import needs
import numpy as np
import pytest
import random_model
import unicode_texts
import vocabs
from vocabs import bpe, spm

from wgtrain.data import Tokenizer, load_tokenizer
from wgtrain.data.merges import scored_merges
from wgtrain.data.pretokenizers import PRE_TOKENIZERS
from wgtrain.data.special_tokens import CONTROL, NORMAL, UNKNOWN, USER_DEFINED
from wgtrain.model.host import Host

pytestmark = pytest.mark.oracle
TEXTS = 50  # a name; scripts/evidence takes more, of all of Unicode
KINDS = unicode_texts.by_category(list(unicode_texts.FEW))
SEEN = unicode_texts.FEW + unicode_texts.AWKWARD + "".join(unicode_texts.PLAIN)


def judge(metadata: dict[str, Any]) -> Any:
    needs.package("llama_cpp")
    from llama_cpp_vocab import LlamaCppVocab

    return LlamaCppVocab(metadata)


def texts(seed: str, n: int, specials: list[str]) -> list[str]:
    rng = random.Random(seed)
    made = [unicode_texts.random_text(rng, KINDS, specials) for _ in range(n)]
    return [unicode_texts.AWKWARD, *made]


@pytest.mark.parametrize("pre", sorted(PRE_TOKENIZERS))
def test_ids_of_every_name(pre: str) -> None:
    metadata = vocabs.pairs(SEEN) | {"tokenizer.ggml.pre": pre}
    tokenizer, other = load_tokenizer(metadata), judge(metadata)
    for text in texts(pre, TEXTS, ["<|end|>", "<|x|>"]):
        for special in (False, True):
            ids = other.encode(text, special=special)
            assert tokenizer.encode(text, special=special) == ids, text
        assert tokenizer.decode_bytes(ids, special=True) == other.spell(ids, special=True)
    assert tokenizer.add_bos == (other.encode("a", bos=True) != other.encode("a"))
    other.close()


def test_texts_tell_names_apart() -> None:
    """Under the words of any other row of the table some ids differ."""
    rows: dict[tuple[str, ...], str] = {}
    for name, row in PRE_TOKENIZERS.items():
        rows.setdefault(tuple(row.patterns), name)
    assert len(rows) >= 18
    given = texts("apart", 300, [])
    found = {}
    for name in rows.values():
        tokenizer = load_tokenizer(vocabs.pairs(SEEN) | {"tokenizer.ggml.pre": name})
        found[name] = str([e.ids.tolist() for e in tokenizer.encode_batch(given)])
    assert len(set(found.values())) == len(rows)


ENDS: dict[str, dict[str, Any]] = {
    "llama 3": {"specials": ("<|eot_id|>", "<|eom_id|>", "<|end_of_text|>", "<|x|>")},
    "qwen": {
        "specials": ("<|im_end|>", "<|endoftext|>", "<|fim_pad|>", "<|repo_name|>", "<|file_sep|>")
    },
    "one fill-in": {"specials": ("<|fim_prefix|>", "<fim_suffix>", "<MID>", "[PAD]", "<reponame>")},
    "gpt-oss": {
        "specials": ("<|return|>", "<|call|>", "<|end|>", "<|channel|>", "<|start|>", "<|message|>")
    },
    "solar": {"specials": ("<|flush|>", "<|calls|>", "<|end|>", "<|constrain|>")},
    "call alone": {"specials": ("<|call|>", "<|end|>")},
    "gemma 4": {"specials": ("</s>", "<|tool_response>", "<turn|>", "<eos>", "[e~[")},
    "plamo": {"specials": ("</s>", "<|plamo:eos|>")},
    "keys": {
        "specials": ("<|im_end|>", "<end_of_turn>", "<a>", "<b>", "<c>"),
        "eot_token_id": np.uint32(258),
        "eom_token_id": np.uint32(259),
        "fim_pad_token_id": np.uint32(257),
    },
}


@pytest.mark.parametrize("kind", [NORMAL, CONTROL, USER_DEFINED, UNKNOWN])
@pytest.mark.parametrize("case", ENDS)
def test_special_tokens(case: str, kind: int) -> None:
    metadata = bpe(**ENDS[case])
    pieces = metadata["tokenizer.ggml.tokens"]
    metadata["tokenizer.ggml.token_type"][256:] = kind
    tokenizer, other = load_tokenizer(metadata), judge(metadata)
    assert tokenizer.stop_ids == {i for i in range(len(pieces)) if other.is_end(i)}
    rng = random.Random(case)
    for _ in range(30):
        text = "".join(rng.choice([*pieces[256:], " ", "a", "<|", "\n"]) for _ in range(9))
        for special in (False, True):
            ids = other.encode(text, special=special)
            assert tokenizer.encode(text, special=special) == ids
            assert tokenizer.decode_bytes(ids, special) == other.spell(ids, special)
    other.close()


@pytest.mark.parametrize("name", ["Phi-3 mini", "My PHI3", "phi 3", None])
def test_blanks_behind_special_tokens(name: str | None) -> None:
    specials = ("<|user|>", "<|end|>", "<|endoftext|>", "<tool>")
    metadata = spm("\u2581Hi", "\u2581\u2581", specials=specials)
    metadata["tokenizer.ggml.token_type"][6] = USER_DEFINED
    metadata |= {} if name is None else {"general.name": name}
    tokenizer, other = load_tokenizer(metadata), judge(metadata)
    rng = random.Random(4)
    given = ["<|user|>\nHi<|end|>\n", "a<|end|> \n b"]
    pieces = [*specials, "<s>", "</s>", "<unk>", "Hi", " ", "\n", "\t", "\u00a0", "\x0b"]
    given += ["".join(rng.choices(pieces, k=8)) for _ in range(100)]
    swallowed = False
    for text in given:
        for special in (False, True):
            ids = other.encode(text, special=special)
            assert tokenizer.encode(text, special=special) == ids, text
            (encoding,) = tokenizer.encode_batch([text], special)
            assert encoding.ends[-1] == len(text.encode()) and (np.diff(encoding.ends) >= 0).all()
            swallowed |= tokenizer.decode(ids, True) != text
    assert swallowed == (name is not None and "phi 3" not in name)
    other.close()


def gemma4(*merges: str, specials: tuple[str, ...] = ()) -> dict[str, Any]:
    """Gemma 4's kind of vocabulary: bytes, letters and what `merges` make."""
    made = spm(*(merge.replace(" ", "") for merge in merges), specials=("<bos>", *specials))
    keep = ("tokens", "token_type", "unknown_token_id")
    made = {f"tokenizer.ggml.{key}": made[f"tokenizer.ggml.{key}"] for key in keep}
    return made | {
        "tokenizer.ggml.model": "gemma4",
        "tokenizer.ggml.merges": list(merges),
        "tokenizer.ggml.bos_token_id": np.uint32(3),
        "tokenizer.ggml.add_bos_token": False,
    }


def test_gemma_4() -> None:
    metadata = gemma4("\u2581 \u2581", "a b", "\u2581 a", "\u2581a b", specials=("<turn|>",))
    metadata["tokenizer.ggml.tokens"] += ["\n\n", "\n\n\n"]  # no merge makes them
    types = np.append(metadata["tokenizer.ggml.token_type"], [NORMAL, NORMAL])
    metadata["tokenizer.ggml.token_type"] = types.astype(np.int32)
    tokenizer, other = load_tokenizer(metadata), judge(metadata)
    assert tokenizer.add_bos and other.encode("a", bos=True)[0] == 3
    assert [tokenizer.pieces[i] for i in tokenizer.encode("ab\n\n\nab\n\n\n\n")] == [
        *("ab", "\n\n\n", "ab"),
        *["<0x0A>"] * 4,
    ]
    rng = random.Random(5)
    for _ in range(300):
        text = "".join(rng.choices(["a", "b", " ", "\n", "é", "<turn|>", "\u2581"], k=12))
        for special in (False, True):
            ids = other.encode(text, special=special)
            assert tokenizer.encode(text, special=special) == ids, text
            assert tokenizer.decode_bytes(ids, special) == other.spell(ids, special)
            ends = tokenizer.encode_batch([text], special)[0].ends
            assert ends[-1] == len(text.encode())
    other.close()


def test_user_defined_pieces_are_cut_first() -> None:
    """Runs of blanks as Gemma has them, tags, the longest first, and what merging makes of rest."""
    pieces = ("\u2581\u2581", "\u2581\u2581\u2581", "\u2581a", "ab", "<b>", "a <b>", "  ", "    ")
    metadata = spm(*pieces, add_space_prefix=False)
    metadata["tokenizer.ggml.token_type"][-4:] = USER_DEFINED
    metadata["tokenizer.ggml.token_type"][-8] = USER_DEFINED  # reached by merging alone
    metadata["tokenizer.ggml.token_type"][-7] = 5
    tokenizer, other = load_tokenizer(metadata), judge(metadata)
    rng = random.Random(6)
    for _ in range(400):
        text = "".join(rng.choices(["a", "b", " ", "  ", "<b>", "é", "\u2581"], k=10))
        ids = other.encode(text)
        assert tokenizer.encode(text) == ids, text
        assert tokenizer.decode_bytes(ids) == other.spell(ids)
        assert tokenizer.encode_batch([text])[0].ends[-1] == len(text.encode())
    other.close()


def test_merges_of_scores_are_all_there_are() -> None:
    """Against trying every cut of every piece."""
    rng = random.Random(7)
    for _ in range(40):
        pieces = list({"".join(rng.choices("ab\u2581", k=rng.randint(1, 7))) for _ in range(90)})
        scores = np.array([rng.randint(-9, 0) for _ in pieces], np.float32)
        ids = {piece: i for i, piece in enumerate(pieces)}
        expected = []
        for i in sorted(range(len(pieces)), key=lambda i: (-scores[i], i)):
            piece = pieces[i]
            cuts = [c for c in range(1, len(piece)) if {piece[:c], piece[c:]} <= ids.keys()]
            cuts.sort(key=lambda c: (piece.endswith(piece[:c]) - piece.startswith(piece[c:]), -c))
            expected += [[ids[piece[:c]], ids[piece[c:]]] for c in cuts]
        assert scored_merges(pieces, scores, "v").tolist() == expected
    assert scored_merges(["a"], np.zeros(1, np.float32), "v").shape == (0, 2)


def test_equal_tokenizers_share_nothing() -> None:
    first: Tokenizer = load_tokenizer(spm("ab"))
    assert first.id_of("ab") == first.vocab_size - 1 and first.id_of("\ud800") is None
    assert load_tokenizer(spm("cd")).id_of("ab") is None


@pytest.mark.gpu
def test_a_large_vocabulary_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    model = random_model.load(random_model.build(random_model.Shape()), host=Host(say=said.append))
    model.gguf.metadata.update(bpe())
    monkeypatch.setattr("wgtrain.data.tokenizer.LARGE_VOCABULARY", 258)
    assert model.tokenizer.vocab_size == 257 and not said
    monkeypatch.setattr("wgtrain.data.tokenizer.LARGE_VOCABULARY", 257)
    monkeypatch.setattr(model, "_tokenizer", None)
    assert model.tokenizer is model.tokenizer
    assert said == ["random.gguf: a vocabulary of 257 pieces is read"]
    model.close()
