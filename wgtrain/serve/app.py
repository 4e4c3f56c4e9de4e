"""The endpoints, as an ASGI application."""

import time
import traceback
from collections.abc import Callable
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Scope

from wgtrain.data.records import RowError, read_value
from wgtrain.errors import DeviceLostError, WgtrainError
from wgtrain.infer.model import Model
from wgtrain.serve.answers import Answer
from wgtrain.serve.asked import read_chat, read_completion
from wgtrain.serve.choice import read_scales
from wgtrain.serve.guards import error_response, said_of
from wgtrain.serve.line import Line
from wgtrain.serve.refusals import Refused, refusal_of
from wgtrain.serve.replies import ChatReply, TextReply
from wgtrain.serve.shelf import Shelf
from wgtrain.serve.worker import Worker

MOST_BYTES = 4 << 20  # of a body


class Endpoints:
    """What is behind each path. `say` gets a line, `lost` an error after which nothing works."""

    def __init__(
        self,
        model: Model,
        shelf: Shelf,
        line: Line,
        worker: Worker,
        temperature: float,
        say: Callable[[str], None],
        lost: Callable[[Exception], None],
    ):
        self._model, self._shelf, self._line, self._worker = model, shelf, line, worker
        self._temperature, self._say, self._lost = temperature, say, lost
        self._started = int(time.time())

    def app(self) -> ASGIApp:
        """The application."""
        routes = [
            Route("/v1/chat/completions", self.chat, methods=["POST"]),
            Route("/v1/completions", self.complete, methods=["POST"]),
            Route("/v1/models", self.models, methods=["GET"]),
            Route("/v1/models/{name:path}", self.one_model, methods=["GET"]),
            Route("/lora-adapters", self.adapters, methods=["GET"]),
            Route("/lora-adapters", self.rescale, methods=["POST"]),
            Route("/health", self.health, methods=["GET"]),
        ]
        handlers: Any = {
            Refused: self._failed,
            WgtrainError: self._failed,
            HTTPException: self._no_such_path,
            ClientDisconnect: self._gone,
            Exception: self._failed,
        }
        return Starlette(routes=routes, exception_handlers=handlers)

    async def chat(self, request: Request) -> ASGIApp:
        """Messages are answered."""
        asked = read_chat(await _object(request), self._temperature)
        name, chosen = self._shelf.choose(asked.choice)
        reply = ChatReply(asked, name, self._spell)
        return self._answer(reply, self._worker.chat(asked, chosen))

    async def complete(self, request: Request) -> ASGIApp:
        """Texts are continued."""
        asked = read_completion(await _object(request), self._temperature)
        name, chosen = self._shelf.choose(asked.choice)
        reply = TextReply(asked, name, self._spell, len(asked.prompts))
        return self._answer(reply, self._worker.completion(asked, chosen))

    async def models(self, request: Request) -> Response:
        """The base, and it with each adapter."""
        return _json({"object": "list", "data": [self._listed(n) for n in self._shelf.names()]})

    async def one_model(self, request: Request) -> Response:
        """One of them."""
        name = request.path_params["name"]
        if name not in self._shelf.names():
            raise self._shelf.unknown(name)
        return _json(self._listed(name))

    async def adapters(self, request: Request) -> Response:
        """The adapters and their scales, as llama.cpp tells them."""
        return _json(self._shelf.listed())

    async def rescale(self, request: Request) -> Response:
        """Other scales, as llama.cpp takes them."""
        self._shelf.rescale(read_scales(await _value(request), "body"))
        return _json({"success": True})

    async def health(self, request: Request) -> Response:
        """Whether requests are taken."""
        return _json({"status": "ok"})

    def _answer(self, reply: Any, work: Any) -> Answer:
        return Answer(self._line, work, reply, self._told)

    def _spell(self, token: int) -> bytes:
        return self._model.tokenizer.decode_bytes([token], special=True, start=False)

    def _listed(self, name: str) -> dict[str, Any]:
        return {"id": name, "object": "model", "created": self._started, "owned_by": "wgtrain"}

    def _told(self, error: Exception, scope: Scope) -> Refused:
        """What a client is told of an error; the log hears what is no client's fault."""
        refused = refusal_of(error)
        # Where the model lies is nobody's business.
        refused.args = (str(refused).replace(self._model.name, self._shelf.base),)
        if refused.status >= 500:
            words = type(error).__name__ if refused.is_bug else " ".join(str(error).split())
            said_of(scope).append(words)
        else:  # a message, or a name that is unknown here, may hold what was asked
            said_of(scope).append(refused.code or "refused")
        if refused.is_bug:
            self._say("".join(traceback.format_exception(error)).rstrip())
        if isinstance(error, DeviceLostError):
            self._lost(error)
        return refused

    async def _failed(self, request: Request, error: Exception) -> Response:
        return error_response(self._told(error, request.scope))

    async def _no_such_path(self, request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        what = f"{request.method} {request.url.path}: {error.detail}; there are {_listed(request)}"
        refused = Refused(what, error.status_code, code="unknown_url")
        refused.headers |= dict(error.headers or {})
        return error_response(refused)

    async def _gone(self, request: Request, error: Exception) -> Response:
        return Response(status_code=499)  # nobody reads it; the log does


def _listed(request: Request) -> str:
    """The paths that there are, with their methods."""
    routes = [route for route in request.app.routes if isinstance(route, Route)]
    pairs = [(way, route.path) for route in routes for way in sorted(route.methods or ())]
    return ", ".join(f"{way} {path}" for way, path in pairs if way != "HEAD")


async def _object(request: Request) -> dict[str, Any]:
    value = await _value(request)
    if not isinstance(value, dict):
        raise Refused("the body is no JSON object")
    return value


async def _value(request: Request) -> Any:
    """The JSON in a body; Refused for what is none, or too large."""
    kinds = request.headers.getlist("content-type")
    kind = kinds[0].partition(";")[0].strip().lower() if len(kinds) == 1 else ""
    if kind != "application/json" or "content-encoding" in request.headers:
        raise Refused("Content-Type: application/json is needed, and no Content-Encoding", 415)
    length = request.headers.get("content-length", "0")
    if not length.isdecimal() or int(length) > MOST_BYTES:
        raise _too_large()
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > MOST_BYTES:
            raise _too_large()
    try:
        return read_value(bytes(body.strip()))
    except RowError as error:
        raise Refused(f"the body: {error}") from None


def _too_large() -> Refused:
    return Refused(f"the body: up to {MOST_BYTES >> 20} MiB are read", 413)


def _json(value: Any) -> Response:
    return JSONResponse(value)
