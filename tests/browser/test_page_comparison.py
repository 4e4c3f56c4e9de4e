"""The page of a comparison in Chromium: it asks for nothing, finds, sorts, and can be printed."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from chromium import Driver
from test_eval_page import HOSTILE, comparison, row

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def opened(driver: Driver, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """(the page from a file, what it asked for or complained of)."""
    rows = [row("one", "1"), row("two", "2"), row("three", "3"), row(HOSTILE, HOSTILE)]
    answers = {"base": ["1", "no", "3", HOSTILE], "tuned": ["1", " 2", "4", "?"]}
    found = comparison(rows, answers, base=[4.0, 3.0, 2.0, 1.0], tuned=[1.0, 0.5, 2.5, 1.0])
    path = Path(tmp_path_factory.mktemp("page"), "page.html")
    path.write_text(found.html, "utf-8")
    context = driver.call(driver.browser.new_context, color_scheme="dark")
    page = driver.call(context.new_page)
    heard: list[str] = []
    driver.call(page.on, "request", lambda request: heard.append(request.url))
    driver.call(page.on, "console", lambda message: heard.append(message.text))
    driver.call(page.on, "pageerror", lambda error: heard.append(str(error)))
    driver.call(page.on, "dialog", lambda dialog: heard.append("dialog"))
    driver.call(page.goto, path.as_uri())
    yield page, heard
    assert heard == [path.as_uri()]
    driver.call(context.close)


def lines(driver: Driver, page: Any, selector: str) -> list[str]:
    """What stands in elements that are seen."""
    script = """(selector) => [...document.querySelectorAll(selector)]
        .filter((element) => element.offsetParent).map((element) => element.textContent.trim())"""
    found: list[str] = driver.call(page.evaluate, script, selector)
    return found


def test_it_finds_and_sorts(driver: Driver, opened: Any) -> None:
    page, _ = opened
    rows, answers = "#rows tbody td:first-child", "#answers h3"
    assert lines(driver, page, rows) == ["1", "2", "3", "4"]
    change = page.locator("#rows thead button", has_text="change")
    for expected in (["1", "2", "4", "3"], ["3", "4", "2", "1"]):
        driver.call(change.click)
        assert lines(driver, page, rows) == expected
    driver.call(page.fill, "#find-rows", "THREE")
    assert lines(driver, page, rows) == ["3"]
    assert lines(driver, page, "#rows-shown") == ["1 of 4"]
    driver.call(page.fill, "#find-rows", "")
    driver.call(page.select_option, "#kind", "won")
    assert lines(driver, page, answers) == ["line 2"]
    driver.call(page.select_option, "#kind", "lost")
    assert lines(driver, page, answers) == ["line 3", "line 4"]
    driver.call(page.fill, "#find-answers", "alert(1)")
    assert lines(driver, page, answers) == ["line 4"]
    driver.call(page.select_option, "#kind", "")
    driver.call(page.fill, "#find-answers", "")
    assert len(lines(driver, page, answers)) == 4


def test_it_is_dark_on_screens_and_light_on_paper(driver: Driver, opened: Any) -> None:
    page, _ = opened
    color = "getComputedStyle(document.body).backgroundColor"
    assert driver.call(page.evaluate, color) == "rgb(22, 22, 21)"
    driver.call(page.emulate_media, media="print")
    assert driver.call(page.evaluate, color) == "rgb(255, 255, 255)"
    assert lines(driver, page, ".tools") == []
    assert driver.call(page.pdf)[:5] == b"%PDF-"
    driver.call(page.emulate_media, media="screen")
    wide = "document.documentElement.scrollWidth <= innerWidth"
    for width in (400, 1200):
        driver.call(page.set_viewport_size, {"width": width, "height": 800})
        assert driver.call(page.evaluate, wide), f"{width} pixels are too few"
