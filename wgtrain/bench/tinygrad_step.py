"""A LoRA step of a Llama by tinygrad on its WebGPU back end: a process of its own.

Everything stays in the file's order of rows: rotary pairs are neighbours. The step is captured by
tinygrad's own JIT, which replays it from the third time on.
"""

import time
from importlib import metadata
from typing import Any

import numpy as np

from wgtrain.bench.child import LEARNING_RATE, MAX_GRAD_NORM, serve
from wgtrain.bench.shapes import Shape
from wgtrain.bench.weights import RandomWeights


class TinygradStep:
    """`child.Stepper` over tinygrad."""

    def __init__(self, shape: Shape, job: dict[str, Any]):
        from tinygrad import Device, Tensor, TinyJit
        from tinygrad.nn.optim import AdamW

        assert Device.DEFAULT == "WEBGPU", Device.DEFAULT
        self._tensor, self._shape = Tensor, shape
        source = RandomWeights(shape)
        names = [*shape.config.matrices(), *shape.config.vectors()]
        self._base = {n: self._frozen(source.values(n)) for n in names}
        self._adapter = {
            name: tuple(Tensor(x).realize().is_param_() for x in pair)
            for name, pair in shape.adapter().items()
        }
        turned = shape.config.layers[0].rope
        assert turned, "a shape's layers have rotary embeddings"
        table = turned.table(shape.length)
        self._rope = self._frozen(np.ascontiguousarray(table[None, :, None]))
        stream = shape.stream()
        self._tokens = self._frozen(np.ascontiguousarray(stream[:, :-1]))
        self._targets = self._frozen(np.ascontiguousarray(stream[:, 1:]))
        self._trained = [x for pair in self._adapter.values() for x in pair]
        self._optimizer = AdamW(
            self._trained, lr=LEARNING_RATE, b1=0.9, b2=0.999, eps=1e-8, weight_decay=0.0
        )
        self._step = TinyJit(self._eager)
        versions = {name: metadata.version(name) for name in ("tinygrad", "dawn-python")}
        self.about = {"versions": versions, "device": "WEBGPU", "dtype": "float32"}

    def _frozen(self, values: np.ndarray) -> Any:
        return self._tensor(values).realize().is_param_(False)

    def steps(self, count: int) -> dict[str, float]:
        found = []
        began = time.perf_counter()
        for _ in range(count):
            loss, norm = self._step()
            found.append((loss.item(), norm.item()))
        seconds = (time.perf_counter() - began) / count
        return {"seconds": seconds, "loss": found[0][0], "grad_norm": found[0][1]}

    def _eager(self) -> tuple[Any, Any]:
        self._optimizer.zero_grad()
        loss = self._logits().flatten(0, 1).sparse_categorical_crossentropy(self._targets.flatten())
        loss.backward()
        squares = [p.grad.square().sum() for p in self._trained]
        norm = sum(squares[1:], squares[0]).sqrt()
        factor = (MAX_GRAD_NORM / (norm + 1e-6)).minimum(1.0)
        for p in self._trained:
            p.grad = p.grad * factor
        self._tensor.realize(loss, norm, *self._optimizer.schedule_step())
        return loss, norm

    def _logits(self) -> Any:
        config = self._shape.config
        x = self._base["token_embd.weight"][self._tokens]
        for layer in range(config.n_layer):
            x = self._block(x, f"blk.{layer}.")
        return self._norm(x, "output_norm") @ self._base[config.head_name].T

    def _block(self, x: Any, prefix: str) -> Any:
        config = self._shape.config
        rows, length, _ = x.shape
        h = self._norm(x, f"{prefix}attn_norm")
        q, k, v = (
            self._linear(h, f"{prefix}attn_{name}").reshape(rows, length, heads, config.head_size)
            for name, heads in (
                ("q", config.n_head),
                ("k", config.n_head_kv),
                ("v", config.n_head_kv),
            )
        )
        q, k, v = (t.transpose(1, 2) for t in (self._rotated(q), self._rotated(k), v))
        o = q.scaled_dot_product_attention(k, v, is_causal=True, enable_gqa=True)
        o = o.transpose(1, 2).reshape(rows, length, -1)
        x = x + self._linear(o, f"{prefix}attn_output")
        h = self._norm(x, f"{prefix}ffn_norm")
        gate, up = self._linear(h, f"{prefix}ffn_gate"), self._linear(h, f"{prefix}ffn_up")
        return x + self._linear(gate.silu() * up, f"{prefix}ffn_down")

    def _linear(self, x: Any, name: str) -> Any:
        a, b = self._adapter[f"{name}.weight"]
        scale = self._shape.alpha / self._shape.rank
        return x @ self._base[f"{name}.weight"].T + (x @ a.T) @ b.T * scale

    def _norm(self, x: Any, name: str) -> Any:
        mean = x.square().mean(-1, keepdim=True)
        return x * (mean + self._shape.config.norm_eps).rsqrt() * self._base[f"{name}.weight"]

    def _rotated(self, x: Any) -> Any:
        """x (rows, length, heads, E), neighbours (x0, x1) turned by the table's angles."""
        pairs = x.reshape(*x.shape[:-1], -1, 2)
        x0, x1, cos, sin = pairs[..., 0], pairs[..., 1], self._rope[..., 0], self._rope[..., 1]
        return (x0 * cos - x1 * sin).stack(x0 * sin + x1 * cos, dim=-1).reshape(x.shape)


if __name__ == "__main__":
    serve(TinygradStep)
