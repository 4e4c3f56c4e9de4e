"""Recording dispatches into a pass of wgpu-native.

wgpu-py wraps each call in Python code that, in steps of tiny models, costs several times the call:
where its inner names are those known here, the library is called straight. What is wrong in a pass
is told by `finish` of its encoder either way.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from wgpu.backends import wgpu_native

from wgtrain.gpu.protocol import Dispatch

# Pipeline, bind group, row of the counts table, and what keeps the first two alive.
Prepared = tuple[Any, Any, int, Dispatch]
Grids = list[tuple[int, ...] | None]  # workgroup counts of each row, None = skipped
Calls = tuple[Callable[..., None], Callable[..., None], Callable[..., None], tuple[Any, ...]]


def _is_direct() -> bool:
    """Whether this wgpu-py has the inner names."""
    names = ("SetPipeline", "SetBindGroup", "DispatchWorkgroups")
    library = getattr(wgpu_native, "lib", None)
    return hasattr(wgpu_native, "ffi") and all(
        hasattr(library, f"wgpuComputePassEncoder{name}") for name in names
    )


_DIRECT = _is_direct()


def prepare(dispatches: Sequence[Dispatch]) -> tuple[Prepared, ...]:
    """What `record` takes, for direct calls or for those of wgpu-py."""
    if _DIRECT:
        return tuple(
            (d.pipeline._internal, d.bind_group.handle._internal, d.grid, d) for d in dispatches
        )
    return tuple((d.pipeline, d.bind_group.handle, d.grid, d) for d in dispatches)


def record(compute: Any, dispatches: Sequence[Prepared], grids: Grids) -> None:
    """Records prepared dispatches into a compute pass of wgpu-py."""
    set_pipeline, set_bind_group, dispatch, no_offsets = _calls(compute)
    current = None
    for pipeline, bind_group, grid, _ in dispatches:
        size = grids[grid]
        if size is None:
            continue
        if pipeline is not current:
            set_pipeline(pipeline)
            current = pipeline
        set_bind_group(0, bind_group, *no_offsets)
        dispatch(*size)


def _calls(compute: Any) -> Calls:
    if not _DIRECT:
        return compute.set_pipeline, compute.set_bind_group, compute.dispatch_workgroups, ()
    library, handle = wgpu_native.lib, compute._internal
    return (
        partial(library.wgpuComputePassEncoderSetPipeline, handle),
        partial(library.wgpuComputePassEncoderSetBindGroup, handle),
        partial(library.wgpuComputePassEncoderDispatchWorkgroups, handle),
        (0, wgpu_native.ffi.NULL),
    )
