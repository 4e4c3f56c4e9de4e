"""`wgtrain web`: serves a built site, or any folder, on loopback with the headers a page needs."""

import re
from http import HTTPStatus
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from typing import IO, Any

HEADERS = {
    # Without the first two a page gets coarse clocks and no shared memory.
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-cache",
    "Accept-Ranges": "bytes",
}
_TYPES = {
    ".js": "text/javascript",
    ".mjs": "text/javascript",
    ".wasm": "application/wasm",
    ".json": "application/json",
    ".whl": "application/zip",
}


class Handler(SimpleHTTPRequestHandler):
    """Files of a folder, whole or one range of them."""

    extensions_map = SimpleHTTPRequestHandler.extensions_map | _TYPES
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else a body waits 40 ms for the headers' acknowledgement

    def end_headers(self) -> None:
        """Adds `HEADERS` to every answer."""
        for name, value in HEADERS.items():
            self.send_header(name, value)
        super().end_headers()

    def send_head(self) -> Any:
        """Answers a request for one range, `bytes=first-last`, with just that."""
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        path = Path(self.translate_path(self.path))
        if not asked or not path.is_file():
            return super().send_head()
        size = path.stat().st_size
        first, last = int(asked[1]), min(int(asked[2] or size), size - 1)
        if first > last:
            self.send_response(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE)
            self.send_header("Content-Range", f"bytes */{size}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return BytesIO()
        file = path.open("rb")
        file.seek(first)
        self.send_response(HTTPStatus.PARTIAL_CONTENT)
        self.send_header("Content-Type", self.guess_type(str(path)))
        self.send_header("Content-Range", f"bytes {first}-{last}/{size}")
        self.send_header("Content-Length", str(last - first + 1))
        self.end_headers()
        self._left = last - first + 1
        return file

    def copyfile(self, source: Any, outputfile: Any) -> None:
        """Sends what is left of a range, or a whole file."""
        left, self._left = self._left, None
        _copy(source, outputfile, left)

    _left: int | None = None

    def log_message(self, format: str, *args: Any) -> None:
        """Only errors are of interest."""
        if args and str(args[1] if len(args) > 1 else "")[:1] in "45":
            super().log_message(format, *args)


def _copy(source: IO[bytes], target: IO[bytes], left: int | None) -> None:
    try:
        while data := source.read(1 << 20 if left is None else min(left, 1 << 20)):
            target.write(data)
            left = None if left is None else left - len(data)
    except (BrokenPipeError, ConnectionResetError):
        pass  # the page went away


def make_server(folder: Path, port: int = 0) -> ThreadingHTTPServer:
    """A server of `folder` on 127.0.0.1; port 0 = any free one. `serve_forever` starts it."""

    def handler(*args: Any) -> Handler:
        return Handler(*args, directory=str(folder))

    server = ThreadingHTTPServer(("127.0.0.1", port), handler)
    server.daemon_threads = True
    return server
