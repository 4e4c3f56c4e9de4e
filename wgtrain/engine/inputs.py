"""The buffer a step's batch is written to, sized once for the longest stream."""

from collections.abc import Mapping

import numpy as np

from wgtrain.engine.graph import Storage
from wgtrain.engine.ops import Inputs
from wgtrain.gpu import Device


class InputBuffer:
    """Small arrays for up to `max_tokens` tokens; see `ops.Inputs` for their meaning. `more`: names
    of others, and their bytes a token.
    """

    def __init__(self, max_tokens: int, more: Mapping[str, int] | None = None):
        sizes = {"tokens": 4, "spans": 8, "trained": 4, "where": 4, "targets": 4, **(more or {})}
        self._offsets, end = {}, 0
        for name, size in sizes.items():
            self._offsets[name] = end
            end += -(-max(size * max_tokens, 16) // 256) * 256
        self.storage = Storage("batch", "inputs", end)
        self._packed = np.zeros(end, np.uint8)
        windows = {
            name: self.storage.window(self._offsets[name], max(size * max_tokens, 16))
            for name, size in sizes.items()
        }
        self.inputs = Inputs(
            **{name: window for name, window in windows.items() if name not in (more or {})},
            more={name: windows[name] for name in more or {}},
        )

    def pack(
        self,
        tokens: np.ndarray,
        starts: np.ndarray,
        ends: np.ndarray,
        targets: np.ndarray,
        more: Mapping[str, np.ndarray] | None = None,
    ) -> tuple[np.ndarray, int]:
        """The content for one stream: all (T,), `targets` -1 = not trained; and the number of
        trained positions C. It is overwritten by the next call.
        """
        trained = np.flatnonzero(targets >= 0)
        where = np.full(len(tokens), -1, np.int32)
        where[trained] = np.arange(len(trained), dtype=np.int32)
        arrays = {
            "tokens": tokens.astype(np.uint32),
            "spans": np.stack([starts, ends], 1).astype(np.uint32),
            "trained": trained.astype(np.int32),
            "where": where,
            "targets": targets[trained].astype(np.uint32),
            **(more or {}),
        }
        for name, array in arrays.items():
            at = self._offsets[name]
            self._packed[at : at + array.nbytes] = array.reshape(-1).view(np.uint8)
        return self._packed, len(trained)

    def write(
        self,
        device: Device,
        tokens: np.ndarray,
        starts: np.ndarray,
        ends: np.ndarray,
        targets: np.ndarray,
        more: Mapping[str, np.ndarray] | None = None,
    ) -> int:
        """Queues what `pack` makes of a stream; returns C."""
        content, trained = self.pack(tokens, starts, ends, targets, more)
        device.write(self.storage.live, 0, content)  # one write: each has its price
        return trained
