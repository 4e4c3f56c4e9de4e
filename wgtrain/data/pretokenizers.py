"""How byte-level vocabularies split text into words before merging, by the names of GGUF files.

A row lists patterns, each applied to the parts that the one before left; matches and what lies
between them become parts. They are written so that Oniguruma, which the `tokenizers` package has,
and JavaScript read them alike, and split as llama.cpp does: a name new to it is one line here.
"""

from dataclasses import dataclass

CONTRACTION = r"'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD]"
_TAIL = r"|\s*[\r\n]+|\s+(?!\S)|\s+"
_OTHER = r"| ?[^\s\p{L}\p{N}]+"
_WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
_CASED = (
    r"[^\r\n\p{L}\p{N}]?%(upper)s*%(lower)s+%(end)s|[^\r\n\p{L}\p{N}]?%(upper)s+%(lower)s*%(end)s"
)


def _cased(upper: str, lower: str, end: str = "") -> str:
    """Words whose capitals come first, as the models write them."""
    return _CASED % {"upper": upper, "lower": lower, "end": end}


# Letters but a-z, letters but A-Z: what llama.cpp has in place of \p{Lu} and \p{Ll}.
_LETTERS = (r"[^\P{L}a-z]", r"[^\P{L}A-Z]")
_CASES = (r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]")
_ENDED = f"(?:{CONTRACTION})?"

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LLAMA3 = f"{CONTRACTION}|{_WORD}{{1,3}}{_OTHER}[\\r\\n]*{_TAIL}"
_QWEN2 = f"{CONTRACTION}|{_WORD}{_OTHER}[\\r\\n]*{_TAIL}"
_QWEN35 = (
    CONTRACTION + r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*" + _TAIL
)
_SEED = f"{CONTRACTION}|{_WORD}| ?[^\\s\\p{{L}}\\p{{N}}\\r\\n]+{_TAIL}"
_TEKKEN_REST = rf"|\p{{N}}{_OTHER}[\r\n/]*{_TAIL}"
_GPT4O_REST = rf"|\p{{N}}{{1,3}}{_OTHER}[\r\n/]*{_TAIL}"
_TEKKEN = _cased(*_LETTERS) + _TEKKEN_REST
_GPT4O = _cased(*_LETTERS, _ENDED) + _GPT4O_REST
# The range from U+0800 has blanks in it, which to llama.cpp are in no range.
_HAN = r"(?:(?!\s)[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff])+"
_CJK = r"[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"
_DEEPSEEK3 = (
    r"[!\x22#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    r"| ?[\p{P}\p{S}]+[\r\n]*" + _TAIL
)
_DEEPSEEK_LETTERS = (
    r"\s?[A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ"
    r"-ὅὈ-Ὅὐ-ὗὙὛὝὟ-ώᾀ-ᾴᾶ-ᾼ\u1fbeῂ-ῄῆ-ῌῐ-ΐῖ-Ίῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤ\u2126ℨ\u212a-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ"
    r"-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃]+"
)
_PUNCTUATION = r"\s?[!-/:-~！-／：-～‘-‟、-。]+"  # from U+3000 on, which is a blank to llama.cpp
_SENTENCES = r" ?[^(\s|.,!?…。，、।۔،)]+"
_CASCADE = "".join(rf"|\s{{{n}}}(?!\S)" for n in (512, 256, 128, 64, 32, 16, 8, 4))
_JAIS2 = (
    f"{CONTRACTION}|{_WORD}{{1,3}}{_OTHER}[\\r\\n]*|\\s*[\\r\\n]+{_CASCADE}|\\s{{1,2}}(?!\\S)|\\s"
)


@dataclass(frozen=True)
class PreTokenizer:
    """One way to split: `patterns` in turn; with `whole` a word that is a piece is not merged;
    with `bos` rows begin with BOS unless the file says otherwise.
    """

    patterns: list[str]
    whole: bool = False
    bos: bool = False


_ROWS = {
    "llama-bpe llama3 llama-v3 falcon3 falcon-h1 pixtral midm-2.0 lfm2 jina-v5-nano": PreTokenizer(
        [_LLAMA3], whole=True, bos=True
    ),
    "glm4 glm5": PreTokenizer([_LLAMA3], whole=True),
    "dbrx smaug-bpe chatglm-bpe": PreTokenizer([_LLAMA3]),
    "qwen2 deepseek-r1-qwen kormo f2llmv2 megrez stablelm2 hunyuan solar-open grok-2": PreTokenizer(
        [_QWEN2]
    ),
    "qwen35": PreTokenizer([_QWEN35]),
    "tekken": PreTokenizer([_TEKKEN], whole=True, bos=True),
    "gpt-4o llama4 kanana2 talkie minimax-m2": PreTokenizer([_GPT4O]),
    "gpt-2 phi-2 olmo mpt exaone4 mellum jais trillion granite-docling gigachat a.x-4.0"
    " modern-bert": PreTokenizer([_GPT2]),
    "smollm starcoder refact command-r codeshell exaone minerva-7b mellum2": PreTokenizer(
        [r"\p{N}", _GPT2]
    ),
    "falcon": PreTokenizer([r"[\p{P}$+<=>^~|`]+", _GPT2, "[0-9][0-9][0-9]"]),
    "default": PreTokenizer([r"[\p{P}$+<=>^~|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]"]),
    "deepseek-llm": PreTokenizer(
        [r"[\r\n]", _DEEPSEEK_LETTERS, _PUNCTUATION, r"\s+$", _HAN, r"\p{N}+"]
    ),
    "deepseek-coder": PreTokenizer([r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _HAN, r"\p{N}"]),
    "deepseek-v3 hunyuan-dense joyai-llm hy_v4": PreTokenizer([r"\p{N}{1,3}", _CJK, _DEEPSEEK3]),
    "seed-coder": PreTokenizer([_SEED]),
    "minicpm5": PreTokenizer([r"\p{N}{1,3}", _LLAMA3.replace("{1,3}", "+")], whole=True),
    "jais-2": PreTokenizer([_JAIS2]),
    "ufakzeka": PreTokenizer([_QWEN2.removeprefix(CONTRACTION + "|")]),
    "poro-chat bloom gpt3-finnish": PreTokenizer([_SENTENCES]),
    "viking": PreTokenizer([_SENTENCES, r"\p{N}"]),
}
PRE_TOKENIZERS = {name: row for names, row in _ROWS.items() for name in names.split()}

# The models' own patterns where llama.cpp's split otherwise: a folder is split by these, and
# becomes a GGUF under the name.
OWN_PATTERNS = {
    "tekken": [_cased(*_CASES) + _TEKKEN_REST],
    "gpt-4o": [_cased(*_CASES, _ENDED) + _GPT4O_REST],
}
