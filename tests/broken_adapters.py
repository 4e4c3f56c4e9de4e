"""Seeded broken adapters: as GGUF, as safetensors, and their configuration."""

import json
import random
import struct
from collections.abc import Callable
from typing import Any

import numpy as np
from broken import HUGE, Case, truncated

from wgtrain.files import Adapter, write_adapter_gguf, write_adapter_peft, write_gguf

LINEARS = {"attn_q": (8, 6), "attn_k": (4, 6), "ffn_down": (6, 10)}


def adapter(rank: int = 2, layers: int = 2, seed: int = 0) -> Adapter:
    """A good adapter of a `llama` with 2 heads of 4, 1 key-value head."""
    rng = np.random.default_rng(seed)
    tensors = {
        f"blk.{layer}.{name}.weight": (
            rng.standard_normal((rank, n_in)).astype(np.float32),
            rng.standard_normal((n_out, rank)).astype(np.float32),
        )
        for layer in range(layers)
        for name, (n_out, n_in) in LINEARS.items()
    }
    return Adapter("llama", rank, 4.0, tensors, {"base.name": "tiny"})


def adapter_parts(a: Adapter) -> tuple[dict[str, Any], dict[str, Any]]:
    """Metadata and tensors of an adapter GGUF, to be spoiled."""
    metadata = {
        "general.type": "adapter",
        "general.architecture": a.architecture,
        "adapter.type": "lora",
        "adapter.lora.alpha": np.float32(a.alpha),
    }
    tensors: dict[str, Any] = {}
    for name, (left, right) in a.tensors.items():
        tensors |= {f"{name}.lora_a": left, f"{name}.lora_b": right}
    return metadata, tensors


def bad_adapters(rng: random.Random) -> list[Case]:
    whole = write_adapter_gguf(adapter())
    cases = truncated(rng, whole, len(whole) - 31, 12)

    def case(label: str, says: str, spoil: Callable[[dict[str, Any], dict[str, Any], str], None]):
        metadata, tensors = adapter_parts(adapter(seed=rng.randrange(99)))
        spoil(metadata, tensors, rng.choice([name for name in tensors if name.endswith("_a")])[:-7])
        cases.append(Case(label, write_gguf(metadata, tensors), says))

    for value in (np.nan, np.inf, -np.inf):
        for letter in "ab":
            case(
                f"{value} in {letter}",
                f"{letter.upper()}[1, 1] is {np.float32(value)}",
                lambda m, t, n, v=value, x=letter: t[f"{n}.lora_{x}"].__setitem__((1, 1), v),
            )
    for key in ("general.type", "adapter.type", "general.architecture"):
        case(f"no {key}", f"key {key!r} is missing", lambda m, t, n, k=key: m.pop(k))
        case(
            f"wrong {key}", f"key {key!r} is 5 (int), str", lambda m, t, n, k=key: m.update({k: 5})
        )
    case(
        "a model",
        "a LoRA adapter has 'adapter'",
        lambda m, t, n: m.update({"general.type": "model"}),
    )
    case("another kind", "has 'lora'", lambda m, t, n: m.update({"adapter.type": "ia3"}))
    for value in (np.float32(np.nan), np.float32(np.inf), "16", [], True):
        case(
            f"alpha {value}",
            "key 'adapter.lora.alpha' is ",
            lambda m, t, n, v=value: m.update({"adapter.lora.alpha": v}),
        )
    activated = {"adapter.alora.invocation_tokens": np.arange(3, dtype=np.uint32)}
    case("activated", "activated LoRA", lambda m, t, n: m.update(activated))
    for letter, other in ("ab", "ba"):
        case(
            f"no {letter}",
            f"lora_{other} without lora_{letter}",
            lambda m, t, n, x=letter: t.pop(f"{n}.lora_{x}"),
        )
        case(
            f"{letter} of three dimensions",
            "(r, n_in), (n_out, r) expected",
            lambda m, t, n, x=letter: t.update({f"{n}.lora_{x}": np.ones((1, 2, 2), np.float32)}),
        )
        case(
            f"{letter} as integers",
            "is I32; F32 and F16 are read",
            lambda m, t, n, x=letter: t.update({f"{n}.lora_{x}": np.ones((2, 2), np.int32)}),
        )
        case(
            f"{letter} transposed",
            "(r, n_in), (n_out, r) expected",
            lambda m, t, n, x=letter: t.update({f"{n}.lora_{x}": t[f"{n}.lora_{x}"].T}),
        )
    case("other rank", "one rank for all is supported", lambda m, t, n: t.update(pair(n, 3, 6, 8)))
    case(
        "embedding", "token embedding", lambda m, t, n: t.update(pair("token_embd.weight", 2, 9, 6))
    )
    case("none", "no adapter tensors", lambda m, t, n: t.clear())
    for suffix in ("bias", "lora_c", "lora_magnitude", "lora_A", "weight"):
        case(
            f"suffix {suffix}",
            "ends in neither .lora_a nor .lora_b",
            lambda m, t, n, s=suffix: t.update({f"{n}.{s}": np.ones((2, 2), np.float32)}),
        )
    return cases


