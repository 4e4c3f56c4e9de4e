"""LoRA: an adapter of two matrices beside a linear.

T tokens, N outputs, K inputs, R rank.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from wgtrain import random
from wgtrain.engine.graph import Graph, Tensor, Window
from wgtrain.engine.ops import dropout
from wgtrain.engine.products import Fused, Rows, accumulate, low_rank, small_nn, small_nt
from wgtrain.engine.trainables import Parameter, Shape


@dataclass(frozen=True)
class Lora:
    """y += scale B (A dropout(x)): A (R, K), B (N, R). `site` numbers its mask."""

    a: Parameter
    b: Parameter
    scale: float
    dropout: float = 0.0
    site: int = 0

    @property
    def trains(self) -> bool:
        """Whether its gradients are wanted."""
        return self.a.gradient is not None

    def apply(self, g: Graph, x: Tensor, name: str, keep: bool) -> "AppliedLora":
        """z = dropout(x) A^T (T, R)."""
        source = self.dropped(g, x)
        z = g.tensor(f"{name}.z", x.rows, self.a.rows)
        small_nt(g, source, self.a, z, Rows(0, self.a.rows), add=False)
        u = g.tensor(f"{name}.u", x.rows, self.a.rows)
        return AppliedLora(self, z, u, source if keep else None)

    def dropped(self, g: Graph, x: Tensor) -> Tensor:
        """dropout(x)."""
        return dropout(g, x, self.dropout, self.site) if self.dropout else x


@dataclass(frozen=True)
class AppliedLora:
    """LoRA at one x: z = dropout(x) A^T, u = dy B, both (T, R); `source` is dropout(x) if kept."""

    lora: Lora
    z: Tensor
    u: Tensor
    source: Tensor | None

    def fused(self) -> Fused:
        """y += s z B^T."""
        return low_rank(self.z, self.lora.b, self.lora.scale)

    def add(self, g: Graph, y: Tensor | Window, rows: Rows, taken: bool) -> None:
        """y += s z B^T."""
        if not taken:
            small_nt(g, self.z, self.lora.b, y, rows, scale=self.lora.scale, add=True)

    def receive(self, g: Graph, dy: Tensor, rows: Rows) -> Tensor:
        """u (+)= dy B."""
        small_nn(g, dy, self.lora.b, self.u, first=rows.first, add=rows.first > 0)
        return dy

    def fused_input(self) -> Fused | None:
        """dx += s u A; a mask keeps it apart."""
        return None if self.lora.dropout else low_rank(self.u, self.lora.a, self.lora.scale)

    def add_input(self, g: Graph, dx: Tensor, taken: bool) -> None:
        """dx += s dropout'(u A)."""
        lora = self.lora
        if taken:
            return
        if not lora.dropout:
            small_nn(g, self.u, lora.a, dx, scale=lora.scale, add=True)
            return
        through = g.tensor("through", dx.rows, dx.cols)
        small_nn(g, self.u, lora.a, through, scale=lora.scale, add=False)
        dropout(g, through, lora.dropout, lora.site, into=dx)

    def gradient_rows(self, g: Graph, x: Tensor, dy: Tensor, rows: Rows) -> None:
        """dB += s dy^T z."""
        assert self.lora.b.gradient is not None
        accumulate(g, dy, self.z, self.lora.b.gradient, self.lora.scale, rows.first)

    def gradient_rest(self, g: Graph, x: Tensor) -> None:
        """dA += s u^T dropout(x)."""
        assert self.lora.a.gradient is not None
        source = self.source or self.lora.dropped(g, x)
        accumulate(g, self.u, source, self.lora.a.gradient, self.lora.scale)


@dataclass(frozen=True)
class LoraKind:
    """LoRA beside the linear whose weight (N, K) is `tensor`; dropout only while it trains."""

    tensor: str
    outputs: int
    inputs: int
    rank: int
    scale: float
    dropout: float = 0.0

    @property
    def shapes(self) -> dict[str, Shape]:
        """A as `.lora_a` (R, K), B as `.lora_b` (N, R)."""
        return {
            f"{self.tensor}.lora_a": (self.rank, self.inputs),
            f"{self.tensor}.lora_b": (self.outputs, self.rank),
        }

    def make(self, parameters: Mapping[str, Parameter]) -> Lora:
        """The adapter; its dropout mask is numbered by a hash of the tensor's name."""
        a, b = (parameters[name] for name in self.shapes)
        site = random.key(0, self.tensor)
        return Lora(a, b, self.scale, self.dropout if a.gradient else 0.0, site)
