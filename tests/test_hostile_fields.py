"""Every field that is read from a model's or an adapter's files, with values of every wrong kind
and size: an error of ours, or numbers a GPU can compute with.
"""

import dataclasses
import json
import math
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from typing import Any

import broken
import broken_adapters
import numpy as np
import pytest
import tiny
import vocabs

import wgtrain
from wgtrain import gpu
from wgtrain.data import load_tokenizer
from wgtrain.data.huggingface import read_tokenizer_metadata
from wgtrain.data.pretokenizers import PRE_TOKENIZERS
from wgtrain.data.tokenizer_json import tokenizer_json
from wgtrain.data.vocabulary import read_vocabulary
from wgtrain.errors import FileError, OptionError, WgtrainError
from wgtrain.files import (
    GGUF,
    Adapter,
    BytesSource,
    TensorInfo,
    gguf_parser,
    parse_gguf,
    read_adapter_gguf,
    read_adapter_peft,
    read_gguf,
    read_range,
    read_safetensors,
    safetensors,
    write_adapter_gguf,
    write_gguf,
    write_safetensors,
)
from wgtrain.files.gguf_parser import F32_MAX, F32_MIN
from wgtrain.files.huggingface import read_folder
from wgtrain.infer.model import Model
from wgtrain.model.config import ModelConfig, read_config
from wgtrain.train.config import LoraConfig

NUMBERS: list[Any] = [
    *(np.bool_(True), np.bool_(False), np.uint8(1), np.int8(-1), np.uint32(0), np.uint32(1)),
    *(np.uint32(2**32 - 1), np.uint64(2**63), np.uint64(2**64 - 1), np.int64(-(2**63))),
    *(np.uint32(2**24), np.uint32(2**24 - 1), np.uint32(3)),
    *(np.float64(x) for x in (1e300, -1e300, 1e-300, 5e-324, 0.0, -0.0, 1.5, 2.0, np.inf, np.nan)),
    *(np.float32(x) for x in (3e38, 1e-45, -1.0, 1.0, -np.inf, np.nan)),
]
TEXTS: list[Any] = ["", "x", "\x1b[2J\n\0", "n" * 100_000, "1", "true"]
ARRAYS: list[Any] = [
    *([], [""], ["llama"], ["a"] * 1000),
    *(np.zeros(0, np.int32), np.ones(1, np.int32), np.arange(3, dtype=np.int32)),
    *(np.ones(1, np.float32), np.full(3, np.nan), np.full(998, 1e300), np.ones(1, bool)),
    *((), ([],), (np.zeros(2, np.int32), np.zeros(3, np.int32)), (np.ones(1, np.float32),)),
    *((["a"], np.zeros(0, np.uint8)), ((np.ones(1, np.int32),),)),
]
# Fields that hold arrays; in any other an array is refused.
LISTS = {f"tokenizer.ggml.{key}" for key in ("tokens", "token_type", "scores", "merges")}
LISTS |= {f"wgtrain.tokenizer.{key}" for key in ("merges", "patterns", "strip_left", "strip_right")}
LISTS |= {"tokenizer.chat_templates"}


class Watched(dict[str, Any]):
    """Metadata that knows which of its keys were asked for."""

    def __init__(self, values: dict[str, Any]) -> None:
        super().__init__(values)
        self.asked: set[str] = set()

    def __contains__(self, key: object) -> bool:
        self.asked.add(str(key))
        return super().__contains__(key)

    def __getitem__(self, key: str) -> Any:
        self.asked.add(key)
        return super().__getitem__(key)

    def get(self, key: str, default: Any = None) -> Any:
        self.asked.add(key)
        return super().get(key, default)


def is_ours(read: Callable[[], object]) -> str | None:
    """The message of a refusal, fit for a screen; None where the value is taken."""
    try:
        read()
    except WgtrainError as error:
        text = str(error)
        text.encode()
        assert len(text) < 6000 and all(line.isprintable() for line in text.split("\n")), text
        return text
    return None


def check_config(config: ModelConfig) -> None:
    rope = config.layers[0].rope
    for part in [config, *([rope] if rope else [])]:
        for field in dataclasses.fields(part):
            value = getattr(part, field.name)
            if isinstance(value, float):
                assert F32_MIN <= value <= F32_MAX or value == 0 == field.default, field.name
            elif type(value) is int:
                assert 0 <= value < 1 << 24, field.name
    assert rope is None or np.isfinite(rope.table(300)).all()
    for scale in [layer.query_scale for layer in config.layers if layer.query_scale]:
        assert np.isfinite(scale.table(3000)).all()


