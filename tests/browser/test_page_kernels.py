"""Every kernel against its oracle, in the page: `test_kernels.py` as it stands."""

from typing import Any

import pytest

pytestmark = [pytest.mark.browser, pytest.mark.gpu]


def test_kernels(tab: Any) -> None:
    found = tab.python("import page_pytest; page_pytest.run('/tests/test_kernels.py')")
    assert found["failed"] == [] and found["code"] == 0
    assert found["passed"] > 100
