"""Fixtures of the page's tests; a request to another origin than the site's fails the test."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from chromium import Driver, Tab, Tabs, chromium, make_site, serving

from wgtrain.web.server import Server


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that `origin` serves."""
    return make_site(tmp_path_factory.mktemp("site") / "web")


@pytest.fixture(scope="session")
def origin(site: Path) -> Iterator[str]:
    """The address of a server of the site."""
    with serving(Server(site)) as address:
        yield address


@pytest.fixture(scope="session")
def driver() -> Iterator[Driver]:
    """Chromium without a window."""
    opened = Driver(chromium())
    yield opened
    opened.close()


@pytest.fixture
def tabs(driver: Driver, origin: str) -> Iterator[Tabs]:
    """Tabs of a fresh profile."""
    opened = Tabs(driver, origin)
    yield opened
    assert not opened.strangers
    opened.close()


@pytest.fixture(scope="session")
def shared_tab(driver: Driver, origin: str) -> Iterator[Tab]:
    """The tab that tests share where they leave nothing behind."""
    tabs = Tabs(driver, origin)
    yield tabs.open()
    tabs.close()


@pytest.fixture
def tab(shared_tab: Tab) -> Iterator[Tab]:
    """The shared tab; what asks for another origin fails."""
    yield shared_tab
    assert not shared_tab.strangers
