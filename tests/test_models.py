"""What a model file has to hold, and how each thing that is not covered is refused by name."""

import re
from dataclasses import replace
from typing import Any

import gguf
import numpy as np
import pytest
import random_model as rm

from wgtrain.errors import FileError
from wgtrain.files import ARCHITECTURES, Raw, parse_gguf, write_gguf
from wgtrain.files.known_keys import KNOWN_KEYS
from wgtrain.model.config import ModelConfig, read_config
from wgtrain.model.layers import Layer, Rope, long_rotations
from wgtrain.model.rope import LongRope, Yarn

SHAPE = rm.Shape(width=32, heads=2, kv_heads=1, head_size=16, feed_forward=48, layers=2)


def config(
    metadata: dict[str, Any] | None = None,
    tensors: dict[str, Any] | None = None,
    shape: rm.Shape = SHAPE,
) -> ModelConfig:
    """The configuration of a model with some metadata and tensors changed; None takes one away."""
    all_metadata = {**shape.metadata(), **(metadata or {})}
    all_tensors = {**rm.tensors(shape), **(tensors or {})}
    data = write_gguf(
        {k: v for k, v in all_metadata.items() if v is not None},
        {k: v for k, v in all_tensors.items() if v is not None},
    )
    return read_config(parse_gguf(data, "model.gguf"))


def refused(*parts: str, **changes: Any) -> str:
    with pytest.raises(FileError) as caught:
        config(**changes)
    text = str(caught.value)
    assert text.startswith("model.gguf: "), text
    for part in parts:
        assert part in text, f"{part!r} is not in: {text}"
    return text


def f32(*shape: int) -> np.ndarray:
    return np.ones(shape, np.float32)


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("tied", [False, True])
def test_knobs(architecture: str, tied: bool) -> None:
    shape = rm.Shape(
        architecture=architecture,
        width=36,
        heads=3,
        kv_heads=1,
        head_size=20,
        feed_forward=52,
        tied=tied,
    )
    got = config(
        {
            f"{architecture}.rope.freq_base": 5e5,
            f"{architecture}.rope.dimension_count": 12,
            f"{architecture}.attention.layer_norm_rms_epsilon": 1e-6,
        },
        shape=shape,
    )
    assert (got.architecture, got.width, got.n_layer) == (architecture, 36, 2)
    assert (got.n_head, got.n_head_kv, got.head_size) == (3, 1, 20)
    assert (got.feed_forward, got.vocabulary, got.context) == (52, 101, 512)
    assert got.norm_eps == pytest.approx(1e-6)
    assert got.layers == (Layer(Rope(5e5, 12, interleaved=architecture == "llama")),) * 2
    assert got.tied_head is tied
    assert got.head_name == ("token_embd.weight" if tied else "output.weight")
    assert {*got.matrices(), *got.vectors()} == set(shape.tensors())
    linears = {"attn_q": (60, 36), "attn_k": (20, 36), "attn_v": (20, 36), "attn_output": (36, 60)}
    linears |= {"ffn_gate": (52, 36), "ffn_up": (52, 36), "ffn_down": (36, 52)}
    assert got.linears() == {
        f"blk.{layer}.{name}.weight": size for layer in (0, 1) for name, size in linears.items()
    }
    biases = {"attn_q.bias": 60, "attn_k.bias": 20, "attn_v.bias": 20}
    norms = {"attn_norm.weight": 36, "ffn_norm.weight": 36}
    norms |= biases if architecture == "qwen2" else {}
    norms |= {f"attn_{x}_norm.weight": 20 for x in "qk"} if architecture == "qwen3" else {}
    assert got.vectors() == {
        "output_norm.weight": 36,
        **{f"blk.{layer}.{name}": n for layer in (0, 1) for name, n in norms.items()},
    }


