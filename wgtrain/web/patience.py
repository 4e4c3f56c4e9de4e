"""HTTP connections that end when the other side is silent for too long in the wrong place."""

import asyncio
import socket

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

REQUEST_SECONDS = 10.0  # for a request to come in
READ_SECONDS = 30.0  # without a byte taken by a client that is being answered


class Impatient(H11Protocol):
    """Uvicorn's protocol waits without end for the rest of a request, and for a client to read."""

    _asked: asyncio.TimerHandle | None = None
    _read: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Starts waiting for a first request; no body will wait for its head's acknowledgement."""
        super().connection_made(transport)
        # asyncio does so only for sockets that name their protocol.
        connection = transport.get_extra_info("socket")
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._asked = self.loop.call_later(REQUEST_SECONDS, transport.abort)

    def connection_lost(self, exc: Exception | None) -> None:
        """Waits for nothing any more."""
        for timer in (self._asked, self._read):
            if timer:
                timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """The clock of a request runs from its first byte to its last."""
        super().data_received(data)
        complete = self.conn.their_state not in (h11.IDLE, h11.SEND_BODY)
        if complete and self._asked:
            self._asked.cancel()
            self._asked = None
        elif not complete and not self._asked:
            self._asked = self.loop.call_later(REQUEST_SECONDS, self.transport.abort)

    def pause_writing(self) -> None:
        """The client does not take what was sent."""
        super().pause_writing()
        self._read = self.loop.call_later(READ_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        """It does again."""
        if self._read:
            self._read.cancel()
            self._read = None
        super().resume_writing()
