"""What a row of the table of architectures holds: how GGUF and Hugging Face spell a model's tensors
and numbers, and in which order rows lie.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from wgtrain.files.gguf_parser import F32_MAX, F32_MIN

MAX_COUNT = (1 << 24) - 1
HEAD = "output"  # GGUF's name of the output head, `lm_head` elsewhere
ANYTHING: Any = object()  # among neutral values: all are
Values = dict[str, Any]  # by the `field` of a `Key`
NUMBER = "a number above 0 that f32 holds"

# Tensors outside of blocks.
_ENDS = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", HEAD: "lm_head"}
_BLOCK = re.compile(r"blk\.(0|[1-9][0-9]{0,5})\.([a-z_]{1,40})")
_LAYER = re.compile(r"model\.layers\.(0|[1-9][0-9]{0,5})\.([a-z_.]{1,80})")


def is_number(value: Any) -> bool:
    """Whether a value from a file is a `NUMBER`, and of that kind."""
    return type(value) in (int, float) and F32_MIN <= value <= F32_MAX


@dataclass(frozen=True)
class Key:
    """A number of a model: an integer from 1, a float above 0, both from 0 where `zero`; or a flag,
    or one of some `words`.

    `default` makes it of those before it in `Architecture.keys` where a file is silent.
    """

    field: str  # how we call it
    gguf: str  # below the architecture's name
    hf: str = ""  # in config.json, where a value stands there as it is
    kind: type[int] | type[float] | type[bool] | type[str] = int
    default: Callable[[Values], Any] | None = None
    zero: bool = False
    words: tuple[str, ...] = ()

    @property
    def allowed(self) -> str:
        """In words."""
        if self.kind is str:
            return f"one of {', '.join(self.words)}"
        if self.kind is bool:
            return "true or false"
        if self.kind is int:
            return f"an integer from {0 if self.zero else 1} to {MAX_COUNT}"
        return f"{'0 or ' if self.zero else ''}{NUMBER}"

    def allows(self, value: Any) -> bool:
        """Whether a value from a file is of its kind and size."""
        if self.kind is str:
            return type(value) is str and value in self.words
        if self.kind is bool:
            return type(value) is bool
        if self.zero and type(value) in (int, float) and value == 0:
            return True
        if self.kind is int:
            return type(value) is int and 1 <= value <= MAX_COUNT
        return is_number(value)


@dataclass(frozen=True)
class Architecture:
    """A row of the table. Tensors are told by GGUF's name in a block -> Hugging Face's module, in
    the order of the forward pass.
    """

    name: str  # general.architecture
    model_type: str  # of config.json, whose transformers class fits all its models
    linears: Mapping[str, str]
    norms: Mapping[str, str]
    keys: tuple[Key, ...]  # the numbers that are read
    neutral: Mapping[str, tuple[Any, ...]]  # other keys -> values under which they do nothing
    rope_interleaved: bool  # rotary pairs are neighbours, else half a width apart
    permuted: tuple[str, ...] = ()  # linears whose rows, and biases, a converter reorders by heads
    biases: tuple[str, ...] = ()  # linears that must have one
    may_bias: tuple[str, ...] = ()  # linears that have one in all blocks or in none
    may_norm: tuple[str, ...] = ()  # norms that are in all blocks or in none
    shared_mlp: bool = False  # another class of its models has gate and up in `shared_mlp`
    layer_norm: bool = False  # norms subtract the mean and, but for those of heads, have a bias
    norm_plus_one: bool = False  # a file's norms are 1 + those of transformers
    wide_qk_norm: bool = False  # q and k are normalised as whole rows, else head by head
    activation: str = "silu"  # or "gelu", by tanh
    embedding_by_width: bool = False  # embeddings times the root of the width
    window_pattern: int = 0  # all layers but every such one have windows; 0 = all have
    local_rope_plain: bool = False  # layers with a window do not take part in scaled rotations
    no_rope_every: int = 0  # every such layer has no rotation
    head: str = "any"  # "tied": never a tensor of its own; "own": always
    ollama: Mapping[str, float] = field(default_factory=dict)  # what its files leave unsaid
    width_scaled_layers: int = 0  # a model of so many layers scales scores by width / heads

    @property
    def gated(self) -> bool:
        """Whether the feed-forward network has a gate: `ffn_gate`, or half the rows of `ffn_up`."""
        return "ffn_gate" in self.linears or self.fused_gate

    @property
    def fused_gate(self) -> bool:
        """Whether the rows of `ffn_up` are those of a gate, then as many of its own."""
        return self.linears["ffn_up"].endswith("gate_up_proj")

    @property
    def known(self) -> frozenset[str]:
        """The metadata keys, below its name, that are read."""
        return frozenset(key.gguf for key in self.keys)

    def reads(self, number: str) -> bool:
        """Whether one of its keys has this `field`."""
        return any(key.field == number for key in self.keys)

    def complete(self, given: Values) -> Values:
        """Numbers with those that are not given at what they are where a file is silent."""
        values = dict(given)
        for key in self.keys:
            if key.field not in values and key.default is not None:
                values[key.field] = key.default(values)
        return values

    def block_linears(self, fused: bool) -> dict[str, str]:
        """The linears of a block in a file, where `fused` q, k and v are one, `attn_qkv`."""
        if not fused or "attn_q" not in self.linears:
            return dict(self.linears)
        rest = {k: v for k, v in self.linears.items() if k not in ("attn_q", "attn_k", "attn_v")}
        return {"attn_qkv": "self_attn.qkv_proj", **rest}

    def hf_module(self, stem: str) -> str | None:
        """The Hugging Face module of a tensor, both without `.weight` or `.bias`:
        "blk.3.attn_q" -> "model.layers.3.self_attn.q_proj"; None for one it does not have.
        """
        if stem in _ENDS:
            return _ENDS[stem]
        match = _BLOCK.fullmatch(stem)
        module = match and {**self.linears, **self.norms}.get(match[2])
        return f"model.layers.{match[1]}.{module}" if match and module else None

    def gguf_stem(self, module: str) -> str | None:
        """The inverse of `hf_module`."""
        for ours, theirs in _ENDS.items():
            if module == theirs:
                return ours
        match = _LAYER.fullmatch(module)
        for ours, theirs in {**self.linears, **self.norms}.items():
            if match and match[2] == theirs:
                return f"blk.{match[1]}.{ours}"
        return None

    def gguf_tensor(self, key: str) -> str | None:
        """The GGUF name of a tensor of a Hugging Face folder; None for one it does not have."""
        module, _, kind = key.rpartition(".")
        stem = self.gguf_stem(module)
        if stem is None or kind not in ("weight", "bias"):
            return None
        if kind == "bias" and not self.has_bias(stem.rpartition(".")[2]):
            return None
        return f"{stem}.{kind}"

    def has_bias(self, name: str) -> bool:
        """Whether a linear or norm, without its block, has a bias or may have one."""
        if name in self.biases + self.may_bias:
            return True
        normed = name == "output_norm" or (name in self.norms and "_q_" not in name)
        return self.layer_norm and normed and "_k_" not in name

    def heads(self, linear: str, n_head: int, n_head_kv: int) -> int:
        """By how many heads the rows of a linear are reordered; 0 where both worlds agree."""
        if linear not in self.permuted:
            return 0
        return n_head if linear == "attn_q" else n_head_kv
