"""How long each dispatch of a replay takes, through wgpu-py."""

import time
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import wgpu
from wgpu.backends.wgpu_native import lib

Prepared = tuple[Any, Any, tuple[int, ...] | None]  # pipeline, bind group, workgroup counts
_MOST_QUERIES = 4096  # in a set


def by_timestamps(device: Any, dispatches: Sequence[Prepared], cuts: Sequence[int]) -> list[float]:
    """Seconds of each dispatch, a pass each; submits also end at `cuts`."""
    period = 1e-9 * lib.wgpuQueueGetTimestampPeriod(device.queue._internal)
    count, most = len(dispatches), _MOST_QUERIES // 2
    seconds: list[float] = []
    for start, end in pairwise(sorted({0, *cuts, *range(0, count, most), count})):
        seconds += _submit(device, dispatches[start:end], period)
    return seconds


def _submit(device: Any, dispatches: Sequence[Prepared], period: float) -> list[float]:
    size = 16 * len(dispatches)
    queries = device.create_query_set(type="timestamp", count=2 * len(dispatches))
    usage = wgpu.BufferUsage.QUERY_RESOLVE | wgpu.BufferUsage.COPY_SRC
    resolved = device.create_buffer(size=size, usage=usage)
    encoder = device.create_command_encoder()
    for number, dispatch in enumerate(dispatches):
        writes = {
            "query_set": queries,
            "beginning_of_pass_write_index": 2 * number,
            "end_of_pass_write_index": 2 * number + 1,
        }
        _record(encoder.begin_compute_pass(timestamp_writes=writes), dispatch)
    encoder.resolve_query_set(queries, 0, 2 * len(dispatches), resolved, 0)
    commands = encoder.finish()
    device.queue.submit([commands])
    ticks = np.frombuffer(device.queue.read_buffer(resolved), np.uint64).reshape(-1, 2)
    resolved.destroy()
    queries.destroy()
    # A pass whose dispatch was skipped holds two stamps too; their difference is no work.
    times = (ticks[:, 1] - ticks[:, 0]).astype(np.int64).clip(0) * period
    skipped = np.array([grid is None for _, _, grid in dispatches])
    return [float(t) for t in np.where(skipped, 0.0, times)]


def by_clock(device: Any, dispatches: Sequence[Prepared]) -> list[float]:
    """The same where there are no timestamps: each submitted alone, less an empty submit."""
    small = device.create_buffer(size=4, usage=wgpu.BufferUsage.COPY_SRC)

    def wall(dispatch: Prepared) -> float:
        encoder = device.create_command_encoder()
        _record(encoder.begin_compute_pass(), dispatch)
        commands = encoder.finish()
        device.queue.read_buffer(small)
        began = time.perf_counter()
        device.queue.submit([commands])
        device.queue.read_buffer(small)
        return time.perf_counter() - began

    idle = min(wall((None, None, None)) for _ in range(5))
    times = [max(wall(each) - idle, 0.0) if each[2] else 0.0 for each in dispatches]
    small.destroy()
    return times


def _record(compute: Any, dispatch: Prepared) -> None:
    pipeline, bind_group, grid = dispatch
    if grid is not None:
        compute.set_pipeline(pipeline)
        compute.set_bind_group(0, bind_group)
        compute.dispatch_workgroups(*grid)
    compute.end()