@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3", "mistral3"])
def test_keys_of_a_model(name: str) -> None:
    whole = parse_gguf(tiny.tiny(name).gguf, "m.gguf")
    watched = Watched(whole.metadata)
    read_config(GGUF("m.gguf", 3, watched, whole.tensors))
    keys = {key for key in watched.asked if not key.startswith("tokenizer.")}
    prefix = f"{name}."
    assert {f"{prefix}block_count", "general.type", "split.count", "general.name"} <= keys
    keys |= {prefix + key for key in ("expert_count", "rope.scaling.type", "attention.causal")}
    keys |= {prefix + key for key in ("rope.scaling.factor", "attention.clamp_kqv", "unheard.of")}
    taken = 0
    for key in sorted(keys):
        for value in [*NUMBERS, *TEXTS, *ARRAYS]:
            metadata = parse_gguf(write_gguf({key: value}, {})).metadata
            bad = GGUF("m.gguf", 3, whole.metadata | metadata, whole.tensors)
            message = is_ours(lambda bad=bad: check_config(read_config(bad)))
            taken += message is None
            if message is None:
                unread = key.endswith(("unheard.of", "no_rope_layers"))
                assert unread or not isinstance(value, list | tuple | np.ndarray), (key, value)
            else:
                assert message.startswith("m.gguf: "), (key, value, message)
    assert taken > 20


@pytest.mark.parametrize("name", ["llama", "qwen2"])
def test_tensors_of_a_model(name: str) -> None:
    """Of another type, shape or name, missing, or more than are known."""
    whole = parse_gguf(tiny.tiny(name).gguf, "m.gguf")
    read_config(whole)
    shapes: list[tuple[int, ...]] = [(1,), (3, 5), (2, 3, 4), (1, 1, 1, 1), (2**40, 32), (2**62,)]
    wrong: list[dict[str, TensorInfo]] = []
    for key, info in whole.tensors.items():
        rest = {k: v for k, v in whole.tensors.items() if k != key}
        wrong += [rest, {**rest, f"{key}\n": info}, {**whole.tensors, f"\x1b[2J{key}": info}]
        wrong += [{**rest, key: replace(info, shape=shape)} for shape in (*shapes, info.shape * 2)]
        wrong += [{**rest, key: replace(info, type=type_)} for type_ in ("I8", "I64", "F64")]
    for tensors in wrong:
        message = is_ours(lambda t=tensors: read_config(GGUF("m.gguf", 3, whole.metadata, t)))
        if message is None:  # without its head a model is tied
            assert set(whole.tensors) - set(tensors) == {"output.weight"}
        else:
            assert message.startswith("m.gguf: this model cannot be used:"), message


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_keys_of_a_vocabulary(kind: str) -> None:
    whole = vocabs.bpe("a b", "ab c") if kind == "gpt2" else vocabs.spm("ab", "abc")
    watched = Watched(whole)
    read_vocabulary(watched, "m.gguf")
    assert {"tokenizer.chat_template", "tokenizer.ggml.eot_token_id"} <= watched.asked
    for key in sorted(watched.asked):
        for value in [*NUMBERS, *TEXTS, *ARRAYS]:
            metadata = parse_gguf(write_gguf({key: value}, {})).metadata
            message = is_ours(lambda m=metadata: read_vocabulary(whole | m, "m.gguf"))
            if message is None:
                assert key in LISTS or not isinstance(value, list | tuple | np.ndarray), key
            else:
                assert message.startswith("m.gguf: ") and (
                    "tokenizer." in message or key in message
                ), (
                    key,
                    value,
                    message,
                )


@pytest.mark.parametrize("score", [1e300, -1e300, np.nan])
def test_scores_that_f32_cannot_hold(score: float) -> None:
    metadata = vocabs.spm("ab")
    scores = metadata["tokenizer.ggml.scores"].astype(np.float64)
    scores[-1] = score
    with pytest.raises(FileError, match=r"scores\[\d+\] is .*; expected a number that f32"):
        load_tokenizer(metadata | {"tokenizer.ggml.scores": scores})


