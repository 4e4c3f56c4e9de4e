"""The site that takes Pyodide and numpy from a CDN, whose part the test plays."""

import hashlib
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path

import build_web
import pytest
from chromium import Driver, Tabs, serving

from wgtrain.web.server import Server

pytestmark = pytest.mark.browser

PYODIDE = build_web.MODULES / "pyodide"
LOCK = json.loads((PYODIDE / build_web.LOCK).read_text())
NUMPY = LOCK["packages"]["numpy"]["file_name"]


@pytest.fixture(scope="module")
def cdn_site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the site."""
    out = build_web.build(tmp_path_factory.mktemp("cdn") / "web", cdn=True)
    assert not list(out.rglob("*numpy*")) and not (out / "pyodide").exists()
    return out


@pytest.fixture
def tabs(driver: Driver, cdn_site: Path) -> Iterator[Tabs]:
    """Tabs of the site, under the policy that it says itself."""
    with serving(Server(cdn_site)) as origin:
        opened = Tabs(driver, origin)
        yield opened
        assert not opened.strangers
        opened.close()


def play_cdn(tabs: Tabs, sha256: str) -> set[str]:
    """Answers for the CDN, whose lock gives numpy this hash; the addresses it has.

    Its numpy is the one of the tests, which is not Pyodide's.
    """
    version = json.loads((PYODIDE / "package.json").read_text())["version"]
    address = build_web.CDN.format(version=version)
    lock = json.loads(json.dumps(LOCK))
    lock["packages"]["numpy"]["sha256"] = sha256
    files = {name: (PYODIDE / name).read_bytes() for name in build_web.PYODIDE}
    files |= {build_web.LOCK: json.dumps(lock).encode(), NUMPY: build_web.test_numpy().read_bytes()}
    tabs.answer(address, files)
    return {address + name for name in files}


def test_it_starts_from_the_cdn(tabs: Tabs) -> None:
    right = hashlib.sha256(build_web.test_numpy().read_bytes()).hexdigest()
    addresses = play_cdn(tabs, right)
    tab = tabs.open_site()
    assert tab.python("import numpy, wgtrain; wgtrain.__name__") == "wgtrain"
    assert set(tabs.strangers) == addresses
    tabs.strangers.clear()


def test_it_refuses_a_numpy_of_another_hash(tabs: Tabs) -> None:
    expected = LOCK["packages"]["numpy"]["sha256"]
    addresses = play_cdn(tabs, expected)
    tab = tabs.open_site()
    said = tab.wait_for("document.body.innerText.includes('numpy') && document.body.innerText")
    assert said.startswith("numpy does not come, or is not the one of Pyodide's lock file: "), said
    with pytest.raises(Exception, match="numpy does not come"):
        tab.python("import wgtrain")
    assert set(tabs.strangers) == addresses
    tabs.strangers.clear()


def test_what_the_site_holds(cdn_site: Path) -> None:
    config = json.loads((cdn_site / "config.json").read_text())
    version = json.loads((PYODIDE / "package.json").read_text())["version"]
    assert config["pyodide"] == f"https://cdn.jsdelivr.net/pyodide/v{version}/full/"
    assert config["load"] == ["numpy"] and len(config["unpack"]) == 2
    assert sum(path.stat().st_size for path in cdn_site.rglob("*") if path.is_file()) < 4 << 20
    assert all((cdn_site / path).is_file() for path in config["unpack"])
    (wheel,) = (cdn_site / "packages").glob("wgtrain-*-py3-none-any.whl")  # for anyone's page
    assert "wgtrain/cli/main.py" in zipfile.ZipFile(wheel).namelist()
    inside = zipfile.ZipFile(cdn_site / "packages/wgtrain.zip").namelist()
    assert "wgtrain/train/trainer.pyc" in inside and "wgtrain/cli/main.pyc" not in inside