def test_defaults_of_metadata() -> None:
    """What files may leave out, as llama.cpp reads it."""
    shape = replace(SHAPE, kv_heads=2)
    gone = ["attention.head_count_kv", "attention.key_length", "attention.value_length"]
    gone += ["rope.dimension_count", "rope.freq_base", "context_length"]
    got = config({f"llama.{key}": None for key in gone}, shape=shape)
    assert (got.n_head_kv, got.head_size) == (2, 16)
    assert got.layers == (Layer(Rope(10_000.0, 16, interleaved=True)),) * 2


def test_a_llama_may_have_biases() -> None:
    biases: dict[str, Any] = {
        f"blk.{layer}.attn_{name}.bias": f32(n)
        for layer in range(2)
        for name, n in (("q", 32), ("k", 16), ("v", 16))
    }
    assert config(tensors=biases).optional == {f"attn_{x}.bias" for x in "qkv"}
    refused(
        "tensor blk.1.attn_k.bias (16,) is missing", tensors={**biases, "blk.1.attn_k.bias": None}
    )


def test_rotary_table() -> None:
    got = config({"llama.rope.freq_base": 5e5}).layers[0].rope.table(50)
    assert got.shape == (50, 8, 2) and got.dtype == np.float32
    for position in (0, 1, 49):
        for pair in (0, 3, 7):
            angle = position * 5e5 ** (-2 * pair / 16)
            np.testing.assert_allclose(
                got[position, pair], [np.cos(angle), np.sin(angle)], atol=1e-7
            )


@pytest.mark.parametrize("name", ["gemma4", "phi2", "mixtral", "LLAMA", ""])
def test_other_architectures(name: str) -> None:
    refused(
        f"general.architecture {name!r}", "llama, qwen2, qwen3",
        metadata={"general.architecture": name},
    )  # fmt: skip


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("attention.max_alibi_bias", 8.0),
        ("attention.clamp_kqv", 8.0),
        ("attn_logit_softcapping", 50.0),
        ("final_logit_softcapping", 30.0),
        ("attention.scale", 0.1),
        ("attention.causal", False),
        ("expert_count", 8),
        ("expert_used_count", 2),
        ("embedding_scale", 12.0),
        ("residual_scale", 0.5),
        ("logit_scale", 0.5),
        ("pooling_type", 1),
        ("rope.scaling.yarn_log_multiplier", 0.1),
        ("rope.dimension_sections", np.array([8, 8, 0, 0], np.int32)),
        ("use_parallel_residual", True),
        ("decoder_start_token_id", 1),
        ("attention.q_lora_rank", 16),
        ("leading_dense_block_count", 1),
        ("tensor_data_layout", "Something new"),
    ],
)
def test_features_that_change_the_mathematics(key: str, value: Any) -> None:
    hints = {"pooling_type": "take a model that generates text", "expert_count": "a dense model"}
    text = refused(f"llama.{key}", metadata={f"llama.{key}": value})
    assert "that is not supported" in text and hints.get(key, "") in text


def test_features_are_listed_at_once() -> None:
    text = refused(
        "llama.expert_count = 8",
        "llama.ssm.state_size = 16",
        metadata={
            "llama.expert_count": 8,
            "llama.ssm.state_size": 16,
            "llama.new_idea": 1,
            "gemma.other": 1,
            "general.author": "nobody",
        },
    )
    assert len(text.splitlines()) == 3


def test_a_part_of_a_model() -> None:
    refused("split.count = 3", metadata={"split.count": 3, "split.no": 0})
    config({"split.count": 1})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("attention.sliding_window", 0),
        ("final_logit_softcapping", 0.0),
        ("expert_count", 0),
        ("expert_used_count", 0),
        ("embedding_scale", 1.0),
        ("logit_scale", 1.0),
        ("rope.scaling.type", "none"),
        ("rope.scaling.factor", 1.0),
        ("rope.scale_linear", 1.0),
        ("rope.scaling.original_context_length", 2048),
        ("attention.causal", True),
        ("vocab_size", 101),
        ("attention.layer_norm_epsilon", 1e-5),
        ("tensor_data_layout", "Meta AI original pth"),
    ],
)
def test_values_under_which_a_feature_is_off(key: str, value: Any) -> None:
    config({f"llama.{key}": value})


