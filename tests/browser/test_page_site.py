"""What the page is made of, and what it may do."""

from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.browser

FILES = """
import json, jinja2, numpy, wgtrain.train.trainer
[module.__file__ for module in (json, jinja2, numpy, wgtrain.train.trainer)]
"""
EVERYTHING = """
import importlib, pkgutil, wgtrain
names = [found.name for found in pkgutil.walk_packages(wgtrain.__path__, "wgtrain.")]
for name in [*names, *(f"wgtrain.{name}" for name in wgtrain.__all__)]:
    importlib.import_module(name) if name in names else getattr(wgtrain, name.rpartition(".")[2])
names
"""
SLOW = """
import asyncio
before = values.number
await asyncio.sleep(0.2 if before == 1 else 0)
[before, values.number]
"""


def test_the_page_compiles_no_python(tab: Any) -> None:
    assert all(path.endswith(".pyc") for path in tab.python(FILES))


def test_all_of_the_package_that_the_page_has_can_be_imported(tab: Any) -> None:
    names = tab.python(EVERYTHING)
    assert "wgtrain.train.trainer" in names and "wgtrain.gpu.browser" in names
    assert not [name for name in names if name.startswith(("wgtrain.bench", "wgtrain.cli"))]


def test_calls_under_way_at_one_time_have_their_own_values(tab: Any) -> None:
    call = "Promise.all([1, 2].map((number) => wgtrain.python(code, { number })))"
    found = tab.javascript(f"((code) => {call})({SLOW!r})")
    assert found == [[1, 1], [2, 2]]


def test_nothing_of_the_page_is_evaluated_from_text(tab: Any, site: Path) -> None:
    """The server's policy forbids it; in this page all else of the tests runs."""
    with pytest.raises(Exception, match="unsafe-eval"):
        tab.python("from pyodide.code import run_js; run_js('1')")
    own = [path.read_text("utf-8") for path in (*site.glob("*.js"), *site.glob("*.html"))]
    assert len(own) >= 4 and not [text for text in own if "new Function" in text]
