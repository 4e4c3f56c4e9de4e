"""`wgtrain web`: serves a built site, or any folder, on loopback with the headers a page needs."""

import json
import mimetypes
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wgtrain.errors import OptionError

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

HEADERS = {
    # Without the first two a page gets coarse clocks and no shared memory.
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-cache",
}
# What a site may load and run, where its config.json says nothing else: its own files.
POLICY = (
    "default-src 'self'; script-src 'self' 'wasm-unsafe-eval'; img-src 'self' data: blob:; "
    "style-src 'self' 'unsafe-inline'; object-src 'none'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)
HOSTS = {"127.0.0.1", "localhost"}
MOST_CONNECTIONS = 256
_CHUNK = 1 << 20
# A system's own table of types may lack or misname what a browser is strict about.
_TYPES = {
    ".js": "text/javascript",
    ".mjs": "text/javascript",
    ".cjs": "text/javascript",
    ".wasm": "application/wasm",
    ".json": "application/json",
    ".whl": "application/zip",
}
for _suffix, _type in _TYPES.items():
    mimetypes.add_type(_type, _suffix)


def policy_of(folder: Path) -> str:
    """The Content-Security-Policy of a site: what its build wrote into config.json, or `POLICY`."""
    try:
        said = json.loads((folder / "config.json").read_bytes()).get("policy")
    except (OSError, ValueError, AttributeError):
        said = None
    return said if isinstance(said, str) and said.isprintable() else POLICY


class _OnLoopback:
    """Adds headers to every answer, and answers no other site's name (DNS rebinding)."""

    def __init__(self, app: "ASGIApp", headers: dict[str, str]):
        self.app = app
        self.headers = [(name.lower().encode(), value.encode()) for name, value in headers.items()]

    async def __call__(self, scope: "Scope", receive: "Receive", send: "Send") -> None:
        from starlette.responses import PlainTextResponse

        async def with_headers(message: "Message") -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *self.headers]
            await send(message)

        app = self.app
        if scope["type"] == "http":
            host = dict(scope["headers"]).get(b"host", b"").decode("latin-1").lower()
            name, _, port = host.partition(":")
            if name not in HOSTS or not (port.isdecimal() or name == host):
                app = PlainTextResponse(f"only {' and '.join(sorted(HOSTS))} are served", 421)
            await app(scope, receive, with_headers)
        else:
            await app(scope, receive, send)


class Server:
    """A server of `folder` on 127.0.0.1; port 0 = any free one, OptionError for one in use.

    Nothing outside the folder is served, also through links. `policy` is the
    Content-Security-Policy; the folder's own where it is None.
    """

    def __init__(self, folder: Path, port: int = 0, policy: str | None = None):
        import uvicorn
        from starlette.middleware.exceptions import ExceptionMiddleware
        from starlette.responses import FileResponse
        from starlette.staticfiles import StaticFiles

        from wgtrain.web.patience import Impatient

        class Files(StaticFiles):
            def lookup_path(self, path: str) -> Any:
                try:
                    return super().lookup_path(path)
                except OSError:  # links in a circle, what may not be read
                    return "", None

            def file_response(self, *arguments: Any, **options: Any) -> Any:
                response = super().file_response(*arguments, **options)
                if isinstance(response, FileResponse):
                    response.chunk_size = _CHUNK
                return response

        policy = policy_of(folder) if policy is None else policy
        headers = HEADERS | ({"Content-Security-Policy": policy} if policy else {})
        if not 0 <= port < 1 << 16:
            raise OptionError(f"port = {port}: allowed is 0 (any free one) to 65535")
        try:
            self._socket = socket.create_server(("127.0.0.1", port))
        except OSError as error:
            raise OptionError(f"port = {port}: {error}") from None
        self.port: int = self._socket.getsockname()[1]
        config = uvicorn.Config(
            _OnLoopback(ExceptionMiddleware(Files(directory=folder, html=True)), headers),
            http=Impatient,
            ws="none",
            lifespan="off",
            log_config=None,
            log_level="critical",
            access_log=False,
            server_header=False,
            limit_concurrency=MOST_CONNECTIONS,
            timeout_graceful_shutdown=1,
        )
        self._server = uvicorn.Server(config)

    def serve_forever(self) -> None:
        """Serves until `shutdown`, or until interrupted."""
        try:
            self._server.run(sockets=[self._socket])
        finally:
            self._socket.close()

    def shutdown(self) -> None:
        """Makes `serve_forever` return; from any thread."""
        self._server.should_exit = True
