"""A real Chromium over the built site: what the tests of the page, and its figures, drive."""

import mimetypes
import os
import shutil
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import needs

from wgtrain.web.server import Server

sys.path.insert(0, str(needs.ROOT / "scripts"))
import build_web

# WebGPU on SwiftShader; nothing that a browser does by itself; no name but loopback resolves.
FLAGS = """--enable-unsafe-webgpu --use-webgpu-adapter=swiftshader --no-sandbox --disable-quic
--no-first-run --disable-background-networking --disable-component-update --disable-sync
--host-resolver-rules=MAP*~NOTFOUND,EXCLUDE127.0.0.1 --disable-dev-shm-usage""".split()
FLAGS = [f.replace("MAP*~NOTFOUND,EXCLUDE", "MAP * ~NOTFOUND , EXCLUDE ") for f in FLAGS]
# What a CDN sends, without which an isolated page refuses its files.
CORS = {"Access-Control-Allow-Origin": "*", "Cross-Origin-Resource-Policy": "cross-origin"}
# What the tests themselves import in the page.
TEST_PACKAGES = ("gguf", "pytest", "pluggy", "iniconfig", "packaging", "pygments", "tqdm", "pyyaml")


def make_site(out: Path) -> Path:
    """The site as people build it, but for numpy; beside it what the tests need."""
    build_web.install_modules()
    build_web.build(out, numpy=build_web.test_numpy())
    archive = build_web.pack_pure(TEST_PACKAGES, out / "tests.zip")
    with zipfile.ZipFile(archive, "a", zipfile.ZIP_DEFLATED) as more:
        for path in (*needs.ROOT.glob("tests/*.py"), *needs.ROOT.glob("tests/browser/page_*.py")):
            more.write(path, path.name)
    shutil.copytree(needs.data(), out / "data")  # links out of a site are not followed
    return out


@contextmanager
def serving(server: Server) -> Iterator[str]:
    """The address of a server, which runs meanwhile."""
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.port}"
    server.shutdown()
    thread.join(60)
    assert not thread.is_alive()


def chromium() -> str:
    """The path of the browser; `CHROMIUM` names another one."""
    needs.package("playwright.sync_api")
    path = os.environ.get("CHROMIUM") or shutil.which("chromium")
    if not path:
        needs.missing("chromium is not installed; scripts/setup --test does it")
    return path


class Driver:
    """Chromium, driven from a thread of its own: other tests run event loops in theirs."""

    def __init__(self, path: str):
        self._thread = ThreadPoolExecutor(1)
        self.call(self._start, path)

    def call(self, function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        """Calls something of Playwright's."""
        return self._thread.submit(function, *arguments, **options).result()

    def _start(self, path: str) -> None:
        from playwright.sync_api import sync_playwright

        self._playwright = sync_playwright().start()
        chromium = self._playwright.chromium
        self.browser = chromium.launch(executable_path=path, headless=True, args=FLAGS)

    def close(self) -> None:
        """Ends the browser."""
        self.call(self.browser.close)
        self.call(self._playwright.stop)
        self._thread.shutdown()


class Tab:
    """One page with its worker. `strangers`: requests to another origin, which were refused."""

    def __init__(self, driver: Driver, context: Any, address: str, strangers: list[str]):
        self._driver, self.strangers = driver, strangers
        self.page = driver.call(context.new_page)
        driver.call(self.page.goto, address)

    def wait_for(self, expression: str) -> Any:
        """The value of an expression in the page once it is true.

        Playwright's own way evaluates a text in the page, which the page's policy forbids.
        """
        for _ in range(1200):
            if found := self.javascript(expression):
                return found
            time.sleep(0.1)
        raise TimeoutError(expression)

    def python(self, code: str, **values: Any) -> Any:
        """Runs Python code in the worker; its last expression, made of plain values."""
        call = "([code, values]) => globalThis.wgtrain.python(code, values)"
        return self._driver.call(self.page.evaluate, call, [code, values])

    def start(self, code: str, **values: Any) -> None:
        """The same without waiting for the end; `failure` in the page tells what went wrong."""
        call = """([code, values]) => void globalThis.wgtrain.python(code, values).catch(
            (error) => (globalThis.failure = error.message))"""
        self._driver.call(self.page.evaluate, call, [code, values])

    def javascript(self, expression: str) -> Any:
        """The value of an expression in the page, awaited."""
        return self._driver.call(self.page.evaluate, expression)

    def prepare(self) -> None:
        """Puts the tests and what they need into the page's file system."""
        self.python("""
            import sys
            from pathlib import Path
            from pyodide.http import pyfetch
            if not Path("/tests").exists():
                await (await pyfetch("tests.zip")).unpack_archive(extract_dir="/tests")
                sys.path.append("/tests")
        """)

    def close(self) -> None:
        """Ends page and worker as a person closing the tab does."""
        self._driver.call(self.page.close)


class Tabs:
    """Opens tabs that share one profile, and so one private file system.

    `requested`: the addresses that they and their workers asked for, in order.
    """

    def __init__(self, driver: Driver, origin: str):
        self._driver, self.origin = driver, origin
        self._context = driver.call(driver.browser.new_context)
        self.strangers: list[str] = []
        self.requested: list[str] = []
        driver.call(self._context.on, "request", self._look)

    def _look(self, request: Any) -> None:
        self.requested.append(request.url)
        if not request.url.startswith((self.origin + "/", "blob:", "data:")):
            self.strangers.append(request.url)

    def open(self) -> Tab:
        """A new tab of the site, with the tests unpacked."""
        tab = self.open_site()
        tab.prepare()
        return tab

    def open_site(self) -> Tab:
        """A new tab of the site as it was built."""
        tab = self.open_page("index.html")
        tab.wait_for("globalThis.wgtrain && true")
        return tab

    def open_page(self, name: str) -> Tab:
        """A new tab of some other page."""
        return Tab(self._driver, self._context, f"{self.origin}/{name}", self.strangers)

    def answer(self, address: str, files: dict[str, bytes]) -> None:
        """Stands in for another origin: these files below an address, and nothing else."""

        def fulfill(route: Any) -> Any:
            name = route.request.url.removeprefix(address)
            if name not in files:
                return route.fulfill(status=404, headers=CORS)
            type_ = mimetypes.guess_type(name)[0] or "application/octet-stream"
            route.fulfill(body=files[name], content_type=type_, headers=CORS)

        self._driver.call(self._context.route, f"{address}**", fulfill)

    def close(self) -> None:
        """Closes all of them."""
        self._driver.call(self._context.close)
