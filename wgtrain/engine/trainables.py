"""What is trained: parameters in flat arenas. Values, gradients and moments share one layout, so
that clipping, updating and saving are a dispatch or a read each.

A parameter is a window of an arena, whatever it belongs to. It lies whole in one segment, at an
offset that can be bound; its rows are padded to a multiple of four.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import numpy as np

from wgtrain.engine.graph import Storage, Window, padded
from wgtrain.errors import OutOfMemoryError
from wgtrain.gpu import Device, Limits

Shape = tuple[int, int]


@dataclass(frozen=True)
class Parameter:
    """A matrix in an arena: `rows` x `columns` f32, rows padded; `gradient` None = frozen."""

    name: str
    rows: int
    columns: int
    value: Window
    gradient: Window | None


class Layout:
    """Where each parameter lies: `shapes` name -> (rows, columns), packed in order into segments
    that the adapter can bind.
    """

    def __init__(self, shapes: Mapping[str, Shape], limits: Limits):
        self.shapes = dict(shapes)
        self.sizes: list[int] = []  # bytes of each segment
        self._places: dict[str, tuple[int, int, int]] = {}
        limit = min(limits.binding, limits.buffer)
        for name, (rows, columns) in self.shapes.items():
            size = rows * padded(columns) * 4
            space = -(-size // limits.alignment) * limits.alignment
            if space > limit:
                raise OutOfMemoryError(
                    f"'{name}' needs {size:,} bytes; this adapter allows {limit:,} in one binding: "
                    "use a smaller rank"
                )
            if not self.sizes or self.sizes[-1] + space > limit:
                self.sizes.append(0)
            self._places[name] = (len(self.sizes) - 1, self.sizes[-1], size)
            self.sizes[-1] += space

    def place(self, name: str) -> tuple[int, int, int]:
        """(segment, offset in bytes, size in bytes) of a parameter."""
        return self._places[name]

    @property
    def count(self) -> int:
        """Values of all parameters, without padding."""
        return sum(rows * columns for rows, columns in self.shapes.values())


class Arena:
    """A number for each value of a layout, on the GPU: the values, their gradients, a moment."""

    def __init__(self, layout: Layout, name: str, purpose: str):
        self.layout = layout
        self.storages = [
            Storage(f"{name} {i}", purpose, size) for i, size in enumerate(layout.sizes)
        ]
        self._device: Device | None = None
        self.pending: dict[str, np.ndarray] = {}  # what was set before there were buffers

    def window(self, name: str) -> Window:
        """Where parameter `name` lies."""
        segment, offset, size = self.layout.place(name)
        return self.storages[segment].window(offset, size)

    def open(self, device: Device) -> None:
        """Its storages have buffers from now on: queues what was set before."""
        self._device = device
        self.set(self.pending)

    def forget(self) -> None:
        """Opening is done, and needs not be repeated: what was set before is no longer kept."""
        self.pending = {}

    def close(self) -> None:
        """Its buffers are gone."""
        self._device = None

    def set(self, tensors: Mapping[str, np.ndarray]) -> None:
        """Sets f32 `tensors` (rows, columns) by name, those not given stay as they are: queued, or
        kept until there are buffers.
        """
        for name, tensor in tensors.items():
            shape = self.layout.shapes[name]
            assert tensor.shape == shape, f"{name}: {tensor.shape} is not {shape}"
        if self._device is None:
            self.pending.update(tensors)
            return
        for name, tensor in tensors.items():
            rows, columns = self.layout.shapes[name]
            stored = np.zeros((rows, padded(columns)), np.float32)
            stored[:, :columns] = tensor
            segment, offset, _ = self.layout.place(name)
            self._device.write(self.storages[segment].live, offset, stored)

    def clear(self) -> None:
        """Sets everything to zero, where there are buffers: new ones are zero."""
        for storage in self.storages if self._device else ():
            assert self._device is not None
            self._device.write(storage.live, 0, bytes(storage.size))

    async def read(self) -> dict[str, np.ndarray]:
        """All tensors, f32 (rows, columns); there have to be buffers."""
        assert self._device is not None
        contents = []
        for storage in self.storages:
            contents.append(await self._device.read(storage.live, 0, storage.size))
        return {name: self._slice(contents, name) for name in self.layout.shapes}

    def _slice(self, contents: Sequence[bytes], name: str) -> np.ndarray:
        segment, offset, size = self.layout.place(name)
        rows, columns = self.layout.shapes[name]
        flat = np.frombuffer(contents[segment], np.float32, size // 4, offset)
        return flat.reshape(rows, padded(columns))[:, :columns].copy()


T_co = TypeVar("T_co", covariant=True)


class Kind(Protocol[T_co]):
    """What parameters belong to, at one tensor of a model: an adapter beside it, for example."""

    @property
    def tensor(self) -> str:
        """The tensor's name."""

    @property
    def shapes(self) -> Mapping[str, Shape]:
        """Its parameters, by their full names."""

    def make(self, parameters: Mapping[str, Parameter]) -> T_co:
        """What the operations at the tensor take, with its parameters in their arenas."""


class Trainables(Generic[T_co]):
    """Parameters of some kinds, with their values and their gradients."""

    def __init__(self, kinds: Iterable[Kind[T_co]], limits: Limits, name: str = "parameters"):
        self.kinds = tuple(kinds)
        shapes = {name: shape for kind in self.kinds for name, shape in kind.shapes.items()}
        self.layout = Layout(shapes, limits)
        self.values = Arena(self.layout, name, "adapter")
        self.gradients = Arena(self.layout, "gradients", "gradients")

    def open(self, device: Device) -> None:
        """Both arenas have buffers from now on."""
        self.values.open(device)
        self.gradients.open(device)

    def forget(self) -> None:
        """Opening is done: see `Arena.forget`."""
        self.values.forget()
        self.gradients.forget()

    def close(self) -> None:
        """Their buffers are gone."""
        self.values.close()
        self.gradients.close()

    def parameter(self, name: str, training: bool = True) -> Parameter:
        """A parameter in its arenas; frozen unless `training`."""
        gradient = self.gradients.window(name) if training else None
        return Parameter(name, *self.layout.shapes[name], self.values.window(name), gradient)

    def made(self, training: bool) -> dict[str, T_co]:
        """What each kind makes of its parameters, by the tensor it is at."""
        return {
            kind.tensor: kind.make({name: self.parameter(name, training) for name in kind.shapes})
            for kind in self.kinds
        }
