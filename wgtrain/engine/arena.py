"""Trainables in flat arenas: parameters, gradients and moments share one layout, so that clipping,
updating and saving are a dispatch or a read each.

A parameter lies whole in one segment, at an offset that can be bound; its rows are padded to a
multiple of four.
"""

from collections.abc import Iterable, Mapping

import numpy as np

from wgtrain.engine.graph import Storage, Window, padded
from wgtrain.errors import OutOfMemoryError
from wgtrain.gpu import Device, Limits


class Arena:
    """The layout: `shapes` name -> (rows, columns), packed in order into segments the adapter can
    bind.
    """

    def __init__(self, shapes: Mapping[str, tuple[int, int]], limits: Limits):
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

    def storages(self, name: str, purpose: str) -> list[Storage]:
        """One set of buffers in this layout."""
        return [Storage(f"{name} {i}", purpose, size) for i, size in enumerate(self.sizes)]

    def window(self, storages: list[Storage], name: str) -> Window:
        """The part of a set that holds parameter `name`."""
        segment, offset, size = self._places[name]
        return storages[segment].window(offset, size)

    def write(
        self, device: Device, storages: list[Storage], tensors: Mapping[str, np.ndarray]
    ) -> None:
        """Queues the upload of f32 `tensors` (rows, columns) by name; names not given stay as they
        are.
        """
        for name, tensor in tensors.items():
            rows, columns = self.shapes[name]
            assert tensor.shape == (rows, columns), (
                f"{name}: {tensor.shape} is not {(rows, columns)}"
            )
            stored = np.zeros((rows, padded(columns)), np.float32)
            stored[:, :columns] = tensor
            segment, offset, _ = self._places[name]
            buffer = storages[segment].buffer
            assert buffer is not None
            device.write(buffer, offset, stored)

    async def read(self, device: Device, storages: list[Storage]) -> dict[str, np.ndarray]:
        """All tensors of one set, f32 (rows, columns)."""
        contents = []
        for storage in storages:
            assert storage.buffer is not None
            contents.append(await device.read(storage.buffer, 0, storage.size))
        return {name: self._slice(contents, name) for name in self.shapes}

    def _slice(self, contents: Iterable[bytes], name: str) -> np.ndarray:
        segment, offset, size = self._places[name]
        rows, columns = self.shapes[name]
        flat = np.frombuffer(list(contents)[segment], np.float32, size // 4, offset)
        return flat.reshape(rows, padded(columns))[:, :columns].copy()
