"""Files of a page as sources: a File, a URL, the private file system."""

from textwrap import dedent
from typing import Any

import pytest

pytestmark = [pytest.mark.browser, pytest.mark.gpu]

OPEN = """
import numpy as np
import js
from pyodide.ffi import to_js
from wgtrain.errors import FileError
from wgtrain.files.page import PageSource
from wgtrain.files.source import read_range
from wgtrain.gpu import open_device

data = np.random.default_rng(3).integers(0, 256, values.n, np.uint8)

async def stored():
    root = await js.navigator.storage.getDirectory()
    file = await root.getFileHandle("source.bin", to_js({"create": True},
        dict_converter=js.Object.fromEntries))
    return await file.createSyncAccessHandle()

async def open_source(kind):
    if kind == "blob":
        return PageSource.blob(js.File.new(to_js([to_js(data)]), "some.bin"))
    if kind == "url":
        return await PageSource.url("noise.bin")
    handle = await stored()
    handle.truncate(0)
    handle.write(to_js(data))
    return PageSource.handle(handle, "some.bin")
"""
# Larger than two pieces; starts, sizes and targets that are no multiples of much.
CHECK = """
source = await open_source(values.kind)
assert source.size == values.n, source.size
device = await open_device(limits="default")
buffer = device.create_buffer(values.n + 8, "whole")
last = values.n - 3
for start, size, at in ((0, values.n, 4), (5, 0, 0), (1, 1, 0), (last, 3, 0), (7, 70001, 8)):
    assert bytes(await read_range(source, start, size)) == data[start : start + size].tobytes()
    device.write(buffer, 0, bytes(buffer.size))
    await device.write_from(source, start, size, buffer, at)
    got = np.frombuffer(await device.read(buffer, 0, buffer.size), np.uint8)
    assert (got[at : at + size] == data[start : start + size]).all(), (start, size)
    assert not got[:at].any() and not got[at + size :].any(), (start, size)
refused = []
for call in (
    read_range(source, values.n - 2, 3),
    device.write_from(source, values.n - 2, 3, buffer, 0),
    device.write_from(source, -1, 3, buffer, 0),
):
    try:
        await call
    except FileError as error:
        refused.append(str(error))
device.close()
source.close()
refused
"""
N = (9 << 20) + 3


@pytest.mark.parametrize("kind", ["blob", "url", "handle"])
def test_bytes_arrive(tab: Any, site: Any, kind: str) -> None:
    import numpy as np

    noise = np.random.default_rng(3).integers(0, 256, N, np.uint8)
    (site / "noise.bin").write_bytes(noise.tobytes())
    refused = tab.python(OPEN + CHECK, kind=kind, n=N)
    assert len(refused) == 3, refused
    assert all(f"the file has {N}" in text for text in refused), refused
    assert all(text.startswith(("some.bin", "noise.bin")) for text in refused), refused


def test_what_cannot_be_read_is_refused(tab: Any) -> None:
    code = """
    from wgtrain.errors import FileError
    from wgtrain.files.page import PageSource
    said = []
    for address in ("nothing.bin", "http://127.0.0.1:1/closed.bin"):
        try:
            await PageSource.url(address)
        except FileError as error:
            said.append(str(error))
    said
    """
    missing, closed = tab.python(code)
    tab.strangers.clear()
    assert missing == "nothing.bin: status 404"
    assert closed.startswith("http://127.0.0.1:1/closed.bin: cannot be fetched")


def test_a_file_that_shrinks_is_refused(tab: Any) -> None:
    code = """
    source = await open_source("handle")
    source.javascript.handle.truncate(100)
    try:
        await read_range(source, 90, 20)
    except FileError as error:
        said = str(error)
    source.close()
    said
    """
    assert "10 bytes at 90 instead of 20" in tab.python(OPEN + dedent(code), n=1000)
