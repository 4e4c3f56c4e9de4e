"""The native device against `device_contract.py`, and what only a native one has."""

import asyncio
import gc
import logging
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import device_contract as contract
import pytest
from interrupting import Lines

from wgtrain import gpu
from wgtrain.errors import DeviceError, DeviceLostError, OptionError, OutOfMemoryError
from wgtrain.gpu import base, native, native_library
from wgtrain.gpu.memory import Memory

pytestmark = pytest.mark.gpu
VARIABLE = "WGTRAIN_ADAPTER_INDEX"


@pytest.fixture(autouse=True)
def first_adapter(monkeypatch: pytest.MonkeyPatch) -> None:
    """The contract is about the strongest adapter."""
    monkeypatch.delenv(VARIABLE, raising=False)


def python(
    code: str, *arguments: str, environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Runs code in a process of its own, with these tests importable."""
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=Path(__file__).parent,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.mark.parametrize("name", [n for n in contract.CHECKS if n not in contract.MAY_ABORT])
def test_contract(name: str) -> None:
    gpu.run(contract.CHECKS[name]())


def test_dispatches_are_timed_without_timestamps() -> None:
    async def check() -> None:
        async with contract.opened() as device:
            assert "timestamp-query" in device.features  # lavapipe has them
            device.features = frozenset()
            await contract.times_are_those_of_a_run(device)

    gpu.run(check())


def test_the_known_inner_names_of_wgpu_py_are_used() -> None:
    assert native_library.DIRECT and native_library._TRUSTED
    device = gpu.run(gpu.open_device(limits="default"))
    try:
        period = native_library.timestamp_period(device._queue)
        assert period is not None and period > 0
    finally:
        device.close()


def test_a_wgpu_py_without_the_known_inner_names() -> None:
    """Its public calls do the same; what they cannot do is refused."""
    code = """
import os
from wgpu.backends import wgpu_native

for name in ("lib", "ffi", "_api"):
    delattr(wgpu_native, name)

import device_contract as contract
from wgtrain import gpu
from wgtrain.errors import OptionError

for name in contract.CHECKS:
    if any(word in name for word in ("dispatch", "shader")):
        print(name)
        gpu.run(contract.CHECKS[name]())
os.environ["WGTRAIN_SHADER_CHECKS"] = "bounds"
try:
    gpu.run(gpu.open_device())
except OptionError as error:
    print(error)
"""
    result = python(code)
    assert result.returncode == 0, result.stderr[-3000:]
    assert "dispatches_are_timed" in result.stdout
    assert result.stdout.endswith("with this wgpu-py only 'all' is possible\n")


def test_private_names_of_wgpu_py_stand_in_one_module() -> None:
    names = re.compile(r"\b(_internal|_api|libf?|ffi|wgpu_native)\b(?!-)")
    for path in Path(native.__file__).parent.glob("native*.py"):
        code = re.sub(r'#[^\n]*|""".*?"""', "", path.read_text(), flags=re.DOTALL)
        assert bool(names.search(code)) == (path.name == "native_library.py"), path.name


def test_contract_where_a_driver_may_abort() -> None:
    """In a process of its own: wgpu-native ends the process on errors of a submit."""
    code = """
import sys
import device_contract as contract
from wgtrain import gpu
for name in sys.argv[1:]:
    print(name, flush=True)
    gpu.run(contract.CHECKS[name]())
print("end")
"""
    names = sorted(contract.MAY_ABORT)
    result = python(code, *names)
    assert result.stdout.split() == [*names, "end"], result.stderr[-3000:]
    assert result.returncode == 0


def test_contract_inside_an_event_loop() -> None:
    asyncio.run(contract.CHECKS["dispatches_run_in_order_across_cuts_and_runs"]())

    async def blocking() -> None:
        gpu.run(contract.CHECKS["large_writes_arrive_whole"]())

    asyncio.run(blocking())


def test_run_says_what_to_do_where_it_would_have_to_wait() -> None:
    async def waits() -> None:
        await asyncio.sleep(0)

    with pytest.raises(RuntimeError, match="aio"):
        gpu.run(waits())


def test_every_check_has_a_purpose() -> None:
    """Nothing of the contract is left out by a name that is written twice."""
    source = Path(contract.__file__).read_text()
    assert source.count("\n@check\n") + source.count("\n@may_abort\n") == len(contract.CHECKS)
    assert set(contract.CHECKS) >= contract.MAY_ABORT


def test_list_adapters() -> None:
    found = gpu.list_adapters()
    assert [info.index for info in found] == list(range(len(found)))
    assert len(found) >= 1
    for info in found:
        assert info.name and info.type and info.backend and info.limits
    software = [info.type == "CPU" for info in found if info.backend not in ("OpenGL", "OpenGLES")]
    assert software == sorted(software), "a GPU comes before a software driver"
    gl = [info.backend in ("OpenGL", "OpenGLES") for info in found]
    assert gl == sorted(gl), "OpenGL comes last"


@pytest.mark.skipif(sys.platform != "linux", reason="drivers of Linux")
@pytest.mark.parametrize("given", [{}, {"XDG_RUNTIME_DIR": "", "EGL_LOG_LEVEL": "fatal"}])
def test_drivers_write_nothing_to_stderr(given: dict[str, str]) -> None:
    """A driver that is not there makes EGL warn as well. The environment stays what it was."""
    code = """
import os, sys
from wgtrain import gpu
from wgtrain.cli.doctor import report

before = dict(os.environ)
gpu.list_adapters()
gpu.run(gpu.open_device()).close()
report()
assert dict(os.environ) == before
"""
    kept = {k: v for k, v in os.environ.items() if k not in ("XDG_RUNTIME_DIR", "EGL_LOG_LEVEL")}
    environment = kept | {"LIBGL_DRIVERS_PATH": "/nonexistent"} | given
    result = python(code, environment=environment)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


@pytest.mark.parametrize("index", [-1, 99])
def test_adapter_index_that_is_none(index: int) -> None:
    with pytest.raises(OptionError, match=rf"adapter index {index} is not one of: 0 = "):
        gpu.run(gpu.open_device(index))


@pytest.mark.parametrize("value", ["99", "-1", "one", " ", "0.5", "0_0", "\u0660"])
def test_adapter_index_of_the_environment_that_is_none(
    value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, value)
    with pytest.raises(OptionError, match=rf"{VARIABLE} '{value}' is not one of: 0 = "):
        gpu.run(gpu.open_device())


@pytest.mark.parametrize("value", ["all", "bounds"])
def test_shader_checks(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With and without bounded loops: the same results, the same errors."""
    made: list[int | None] = []
    create = native_library.create_shader_module

    def watched(device: Any, code: str, label: str, flags: int | None) -> Any:
        made.append(flags)
        return create(device, code, label, flags)

    monkeypatch.setattr(native_library, "create_shader_module", watched)
    monkeypatch.setenv(native_library.VARIABLE, value)
    for name in ("shader_errors_name_kernel_line_and_message", "dispatches_run_in_order"):
        gpu.run(contract.CHECKS[name]())
    assert set(made) == {None if value == "all" else 1}


def test_shader_checks_that_there_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(native_library.VARIABLE, "none")
    with pytest.raises(OptionError, match="WGTRAIN_SHADER_CHECKS is 'none': allowed is all or"):
        gpu.run(gpu.open_device())


def test_adapter_index_chooses(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[tuple[int, Any]] = []
    monkeypatch.setattr(native, "NativeDevice", lambda info, *rest: opened.append((info.index, 0)))
    monkeypatch.setattr(native, "_adapters", lambda: [(a, None) for a in two()])

    def two() -> list[gpu.AdapterInfo]:
        return [gpu.AdapterInfo(i, f"gpu {i}", "DiscreteGPU", "Vulkan", "") for i in range(2)]

    for given, variable, expected in (
        (None, None, 0),
        (1, None, 1),
        (None, "1", 1),
        (None, " 1 ", 1),
        (None, "", 0),
        (0, "1", 0),
        (1, "nonsense", 1),
    ):
        if variable is None:
            monkeypatch.delenv(VARIABLE, raising=False)
        else:
            monkeypatch.setenv(VARIABLE, variable)
        native.open_device(given)
        assert opened.pop() == (expected, 0), (given, variable)


def test_no_adapter_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "_adapters", list)
    with pytest.raises(DeviceError, match="apt-get install mesa-vulkan-drivers"):
        gpu.run(gpu.open_device())


def test_all_that_the_adapter_has_is_asked_for_large_models() -> None:
    device = gpu.run(gpu.open_device())
    try:
        have = device.info.limits
        assert device.limits.binding == have["max-storage-buffer-binding-size"] & ~255
        assert device.limits.buffer == have["max-buffer-size"] & ~255
        size = 300 << 20  # more than WebGPU's default; never written, so it costs nothing here
        if device.limits.buffer >= size:
            device.free(device.create_buffer(size, "large"))
        assert device.allocated == 0
    finally:
        device.close()


def test_a_software_adapter_has_the_free_memory_of_the_machine() -> None:
    device = gpu.run(gpu.open_device(limits="default"))
    try:
        if device.info.type != "CPU":
            assert device.budget is None
        else:
            assert device.budget and device.budget > 100 << 20
            assert device.find_budget() == "free main memory"
    finally:
        device.close()


def test_memory_is_asked_for_once_and_counts_what_is_in_use(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    device = gpu.run(gpu.open_device(limits="default", budget=5 << 20))
    asked: list[object] = []
    monkeypatch.setattr(base, "find_memory", lambda info: asked.append(info) or Memory(1000, "it"))
    try:
        assert device.find_budget() == "as given" and device.budget == 5 << 20 and not asked
        device.create_buffer(512, "used")
        device.budget, device._budget_origin = None, ""  # as of a GPU of which nobody said a word
        assert [device.find_budget(), device.find_budget()] == ["it", "it"]
        assert device.budget == 1512 and len(asked) == 1
    finally:
        device.close()


def test_a_lost_device_says_so_and_another_lives() -> None:
    other = gpu.run(gpu.open_device(limits="default"))
    device = gpu.run(gpu.open_device(limits="default"))
    try:
        buffer = device.create_buffer(16, "b")
        gpu.run(device.pipeline("next", contract.NEXT, contract.NEXT_SLOTS))
        device._device.destroy()
        logging.getLogger("wgpu").warning("callback: DEVICE LOST: the driver was reset")
        with pytest.raises(DeviceLostError, match="lost"):
            device.create_buffer(4, "c")
        for late in (
            device.read(buffer, 0, 16),
            device.pipeline("next", contract.NEXT, contract.NEXT_SLOTS),
        ):
            with pytest.raises(DeviceLostError, match="lost"):
                gpu.run(late)
        kept = other.create_buffer(4, "of a device that is not lost")
        other.write(kept, 0, b"abcd")
        assert gpu.run(other.read(kept, 0, 4)) == b"abcd"
    finally:
        device.close()
        other.close()


@pytest.mark.skipif(sys.platform != "linux", reason="limits the address space")
def test_a_driver_without_memory() -> None:
    code = """
import resource
from wgtrain import gpu
from wgtrain.errors import OutOfMemoryError

device = gpu.run(gpu.open_device())
if device.info.type != "CPU":
    print("hardware")
    raise SystemExit
pages = int(open("/proc/self/statm").read().split()[0])
resource.setrlimit(resource.RLIMIT_AS, (pages * 4096 + (600 << 20),) * 2)
made = 0
try:
    while made < 8:
        device.create_buffer(250 << 20, f"buffer {made}")
        made += 1
except OutOfMemoryError as error:
    assert f"'buffer {made}'" in str(error), error
    assert 1 <= made <= 2 and device.allocated == made * (250 << 20), made
    small = device.create_buffer(64, "small")
    device.write(small, 0, b"abcd")
    print(gpu.run(device.read(small, 0, 4)).decode())
device.close()
"""
    result = python(code)
    if result.stdout.strip() == "hardware":
        pytest.skip("needs a software adapter")
    assert result.stdout.strip() == "abcd", result.stdout + result.stderr[-2000:]
    assert result.returncode == 0


def test_an_error_of_memory_is_not_one_of_the_shader(monkeypatch: pytest.MonkeyPatch) -> None:
    device = gpu.run(gpu.open_device(limits="default"))
    try:

        def fail(**_: Any) -> None:
            raise RuntimeError("Not enough memory left.")

        monkeypatch.setattr(device._device, "create_shader_module", fail)
        with pytest.raises(OutOfMemoryError, match="compiling kernel 'next'"):
            gpu.run(device.pipeline("next", contract.NEXT, contract.NEXT_SLOTS))
    finally:
        monkeypatch.undo()
        device.close()


# `opened`: a device, a buffer `y` and `run()`, which queues a program that adds one to it.
OPENED = """
import numpy as np
import os
import threading
import device_contract as contract
from wgtrain import gpu
from wgtrain.errors import DeviceError

device = gpu.run(gpu.open_device(limits="default"))
maker = gpu.run(contract.Affine.open(device))
y = maker.buffer()
program = device.program([maker.dispatch(y, 1)])

def run():
    device.run(program, np.array([[2, 1, 1]], np.uint32), [])

class Queue:
    def __init__(self, queue, before):
        self.queue, self.before = queue, before
    def __getattr__(self, name):
        return getattr(self.queue, name)
    def submit(self, commands):
        self.before()
        self.queue.submit(commands)
"""


@pytest.mark.parametrize("call", ["device.close()", "device.free(y)"])
def test_a_call_waits_for_that_of_another_thread(call: str) -> None:
    """wgpu-native would end the process, where a buffer is destroyed between check and submit."""
    code = f"""
inside, go, done = threading.Event(), threading.Event(), threading.Event()

def before():
    inside.set()
    go.wait()

def other():
    {call}
    done.set()

device._queue = Queue(device._queue, before)
first, second = [threading.Thread(target=each, daemon=True) for each in (run, other)]
first.start()
inside.wait()
second.start()
assert not done.wait(0.2)
go.set()
first.join()
second.join()
assert done.is_set()
try:
    run()
except DeviceError as error:
    print(error)
"""
    result = python(OPENED + code)
    said = {
        "device.close()": "running a plan: the device was closed\n",
        "device.free(y)": "buffer 'y' was freed\n",
    }
    assert (result.stdout, result.stderr, result.returncode) == (said[call], "", 0)


@pytest.mark.parametrize("call", ["device.close()", "device.free(y)"])
def test_what_a_signal_handler_destroys_in_a_call_is_destroyed_after_it(call: str) -> None:
    code = f"""
device._queue = Queue(device._queue, lambda: {call})
run()
try:
    run()
except DeviceError as error:
    print(error)
"""
    result = python(OPENED + code)
    reasons = {"device.close()": "running a plan: the device was closed\n"}
    assert result.stdout == reasons.get(call, "buffer 'y' was freed\n"), result.stderr[-2000:]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_a_forked_child_is_told_whose_the_gpu_is() -> None:
    """It neither hangs nor crashes, whatever it calls, nor when it ends; the parent goes on."""
    code = """
import sys

run()
parent = os.getpid()
held = threading.Event()

def hold():  # a call under way while the process forks
    with device._errors("holding"):
        held.set()
        threading.Event().wait()

threading.Thread(target=hold, daemon=True).start()
held.wait()
child = os.fork()
if not child:
    for call in (
        run,
        lambda: device.write(y, 0, b"abcd"),
        lambda: device.create_buffer(4, "late"),
        lambda: gpu.run(device.read(y, 0, 4)),
        lambda: gpu.run(device.pipeline("affine", contract.AFFINE, contract.AFFINE_SLOTS)),
        lambda: gpu.run(gpu.open_device()),
        gpu.list_adapters,
    ):
        try:
            call()
        except DeviceError as error:
            assert f"process, {parent}: " in str(error) or f"process {parent}," in str(error)
            assert "'spawn'" in str(error)
        else:
            raise AssertionError("it was not refused")
    device.free(y)
    device.close()
    del maker, program, y
    sys.exit(7)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""
    result = python(OPENED + code)
    assert (result.stdout, result.stderr, result.returncode) == ("7\n", "", 0)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_a_child_may_use_the_gpu_that_its_parent_did_not() -> None:
    code = """
import os
from wgtrain import gpu

if not os.fork():
    gpu.run(gpu.open_device()).close()
    os._exit(5)
print(os.waitstatus_to_exitcode(os.wait()[1]))
gpu.run(gpu.open_device()).close()
"""
    result = python(code)
    assert (result.stdout, result.stderr, result.returncode) == ("5\n", "", 0)


def resident() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("times", [10, pytest.param(200, marks=pytest.mark.slow)])
def test_opening_and_closing_keeps_memory_flat(times: int) -> None:
    """A device that is kept takes 3 MiB, and 8 where it has worked."""
    gpu.run(contract.open_and_close(5))
    gc.collect()
    before = resident()
    gpu.run(contract.open_and_close(times))
    gc.collect()
    growth = resident() - before
    assert growth < 20 << 20, f"{growth >> 20} MiB after {times} devices"


def test_interrupts_do_not_change_what_is_counted(device: Any) -> None:
    before, at, interrupted = device.allocated, 0, 0
    while interrupted == at:
        at += 1
        buffer = device.create_buffer(100, "counted")
        try:
            with Lines(at).watched():
                device.free(buffer)
        except KeyboardInterrupt:
            interrupted += 1
        device.free(buffer)
        assert device.allocated == before, f"line {at}"
    assert interrupted > 3
