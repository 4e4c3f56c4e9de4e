"""Runs pytest inside the page, for tests that block on the device.

They may because this browser can switch stacks (JSPI), which the package itself never asks for.
"""

from typing import Any

from pyodide.ffi import run_sync

import wgtrain.gpu


class _Reports:
    """Keeps what failed, and how many passed."""

    def __init__(self) -> None:
        self.passed, self.failed = 0, []

    def pytest_collectreport(self, report: Any) -> None:
        if report.failed:
            self.failed.append(f"{report.nodeid}: {report.longreprtext[-1500:]}")

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.failed:
            self.failed.append(f"{report.nodeid}: {report.longreprtext[-1500:]}")
        elif report.when == "call" and report.passed:
            self.passed += 1


def run(*arguments: str) -> dict[str, Any]:
    """{"passed": how many, "failed": their texts, "errors": pytest's own exit code}."""
    wgtrain.gpu.run = run_sync
    import pytest

    reports = _Reports()
    code = pytest.main(["-q", "-p", "no:cacheprovider", *arguments], plugins=[reports])
    return {"passed": reports.passed, "failed": reports.failed, "code": int(code)}
