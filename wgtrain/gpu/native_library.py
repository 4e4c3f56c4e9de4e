"""wgpu-native below wgpu-py: all private names of wgpu-py stand here.

A wgpu-py that lacks them is used through its public calls alone: dispatches then cost several times
as much, shaders have all checks, and dispatches are timed by the clock.
"""

import os
from collections.abc import Callable
from functools import partial
from typing import Any

from wgpu.backends import wgpu_native

from wgtrain.errors import OptionError
from wgtrain.gpu.protocol import CHECKS_VARIABLE as VARIABLE

_CHECKS = {"all": None, "bounds": 1}  # WGPUShaderRuntimeChecks_BoundsChecks alone
_PASS = ("SetPipeline", "SetBindGroup", "DispatchWorkgroups")
_lib = getattr(wgpu_native, "lib", None)
_ffi = getattr(wgpu_native, "ffi", None)
_api = getattr(wgpu_native, "_api", None)

# Whether passes can be recorded straight into the library, by `pass_calls` and `handle`.
DIRECT = _ffi is not None and all(hasattr(_lib, f"wgpuComputePassEncoder{x}") for x in _PASS)
_TRUSTED = all(hasattr(_api, x) for x in ("ffi", "lib", "libf", "new_struct_p", "GPUShaderModule"))

# set_pipeline(handle), set_bind_group(index, handle, *rest), dispatch(x, y, z), and that rest
Calls = tuple[Callable[..., None], Callable[..., None], Callable[..., None], tuple[Any, ...]]


def checks() -> int | None:
    """The checks in the environment, as flags; None = all of them."""
    given = os.environ.get(VARIABLE, "all")
    if given not in _CHECKS:
        raise OptionError(f"{VARIABLE} is {given!r}: allowed is {' or '.join(_CHECKS)}")
    if _CHECKS[given] is not None and not _TRUSTED:
        raise OptionError(f"{VARIABLE} is {given!r}: with this wgpu-py only 'all' is possible")
    return _CHECKS[given]


def create_shader_module(device: Any, code: str, label: str, flags: int | None) -> Any:
    """`device.create_shader_module`, with the checks of `flags` alone.

    `flags` = 1 leaves out the counters that wgpu-native puts into every loop, which bound loops
    that would never end. Ours end: each is a `for` over a range with a step above zero, which a
    test of the shader files sees to. Checks of what is read and written stay.
    """
    if flags is None or _api is None:
        return device.create_shader_module(code=code, label=label)
    source = _api.new_struct_p("WGPUShaderSourceWGSL *", code=_api.to_c_string_view(code))
    source[0].chain.next = _api.ffi.NULL
    source[0].chain.sType = _api.lib.WGPUSType_ShaderSourceWGSL
    descriptor = _api.new_struct_p(
        "WGPUShaderModuleDescriptor *",
        nextInChain=_api.ffi.cast("WGPUChainedStruct *", source),
        label=_api.to_c_string_view(label),
    )
    handle = _api.libf.wgpuDeviceCreateShaderModuleTrusted(device._internal, descriptor, flags)
    return _api.GPUShaderModule(label, handle, device)


def disconnect() -> None:
    """Ends all calls of wgpu-py into the library, those of finalisers too."""
    if _api is not None:
        _api.libf = None


def handle(item: Any) -> Any:
    """What `pass_calls` takes for a pipeline or bind group of wgpu-py."""
    return item._internal if DIRECT else item


def pass_calls(compute: Any) -> Calls:
    """What records into a compute pass: the library's calls, or those of wgpu-py.

    wgpu-py wraps each call in Python code that, in steps of tiny models, costs several times the
    call. What is wrong in a pass is told by `finish` of its encoder either way.
    """
    if not DIRECT or _lib is None or _ffi is None:
        return compute.set_pipeline, compute.set_bind_group, compute.dispatch_workgroups, ()
    set_pipeline, set_bind_group, dispatch = (
        partial(getattr(_lib, f"wgpuComputePassEncoder{name}"), compute._internal) for name in _PASS
    )
    return set_pipeline, set_bind_group, dispatch, (0, _ffi.NULL)


def timestamp_period(queue: Any) -> float | None:
    """Nanoseconds of one tick of a timestamp; None where this wgpu-py does not tell."""
    ask = getattr(_lib, "wgpuQueueGetTimestampPeriod", None)
    return float(ask(queue._internal)) if ask else None
