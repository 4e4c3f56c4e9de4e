"""The device protocol through wgpu-py (wgpu-native: Vulkan, Metal, DX12).

wgpu-native aborts the process on an error at `queue.submit`, so everything that could fail there is
checked before: closed or lost devices by our own flags, encoders by `finish()` right before the
submit.
"""

import gc
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import wgpu

from wgtrain.errors import DeviceError, DeviceLostError, OptionError, OutOfMemoryError, ShaderError
from wgtrain.files.source import Source, read_range
from wgtrain.gpu import native_library, native_pass, native_process, native_timing
from wgtrain.gpu.base import CLOSED, BindGroup, DeviceBase, Program, compile_message
from wgtrain.gpu.protocol import (
    AdapterInfo,
    Binding,
    Buffer,
    Data,
    Dispatch,
    Slot,
    chosen_adapter,
    granted_limits,
    wanted_features,
)
from wgtrain.turn import Turn

_STRENGTH = {"DiscreteGPU": 0, "IntegratedGPU": 1, "VirtualGPU": 2, "Unknown": 3, "CPU": 4}
_USAGE = wgpu.BufferUsage.COPY_SRC | wgpu.BufferUsage.COPY_DST
_WRITE_PIECE = 4 << 20  # larger writes go through in pieces, so that staging memory stays small
# The EGL of Linux writes to stderr where it finds no display. The folder has to be one where nobody
# can put a socket: whoever listens there would be taken for the display.
_QUIET = {"XDG_RUNTIME_DIR": "/dev/null", "EGL_LOG_LEVEL": "fatal"}
_NO_ADAPTER = (
    "no GPU adapter was found. Install a Vulkan driver for your GPU, or a software one "
    "(Debian, Ubuntu: apt-get install mesa-vulkan-drivers libvulkan1; Fedora: mesa-vulkan-drivers; "
    "Arch: vulkan-swrast)"
)


@contextmanager
def _quiet_drivers() -> Iterator[None]:
    """Around the loading of drivers: with `_QUIET` where a person has set nothing else."""
    before = {name: os.environ.get(name) for name in _QUIET if not os.environ.get(name)}
    if sys.platform == "linux":
        os.environ.update({name: _QUIET[name] for name in before})
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def _adapters() -> list[tuple[AdapterInfo, Any]]:
    native_process.claim()
    with _quiet_drivers():
        handles = wgpu.gpu.enumerate_adapters_sync()
    found: list[tuple[tuple[bool, int], int, Any, Any, str]] = []
    for adapter in handles:
        info = adapter.info
        if info["adapter_type"] == "Unknown" and not info["device"]:
            continue
        backend = info["backend_type"]
        rank = (backend in ("OpenGL", "OpenGLES"), _STRENGTH.get(info["adapter_type"], 3))
        found.append((rank, len(found), adapter, info, backend))
    found.sort(key=lambda item: item[:2])
    return [
        (
            AdapterInfo(
                index,
                info["device"],
                info["adapter_type"],
                backend,
                info["description"],
                {k: int(v) for k, v in adapter.limits.items()},
                tuple(sorted(adapter.features)),
            ),
            adapter,
        )
        for index, (_, _, adapter, info, backend) in enumerate(found)
    ]


def list_adapters() -> list[AdapterInfo]:
    """All adapters, strongest first."""
    return [info for info, _ in _adapters()]


def open_device(
    adapter_index: int | None = None, *, limits: str | None = None, budget: int | None = None
) -> "NativeDevice":
    """See `wgtrain.gpu.open_device`."""
    if limits not in (None, "default"):
        raise OptionError(f"limits = {limits!r}: allowed is 'default' or None")
    adapters = _adapters()
    if not adapters:
        raise DeviceError(_NO_ADAPTER)
    info, adapter = adapters[chosen_adapter([info for info, _ in adapters], adapter_index)]
    return NativeDevice(info, adapter, limits, budget)


class _LossWatch(logging.Handler):
    """Device loss shows nowhere but in wgpu's log, which does not say whose device it was."""

    heard = False

    def emit(self, record: logging.LogRecord) -> None:
        if "device lost" in record.getMessage().lower():
            self.heard = True