def test_keys_of_an_adapter() -> None:
    metadata, tensors = broken_adapters.adapter_parts(broken_adapters.adapter())
    for key in [*metadata, "adapter.alora.invocation_tokens", "wgtrain.base.name"]:
        for value in [*NUMBERS, *TEXTS, *ARRAYS]:
            data = write_gguf(metadata | {key: value}, tensors)

            def read(data: bytes = data) -> None:
                found = read_adapter_gguf(data, "a.gguf")
                assert F32_MIN <= abs(found.alpha) <= F32_MAX
                read_adapter_gguf(write_adapter_gguf(found))  # what is read can be written

            message = is_ours(read)
            assert message is None or message.startswith("a.gguf: key ")
            if key in metadata and message is None:
                assert not isinstance(value, list | tuple | np.ndarray), (key, value)


JSON_VALUES: list[Any] = [
    *(None, True, False, 0, 1, -1, 2**24, 2**63, -(2**63), 10**400, 1.5, 1e300, 5e-324, -0.0),
    *(math.nan, math.inf, "", "x", "\ud800", "\x1b[2J\n\0", "n" * 100_000),
    *([], [[]], [None], [0] * 1000, {}, {"": {}}, {"a": [{"a": None}]}, [[[[[[]]]]]]),
]


def mutations(value: Any) -> Iterator[Any]:
    """Every place of a JSON value (of a list its first, second and last) with every wrong value,
    and without it.
    """
    yield from JSON_VALUES
    if isinstance(value, dict):
        for key in value:
            yield {k: v for k, v in value.items() if k != key}
            yield from (value | {key: changed} for changed in mutations(value[key]))
        yield value | {"\x1b[2J": 1}
    elif isinstance(value, list) and value:
        for i in {0, 1, len(value) - 1} & {*range(len(value))}:
            yield [*value[:i], *value[i + 1 :]]
            yield from ([*value[:i], changed, *value[i + 1 :]] for changed in mutations(value[i]))


def encoded(value: Any) -> bytes:
    return json.dumps(value).encode()


def test_configuration_of_an_adapter() -> None:
    files = broken_adapters.peft_files()
    good = json.loads(files["adapter_config.json"])

    def read(value: Any) -> None:
        changed = files | {"adapter_config.json": encoded(value)}
        found = read_adapter_peft(changed, "a", architecture="llama", n_head=2, n_head_kv=1)
        write_adapter_gguf(found)

    messages = [is_ours(lambda value=value: read(value)) for value in mutations(good)]
    assert all(text is None or text.startswith("a/adapter_config.json:") for text in messages)
    assert messages.count(None) > 20 and len(messages) - messages.count(None) > 100


@pytest.mark.parametrize("name", ["llama", "qwen3"])
def test_configuration_of_a_folder(name: str) -> None:
    base = tiny.tiny(name)
    weights = BytesSource(write_safetensors(base.weights, {"format": "pt"}), "weights")
    spec = base.spec
    good = {
        "model_type": name,
        "hidden_act": "silu",
        "hidden_size": spec.dim,
        "intermediate_size": spec.ff,
        "num_hidden_layers": spec.layers,
        "num_attention_heads": spec.heads,
        "num_key_value_heads": spec.kv_heads,
        "head_dim": spec.head_dim,
        "rms_norm_eps": spec.eps,
        "rope_theta": spec.rope_theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": spec.rope_theta},
        "max_position_embeddings": spec.context,
        "vocab_size": spec.vocab,
        "tie_word_embeddings": spec.tied,
        "sliding_window": None,
        "layer_types": ["full_attention"] * spec.layers,
    }

    def read(value: Any) -> None:
        files = {"config.json": BytesSource(encoded(value)), "model.safetensors": weights}
        _, gguf = gpu.run(read_folder(files, "folder"))
        check_config(read_config(gguf))

    read(good)
    messages = [is_ours(lambda value=value: read(value)) for value in mutations(good)]
    assert all(text is None or text.startswith("folder") for text in messages)
    assert messages.count(None) > 20 and len(messages) - messages.count(None) > 100


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_tokenizer_of_a_folder(kind: str) -> None:
    metadata = vocabs.bpe("a b", "ab c") if kind == "gpt2" else vocabs.spm("ab", "abc")
    metadata |= {"tokenizer.ggml.pre": "qwen2"} if kind == "gpt2" else {}
    spec = json.loads(tokenizer_json(metadata))
    if kind == "gpt2":  # ours is written otherwise, for speed
        spec["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = PRE_TOKENIZERS[
            "qwen2"
        ].patterns[0]
    template = [{"name": "default", "template": "x"}, {"name": "other", "template": "y"}]
    end = "<|end|>" if kind == "gpt2" else "</s>"
    good = {
        "tokenizer.json": spec,
        "tokenizer_config.json": {
            "eos_token": {"content": end},
            "add_bos_token": False,
            "chat_template": template,
        },
        "generation_config.json": {"bos_token_id": 1, "eos_token_id": [2, 1]},
    }

    def read(changed: dict[str, Any]) -> None:
        files = {file: BytesSource(encoded(value)) for file, value in changed.items()}
        read_vocabulary(gpu.run(read_tokenizer_metadata(files, "folder")), "folder")

    read(good)
    for file in good:
        some = [*mutations(good[file])][::5]  # each place with other values than the one before
        messages = [is_ours(lambda v=value, f=file: read(good | {f: v})) for value in some]
        assert all(text is None or text.startswith("folder") for text in messages)
        assert None in messages and len(messages) > messages.count(None) + 8, file