@pytest.mark.parametrize(
    "name",
    [
        "blk.0.ffn_gate_inp.weight",
        "blk.1.ffn_gate_exps.weight",
        "blk.0.attn_q.scale",
        "blk.0.attn_q.input_scale",
        "blk.2.nextn.eh_proj.weight",
        "blk.0.post_attention_norm.weight",
        "blk.0.attn_q_norm.weight",
        "blk.0.ffn_gate_exps.bias",
        "blk.0.attn_norm.bias",
        "blk.2.attn_q.weight",
        "output.bias",
        "position_embd.weight",
        "something.else",
    ],
)
def test_tensors_that_are_not_known(name: str) -> None:
    refused(f"tensor {name} is not known for llama", tensors={name: f32(32)})


def test_everything_that_is_wrong_is_listed_at_once() -> None:
    text = refused(
        tensors={
            "blk.0.attn_k.weight": None,
            "blk.1.ffn_norm.weight": None,
            "token_embd.weight": f32(101, 64),
            "blk.1.ffn_up.weight": f32(48, 31),
            "blk.0.attn_norm.weight": f32(33),
            "rope_scale.weight": f32(8),
            "blk.0.ffn_down.weight": Raw("I8", (32, 48), bytes(32 * 48)),
        }
    )
    lines = text.splitlines()[1:]
    assert len(lines) == 7
    for part in (
        "blk.0.attn_k.weight (16, 32) is missing",
        "blk.1.ffn_norm.weight (32,) is missing",
        "token_embd.weight has shape (101, 64), (101, 32) is needed",
        "blk.1.ffn_up.weight has shape (48, 31), (48, 32) is needed",
        "blk.0.attn_norm.weight has shape (33,), (32,) is needed",
        "rope_scale.weight is not known",
        "blk.0.ffn_down.weight has type I8",
    ):
        assert any(part in line for line in lines), f"{part!r} is not in: {text}"


def test_a_long_list_is_cut() -> None:
    text = refused("and 60 more", tensors={f"extra.{i}": f32(32) for i in range(100)})
    assert len(text.splitlines()) == 42


@pytest.mark.parametrize("type_", ["Q8_K", "F64", "I32", "Q1_0"])
def test_tensor_types_that_are_not_supported(type_: str) -> None:
    from wgtrain.files import BLOCKS

    shape = replace(SHAPE, width=256, heads=4, head_size=64)
    size = BLOCKS[type_].row_nbytes(256)
    raw = Raw(type_, (48, 256), bytes(48 * size))
    refused(
        f"tensor blk.0.ffn_up.weight has type {type_}", "F32, F16, BF16, Q4_0, Q4_1, Q5_0",
        tensors={"blk.0.ffn_up.weight": raw}, shape=shape,
    )  # fmt: skip


def test_a_norm_is_not_quantised() -> None:
    refused(
        "tensor blk.0.attn_norm.weight has type Q8_0; F32, F16 or BF16 is needed",
        tensors={"blk.0.attn_norm.weight": Raw("Q8_0", (32,), bytes(34))},
    )


