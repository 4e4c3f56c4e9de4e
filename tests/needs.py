"""What a test cannot do without: the shared data and the oracles.

Where one is missing the test is skipped; where WGTRAIN_REQUIRE_DATA is set, as in CI, it fails.
"""

import atexit
import functools
import importlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent


def data() -> Path:
    """The folder of shared test data: `WGTRAIN_DATA`, or `../shared/data` beside the checkout."""
    folder = Path(os.environ.get("WGTRAIN_DATA") or ROOT.parent / "shared" / "data")
    if not folder.is_dir():
        missing(f"no shared test data at {folder}; WGTRAIN_DATA names another place")
    return folder


def package(name: str) -> Any:
    """Imports an oracle, such as "torch" or "llama_cpp"; mark its test with `oracle`."""
    first = name not in sys.modules
    try:
        module = importlib.import_module(name)
    except ImportError as error:
        missing(f"{name} is not installed ({error}); scripts/setup --test does it")
    if name == "torch" and first:
        module.set_num_threads(1)  # the models are tiny
        module.manual_seed(0)  # as before every other test
    return module


class Later:
    """An oracle that is imported where it is first used: the quick part leaves its tests out."""

    def __init__(self, name: str):
        self._name = name

    def __getattr__(self, name: str) -> Any:
        return getattr(package(self._name), name)


def missing(what: str) -> None:
    """Skips, or fails where nothing may be missing."""
    if os.environ.get("WGTRAIN_REQUIRE_DATA"):
        pytest.fail(what, pytrace=False)
    pytest.skip(what, allow_module_level=True)


def render_go(tasks: list[dict[str, Any]]) -> Any:
    """What Go's text/template makes of Ollama's templates; see ollama_template.go."""
    done = subprocess.run([_go_program()], input=json.dumps(tasks), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@functools.cache
def _go_program() -> str:
    """The program that renders, built once a process."""
    beside = Path(sys.executable).with_name("go")
    go = str(beside) if beside.exists() else shutil.which("go")
    if go is None:
        missing("no Go toolchain; scripts/setup --test installs one")
    folder = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, folder, True)
    out, source = f"{folder}/render", Path(__file__).with_name("ollama_template.go")
    command = [str(go), "build", "-o", out, str(source)]
    environment = {**os.environ, "GOTOOLCHAIN": "local"}
    if not {"HOME", "XDG_CACHE_HOME", "GOCACHE"} & os.environ.keys():
        environment["GOCACHE"] = f"{folder}/cache"
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return out
