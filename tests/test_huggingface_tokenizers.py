"""Tokenizers of Hugging Face folders: the ids are those of the `tokenizers` library itself."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import needs
import numpy as np
import pytest
import vocabs
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, processors, trainers
from tokenizers import pre_tokenizers as pre

import wgtrain
from wgtrain import gpu
from wgtrain.data import library, load_rows, load_tokenizer, tokenizer_json
from wgtrain.data.huggingface import read_tokenizer_metadata
from wgtrain.data.vocabulary import EXACT_MERGES, EXACT_PATTERNS, WHOLE_WORDS
from wgtrain.errors import FileError
from wgtrain.files import BytesSource

MODERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
CASED = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+%s|[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*%s|\p{{N}}%s"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
ENDED = "(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
CORPUS = [
    "The cat's hat isn't where I'd LEFT it; they'll say it's 1234567 years old.",
    "def f(x):\n    if x == 10:\n\treturn [x, 2.5e-3]\r\n\r\n    return None  # nothing",
    "Der Bär läuft über die Straße. Ça va? Ñandú año. Привет, мир! 你好，世界。 こんにちは",
    "aaaa aaaaa bbbb abab babab   spaces    here \n\n\n and emoji 😀😀 🏳️‍🌈 end",
] * 4
AWKWARD = [
    "",
    "a",
    "Hello, world!",
    "it's IT'S they'LL We'Ve don'T",
    "1 12 123 1234 12345 ١٢٣ Ⅷ ½",
    "tail spaces   ",
    "in  the   middle    of\ttabs\t\tand\n\nlines \r\n \n x",
    "äöüß ÄÖÜ ñ ça Привет 你好 こんにちは 한국어 עברית",
    "😀 😀😀 🏳️‍🌈 \u200d \ufeff \u00a0\u2003\u3000x",
    "aaaaaaaaa ababababab bbabb aabba",
    "x\u2581y \u2581\u2581",
    "\x00\x01\x7f \U0010ffff \ue000",
    "the<|end|>cat <tool>x</tool><tool> <|end|><|end|>\n<|end",
    "<s> </s> <unk> <0x41>",
]
LEADING = [" x", "  x y", "   ", "\n x", " <|end|> x", "<tool>  x"]

Style = tuple[Callable[[], Tokenizer], list[str]]  # how to make it, texts beside AWKWARD


def texts(more: list[str]) -> list[str]:
    """Awkward strings, and a hundred random ones over their characters."""
    rng = random.Random(3)
    letters = sorted(set("".join([*AWKWARD, *CORPUS])) - {"<"})
    made = ["x" + "".join(rng.choices(letters, k=rng.randrange(40))) for _ in range(100)]
    return [*AWKWARD, *more, *made]


def train(made: Tokenizer, special: list[str], alphabet: list[str], size: int) -> Tokenizer:
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator(CORPUS, trainer)
    made.add_special_tokens([AddedToken("<|end|>", special=True, normalized=False)])
    made.add_tokens([AddedToken("<tool>", normalized=False)])
    return made


def byte_level(
    *steps: Any, use_regex: bool = False, normalizer: Any = None, **model: Any
) -> Callable[[], Tokenizer]:
    def make() -> Tokenizer:
        made = Tokenizer(models.BPE(**model))
        last = pre.ByteLevel(add_prefix_space=False, use_regex=use_regex)
        made.pre_tokenizer = pre.Sequence([*steps, last]) if steps else last
        if normalizer is not None:
            made.normalizer = normalizer
        return train(made, ["<|endoftext|>"], pre.ByteLevel.alphabet(), 500)

    return make


def split(pattern: str, behavior: str = "isolated", invert: bool = False) -> Any:
    return pre.Split(Regex(pattern), behavior, invert=invert)


def sentencepiece(normalizer: Any, pre_tokenizer: Any) -> Callable[[], Tokenizer]:
    def make() -> Tokenizer:
        made = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
        if normalizer is not None:
            made.normalizer = normalizer
        if pre_tokenizer is not None:
            made.pre_tokenizer = pre_tokenizer
        bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
        letters = sorted(set("".join(CORPUS[:2])) | {"\u2581"})
        trained = train(made, ["<unk>", "<s>", "</s>", *bytes_], letters, 600)
        # A trainer takes the bytes for special tokens, which they are not.
        spec = json.loads(trained.to_str())
        spec["added_tokens"] = [t for t in spec["added_tokens"] if t["content"] not in bytes_]
        return Tokenizer.from_str(json.dumps(spec))

    return make


LEGACY = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
SPACES = normalizers.Replace(" ", "\u2581")
STYLES: dict[str, Style] = {
    "gpt-2": (byte_level(use_regex=True), LEADING),
    "smollm": (byte_level(pre.Digits(individual_digits=True), use_regex=True), LEADING),
    "llama-bpe": (byte_level(split(MODERN % "{1,3}"), ignore_merges=True), LEADING),
    "qwen2": (byte_level(split(MODERN % ""), normalizer=normalizers.NFC()), LEADING),
    "tekken": (byte_level(split(CASED % ("", "", "")), ignore_merges=True), LEADING),
    "gpt-4o": (byte_level(split(CASED % (ENDED, ENDED, "{1,3}"))), LEADING),
    "dbrx": (byte_level(split(MODERN % "{1,3}")), LEADING),
    "no name": (byte_level(split(r"\w+|\W")), LEADING),
    "no name, twice": (
        byte_level(pre.Digits(individual_digits=False), split(r"[a-m]+"), use_regex=True),
        LEADING,
    ),
    "qwen2, inverted": (byte_level(split(MODERN % "", "removed", invert=True)), LEADING),
    "spm": (sentencepiece(LEGACY, None), LEADING),
    "spm without prefix": (sentencepiece(SPACES, None), LEADING),
    "metaspace": (
        sentencepiece(None, pre.Metaspace(prepend_scheme="always", split=False)),
        ["<|end|>x<|end|>"],
    ),
    "metaspace first": (
        sentencepiece(None, pre.Metaspace(prepend_scheme="first", split=False)),
        [],
    ),
    "metaspace never": (
        sentencepiece(None, pre.Metaspace(prepend_scheme="never", split=False)),
        LEADING,
    ),
    "gemma": (sentencepiece(SPACES, pre.Split(" ", "merged_with_previous")), LEADING),
    "metaspace split": (sentencepiece(None, pre.Metaspace(prepend_scheme="always")), []),
}


def folder(path: Path, spec: Any, **files: Any) -> Path:
    """A folder with a tokenizer.json and others, `config={...}` as config.json."""
    path.mkdir(exist_ok=True)
    text = spec.to_str() if isinstance(spec, Tokenizer) else json.dumps(spec)
    (path / "tokenizer.json").write_text(text)
    for name, content in files.items():
        (path / f"{name}.json").write_text(json.dumps(content))
    return path


def metadata(path: Path) -> dict[str, Any]:
    files = {p.name: BytesSource(p.read_bytes(), p.name) for p in path.iterdir()}
    return gpu.run(read_tokenizer_metadata(files, "model"))


@pytest.mark.parametrize("style", STYLES)
def test_ids(style: str, tmp_path: Path) -> None:
    make, more = STYLES[style]
    library = make()
    ours = wgtrain.load_tokenizer(folder(tmp_path, library))
    assert ours.vocab_size == library.get_vocab_size()
    sentencepiece_like = style.startswith(("spm", "meta", "gemma"))
    pre_name = metadata(tmp_path).get("tokenizer.ggml.pre", "no name")
    assert sentencepiece_like or style.startswith(pre_name)
    skipped = 0
    for text in texts(more):
        # What llama.cpp does otherwise; see the module.
        if (style == "metaspace first" and ">" in text) or (
            style in ("metaspace", "metaspace split") and "> " in text
        ):
            skipped += 1
            continue
        theirs = library.encode(text, add_special_tokens=False).ids
        assert ours.encode(text, special=True) == theirs, text
        if "<unk>" not in text:
            spelt = normalizers.NFC().normalize_str(text) if style == "qwen2" else text
            spelt = spelt.replace("\u2581", " ") if sentencepiece_like else spelt
            assert ours.decode(theirs, special=True) == spelt
    assert skipped < 30  # of more than a hundred


def test_own_patterns_are_not_those_of_llama_cpp(tmp_path: Path) -> None:
    """Where llama.cpp splits a name's text otherwise, a folder is split as its model was."""
    text = "éÉa приВЕТ"
    spec = json.loads(tokenizer_json(vocabs.pairs(text)))
    spec["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = CASED % ("", "", "")
    library = Tokenizer.from_str(json.dumps(spec))
    ours = wgtrain.load_tokenizer(folder(tmp_path, spec))
    found = metadata(tmp_path)
    assert found["tokenizer.ggml.pre"] == "tekken"
    named = {key: value for key, value in found.items() if key not in (EXACT_PATTERNS, WHOLE_WORDS)}
    named["tokenizer.ggml.add_bos_token"] = False
    assert ours.encode(text) == library.encode(text).ids
    assert ours.encode(text) != load_tokenizer(named).encode(text)


@pytest.mark.parametrize("side", ["lstrip", "rstrip"])
def test_added_tokens_that_swallow_blanks(side: str, tmp_path: Path) -> None:
    library = STYLES["llama-bpe"][0]()
    library.add_special_tokens([AddedToken("<|user|>", **{side: True})])
    ours = wgtrain.load_tokenizer(folder(tmp_path, library))
    rng = random.Random(8)
    parts = ["<|user|>", "<|end|>", "the", " ", "\n", "\t", "\u00a0", "\u3000", "\x1f", "é"]
    for _ in range(200):
        text = "".join(rng.choices(parts, k=9))
        theirs = library.encode(text)
        assert ours.encode(text, special=True) == theirs.ids, text
        (encoding,) = ours.encode_batch([text], special=True)
        places = [len(text[:end].encode()) for _, end in theirs.offsets]
        for token, end, place in zip(theirs.tokens, encoding.ends.tolist(), places, strict=True):
            assert end == place or not token.startswith("<|"), text
        assert encoding.ends[-1] == len(text.encode())


def test_text_that_is_composed(tmp_path: Path) -> None:
    """Ids, and the places where tokens end in the text as it was given."""
    library = STYLES["qwen2"][0]()
    ours = wgtrain.load_tokenizer(folder(tmp_path, library))
    rng = random.Random(9)
    letters = ["e", "\u0301", "\u0323", "a", "\u1112", "\u1161", "\u11ab", "\u0f71\u0f72", "\u0344"]
    letters += ["\u09c7", "\u09be", "\u212b", "\u0f73", "\uac00", "é", "<|end|>", " ", "\u2126"]
    seen = 0
    for _ in range(300):
        text = "".join(rng.choices(letters, k=12))
        (encoding,) = ours.encode_batch([text], special=True)
        assert encoding.ids.tolist() == library.encode(text).ids, ascii(text)
        given = text.encode()
        assert encoding.ends[-1] == len(given) and (np.diff(encoding.ends) >= 0).all()
        for i, end in enumerate(encoding.ends.tolist()):
            if given[end : end + 1] and given[end] & 0xC0 == 0x80:
                continue  # within a letter that was composed already
            part = given[:end].decode()
            spelt = ours.decode_bytes(encoding.ids[: i + 1], special=True)
            assert normalizers.NFC().normalize_str(part).encode().startswith(spelt), ascii(text)
        seen += normalizers.NFC().normalize_str(text) != text
    assert seen > 200


def test_a_pattern_that_is_none(tmp_path: Path) -> None:
    spec = json.loads(STYLES["qwen2"][0]().to_str())
    spec["pre_tokenizer"]["pretokenizers"][0]["pattern"] = {"Regex": "(x"}
    with pytest.raises(FileError, match=r"the tokenizer cannot be built: .*parenthesis"):
        wgtrain.load_tokenizer(folder(tmp_path, spec))


def test_a_pattern_that_takes_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its steps at each character stay below the library's limit, but there are many characters."""
    monkeypatch.setattr(library, "SECONDS", 0.2)
    spec = json.loads(STYLES["qwen2"][0]().to_str())
    pattern = {"Regex": r"(?:.{0,1500}?)(?:.{0,1500}?)[\d!]"}
    spec["pre_tokenizer"]["pretokenizers"][0]["pattern"] = pattern
    tokenizer = wgtrain.load_tokenizer(folder(tmp_path, spec))
    assert tokenizer.decode(tokenizer.encode("a short text")) == "a short text"
    with pytest.raises(FileError, match=r"more than 0 s for 1,200 characters: patterns of its own"):
        tokenizer.encode("a" * 1200)
    rows = [json.dumps({"text": "a" * n}) for n in (1, 1200)]
    with pytest.raises(library.TooSlow):  # no row is tried again to tell which it was
        load_rows("\n".join(rows).encode(), tokenizer, seq_len=9)


def test_merges_are_exact(tmp_path: Path) -> None:
    """Merges that scores cannot say: "ab" + "c" joins, "a" + "bc" does not."""
    pieces = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), *"\u2581abc"]
    pieces += ["bc", "ab", "abc"]
    vocab = {piece: i for i, piece in enumerate(pieces)}
    merges = [("b", "c"), ("a", "b"), ("ab", "c")]
    library = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", byte_fallback=True))
    library.normalizer = SPACES
    ours = wgtrain.load_tokenizer(folder(tmp_path, library))
    assert [ours.pieces[i] for i in ours.encode("abc")] == ["a", "bc"]
    assert library.encode("abc").ids == ours.encode("abc")
    scores = metadata(tmp_path)["tokenizer.ggml.scores"]
    assert scores[[vocab[p] for p in ("bc", "ab", "abc", "a")]].tolist() == [0, -1, -2, -3]


