"""What a model keeps on its device from one request to the next: adapters, a session for logits,
and rows that it has read. All of it can be made again, so it gives way where memory is short.
"""

from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import TypeVar

from wgtrain.engine.stacked import StackedLora
from wgtrain.errors import OutOfMemoryError
from wgtrain.gpu import Device
from wgtrain.infer.cached import CachedSession, open_sequences
from wgtrain.infer.places import Places
from wgtrain.infer.plans import tuned
from wgtrain.infer.session import Session
from wgtrain.infer.slots import Slots
from wgtrain.infer.stack import Stack
from wgtrain.model.base import Base
from wgtrain.model.host import Host

T = TypeVar("T")
Beside = Mapping[str, tuple[StackedLora, ...]]
_LEAST = 64  # tokens that there is room for; above it, as many as the next power of two


class Kept:
    """Whatever it hands out runs under the stack that was asked for, until the next call. Not for
    two threads at once.
    """

    def __init__(self, device: Device, base: Base):
        self._device, self._base = device, base
        self.slots = Slots(device, base)
        self.session: Session | None = None
        self.places: Places | None = None
        self._beside: object = None  # what the places stand beside

    async def under(self, stack: Stack) -> Beside:
        """Brings a stack to the device; what stands beside the linears, by tensor."""

        async def same(beside: Beside) -> Beside:
            return beside

        return await self.made(stack, same)

    async def made(self, stack: Stack, make: Callable[[Beside], Awaitable[T]]) -> T:
        """What `make` makes with what stands beside the linears, by tensor, under a stack. Where
        memory has no room for it session and places give way, then adapters of other stacks.
        """
        while True:
            try:
                await self.slots.use(stack)
                return await make(self.slots.beside)
            except OutOfMemoryError:
                if self.session is not None or self.places is not None:
                    self.drop()
                elif not self.slots.shrink(stack):
                    raise

    async def session_for(self, stack: Stack, max_tokens: int, host: Host) -> Session:
        """A session for at least `max_tokens` tokens; the last one where it serves."""
        beside, kept = await self.under(stack), self.session
        if kept and kept.beside is beside and kept.max_tokens >= max_tokens:
            return kept
        self.drop_session()
        size = max(_LEAST, 1 << (max_tokens - 1).bit_length())

        async def make(beside: Beside) -> Session:
            plan = partial(Session, self._device, self._base, beside, size)
            session = tuned(plan, self._device, host, size)
            await session.open()
            return session

        self.session = await self.made(stack, make)
        return self.session

    async def sequences(self, stack: Stack, places: int, room: int, host: Host) -> CachedSession:
        """`places` rows of up to `room` tokens, for whoever closes them."""
        beside = await self.under(stack)
        return await open_sequences(self._device, self._base, beside, places, room, host)

    async def places_for(
        self, host: Host, stack: Stack, places: int, least: int, wanted: int
    ) -> Places:
        """`places` for rows of at least `least` tokens, better `wanted`; the last ones where they
        serve.
        """
        beside, kept = await self.under(stack), self.places
        if kept and self._beside is beside and kept.allow(places, least):
            kept.under(stack.key)
            return kept
        self.drop_places()
        context = self._base.config.context
        room = min(max(_LEAST, 1 << (wanted - 1).bit_length()), max(context, wanted))
        while True:
            try:
                opened = await self.sequences(stack, places, room, host)
                break
            except OutOfMemoryError:
                if self.session is not None:
                    self.drop_session()
                elif room != wanted:
                    room = wanted
                elif places > 1 or not self.slots.shrink(stack):  # fewer rows are tried first
                    raise
        self.places, self._beside = Places(stack.key, opened), self.slots.beside
        return self.places

    def drop_session(self) -> None:
        """Frees the session."""
        if self.session:
            self.session.close()
            self.session = None

    def drop_places(self) -> None:
        """Frees the places; an answer under way reads its row again."""
        if self.places:
            self.places.sequences.close()
            self.places = None

    def drop(self) -> None:
        """Frees session and places."""
        self.drop_session()
        self.drop_places()

    def close(self) -> None:
        """Frees all; nothing can be made any more."""
        self.drop()
        self.slots.close()