@pytest.mark.parametrize(
    ("key", "value", "part"),
    [
        ("embedding_length", 0, "llama.embedding_length is 0"),
        ("embedding_length", None, "llama.embedding_length"),
        ("embedding_length", "32", "llama.embedding_length"),
        ("embedding_length", 1 << 30, "llama.embedding_length"),
        ("block_count", 0, "llama.block_count is 0"),
        ("block_count", 1 << 23, "llama.block_count 8388608"),
        ("block_count", None, "llama.block_count"),
        ("attention.head_count", None, "llama.attention.head_count"),
        ("attention.head_count", 3, "head_count 3"),
        ("attention.head_count_kv", 3, "head_count 2 is no multiple of head_count_kv 3"),
        ("attention.head_count_kv", np.array([1, 2], np.uint32), "head_count_kv"),
        ("attention.key_length", 18, "head size 18"),
        ("attention.key_length", 512, "head size 512"),
        ("attention.value_length", 32, "value_length 32 differs from key_length 16"),
        ("feed_forward_length", None, "llama.feed_forward_length"),
        ("feed_forward_length", np.array([48, 64], np.uint32), "feed_forward_length"),
        ("rope.dimension_count", 7, "dimension_count 7"),
        ("rope.dimension_count", 32, "dimension_count 32"),
        ("rope.freq_base", 0.0, "llama.rope.freq_base is 0"),
        ("rope.freq_base", np.float32(np.nan), "'llama.rope.freq_base' is nan"),
        ("attention.layer_norm_rms_epsilon", None, "layer_norm_rms_epsilon"),
        ("attention.layer_norm_rms_epsilon", -1.0, "layer_norm_rms_epsilon is -1"),
    ],
)
def test_metadata_that_cannot_be(key: str, value: Any, part: str) -> None:
    metadata: dict[str, Any] = {f"llama.{key}": value}
    if key == "attention.head_count":
        metadata["llama.attention.head_count_kv"] = 2
    if key == "attention.key_length":
        metadata["llama.attention.value_length"] = None
    refused(part, metadata=metadata)


@pytest.mark.parametrize("divisor", [0.0, -1.0, np.nan, np.inf])
def test_rotations_that_are_no_numbers(divisor: float) -> None:
    """YaRN's ramp has no place by a base of 1; divisors of frequencies are numbers above 0."""
    yarn = {"llama.rope.scaling.type": "yarn", "llama.rope.scaling.factor": 4.0}
    config(yarn)
    refused("llama.rope.*: freq_base 1 with", metadata={**yarn, "llama.rope.freq_base": 1.0})
    whole = parse_gguf(write_gguf(SHAPE.metadata(), rm.tensors(SHAPE)), "model.gguf")
    whole.numbers["rope_freqs.weight"] = np.full(8, 2.0, np.float32)
    read_config(whole)
    whole.numbers["rope_freqs.weight"][3] = divisor
    with pytest.raises(FileError, match="makes angles or factors that are no numbers"):
        read_config(whole)


def test_a_value_length_alone_is_checked_too() -> None:
    refused(
        "value_length 8",
        metadata={"llama.attention.key_length": None, "llama.attention.value_length": 8},
    )


def test_qwen2_needs_its_biases() -> None:
    shape = replace(SHAPE, architecture="qwen2")
    gone = {f"blk.{i}.attn_{n}.bias": None for i in range(2) for n in "qkv"}
    refused("attn_q.bias", "missing", tensors=gone, shape=shape)
    text = refused("missing", tensors={"blk.1.attn_v.bias": None}, shape=shape)
    assert re.search(r"blk\.1\.attn_v\.bias \(16,\) is missing", text)


def test_qwen3_needs_its_norms() -> None:
    shape = replace(SHAPE, architecture="qwen3")
    refused(
        "tensor blk.0.attn_k_norm.weight (16,) is missing",
        tensors={"blk.0.attn_k_norm.weight": None},
        shape=shape,
    )


def test_a_file_without_tensors() -> None:
    data = write_gguf(SHAPE.metadata(), {})
    with pytest.raises(FileError, match=r"model\.gguf"):
        read_config(parse_gguf(data, "model.gguf"))


def of(architecture: str, metadata: dict[str, Any] | None = None, **sizes: Any) -> ModelConfig:
    """The configuration of a small model of an architecture; `metadata` below its name."""
    shape = replace(SHAPE, architecture=architecture, **sizes)
    return config({f"{architecture}.{k}": v for k, v in (metadata or {}).items()}, shape=shape)


def windows(got: ModelConfig) -> list[int]:
    return [layer.window for layer in got.layers]


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("clip", "the image projector of a model alone; take the model's own file"),
        ("bert", "it does not generate text"),
        ("qwen3moe", "take a dense model of its family"),
        ("mamba2", "it has states"),
        ("gemma3n", "take gemma3"),
    ],
)
def test_what_else_there_is(name: str, hint: str) -> None:
    refused(hint, metadata={"general.architecture": name})


