"""Adapters at run time: all that are loaded beside a linear are one product of low rank.

T tokens, N outputs, K inputs, R ranks that there is room for, four of which are a quad. An adapter
lies in some quads, the same ones at every linear; which of them count in a product, how much, and
in which order, is one small list that all products read.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np

from wgtrain.engine.graph import Graph, Operand, Storage, Tensor, Window, padded
from wgtrain.engine.products import Fused, Rows, small_nt
from wgtrain.engine.trainables import Arena, Layout, Parameter, Shape
from wgtrain.errors import OutOfMemoryError
from wgtrain.gpu import Device, Limits

QUAD = 4  # ranks
_QUAD_BYTES = 8  # of a quad in the list
Pair = tuple[np.ndarray, np.ndarray]  # A (r, K), B (N, r), float32


class Use(NamedTuple):
    """A quad of ranks that counts in products, and the strength of its adapter."""

    quad: int
    strength: float


class Stacked:
    """Room for adapters of together `quads` quads of ranks, beside linears on one device.

    `groups`: those that read the same x, name -> (N, K) of each, have their A's side by side, so
    that z = x A^T is one product for all of them.
    """

    def __init__(self, groups: Iterable[Mapping[str, Shape]], quads: int, limits: Limits):
        self.quads = quads
        self._groups = [dict(group) for group in groups]
        shapes: dict[str, Shape] = {}
        for group in self._groups:
            (inputs,) = {columns for _, columns in group.values()}
            shapes[_a(group)] = (len(group) * quads * QUAD, inputs)
            shapes |= {_b(name): (quads, rows * QUAD) for name, (rows, _) in group.items()}
        self._layout = Layout(shapes, limits)
        self._arena = Arena(self._layout, "adapters", "adapter")
        self._list = Storage("adapters in use", "adapter", (2 * quads + 1) * _QUAD_BYTES)
        self._device: Device | None = None
        self._filled: set[tuple[str, int]] = set()  # (linear, quad) that may hold other than zeros
        self.beside = {
            name: (adapter,) for group in self._groups for name, adapter in self._made(group)
        }

    @property
    def nbytes(self) -> int:
        """Bytes on the device."""
        return sum(storage.size for storage in self._storages)

    @property
    def _storages(self) -> list[Storage]:
        return [*self._arena.storages, self._list]

    def _made(self, group: Mapping[str, Shape]) -> Iterable[tuple[str, "StackedLora"]]:
        made: WeakKeyDictionary[Tensor, Tensor] = WeakKeyDictionary()
        a = self._parameter(_a(group))
        for number, name in enumerate(group):
            b = self._parameter(_b(name))
            place = self.quads, number * self.quads, group[name][0]
            yield name, StackedLora(a, b.value, self._list.window(), *place, made)

    def _parameter(self, name: str) -> Parameter:
        rows, columns = self._layout.shapes[name]
        return Parameter(name, rows, columns, self._arena.window(name), None)

    def open(self, device: Device) -> None:
        """Allocates; OutOfMemoryError, with nothing left behind, where that does not fit."""
        if device.budget is not None and device.allocated + self.nbytes > device.budget:
            over = device.allocated + self.nbytes - device.budget
            raise OutOfMemoryError(
                f"adapters of {self.quads * QUAD} ranks need {self.nbytes:,} bytes beside "
                f"{device.allocated:,} in use; {device.budget:,} are allowed in all, {over:,} too "
                "few"
            )
        self._device = device
        try:
            for storage in self._storages:
                storage.buffer = device.create_buffer(storage.size, storage.name)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Frees what `open` allocated."""
        for storage in self._storages:
            if storage.buffer is not None and self._device is not None:
                self._device.free(storage.buffer)
            storage.buffer = None
        self._device = None

    def load(self, quads: Sequence[int], pairs: Mapping[str, Pair]) -> None:
        """Queues the writes of an adapter into these quads, in ascending order: its pairs by
        linear, zeros beside the others.
        """
        for group in self._groups:
            for number, name in enumerate(group):
                pair, there = pairs.get(name), {(name, quad) for quad in quads}
                if pair is not None:
                    self._filled |= there  # before the writes, which may be cut short
                    self._write(group, number, name, quads, *_in_quads(*pair, len(quads)))
                elif self._filled & there:
                    (rows, inputs), n = group[name], len(quads)
                    zeros = np.zeros((n * QUAD, padded(inputs)), np.float32)
                    self._write(
                        group, number, name, quads, zeros, np.zeros((n, rows, QUAD), np.float32)
                    )
                    self._filled -= there

    def _write(
        self,
        group: Mapping[str, Shape],
        number: int,
        name: str,
        quads: Sequence[int],
        a: np.ndarray,
        b: np.ndarray,
    ) -> None:
        """A (4 quads, K padded) and B (quads, N, 4), a write for each run of quads."""
        assert self._device is not None
        cuts = [i for i, (one, other) in enumerate(pairwise(quads), 1) if other != one + 1]
        for start, end in pairwise([0, *cuts, len(quads)]):
            for key, values, first in (
                (_a(group), a[start * QUAD : end * QUAD], number * self.quads + quads[start]),
                (_b(name), b[start:end], quads[start]),
            ):
                segment, offset, _ = self._layout.place(key)
                of_quad = values.nbytes // (end - start)
                buffer = self._arena.storages[segment].live
                self._device.write(buffer, offset + first * of_quad, np.ascontiguousarray(values))

    def use(self, uses: Sequence[Use]) -> None:
        """Queues the write of what counts from the next replay on, in order."""
        assert self._device is not None and len(uses) <= self.quads
        self._device.write(self._list.live, 0, use_list(uses, self.quads))