def test_header_of_safetensors() -> None:
    data = write_safetensors({"a": np.ones((2, 3), "f4"), "b": np.ones(5, "f2")}, {"format": "pt"})
    size = int.from_bytes(data[:8], "little")
    good, body = json.loads(data[8 : 8 + size]), data[8 + size :]
    read_safetensors(broken_adapters.safetensors(good, body), "f")
    texts = []
    for value in mutations(good):
        header = encoded(value)
        texts.append(
            is_ours(lambda h=header: read_safetensors(broken_adapters.safetensors(h, body), "f"))
        )
    assert all(text is None or text.startswith("f: ") for text in texts)
    assert len(texts) - texts.count(None) > 200


def test_index_of_a_folder() -> None:
    good = {"metadata": {"total_size": 1}, "weight_map": {"a": "model-1.safetensors"}}
    config = BytesSource(
        b'{"model_type": "llama", "hidden_size": 8, "intermediate_size": 8, '
        b'"num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 4}'
    )
    for value in [*mutations(good), {"weight_map": {str(i): f"{i}\n" for i in range(50_000)}}]:
        files = {"config.json": config, "model.safetensors.index.json": BytesSource(encoded(value))}
        text = is_ours(lambda f=files: gpu.run(read_folder(f, "folder")))
        assert text and text.startswith("folder")


@pytest.mark.parametrize("shape", [[0, 2**62], [2**62, 0], [2**61, 0, 2**61], [2**63 - 1, 0]])
def test_empty_tensors_of_a_huge_shape(shape: list[int]) -> None:
    header = {"t": {"dtype": "BF16", "shape": shape, "data_offsets": [0, 0]}}
    with pytest.raises(FileError, match=r"f: tensor 't': shape \(.*\) is too large"):
        read_safetensors(broken_adapters.safetensors(header), "f")
    header["t"]["shape"] = [0, 3]
    assert read_safetensors(broken_adapters.safetensors(header))["t"].shape == (0, 3)


def test_empty_tensors_of_a_folder() -> None:
    base = tiny.tiny("llama")
    weights = base.weights | {"model.layers.0.self_attn.q_proj.weight": np.zeros((0, 60), "f4")}
    spec = base.spec
    config = {
        "model_type": "llama",
        "hidden_size": spec.dim,
        "intermediate_size": spec.ff,
        "num_hidden_layers": spec.layers,
        "num_attention_heads": spec.heads,
        "num_key_value_heads": spec.kv_heads,
        "vocab_size": spec.vocab,
    }
    files = {
        "config.json": BytesSource(encoded(config)),
        "model.safetensors": BytesSource(write_safetensors(weights, {})),
    }
    with pytest.raises(FileError, match=r"q_proj.weight of model.safetensors is empty, \(0, 60\)"):
        gpu.run(read_folder(files, "folder"))


# Strengths


