"""A real Chromium with the built site from loopback; a request to anywhere else fails the test."""

import os
import shutil
import sys
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import needs
import pytest

sys.path.insert(0, str(needs.ROOT / "scripts"))
import build_web

from wgtrain.serve import make_server

# WebGPU on SwiftShader; nothing that a browser does by itself; no name but loopback resolves.
FLAGS = """--enable-unsafe-webgpu --use-webgpu-adapter=swiftshader --no-sandbox --disable-quic
--no-first-run --disable-background-networking --disable-component-update --disable-sync
--host-resolver-rules=MAP*~NOTFOUND,EXCLUDE127.0.0.1 --disable-dev-shm-usage""".split()
FLAGS = [f.replace("MAP*~NOTFOUND,EXCLUDE", "MAP * ~NOTFOUND , EXCLUDE ") for f in FLAGS]
# What the tests themselves import in the page.
TEST_PACKAGES = ("gguf", "pytest", "pluggy", "iniconfig", "packaging", "pygments", "tqdm", "pyyaml")


class Tab:
    """One page with its worker. `strangers`: requests to another origin, which were refused."""

    def __init__(self, page: Any, origin: str, strangers: list[str]):
        self.page, self.origin, self.strangers = page, origin, strangers
        page.goto(origin + "/index.html")

    def python(self, code: str, **values: Any) -> Any:
        """Runs Python code in the worker; its last expression, made of plain values."""
        call = "([code, values]) => globalThis.wgtrain.python(code, values)"
        self.page.wait_for_function("globalThis.wgtrain")
        return self.page.evaluate(call, [code, values])

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
        self.page.close()


@pytest.fixture(scope="package")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site as people build it, but for numpy; beside it what the tests need."""
    build_web.install_modules()
    out = tmp_path_factory.mktemp("site") / "web"
    build_web.build(out, numpy=build_web.test_numpy())
    archive = build_web.pack_pure(TEST_PACKAGES, out / "tests.zip")
    with zipfile.ZipFile(archive, "a", zipfile.ZIP_DEFLATED) as more:
        for path in (*needs.ROOT.glob("tests/*.py"), *needs.ROOT.glob("tests/browser/page_*.py")):
            more.write(path, path.name)
    (out / "data").symlink_to(needs.data())
    return out


@pytest.fixture(scope="package")
def origin(site: Path) -> Iterator[str]:
    """The address of a server of the site."""
    server = make_server(site)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture(scope="package")
def browser() -> Iterator[Any]:
    """Chromium without a window."""
    playwright = needs.package("playwright.sync_api")
    path = os.environ.get("CHROMIUM") or shutil.which("chromium")
    if not path:
        needs._missing("chromium is not installed; scripts/setup --test does it")
    with playwright.sync_playwright() as running:
        launched = running.chromium.launch(executable_path=path, headless=True, args=FLAGS)
        yield launched
        launched.close()


class Tabs:
    """Opens tabs that share one profile, and so one private file system."""

    def __init__(self, browser: Any, origin: str):
        self.context, self.origin = browser.new_context(), origin
        self.strangers: list[str] = []
        self.context.on("request", self._look)

    def _look(self, request: Any) -> None:
        if not request.url.startswith((self.origin + "/", "blob:", "data:")):
            self.strangers.append(request.url)

    def open(self) -> Tab:
        """A new tab of the site."""
        return Tab(self.context.new_page(), self.origin, self.strangers)

    def close(self) -> None:
        """Closes all of them."""
        self.context.close()


@pytest.fixture(scope="package")
def shared(browser: Any, origin: str) -> Iterator[Tabs]:
    """The tabs that tests share where they leave nothing behind."""
    tabs = Tabs(browser, origin)
    yield tabs
    tabs.close()


@pytest.fixture(scope="package")
def shared_tab(shared: Tabs) -> Tab:
    """One tab with the tests unpacked."""
    tab = shared.open()
    tab.prepare()
    return tab


@pytest.fixture
def tab(shared_tab: Tab) -> Iterator[Tab]:
    """The shared tab; what asks for another origin fails."""
    yield shared_tab
    assert not shared_tab.strangers
