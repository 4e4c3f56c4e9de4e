"""`wgtrain web`: serves a built site, or any folder, on loopback with the headers a page needs."""

import json
import mimetypes
from pathlib import Path
from typing import Any

from wgtrain.web.listener import Listener, Named, listen

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


class Server(Listener):
    """A server of `folder` on 127.0.0.1; port 0 = any free one, OptionError for one in use.

    Nothing outside the folder is served, also through links. `policy` is the
    Content-Security-Policy; the folder's own where it is None.
    """

    def __init__(self, folder: Path, port: int = 0, policy: str | None = None):
        from starlette.middleware.exceptions import ExceptionMiddleware
        from starlette.responses import FileResponse
        from starlette.staticfiles import StaticFiles

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
        app = ExceptionMiddleware(Files(directory=folder, html=True))
        super().__init__(Named(app, headers), listen(port=port))
