"""The driver of the browser itself."""

import asyncio
from typing import Any

import pytest
from chromium import Tabs

pytestmark = pytest.mark.browser


def test_tabs_open_after_an_event_loop_has_run(driver: Any, origin: str) -> None:
    """`asyncio.run` leaves no current loop behind in this thread, which Playwright would need."""
    asyncio.run(asyncio.sleep(0))
    Tabs(driver, origin).close()