def use_list(uses: Sequence[Use], quads: int) -> np.ndarray:
    """What kernels read of it, uint32 (2 quads + 1, 2): how many count, where each lies and its
    strength, and for every quad whether its columns of z are made.
    """
    content = np.zeros((2 * quads + 1, 2), np.uint32)
    content[0, 0] = len(uses)
    strengths = np.array([use.strength for use in uses], np.float32)
    where = [use.quad for use in uses]
    content[1 : len(uses) + 1, 0] = where
    content[1 : len(uses) + 1, 1] = strengths.view(np.uint32)
    content[[1 + quads + quad for quad in where], 0] = 1
    return content


def _a(group: Mapping[str, Shape]) -> str:
    return f"{'+'.join(group)}.lora_a"


def _b(name: str) -> str:
    return f"{name}.lora_b"


def _in_quads(a: np.ndarray, b: np.ndarray, quads: int) -> Pair:
    """A (4 quads, K padded) and B (quads, N, 4), ranks and rows padded with zeros."""
    (rank, inputs), outputs = a.shape, len(b)
    stored_a = np.zeros((quads * QUAD, padded(inputs)), np.float32)
    stored_a[:rank, :inputs] = a
    stored_b = np.zeros((outputs, quads * QUAD), np.float32)
    stored_b[:, :rank] = b
    return stored_a, stored_b.reshape(outputs, quads, QUAD).transpose(1, 0, 2)


@dataclass(frozen=True, eq=False)
class StackedLora:
    """What is loaded beside one linear: y += sum of strength B (A x), over the quads in use.

    A: that of all linears that read x, this one's rows from quad `first` on; B (quads, N) of vec4s.
    """

    a: Parameter
    b: Window
    uses: Window
    quads: int
    first: int
    outputs: int
    made: "WeakKeyDictionary[Tensor, Tensor]"  # z by x, for all linears that read it

    @property
    def trains(self) -> bool:
        """Never."""
        return False

    def apply(self, g: Graph, x: Tensor, name: str, keep: bool) -> "AppliedStacked":
        """z = x A^T (T, ranks of all linears that read x), where it is not there yet."""
        z = self.made.get(x)
        if z is None:
            z = self.made[x] = g.tensor(f"{name}.z", x.rows, self.a.rows)
            used = self.uses, self.quads
            small_nt(g, x, self.a, z, Rows(0, self.a.rows), add=False, used=used)
        return AppliedStacked(self, z)


@dataclass(frozen=True)
class AppliedStacked:
    """Loaded adapters at one x, forward only."""

    stacked: StackedLora
    z: Tensor

    def fused(self) -> Fused:
        """y += s z B^T."""
        of = self.stacked
        operands: dict[str, Operand] = {"lora": self.z, "lora_matrix": of.b, "lora_list": of.uses}
        return Fused("lora_stacked", operands, {"lora_rank": self.z.cols, **self._place()})

    def _place(self) -> dict[str, int]:
        of = self.stacked
        stride = self.z.cols // QUAD
        return {"lora_first": of.first, "lora_stride": stride, "lora_outputs": of.outputs}

    def add(self, g: Graph, y: Tensor | Window, rows: Rows, taken: bool) -> None:
        """y += s z B^T."""
        if not taken:
            size = {"rows": self.z.rows, "d4": padded(rows.count) // 4, "n": rows.count}
            params = {**size, "lora_row": rows.first, **self._place()}
            g.launch("add_adapters", {**self.fused().operands, "y": y}, params)

    def _no_gradients(self, *arguments: Any) -> Any:
        raise AssertionError("loaded adapters are for inference")

    receive = fused_input = add_input = gradient_rows = gradient_rest = _no_gradients
