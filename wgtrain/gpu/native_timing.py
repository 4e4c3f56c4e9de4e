"""How long each dispatch of a replay takes, through wgpu-py."""

import time
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import wgpu

from wgtrain.gpu.native_pass import Grids, Prepared, record

_MOST_QUERIES = 4096  # in a set


def by_timestamps(
    device: Any,
    dispatches: Sequence[Prepared],
    grids: Grids,
    cuts: Sequence[int],
    period: float,
) -> list[float]:
    """Seconds of each dispatch, a pass each; submits also end at `cuts`.

    `period`: nanoseconds of a tick.
    """
    count, most = len(dispatches), _MOST_QUERIES // 2
    seconds: list[float] = []
    for start, end in pairwise(sorted({0, *cuts, *range(0, count, most), count})):
        seconds += _submit(device, dispatches[start:end], grids, 1e-9 * period)
    return seconds


def _submit(
    device: Any, dispatches: Sequence[Prepared], grids: Grids, period: float
) -> list[float]:
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
        compute = encoder.begin_compute_pass(timestamp_writes=writes)
        record(compute, [dispatch], grids)
        compute.end()
    encoder.resolve_query_set(queries, 0, 2 * len(dispatches), resolved, 0)
    commands = encoder.finish()
    device.queue.submit([commands])
    ticks = np.frombuffer(device.queue.read_buffer(resolved), np.uint64).reshape(-1, 2)
    resolved.destroy()
    queries.destroy()
    # A pass whose dispatch was skipped holds two stamps too; their difference is no work.
    times = (ticks[:, 1] - ticks[:, 0]).astype(np.int64).clip(0) * period
    skipped = np.array([grids[grid] is None for _, _, grid, _ in dispatches])
    return [float(t) for t in np.where(skipped, 0.0, times)]


def by_clock(device: Any, dispatches: Sequence[Prepared], grids: Grids) -> list[float]:
    """The same where there are no timestamps: each submitted alone, less an empty submit."""
    small = device.create_buffer(size=4, usage=wgpu.BufferUsage.COPY_SRC)

    def wall(part: Sequence[Prepared]) -> float:
        encoder = device.create_command_encoder()
        compute = encoder.begin_compute_pass()
        record(compute, part, grids)
        compute.end()
        commands = encoder.finish()
        device.queue.read_buffer(small)
        began = time.perf_counter()
        device.queue.submit([commands])
        device.queue.read_buffer(small)
        return time.perf_counter() - began

    idle = min(wall([]) for _ in range(5))
    times = [max(wall([each]) - idle, 0.0) if grids[each[2]] else 0.0 for each in dispatches]
    small.destroy()
    return times
