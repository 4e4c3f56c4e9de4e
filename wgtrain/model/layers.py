"""What may differ from layer to layer of a model: whom a token sees, what a score is, how positions
turn queries and keys.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from wgtrain.engine.graph import Storage, Window
from wgtrain.gpu import Device
from wgtrain.model.rope import LongRope, QueryScale, Rope

__all__ = ["Layer", "QueryScale", "Rope", "RopeTables", "long_rotations"]

_APART = 256  # bytes; where bindings may begin


@dataclass(frozen=True)
class Layer:
    """One block. A token sees itself and what lies before it in its row, `window` tokens in all
    (0 = the whole row); scores s become softcap tanh(s / softcap) (0 = they stay). `rope` None:
    positions turn nothing.
    """

    rope: Rope | None
    window: int = 0
    softcap: float = 0.0
    query_scale: QueryScale | None = None


class RopeTables:
    """The tables by position of a model's layers for rows of up to `positions` tokens, in one
    storage; equal ones are there once. `windows`: where each of them lies; a scale of queries that
    is 1 at all of these positions has none.
    """

    def __init__(self, layers: Iterable[Layer], positions: int):
        self._positions, layers, end = positions, list(layers), 0
        ropes = [layer.rope for layer in layers]
        scales = [layer.query_scale for layer in layers]
        kinds = [kind for kind in (*ropes, *scales) if kind]
        self._places: dict[Rope | QueryScale, tuple[int, int]] = {}
        for kind in dict.fromkeys(kinds):
            if isinstance(kind, QueryScale):
                if positions <= kind.context:
                    continue
                size = 4 * positions
            else:
                size = 4 * positions * kind.rotary
            self._places[kind] = end, size
            end += -(-size // _APART) * _APART
        self.storage = Storage("rotary tables", "inputs", max(end, _APART))
        self.windows: Mapping[Rope | QueryScale, Window] = {
            kind: self.storage.window(*place) for kind, place in self._places.items()
        }
        self._long: tuple[bool, ...] | None = None  # None: nobody knows

    def write(self, device: Device, length: int = 0) -> None:
        """Queues the tables, once their buffer is there; for rows of up to `length` tokens,
        0 = `positions`.
        """
        content = np.zeros(self.storage.size, np.uint8)
        for kind, (start, size) in self._places.items():
            if isinstance(kind, Rope):
                table = kind.table(self._positions, length)
            else:
                table = kind.table(self._positions)
            content[start : start + size] = table.ravel().view(np.uint8)
        self._long = None
        device.write(self.storage.live, 0, content)
        self._long = self.kind(length)

    def follow(self, device: Device, length: int) -> None:
        """Queues the tables again where rows of up to `length` tokens take others."""
        if self.kind(length) != self._long:
            self.write(device, length)

    def kind(self, length: int) -> tuple[bool, ...]:
        """Whether rows of up to `length` tokens, 0 = `positions`, are long for each rotary
        embedding that asks: rows of one kind take the same tables.
        """
        scalings = [kind.scaling for kind in self._places if isinstance(kind, Rope)]
        contexts = [scaling.context for scaling in scalings if isinstance(scaling, LongRope)]
        return tuple((length or self._positions) > context for context in contexts)


def long_rotations(layers: Iterable[Layer], longest: int) -> list[str]:
    """Which list of LongRoPE a run takes whose longest row has so many tokens, where there are
    two.
    """
    scalings = {layer.rope.scaling for layer in layers if layer.rope}
    contexts = {scaling.context for scaling in scalings if isinstance(scaling, LongRope)}
    return [
        f"rotations for rows {'longer than' if longest > context else 'of up to'} {context} tokens"
        for context in contexts
    ]
