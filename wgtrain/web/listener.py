"""What every server of this package does: a socket, names that it answers to, limits, an end."""

import ipaddress
import os
import socket
from collections.abc import Collection
from typing import TYPE_CHECKING

from wgtrain.errors import OptionError

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

LOOPBACK = "127.0.0.1"
HOSTS = {LOOPBACK, "localhost"}
MOST_CONNECTIONS = 256


class Named:
    """Adds headers to every answer, and answers no other site's name (DNS rebinding).

    `addresses`: any address is answered too; a page of another site has a name, never an address.
    """

    def __init__(
        self,
        app: "ASGIApp",
        headers: dict[str, str],
        names: Collection[str] = HOSTS,
        addresses: bool = False,
    ):
        self.app = app
        self.names, self.addresses = {name.lower() for name in names}, addresses
        self.headers = [(name.lower().encode(), value.encode()) for name, value in headers.items()]

    async def __call__(self, scope: "Scope", receive: "Receive", send: "Send") -> None:
        from starlette.responses import PlainTextResponse

        async def with_headers(message: "Message") -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *self.headers]
            await send(message)

        app = self.app
        if scope["type"] == "http":
            headers = dict(scope["headers"])
            host = headers.get(b"host", b"").decode("latin-1").lower()
            if b"content-length" in headers and b"transfer-encoding" in headers:
                # A proxy may believe the one and h11 the other: what follows is nobody's request.
                told = "Content-Length and Transfer-Encoding exclude each other"
                app = PlainTextResponse(told, 400, {"Connection": "close"})
            elif not self.is_ours(host):
                app = PlainTextResponse(f"only {' and '.join(sorted(self.names))} are served", 421)
            await app(scope, receive, with_headers)
        else:
            await app(scope, receive, send)

    def is_ours(self, host: str) -> bool:
        """Whether a `Host` in lower case, "name" or "name:port", is one of this server's."""
        name, colon, port = host, "", ""
        if not host.endswith("]"):  # an IPv6 address without a port
            name, colon, port = host.rpartition(":") if ":" in host else (host, "", "")
        if colon and not port.isdecimal():
            return False
        name = name[1:-1] if name.startswith("[") and name.endswith("]") else name
        return name in self.names or (self.addresses and is_address(name))


def is_address(name: str) -> bool:
    """Whether a host is written as an IP address."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


class Listener:
    """An ASGI application on a socket, which it closes at its end.

    A request, and each part of an answer, has to be sent and taken in time (`patience`);
    `keep_alive` are the seconds for which a connection may wait for its next request.
    """

    def __init__(
        self,
        app: "ASGIApp",
        listening: socket.socket,
        keep_alive: int = 5,
        most_connections: int = MOST_CONNECTIONS,
    ):
        import uvicorn

        from wgtrain.web.patience import Impatient

        self._socket = listening
        self.port: int = self._socket.getsockname()[1]
        config = uvicorn.Config(
            app,
            http=Impatient,
            ws="none",
            lifespan="off",
            log_config=None,
            log_level="critical",
            access_log=False,
            server_header=False,
            limit_concurrency=most_connections,
            timeout_keep_alive=keep_alive,
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


def listen(host: str = LOOPBACK, port: int = 0) -> socket.socket:
    """A socket that takes connections; port 0 = any free one. OptionError for one in use, and for a
    host that is not of this machine.
    """
    if not 0 <= port < 1 << 16:
        raise OptionError(f"port = {port}: allowed is 0 (any free one) to 65535")
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:  # a label of 64 letters
        raise OptionError(f"host = {host}: {error}") from None
    family, _, _, _, address = min(found, key=lambda one: one[0] != socket.AF_INET)
    try:
        return socket.create_server(address[:2], family=family)
    except OSError as error:
        # Which of the two is wrong follows from whether the host takes another port.
        try:
            socket.create_server((address[0], 0), family=family).close()
        except OSError:
            raise OptionError(f"host = {host}: {os.strerror(error.errno or 0)}") from None
        why = os.strerror(error.errno or 0)
        raise OptionError(f"port = {port}: {why}; 0 takes any free one") from None
