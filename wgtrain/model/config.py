"""What a model is, in a dozen knobs read from GGUF metadata; everything that is not covered is
refused by name.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from wgtrain.engine.weight import MATRIX_TYPES
from wgtrain.errors import FileError
from wgtrain.files import GGUF
from wgtrain.files.gguf_parser import F32_MAX, F32_MIN
from wgtrain.files.source import shown

ARCHITECTURES = ("llama", "qwen2", "qwen3")
LINEARS = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
# Metadata that changes the mathematics, and the values under which it does not.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "attention.sliding_window": (0,),
    "attention.max_alibi_bias": (0,),
    "attention.clamp_kqv": (0,),
    "attn_logit_softcapping": (0,),
    "final_logit_softcapping": (0,),
    "attention.scale": (),
    "attention.causal": (True,),
    "expert_count": (0,),
    "expert_used_count": (0,),
    "embedding_scale": (1,),
    "residual_scale": (1,),
    "logit_scale": (1,),
    "pooling_type": (0,),
    "rope.scaling.type": ("none",),
    "rope.scaling.factor": (1, 0),
    "rope.scale_linear": (1, 0),
    "rope.scaling.attn_factor": (1,),
    "use_parallel_residual": (False,),
    "tensor_data_layout": ("Meta AI original pth",),
}
# What `read_config` reads, and what changes nothing.
_KNOWN = {
    *("embedding_length", "block_count", "feed_forward_length", "context_length", "vocab_size"),
    *("attention.head_count", "attention.head_count_kv"),
    *("attention.key_length", "attention.value_length"),
    *("attention.layer_norm_rms_epsilon", "attention.layer_norm_epsilon"),
    *("rope.dimension_count", "rope.freq_base"),
    *("rope.scaling.original_context_length", "rope.scaling.finetuned"),
}


@dataclass(frozen=True)
class ModelConfig:
    """Shapes and switches of one model. `rope_interleaved`: pairs are neighbours, else half a
    width apart.
    """

    architecture: str
    width: int  # D
    n_layer: int  # L
    n_head: int  # H
    n_head_kv: int  # K
    head_size: int  # E
    feed_forward: int  # F
    vocabulary: int  # V
    norm_eps: float
    rope_theta: float
    rotary: int  # rotated values of a head
    rope_interleaved: bool
    qkv_bias: bool
    qk_norm: bool
    tied_head: bool
    context: int  # positions the model was trained for

    @property
    def head_name(self) -> str:
        """The tensor that makes logits."""
        return "token_embd.weight" if self.tied_head else "output.weight"

    def linears(self) -> dict[str, tuple[int, int]]:
        """Every linear of the blocks, GGUF name -> (outputs, inputs), in the order of the forward
        pass.
        """
        q, kv = self.n_head * self.head_size, self.n_head_kv * self.head_size
        attention = [(q, self.width), (kv, self.width), (kv, self.width), (self.width, q)]
        gate = (self.feed_forward, self.width)
        shapes = [*attention, gate, gate, gate[::-1]]
        return {
            f"blk.{layer}.{name}.weight": shape
            for layer in range(self.n_layer)
            for name, shape in zip(LINEARS, shapes, strict=True)
        }

    def vectors(self) -> dict[str, int]:
        """Every norm weight and bias, name -> length."""
        found = {"output_norm.weight": self.width}
        for layer in range(self.n_layer):
            block = {"attn_norm.weight": self.width, "ffn_norm.weight": self.width}
            if self.qkv_bias:
                kv = self.n_head_kv * self.head_size
                block |= {
                    "attn_q.bias": self.n_head * self.head_size,
                    "attn_k.bias": kv,
                    "attn_v.bias": kv,
                }
            if self.qk_norm:
                block |= {
                    "attn_q_norm.weight": self.head_size,
                    "attn_k_norm.weight": self.head_size,
                }
            found |= {f"blk.{layer}.{name}": length for name, length in block.items()}
        return found

    def matrices(self) -> dict[str, tuple[int, int]]:
        """Every matrix, name -> (rows, columns)."""
        ends = {"token_embd.weight": (self.vocabulary, self.width)}
        if not self.tied_head:
            ends["output.weight"] = (self.vocabulary, self.width)
        return ends | self.linears()

    def rope_table(self, positions: int) -> np.ndarray:
        """cos and sin of every angle, float32 (positions, rotary / 2, 2), computed in float64."""
        frequency = self.rope_theta ** (-np.arange(0, self.rotary, 2) / self.rotary)
        angle = np.arange(positions)[:, None] * frequency
        return np.stack([np.cos(angle), np.sin(angle)], -1).astype(np.float32)


def read_config(gguf: GGUF) -> ModelConfig:
    """The configuration of a model file; FileError for one that is not covered or not whole."""
    if (kind := gguf.get("general.type", str, "model")) != "model":
        raise FileError(f"{gguf.name}: general.type is {shown(kind)}, not 'model'")
    gguf.get("general.name", str, "")  # of use later, and refused now where it is no text
    architecture = gguf.get("general.architecture", str)
    if architecture not in ARCHITECTURES:
        raise FileError(
            f"{gguf.name}: general.architecture {shown(architecture)} is not one of "
            f"{', '.join(ARCHITECTURES)}"
        )
    if features := _feature_problems(gguf, architecture):
        raise _unusable(gguf, features)

    def count(key: str, default: int | None = None) -> int:
        name = f"{architecture}.{key}"
        value = gguf.get(name, int) if default is None else gguf.get(name, int, default)
        if not 1 <= value < 1 << 24:
            raise FileError(f"{gguf.name}: {name} is {shown(value)}; 1 to {(1 << 24) - 1} allowed")
        return value

    width, heads = count("embedding_length"), count("attention.head_count")
    kv_heads = count("attention.head_count_kv", heads)
    head_size = count("attention.key_length", max(width // heads, 1))
    value_size = count("attention.value_length", head_size)
    embedding = gguf.tensors.get("token_embd.weight")
    config = ModelConfig(
        architecture=architecture,
        width=width,
        n_layer=count("block_count"),
        n_head=heads,
        n_head_kv=kv_heads,
        head_size=head_size,
        feed_forward=count("feed_forward_length"),
        vocabulary=embedding.shape[0] if embedding and len(embedding.shape) == 2 else 0,
        norm_eps=_positive(gguf, f"{architecture}.attention.layer_norm_rms_epsilon"),
        rope_theta=_positive(gguf, f"{architecture}.rope.freq_base", 10_000.0),
        rotary=count("rope.dimension_count", head_size),
        rope_interleaved=architecture == "llama",
        qkv_bias=any(name.endswith("attn_q.bias") for name in gguf.tensors),
        qk_norm=architecture == "qwen3",
        tied_head="output.weight" not in gguf.tensors,
        context=count("context_length", 1 << 20),
    )
    problems = [*_shape_problems(gguf, config), *_tensor_problems(gguf, config)]
    if value_size != head_size:
        problems.append(
            f"{architecture}.attention.value_length {value_size} differs from key_length "
            f"{head_size}, which is not supported"
        )
    if problems:
        raise _unusable(gguf, problems)
    return config


def _unusable(gguf: GGUF, problems: list[str]) -> FileError:
    more = [f"and {len(problems) - 40} more"] if len(problems) > 40 else []
    return FileError(
        "\n  ".join([f"{gguf.name}: this model cannot be used:", *problems[:40], *more])
    )


def _is_one_of(value: Any, allowed: tuple[Any, ...]) -> bool:
    """Whether a value from a file is one of these and of its kind; an array never is."""
    kinds = {bool: (bool,), str: (str,)}
    return any(type(value) in kinds.get(type(v), (int, float)) and value == v for v in allowed)


def _positive(gguf: GGUF, key: str, default: float | None = None) -> float:
    value = gguf.get(key, float) if default is None else gguf.get(key, float, default)
    if not F32_MIN <= value <= F32_MAX:
        raise FileError(
            f"{gguf.name}: {key} is {value:g}; a number above 0 that f32 holds is needed"
        )
    return float(value)


def _feature_problems(gguf: GGUF, architecture: str) -> list[str]:
    """Metadata that is not known, or known to change the mathematics."""
    problems = []
    parts = gguf.metadata.get("split.count", 1)
    if not _is_one_of(parts, (0, 1)):
        problems.append(f"split.count = {shown(parts)}: one part of a model; join the parts first")
    for name, value in gguf.metadata.items():
        prefix, _, key = name.partition(".")
        if prefix != architecture or key in _KNOWN:
            continue
        if key not in _NEUTRAL:
            problems.append(
                f"{name} = {shown(value)} is not known, so it may be a feature that is not "
                "supported"
            )
        elif not _is_one_of(value, _NEUTRAL[key]):
            problems.append(f"{name} = {shown(value)} is a feature that is not supported")
    return problems


def _shape_problems(gguf: GGUF, c: ModelConfig) -> list[str]:
    prefix = c.architecture
    problems = []
    if c.n_head % c.n_head_kv:
        problems.append(
            f"{prefix}.attention.head_count {c.n_head} is no multiple of "
            f"head_count_kv {c.n_head_kv}"
        )
    if c.head_size % 4:
        problems.append(
            f"{prefix}: head size {c.head_size} is no multiple of 4, which is not supported"
        )
    if c.head_size > 256:
        problems.append(f"{prefix}: head size {c.head_size} is above 256, which is not supported")
    if c.rotary % 2 or c.rotary > c.head_size:
        problems.append(
            f"{prefix}.rope.dimension_count {c.rotary} is not an even number up to {c.head_size}"
        )
    if c.architecture == "qwen2" and not c.qkv_bias:
        problems.append("tensor blk.0.attn_q.bias is missing, which qwen2 needs")
    if c.n_layer > len(gguf.tensors):
        problems.append(
            f"{prefix}.block_count {c.n_layer}, but the file has {len(gguf.tensors)} tensors"
        )
    return problems


def _tensor_problems(gguf: GGUF, c: ModelConfig) -> list[str]:
    if c.n_layer > len(gguf.tensors):
        return []
    matrices, vectors = c.matrices(), c.vectors()
    expected: dict[str, tuple[int, ...]] = {
        **matrices,
        **{name: (n,) for name, n in vectors.items()},
    }
    problems = []
    for name, shape in expected.items():
        tensor = gguf.tensors.get(name)
        if tensor is None:
            problems.append(f"tensor {name} {shape} is missing")
        elif tensor.shape != shape:
            problems.append(f"tensor {name} has shape {tensor.shape}, {shape} is needed")
        elif name in vectors and tensor.type not in ("F32", "F16", "BF16"):
            problems.append(f"tensor {name} has type {tensor.type}; F32, F16 or BF16 is needed")
        elif name in matrices and tensor.type not in MATRIX_TYPES:
            problems.append(
                f"tensor {name} has type {tensor.type}; supported are {', '.join(MATRIX_TYPES)}"
            )
    problems += [
        f"tensor {name} is not known for {c.architecture}, so the model has a feature that is "
        "not supported"
        for name in gguf.tensors
        if name not in expected
    ]
    return problems
