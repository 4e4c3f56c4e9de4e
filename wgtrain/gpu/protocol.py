"""What the engine asks of a GPU, and nothing more.

`native.py` gives it through wgpu-py, `browser.py` through a page's own WebGPU.

Opening a device, compiling and reading back are `async`, because a browser waits there; everything
else is queued and returns at once. The device frees no buffer by itself: whoever creates one frees
it, `close` frees all. Threads take turns, and `close` waits for its own; a forked child is refused.
"""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np

from wgtrain.errors import OptionError
from wgtrain.files.source import Source

INDEX_VARIABLE = "WGTRAIN_ADAPTER_INDEX"  # environment, in place of an adapter index
CHECKS_VARIABLE = "WGTRAIN_SHADER_CHECKS"  # environment: what is added to shaders natively
# What a device is opened with where its adapter has it: our name, and those of adapters.
FEATURES = {
    "subgroups": ("subgroup", "subgroups"),
    "f16": ("shader-f16",),
    "timestamp-query": ("timestamp-query",),
}
_SIGNS = {"subgroups": re.compile(r"\bsubgroup[A-Z_]"), "f16": re.compile(r"\bf16\b")}  # in code
Data = bytes | bytearray | memoryview | np.ndarray


@dataclass(frozen=True)
class AdapterInfo:
    """One GPU (or software driver) as `wgtrain doctor` shows it; `limits` in bytes and counts."""

    index: int
    name: str
    type: str  # "DiscreteGPU", "IntegratedGPU", "CPU", ...
    backend: str  # "Vulkan", "Metal", "D3D12", "OpenGL", "WebGPU"
    driver: str
    limits: dict[str, int] = field(default_factory=dict)
    features: tuple[str, ...] = ()


@dataclass(frozen=True)
class Limits:
    """The limits the plan has to obey; the defaults are those every WebGPU adapter grants."""

    binding: int = 128 << 20  # bytes of one storage binding
    buffer: int = 256 << 20  # bytes of one buffer
    uniform: int = 64 << 10  # bytes of one uniform binding
    storage_buffers: int = 8  # per shader stage
    workgroup_memory: int = 16 << 10
    invocations: int = 256  # per workgroup
    workgroups: int = 65_535  # per dimension
    alignment: int = 256  # of binding offsets


class Buffer(NamedTuple):
    """A device buffer: `handle` is the platform's own object."""

    handle: Any
    size: int
    label: str


class Binding(NamedTuple):
    """One entry of a bind group: a window of a buffer at a slot of the kernel."""

    slot: int
    buffer: Buffer
    offset: int
    size: int


class Slot(NamedTuple):
    """One binding a kernel declares: `access` is "read", "read_write" or "uniform"."""

    number: int
    access: str


class Dispatch(NamedTuple):
    """One prepared kernel call; `grid` is the row of the counts table that holds its workgroup
    counts.
    """

    pipeline: Any
    bind_group: Any
    grid: int


class Room(Protocol):
    """What memory there is: all that a plan asks of a device before it is built."""

    limits: Limits
    budget: int | None

    @property
    def allocated(self) -> int:
        """Bytes of all live buffers."""


