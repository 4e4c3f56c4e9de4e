"""The browser's device against `device_contract.py`, unchanged."""

from typing import Any

import device_contract as contract
import pytest
import random_model as rm

pytestmark = [pytest.mark.browser, pytest.mark.gpu]


@pytest.mark.parametrize("name", contract.CHECKS)
def test_contract(tab: Any, name: str) -> None:
    tab.python(
        "import device_contract; await device_contract.CHECKS[values.name]()",
        name=name,
    )


def test_subgroups_are_measured(tab: Any) -> None:
    found = tab.python("""
        from wgtrain.engine.probe import find_subgroup_size
        from wgtrain.gpu import open_device

        device = await open_device()
        found = [sorted(device.features), await find_subgroup_size(device)]
        device.close()
        found
    """)
    assert ("subgroups" in found[0]) == (found[1] > 1), found


def test_f16_is_refused_by_name_where_there_is_none(tab: Any) -> None:
    code = """
        from wgtrain.errors import DeviceError
        from wgtrain.files import BytesSource
        from wgtrain.infer.opening import open_model

        source = BytesSource(bytes.fromhex(values.model), "random.gguf")
        try:
            (await open_model(source, precision="f16")).close()
            said = "opened"
        except DeviceError as error:
            said = str(error)
        said
    """
    said = tab.python(code, model=rm.build(rm.Shape(layers=1)).hex())
    assert said.startswith("precision = f16: ") and "shader-f16" in said


def test_settle_raises_what_the_browser_tells_late(tab: Any) -> None:
    """SwiftShader gives no buffer of exactly 1 GiB, though it is within its limits."""
    code = """
        from wgtrain.errors import OutOfMemoryError
        from wgtrain.gpu import open_device

        device, said = await open_device(), []
        for size in (1 << 30, 1 << 20):
            buffer = device.create_buffer(size, "first")
            try:
                await device.settle()
                said.append("there")
            except OutOfMemoryError as error:
                said.append(str(error))
            device.free(buffer)
        device.close()
        said
    """
    refused, granted = tab.python(code)
    assert "'first' of 1,073,741,824 bytes" in refused and granted == "there"
