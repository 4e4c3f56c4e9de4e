"""The true size of subgroups: a kernel written for eight lanes is silently wrong over four."""

import numpy as np

from wgtrain.engine.dispatch import Caller
from wgtrain.engine.kernel import load_kernel
from wgtrain.gpu import Device

_LANES = (64, 256)  # of the workgroups that are looked at
_GROUPS = 2


async def find_subgroup_size(device: Device) -> int:
    """Measures `device.subgroup_size`, once; 0 where kernels cannot rely on subgroups.

    They rely on a size that is the same in every workgroup, and on a subgroup being that many
    consecutive invocations.
    """
    if "subgroups" in device.features and not device.subgroup_size:
        sizes = {subgroup_size(await _seen(device, lanes)) for lanes in _LANES}
        device.subgroup_size = sizes.pop() if len(sizes) == 1 else 0
    return device.subgroup_size


def subgroup_size(seen: np.ndarray) -> int:
    """The size by what the invocations (groups, lanes) saw: (size, running, number, first)."""
    size = int(seen[0, 0, 0])
    lanes = np.arange(seen.shape[1])
    if not 1 < size <= len(lanes):
        return 0
    expected = np.stack(
        [np.full_like(lanes, size), np.full_like(lanes, size), lanes % size, lanes // size * size],
        1,
    )
    return size if (seen == expected).all() else 0


async def _seen(device: Device, lanes: int) -> np.ndarray:
    caller = await Caller.open(device, load_kernel("probe_subgroup", {"LANES": lanes}))
    buffer = device.create_buffer(_GROUPS * lanes * 16, "subgroups")
    try:
        caller({"seen": buffer}, {})
        data = await device.read(buffer, 0, buffer.size)
    finally:
        device.free(buffer)
        caller.close()
    return np.frombuffer(data, np.uint32).reshape(_GROUPS, lanes, 4)
