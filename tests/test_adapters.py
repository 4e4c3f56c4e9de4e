"""Adapter files: the GGUF of llama.cpp, the folder of PEFT, and whether one fits a model."""

import json
from dataclasses import replace
from typing import Any

import broken_adapters as broken
import numpy as np
import pytest
from needs import package

from wgtrain.errors import FileError, OptionError
from wgtrain.files import (
    ARCHITECTURES,
    Adapter,
    TensorInfo,
    adapter_fits,
    adapter_form,
    parse_gguf,
    read_adapter_gguf,
    read_adapter_peft,
    read_safetensors,
    write_adapter_gguf,
    write_adapter_peft,
    write_gguf,
    write_safetensors,
)
from wgtrain.files.adapter_form import well_formed
from wgtrain.files.adapters import fitted

HEADS = {"n_head": 2, "n_head_kv": 1}
ROOT = "base_model.model.model.layers."


def same(found: Adapter, wanted: Adapter) -> None:
    assert (found.architecture, found.rank, found.alpha) == (
        *(wanted.architecture, wanted.rank, wanted.alpha),
    )
    assert [*found.tensors] == sorted(found.tensors, key=[*wanted.tensors].index)
    assert found.tensors.keys() == wanted.tensors.keys()
    for name, pair in wanted.tensors.items():
        for x, y in zip(found.tensors[name], pair, strict=True):
            assert x.dtype == np.float32
            np.testing.assert_array_equal(x, y)


# --- GGUF -----------------------------------------------------------------------------------------


def test_gguf_holds_what_llama_cpp_asks_for() -> None:
    wanted = broken.adapter(rank=3)
    data = write_adapter_gguf(wanted)
    turned = Adapter("llama", 3, 4.0, dict(reversed(wanted.tensors.items())), wanted.metadata)
    assert data == write_adapter_gguf(turned)
    found = parse_gguf(data)
    assert found.metadata == {
        "general.type": "adapter",
        "general.architecture": "llama",
        "adapter.type": "lora",
        "adapter.lora.alpha": 4.0,
        "wgtrain.base.name": "tiny",
    }
    names = [f"{name}.lora_{x}" for name in wanted.tensors for x in "ab"]
    assert [*found.tensors] == names
    assert all(info.type == "F32" for info in found.tensors.values())
    assert found.tensors["blk.1.ffn_down.weight.lora_a"].shape == (3, 10)
    assert found.tensors["blk.1.ffn_down.weight.lora_b"].shape == (6, 3)
    back = read_adapter_gguf(data)
    same(back, wanted)
    assert back.metadata == {"base.name": "tiny"}


def test_blocks_are_ordered_by_number() -> None:
    names = [
        *(f"blk.{i}.{x}.weight" for i in (2, 10) for x in ("attn_q", "ffn_up")),
        "output.weight",
    ]
    pair = (np.ones((1, 2), np.float32), np.ones((2, 1), np.float32))
    shuffled = dict.fromkeys(sorted(names, reverse=True), pair)
    assert [*read_adapter_gguf(write_adapter_gguf(Adapter("x", 1, 1.0, shuffled))).tensors] == names


@pytest.mark.parametrize("alpha", [None, 0.0])
def test_gguf_without_alpha_has_scale_1(alpha: float | None) -> None:
    metadata, tensors = broken.adapter_parts(broken.adapter(rank=3))
    del metadata["adapter.lora.alpha"]
    if alpha is not None:
        metadata["adapter.lora.alpha"] = np.float32(alpha)
    assert read_adapter_gguf(write_gguf(metadata, tensors)).alpha == 3.0


def test_alpha_0_is_not_written() -> None:
    with pytest.raises(OptionError, match="alpha is 0, which llama.cpp would read as alpha = rank"):
        write_adapter_gguf(Adapter("llama", 2, 0.0, broken.adapter().tensors))


def test_gguf_in_f16_and_with_norms() -> None:
    wanted = broken.adapter()
    metadata, tensors = broken.adapter_parts(wanted)
    halves = {name: x.astype(np.float16) for name, x in tensors.items()}
    halves["blk.0.attn_norm.weight"] = np.ones(6, np.float16)  # llama.cpp passes over it
    found = read_adapter_gguf(write_gguf(metadata, halves))
    for name, pair in wanted.tensors.items():
        for x, y in zip(found.tensors[name], pair, strict=True):
            assert x.dtype == np.float32
            np.testing.assert_array_equal(x, y.astype(np.float16).astype(np.float32))


