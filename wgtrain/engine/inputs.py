"""The buffers a step's batch is written to, sized once for the longest stream."""

import numpy as np

from wgtrain.engine.graph import Storage
from wgtrain.engine.ops import Inputs
from wgtrain.gpu import Device


class InputBuffers:
    """Five small arrays for up to `max_tokens` tokens; see `ops.Inputs` for their meaning."""

    def __init__(self, max_tokens: int):
        sizes = {"tokens": 4, "spans": 8, "trained": 4, "where": 4, "targets": 4}
        self._storages = {
            name: Storage(name, "inputs", max(size * max_tokens, 16))
            for name, size in sizes.items()
        }
        self.inputs = Inputs(**{name: storage.window() for name, storage in self._storages.items()})

    @property
    def storages(self) -> list[Storage]:
        """What a plan has to allocate."""
        return list(self._storages.values())

    def write(
        self,
        device: Device,
        tokens: np.ndarray,
        starts: np.ndarray,
        ends: np.ndarray,
        targets: np.ndarray,
    ) -> int:
        """Queues one stream: all (T,), `targets` -1 = not trained. Returns the number of trained
        positions C.
        """
        trained = np.flatnonzero(targets >= 0)
        where = np.full(len(tokens), -1, np.int32)
        where[trained] = np.arange(len(trained), dtype=np.int32)
        spans = np.stack([starts, ends], 1).astype(np.uint32)
        arrays = {
            "tokens": tokens.astype(np.uint32),
            "spans": spans,
            "trained": trained.astype(np.int32),
            "where": where,
            "targets": targets[trained].astype(np.uint32),
        }
        for name, array in arrays.items():
            buffer = self._storages[name].buffer
            assert buffer is not None
            if array.size:
                device.write(buffer, 0, np.ascontiguousarray(array))
        return len(trained)
