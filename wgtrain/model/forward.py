"""The forward pass of every supported architecture, recorded over the engine's operations."""

from collections.abc import Mapping
from dataclasses import dataclass

from wgtrain.engine import ops
from wgtrain.engine.attention import attention, default_attention_scale, rope
from wgtrain.engine.graph import Graph, Tensor, Window
from wgtrain.engine.linear import Adapter, Linear, linear
from wgtrain.engine.ops import Inputs
from wgtrain.model.config import ModelConfig
from wgtrain.model.layers import Layer, QueryScale, Rope
from wgtrain.model.weights import Weights

Trained = Adapter  # what can train at a tensor of a network


@dataclass(frozen=True)
class Network:
    """Everything `forward` reads: shapes, frozen weights, what trains by the tensor it is at, and
    the rotary tables (positions, rotary / 2) of its layers.
    """

    config: ModelConfig
    weights: Weights
    trained: Mapping[str, tuple[Trained, ...]]
    ropes: Mapping[Rope | QueryScale, Window]

    def linear(self, name: str) -> Linear:
        """The linear of the weight `name`."""
        bias = self.weights.vectors.get(f"{name.removesuffix('weight')}bias")
        return Linear(self.weights.matrices[name], bias, self.trained.get(name, ()))

    def vector(self, name: str) -> Window:
        """The weight of a norm."""
        return self.weights.vectors[name]

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
    x = ops.embed(g, inputs.tokens, net.weights.matrices["token_embd.weight"])
    for number, layer in enumerate(config.layers):

        def block(x: Tensor, number: int = number, layer: Layer = layer) -> Tensor:
            with g.scope(f"blk.{number}"):
                return _block(g, net, inputs, x, f"blk.{number}.", layer)

        x = g.checkpoint(block, x) if grad_checkpoint else block(x)
    return ops.rms_norm(g, x, net.vector("output_norm.weight"), config.norm_eps, into=into)


def _block(g: Graph, net: Network, inputs: Inputs, x: Tensor, prefix: str, layer: Layer) -> Tensor:
    config = net.config
    norm = net.vector(f"{prefix}attn_norm.weight")
    h = ops.rms_norm(g, x, norm, config.norm_eps, name="attn_norm")
    q = _rotated(g, net, inputs, h, prefix, "attn_q", config.n_head, layer.rope)
    k = _rotated(g, net, inputs, h, prefix, "attn_k", config.n_head_kv, layer.rope)
    v = _linear(g, net, h, prefix, "attn_v")
    scale = default_attention_scale(config.head_size)
    ranges, heads = inputs.ranges[layer.window], (config.n_head, config.n_head_kv)
    o = attention(g, q, k, v, ranges, *heads, scale, layer.softcap)
    x = ops.add(g, x, _linear(g, net, o, prefix, "attn_output"), "attn_residual")
    norm = net.vector(f"{prefix}ffn_norm.weight")
    h = ops.rms_norm(g, x, norm, config.norm_eps, name="ffn_norm")
    gate, up = _linear(g, net, h, prefix, "ffn_gate"), _linear(g, net, h, prefix, "ffn_up")
    return ops.add(
        g, x, _linear(g, net, ops.swiglu(g, gate, up), prefix, "ffn_down"), "ffn_residual"
    )


def _linear(g: Graph, net: Network, x: Tensor, prefix: str, name: str) -> Tensor:
    return linear(g, x, net.linear(f"{prefix}{name}.weight"), name)


def _rotated(
    g: Graph,
    net: Network,
    inputs: Inputs,
    h: Tensor,
    prefix: str,
    name: str,
    heads: int,
    kind: Rope | None,
) -> Tensor:
    """A query or key projection, normalised per head where the model does so, then rotated."""
    x = _linear(g, net, h, prefix, name)
    norm = f"{prefix}{name}_norm.weight"
    if norm in net.weights.vectors:
        x = ops.rms_norm(g, x, net.vector(norm), net.config.norm_eps, heads, f"{name}_norm")
    if kind is None:
        return x
    how = heads, kind.rotary, kind.interleaved
    return rope(g, x, inputs.positions, net.ropes[kind], *how, f"{name}_rope")
