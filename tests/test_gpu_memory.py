"""How much memory a GPU has left: the tools that say so are fakes here, also broken ones."""

import os
import stat
import sys
import time
from pathlib import Path

import pytest

from wgtrain.gpu import memory
from wgtrain.gpu.memory import UNKNOWN, Memory, find_memory, free_main_memory, read_size
from wgtrain.gpu.protocol import AdapterInfo


def adapter(name: str, type_: str = "DiscreteGPU") -> AdapterInfo:
    return AdapterInfo(0, name, type_, "Vulkan", "driver")


def write(root: Path, path: str, text: str) -> None:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(text)


@pytest.mark.parametrize(
    ("text", "nbytes"),
    [
        ("6GiB", 6 << 30),
        ("6000MB", 6_000_000_000),
        ("1.5 gib", 3 << 29),
        ("1234567", 1234567),
        (1234567, 1234567),
        ("12kb", 12_000),
        ("0.5TiB", 1 << 39),
    ],
)
def test_sizes_people_write(text: object, nbytes: int) -> None:
    assert read_size(text) == nbytes


@pytest.mark.parametrize("text", ["", "6G", "-1", 0, True, 1.5, None, "1e9", "GiB", "0", "6 PB"])
def test_other_sizes_are_refused(text: object) -> None:
    with pytest.raises(ValueError, match="GiB"):
        read_size(text)


def test_main_memory_is_what_is_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_physical", lambda: 1 << 40)
    write(tmp_path, "proc/meminfo", "MemTotal:  900 kB\nMemAvailable:   500 kB\nBuffers: 1 kB\n")
    info = adapter("llvmpipe", "CPU")
    assert free_main_memory(tmp_path) == 500 * 1024
    # A container may have less than its machine.
    write(tmp_path, "sys/fs/cgroup/memory.max", "300000\n")
    write(tmp_path, "sys/fs/cgroup/memory.current", "100000\n")
    assert free_main_memory(tmp_path) == 200_000
    write(tmp_path, "sys/fs/cgroup/memory.stat", "anon 4\ninactive_file 50000\n")
    assert free_main_memory(tmp_path) == 250_000
    write(tmp_path, "sys/fs/cgroup/memory.max", "max\n")
    assert find_memory(info, root=tmp_path) == Memory(500 * 1024, "free main memory")
    write(tmp_path, "proc/meminfo", "MemAvailable: much\n")
    assert free_main_memory(tmp_path) == 1 << 40
    monkeypatch.setattr(memory, "_physical", lambda: None)
    assert find_memory(info, root=tmp_path) == UNKNOWN


NVIDIA = "12000, NVIDIA A10\n81000, NVIDIA H100\n70000, NVIDIA H100\n"


@pytest.mark.parametrize(
    ("name", "said", "free"),
    [
        ("NVIDIA A10", NVIDIA, 12000 << 20),
        ("NVIDIA H100", NVIDIA, 70000 << 20),  # which of them is not known
        ("NVIDIA H200", NVIDIA, None),
        ("NVIDIA A10", "[N/A], NVIDIA A10\n", None),
        ("NVIDIA A10", "No devices were found", None),
        ("NVIDIA A10", "0, NVIDIA A10", None),
        ("NVIDIA A10", "", None),
        ("NVIDIA A10", None, None),
    ],
)
def test_nvidia_by_its_tool(name: str, said: str | None, free: int | None) -> None:
    asked = []
    found = find_memory(adapter(name), lambda command: asked.append(command) or said)
    assert found == (Memory(free, "free by nvidia-smi") if free else UNKNOWN)
    assert [command[0] for command in asked] == ["nvidia-smi"]


def test_amd_by_the_drivers_files(tmp_path: Path) -> None:
    card = "sys/class/drm/card0/device/mem_info"
    info = adapter("AMD Radeon RX 7900 XT (RADV NAVI31)")
    assert find_memory(info, root=tmp_path) == UNKNOWN
    write(tmp_path, f"{card}_vram_total", "20000\n")
    assert find_memory(info, root=tmp_path) == UNKNOWN
    write(tmp_path, f"{card}_vram_used", "garbage\n")
    assert find_memory(info, root=tmp_path) == UNKNOWN
    write(tmp_path, f"{card}_vram_used", "5000\n")
    assert find_memory(info, root=tmp_path).nbytes == 15_000
    write(tmp_path, f"{card}_gtt_total", "7000\n")
    write(tmp_path, f"{card}_gtt_used", "1000\n")
    assert find_memory(info, root=tmp_path).nbytes == 15_000
    shared = adapter("AMD Radeon Graphics (RADV)", "IntegratedGPU")
    assert find_memory(shared, root=tmp_path).nbytes == 21_000
    write(tmp_path, "sys/class/drm/card1/device/mem_info_vram_total", "9000\n")
    write(tmp_path, "sys/class/drm/card1/device/mem_info_vram_used", "8000\n")
    assert find_memory(info, root=tmp_path).nbytes == 1000


@pytest.mark.parametrize(
    ("said", "mib"), [("6000\n", 6000), ("0\n", None), ("?", None), (None, None)]
)
def test_apple_by_the_limit_a_person_set(said: str | None, mib: int | None) -> None:
    found = find_memory(adapter("Apple M2", "IntegratedGPU"), lambda command: said)
    assert found == (Memory(mib << 20, "iogpu.wired_limit_mb") if mib else UNKNOWN)


def test_others_are_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    def asked(command: object) -> str:
        raise AssertionError(command)

    assert find_memory(adapter("Intel(R) Arc(tm) A770"), asked) == UNKNOWN
    assert find_memory(adapter("Damned GPU"), asked) == UNKNOWN
    monkeypatch.setattr(sys, "platform", "emscripten")
    assert find_memory(adapter("NVIDIA A10"), asked) == UNKNOWN
    assert find_memory(adapter("SwiftShader", "CPU"), asked) == UNKNOWN


@pytest.mark.skipif(os.name != "posix", reason="the fake tools are shell scripts")
def test_a_tool_may_be_missing_fail_hang_or_print_rubbish(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    info = adapter("NVIDIA A10")
    tool = tmp_path / "nvidia-smi"

    def say(script: str) -> Memory:
        tool.write_text(f"#!/bin/sh\n{script}\n")
        tool.chmod(tool.stat().st_mode | stat.S_IXUSR)
        return find_memory(info)

    assert memory.run_tool(["no-such-tool-is-here"]) is None
    assert say("echo '9000, NVIDIA A10'") == Memory(9000 << 20, "free by nvidia-smi")
    assert say("echo '9000, NVIDIA A10'; exit 9") == UNKNOWN
    assert say(r"printf '\377\376\0'") == UNKNOWN
    monkeypatch.setattr(memory, "_SECONDS", 0.2)
    began = time.monotonic()
    assert say("exec sleep 60") == UNKNOWN
    assert time.monotonic() - began < 30
