"""Every kernel against its oracle, in the page: the native tests as they stand."""

from typing import Any

import pytest

pytestmark = [pytest.mark.browser, pytest.mark.gpu]


def test_kernels(tab: Any) -> None:
    names = ("kernels", "attention", "product_variants")
    files = ", ".join(f"'/tests/test_{name}.py'" for name in names)
    found = tab.python(f"import page_pytest; page_pytest.run({files})")
    assert found["failed"] == [] and found["code"] == 0
    assert found["passed"] > 100