@pytest.mark.parametrize(
    ("merges", "message"),
    [
        (["b c"], "is a list; expected pairs of ids"),
        (np.zeros(2, np.int32), "is a ndarray; expected pairs of ids"),
        (np.zeros((2, 2), np.float32), "is a ndarray; expected pairs of ids"),
        (np.array([[1, 2], [3, -1]], np.int32), r"\[1\] is \[3, -1\]; expected ids below 264"),
        (np.array([[264, 2]], np.int32), r"\[0\] is \[264, 2\]; expected ids below 264"),
    ],
)
def test_merges_that_are_no_pairs_of_ids(merges: Any, message: str, tmp_path: Path) -> None:
    test_merges_are_exact(tmp_path)
    with pytest.raises(FileError, match="wgtrain.tokenizer.merges.*" + message):
        load_tokenizer(metadata(tmp_path) | {EXACT_MERGES: merges})


@pytest.mark.parametrize("style", ["spm", "qwen2"])
def test_of_a_merge_listed_twice_the_first_counts(style: str, tmp_path: Path) -> None:
    spec = json.loads(STYLES[style][0]().to_str())
    once = wgtrain.load_tokenizer(folder(tmp_path / "once", spec))
    spec["model"]["merges"] += [" ".join(merge) for merge in spec["model"]["merges"][:9]]
    twice = wgtrain.load_tokenizer(folder(tmp_path / "twice", spec))
    text = "the quick brown fox and the lazy dog"
    assert once.encode(text) == twice.encode(text) != list(map(once.id_of, text))


