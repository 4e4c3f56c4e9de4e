"""Fixtures of every test: a fixed seed, numpy errors that raise, the data folder, one device."""

import os
import random
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# Before anything imports the libraries that read them.
os.environ.setdefault("XDG_RUNTIME_DIR", tempfile.gettempdir())  # drivers warn where it is unset
os.environ.setdefault("OMP_NUM_THREADS", "1")  # the models are tiny
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import needs
import numpy as np
import pytest

# A shell that runs the tests in the background has them ignore Ctrl-C, and so what they start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
# What nohup has them ignore they go on to ignore, by a handler, which nothing inherits.
if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, lambda *_: None)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What drives a browser is slow."""
    for item in items:
        if item.get_closest_marker("browser"):
            item.add_marker("slow")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """A file's tests share models, and all browser tests one browser: each is for one process."""
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            path: str = super()._split_scope(nodeid)
            return path.rpartition("/")[0] if "/browser/" in path else path

    config.option.loadscopereorder = False  # the browser's come first, and take longest
    return Scheduling(config, log)


@pytest.fixture(autouse=True, scope="session")
def no_measured_tables(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Kernels are those of the default tables, whatever was measured on this machine."""
    os.environ["WGTRAIN_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(autouse=True)
def seed() -> None:
    """The same random numbers for every test, whatever ran before it."""
    random.seed(0)
    np.random.seed(0)
    if torch := sys.modules.get("torch"):
        torch.manual_seed(0)


@pytest.fixture(autouse=True)
def numpy_errors() -> Iterator[None]:
    """Overflow, division by zero or a new NaN in numpy fails the test; underflow is no error."""
    with np.errstate(over="raise", divide="raise", invalid="raise"):
        yield


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of shared test data."""
    return needs.data()


@pytest.fixture(scope="session")
def device() -> Iterator[Any]:
    """A GPU with WebGPU's default limits, because native accepts much that a browser refuses."""
    from wgtrain import gpu

    opened = gpu.run(gpu.open_device(limits="default"))
    yield opened
    opened.close()


@pytest.fixture(scope="session")
def full_device() -> Iterator[Any]:
    """The GPU with the features it has, for kernels that need them."""
    from wgtrain import gpu
    from wgtrain.engine.probe import find_subgroup_size

    opened = gpu.run(gpu.open_device())
    gpu.run(find_subgroup_size(opened))
    yield opened
    opened.close()


@pytest.fixture(autouse=True, scope="session")
def models_share_a_device(request: pytest.FixtureRequest) -> Iterator[None]:
    """Models are on one of two devices, which keep what was compiled; those that ask for a budget
    or an adapter, and tests with `own_device`, get one of their own.
    """
    if sys.platform == "emscripten":  # in a page kernels are tested, not models
        yield
        return
    from shared_device import borrow

    from wgtrain.infer import opening

    opened = opening.open_device

    async def open_device(*arguments: Any, limits: str | None = None, **options: Any) -> Any:
        asked = [x for x in (*arguments, *options.values()) if x is not None]
        if asked or os.environ.get("WGTRAIN_ADAPTER_INDEX") or limits not in (None, "default"):
            return await opened(*arguments, limits=limits, **options)
        return borrow(request.getfixturevalue("device" if limits else "full_device"))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(opening, "open_device", open_device)
        yield


@pytest.fixture
def own_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model of this test has a device of its own, which goes away with it."""
    from wgtrain import gpu
    from wgtrain.infer import opening

    monkeypatch.setattr(opening, "open_device", gpu.open_device)


@pytest.fixture(scope="session")
def checkers(device: Any, full_device: Any) -> Iterator[Any]:
    """What checks kernels: on the first device, and on the second (see `kernel_check.fit`)."""
    from kernel_check import Checker

    made = Checker(device), Checker(full_device)
    yield made
    for checker in made:
        checker.close()


@pytest.fixture
def shaders(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    """Shader files by path that are read in place of those on disk."""
    from wgtrain.engine import kernel

    replaced: dict[str, str] = {}
    on_disk = kernel.read_shader
    monkeypatch.setattr(kernel, "read_shader", lambda path: replaced.get(path) or on_disk(path))
    kernel._load.cache_clear()
    yield replaced
    kernel._load.cache_clear()
