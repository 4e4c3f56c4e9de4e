"""What the page is made of."""

from typing import Any

import pytest

pytestmark = pytest.mark.browser

FILES = """
import json, jinja2, numpy, wgtrain.train.trainer
[module.__file__ for module in (json, jinja2, numpy, wgtrain.train.trainer)]
"""


def test_the_page_compiles_no_python(tab: Any) -> None:
    assert all(path.endswith(".pyc") for path in tab.python(FILES))