def test_types_special_ids_and_padding(tmp_path: Path) -> None:
    library = STYLES["spm"][0]()
    n = library.get_vocab_size()
    names = {"bos_token": {"content": "<s>", "lstrip": False}, "eos_token": "</s>"}
    path = folder(
        tmp_path,
        library,
        tokenizer_config=names | {"chat_template": "{{ messages }}"},
        config={"vocab_size": n + 3, "eos_token_id": 7},
        generation_config={"eos_token_id": [2, 9]},
    )
    found = metadata(path)
    types = found["tokenizer.ggml.token_type"].tolist()
    ids = {piece: i for i, piece in enumerate(found["tokenizer.ggml.tokens"])}
    of = {piece: types[i] for piece, i in ids.items()}
    assert [of[p] for p in ("<unk>", "<s>", "<0x00>", "a", "<|end|>", "<tool>")] == [
        2,
        3,
        6,
        1,
        3,
        4,
    ]
    assert found["tokenizer.ggml.tokens"][n:] == [f"[PAD{i}]" for i in range(n, n + 3)]
    assert types[n:] == [5, 5, 5]
    ours = wgtrain.load_tokenizer(path)
    assert (ours.bos_id, ours.eos_id, ours.add_bos) == (1, 2, False)
    assert ours.chat_template == "{{ messages }}"
    assert ours.vocab_size == n + 3
    assert ours.encode("a<tool>b") == library.encode("a<tool>b").ids
    assert ours.encode("a</s>b") != library.encode("a</s>b").ids  # not parsed unless asked for
    (path / "chat_template.jinja").write_text("{{ bos_token }}ä", encoding="utf-8")
    assert wgtrain.load_tokenizer(path).chat_template == "{{ bos_token }}ä"