def test_all_failures_at_once() -> None:
    metadata, tensors = broken.adapter_parts(broken.adapter())
    del tensors["blk.0.attn_q.weight.lora_a"]
    tensors["blk.1.attn_k.weight.lora_b"][0, 0] = np.nan
    with pytest.raises(FileError) as caught:
        read_adapter_gguf(write_gguf(metadata, tensors), "a.gguf")
    assert str(caught.value) == (
        "a.gguf:\n"
        "  'blk.0.attn_q.weight': lora_b without lora_a\n"
        "  'blk.1.attn_k.weight': B[0, 0] is nan"
    )


# --- does it fit ----------------------------------------------------------------------------------


def base(a: Adapter, **changes: tuple[int, ...] | None) -> dict[str, TensorInfo]:
    shapes: dict[str, Any] = {n: (y.shape[0], x.shape[1]) for n, (x, y) in a.tensors.items()}
    shapes |= {"token_embd.weight": (9, 6)} | {k.replace("__", "."): v for k, v in changes.items()}
    return {n: TensorInfo(n, shape, "F32", 0, 0) for n, shape in shapes.items() if shape}


def test_fits() -> None:
    a = broken.adapter()
    adapter_fits(a, base(a), "llama")
    pair = (np.ones((2, 6), np.float32), np.ones((9, 2), np.float32))
    headed = Adapter("llama", 2, 4.0, a.tensors | {"output.weight": pair})
    adapter_fits(headed, base(headed), "llama")
    wrong = base(headed, output__weight=None, blk__0__attn_q__weight=(8, 7))
    del wrong["blk.1.ffn_down.weight"]
    with pytest.raises(FileError) as caught:
        adapter_fits(headed, wrong, "qwen2", "a.gguf")
    assert str(caught.value).splitlines() == [
        "a.gguf does not fit the model:",
        "  made for 'llama' models, this one is 'qwen2'",
        "  'blk.0.attn_q.weight': made for (8, 6), the model has (8, 7)",
        "  'blk.1.ffn_down.weight': the model has no such tensor",
        "  'output.weight': the model's output head is tied to its embedding",
    ]
    with pytest.raises(FileError) as caught:
        adapter_fits(a, {}, "qwen2")
    lines = str(caught.value).splitlines()
    assert len(lines) == 8 and lines[-1] == f"  and {len(a.tensors) - 5} more"


# --- PEFT -----------------------------------------------------------------------------------------


def config_of(files: dict[str, bytes]) -> dict[str, Any]:
    return json.loads(files["adapter_config.json"])


@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
def test_peft_round_trip(architecture: str) -> None:
    llama = broken.adapter(rank=3)
    wanted = Adapter(architecture, 3, 4.5, llama.tensors)
    files = write_adapter_peft(wanted, base_name="org/base", dropout=0.1, **HEADS)
    assert files == write_adapter_peft(wanted, base_name="org/base", dropout=0.1, **HEADS)
    text = files["adapter_config.json"].decode()
    assert text == json.dumps(config_of(files), indent=2, sort_keys=True) + "\n"
    assert config_of(files) == {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": 3,
        "lora_alpha": 4.5,
        "lora_dropout": 0.1,
        "base_model_name_or_path": "org/base",
        "bias": "none",
        "use_dora": False,
        "use_rslora": False,
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "modules_to_save": None,
        "target_modules": ["down_proj", "k_proj", "q_proj"],
    }
    same(read_adapter_peft(files, architecture=architecture, **HEADS), wanted)


def test_only_llama_rows_are_permuted() -> None:
    """Row j of half i of a head is row 2 j + i in the GGUF: heads of 4, 2 for q and 1 for k."""
    a = broken.adapter()
    tensors = write_adapter_peft(a, base_name=None, **HEADS)["adapter_model.safetensors"]
    found = read_safetensors(tensors)
    for module, name, order in (
        ("self_attn.q_proj", "attn_q", [0, 2, 1, 3, 4, 6, 5, 7]),
        ("self_attn.k_proj", "attn_k", [0, 2, 1, 3]),
        ("mlp.down_proj", "ffn_down", range(6)),
    ):
        left, right = a.tensors[f"blk.1.{name}.weight"]
        np.testing.assert_array_equal(found[f"{ROOT}1.{module}.lora_A.weight"], left)
        np.testing.assert_array_equal(found[f"{ROOT}1.{module}.lora_B.weight"], right[order])
    plain = Adapter("qwen3", a.rank, a.alpha, a.tensors)
    files = write_adapter_peft(plain, base_name=None, **HEADS)
    found = read_safetensors(files["adapter_model.safetensors"])
    right = a.tensors["blk.0.attn_q.weight"][1]
    np.testing.assert_array_equal(found[f"{ROOT}0.self_attn.q_proj.lora_B.weight"], right)


