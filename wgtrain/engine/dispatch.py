"""One kernel call outside of a plan: loading weights, and tests."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from wgtrain.engine.kernel import Kernel
from wgtrain.engine.structs import STEP, step_bytes
from wgtrain.gpu import Binding, Buffer, Device, Dispatch


class Caller:
    """Calls one kernel any number of times; `close` frees its small parameter buffer."""

    def __init__(self, device: Device, kernel: Kernel, pipeline: Any):
        self._device, self._kernel, self._pipeline = device, kernel, pipeline
        size = max(len(kernel.params) * 4, 16)
        self._params = device.create_buffer(
            -(-size // 16) * 16, f"{kernel.name} parameters", uniform=True
        )
        self._step = device.create_buffer(STEP.itemsize, f"{kernel.name} step", uniform=True)

    @classmethod
    async def open(cls, device: Device, kernel: Kernel) -> "Caller":
        """Compiles the kernel."""
        return cls(device, kernel, await kernel.compiled(device))

    def __call__(
        self,
        buffers: Mapping[str, Buffer | tuple[Buffer, int, int]],
        params: Mapping[str, Any],
        *,
        tokens: int = 0,
        trained: int = 0,
        step: bytes = b"",
    ) -> None:
        """Queues one call on `buffers` (whole ones, or (buffer, offset, size)) by slot name."""
        if self._kernel.params:
            self._device.write(self._params, 0, self._kernel.pack_params(params))
        self._device.write(self._step, 0, step or step_bytes(tokens, trained))
        own = {"params": self._params, "step": self._step}
        bindings = []
        for slot in self._kernel.slots:
            buffer = own.get(slot.name) or buffers[slot.name]
            part = (buffer, 0, buffer.size) if isinstance(buffer, Buffer) else buffer
            bindings.append(Binding(slot.number, *part))
        group = self._device.bind(self._pipeline, bindings)
        program = self._device.program([Dispatch(self._pipeline, group, 0)])
        counts = np.array([self._kernel.grid_function(params)(tokens, trained)], np.uint32)
        self._device.run(program, counts, [])

    def close(self) -> None:
        """Frees the parameter buffers."""
        self._device.free(self._params)
        self._device.free(self._step)
