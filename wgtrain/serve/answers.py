"""An answer on its way from the line before the GPU to a client that may leave at any time."""

import asyncio
import json
from collections.abc import Callable
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from wgtrain.infer.generation import Piece
from wgtrain.serve.guards import error_response, said_of
from wgtrain.serve.line import Full, Line, Place, Work
from wgtrain.serve.refusals import FAILED, Refused
from wgtrain.serve.replies import Reply
from wgtrain.serve.worker import Item

RETRY_SECONDS = 2
_STREAM = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"x-accel-buffering", b"no"),  # or a proxy may hold events back
]
Told = Callable[[Exception, Scope], Refused]


class Answer:
    """An ASGI application that waits its turn and then tells the pieces, or the whole."""

    def __init__(self, line: Line, work: Work[Item], reply: Reply, told: Told):
        self._line, self._work, self._reply, self._told = line, work, reply, told

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            place = self._line.join(self._work)
        except Full:
            raise Refused(
                "too many requests are waiting",
                503,
                kind=FAILED,
                code="server_busy",
                headers={"Retry-After": str(RETRY_SECONDS)},
            ) from None
        leaving = asyncio.create_task(_leave_when_gone(receive, place))
        tell = self._stream if self._reply.asked.stream else self._whole
        try:
            # An error is an answer: what is raised here would cost the client its connection.
            try:
                first = await anext(place, None)
            except Exception as error:
                await error_response(self._told(error, scope))(scope, receive, send)
                return
            if first is not None:
                self._reply.take(first)
                await tell(place, scope, receive, send)
        finally:
            leaving.cancel()
            place.leave()
            said_of(scope).extend(self._reply.said())

    async def _whole(self, place: Place[Item], scope: Scope, receive: Receive, send: Send) -> None:
        reply = self._reply
        try:
            async for item in place:
                reply.take(item)
        except Exception as error:
            await error_response(self._told(error, scope))(scope, receive, send)
            return
        if reply.is_finished:
            response = Response(_encode(reply.whole()), media_type="application/json")
            await response(scope, receive, send)

    async def _stream(self, place: Place[Item], scope: Scope, receive: Receive, send: Send) -> None:
        """Server-sent events, once it is certain that there will be an answer."""
        reply = self._reply
        await send({"type": "http.response.start", "status": 200, "headers": _STREAM})
        try:
            await _tell(send, reply.head())
            async for item in place:
                reply.take(item)
                if isinstance(item, Piece):
                    await _tell(send, reply.chunk(item))
            if not reply.is_finished:
                return
            await _tell(send, reply.tail())
            await send(_part(b"data: [DONE]\n\n"))
        except Exception as error:
            await send(_part(b"data: " + _encode(self._told(error, scope).body) + b"\n\n"))
        await send({"type": "http.response.body", "body": b""})


async def _leave_when_gone(receive: Receive, place: Place[Item]) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    place.leave()


async def _tell(send: Send, chunks: Any) -> None:
    for chunk in chunks:
        await send(_part(b"data: " + _encode(chunk) + b"\n\n"))


def _part(body: bytes) -> dict[str, Any]:
    return {"type": "http.response.body", "body": body, "more_body": True}


def _encode(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
