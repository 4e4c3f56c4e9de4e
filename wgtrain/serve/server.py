"""`wgtrain serve`: an OpenAI-compatible endpoint over one model, on the server of this package."""

import ipaddress
import socket
from collections.abc import Callable, Collection

from wgtrain.errors import OptionError
from wgtrain.infer.model import Model
from wgtrain.serve.app import Endpoints
from wgtrain.serve.guards import HEADERS, Logged, check_origins, guarded
from wgtrain.serve.line import Line
from wgtrain.serve.shelf import Shelf
from wgtrain.web.listener import HOSTS, LOOPBACK, Listener, Named

MOST_WAITING = 64  # requests in the line, the one at work among them
MOST_CONNECTIONS = 128
KEEP_ALIVE = 30  # seconds; clients keep connections for 5 and more
END_SECONDS = 60.0  # in which the step that the GPU is at has to end


class Server(Listener):
    """Answers for one model, with the adapters on a shelf; port 0 = any free one.

    `key`: what `Authorization: Bearer` has to say; `origins`: pages that may ask; `names`: what
    else this machine is called, in the `Host` of a request; `temperature`: where none is asked for.
    `say` gets a line for each request.
    """

    def __init__(
        self,
        model: Model,
        shelf: Shelf,
        *,
        host: str = LOOPBACK,
        port: int = 0,
        key: str | None = None,
        origins: Collection[str] = (),
        names: Collection[str] = (),
        temperature: float = 1.0,
        say: Callable[[str], None] = print,
    ):
        check_origins(origins)
        if key is not None and not (
            key.isascii() and key.isprintable() and key.strip() == key != ""
        ):
            raise OptionError("api_key: printable ASCII without blanks around it is needed")
        self.is_open = not is_loopback(host)
        self._say = say
        self._lost: Exception | None = None
        self._line = Line(MOST_WAITING)
        endpoints = Endpoints(model, shelf, self._line, temperature, say, self._lose)
        own = {*HOSTS, "::1", host, *names}
        if self.is_open:
            own.add(socket.gethostname())
        app = Named(guarded(endpoints.app(), key, origins), HEADERS, own, addresses=self.is_open)
        try:
            super().__init__(Logged(app, say), port, host, KEEP_ALIVE, MOST_CONNECTIONS)
        except BaseException:
            self._line.close(END_SECONDS)
            raise
        shown = f"[{host}]" if ":" in host else host
        self.address = f"http://{shown}:{self.port}"

    def serve_forever(self) -> None:
        """Serves until `shutdown`, or until interrupted; DeviceLostError where the GPU is gone."""
        try:
            super().serve_forever()
        finally:
            if not self._line.close(END_SECONDS):
                self._say(f"warning: the GPU is still at work after {END_SECONDS:.0f} s")
        if self._lost is not None:
            raise self._lost

    def _lose(self, error: Exception) -> None:
        self._lost = error
        self.shutdown()


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches what listens there."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"
