"""The browser itself runs out of memory: SwiftShader refuses a buffer of 1 GiB, which is its limit.

It does so before any memory is touched, and tells it late, through an error scope.
"""

from typing import Any

import pytest

pytestmark = [pytest.mark.browser, pytest.mark.gpu]

REFUSED = "of 1,073,741,824 bytes: the GPU has not enough memory left"
DEVICE = """
import asyncio
from wgtrain.errors import OutOfMemoryError
from wgtrain.gpu import open_device
device = await open_device()
small = device.create_buffer(16, "small")
device.write(small, 0, bytes(range(16)))
assert device.limits.buffer == 1 << 30, device.limits
said = []

async def failing(call):
    try:
        await call
    except OutOfMemoryError as error:
        said.append(str(error))
"""


@pytest.mark.parametrize("wait", [True, False])
def test_a_refused_buffer_is_named_and_the_device_lives_on(tab: Any, wait: bool) -> None:
    """What was queued with the buffer before it was known to be none is not told as well."""
    code = """
before = device.allocated
large = device.create_buffer(1 << 30, "all of the weights")

async def use():
    for _ in range(3 if values.wait else 10_000):
        device.write(large, 0, bytes(16))
        if not values.wait:
            await asyncio.sleep(0)
    await device.read(small, 0, 16)

await failing(use())
device.free(large)
assert device.allocated == before
for _ in range(3):
    assert await device.read(small, 0, 16) == bytes(range(16))
    device.write(small, 0, bytes(range(16)))
    await asyncio.sleep(0.02)
await failing(device.read(device.create_buffer(1 << 30, "more"), 0, 4))
assert await device.read(small, 0, 16) == bytes(range(16))
device.close()
said
"""
    said = tab.python(DEVICE + code, wait=wait)
    names = ("all of the weights", "more")
    assert said == [f"creating buffer '{name}' {REFUSED}" for name in names]
