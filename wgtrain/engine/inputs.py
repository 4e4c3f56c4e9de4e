"""The buffer a step's batch is written to, sized once for the longest stream."""

from collections.abc import Mapping, Sequence

import numpy as np

from wgtrain.engine.attention import Ranges
from wgtrain.engine.graph import Storage
from wgtrain.engine.ops import Inputs
from wgtrain.gpu import Device


def visible(starts: np.ndarray, ends: np.ndarray, window: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Who sees whom where each token sees itself and what lies before it in its row, `window`
    tokens in all (0 = no limit): (first, after) of each token's keys and of its queries, (T, 2).

    `starts` and `ends` (T,): where the token's row lies in the stream.
    """
    at = np.arange(len(starts), dtype=np.int64)
    reach = window or len(starts)
    keys = [np.maximum(starts, at + 1 - reach), at + 1]
    queries = [at, np.minimum(ends, at + reach)]
    return np.stack(keys, 1).astype(np.uint32), np.stack(queries, 1).astype(np.uint32)


class InputBuffer:
    """Small arrays for up to `max_tokens` tokens; see `ops.Inputs` for their meaning.

    `windows`: the distinct ones of the model's layers, see `visible`. `more`: names of others, and
    their bytes a token.
    """

    def __init__(
        self,
        max_tokens: int,
        windows: Sequence[int] = (0,),
        more: Mapping[str, int] | None = None,
    ):
        self._windows, more = windows, more or {}
        sizes = dict.fromkeys(("tokens", "positions", "trained", "where", "targets"), 4)
        sizes |= more
        sizes |= {f"{kind} {w}": 8 for w in self._windows for kind in ("keys", "queries")}
        self._offsets, end = {}, 0
        for name, size in sizes.items():
            self._offsets[name] = end
            end += -(-max(size * max_tokens, 16) // 256) * 256
        self.storage = Storage("batch", "inputs", end)
        self._packed = np.zeros(end, np.uint8)
        parts = {
            name: self.storage.window(self._offsets[name], max(size * max_tokens, 16))
            for name, size in sizes.items()
        }
        ranges = {
            window: Ranges(parts.pop(f"keys {window}"), parts.pop(f"queries {window}"))
            for window in windows
        }
        others = {name: parts.pop(name) for name in more}
        self.inputs = Inputs(**parts, ranges=ranges, more=others)

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
            "positions": (np.arange(len(tokens)) - starts).astype(np.uint32),
            "trained": trained.astype(np.int32),
            "where": where,
            "targets": targets[trained].astype(np.uint32),
            **(more or {}),
        }
        for window in self._windows:
            keys, queries = visible(starts, ends, window)
            arrays |= {f"keys {window}": keys, f"queries {window}": queries}
        return self.put(arrays), len(trained)

    def put(self, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
        """The content with these arrays by name, "keys W" and "queries W" of a window W; the others
        stay as they were. It is overwritten by the next call.
        """
        for name, array in arrays.items():
            at = self._offsets[name]
            self._packed[at : at + array.nbytes] = array.reshape(-1).view(np.uint8)
        return self._packed

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
