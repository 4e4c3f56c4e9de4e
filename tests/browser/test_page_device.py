"""The browser's device against `device_contract.py`, unchanged."""

from typing import Any

import device_contract as contract
import pytest

pytestmark = [pytest.mark.browser, pytest.mark.gpu]


@pytest.mark.parametrize("name", contract.CHECKS)
def test_contract(tab: Any, name: str) -> None:
    tab.python(
        "import device_contract; await device_contract.CHECKS[values.name]()",
        name=name,
    )