def test_target_modules_of_some_blocks() -> None:
    """PEFT makes an adapter in every block for a short name, so parts are named by their paths."""
    a = broken.adapter(layers=2)
    all_short = ["down_proj", "k_proj", "q_proj"]

    def targets(a: Adapter, n_layer: int | None) -> list[str]:
        files = write_adapter_peft(a, base_name=None, n_layer=n_layer, **HEADS)
        return config_of(files)["target_modules"]

    assert targets(a, 2) == targets(a, None) == all_short
    paths = [
        f"model.layers.{i}.{x}"
        for i in (0, 1)
        for x in ("mlp.down_proj", "self_attn.k_proj", "self_attn.q_proj")
    ]
    assert targets(a, 3) == paths
    head = {"output.weight": (np.ones((2, 6), np.float32), np.ones((9, 2), np.float32))}
    headed = Adapter("llama", 2, 4.0, a.tensors | head)
    assert targets(headed, 2) == sorted([*all_short, "lm_head"])
    assert targets(headed, 3) == ["lm_head", *paths]
    assert targets(Adapter("llama", 2, 4.0, head), 2) == ["lm_head"]
    uneven = dict(a.tensors)
    del uneven["blk.1.attn_k.weight"]
    left = [path for path in paths if path != "model.layers.1.self_attn.k_proj"]
    assert targets(Adapter("llama", 2, 4.0, uneven), 2) == left


def test_rslora_is_folded_into_alpha() -> None:
    files = broken.peft_files(broken.adapter(rank=3))
    changed = config_of(files) | {"use_rslora": True, "lora_alpha": 5}
    files["adapter_config.json"] = json.dumps(changed).encode()
    found = read_adapter_peft(files, architecture="llama", **HEADS)
    assert found.alpha / found.rank == pytest.approx(5 / 3**0.5, rel=1e-15)


@pytest.mark.parametrize("kind", ["<f2", "BF16"])
def test_peft_in_half_precision(kind: str) -> None:
    files = broken.peft_files()
    full = read_safetensors(files["adapter_model.safetensors"])
    if kind == "BF16":  # numpy has none: u16 bits under another name of the same length + 1
        bits = {key: (x.view(np.uint32) >> 16).astype(np.uint16) for key, x in full.items()}
        data = write_safetensors(bits, {})
        n = int.from_bytes(data[:8], "little")
        head = data[8 : 8 + n].replace(b'"U16"', b'"BF16"')
        files["adapter_model.safetensors"] = len(head).to_bytes(8, "little") + head + data[8 + n :]
        rounded = {k: (x.astype(np.uint32) << 16).view(np.float32) for k, x in bits.items()}
    else:
        rounded = {key: x.astype(kind) for key, x in full.items()}
        files["adapter_model.safetensors"] = write_safetensors(rounded, {})
    found = read_adapter_peft(files, architecture="llama", **HEADS)
    left, right = found.tensors["blk.0.ffn_down.weight"]
    assert left.dtype == right.dtype == np.float32
    np.testing.assert_array_equal(left, rounded[f"{ROOT}0.mlp.down_proj.lora_A.weight"])
    np.testing.assert_array_equal(right, rounded[f"{ROOT}0.mlp.down_proj.lora_B.weight"])


def test_no_place_in_a_folder() -> None:
    pair = (np.ones((2, 6), np.float32), np.ones((7, 2), np.float32))
    llama = Adapter("llama", 2, 4.0, {"blk.0.attn_qkv.weight": pair})
    same(read_adapter_gguf(write_adapter_gguf(llama)), llama)
    with pytest.raises(FileError, match="'xyz' is not one of llama, qwen2, qwen3"):
        write_adapter_peft(replace(llama, architecture="xyz"), base_name=None, **HEADS)
    with pytest.raises(FileError, match=r"'blk.0.attn_qkv.weight' has no place in a PEFT folder"):
        write_adapter_peft(llama, base_name=None, **HEADS)  # 7 rows are no heads of q, k, v


