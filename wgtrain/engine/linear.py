"""A linear: a frozen weight, a bias, and what adapters add. One serves blocks and, over a range of
rows, chunks of the head.

T tokens, N outputs, K inputs.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from wgtrain.engine.graph import Graph, Tensor, Window
from wgtrain.engine.products import Fused, Rows, fuses, product, product_backward
from wgtrain.engine.weight import Weight


class Adapter(Protocol):
    """What stands beside a linear's weight and adds to its output: see `lora.py` for one."""

    @property
    def trains(self) -> bool:
        """Whether its gradients are wanted."""

    def apply(self, g: Graph, x: Tensor, name: str, keep: bool) -> "AppliedAdapter":
        """Records what it makes of x (T, K) before any product; `keep` as in `Linear.apply`."""


class AppliedAdapter(Protocol):
    """An adapter at one x. Of a pass over a linear's outputs it sees all rows, or ranges of them
    in order.
    """

    def fused(self) -> Fused | None:
        """A product that the base product may take along: a part of what it adds to y."""

    def add(self, g: Graph, y: Tensor | Window, rows: Rows, taken: bool) -> None:
        """y (T, count) += what it adds to those outputs, without `fused` where that was taken."""

    def receive(self, g: Graph, dy: Tensor, rows: Rows) -> Tensor:
        """Gathers of dy (T, count) what the gradients of x and of its parameters take; gives back
        the gradient of x W^T: dy, unless it scales that.
        """

    def fused_input(self) -> Fused | None:
        """A product that dy W may take along: a part of what it adds to dx."""

    def add_input(self, g: Graph, dx: Tensor, taken: bool) -> None:
        """dx += what it adds there, once all rows were received; without what was taken."""

    def gradient_rows(self, g: Graph, x: Tensor, dy: Tensor, rows: Rows) -> None:
        """Adds to the gradients of those of its parameters that have a row for each output; dy is
        what `receive` gave back.
        """

    def gradient_rest(self, g: Graph, x: Tensor) -> None:
        """Adds to the gradients of its other parameters, once all rows were received."""


@dataclass(frozen=True)
class Linear:
    """y = x W^T + b + what the adapters add; `weight` (N, K), `bias` (N,)."""

    weight: Weight
    bias: Window | None = None
    adapters: tuple[Adapter, ...] = ()

    @property
    def rows(self) -> Rows:
        """All of its outputs."""
        return Rows(0, self.weight.rows)

    @property
    def trains(self) -> bool:
        """Whether gradients of an adapter are wanted."""
        return any(adapter.trains for adapter in self.adapters)

    def apply(self, g: Graph, x: Tensor, name: str, keep: bool = False) -> "Applied":
        """Begins with an x (T, K). `keep`: what is made of it stays until the backward pass, which
        follows at once; otherwise the backward pass makes again of x what is large.
        """
        parts = tuple(adapter.apply(g, x, name, keep) for adapter in self.adapters)
        return Applied(self, x, parts)


@dataclass(frozen=True)
class Applied:
    """A linear at one x (T, K); the methods are those of its adapters, and the products with W."""

    linear: Linear
    x: Tensor
    adapters: tuple[AppliedAdapter, ...]

    def forward(self, g: Graph, y: Tensor | Window, rows: Rows) -> None:
        """y (T, count) = the outputs `rows`."""
        weight, bias = self.linear.weight, self.linear.bias
        taken, fused = self._taken(g, [adapter.fused() for adapter in self.adapters])
        product(g, self.x, weight, rows, y, fused, bias)
        for number, adapter in enumerate(self.adapters):
            adapter.add(g, y, rows, number == taken)

    def receive(self, g: Graph, dy: Tensor, rows: Rows) -> Tensor:
        """Hands the gradient of the outputs `rows` to the adapters; gives back that of x W^T."""
        for adapter in self.adapters:
            dy = adapter.receive(g, dy, rows)
        return dy

    def input_gradient(
        self, g: Graph, received: Iterable[tuple[Rows, Tensor]], dx: Tensor, add: bool
    ) -> None:
        """dx (+)= dy W, dy of each range of rows, + what the adapters add, once all are there."""
        taken, fused = self._taken(g, [adapter.fused_input() for adapter in self.adapters])
        for rows, dy in received:
            product_backward(g, dy, self.linear.weight, rows, dx, add, fused)
            add, fused = True, None
        self.add_inputs(g, dx, taken)

    def add_inputs(self, g: Graph, dx: Tensor, taken: int = -1) -> None:
        """dx += what the adapters add; `taken`: whose part is there already."""
        for number, adapter in enumerate(self.adapters):
            adapter.add_input(g, dx, number == taken)

    def gradient_rows(self, g: Graph, x: Tensor, dy: Tensor, rows: Rows) -> None:
        """For the adapters that train."""
        for adapter in self._training():
            adapter.gradient_rows(g, x, dy, rows)

    def gradient_rest(self, g: Graph, x: Tensor) -> None:
        """For the adapters that train."""
        for adapter in self._training():
            adapter.gradient_rest(g, x)

    def _training(self) -> list[AppliedAdapter]:
        pairs = zip(self.linear.adapters, self.adapters, strict=True)
        return [applied for adapter, applied in pairs if adapter.trains]

    def _taken(self, g: Graph, offered: list[Fused | None]) -> tuple[int, Fused | None]:
        """The first part that a product with the weight can take along, after its number or -1."""
        for number, part in enumerate(offered if fuses(self.linear.weight, g.few) else []):
            if part is not None:
                return number, part
        return -1, None


def linear(g: Graph, x: Tensor, of: Linear, name: str = "linear") -> Tensor:
    """x W^T + b + what adapters add; (T, K) -> (T, N)."""
    (y,) = linear_rows(g, x, of, [(0, of.weight.rows)], [name])
    return y


def linear_rows(
    g: Graph,
    x: Tensor,
    of: Linear,
    ranges: Sequence[tuple[int, int]],
    names: Sequence[str],
) -> list[Tensor]:
    """The outputs of a linear as a tensor (T, rows) for each of `ranges` (first, rows), which
    follow each other from 0 to N, each but the last a multiple of 4 long: several linears of one
    weight, beside which adapters are one.
    """
    parts = [Rows(first, count) for first, count in ranges]
    ends = [rows.first + rows.count for rows in parts]
    assert [rows.first for rows in parts] == [0, *ends[:-1]] and ends[-1] == of.weight.rows, ranges
    trains = x.trains or of.trains
    pairs = zip(parts, names, strict=True)
    made = [g.tensor(name, x.rows, rows.count, trains=trains) for rows, name in pairs]
    applied = of.apply(g, x, "+".join(names))
    for rows, y in zip(parts, made, strict=True):
        applied.forward(g, y, rows)
    saved = g.save(x) if of.trains else None

    def vjp(*gradients: Tensor) -> None:
        pairs = zip(parts, gradients, strict=True)
        received = [(rows, applied.receive(g, dy, rows)) for rows, dy in pairs]
        if x.trains:
            applied.input_gradient(g, received, *g.gradient(x))
        if saved:
            kept = saved()
            for rows, dy in received:
                applied.gradient_rows(g, kept, dy, rows)
            applied.gradient_rest(g, kept)

    g.on_backward(made, vjp)
    return made
