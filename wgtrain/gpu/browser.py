"""The device protocol on a page's own WebGPU, through Pyodide; best in a module worker.

All calls into the browser are in `device.js`; a step is one of them. A browser reports errors late,
so what can be known at once (freed buffers, windows, aliasing, workgroup counts) is checked here,
and the rest is raised by the next call or await. Once wgpu-py has a browser back end of its own, it
can stand in for this module.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np

from wgtrain.errors import (
    DeviceError,
    DeviceLostError,
    FileError,
    OptionError,
    OutOfMemoryError,
    ShaderError,
)
from wgtrain.files.scripts import script
from wgtrain.files.source import Source, read_range
from wgtrain.gpu.base import CLOSED, BindGroup, DeviceBase, Program, compile_message
from wgtrain.gpu.protocol import (
    AdapterInfo,
    Binding,
    Buffer,
    Data,
    Dispatch,
    Limits,
    Slot,
    granted_limits,
    wanted_features,
)

_NO_ADAPTER = (
    "this page is given no GPU: it needs a browser with WebGPU (navigator.gpu), a page from https "
    "or localhost, and a GPU that the browser does not block"
)


def _javascript() -> Any:
    return script("gpu/device.js")


def _kebab(name: str) -> str:
    return re.sub(r"[A-Z]", lambda m: "-" + m[0].lower(), name)


async def _find() -> tuple[AdapterInfo, Any]:
    found = await _javascript().find()
    if not found:
        raise DeviceError(_NO_ADAPTER)
    told = found.info.to_py()
    name = told["device"] or told["description"] or told["architecture"] or told["vendor"]
    software = told.get("isFallbackAdapter") or "swiftshader" in str(told).lower()
    info = AdapterInfo(
        0,
        name or "GPU",
        "CPU" if software else "Unknown",
        "WebGPU",
        " ".join(filter(None, (told["vendor"], told["architecture"], told["description"]))),
        {_kebab(key): int(value) for key, value in found.limits.to_py().items()},
        tuple(sorted(found.features.to_py())),
    )
    return info, found.adapter


async def find_adapters() -> list[AdapterInfo]:
    """The one adapter that a page is given, or none."""
    try:
        return [(await _find())[0]]
    except DeviceError:
        return []


async def open_device(
    adapter_index: int | None = None, *, limits: str | None = None, budget: int | None = None
) -> "BrowserDevice":
    """See `wgtrain.gpu.open_device`; a page has one adapter, number 0."""
    if adapter_index not in (None, 0):
        raise OptionError(f"adapter index {adapter_index}: a page has one adapter, 0")
    if limits not in (None, "default"):
        raise OptionError(f"limits = {limits!r}: allowed is 'default' or None")
    info, adapter = await _find()
    granted, wanted = granted_limits(info, limits), {}
    if limits != "default":
        wanted = {
            "maxStorageBufferBindingSize": granted.binding,
            "maxBufferSize": granted.buffer,
        }
    features = wanted_features(info, limits)
    try:
        device = await _javascript().open(adapter, _object(wanted), " ".join(features.values()))
    except Exception as error:
        raise DeviceError(f"{info.name} cannot be opened: {error}") from error
    return BrowserDevice(info, device, granted, budget, features)


def _object(values: dict[str, int]) -> Any:
    import js
    from pyodide.ffi import to_js

    return to_js(values, dict_converter=js.Object.fromEntries)


class _Pipeline(NamedTuple):
    handle: Any
    slots: dict[int, str]  # access by binding number


class BrowserDevice(DeviceBase):
    """`gpu.protocol.Device` on `navigator.gpu`."""

    def __init__(
        self,
        info: AdapterInfo,
        device: Any,
        limits: Limits,
        budget: int | None,
        features: Iterable[str],
    ):
        super().__init__(info, limits, budget, features)
        self.javascript = device

    @contextmanager
    def _errors(self, doing: str) -> Iterator[None]:
        from pyodide.ffi import JsException

        if self._gone:
            raise DeviceLostError(f"{doing}: {self._gone}")
        try:
            yield
        except JsException as error:
            kind = getattr(error, "kind", "device")
            doing = getattr(error, "doing", None) or doing
            text = getattr(error, "message", None) or str(error)
            if kind == "lost":
                raise DeviceLostError(f"{doing}: the GPU was lost: {text}") from error
            if kind == "memory":
                raise OutOfMemoryError(f"{doing}: the GPU has not enough memory left") from error
            if kind == "shader":
                raise ShaderError(text) from error
            if kind == "file":
                raise FileError(text) from error
            raise DeviceError(f"{doing}: {text}") from error

    def _allocate(self, size: int, label: str, uniform: bool) -> Any:
        return self.javascript.createBuffer(size, label, uniform)

    def write(self, buffer: Buffer, offset: int, data: Data) -> None:
        view = data.data if isinstance(data, np.ndarray) else memoryview(data)
        with self._access("writing", buffer, offset, -(-view.nbytes // 4) * 4):
            if view.nbytes:
                self.javascript.write(buffer.handle, offset, view.cast("B"))

    async def write_from(
        self, source: Source, start: int, size: int, buffer: Buffer, offset: int
    ) -> None:
        stream: Any = getattr(source, "javascript", None)
        if stream is None:
            self.write(buffer, offset, await read_range(source, start, size))
            return
        with self._access("writing", buffer, offset, -(-size // 4) * 4):
            await self.javascript.writeFrom(stream, start, size, buffer.handle, offset)

    async def read(self, buffer: Buffer, offset: int, size: int) -> bytes:
        with self._access("reading", buffer, offset, size):
            if not size:
                return b""
            found = await self.javascript.read(buffer.handle, offset, size)
        return found.to_bytes()

    async def settle(self) -> None:
        with self._errors("waiting for the GPU"):
            await self.javascript.settle()

    async def pipeline(self, name: str, code: str, slots: Sequence[Slot]) -> Any:
        with self._errors(f"compiling kernel '{name}'"):
            self.javascript.check()  # also where nothing has to be compiled
        return await super().pipeline(name, code, slots)

    async def _compile(self, name: str, code: str, slots: Sequence[Slot]) -> Any:
        from pyodide.ffi import to_js

        accesses = to_js([[slot.number, slot.access] for slot in slots])
        # On the first line, so that the others keep their numbers.
        enables = "".join(f"enable {used}; " for used in sorted(self._check_features(name, code)))
        try:
            with self._errors(f"compiling kernel '{name}'"):
                handle = await self.javascript.pipeline(name, enables + code, accesses)
        except ShaderError as error:
            line = getattr(error.__cause__, "line", 0) or 0
            raise ShaderError(compile_message(name, code, line, str(error))) from error
        return _Pipeline(handle, {slot.number: slot.access for slot in slots})

    def bind(self, pipeline: Any, bindings: Sequence[Binding]) -> Any:
        from pyodide.ffi import to_js

        buffers = tuple(b.buffer for b in bindings)
        with self._errors("binding buffers"):
            self._check_alive(buffers)
            self._check_bindings(pipeline.slots, bindings)
            numbers = to_js([n for b in bindings for n in (b.slot, b.offset, b.size)])
            handles = to_js([buffer.handle for buffer in buffers])
            handle = self.javascript.bind(pipeline.handle, numbers, handles)
        return BindGroup(handle, buffers, _clash(pipeline.slots, bindings))

    def _check_bindings(self, slots: dict[int, str], bindings: Sequence[Binding]) -> None:
        numbers = sorted(b.slot for b in bindings)
        if numbers != sorted(slots):
            raise DeviceError(f"slots {numbers} are bound, the kernel has {sorted(slots)}")
        for slot, buffer, offset, size in bindings:
            most = self.limits.uniform if slots[slot] == "uniform" else self.limits.binding
            if offset % self.limits.alignment or offset + size > buffer.size or size > most:
                raise DeviceError(
                    f"buffer '{buffer.label}' of {buffer.size:,} bytes: a window of {size:,} bytes "
                    f"at {offset:,} is not at a multiple of {self.limits.alignment}, ends outside "
                    f"of it, or is larger than {most:,}"
                )

    def program(self, dispatches: Sequence[Dispatch]) -> Any:
        from pyodide.ffi import to_js

        handle = self.javascript.program(
            to_js([d.pipeline.handle for d in dispatches]),
            to_js([d.bind_group.handle for d in dispatches]),
            to_js([d.grid for d in dispatches]),
        )
        return Program(handle, dispatches)

    def run(self, program: Any, counts: np.ndarray, cuts: Sequence[int]) -> None:
        with self._errors("running a plan"):
            table, ends = self._tables(program, counts, cuts)
            self.javascript.run(program.handle, table.data, ends.data)

    def _tables(
        self, program: Program, counts: np.ndarray, cuts: Sequence[int]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Workgroup counts and ends of submits as JavaScript takes them, after all checks."""
        self._check_program(program)
        if program.clash:
            raise DeviceError(f"buffer '{program.clash}' is bound readable and writable")
        if counts.size and int(counts.max()) > self.limits.workgroups:
            raise DeviceError(
                f"running a plan: {int(counts.max()):,} workgroups in one dimension; "
                f"{self.limits.workgroups:,} are allowed"
            )
        ends = np.array([*cuts, program.size], np.uint32)
        return np.ascontiguousarray(counts, np.uint32).reshape(-1), ends

    async def profile(self, program: Any, counts: np.ndarray, cuts: Sequence[int]) -> list[float]:
        with self._errors("timing a plan"):
            table, ends = self._tables(program, counts, cuts)
            if "timestamp-query" not in self.features:
                raise DeviceError("timing a plan: this page is given no timestamps")
            times = await self.javascript.profile(program.handle, table.data, ends.data)
        return [1e-9 * time for time in times.to_py()]

    def close(self) -> None:
        """Frees every buffer and the device."""
        if self._gone:
            return
        self._gone = CLOSED
        self._drop_all()
        self.javascript.close()


def _clash(slots: dict[int, str], bindings: Sequence[Binding]) -> str:
    """The buffer a dispatch would read and write, or write through windows that overlap; or ""."""
    for a, b in combinations(bindings, 2):
        if a.buffer.handle is not b.buffer.handle:
            continue
        access = {slots[a.slot], slots[b.slot]}
        overlap = a.offset < b.offset + b.size and b.offset < a.offset + a.size
        if "read_write" in access and (len(access) > 1 or overlap):
            return a.buffer.label
    return ""
