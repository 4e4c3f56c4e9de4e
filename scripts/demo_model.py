"""The demo's base model in plain PyTorch: a small `llama`, with names and layouts of its GGUF file.

Letters: N rows of a batch, S tokens of a row, D width, E head size, R rank.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Shape:
    """Sizes of the model; everything that is a row length is a multiple of 32, for Q8_0."""

    vocab: int
    layers: int = 4
    width: int = 192
    heads: int = 6
    heads_kv: int = 2
    feed_forward: int = 512
    context: int = 256
    rope_theta: float = 10_000.0
    eps: float = 1e-5

    @property
    def head_size(self) -> int:
        return self.width // self.heads


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding over neighbouring pairs, as GGUF's `llama` has it.

    x (N, S, heads, E); cos, sin (S, 1, E/2).
    """
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), -1).flatten(-2)


class Block(nn.Module):
    """One layer: attention and SwiGLU, each behind an RMS norm and added to the stream."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        d, kv = shape.width, shape.heads_kv * shape.head_size
        self.shape = shape
        self.attn_norm = nn.RMSNorm(d, eps=shape.eps)
        self.attn_q = nn.Linear(d, d, bias=False)
        self.attn_k = nn.Linear(d, kv, bias=False)
        self.attn_v = nn.Linear(d, kv, bias=False)
        self.attn_output = nn.Linear(d, d, bias=False)
        self.ffn_norm = nn.RMSNorm(d, eps=shape.eps)
        self.ffn_gate = nn.Linear(d, shape.feed_forward, bias=False)
        self.ffn_up = nn.Linear(d, shape.feed_forward, bias=False)
        self.ffn_down = nn.Linear(shape.feed_forward, d, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """x (N, S, D) -> (N, S, D)."""
        n, s, _ = x.shape
        h = self.attn_norm(x)
        q = rotate(self.attn_q(h).view(n, s, -1, self.shape.head_size), cos, sin)
        k = rotate(self.attn_k(h).view(n, s, -1, self.shape.head_size), cos, sin)
        v = self.attn_v(h).view(n, s, -1, self.shape.head_size)
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        x = x + self.attn_output(y.transpose(1, 2).reshape(n, s, -1))
        h = self.ffn_norm(x)
        return x + self.ffn_down(F.silu(self.ffn_gate(h)) * self.ffn_up(h))


class Model(nn.Module):
    """Tokens to logits; the head is the embedding (tied)."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.token_embd = nn.Embedding(shape.vocab, shape.width)
        self.blk = nn.ModuleList(Block(shape) for _ in range(shape.layers))
        self.output_norm = nn.RMSNorm(shape.width, eps=shape.eps)
        for name, p in self.named_parameters():
            if p.dim() == 2:
                last = name.endswith(("attn_output.weight", "ffn_down.weight"))
                nn.init.normal_(p, std=0.05 / (2 * shape.layers) ** 0.5 if last else 0.05)

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens (N, S) -> hidden states before the head (N, S, D)."""
        e = self.shape.head_size
        frequencies = self.shape.rope_theta ** (-torch.arange(0, e, 2) / e)
        angles = (torch.arange(tokens.shape[1])[:, None] * frequencies)[:, None]
        x = self.token_embd(tokens)
        for block in self.blk:
            x = block(x, angles.cos(), angles.sin())
        return self.output_norm(x)

    def logits(self, hidden: Tensor) -> Tensor:
        return hidden @ self.token_embd.weight.T

    def loss(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """Mean cross-entropy over the targets that are not -1. Both (N, S)."""
        trained = targets >= 0
        return F.cross_entropy(self.logits(self(tokens)[trained]), targets[trained])


def pad(rows: list[list[int]], filler: int) -> Tensor:
    """Rows of unequal length as one rectangle, filled at the right."""
    longest = max(map(len, rows))
    return torch.tensor([row + [filler] * (longest - len(row)) for row in rows])


@torch.no_grad()
def greedy(model: Model, prompts: list[list[int]], max_tokens: int, stop: int) -> list[list[int]]:
    """The likeliest continuation of each prompt, without the stop token."""
    rows = [list(p) for p in prompts]
    running = set(range(len(rows)))
    for _ in range(max_tokens):
        order = sorted(running)
        hidden = model(pad([rows[i] for i in order], 0))
        last = torch.stack([hidden[j, len(rows[i]) - 1] for j, i in enumerate(order)])
        for i, token in zip(order, model.logits(last).argmax(-1).tolist(), strict=True):
            rows[i].append(token)
            if token == stop:
                running.discard(i)
        if not running:
            break
    return [
        [t for t in row[len(prompt) :] if t != stop]
        for row, prompt in zip(rows, prompts, strict=True)
    ]


class LoraLinear(nn.Module):
    """y = W x + (alpha / R) B (A x), W frozen."""

    def __init__(self, base: nn.Linear, rank: int, alpha: float) -> None:
        super().__init__()
        bound = base.in_features**-0.5
        self.base, self.scale = base, alpha / rank
        self.lora_a = nn.Parameter(torch.empty(rank, base.in_features).uniform_(-bound, bound))
        self.lora_b = nn.Parameter(torch.zeros(base.out_features, rank))

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + (x @ self.lora_a.T) @ self.lora_b.T * self.scale


def add_lora(model: Model, rank: int, alpha: float) -> list[nn.Parameter]:
    """Freezes the model, puts an adapter beside each linear of a block; returns what is trained."""
    model.requires_grad_(False)
    trained = []
    for block in model.blk:
        for name, child in list(block.named_children()):
            if isinstance(child, nn.Linear):
                layer = LoraLinear(child, rank, alpha)
                setattr(block, name, layer)
                trained += [layer.lora_a, layer.lora_b]
    return trained
