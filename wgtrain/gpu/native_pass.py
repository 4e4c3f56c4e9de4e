"""Recording dispatches into a compute pass of wgpu-py."""

from collections.abc import Sequence
from typing import Any

from wgtrain.gpu.native_library import handle, pass_calls
from wgtrain.gpu.protocol import Dispatch

# Pipeline, bind group, row of the counts table, and what keeps the first two alive.
Prepared = tuple[Any, Any, int, Dispatch]
Grids = list[tuple[int, ...] | None]  # workgroup counts of each row, None = skipped


def prepare(dispatches: Sequence[Dispatch]) -> tuple[Prepared, ...]:
    """What `record` takes."""
    return tuple((handle(d.pipeline), handle(d.bind_group.handle), d.grid, d) for d in dispatches)


def record(compute: Any, dispatches: Sequence[Prepared], grids: Grids) -> None:
    """Records prepared dispatches into a compute pass of wgpu-py."""
    set_pipeline, set_bind_group, dispatch, no_offsets = pass_calls(compute)
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