# --- q, k and v in one tensor, or apart -----------------------------------------------------------


ROWS = {"attn_q": 12, "attn_k": 6, "attn_v": 6}  # 2 heads and 1, of 6


def random_pairs(names: dict[str, int], rank: int, width: int = 10) -> dict[str, Any]:
    rng = np.random.default_rng(len(names))
    return {
        f"blk.{layer}.{name}.weight": tuple(
            rng.normal(size=shape).astype(np.float32) for shape in ((rank, width), (n, rank))
        )
        for layer in (0, 1)
        for name, n in names.items()
    }


def table(names: dict[str, int], width: int = 10) -> dict[str, TensorInfo]:
    return {
        name: TensorInfo(name, (n, width), "F32", 0, 4 * n * width)
        for layer in (0, 1)
        for short, n in names.items()
        for name in [f"blk.{layer}.{short}.weight"]
    }


def products(adapter: Adapter) -> dict[str, np.ndarray]:
    """What each pair adds to the weights of its rows, q, k and v apart."""
    found = {}
    for name, (a, b) in adapter.tensors.items():
        product = adapter.alpha / adapter.rank * b.astype(np.float64) @ a.astype(np.float64)
        if "attn_qkv" in name:
            for part, rows in zip(ROWS, np.split(product, [12, 18]), strict=True):
                found[name.replace("attn_qkv", part)] = rows
        else:
            found[name] = product
    return found


@pytest.mark.parametrize(
    "parts", [("attn_q", "attn_k", "attn_v"), ("attn_q", "attn_v"), ("attn_k",)]
)
def test_separate_to_fused(parts: tuple[str, ...]) -> None:
    """The same product: A stacked, B on a diagonal, at a rank that all pairs have."""
    names = {part: ROWS[part] for part in parts} | {"ffn_up": 20}
    apart = Adapter("llama", 2, 3.0, random_pairs(names, 2))
    base = table({"attn_qkv": 24, "ffn_up": 20}) | table({"attn_output": 10}, ROWS["attn_q"])
    whole = fitted(apart, base)
    adapter_fits(whole, base, "llama")
    assert whole.rank == 2 * len(parts) and whole.alpha == 3.0 * len(parts)
    expected, found = products(apart), products(whole)
    for name, product in found.items():
        np.testing.assert_allclose(product, expected.get(name, 0 * product), atol=1e-12)
    for rows, q in ((12, 6), (24, 8), (28, 12), (24, 24)):  # heads of other numbers or sizes
        other = table({"attn_qkv": rows, "ffn_up": 20}) | table({"attn_output": 10}, q)
        with pytest.raises(FileError, match="the model has no such tensor"):
            adapter_fits(fitted(apart, other), other, "llama")


def test_fused_to_separate() -> None:
    whole = Adapter("llama", 3, 6.0, random_pairs({"attn_qkv": 24, "ffn_up": 20}, 3))
    base = table({**ROWS, "ffn_up": 20})
    apart = fitted(whole, base)
    adapter_fits(apart, base, "llama")
    assert (apart.rank, apart.alpha) == (3, 6.0)
    expected, found = products(whole), products(apart)
    assert expected.keys() == found.keys()
    for name in found:
        np.testing.assert_array_equal(found[name], expected[name])
    assert fitted(apart, base) is apart
    # A PEFT folder has them apart, in the order of its class; phi3's class has them in one.
    files = write_adapter_peft(whole, base_name=None, **HEADS)
    again = read_adapter_peft(files, architecture="llama", **HEADS)
    same(again, replace(apart, tensors={n: apart.tensors[n] for n in again.tensors}))
    phi = replace(
        whole,
        architecture="phi3",
        tensors={name: pair for name, pair in whole.tensors.items() if "qkv" in name},
    )
    files = write_adapter_peft(phi, base_name=None, **HEADS)
    keys = read_safetensors(files["adapter_model.safetensors"])
    assert f"{ROOT}1.self_attn.qkv_proj.lora_B.weight" in keys
    same(read_adapter_peft(files, architecture="phi3", **HEADS), phi)


# --- Modules of models for more than text ---------------------------------------------------------