def test_a_projector_alone() -> None:
    refused("the image projector of a model alone", metadata={"general.type": "mmproj"})


def test_known_keys_are_those_of_the_package() -> None:
    """Each of its keys is read, without effect at some value, or refuses the file."""
    groups = [group for group in vars(gguf.Keys).values() if isinstance(group, type)]
    keys = [key for group in groups for key in vars(group).values() if isinstance(key, str)]
    ours = {key.removeprefix("{arch}.") for key in keys if key.startswith("{arch}.")}
    assert {key for key in ours if "{" not in key} <= KNOWN_KEYS and len(KNOWN_KEYS) > 100
    for row in ARCHITECTURES.values():
        strange = row.known | set(row.neutral)
        assert strange <= KNOWN_KEYS | {"rope.scale_linear"}, row.name


def test_keys_that_nobody_reads_are_named_and_ignored() -> None:
    got = config({"llama.new_idea": 1, "llama.other": np.array([1, 2], np.int32), "x.y": 2})
    assert got.notes == (
        "metadata that no program is known to read is ignored: llama.new_idea, llama.other",
    )
    assert config().notes == ()


def test_vision_is_passed_over() -> None:
    shape = replace(SHAPE, architecture="gemma3", tied=True)
    got = config(
        {"gemma3.vision.block_count": 2, "gemma3.mm.tokens_per_image": 256},
        {"v.blk.0.attn_q.weight": f32(4, 4), "mm.0.bias": f32(4)},
        shape,
    )
    assert got.notes == ("the vision part is passed over (2 tensors); text is trained",)
    assert {*got.matrices(), *got.vectors()} == set(shape.tensors())


def test_ollama() -> None:
    """Its names of two keys, and what its files leave unsaid."""
    shape = replace(SHAPE, architecture="gemma3", tied=True, layers=6)
    gone = {f"gemma3.{key}": None for key in ("rope.freq_base", "attention.layer_norm_rms_epsilon")}
    window = {"gemma3.attention.sliding_window": 8}
    silent = config({**gone, **window, "gemma3.vision.block_count": 2}, shape=shape)
    said = {"gemma3.rope.global.freq_base": 5e5, "gemma3.rope.local.freq_base": 2e4}
    spelt = config({**gone, **window, **said}, shape=shape)
    for got, whole, local in ((silent, 1e6, 1e4), (spelt, 5e5, 2e4)):
        assert got.norm_eps == 1e-6
        thetas = [layer.rope and layer.rope.theta for layer in got.layers]
        assert thetas == [local] * 5 + [whole]
    refused("layer_norm_rms_epsilon", metadata=gone, shape=shape)


def test_windows_by_layer() -> None:
    """As each architecture has them, or as the file says: a number or a list."""
    eight = {"attention.sliding_window": 8}
    assert windows(of("gemma2", layers=3, tied=True)) == [4096, 0, 4096]
    assert windows(of("gemma3", eight, layers=7, tied=True)) == [8] * 5 + [0, 8]
    assert windows(of("gemma3", layers=2, tied=True)) == [0, 0]
    assert windows(of("olmo2", eight, layers=5)) == [8, 8, 8, 0, 8]
    assert windows(of("llama", eight, layers=2)) == [8, 8]
    key = "attention.sliding_window_pattern"
    for pattern, expected in ((0, [8, 8, 8]), (1, [0, 0, 0]), (2, [8, 0, 8])):
        assert windows(of("llama", {**eight, key: pattern}, layers=3)) == expected
    assert windows(of("qwen2", {**eight, key: np.array([False, True])})) == [0, 8]
    ours = {"wgtrain.attention.window_pattern": np.array([True, False])}
    assert windows(config({"llama.attention.sliding_window": 8, **ours})) == [8, 0]
    for wrong in (np.array([True]), np.array([1, 2], np.int32), "all", -1):
        with pytest.raises(FileError, match=f"{key} is "):
            of("llama", {**eight, key: wrong})