def pair(base: str, rank: int, n_in: int, n_out: int) -> dict[str, np.ndarray]:
    a, b = np.ones((rank, n_in), np.float32), np.ones((n_out, rank), np.float32)
    return {f"{base}.lora_a": a, f"{base}.lora_b": b}


def peft_files(a: Adapter | None = None) -> dict[str, bytes]:
    return write_adapter_peft(a or adapter(), base_name=None, n_head=2, n_head_kv=1)


def safetensors(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    """A safetensors file by hand: `header` is JSON text, or what becomes it."""
    head = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(head) if length is None else length) + head + data


def bad_safetensors(rng: random.Random) -> list[Case]:
    """Broken files of tensors: first those that are no safetensors at all, then unfit adapters."""
    whole = peft_files()["adapter_model.safetensors"]
    cases = truncated(rng, whole, len(whole), 12)
    for huge in (len(whole), *HUGE):
        cases.append(Case("length", safetensors({}, length=huge), f"header of {huge} bytes"))
    good = {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}

    def case(says: str, data: int = 24, **changes: Any) -> None:
        cases.append(Case(str(changes), safetensors({"t": good | changes}, bytes(data)), says))

    for dtype in ("F8_E4M3", "f32", "", 5, None, ["F32"], "C64"):
        case("known are BOOL, U8", dtype=dtype)
    for shape in ([-1, 3], [2.0, 3], None, [True, 24], "23", [1] * 9, {"a": 1}, [2**63]):
        case("at most 8 integers", shape=shape)
    for offsets in ([24, 0], [0], [0, 24, 24], [-24, 0], None, [0, 2**64], [0.0, 24.0]):
        case("[begin, end] expected", data_offsets=offsets)
    for shape in ([2, 4], [2**31, 2**31], [2**62, 2**62, 2**62], [6, 0]):
        case("24 bytes, ", shape=shape)
    case("data_offsets end at 24, the file's data at 23", 23)
    case("1 bytes after the last tensor", 25)
    case("leaves a gap before it, 0 expected", 28, data_offsets=[4, 28])
    two = {"t": good, "u": good | {"data_offsets": [20, 44]}}
    cases.append(Case("overlap", safetensors(two, bytes(44)), "overlaps the tensor before it"))
    for header, says in (
        (b"[]", "a JSON object expected"),
        (b"{", "no valid JSON at line 1, column 2"),
        (b'{"a":1,"a":1}', "'a' stands there twice"),
        (b"\xff{}", "no valid UTF-8 at its byte 0"),
        (b"[" * 100_000, "no usable JSON"),
        (b'{"t":' + b"9" * 5000 + b"}", "no usable JSON"),
        (b'{"t":{"dtype":"F32"}}', "dtype, shape and data_offsets expected"),
        (b'{"t":[]}', "dtype, shape and data_offsets expected"),
        (b'{"__metadata__":{"format":1}}', "an object of strings expected"),
        (b'{"__metadata__":[]}', "an object of strings expected"),
    ):
        cases.append(Case(repr(header[:20]), safetensors(header), says))
    root = "base_model.model.model.layers.0."
    for key, says in (
        (f"{root}self_attn.q_proj.lora_magnitude_vector", "DoRA is not supported"),
        ("base_model.model.model.embed_tokens.lora_embedding_A", "token embedding"),
        (f"{root}self_attn.qkv_proj.lora_A.weight", "of a known module"),
        (f"{root}self_attn.q_proj.lora_A.default.weight", "of a known module"),
        (f"{root}self_attn.q_proj.lora_C.weight", "of a known module"),
        (f"{root}mlp.q_proj.lora_A.weight", "of a known module"),
        ("model.layers.0.self_attn.q_proj.lora_A.weight", "of a known module"),
        (f"{root}self_attn.q_proj.lora_A.weight", "self_attn.q_proj: lora_a without lora_b"),
        ("base_model.model.lm_head.lora_B.weight", "lm_head: lora_b without lora_a"),
        ("\ud800" * 500, "of a known module"),
    ):
        cases.append(Case(key[:60], safetensors({key: good}, bytes(24)), says))
    integers = {f"{root}self_attn.q_proj.lora_A.weight": good | {"dtype": "I32"}}
    cases.append(Case("integers", safetensors(integers, bytes(24)), "is int32; F32, F16 and BF16"))
    rows = {
        f"{root}self_attn.q_proj.lora_A.weight": good,
        f"{root}self_attn.q_proj.lora_B.weight": {
            **good,
            "shape": [3, 2],
            "data_offsets": [24, 48],
        },
    }
    cases.append(Case("rows", safetensors(rows, bytes(48)), "B of 3 rows cannot belong to 2 heads"))
    wrong = struct.pack("<6f", *[0.0] * 5, rng.choice((np.nan, np.inf)))
    cases.append(Case("not finite", safetensors(rows, bytes(24) + wrong), "q_proj: B[2, 1] is "))
    cases.append(Case("none", safetensors({}), "no adapter tensors"))
    return cases


