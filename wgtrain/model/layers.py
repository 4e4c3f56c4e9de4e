"""What may differ from layer to layer of a model: whom a token sees, what a score is, how positions
turn queries and keys.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from wgtrain.engine.graph import Storage, Window
from wgtrain.gpu import Device


@dataclass(frozen=True)
class Rope:
    """A rotary embedding: the first `rotary` values of a head turn in pairs, by angles
    position * theta^(-2 pair / rotary). `interleaved`: pairs are neighbours, else half of
    `rotary` apart.
    """

    theta: float
    rotary: int
    interleaved: bool

    def table(self, positions: int) -> np.ndarray:
        """cos and sin of every angle, float32 (positions, rotary / 2, 2), computed in float64."""
        frequency = self.theta ** (-np.arange(0, self.rotary, 2) / self.rotary)
        angle = np.arange(positions)[:, None] * frequency
        return np.stack([np.cos(angle), np.sin(angle)], -1).astype(np.float32)


@dataclass(frozen=True)
class Layer:
    """One block. A token sees itself and what lies before it in its row, `window` tokens in all
    (0 = the whole row); scores s become softcap tanh(s / softcap) (0 = they stay).
    """

    rope: Rope
    window: int = 0
    softcap: float = 0.0


class RopeTables:
    """The rotary tables of a model's layers for rows of up to `positions` tokens, in one storage;
    equal ones are there once. `windows`: where each of them lies.
    """

    def __init__(self, layers: Iterable[Layer], positions: int):
        parts, end = [], 0
        windows = {}
        for rope in dict.fromkeys(layer.rope for layer in layers):
            table = rope.table(positions)
            parts.append(np.pad(table.ravel(), (0, -table.size % 64)))
            windows[rope] = end, table.nbytes
            end += parts[-1].nbytes
        self._content = np.concatenate(parts)
        self.storage = Storage("rotary tables", "inputs", end)
        self.windows: Mapping[Rope, Window] = {
            rope: self.storage.window(*place) for rope, place in windows.items()
        }

    def write(self, device: Device) -> None:
        """Queues the tables, once their buffer is there."""
        device.write(self.storage.live, 0, self._content)