class Device(Protocol):
    """A GPU opened for work."""

    info: AdapterInfo
    limits: Limits
    features: frozenset[str]  # of FEATURES
    subgroup_size: int  # invocations of a subgroup as measured; 0 = no subgroups
    budget: int | None  # bytes that may be allocated, None = no limit of ours

    @property
    def allocated(self) -> int:
        """Bytes of all live buffers."""

    def find_budget(self) -> str:
        """Sets `budget` where it is None and something says how much there is; who, in words."""

    def create_buffer(self, size: int, label: str, *, uniform: bool = False) -> Buffer:
        """A zeroed buffer of `size` bytes (rounded up to 4); OutOfMemoryError when it does not
        fit.
        """

    def free(self, buffer: Buffer) -> None:
        """Destroys a buffer; work already queued may still use it."""

    def write(self, buffer: Buffer, offset: int, data: Data) -> None:
        """Queues a write of `data` at `offset` (a multiple of 4); its end is padded with zeros to a
        multiple of 4.

        DeviceError for a range outside the buffer, DeviceLostError for a freed one, as in `read`.
        """

    async def write_from(
        self, source: Source, start: int, size: int, buffer: Buffer, offset: int
    ) -> None:
        """Queues a write of `size` bytes from `start` of a file, otherwise like `write`.

        In a page they do not pass through the Python heap. FileError where they cannot be read.
        """

    async def read(self, buffer: Buffer, offset: int, size: int) -> bytes:
        """Waits for all queued work and returns `size` bytes from `offset`, both multiples of 4."""

    async def settle(self) -> None:
        """Raises what is wrong with a call so far that a page would tell later, such as
        OutOfMemoryError for a buffer that is not there.
        """

    async def pipeline(self, name: str, code: str, slots: Sequence[Slot]) -> Any:
        """The `main` of WGSL `code`: compiled, or the one compiled before from the same code.

        ShaderError names kernel, line and message; it is raised again at every try.
        """

    def bind(self, pipeline: Any, bindings: Sequence[Binding]) -> Any:
        """A bind group of a pipeline; DeviceError for a window outside of a buffer, DeviceLostError
        for a freed one.
        """

    def program(self, dispatches: Sequence[Dispatch]) -> Any:
        """A list of prepared dispatches, handed over once."""

    def run(self, program: Any, counts: np.ndarray, cuts: Sequence[int]) -> None:
        """Replays a program: `counts` uint32 (grids, 3); a submit ends before each index in `cuts`
        and at the end.

        A dispatch whose workgroup counts hold a zero is skipped. DeviceLostError if one of its
        buffers was freed.
        """

    async def profile(self, program: Any, counts: np.ndarray, cuts: Sequence[int]) -> list[float]:
        """`run`, with a pass for each dispatch, waited for: the seconds each took, 0 if skipped.

        From timestamps where `features` has "timestamp-query". Natively otherwise by the clock,
        each dispatch submitted alone; a page without timestamps raises DeviceError.
        """

    def close(self) -> None:
        """Frees every buffer and the device; later calls raise DeviceLostError."""


def chosen_adapter(infos: Sequence[AdapterInfo], adapter_index: int | None) -> int:
    """The number of the adapter to open; OptionError for one that is not there."""
    given = adapter_index if adapter_index is not None else os.environ.get(INDEX_VARIABLE) or "0"
    try:
        if isinstance(given, str) and not re.fullmatch(r" *[0-9]+ *", given):
            raise ValueError
        index = int(given)
        if not 0 <= index < len(infos):
            raise ValueError
    except ValueError:
        names = ", ".join(f"{i.index} = {i.name} ({i.backend})" for i in infos)
        where = "adapter index" if adapter_index is not None else INDEX_VARIABLE
        raise OptionError(f"{where} {given!r} is not one of: {names}") from None
    return index


def granted_limits(info: AdapterInfo, limits: str | None = None) -> Limits:
    """The limits of a device opened with `limits`, see `open_device`."""
    if limits == "default":
        return Limits()
    return Limits(
        binding=info.limits["max-storage-buffer-binding-size"] & ~255,
        buffer=info.limits["max-buffer-size"] & ~255,
    )


def features_of(code: str) -> frozenset[str]:
    """The features that WGSL code uses; comments do not count."""
    plain = re.sub(r"//.*", "", code)
    return frozenset(name for name, sign in _SIGNS.items() if sign.search(plain))


def wanted_features(info: AdapterInfo, limits: str | None) -> dict[str, str]:
    """{our name: the adapter's} of the features that a device opened with `limits` gets.

    With "default" none that changes which kernels run.
    """
    names = ["timestamp-query"] if limits == "default" else FEATURES
    return {name: it for name in names for it in FEATURES[name] if it in info.features}