def bad_configs(rng: random.Random) -> list[Case]:
    whole = peft_files()["adapter_config.json"]
    good = json.loads(whole)
    cases = truncated(rng, whole, len(whole) - 2, 10)
    changes: list[tuple[str, Any, str]] = [
        ("r", 3, "r is 3, the tensors have rank 2"),
        *(
            ("r", value, f"r is {value!r}, an integer from 1")
            for value in (0, -1, 2.0, "2", None, True)
        ),
        ("r", 2**40, "an integer from 1 expected"),
        *(
            ("lora_alpha", value, "a number other than 0 that f32 holds expected")
            for value in (
                0,
                0.0,
                "16",
                None,
                float("nan"),
                float("inf"),
                10**400,
                [16],
                True,
                1e-40,
            )
        ),
        *(("use_rslora", value, "true or false expected") for value in (1, "yes", None)),
        *(("peft_type", value, "'LORA' is supported") for value in ("IA3", "ADALORA", 5, ["LORA"])),
        *(("bias", value, "'none' is supported") for value in ("all", "lora_only", True)),
        *(("task_type", value, "'CAUSAL_LM' is supported") for value in ("SEQ_CLS", 1.5)),
        *(("init_lora_weights", value, "is supported") for value in ("pissa", "olora", "loftq")),
        *(
            (key, value, f"{key!r} is {value!r}, which is not supported")
            for key, value in {
                "use_dora": True,
                "rank_pattern": {"q_proj": 4},
                "alpha_pattern": {"q_proj": 4},
                "modules_to_save": ["lm_head"],
                "fan_in_fan_out": True,
                "lora_bias": True,
                "layer_replication": [[0, 2]],
                "trainable_token_indices": [1, 2],
                "alora_invocation_tokens": [5],
                "use_qalora": True,
                "target_parameters": ["experts.w1"],
                "a_field_of_the_future": 1,
            }.items()
        ),
    ]
    for key, value, says in changes:
        cases.append(
            Case(f"{key} {str(value)[:20]}", json.dumps(good | {key: value}).encode(), says)
        )
    for key, says in (("peft_type", "peft_type is missing"), ("r", "r is None")):
        left = {name: value for name, value in good.items() if name != key}
        cases.append(Case(f"no {key}", json.dumps(left).encode(), says))
    surrogate = json.dumps(good | {"\ud800\n": 1}).encode()
    cases += [
        Case("list", b"[]", "a JSON object expected"),
        Case("empty", b"", "no valid JSON at line 1, column 1"),
        Case("text", b"r: 8", "no valid JSON at line 1, column 1"),
        Case("utf-16", whole.decode().encode("utf-16"), "no valid UTF-8 at its byte 0"),
        Case("deep", b'{"r":' + b"[" * 100_000, "no usable JSON"),
        Case("twice", whole.replace(b'"bias"', b'"r"'), "'r' stands there twice"),
        Case("strange field", surrogate, "'\\ud800\\n' is 1"),
    ]
    return cases