@pytest.mark.parametrize("alpha", [1e308, 1e31, 1e-31, 1e-300])
def test_alpha_that_no_file_holds_is_no_setting(alpha: float) -> None:
    with pytest.raises(OptionError, match="^alpha = .*: allowed is a number, at least 1e-30, at"):
        LoraConfig(alpha=alpha)
    adapter = Adapter("llama", 2, alpha, broken_adapters.adapter().tensors)
    if F32_MIN <= alpha <= F32_MAX:
        assert read_adapter_gguf(write_adapter_gguf(adapter)).alpha == np.float32(alpha)
    else:
        with pytest.raises(OptionError, match="alpha is .*, which the file's f32 cannot hold"):
            write_adapter_gguf(adapter)


@pytest.mark.parametrize("alpha", [1e30, 1e-30])
def test_every_setting_of_alpha_is_read_back(alpha: float) -> None:
    LoraConfig(alpha=alpha)
    adapter = Adapter("llama", 2, alpha, broken_adapters.adapter().tensors)
    assert read_adapter_gguf(write_adapter_gguf(adapter)).alpha == np.float32(alpha)
    files = broken_adapters.peft_files(adapter)
    found = read_adapter_peft(files, "a", architecture="llama", n_head=2, n_head_kv=1)
    assert found.alpha == alpha


def test_alpha_that_the_rank_makes_too_large() -> None:
    files = broken_adapters.peft_files()
    config = json.loads(files["adapter_config.json"]) | {"lora_alpha": 3e38, "use_rslora": True}
    with pytest.raises(FileError, match=r"lora_alpha x sqrt\(r\) is 4\.2\d*e\+38; a number other"):
        changed = files | {"adapter_config.json": encoded(config)}
        read_adapter_peft(changed, "a", architecture="llama", n_head=2, n_head_kv=1)


@pytest.mark.gpu
@pytest.mark.parametrize("strength", [1e38, -1e38, 1e300, 2**2000, 1e7])
def test_strength_beyond_all_numbers(strength: float) -> None:
    import random_model as rm

    shape = rm.Shape(layers=1)
    with rm.load(rm.build(shape)) as model:
        name = "blk.0.attn_q.weight"
        pair = np.ones((2, 64), np.float32), np.ones((64, 2), np.float32)
        with pytest.raises(OptionError, match=r"adapters\[0\].*strength"):
            model.logits([1, 2], adapters=[(Adapter("llama", 2, 4.0, {name: pair}), strength)])
        assert np.isfinite(logits(model, Adapter("llama", 2, 1e6, {name: pair}))).all()


def logits(model: Model, adapter: Adapter) -> np.ndarray:
    return model.logits([1, 2], adapters=[(adapter, 1.0)])


@pytest.mark.gpu
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_norms_that_are_no_numbers(value: float) -> None:
    import random_model as rm

    shape = rm.Shape(layers=1)
    tensors = rm.tensors(shape)
    bad = np.ones(64, np.float32)
    bad[5] = value
    data = write_gguf(shape.metadata(), tensors | {"blk.0.ffn_norm.weight": bad})
    with pytest.raises(FileError, match=rf"tensor blk.0.ffn_norm.weight\[5\] is {value}"):
        rm.load(data)


# Sources of other people


class Odd:
    """A source whose every part may be wrong."""

    def __init__(self, answer: Any, size: Any = 100, name: Any = "odd") -> None:
        self.answer, self.size, self.name = answer, size, name

    def read_range(self, offset: int, n: int) -> Any:
        return self.answer(offset, n)


def raising(error: Exception) -> Callable[[int, int], Any]:
    def answer(offset: int, n: int) -> Any:
        raise error

    return answer


async def _late(answer: Any) -> Any:
    if isinstance(answer, Exception):
        raise answer
    return answer


def late(answer: Any) -> Callable[[int, int], Awaitable[Any]]:
    return lambda offset, n: _late(answer)


ODD = {
    "ValueError": (raising(ValueError("x")), r"read_range\(0, 8\) raised ValueError: 'x'"),
    "KeyError": (raising(KeyError("\x1b[2J")), r"raised KeyError: .*x1b"),
    "StopIteration": (raising(StopIteration()), "raised StopIteration"),
    "OSError": (raising(OSError("gone")), "cannot read 8 bytes at 0: gone"),
    "late": (late(RuntimeError("y")), "raised RuntimeError: 'y'"),
    "None": (lambda o, n: None, r"gave None \(NoneType\); 8 bytes are needed"),
    "text": (lambda o, n: "x" * n, r"gave 'xxxxxxxx' \(str\)"),
    "list": (lambda o, n: [0] * n, r"\(list\); 8 bytes"),
    "late None": (late(None), r"gave None"),
    "short": (lambda o, n: bytes(n - 1), "7 bytes at 0 instead of 8: cut short"),
    "long": (lambda o, n: bytes(n + 1), "9 bytes at 0 instead of 8"),
    "words": (lambda o, n: np.zeros(n, np.uint32), "32 bytes at 0 instead of 8"),
    "strided": (lambda o, n: memoryview(bytes(2 * n))[::2], "memoryview"),
}


