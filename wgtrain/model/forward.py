"""The forward pass of every supported architecture, recorded over the engine's operations."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from wgtrain.engine import ops
from wgtrain.engine.attention import (
    Cache,
    attention,
    cached_attention,
    rope,
    scale_positions,
)
from wgtrain.engine.graph import Graph, Tensor, Window
from wgtrain.engine.linear import Adapter, Linear, linear, linear_rows
from wgtrain.engine.ops import Inputs
from wgtrain.model.config import ModelConfig
from wgtrain.model.layers import Layer, QueryScale, Rope
from wgtrain.model.weights import Weights

Trained = Adapter  # what can train at a tensor of a network


@dataclass(frozen=True)
class Network:
    """Everything `forward` reads: shapes, frozen weights, what trains by the tensor it is at, and
    the rotary tables (positions, rotary / 2) of its layers. `caches`: of the layers, where keys and
    values stay from step to step; the ranges of the inputs are of their rows then.
    """

    config: ModelConfig
    weights: Weights
    trained: Mapping[str, tuple[Trained, ...]]
    ropes: Mapping[Rope | QueryScale, Window]
    caches: Sequence[Cache] = ()

    def linear(self, name: str) -> Linear:
        """The linear of the weight `name`."""
        bias = self.weights.vectors.get(f"{name.removesuffix('weight')}bias")
        return Linear(self.weights.matrices[name], bias, self.trained.get(name, ()))

    @property
    def head(self) -> Linear:
        """What makes logits of hidden states."""
        return self.linear(self.config.head_name)


def forward(
    g: Graph,
    net: Network,
    inputs: Inputs,
    grad_checkpoint: bool = False,
    into: Window | None = None,
) -> Tensor:
    """Tokens (T,) -> normalised hidden states (T, D), of which the head makes logits.

    `into`: where to leave them for another program.
    """
    config = net.config
    embedding = net.weights.matrices["token_embd.weight"]
    x = ops.embed(g, inputs.tokens, embedding, config.embedding_scale)
    for number, layer in enumerate(config.layers):

        def block(x: Tensor, number: int = number, layer: Layer = layer) -> Tensor:
            with g.scope(f"blk.{number}"):
                return _Block(g, net, inputs, number, layer).forward(x)

        x = g.checkpoint(block, x) if grad_checkpoint else block(x)
    if config.logit_scale == 1:
        return _norm(g, net, x, "output_norm", into=into)
    return ops.scale(g, _norm(g, net, x, "output_norm"), 1 / config.logit_scale, into=into)


def _norm(
    g: Graph,
    net: Network,
    x: Tensor,
    name: str,
    groups: int = 1,
    into: Window | None = None,
) -> Tensor:
    """The norm of that name, of rows or of `groups` equal parts of them."""
    weight, eps = net.weights.vectors[f"{name}.weight"], net.config.norm_eps
    last = name.rpartition(".")[2]
    if net.config.row.layer_norm:
        bias = net.weights.vectors.get(f"{name}.bias")
        return ops.layer_norm(g, x, weight, bias, eps, groups, last, into)
    return ops.rms_norm(g, x, weight, eps, groups, last, into)


@dataclass(frozen=True)
class _Block:
    """One block: attention and a feed-forward network, each added to what comes in."""

    g: Graph
    net: Network
    inputs: Inputs
    number: int
    layer: Layer

    @property
    def prefix(self) -> str:
        """What the names of its tensors begin with."""
        return f"blk.{self.number}."

    def forward(self, x: Tensor) -> Tensor:
        """x (T, D) -> (T, D)."""
        factor = self.net.config.residual_scale
        h = self.normed(x, "attn_norm")
        attended = self.normed(self.attention(h), "post_attention_norm")
        y = ops.add(self.g, x, attended, "attn_residual", factor)
        if self.net.config.parallel:
            return ops.add(self.g, y, self.feed_forward(h), "ffn_residual", factor)
        made = self.normed(self.feed_forward(self.normed(y, "ffn_norm")), "post_ffw_norm")
        return ops.add(self.g, y, made, "ffn_residual", factor)

    def normed(self, x: Tensor, name: str, groups: int = 1) -> Tensor:
        """Through a norm, where the model has it."""
        if f"{self.prefix}{name}.weight" not in self.net.weights.vectors:
            return x
        return _norm(self.g, self.net, x, f"{self.prefix}{name}", groups)

    def attention(self, h: Tensor) -> Tensor:
        """h (T, D) -> (T, D)."""
        config, layer = self.net.config, self.layer
        heads = config.n_head, config.n_head_kv
        if self.has("attn_qkv"):
            q, k, v = self.parts("attn_qkv", h, ("attn_q", "attn_k", "attn_v"))
            q, k = self.turned(q, "attn_q", heads[0]), self.turned(k, "attn_k", heads[1])
        else:
            q = self.turned(self.linear("attn_q", h), "attn_q", heads[0])
            k = self.turned(self.linear("attn_k", h), "attn_k", heads[1])
            v = self.linear("attn_v", h)
        ranges = self.inputs.ranges[layer.window]
        how = *heads, config.attention_scale, layer.softcap
        if self.net.caches:
            cache = self.net.caches[self.number]
            o = cached_attention(self.g, q, k, v, cache, ranges.keys, *how)
        else:
            o = attention(self.g, q, k, v, ranges, *how)
        return self.linear("attn_output", o)

    def turned(self, x: Tensor, name: str, heads: int) -> Tensor:
        """A query or key projection, normalised where the model does so, then rotated."""
        layer, ropes, positions = self.layer, self.net.ropes, self.inputs.positions
        x = self.normed(x, f"{name}_norm", 1 if self.net.config.row.wide_qk_norm else heads)
        if (kind := layer.rope) is not None:
            how = heads, kind.rotary, kind.interleaved
            x = rope(self.g, x, positions, ropes[kind], *how, f"{name}_rope")
        grown = layer.query_scale if name == "attn_q" else None
        if grown is not None and grown in ropes:
            x = scale_positions(self.g, x, positions, ropes[grown], "attn_q_scale")
        return x

    def feed_forward(self, h: Tensor) -> Tensor:
        """h (T, D) -> (T, D)."""
        g, row = self.g, self.net.config.row
        if not row.gated:
            return self.linear("ffn_down", ops.gelu(g, self.linear("ffn_up", h)))
        if row.fused_gate:
            gate, up = self.parts("ffn_up", h, ("ffn_gate", "ffn_up"))
        else:
            gate, up = self.linear("ffn_gate", h), self.linear("ffn_up", h)
        act = ops.swiglu if row.activation == "silu" else ops.geglu
        return self.linear("ffn_down", act(g, gate, up))

    def has(self, name: str) -> bool:
        """Whether the block has this linear."""
        return f"{self.prefix}{name}.weight" in self.net.weights.matrices

    def linear(self, name: str, x: Tensor) -> Tensor:
        """x (T, K) -> (T, N)."""
        return linear(self.g, x, self.net.linear(f"{self.prefix}{name}.weight"), name)

    def parts(self, name: str, x: Tensor, names: tuple[str, ...]) -> list[Tensor]:
        """The outputs of a linear that makes several things at once."""
        rows = self.net.config.rows_of_parts[name]
        ranges = [(sum(rows[:i]), count) for i, count in enumerate(rows)]
        of = self.net.linear(f"{self.prefix}{name}.weight")
        return linear_rows(self.g, x, of, ranges, names)