def test_the_template_file_of_older_processors(tmp_path: Path) -> None:
    path = folder(tmp_path, STYLES["qwen2"][0]())
    assert wgtrain.load_tokenizer(path).chat_template is None
    (path / "chat_template.json").write_text('{"chat_template": "older"}')
    assert wgtrain.load_tokenizer(path).chat_template == "older"
    (path / "tokenizer_config.json").write_text('{"chat_template": "in the settings"}')
    assert wgtrain.load_tokenizer(path).chat_template == "in the settings"
    (path / "chat_template.jinja").write_text("newer")
    assert wgtrain.load_tokenizer(path).chat_template == "newer"


def test_several_templates_and_a_padding_token(tmp_path: Path) -> None:
    """In a list of the settings, or as files, which go before it."""
    path = folder(tmp_path, STYLES["qwen2"][0]())
    both = [{"name": "default", "template": "d"}, {"name": "tool_use", "template": "t"}]
    settings = {"chat_template": both, "pad_token": {"content": "<|end|>"}, "sep_token": "<none>"}
    (path / "tokenizer_config.json").write_text(json.dumps(settings))
    ours = wgtrain.load_tokenizer(path)
    assert ours.chat_templates == {"default": "d", "tool_use": "t"} and ours.chat_template == "d"
    assert ours.special_tokens == {"pad_token": "<|end|>"}
    (path / "additional_chat_templates").mkdir()
    (path / "additional_chat_templates" / "rag.jinja").write_text("r")
    (path / "chat_template.jinja").write_text("new")
    assert wgtrain.load_tokenizer(path).chat_templates == {"default": "new", "rag": "r"}
    (path / "chat_template.jinja").unlink()
    assert wgtrain.load_tokenizer(path).chat_templates == {}
    (path / "additional_chat_templates" / "rag.jinja").write_bytes(b"\xff")
    with pytest.raises(FileError, match="additional_chat_templates/rag.jinja: no valid UTF-8"):
        wgtrain.load_tokenizer(path)