def test_scales() -> None:
    """What scores, embeddings and logits are multiplied by."""
    assert of("llama").attention_scale == pytest.approx(16**-0.5)
    for name, layers in (("gemma2", 46), ("gemma3", 62)):
        whole = of(name, layers=layers, width=8, tied=True)
        assert whole.attention_scale == pytest.approx((8 / 2) ** -0.5)
        less = of(name, layers=layers - 1, width=8, tied=True)
        assert less.attention_scale == pytest.approx(16**-0.5)
    assert of("gemma", tied=True).embedding_scale == pytest.approx(32**0.5)
    assert config({"wgtrain.attention.scale": 0.5}).attention_scale == 0.5
    refused("granite.logit_scale", shape=replace(SHAPE, architecture="granite"))
    off = of("granite", {"logit_scale": 4.0, "attention.scale": 0.0})
    assert (off.logit_scale, off.embedding_scale, off.residual_scale) == (4, 1, 1)
    assert off.attention_scale == pytest.approx(16**-0.5)


def test_biases_of_a_fused_weight() -> None:
    """In one tensor or in three, all of them; without the weight they are those of q, k and v."""
    shape = replace(SHAPE, architecture="qwen3")
    fused: dict[str, Any] = {
        f"blk.{i}.attn_{n}.weight": f32(64, 32) if n == "qkv" else None
        for i in range(2)
        for n in ("q", "k", "v", "qkv")
    }
    apart = {
        f"blk.{i}.attn_{n}.bias": f32(rows)
        for i in range(2)
        for n, rows in (("q", 32), ("k", 16), ("v", 16))
    }
    got = config(tensors=fused | apart, shape=shape)
    assert got.vectors()["blk.1.attn_qkv.bias"] == 64
    names = [f"blk.1.attn_{n}.bias" for n in "qkv"]
    assert got.stored("blk.1.attn_qkv.bias") == dict(zip(names, (32, 16, 16), strict=True))
    assert got.stored("output_norm.weight") == {"output_norm.weight": 32}
    whole = {f"blk.{i}.attn_qkv.bias": f32(64) for i in range(2)}
    one = config(tensors=fused | whole, shape=shape)
    assert one.vectors() == got.vectors()
    assert one.stored("blk.1.attn_qkv.bias") == {"blk.1.attn_qkv.bias": 64}
    part = {"blk.1.attn_k.bias": None}
    refused("blk.1.attn_k.bias (16,) is missing", tensors=fused | apart | part, shape=shape)
    wide = {"blk.0.attn_v.bias": f32(32)}
    refused("attn_v.bias has shape (32,)", tensors=fused | apart | wide, shape=shape)
    refused("attn_q.bias is not known", tensors=fused | apart | whole, shape=shape)
    refused("attn_q.bias is not known", tensors=apart, shape=shape)


def test_layers_without_rotation() -> None:
    still = [layer.rope is None for layer in of("smollm3", layers=5).layers]
    assert still == [False, False, False, True, False]
    one = {"logit_scale": 1.0}
    assert all(layer.rope for layer in of("granite", one).layers)
    none = of("granite", {**one, "rope.scaling.finetuned": False})
    assert not any(layer.rope for layer in none.layers)
    ours = {"wgtrain.rope.no_rope_layers": np.array([1], np.int32)}
    assert [layer.rope is None for layer in config(ours).layers] == [False, True]


def first_rope(metadata: dict[str, Any] | None = None, **tensors: Any) -> Rope:
    got = config({f"llama.{k}": v for k, v in (metadata or {}).items()}, tensors)
    assert got.layers[0].rope is not None
    return got.layers[0].rope


