"""Adapters that lie on a model's device, for all its sessions: a request switches between them by
one small write, and the least recently used one gives way.
"""

from collections import OrderedDict
from collections.abc import Collection, Mapping
from typing import NamedTuple

from wgtrain.engine.stacked import QUAD, Stacked, StackedLora, Use
from wgtrain.errors import OutOfMemoryError
from wgtrain.files import Adapter
from wgtrain.gpu import Device
from wgtrain.infer.stack import Stack
from wgtrain.model.base import Base
from wgtrain.model.lora import linear_groups

_NOTHING: Mapping[str, tuple[StackedLora, ...]] = {}
SPARE = 32 // QUAD  # quads of ranks up to which there is more room than now, and adapters stay


class _Slot(NamedTuple):
    adapter: Adapter
    quads: list[int]


class Slots:
    """Starts without memory; `use` brings a stack to the device, and makes room for it first beside
    every linear that one of the adapters targets: for as many ranks again where memory allows, so
    that adapters to come need no new plan. What is not in use is not multiplied.
    """

    def __init__(self, device: Device, base: Base):
        self._device, self._base = device, base
        self._slots: OrderedDict[bytes, _Slot] = OrderedDict()  # least recently used first
        self._uses: list[Use] | None = []  # None: nobody knows, a write was cut short
        self.stacked: Stacked | None = None  # another one: sessions have to be made anew

    @property
    def beside(self) -> Mapping[str, tuple[StackedLora, ...]]:
        """What stands beside the model's linears, by tensor, for a session."""
        return self.stacked.beside if self.stacked else _NOTHING

    async def use(self, stack: Stack) -> None:
        """What sessions do from here on, they do under this stack; OutOfMemoryError where its
        adapters do not fit.
        """
        adapters, strengths = _in_use(stack)
        if not adapters.keys() <= self._slots.keys():
            self._make_room(adapters)
            for key, adapter in adapters.items():
                self._load(key, adapter)
            await self._device.settle()
        uses = []
        for key in adapters:
            self._slots.move_to_end(key)
            uses += [Use(quad, strengths[key]) for quad in self._slots[key].quads]
        if self.stacked is not None and uses != self._uses:
            self._uses = None
            self.stacked.use(uses)
            self._uses = uses

    def shrink(self, stack: Stack) -> bool:
        """Leaves of what is here only what this stack needs, without room for more; whether that
        was less than before. OutOfMemoryError, with nothing left here, where even so it does not
        fit.
        """
        adapters, _ = _in_use(stack)
        quads = sum(map(_quads, adapters.values()))
        targets = {name for adapter in adapters.values() for name in adapter.tensors}
        if self.stacked is None or (quads == self.stacked.quads and targets == self.beside.keys()):
            return False
        self.close()
        if adapters:
            self._open(targets, quads)
        for key, adapter in adapters.items():
            self._load(key, adapter)
        return True

    def _make_room(self, wanted: Mapping[bytes, Adapter]) -> None:
        """So that there are free quads for those that are not there yet."""
        need = sum(_quads(adapter) for adapter in wanted.values())
        missing = need - sum(len(slot.quads) for key, slot in self._slots.items() if key in wanted)
        targets = {name for adapter in wanted.values() for name in adapter.tensors}
        room = self.stacked.quads if self.stacked else 0
        while self._taken + missing > max(need, room, SPARE):
            del self._slots[next(key for key in self._slots if key not in wanted)]
        if targets <= self.beside.keys() and self._taken + missing <= room:
            return
        kept = {key: slot.adapter for key, slot in self._slots.items()}
        targets |= {name for adapter in kept.values() for name in adapter.tensors}
        least = self._taken + missing
        self.close()
        try:
            self._open(targets, max(least + min(least, SPARE), room))
        except OutOfMemoryError:
            self._open(targets, least)
        for key, adapter in kept.items():
            self._load(key, adapter)

    def _open(self, targets: Collection[str], quads: int) -> None:
        groups = linear_groups(self._base.config, targets)
        self.stacked = Stacked(groups, quads, self._base.limits)  # an interrupt may follow `open`
        try:
            self.stacked.open(self._device)
        except BaseException:
            self.stacked = None
            raise

    @property
    def _taken(self) -> int:
        return sum(len(slot.quads) for slot in self._slots.values())

    def _load(self, key: bytes, adapter: Adapter) -> None:
        """Into the first free quads, unless it is there."""
        if key in self._slots:
            return
        assert self.stacked is not None
        taken = {quad for slot in self._slots.values() for quad in slot.quads}
        free = [quad for quad in range(self.stacked.quads) if quad not in taken]
        quads = free[: _quads(adapter)]
        self.stacked.load(quads, adapter.tensors)
        self._slots[key] = _Slot(adapter, quads)

    def drop(self, key: bytes) -> None:
        """Frees the place of an adapter for the next one."""
        self._slots.pop(key, None)

    def close(self) -> None:
        """Gives all memory back; sessions have to be made anew."""
        self._slots.clear()
        self._uses = []
        if self.stacked is not None:
            self.stacked.close()
            self.stacked = None


def _in_use(stack: Stack) -> tuple[dict[bytes, Adapter], dict[bytes, float]]:
    """The adapters of a stack that have an effect, and the strengths, by key."""
    adapters: dict[bytes, Adapter] = {}
    strengths: dict[bytes, float] = {}
    for one, strength in stack.adapters:
        adapter = adapters[one.key] = one.adapter
        own = strength * adapter.alpha / adapter.rank
        strengths[one.key] = strengths.get(one.key, 0.0) + own
    return {key: adapter for key, adapter in adapters.items() if strengths[key]}, strengths


def _quads(adapter: Adapter) -> int:
    return -(-adapter.rank // QUAD)