def test_modules_of_a_model_for_more_than_text() -> None:
    """Written as transformers' classes have them, by whole paths; three spellings are read."""
    wanted = Adapter("llama", 2, 3.0, random_pairs({**ROWS, "ffn_up": 20}, 2))
    files = write_adapter_peft(wanted, base_name=None, n_layer=2, whole=True, **HEADS)
    tensors = read_safetensors(files["adapter_model.safetensors"])
    root = "base_model.model.model.language_model.layers."
    assert all(key.startswith(root) for key in tensors)
    targets = json.loads(files["adapter_config.json"])["target_modules"]
    assert len(targets) == 8 and "model.language_model.layers.1.mlp.up_proj" in targets
    same(read_adapter_peft(files, architecture="llama", **HEADS), wanted)
    for other in ("base_model.model.language_model.model.layers.", ROOT):
        renamed = {key.replace(root, other): x for key, x in tensors.items()}
        files["adapter_model.safetensors"] = write_safetensors(renamed, {})
        same(read_adapter_peft(files, architecture="llama", **HEADS), wanted)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_module_of_an_architecture(name: str) -> None:
    """All its linears go to a folder and come back; rows of q and k move in four of them alone."""
    row = ARCHITECTURES[name]
    wanted = Adapter(name, 2, 3.0, random_pairs(dict.fromkeys(row.linears, 24), 2))
    files = write_adapter_peft(wanted, base_name=None, n_layer=2, **HEADS)
    tensors = read_safetensors(files["adapter_model.safetensors"])
    moved = {
        short
        for short, module in row.linears.items()
        if not np.array_equal(
            tensors[f"{ROOT}0.{module}.lora_B.weight"], wanted.tensors[f"blk.0.{short}.weight"][1]
        )
    }
    turned = name in ("llama", "mistral3", "smollm3", "granite")
    assert moved == ({"attn_q", "attn_k"} if turned else set())
    found = read_adapter_peft(files, architecture=name, **HEADS)
    same(found, replace(wanted, tensors={n: wanted.tensors[n] for n in found.tensors}))


