"""Every kernel against its oracle, in the page: the native tests as they stand."""

from typing import Any

import pytest

pytestmark = [pytest.mark.browser, pytest.mark.gpu]


def test_kernels(tab: Any) -> None:
    files = "'/tests/test_kernels.py', '/tests/test_product_variants.py'"
    found = tab.python(f"import page_pytest; page_pytest.run({files})")
    assert found["failed"] == [] and found["code"] == 0
    assert found["passed"] > 100
