"""`wgtrain serve`: an OpenAI-compatible endpoint over one model, on the server of this package."""

import ipaddress
import socket
from collections.abc import Callable, Collection

from wgtrain.infer.model import Model
from wgtrain.serve.app import Endpoints
from wgtrain.serve.guards import HEADERS, Logged, check_access, guarded
from wgtrain.serve.line import Line
from wgtrain.serve.shelf import Shelf
from wgtrain.serve.worker import Worker
from wgtrain.web.listener import HOSTS, LOOPBACK, Listener, Named, listen

MOST_WAITING = 64  # requests in the line, the one at work among them
MOST_CONNECTIONS = 128
KEEP_ALIVE = 30  # seconds; clients keep connections for 5 and more
END_SECONDS = 60.0  # in which the step that the GPU is at has to end


class Server(Listener):
    """Answers for one model, with the adapters on a shelf.

    `listening`: a socket of `host`, a free port of it where there is none. `key`: what
    `Authorization: Bearer` has to say; `origins`: pages that may ask; `names`: what else this
    machine is called, in the `Host` of a request; `temperature`: where none is asked for. `say`
    gets a line for each request. OptionError for what cannot work.
    """

    def __init__(
        self,
        model: Model,
        shelf: Shelf,
        *,
        host: str = LOOPBACK,
        listening: socket.socket | None = None,
        key: str | None = None,
        origins: Collection[str] = (),
        names: Collection[str] = (),
        temperature: float = 1.0,
        say: Callable[[str], None] = print,
    ):
        check_access(key, origins)
        listening = listen(host) if listening is None else listening
        self._say = say
        self._lost: Exception | None = None
        self._line = Line(MOST_WAITING)
        worker = Worker(model, shelf, say)
        endpoints = Endpoints(model, shelf, self._line, worker, temperature, say, self._lose)
        own, is_open = {*HOSTS, "::1", host, *names}, not is_loopback(host)
        if is_open:
            own.add(socket.gethostname())
        app = Named(guarded(endpoints.app(), key, origins), HEADERS, own, addresses=is_open)
        super().__init__(Logged(app, say), listening, KEEP_ALIVE, MOST_CONNECTIONS)
        self.address = f"http://{f'[{host}]' if ':' in host else host}:{self.port}"

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
