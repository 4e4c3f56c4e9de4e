"""What a model is, in a few dozen knobs read from GGUF metadata."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from wgtrain.engine.attention import default_attention_scale
from wgtrain.files import GGUF
from wgtrain.files import LINEARS as ALL_LINEARS
from wgtrain.files.architecture import Architecture, Values
from wgtrain.files.architectures import ARCHITECTURES, find_architecture, unusable
from wgtrain.files.fused import PARTS, QKV
from wgtrain.model.covered import (
    check_kind,
    feature_problems,
    notes_on,
    read_values,
    shape_problems,
    tensor_problems,
)
from wgtrain.model.layers import Layer
from wgtrain.model.positions import make_layers

LINEARS = tuple(ALL_LINEARS)  # of any block, in the order of the forward pass


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
    optional: frozenset[str]  # of the tensors that a block may have, those that it has
    tied_head: bool
    context: int  # positions the model was trained for
    attention_scale: float  # of scores
    embedding_scale: float = 1.0
    residual_scale: float = 1.0  # of what a branch adds
    logit_scale: float = 1.0  # logits are divided by it
    softcap: float = 0.0  # of logits, 0 = none
    notes: tuple[str, ...] = ()  # what a person is told of the file

    @property
    def row(self) -> Architecture:
        """The row of the table of architectures."""
        return ARCHITECTURES[self.architecture]

    @property
    def n_layer(self) -> int:
        """L."""
        return len(self.layers)

    @property
    def windows(self) -> tuple[int, ...]:
        """The distinct windows of its layers, 0 = whole rows."""
        return tuple(dict.fromkeys(layer.window for layer in self.layers))

    @property
    def parallel(self) -> bool:
        """Whether the feed-forward network sees what attention sees, not what that makes."""
        return "ffn_norm" in self.row.may_norm and "ffn_norm.weight" not in self.optional

    @property
    def head_name(self) -> str:
        """The tensor that makes logits."""
        return "token_embd.weight" if self.tied_head else "output.weight"

    @property
    def block_linears(self) -> dict[str, str]:
        """GGUF name -> Hugging Face module of the linears of a block, in the order of the forward
        pass.
        """
        return self.row.block_linears("attn_qkv.weight" in self.optional)

    @property
    def apart_biases(self) -> bool:
        """Whether the file has the bias of `attn_qkv` as those of q, k and v."""
        apart = any(f"{part}.bias" in self.optional for part in PARTS)
        return apart and f"{QKV}.weight" in self.optional and f"{QKV}.bias" not in self.optional

    @property
    def rows_of_parts(self) -> dict[str, tuple[int, ...]]:
        """The rows of the parts of linears that make several things at once."""
        q, kv = self.n_head * self.head_size, self.n_head_kv * self.head_size
        parts: dict[str, tuple[int, ...]] = {"attn_qkv": (q, kv, kv)}
        if self.row.fused_gate:
            parts["ffn_up"] = (self.feed_forward, self.feed_forward)
        return parts

    def _linear_shapes(self) -> dict[str, tuple[int, int]]:
        q, kv = self.n_head * self.head_size, self.n_head_kv * self.head_size
        up = self.feed_forward * (2 if self.row.fused_gate else 1)
        shapes = {
            "attn_q": (q, self.width),
            "attn_k": (kv, self.width),
            "attn_v": (kv, self.width),
            "attn_qkv": (q + 2 * kv, self.width),
            "attn_output": (self.width, q),
            "ffn_gate": (self.feed_forward, self.width),
            "ffn_up": (up, self.width),
            "ffn_down": (self.width, self.feed_forward),
        }
        return {name: shapes[name] for name in self.block_linears}

    def linears(self) -> dict[str, tuple[int, int]]:
        """Every linear of the blocks, GGUF name -> (outputs, inputs), in the order of the forward
        pass.
        """
        return {
            f"blk.{layer}.{name}.weight": shape
            for layer in range(self.n_layer)
            for name, shape in self._linear_shapes().items()
        }

    def vectors(self) -> dict[str, int]:
        """Every norm weight and bias, name -> length."""
        row, block = self.row, {}
        for norm in row.norms:
            if norm not in row.may_norm or f"{norm}.weight" in self.optional:
                block[f"{norm}.weight"] = self._norm_length(norm)
                if row.has_bias(norm):
                    block[f"{norm}.bias"] = self.width
        for name, (rows, _) in self._linear_shapes().items():
            has_bias = name in row.biases or f"{name}.bias" in self.optional
            if has_bias or (name == QKV and self.apart_biases):
                block[f"{name}.bias"] = rows
        found = {"output_norm.weight": self.width}
        if row.has_bias("output_norm"):
            found["output_norm.bias"] = self.width
        for layer in range(self.n_layer):
            found |= {f"blk.{layer}.{name}": length for name, length in block.items()}
        return found

    def stored(self, vector: str) -> dict[str, int]:
        """The tensors of the file, name -> length, that are a vector of `vectors` in this order."""
        block, found, _ = vector.rpartition(f"{QKV}.bias")
        if found and self.apart_biases:
            rows = self.rows_of_parts[QKV]
            return {f"{block}{part}.bias": n for part, n in zip(PARTS, rows, strict=True)}
        return {vector: self.vectors()[vector]}

    def _norm_length(self, norm: str) -> int:
        if norm not in ("attn_q_norm", "attn_k_norm"):
            return self.width
        heads = self.n_head if norm == "attn_q_norm" else self.n_head_kv
        return self.head_size * (heads if self.row.wide_qk_norm or self.row.layer_norm else 1)

    def matrices(self) -> dict[str, tuple[int, int]]:
        """Every matrix, name -> (rows, columns)."""
        ends = {"token_embd.weight": (self.vocabulary, self.width)}
        if not self.tied_head:
            ends["output.weight"] = (self.vocabulary, self.width)
        return ends | self.linears()


def read_config(gguf: GGUF) -> ModelConfig:
    """The configuration of a model file; FileError for one that is not covered or not whole."""
    check_kind(gguf)
    gguf.get("general.name", str, "")  # of use later, and refused now where it is no text
    row = find_architecture(gguf.get("general.architecture", str), gguf.name)
    if features := feature_problems(gguf, row):
        raise unusable(gguf.name, features)
    values = read_values(gguf, row)
    if values["n_layer"] > (count := len(gguf.tensors)):
        problem = f"{row.name}.block_count {values['n_layer']}, but the file has {count} tensors"
        raise unusable(gguf.name, [problem])
    if problems := shape_problems(gguf, row, values):
        raise unusable(gguf.name, problems)
    embedding = gguf.tensors.get("token_embd.weight")
    config = make_config(
        row,
        values,
        vocabulary=embedding.shape[0] if embedding and len(embedding.shape) == 2 else 0,
        optional=optional_tensors(row, gguf.tensors),
        factors=gguf.numbers,
        tied_head=row.head == "tied" or (row.head == "any" and "output.weight" not in gguf.tensors),
        notes=(*gguf.notes, *notes_on(gguf, row, values)),
    )
    vectors = {name: n for vector in config.vectors() for name, n in config.stored(vector).items()}
    problems = tensor_problems(gguf, row, values, config.matrices(), vectors)
    ropes = dict.fromkeys(layer.rope for layer in config.layers if layer.rope)
    problems += [
        f"{row.name}.rope.*: freq_base {rope.theta:g} with the factors given makes angles or "
        "factors that are no numbers f32 holds"
        for rope in ropes
        if not rope.usable
    ]
    scales = dict.fromkeys(layer.query_scale for layer in config.layers if layer.query_scale)
    problems += [
        f"{row.name}.attention.temperature_scale {scale.beta:g} makes factors that are no numbers "
        "f32 holds"
        for scale in scales
        if not scale.usable
    ]
    if problems:
        raise unusable(gguf.name, problems)
    return config


def optional_tensors(row: Architecture, tensors: Iterable[str]) -> frozenset[str]:
    """Of the tensors that blocks may have, without their block, those that any block has."""
    may = {f"{name}.bias" for name in row.may_bias} | {f"{name}.weight" for name in row.may_norm}
    may |= {f"{QKV}.weight", f"{QKV}.bias"}
    found = {name.split(".", 2)[2] for name in tensors if name.count(".") == 3}
    if f"{QKV}.weight" in found:
        may |= {f"{part}.bias" for part in PARTS}
    return frozenset(name for name in found if name in may)


def make_config(
    row: Architecture,
    given: Values,
    *,
    vocabulary: int,
    optional: frozenset[str] = frozenset(),
    tied_head: bool,
    factors: Mapping[str, np.ndarray] | None = None,
    notes: tuple[str, ...] = (),
) -> ModelConfig:
    """The configuration of an architecture with numbers by `Key.field`, not checked; those that are
    not given are what they are where a file is silent.
    """
    values = row.complete(given)
    layers = make_layers(row, values, factors or {})
    return ModelConfig(
        architecture=row.name,
        width=values["width"],
        layers=layers,
        n_head=values["n_head"],
        n_head_kv=values["n_head_kv"],
        head_size=values["head_size"],
        feed_forward=values["feed_forward"],
        vocabulary=vocabulary,
        norm_eps=float(values["norm_eps"]),
        optional=optional,
        tied_head=tied_head,
        context=values["context"],
        attention_scale=_attention_scale(row, values),
        embedding_scale=_embedding_scale(row, values),
        residual_scale=values.get("residual_scale") or 1.0,
        logit_scale=values.get("logit_scale") or 1.0,
        softcap=values.get("final_softcap", 0.0),
        notes=notes,
    )


def _attention_scale(row: Architecture, values: Values) -> float:
    if given := values.get("score_scale") or values.get("attention_scale"):
        return float(given)
    if row.width_scaled_layers == values["n_layer"]:
        return math.sqrt(values["n_head"] / values["width"])
    return default_attention_scale(values["head_size"])


def _embedding_scale(row: Architecture, values: Values) -> float:
    if row.embedding_by_width:
        return math.sqrt(values["width"])
    return values.get("embedding_scale") or 1.0