def test_stretched_rotations() -> None:
    factor = {"rope.scaling.factor": 3.0}
    assert first_rope(factor).linear == first_rope({"rope.scale_linear": 3.0}).linear == 3
    assert first_rope({**factor, "rope.scaling.type": "none"}).linear == 1
    assert first_rope({"rope.scaling.attn_factor": 1.5}).attn_factor == 1.5
    yarn = {**factor, "rope.scaling.type": "yarn"}
    assert first_rope(yarn).scaling == Yarn(3.0, 512)
    more = {"original_context_length": 64, "yarn_beta_fast": 4.0, "yarn_attn_factor": 1.25}
    got = first_rope({**yarn, **{f"rope.scaling.{key}": value for key, value in more.items()}})
    assert got.scaling == Yarn(3.0, 64, beta_fast=4.0, attention_factor=1.25)
    said = config(
        {f"llama.{k}": v for k, v in {**yarn, "rope.scaling.yarn_beta_fast": 4.0}.items()}
    )
    assert "llama.cpp passes over this model's own numbers of YaRN" in said.notes[0]
    divided = first_rope(**{"rope_freqs.weight": np.arange(1, 9, dtype=np.float32)})
    assert divided.divisors == tuple(range(1, 9))
    short, long = (np.full(8, n, np.float32) for n in (2, 3))
    lists = {"rope_factors_short.weight": short, "rope_factors_long.weight": long}
    # Files of old have no magnitude.
    found = first_rope({"rope.scaling.original_context_length": 128}, **lists)
    assert found.scaling == LongRope((2.0,) * 8, (3.0,) * 8, 128)
    assert found.attn_factor == pytest.approx((1 + np.log(4) / np.log(128)) ** 0.5)


@pytest.mark.parametrize(
    ("part", "changes"),
    [
        ("rope_freqs.weight has shape (4,), (8,) is", {"tensors": {"rope_freqs.weight": f32(4)}}),
        ("rope_factors_long.weight one is", {"tensors": {"rope_factors_long.weight": f32(8)}}),
        ("rope_freqs.weight[0] is 0.0", {"tensors": {"rope_freqs.weight": 0 * f32(8)}}),
        ("'longrope', and tensor", {"metadata": {"llama.rope.scaling.type": "longrope"}}),
        ("type is 'dynamic'; one of", {"metadata": {"llama.rope.scaling.type": "dynamic"}}),
        ("key_length_swa is 8, 16", {"metadata": {"llama.attention.key_length_swa": 8}}),
        ("experts that are not", {"tensors": {"blk.0.ffn_up_exps.weight": f32(2, 4, 4)}}),
        ("output.weight is not known for gemma", {"shape": replace(SHAPE, architecture="gemma")}),
    ],
)  # fmt: skip
def test_what_cannot_be(part: str, changes: dict[str, Any]) -> None:
    if "shape" in changes:
        changes = {**changes, "tensors": {"output.weight": f32(101, 32)}}
    refused(part, **changes)


def test_numbers_for_each_layer() -> None:
    """Equal ones are one; a model of unlike layers is refused."""
    two, unlike = np.array([2, 2], np.int32), np.array([2, 1], np.int32)
    assert config({"llama.attention.head_count": two}).n_head == 2
    refused("head_count_kv is", "2 equal ones", metadata={"llama.attention.head_count_kv": unlike})


def test_layers_that_predict_further_tokens_are_not_run() -> None:
    shape = replace(SHAPE, architecture="glm4")
    more = {"blk.2.attn_norm.weight": f32(32), "blk.2.nextn.eh_proj.weight": f32(32, 64)}
    metadata = {"glm4.block_count": 3, "glm4.nextn_predict_layers": 1}
    assert config(metadata, more, shape).n_layer == 2
    refused("blk.2.nextn.eh_proj.weight is not known", tensors=more, shape=shape)


@pytest.mark.parametrize(
    ("longest", "said"),
    [(128, "rotations for rows of up to 128 tokens"), (129, "rotations for rows longer than 128")],
)
def test_the_choice_of_long_rotations_is_told(longest: int, said: str) -> None:
    lists = {f"rope_factors_{which}.weight": f32(8) for which in ("short", "long")}
    got = config({"llama.rope.scaling.original_context_length": 128}, lists)
    (line,) = long_rotations(got.layers, longest)
    assert line.startswith(said)
    assert long_rotations(config().layers, longest) == []