def test_where_ids_come_from(tmp_path: Path) -> None:
    library = STYLES["qwen2"][0]()

    def ids(**files: Any) -> tuple[int | None, int | None, bool]:
        for path in tmp_path.iterdir():
            path.unlink()
        ours = wgtrain.load_tokenizer(folder(tmp_path, library, **files))
        return ours.bos_id, ours.eos_id, ours.add_bos

    assert ids() == (None, None, False)
    assert ids(config={"bos_token_id": 3, "eos_token_id": [5, 6]}) == (3, 5, False)
    assert ids(generation_config={"bos_token_id": 3, "eos_token_id": 4}) == (3, 4, False)
    both = {"config": {"eos_token_id": 5}, "generation_config": {"eos_token_id": 6}}
    assert ids(**both, tokenizer_config={"eos_token": None}) == (None, 5, False)
    named = {"bos_token": "<|endoftext|>", "eos_token": {"content": "<|end|>"}}
    end = library.token_to_id("<|end|>")
    assert ids(**both, tokenizer_config=named) == (0, end, False)
    assert ids(tokenizer_config=named | {"add_bos_token": True}) == (0, end, True)
    library.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing("<|endoftext|> $A", None, [("<|endoftext|>", 0)]),
        ]
    )
    assert ids(tokenizer_config=named) == (0, end, True)
    assert ids() == (0, None, True)
    assert ids(tokenizer_config=named | {"add_bos_token": False}) == (0, end, False)
    with pytest.raises(
        FileError, match=r"'<\|endoftext\|>' in front of a text, but the BOS .* 'A'"
    ):
        ids(tokenizer_config={"bos_token": "A"})
    with pytest.raises(FileError, match=r"bos_token is '<x>', no piece"):
        ids(tokenizer_config={"bos_token": "<x>"})
    with pytest.raises(FileError, match=r"config.json: eos_token_id is 9999; an id below"):
        ids(config={"eos_token_id": 9999})