@pytest.mark.oracle
@pytest.mark.parametrize(
    ("options", "refused"),
    [
        ({}, ""),
        ({"use_rslora": True}, ""),
        ({"init_lora_weights": "gaussian"}, ""),
        ({"layers_to_transform": [0]}, ""),
        ({"lora_dropout": 0.1, "target_modules": "all-linear"}, ""),
        ({"use_dora": True}, "'use_dora' is True"),
        ({"bias": "all"}, "bias is 'all'"),
        ({"modules_to_save": ["lm_head"]}, "'modules_to_save' is"),
        ({"rank_pattern": {"q_proj": 4}}, "'rank_pattern' is"),
        ({"alpha_pattern": {"q_proj": 4}}, "'alpha_pattern' is"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights is 'pissa'"),
        ({"task_type": "SEQ_CLS"}, "task_type is 'SEQ_CLS'"),
    ],
)
def test_configs_as_peft_writes_them(options: dict, refused: str, tmp_path: Any) -> None:
    """Every field of the installed PEFT's LoraConfig is known: neutral ones pass, others do not."""
    peft = package("peft")
    plain = {"r": 2, "lora_alpha": 16, "task_type": "CAUSAL_LM", "target_modules": ["q_proj"]}
    peft.LoraConfig(**(plain | options)).save_pretrained(tmp_path)
    files = broken.peft_files()
    files["adapter_config.json"] = (tmp_path / "adapter_config.json").read_bytes()
    if refused:
        with pytest.raises(FileError, match=refused):
            read_adapter_peft(files, architecture="llama", **HEADS)
    else:
        found = read_adapter_peft(files, architecture="llama", **HEADS)
        assert found.alpha == pytest.approx(16 * (2**0.5 if "use_rslora" in options else 1))


def test_gate_and_up_in_one() -> None:
    """As the class of Granite 4 has them: the same products, one way and back at the same rank."""
    rows = {"attn_q": 12, "ffn_gate": 20, "ffn_up": 20, "ffn_down": 10}
    apart = Adapter("granite", 2, 3.0, random_pairs(rows, 2))
    files = write_adapter_peft(apart, base_name=None, n_layer=2, shared=True, **HEADS)
    settings = json.loads(files["adapter_config.json"])
    assert (settings["r"], settings["lora_alpha"]) == (4, 6)
    assert settings["target_modules"] == ["input_linear", "output_linear", "q_proj"]
    back = read_adapter_peft(files, architecture="granite", **HEADS)
    expected, found = products(apart), products(back)
    assert expected.keys() == found.keys()
    for name, product in found.items():
        np.testing.assert_allclose(product, expected[name], atol=1e-6)
    again = write_adapter_peft(back, base_name=None, n_layer=2, shared=True, **HEADS)
    assert again == files
    # One of the two alone, and in one block alone.
    alone = {k: v for k, v in apart.tensors.items() if k == "blk.1.ffn_gate.weight"}
    one = write_adapter_peft(
        replace(apart, tensors=alone), base_name=None, n_layer=2, shared=True, **HEADS
    )
    module = "model.layers.1.shared_mlp.input_linear"
    assert json.loads(one["adapter_config.json"])["target_modules"] == [module]
    found = products(read_adapter_peft(one, architecture="granite", **HEADS))
    np.testing.assert_array_equal(found["blk.1.ffn_gate.weight"], expected["blk.1.ffn_gate.weight"])
    assert not found["blk.1.ffn_up.weight"].any()
    with pytest.raises(FileError, match="shared_mlp.input_linear.* is not|not a lora_A.weight"):
        read_adapter_peft(one, architecture="llama", **HEADS)
    plain = write_adapter_peft(apart, base_name=None, n_layer=2, **HEADS)
    tensors = {
        **read_safetensors(plain["adapter_model.safetensors"]),
        **read_safetensors(one["adapter_model.safetensors"]),
    }
    twice = plain | {"adapter_model.safetensors": write_safetensors(tensors, {"format": "pt"})}
    with pytest.raises(FileError, match="they are there twice"):
        read_adapter_peft(twice, architecture="granite", **HEADS)


# ---- adapters that a program made --------------------------------------------------------------


def made(**changes: Any) -> Adapter:
    a, b = np.ones((3, 8), np.float32), np.ones((5, 3), np.float32)
    return replace(Adapter("llama", 3, 6.0, {"x.weight": (a, b)}), **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        *(({"rank": rank}, "rank = ") for rank in (0, -1, 3.0, True, None)),
        *(({"alpha": alpha}, "alpha = ") for alpha in (np.nan, np.inf, None, "6")),
        *(({"tensors": tensors}, "tensors = ") for tensors in ({}, None, [])),
        *(
            ({"tensors": {"x.weight": pair}}, "'x.weight': .*numbers and rank 3 are needed")
            for pair in (
                None,
                (np.ones((3, 8)),),
                (np.ones((3, 8)), np.ones((5, 3)), np.ones(1)),
                (np.ones((5, 3)), np.ones((3, 8))),
                (np.ones(3), np.ones(3)),
                (np.ones((3, 8), complex), np.ones((5, 3))),
                (np.full((3, 8), 1e39), np.ones((5, 3))),
                (np.ones((3, 0)), np.ones((5, 3))),
                ("A", "B"),
            )
        ),
        ({"tensors": {7: (np.ones((3, 8)), np.ones((5, 3)))}}, "7: A "),
    ],
)
def test_what_a_program_made_and_no_adapter_is(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(FileError, match=f"(?s)^adapter: {message}"):
        well_formed(made(**changes))


def test_what_a_program_made_is_taken_as_float32() -> None:
    given = made()
    assert well_formed(given) is given
    a, b = (matrix.tolist() for matrix in given.tensors["x.weight"])
    found = well_formed(made(tensors={"x.weight": [a, np.array(b, np.float64)]}))
    for new, old in zip(found.tensors["x.weight"], given.tensors["x.weight"], strict=True):
        assert new.dtype == np.float32
        np.testing.assert_array_equal(new, old)


def test_no_numbers_are_spelt_where_nothing_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    """That takes a hundred times as long as all else."""
    monkeypatch.setattr(adapter_form, "shown", None)
    well_formed(made())


def test_an_adapter_of_the_embedding_does_not_go_unheard() -> None:
    pair = np.ones((3, 8), np.float32), np.ones((5, 3), np.float32)
    tensors = {"token_embd.weight": TensorInfo("token_embd.weight", (5, 8), "F32", 0, 160)}
    with pytest.raises(FileError, match="of the token embedding are not supported"):
        adapter_fits(made(tensors={"token_embd.weight": pair}), tensors, "llama")
