"""Training in the page against the same training natively, both on SwiftShader; and interrupted."""

import json
import os
import subprocess
import sys
import time
from base64 import b64decode
from pathlib import Path
from typing import Any

import needs
import numpy as np
import page_train
import pytest
import tiny

pytestmark = [pytest.mark.browser, pytest.mark.gpu]

DRIVER = Path("/usr/lib/chromium/vk_swiftshader_icd.json")
MODELS = ("tiny", "stories260K")


def native(*arguments: str) -> dict[str, Any]:
    """What `page_train.py` prints natively on Chromium's own software driver."""
    if not DRIVER.is_file():
        needs.missing(f"{DRIVER} is missing; scripts/setup --test installs chromium")
    result = subprocess.run(
        [sys.executable, page_train.__file__, *arguments],
        env={**os.environ, "VK_ICD_FILENAMES": str(DRIVER), "WGTRAIN_ADAPTER_INDEX": "0"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    found: dict[str, Any] = json.loads(result.stdout)
    return found


@pytest.fixture(scope="module")
def files(site: Path, data_dir: Path) -> dict[str, tuple[Path, Path]]:
    """(model, rows) of each run, in the site."""
    (site / "tiny.gguf").write_bytes(tiny.tiny("llama").gguf)
    pairs = tiny.random_rows(tiny.SPECS["llama"], [9, 17, 5, 12, 7, 30, 21], 0)
    lines = []
    for tokens, targets in pairs:
        labels = np.where(targets < 0, -100, targets)[:-1].tolist()
        lines.append({"input_ids": tokens.tolist(), "labels": [-100, *labels]})
    (site / "tiny.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    rows = (data_dir / "wikisql_train.jsonl").read_text("utf-8").splitlines(keepends=True)[:40]
    (site / "stories260K.jsonl").write_text("".join(rows), "utf-8")
    (site / "stories260K.gguf").write_bytes((data_dir / "stories260K.gguf").read_bytes())
    return {name: (site / f"{name}.gguf", site / f"{name}.jsonl") for name in MODELS}


OPEN = """
import wgtrain, page_train
from pyodide.ffi import to_js
from pyodide.http import pyfetch
import js
import wgtrain_storage as storage
from wgtrain.files.page import PageSource

rows = await (await pyfetch(values.name + ".jsonl")).bytes()
source = await PageSource.url(values.name + ".gguf")
"""
# Saves every third step, as a page for people would; `resume` starts from the newest.
RUN = """
from base64 import b64encode

def as_js(files):
    return to_js(files, dict_converter=js.Object.fromEntries)

trainer = await page_train.make(source, rows)
if step := await storage.latest("run"):
    files = (await storage.load("run", step)).to_py()
    trainer.restore({name: bytes(data) for name, data in files.items()})
resumed = trainer.step
async for result in trainer.aio.run():
    if result.step % 3 == 0:
        files = await trainer.aio.checkpoint()
        await storage.save("run", trainer.step, as_js(files))
    if result.step == values.stop_at:
        trainer.model.device.javascript.device.destroy()
adapter = b64encode(await trainer.aio.adapter_gguf()).decode()
trainer.model.close()
[resumed, adapter]
"""


@pytest.fixture(scope="module")
def page_runs(shared_tab: Any, files: Any) -> dict[str, Any]:
    """What each run gives in the page."""
    code = OPEN + "await page_train.outcome(source, rows)"
    return {name: shared_tab.python(code, name=name) for name in files}


@pytest.mark.parametrize("name", MODELS)
def test_losses_are_those_of_a_native_run(page_runs: Any, files: Any, name: str) -> None:
    found, expected = page_runs[name], native(*map(str, files[name]))
    assert "swiftshader" in expected["device"].lower(), expected["device"]
    assert len(found["losses"]) == page_train.STEPS
    assert found["batches"] == expected["batches"] and found["counts"] == expected["counts"]
    np.testing.assert_allclose(found["losses"], expected["losses"], rtol=1e-4)
    np.testing.assert_allclose(found["norms"], expected["norms"], rtol=1e-3)
    assert found["losses"][-1] < found["losses"][0]
    np.testing.assert_allclose(found["evaluated"], expected["evaluated"], rtol=1e-4)
    assert found["evaluated"][1] < 0.9 * found["evaluated"][0]


@pytest.mark.oracle
def test_llama_cpp_loads_the_adapter_of_the_page(page_runs: Any, files: Any) -> None:
    llama = needs.package("llama_cpp_oracle")
    model = llama.LlamaCpp(files["stories260K"][0].read_bytes())
    adapter = model.adapter(b64decode(page_runs["stories260K"]["adapter"]))
    tokens = np.arange(1, 30)
    assert np.abs(model.logits(tokens, adapter) - model.logits(tokens)).max() > 0.1
    model.close()


def test_a_closed_tab_resumes_to_the_bit(tabs: Any, page_runs: Any, files: Any) -> None:
    first = tabs.open()
    first.start(OPEN + RUN, name="stories260K", stop_at=0)
    end = time.monotonic() + 120
    while first.javascript("wgtrain.storage.latest('run')") < 6:
        assert time.monotonic() < end and not first.javascript("globalThis.failure")
        time.sleep(0.05)
    first.close()
    second = tabs.open()
    resumed, adapter = second.python(OPEN + RUN, name="stories260K", stop_at=0)
    assert 6 <= resumed < page_train.STEPS
    assert adapter == page_runs["stories260K"]["adapter"]


def test_a_lost_device_says_so_and_the_checkpoint_is_good(
    tab: Any, page_runs: Any, files: Any
) -> None:
    run = RUN.replace('"run"', '"lost"')  # the shared tab keeps no other
    code = OPEN + "try:\n" + run.replace("\n", "\n    ").replace("[resumed, adapter]", "said = ''")
    code += "\nexcept wgtrain.DeviceLostError as error:\n    said = str(error)\nsaid"
    assert "the GPU was lost" in tab.python(code, name="tiny", stop_at=8)
    saved = tab.javascript("wgtrain.storage.latest('lost')")  # reports of fast steps come together
    assert saved >= 6
    resumed, adapter = tab.python(OPEN + run, name="tiny", stop_at=0)
    assert resumed == saved
    assert adapter == page_runs["tiny"]["adapter"]


def test_too_little_memory_says_so_and_the_checkpoint_is_good(
    tab: Any, page_runs: Any, files: Any
) -> None:
    """The limits shrink under a run that is resumed: of one binding, of all, of the browser's."""
    code = """
from dataclasses import replace
trainer = await page_train.make(source, rows)
said = []
for shrink in ("binding", "budget"):
    model = trainer.model
    device = model.device
    limits, device.budget = device.limits, None
    if shrink == "binding":
        device.limits = replace(limits, binding=1024)
    else:
        device.budget = device.allocated + 1000
    before = device.allocated
    try:
        await wgtrain.Trainer(model, trainer.rows, page_train.LORA, trainer.config).aio.build()
    except wgtrain.OutOfMemoryError as error:
        said.append(str(error))
    assert device.allocated == before, f"{label}: {device.allocated - before}, {said}"
    device.limits, device.budget = limits, None
async for result in trainer.aio.run():
    pass
from base64 import b64encode
adapter = b64encode(await trainer.aio.adapter_gguf()).decode()
trainer.model.close()
[said, adapter]
"""
    said, adapter = tab.python(OPEN + code, name="tiny")
    assert len(said) == 2 and "allows 1,024 in one binding" in said[0], said
    assert "are allowed in all" in said[1], said
    assert adapter == page_runs["tiny"]["adapter"]


def test_the_browser_refuses_memory_and_the_checkpoint_is_good(
    tab: Any, page_runs: Any, files: Any
) -> None:
    """Of a model, then of a second trainer beside one that trains; SwiftShader gives no 1 GiB."""
    code = """
from wgtrain.gpu.browser import BrowserDevice
allocate, said = BrowserDevice._allocate, []

async def refusing(label, call):
    def enlarged(device, size, name, uniform):
        return allocate(device, 1 << 30 if name == label else size, name, uniform)
    BrowserDevice._allocate = enlarged
    try:
        await call
    except wgtrain.OutOfMemoryError as error:
        said.append(str(error))
    finally:
        BrowserDevice._allocate = allocate

await refusing("output.weight", page_train.make(source, rows, limits=None))
trainer = await page_train.make(source, rows, limits=None)
async for result in trainer.aio.run():
    if result.step == 7:
        state = await trainer.aio.checkpoint()
        break
device = trainer.model.device
before = device.allocated
second = wgtrain.Trainer(trainer.model, trainer.rows, page_train.LORA, trainer.config)
for label in ("activations 0", "step"):
    await refusing(label, second.aio.build())
    assert device.allocated == before, f"{label}: {device.allocated - before}, {said}"
second.restore(state)
async for result in second.aio.run():
    pass
from base64 import b64encode
adapter = b64encode(await second.aio.adapter_gguf()).decode()
trainer.model.close()
[said, adapter]
"""
    said, adapter = tab.python(OPEN + code, name="tiny")
    refused = "of 1,073,741,824 bytes: the GPU has not enough memory left"
    labels = ("output.weight", "activations 0", "step")
    first = [text.partition("\n")[0] for text in said]  # what would fit comes below
    assert first == [f"creating buffer '{label}' {refused}" for label in labels]
    assert "batch_size = 1" in said[1]
    assert adapter == page_runs["tiny"]["adapter"]


def test_what_the_browser_finds_late_is_raised_by_the_next_call(tab: Any) -> None:
    code = """
    from wgtrain.errors import DeviceError
    from wgtrain.gpu import open_device
    device = await open_device(limits="default")
    buffer = device.create_buffer(16, "small")
    device.javascript.createBuffer(1 << 40, "far too large", False)
    said = []
    for _ in range(2):
        try:
            await device.read(buffer, 0, 16)
            said.append("")
        except DeviceError as error:
            said.append(f"{type(error).__name__}: {error}")
    device.close()
    said
    """
    first, second = tab.python(code)
    assert "creating buffer 'far too large'" in first and second == ""