class NativeDevice(DeviceBase):
    """`gpu.protocol.Device` on wgpu-py, for one call at a time: others wait for their turn.

    What a signal handler frees or closes in the middle of a call is destroyed after it: submitting
    what was destroyed would end the process.
    """

    def __init__(self, info: AdapterInfo, adapter: Any, limits: str | None, budget: int | None):
        features = wanted_features(info, limits)
        super().__init__(info, granted_limits(info, limits), budget, features)
        if info.type == "CPU":
            self.find_budget()
        self._checks = native_library.checks()
        wanted = {
            "max-storage-buffer-binding-size": self.limits.binding,
            "max-buffer-size": self.limits.buffer,
            "max-storage-buffers-per-shader-stage": self.limits.storage_buffers,
            "max-compute-workgroup-storage-size": self.limits.workgroup_memory,
            "max-compute-invocations-per-workgroup": self.limits.invocations,
            "max-compute-workgroups-per-dimension": self.limits.workgroups,
            "max-compute-workgroup-size-x": self.limits.invocations,
            "max-compute-workgroup-size-y": self.limits.invocations,
            "max-compute-workgroup-size-z": 64,
            "max-uniform-buffer-binding-size": self.limits.uniform,
            "min-storage-buffer-offset-alignment": self.limits.alignment,
            "min-uniform-buffer-offset-alignment": self.limits.alignment,
        }
        try:
            self._device = adapter.request_device_sync(
                required_limits=wanted, required_features=list(features.values()), label="wgtrain"
            )
        except RuntimeError as error:
            raise DeviceError(f"{info.name} cannot be opened: {error}") from error
        self._queue = self._device.queue
        self._lost = False
        self._watch = _LossWatch()
        logging.getLogger("wgpu").addHandler(self._watch)
        self._turn = Turn("the device")
        self._inside = False  # a call is under way
        self._after: list[Callable[[], None]] = []  # what is due when it has ended
        native_process.keep(self)

    @contextmanager
    def _errors(self, doing: str) -> Iterator[None]:
        with self._turn(wait=True, nest=True) as fresh:
            # Where it is fresh an interrupt may have kept the last call from its end.
            within, self._inside = self._inside and not fresh, True
            try:
                self._check(doing)
                yield
            except (wgpu.GPUError, RuntimeError) as error:
                raise self._translated(doing, error) from error
            finally:
                self._inside = within
                while self._after and not within:
                    self._after.pop(0)()

    def _check(self, doing: str) -> None:
        if self._gone:
            raise DeviceLostError(f"{doing}: {self._gone}")
        if self._watch.heard:
            self._watch.heard = False
            self._lost = self._lost or self._is_lost()
        if self._lost:
            raise DeviceLostError(f"{doing}: the GPU was lost (driver reset or removed)")

    def _translated(self, doing: str, error: Exception) -> DeviceError:
        text = str(error)
        if "not enough memory" in text.lower() or isinstance(error, wgpu.GPUOutOfMemoryError):
            return OutOfMemoryError(f"{doing}: the GPU has not enough memory left")
        if "lost" in text.lower():
            self._lost = True
            return DeviceLostError(f"{doing}: the GPU was lost: {text}")
        return DeviceError(f"{doing}: {text}")

    def _when_idle(self, action: Callable[[], None]) -> None:
        """Calls `action`: now, or at the end of the call that it came into."""
        if self._inside:
            self._after.append(action)
        else:
            action()

    def free(self, buffer: Buffer) -> None:
        with self._turn(wait=True, nest=True) as fresh:
            self._inside = self._inside and not fresh
            super().free(buffer)

    def _destroy(self, handle: Any) -> None:
        self._when_idle(handle.destroy)

    def _is_lost(self) -> bool:
        """A lost device refuses a buffer politely; a submit to one would end the process."""
        try:
            self._device.create_buffer(size=4, usage=wgpu.BufferUsage.COPY_DST).destroy()
        except wgpu.GPUError as error:
            return "lost" in str(error).lower()
        return False

    def _allocate(self, size: int, label: str, uniform: bool) -> Any:
        kind = wgpu.BufferUsage.UNIFORM if uniform else wgpu.BufferUsage.STORAGE
        return self._device.create_buffer(size=size, usage=_USAGE | kind, label=label)

    def write(self, buffer: Buffer, offset: int, data: Data) -> None:
        view = data.data if isinstance(data, np.ndarray) else memoryview(data)
        view = view.cast("B") if view.nbytes else memoryview(b"")  # no axis may be empty in a cast
        tail = len(view) % 4
        with self._access("writing", buffer, offset, len(view) + -tail % 4):
            if tail:
                end = len(view) - tail
                self._queue.write_buffer(
                    buffer.handle, offset + end, bytes(view[end:]).ljust(4, b"\0")
                )
                view = view[:end]
            for start in range(0, len(view), _WRITE_PIECE):
                piece = view[start : start + _WRITE_PIECE]
                self._queue.write_buffer(buffer.handle, offset + start, piece)
                if len(piece) == _WRITE_PIECE:
                    self._queue.submit([])

    async def write_from(
        self, source: Source, start: int, size: int, buffer: Buffer, offset: int
    ) -> None:
        self.write(buffer, offset, await read_range(source, start, size))

    async def read(self, buffer: Buffer, offset: int, size: int) -> bytes:
        with self._access("reading", buffer, offset, size):
            if not size:
                return b""
            target = self._device.create_buffer(
                size=size, usage=wgpu.BufferUsage.COPY_DST | wgpu.BufferUsage.MAP_READ
            )
            try:
                encoder = self._device.create_command_encoder()
                encoder.copy_buffer_to_buffer(buffer.handle, offset, target, 0, size)
                commands = encoder.finish()
                self._queue.submit([commands])
                # Not "READ", which submits once more: the copy is what is waited for.
                target.map_async("READ_NOSYNC").sync_wait()
                return bytes(target.read_mapped(copy=False))
            finally:
                target.destroy()

    async def _compile(self, name: str, code: str, slots: Sequence[Slot]) -> Any:
        types = {"read": "read-only-storage", "read_write": "storage", "uniform": "uniform"}
        entries = [
            {
                "binding": slot.number,
                "visibility": wgpu.ShaderStage.COMPUTE,
                "buffer": {"type": types[slot.access]},
            }
            for slot in slots
        ]
        # On the first line, so that the others keep their numbers; this compiler takes subgroups
        # without a word, and refuses the one that browsers want.
        if "f16" in self._check_features(name, code):
            code = f"enable f16; {code}"
        try:
            with self._errors(f"compiling kernel '{name}'"):
                module = native_library.create_shader_module(self._device, code, name, self._checks)
                layout = self._device.create_bind_group_layout(entries=entries, label=name)
                return self._device.create_compute_pipeline(
                    layout=self._device.create_pipeline_layout(bind_group_layouts=[layout]),
                    compute={"module": module, "entry_point": "main"},
                    label=name,
                )
        except (DeviceLostError, OutOfMemoryError):
            raise
        except DeviceError as error:
            where = re.search(r"(?:wgsl|[\w.]+):(\d+):(\d+)", str(error))
            line = int(where[1]) if where else 0
            raise ShaderError(compile_message(name, code, line, str(error))) from error

    def bind(self, pipeline: Any, bindings: Sequence[Binding]) -> Any:
        buffers = tuple(b.buffer for b in bindings)
        with self._errors("binding buffers"):
            self._check_alive(buffers)
            handle = self._device.create_bind_group(
                layout=pipeline.get_bind_group_layout(0),
                entries=[
                    {
                        "binding": b.slot,
                        "resource": {"buffer": b.buffer.handle, "offset": b.offset, "size": b.size},
                    }
                    for b in bindings
                ],
            )
        return BindGroup(handle, buffers)

    def program(self, dispatches: Sequence[Dispatch]) -> Any:
        return Program(native_pass.prepare(dispatches), dispatches)

    def run(self, program: Any, counts: np.ndarray, cuts: Sequence[int]) -> None:
        doing, start = "running a plan", 0
        with self._errors(doing):
            grids = self._grids(program, counts)
            for end in (*cuts, program.size):
                self._check(doing)
                encoder = self._device.create_command_encoder()
                compute = encoder.begin_compute_pass()
                native_pass.record(compute, program.handle[start:end], grids)
                compute.end()
                commands = encoder.finish()
                self._queue.submit([commands])
                start = end

    def _grids(self, program: Program, counts: np.ndarray) -> native_pass.Grids:
        """The workgroup counts of each row of `counts`, None = skipped; all buffers are alive."""
        self._check_program(program)
        return [tuple(row) if all(row) else None for row in counts.tolist()]

    async def profile(self, program: Any, counts: np.ndarray, cuts: Sequence[int]) -> list[float]:
        with self._errors("timing a plan"):
            grids = self._grids(program, counts)
            period = native_library.timestamp_period(self._queue)
            if "timestamp-query" in self.features and period is not None:
                return native_timing.by_timestamps(
                    self._device, program.handle, grids, cuts, period
                )
            return native_timing.by_clock(self._device, program.handle, grids)

    def close(self) -> None:
        """Frees every buffer and the device, after the call that is under way."""
        with self._turn(wait=True, nest=True) as fresh:
            self._inside = self._inside and not fresh
            if not self._gone:
                self._gone = CLOSED
                self._when_idle(self._dispose)

    def lose(self, reason: str) -> None:
        """See `native_process.Opened`: in a forked child another thread may have held the turn."""
        self._gone, self._turn, self._inside = reason, Turn("the device"), False
        self._buffers.clear()
        self._after.clear()

    def _dispose(self) -> None:
        """Device and queue form a cycle, which is collected here."""
        self._drop_all()
        logging.getLogger("wgpu").removeHandler(self._watch)
        self._device.destroy()
        del self._device, self._queue
        gc.collect()
