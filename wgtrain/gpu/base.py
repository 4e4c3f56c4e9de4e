"""What both back ends share: buffers and pipelines that live, memory, what a shader error says."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, NamedTuple

from wgtrain.errors import DeviceError, DeviceLostError, OutOfMemoryError, ShaderError
from wgtrain.gpu.memory import GIVEN, find_memory
from wgtrain.gpu.protocol import AdapterInfo, Buffer, Dispatch, Limits, Slot, features_of

# Kept by a device, the last used ones: a software driver takes about 1.5 MB of memory for each, a
# run needs 30, and a sweep tries hundreds.
MOST_PIPELINES = 256
CLOSED = "the device was closed"


class BindGroup(NamedTuple):
    """`clash`: the label of a buffer that a browser refuses, bound readable and writable, or ""."""

    handle: Any
    buffers: tuple[Buffer, ...]
    clash: str = ""


class Program:
    """Prepared dispatches, which `handle` holds as the platform wants them.

    `checked_at`: how many buffers had ever been freed when these were last seen alive.
    """

    def __init__(self, handle: Any, dispatches: Sequence[Dispatch]):
        groups: list[BindGroup] = [d.bind_group for d in dispatches]
        self.handle, self.size = handle, len(dispatches)
        self.buffers = {id(b.handle): b for group in groups for b in group.buffers}
        self.clash = next((group.clash for group in groups if group.clash), "")
        self.checked_at = -1


class DeviceBase(ABC):
    """A device's buffers and pipelines; a back end adds the platform's calls."""

    def __init__(
        self,
        info: AdapterInfo,
        limits: Limits,
        budget: int | None,
        features: Iterable[str],
    ):
        self.info, self.limits, self.budget = info, limits, budget
        self._budget_origin = "" if budget is None else GIVEN
        self.features = frozenset(features)
        self.subgroup_size = 0
        self._buffers: dict[int, Buffer] = {}
        self._pipelines: dict[tuple[str, tuple[Slot, ...]], Any] = {}
        self._frees = 0
        self._gone = ""  # why nothing can be done any more

    @property
    def allocated(self) -> int:
        """Bytes of all live buffers; counted, so that no interrupt makes the number a wrong one."""
        return sum(buffer.size for buffer in [*self._buffers.values()])

    def find_budget(self) -> str:
        if not self._budget_origin:
            memory = find_memory(self.info)
            self._budget_origin = memory.origin
            if memory.nbytes is not None:
                self.budget = self.allocated + memory.nbytes
        return self._budget_origin

    @abstractmethod
    def _errors(self, doing: str) -> AbstractContextManager[None]:
        """Turns the platform's errors into ours; DeviceLostError on one that is gone."""

    @abstractmethod
    def _allocate(self, size: int, label: str, uniform: bool) -> Any:
        """The platform's buffer, which has a method `destroy`."""

    @abstractmethod
    async def _compile(self, name: str, code: str, slots: Sequence[Slot]) -> Any:
        """The platform's pipeline; ShaderError names kernel, line and message."""

    async def pipeline(self, name: str, code: str, slots: Sequence[Slot]) -> Any:
        key = code, tuple(slots)
        doing = f"compiling kernel '{name}'"
        with self._errors(doing):
            found = self._pipelines.pop(key, None)
        if found is None:
            found = await self._compile(name, code, slots)
        with self._errors(doing):  # a page may have closed the device meanwhile
            self._pipelines[key] = found  # the last used one stands last
            if len(self._pipelines) > MOST_PIPELINES:
                del self._pipelines[next(iter(self._pipelines))]
        return found

    def create_buffer(self, size: int, label: str, *, uniform: bool = False) -> Buffer:
        size = max(-(-size // 4) * 4, 4)
        if size > self.limits.buffer:
            raise OutOfMemoryError(
                f"buffer '{label}' needs {size:,} bytes; this adapter allows "
                f"{self.limits.buffer:,} in one buffer"
            )
        with self._errors(f"creating buffer '{label}' of {size:,} bytes"):
            if self.budget is not None and self.allocated + size > self.budget:
                raise OutOfMemoryError(
                    f"buffer '{label}' needs {size:,} bytes, {self.allocated:,} are in use and the "
                    f"budget is {self.budget:,}"
                )
            handle = self._allocate(size, label, uniform)
            buffer = Buffer(handle, size, label)
            self._buffers[id(handle)] = buffer
        return buffer

    def free(self, buffer: Buffer) -> None:
        if self._buffers.pop(id(buffer.handle), None) is not None:
            self._frees += 1
            self._destroy(buffer.handle)

    async def settle(self) -> None:
        with self._errors("waiting for the GPU"):
            pass

    def _destroy(self, handle: Any) -> None:
        handle.destroy()

    def _drop_all(self) -> None:
        self._pipelines.clear()
        while self._buffers:  # no name may stay for a buffer: its handle keeps the device alive
            self.free(next(iter(self._buffers.values())))

    def _check_alive(self, buffers: Iterable[Buffer]) -> None:
        for buffer in buffers:
            if id(buffer.handle) not in self._buffers:
                raise DeviceLostError(f"buffer '{buffer.label}' was freed")

    def _check_program(self, program: Program) -> None:
        if program.checked_at != self._frees:
            self._check_alive(program.buffers.values())
            program.checked_at = self._frees

    def _check_features(self, name: str, code: str) -> frozenset[str]:
        """The features that a kernel uses; ShaderError where the device lacks one."""
        used = features_of(code)
        if missing := sorted(used - self.features):
            raise ShaderError(
                f"kernel '{name}' uses {', '.join(missing)}, which this device was not opened with"
            )
        return used

    @contextmanager
    def _access(self, doing: str, buffer: Buffer, offset: int, size: int) -> Iterator[None]:
        """Around a read or write: `size` bytes at `offset` have to be whole words of a live
        buffer.
        """
        if offset < 0 or size < 0 or offset + size > buffer.size or offset % 4 or size % 4:
            raise DeviceError(
                f"buffer '{buffer.label}' of {buffer.size:,} bytes: {size:,} bytes at {offset:,} "
                "are outside of it or no multiples of 4"
            )
        with self._errors(f"{doing} buffer '{buffer.label}'"):
            self._check_alive([buffer])
            yield


def compile_message(name: str, code: str, line: int, text: str) -> str:
    """`kernel 'name', line N: message` with the source line; without a line where N is 0."""
    if not line:
        return f"kernel '{name}': {text.strip()}"
    lines = code.splitlines()
    source = lines[line - 1].strip() if line <= len(lines) else ""
    return f"kernel '{name}', line {line}: {text.strip()}\n    {source}"
