"""Shader modules without the counters that wgpu-native puts into every loop.

They bound loops that would never end. Ours end: each is a `for` over a range with a step above
zero, which a test of the shader files sees to. Checks of what is read and written stay.
"""

import os
from typing import Any

from wgpu.backends.wgpu_native import _api

from wgtrain.errors import OptionError
from wgtrain.gpu.protocol import CHECKS_VARIABLE as VARIABLE

_CHECKS = {"all": None, "bounds": 1}  # WGPUShaderRuntimeChecks_BoundsChecks alone


def checks() -> int | None:
    """The checks in the environment, as flags; None = all of them."""
    given = os.environ.get(VARIABLE, "all")
    if given not in _CHECKS:
        raise OptionError(f"{VARIABLE} is {given!r}: allowed is {' or '.join(_CHECKS)}")
    return _CHECKS[given]


def create_shader_module(device: Any, code: str, label: str, flags: int | None) -> Any:
    """`device.create_shader_module`, with the checks of `flags` alone."""
    if flags is None:
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
