"""What a model is, in a dozen knobs read from GGUF metadata; everything that is not covered is
refused by name.
"""

from dataclasses import dataclass
from typing import Any

from wgtrain.engine.weight import MATRIX_TYPES
from wgtrain.errors import FileError
from wgtrain.files import GGUF
from wgtrain.files import LINEARS as ALL_LINEARS
from wgtrain.files.architectures import (
    ARCHITECTURES,
    Architecture,
    Key,
    Values,
    find_architecture,
    unusable,
)
from wgtrain.files.source import shown
from wgtrain.model.layers import Layer, Rope

LINEARS = tuple(ALL_LINEARS)  # of a block, in the order of the forward pass


@dataclass(frozen=True)
class ModelConfig:
    """Shapes and switches of one model."""

    architecture: str
    width: int  # D
    layers: tuple[Layer, ...]
    n_head: int  # H
    n_head_kv: int  # K
    head_size: int  # E
    feed_forward: int  # F
    vocabulary: int  # V
    norm_eps: float
    qkv_bias: bool
    qk_norm: bool
    tied_head: bool
    context: int  # positions the model was trained for

    @property
    def n_layer(self) -> int:
        """L."""
        return len(self.layers)

    @property
    def windows(self) -> tuple[int, ...]:
        """The distinct windows of its layers, 0 = whole rows."""
        return tuple(dict.fromkeys(layer.window for layer in self.layers))

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


def read_config(gguf: GGUF) -> ModelConfig:
    """The configuration of a model file; FileError for one that is not covered or not whole."""
    if (kind := gguf.get("general.type", str, "model")) != "model":
        raise FileError(f"{gguf.name}: general.type is {shown(kind)}, not 'model'")
    gguf.get("general.name", str, "")  # of use later, and refused now where it is no text
    row = find_architecture(gguf.get("general.architecture", str), gguf.name)
    if features := _feature_problems(gguf, row):
        raise unusable(gguf.name, features)
    embedding = gguf.tensors.get("token_embd.weight")
    values: Values = {}
    for key in row.keys:
        values[key.field] = _read(gguf, row, key, values)
    if values["n_layer"] > (count := len(gguf.tensors)):
        problem = f"{row.name}.block_count {values['n_layer']}, but the file has {count} tensors"
        raise unusable(gguf.name, [problem])
    config = make_config(
        row,
        values,
        vocabulary=embedding.shape[0] if embedding and len(embedding.shape) == 2 else 0,
        qkv_bias=any(name.endswith("attn_q.bias") for name in gguf.tensors),
        tied_head="output.weight" not in gguf.tensors,
    )
    problems = [*_shape_problems(gguf, config), *_tensor_problems(gguf, config)]
    if values["value_size"] != config.head_size:
        problems.append(
            f"{row.name}.attention.value_length {values['value_size']} differs from key_length "
            f"{config.head_size}, which is not supported"
        )
    if problems:
        raise unusable(gguf.name, problems)
    return config


def make_config(
    row: Architecture, values: Values, *, vocabulary: int, qkv_bias: bool, tied_head: bool
) -> ModelConfig:
    """The configuration of an architecture with numbers by `Key.field`, not checked."""
    rope = Rope(float(values["rope_theta"]), values["rotary"], row.rope_interleaved)
    return ModelConfig(
        architecture=row.name,
        width=values["width"],
        layers=(Layer(rope),) * values["n_layer"],
        n_head=values["n_head"],
        n_head_kv=values["n_head_kv"],
        head_size=values["head_size"],
        feed_forward=values["feed_forward"],
        vocabulary=vocabulary,
        norm_eps=float(values["norm_eps"]),
        qkv_bias=qkv_bias,
        qk_norm=row.qk_norm,
        tied_head=tied_head,
        context=values["context"],
    )


def _is_one_of(value: Any, allowed: tuple[Any, ...]) -> bool:
    """Whether a value from a file is one of these and of its kind; an array never is."""
    kinds = {bool: (bool,), str: (str,)}
    return any(type(value) in kinds.get(type(v), (int, float)) and value == v for v in allowed)


def _read(gguf: GGUF, row: Architecture, key: Key, before: Values) -> int | float:
    """A number of the file, or what it is where the file is silent; FileError for a wrong one."""
    name = f"{row.name}.{key.gguf}"
    if name not in gguf.metadata and key.default is not None:
        return key.default(before)
    value = gguf.get(name, key.kind)
    if not key.allows(value):
        raise FileError(f"{gguf.name}: {name} is {shown(value)}; {key.allowed} is needed")
    return value


def _feature_problems(gguf: GGUF, row: Architecture) -> list[str]:
    """Metadata that is not known, or known to change the mathematics."""
    problems = []
    parts = gguf.metadata.get("split.count", 1)
    if not _is_one_of(parts, (0, 1)):
        problems.append(f"split.count = {shown(parts)}: one part of a model; join the parts first")
    for name, value in gguf.metadata.items():
        prefix, _, key = name.partition(".")
        if prefix != row.name or key in row.known:
            continue
        if key not in row.neutral:
            problems.append(
                f"{name} = {shown(value)} is not known, so it may be a feature that is not "
                "supported"
            )
        elif not _is_one_of(value, row.neutral[key]):
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
    rotary = c.layers[0].rope.rotary
    if rotary % 2 or rotary > c.head_size:
        problems.append(
            f"{prefix}.rope.dimension_count {rotary} is not an even number up to {c.head_size}"
        )
    if ARCHITECTURES[prefix].biases and not c.qkv_bias:
        problems.append(f"tensor blk.0.attn_q.bias is missing, which {prefix} needs")
    return problems


def _tensor_problems(gguf: GGUF, c: ModelConfig) -> list[str]:
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
        f"tensor {shown(name)[1:-1]} is not known for {c.architecture}, so the model has a "
        "feature that is not supported"
        for name in gguf.tensors
        if name not in expected
    ]
    return problems
