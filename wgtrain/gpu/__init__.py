"""The GPU: a small device protocol, and the way to open one on this platform.

Natively a coroutine of this package never really suspends, so `run` can drive it anywhere, also
inside a running event loop.
"""

import asyncio
import sys
from collections.abc import Coroutine, Iterable
from typing import Any

from wgtrain.gpu.memory import (
    GIVEN,
    UNKNOWN,
    Memory,
    find_memory,
    format_size,
    read_gpu_memory,
    read_size,
)
from wgtrain.gpu.protocol import (
    INDEX_VARIABLE,
    AdapterInfo,
    Binding,
    Buffer,
    Device,
    Dispatch,
    Limits,
    Room,
    Slot,
    chosen_adapter,
    features_of,
    granted_limits,
    wanted_features,
)

__all__ = [
    "GIVEN",
    "INDEX_VARIABLE",
    "UNKNOWN",
    "AdapterInfo",
    "Binding",
    "Buffer",
    "Device",
    "Dispatch",
    "Limits",
    "Memory",
    "Room",
    "Slot",
    "chosen_adapter",
    "features_of",
    "find_adapters",
    "find_memory",
    "format_size",
    "granted_limits",
    "list_adapters",
    "open_device",
    "read_gpu_memory",
    "read_size",
    "run",
    "together",
    "wanted_features",
]


def run(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Drives a coroutine that completes without suspending, and returns its result."""
    try:
        coroutine.send(None)
    except StopIteration as stop:
        return stop.value
    coroutine.close()
    raise RuntimeError("this call has to wait for the platform: await its `aio` form instead")


async def together(coroutines: Iterable[Coroutine[Any, Any, Any]]) -> list[Any]:
    """The results of all: a page waits for them at the same time, natively nothing waits."""
    if sys.platform == "emscripten":
        return list(await asyncio.gather(*coroutines))
    return [await coroutine for coroutine in coroutines]


async def find_adapters() -> list[AdapterInfo]:
    """All adapters of this machine, or the one a page is given, strongest first.

    `index` is what `--adapter-index` takes.
    """
    if sys.platform == "emscripten":
        from wgtrain.gpu import browser

        return await browser.find_adapters()
    from wgtrain.gpu import native

    return native.list_adapters()


def list_adapters() -> list[AdapterInfo]:
    """The blocking form of `find_adapters`; not in a page."""
    found: list[AdapterInfo] = run(find_adapters())
    return found


async def open_device(
    adapter_index: int | None = None, *, limits: str | None = None, budget: int | None = None
) -> Device:
    """Opens a GPU: the strongest adapter, or number `adapter_index` of `list_adapters`.

    `limits="default"` grants only what every WebGPU adapter has; None asks for what large models
    need, and for subgroups and f16 where the adapter has them. `budget`: bytes that may
    be allocated; None = free main memory for a software adapter, else no limit of ours. The
    environment variable WGTRAIN_ADAPTER_INDEX stands in for a missing `adapter_index`. A page is
    given one adapter, and knows no physical memory.
    """
    if sys.platform == "emscripten":
        from wgtrain.gpu import browser

        return await browser.open_device(adapter_index, limits=limits, budget=budget)
    from wgtrain.gpu import native

    return native.open_device(adapter_index, limits=limits, budget=budget)
