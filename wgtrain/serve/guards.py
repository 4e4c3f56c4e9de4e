"""Who is answered: programs of this machine and pages that were allowed, with the key."""

import hmac
import re
import time
from collections.abc import Callable, Collection
from urllib.parse import quote

from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from wgtrain.errors import OptionError
from wgtrain.files.source import shown
from wgtrain.serve.refusals import Refused

OPEN = ("/health",)  # asked by what keeps servers alive, which has no key
HEADERS = {
    # No page loads an answer as a script or a picture either, which no Origin would tell.
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^\s/?#@,\"'\\]+")


def check_access(key: str | None, origins: Collection[str]) -> None:
    """OptionError for a key that no header can hold, and for what is no origin as browsers send
    them.
    """
    if key is not None and not (key and key.isascii() and key.isprintable() and " " not in key):
        raise OptionError("api_key: printable ASCII without blanks is needed")
    for origin in origins:
        if origin != "*" and not (_ORIGIN.fullmatch(origin) and origin == origin.lower()):
            raise OptionError(
                f"allow_origin = {shown(origin)}: allowed is scheme://host or scheme://host:port, "
                "in lower case as browsers send it, or * for the pages of every site"
            )


def said_of(scope: Scope) -> list[str]:
    """What is to stand at the end of a request's line in the log."""
    said: list[str] = scope.setdefault("state", {}).setdefault("said", [])
    return said


def error_response(refused: Refused) -> Response:
    """An error in OpenAI's form."""
    return JSONResponse(refused.body, refused.status, refused.headers)


def guarded(app: ASGIApp, key: str | None, origins: Collection[str]) -> ASGIApp:
    """`app` behind the key, for programs and for the pages of some origins."""
    inner = _Key(app, key) if key is not None else app
    if origins:
        inner = CORSMiddleware(
            inner,
            allow_origins=list(origins),
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            allow_private_network=True,
        )
    return _Origins(inner, origins)


class _Origins:
    """Refuses requests that pages of other sites make, also those that need no permission."""

    def __init__(self, app: ASGIApp, allowed: Collection[str]):
        self.app, self.allowed = app, allowed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        app = self.app
        if scope["type"] == "http" and not self._may(Request(scope)):
            refused = Refused(
                "a page of another origin; --allow-origin lets one in", 403, code="foreign_origin"
            )
            app = error_response(refused)
        await app(scope, receive, send)

    def _may(self, request: Request) -> bool:
        origins = request.headers.getlist("origin")
        if (
            not origins
        ):  # browsers say of what has none, a script's or a picture's, where it is from
            return request.headers.get("sec-fetch-site", "none") in ("none", "same-origin")
        own = f"http://{request.headers.get('host', '')}".lower()
        return len(origins) == 1 and (
            "*" in self.allowed or origins[0] in self.allowed or origins[0] == own
        )


class _Key:
    """Asks for the key."""

    def __init__(self, app: ASGIApp, key: str):
        self.app, self.key = app, key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        app = self.app
        if scope["type"] == "http" and scope["path"] not in OPEN:
            words = dict(scope["headers"]).get(b"authorization", b"")
            kind, _, key = words.partition(b" ")
            if kind.lower() != b"bearer" or not hmac.compare_digest(key.strip(), self.key):
                refused = Refused(
                    "the API key is missing or wrong: Authorization: Bearer KEY is needed",
                    401,
                    code="invalid_api_key",
                    headers={"WWW-Authenticate": "Bearer"},
                )
                app = error_response(refused)
        await app(scope, receive, send)


class Logged:
    """Says a line for each request, never what is in it: what an application adds to
    `said_of(scope)` stands at its end.
    """

    def __init__(self, app: ASGIApp, say: Callable[[str], None]):
        self.app, self.say = app, say

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in OPEN:
            return await self.app(scope, receive, send)
        began = time.monotonic()
        status = "gone"

        async def heard(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = str(message["status"])
            await send(message)

        said = said_of(scope)
        try:
            await self.app(scope, receive, heard)
        finally:
            where = quote(scope["path"], safe="/+:")[:80]
            seconds = f"{time.monotonic() - began:.2f}s"
            self.say(" ".join([scope["method"], where, status, seconds, *said]))