@pytest.mark.oracle
@pytest.mark.parametrize("kind", ["Qwen2Tokenizer", "LlamaTokenizer", "PreTrainedTokenizerFast"])
def test_as_transformers_writes_it(kind: str, tmp_path: Path) -> None:
    transformers = needs.package("transformers")
    library = STYLES["metaspace" if kind == "LlamaTokenizer" else "qwen2"][0]()
    if kind == "PreTrainedTokenizerFast":
        made = transformers.PreTrainedTokenizerFast(
            tokenizer_object=library, eos_token="<|end|>", bos_token="<|endoftext|>"
        )
    else:
        model = json.loads(library.to_str())["model"]
        made = getattr(transformers, kind)(
            vocab=model["vocab"], merges=[tuple(pair) for pair in model["merges"]]
        )
    made.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    made.save_pretrained(tmp_path)
    ours = wgtrain.load_tokenizer(tmp_path)
    assert (ours.bos_id, ours.eos_id) == (made.bos_token_id, made.eos_token_id)
    assert ours.chat_template == made.chat_template
    for text in AWKWARD[:11]:
        assert ours.encode(text) == made.encode(text, add_special_tokens=False), text
    assert ours.encode("a b", bos=ours.add_bos) == made.encode("a b")


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name in ("gpt-2", "llama-spm") else pytest.mark.slow)
        for name in vocabs.NAMES  # one of each kind is quick
    ],
)
def test_real_vocabulary(name: str, tmp_path: Path) -> None:
    """A vocabulary of full size, through a tokenizer.json, gives what llama.cpp gives."""
    spec = json.loads(tokenizer_json(vocabs.metadata(name)))
    if name == "llama-spm":
        spec["normalizer"] = {
            "type": "Sequence",
            "normalizers": [
                {"type": "Prepend", "prepend": "\u2581"},
                {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"},
            ],
        }
    ours = wgtrain.load_tokenizer(folder(tmp_path, spec))
    file = needs.data() / "vocab" / f"ggml-vocab-{name}.gguf"
    inputs = Path(f"{file}.inp").read_text(encoding="utf-8").split("\n__ggml_vocab_test__\n")
    outputs = Path(f"{file}.out").read_text().splitlines()
    assert len(outputs) >= 40
    for text, ids in zip(inputs, outputs, strict=False):
        assert ours.encode(text) == [int(i) for i in ids.split()], text


REFUSED: dict[str, tuple[str, Callable[[dict[str, Any]], Any], str]] = {
    "model": ("qwen2", lambda s: s["model"].update(type="Unigram"), "model.type 'Unigram'"),
    "step": (
        "qwen2",
        lambda s: s["pre_tokenizer"]["pretokenizers"].insert(0, {"type": "BertPreTokenizer"}),
        r"pre_tokenizer \{'type': 'BertPreTokenizer'\} is not supported",
    ),
    "prefix": (
        "gpt-2",
        lambda s: s["pre_tokenizer"].update(add_prefix_space=True),
        "'add_prefix_space': True",
    ),
    "neither": ("gpt-2", lambda s: s.update(pre_tokenizer=None), "neither byte_fallback nor"),
    "merge": (
        "qwen2",
        lambda s: s["model"]["merges"].insert(1, "a b c"),
        r"model.merges\[1\] is 'a b c'; two pieces are needed",
    ),
    "merge of one": (
        "qwen2",
        lambda s: s["model"]["merges"].insert(2, ["a"]),
        r"model.merges\[2\] is \['a'\]; two pieces are needed",
    ),
    "merge of a number": (
        "spm",
        lambda s: s["model"]["merges"].insert(0, ["a", 1]),
        r"model.merges\[0\] is \['a', 1\]; two pieces are needed",
    ),
    "merge of a list": (
        "spm",
        lambda s: s["model"]["merges"].insert(0, ["a", ["b"]]),
        r"model.merges\[0\] is \['a', \['b'\]\]; two pieces are needed",
    ),
    "merge of nothing": (
        "spm",
        lambda s: s["model"]["merges"].insert(0, ["a", ""]),
        r"model.merges\[0\] is \['a', ''\]; two pieces are needed",
    ),
    "merge of what is no piece": (
        "qwen2",
        lambda s: s["model"]["merges"].insert(0, ["a", "nothing"]),
        r"model.merges\[0\] is \['a', 'nothing'\]; 'nothing' is no piece",
    ),
    "merge into what is no piece": (
        "qwen2",
        lambda s: s["model"]["merges"].insert(0, ["a", "\x7f"]),
        r"model.merges\[0\] is .* is no piece",
    ),
    "lower": ("qwen2", lambda s: s.update(normalizer={"type": "Lowercase"}), "'Lowercase'"),
    "strip": (
        "spm",
        lambda s: s["normalizer"]["normalizers"].append({"type": "NFKC"}),
        "'NFKC'.*not the way of SentencePiece",
    ),
    "prefixes": (
        "qwen2",
        lambda s: s["model"].update(end_of_word_suffix="</w>"),
        "model.end_of_word_suffix = '</w>'",
    ),
    "dropout": ("qwen2", lambda s: s["model"].update(dropout=0.1), "model.dropout = 0.1"),
    "single word": (
        "qwen2",
        lambda s: s["added_tokens"][1].update(single_word=True),
        r"added token '<\|end\|>': single_word is not supported",
    ),
    "bytes": ("spm", lambda s: s["model"]["vocab"].pop("<0x41>"), "no piece '<0x41>'"),
    "unknown": (
        "gpt-2",
        lambda s: (s["model"]["vocab"].pop("A"), s["model"].update(unk_token="<|endoftext|>")),
        r"unk_token '<\|endoftext\|>': bytes without a piece",
    ),
    "twice": (
        "qwen2",
        lambda s: s["added_tokens"][1].update(id=5),
        "have the same id, 5",
    ),
    "id": ("qwen2", lambda s: s["model"]["vocab"].update(zzz=1 << 40), "'zzz' has the id 1099511"),
    "spanning": (
        "metaspace",
        lambda s: s["pre_tokenizer"].update(split=True),
        "Metaspace with split, but the piece '.*' spans words",
    ),
    "post": (
        "qwen2",
        lambda s: s.update(post_processor={"type": "BertProcessing"}),
        "post_processor 'BertProcessing'",
    ),
    "vocab": ("qwen2", lambda s: s["model"].pop("vocab"), "model.vocab is None; an object"),
    "rows": (
        "qwen2",
        lambda s: None,
        "the largest id is 458, but vocab_size of config.json is 300",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case: str, tmp_path: Path) -> None:
    style, change, message = REFUSED[case]
    spec = json.loads(STYLES[style][0]().to_str())
    change(spec)
    with pytest.raises(FileError, match=message) as caught:
        wgtrain.load_tokenizer(
            folder(tmp_path, spec, config={"vocab_size": 300 if case == "rows" else 4096})
        )
    assert f"{tmp_path}/tokenizer.json" in str(caught.value)


def test_broken_files(tmp_path: Path) -> None:
    for text in ("", "[]", '{"model": []}', '{"model": {"vocab": {"a": true}}}', "\xff"):
        (tmp_path / "tokenizer.json").write_text(text, encoding="latin-1")
        with pytest.raises(FileError, match=r"tokenizer.json"):
            wgtrain.load_tokenizer(tmp_path)
    templates = [{"name": "tool_use", "template": "x"}]
    folder(tmp_path, STYLES["qwen2"][0](), tokenizer_config={"chat_template": templates})
    with pytest.raises(FileError, match=r"chat_template has \['tool_use'\], but no 'default'"):
        wgtrain.load_tokenizer(tmp_path)
    (tmp_path / "tokenizer_config.json").unlink()
    (tmp_path / "chat_template.json").write_text('{"chat_template": 7}')
    with pytest.raises(
        FileError, match=r"chat_template.json: chat_template is 7; a text is needed"
    ):
        wgtrain.load_tokenizer(tmp_path)
    (tmp_path / "chat_template.json").unlink()
    (tmp_path / "chat_template.jinja").write_bytes(b"ab\xff")
    with pytest.raises(FileError, match=r"chat_template.jinja: no valid UTF-8 at byte 2"):
        wgtrain.load_tokenizer(tmp_path)
