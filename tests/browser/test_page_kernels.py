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


def test_kernels_of_decoding(tab: Any) -> None:
    """With one weight type of whole rows and one of blocks: readers of the others are the same."""
    chosen = "F32 or Q8_0 or store or norms or loaded or decode[12] or decode[64]"
    arguments = f"'/tests/test_decode_kernels.py', '-k', '{chosen}'"
    found = tab.python(f"import page_pytest; page_pytest.run({arguments})")
    assert found["failed"] == [] and found["code"] == 0
    assert found["passed"] > 15