@pytest.mark.parametrize("case", ODD)
def test_sources_that_do_not_read(case: str) -> None:
    answer, says = ODD[case]
    with pytest.raises(FileError, match=f"^odd: .*{says}"):
        gpu.run(read_range(Odd(answer), 0, 8))
    with pytest.raises(FileError, match="^odd: "):
        gpu.run(read_gguf(Odd(answer)))


@pytest.mark.parametrize("size", [None, -1, 1.5, "100", [100], np.array([1, 2])])
def test_sources_without_a_size(size: Any) -> None:
    with pytest.raises(FileError, match="^odd: its size is .*a number of bytes is needed"):
        gpu.run(read_gguf(Odd(lambda o, n: bytes(n), size)))


class Worse:
    """A source whose attributes raise."""

    read_range = None

    @property
    def size(self) -> int:
        raise ValueError("no size")

    @property
    def name(self) -> str:
        raise KeyError("no name")


def test_sources_whose_attributes_raise() -> None:
    with pytest.raises(FileError, match="^file: its size raised ValueError: 'no size'"):
        wgtrain.load_model(Worse())
    with pytest.raises(FileError, match="^file: read_range.* raised TypeError"):
        wgtrain.load_tokenizer(type("Mute", (), {"read_range": None, "size": 9})())


def test_sources_that_are_right_in_their_way() -> None:
    whole = np.arange(100, dtype=np.uint8)
    for answer in (
        lambda o, n: whole[o : o + n],
        lambda o, n: bytearray(whole[o : o + n]),
        lambda o, n: memoryview(whole[o : o + n].tobytes()).cast("I"),
    ):
        data = gpu.run(read_range(Odd(answer, np.int64(100), None), 4, 8))
        assert bytes(data) == bytes(range(4, 12))
    with pytest.raises(FileError, match="^file: bytes 0 to 101 asked for"):
        gpu.run(read_range(Odd(answer, np.int64(100), 5), 0, 101))


# Time and memory


def test_arrays_in_arrays_are_few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten million bytes of empty arrays take no more turns than a vocabulary has pieces."""
    calls = 0
    array = gguf_parser.Parser.array

    def counted(self: gguf_parser.Parser, depth: int) -> Any:
        nonlocal calls
        calls += 1
        return array(self, depth)

    monkeypatch.setattr(gguf_parser.Parser, "array", counted)
    one = broken.array(broken.U32, 0)
    for entries in (
        [broken.entry("k", broken.ARRAY, broken.array(broken.ARRAY, 1_000_000, one * 1_000_000))],
        [
            broken.entry(f"k{i}", broken.ARRAY, broken.array(broken.ARRAY, 1000, one * 1000))
            for i in range(200)
        ],
    ):
        calls = 0
        with pytest.raises(FileError, match="array elements, at most .* are read"):
            parse_gguf(broken.gguf(entries, []), "f")
        assert calls <= gguf_parser.MAX_ITEMS // 30


def test_json_of_too_many_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(safetensors, "MAX_CONTAINERS", 1000)
    assert safetensors.json_object(b'{"a":[' + b"{}," * 900 + b"0]}", "f")
    for text in (b'{"a":[' + b"{}," * 1000 + b"0]}", b'{"a":' + b"[" * 1000):
        with pytest.raises(FileError, match="f: more than 1000 objects and arrays"):
            safetensors.json_object(text, "f")


def test_a_configuration_is_small() -> None:
    files = broken_adapters.peft_files()
    for config in (b" " * (20 << 20) + b"{}", b"{" + b'"a":1,' * 200_000 + b'"b":1}'):
        changed = files | {"adapter_config.json": config}
        with pytest.raises(FileError, match="a/adapter_config.json: .* bytes, at most 1048576"):
            read_adapter_peft(changed, "a", architecture="llama", n_head=2, n_head_kv=1)
