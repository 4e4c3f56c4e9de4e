"""How much memory a GPU has left. WebGPU names no amount, so others are asked: the operating system
where memory is the machine's own, else the tools of the driver's maker, where they are.
"""

import os
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from wgtrain.errors import OptionError
from wgtrain.files.source import shown
from wgtrain.gpu.protocol import AdapterInfo

_SECONDS = 5.0  # that a tool may take
_UNITS = {"": 1, "b": 1} | {
    f"{letter}{end}": base ** (power + 1)
    for power, letter in enumerate("kmgt")
    for end, base in (("b", 1000), ("ib", 1024))
}
SIZES = "bytes, or a number with KB, MB, GB, TB (powers of 1000), KiB, MiB, GiB or TiB (of 1024)"
Run = Callable[[Sequence[str]], str | None]


@dataclass(frozen=True)
class Memory:
    """Bytes that can be allocated, None = not known, and in words who says so."""

    nbytes: int | None
    origin: str


GIVEN = "as given"
UNKNOWN = Memory(None, "not known: neither WebGPU nor a tool that is here says")


def read_size(value: object) -> int:
    """Bytes of "6GiB", "6000MB" or a number; ValueError, with what is allowed, for other things."""
    if isinstance(value, int) and not isinstance(value, bool) and value > 0:
        return value
    match = re.fullmatch(r"([0-9]{1,18}(?:\.[0-9]{1,6})?) ?([a-z]{0,3})", str(value).lower())
    if isinstance(value, str) and match and match[2] in _UNITS:
        nbytes = int(Fraction(match[1]) * _UNITS[match[2]])
        if nbytes > 0:
            return nbytes
    raise ValueError(SIZES)


def format_size(nbytes: int) -> str:
    """Bytes for people: "1.25 GiB", "17.5 MiB"."""
    return f"{nbytes / 2**30:,.2f} GiB" if nbytes >= 1 << 30 else f"{nbytes / 2**20:,.1f} MiB"


def read_gpu_memory(value: object) -> int:
    """Bytes of the option `gpu_memory`; OptionError for what is no size."""
    try:
        return read_size(value)
    except ValueError as error:
        raise OptionError(f"gpu_memory = {shown(value)}: allowed is {error}") from None


def free_main_memory(root: Path = Path("/")) -> int | None:
    """Bytes of main memory that can be taken without swapping; None where nothing says. A limit of
    the process's control group counts.
    """
    found = [
        free
        for free in (_meminfo(root), _group(root), _physical())
        if free is not None and free > 0
    ]
    return min(found, default=None)


def _meminfo(root: Path) -> int | None:
    match = re.search(r"^MemAvailable: +([0-9]{1,15}) kB$", _text(root / "proc/meminfo"), re.M)
    return int(match[1]) * 1024 if match else None


def _group(root: Path) -> int | None:
    """What the limit of a control group, second version, leaves."""
    folder = root / "sys/fs/cgroup"
    most, now = (_number(folder / f"memory.{name}") for name in ("max", "current"))
    if most is None or now is None:
        return None
    cached = re.search(r"^inactive_file ([0-9]{1,18})$", _text(folder / "memory.stat"), re.M)
    return max(most - now + (int(cached[1]) if cached else 0), 1)


def _physical() -> int | None:
    """All there is, where the system does not say what is free."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None


def run_tool(command: Sequence[str]) -> str | None:
    """What a tool prints; None where it is missing, fails, hangs or prints no text."""
    import subprocess  # no page has processes

    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=_SECONDS,
            check=True,
        )
        return done.stdout[:100_000].decode()
    except (OSError, ValueError, subprocess.SubprocessError):
        return None


def find_memory(info: AdapterInfo, run: Run = run_tool, root: Path = Path("/")) -> Memory:
    """What an adapter's memory has left just now."""
    if sys.platform == "emscripten":
        return UNKNOWN
    if info.type == "CPU":
        free = free_main_memory(root)
        return UNKNOWN if free is None else Memory(free, "free main memory")
    for name, ask in (("nvidia", _nvidia), ("amd|radeon", _amd), ("apple", _apple)):
        if re.search(rf"\b({name})", info.name, re.IGNORECASE):
            return ask(info, run, root) or UNKNOWN
    return UNKNOWN


def _nvidia(info: AdapterInfo, run: Run, root: Path) -> Memory | None:
    query = ("nvidia-smi", "--query-gpu=memory.free,name", "--format=csv,noheader,nounits")
    rows = re.findall(r"^([0-9]{1,9}), *(.+?) *$", run(query) or "", re.M)
    # Of several of one name it is not known which is meant: the fullest.
    free = [int(mib) << 20 for mib, name in rows if name.lower() == info.name.lower() and int(mib)]
    return Memory(min(free), "free by nvidia-smi") if free else None


def _amd(info: AdapterInfo, run: Run, root: Path) -> Memory | None:
    found = []
    for card in sorted((root / "sys/class/drm").glob("card*/device/mem_info_vram_total")):
        kinds = ("vram", "gtt") if info.type == "IntegratedGPU" else ("vram",)
        sizes = [
            [_number(card.with_name(f"mem_info_{kind}_{what}")) for what in ("total", "used")]
            for kind in kinds
        ]
        free = sum(total - used for total, used in sizes if total and used is not None)
        if free > 0:
            found.append(free)
    return Memory(min(found), "free by the driver's files in /sys") if found else None


def _apple(info: AdapterInfo, run: Run, root: Path) -> Memory | None:
    """The limit that a person has set; the one that Metal recommends no tool tells."""
    limit = (run(("sysctl", "-n", "iogpu.wired_limit_mb")) or "").strip()
    if re.fullmatch(r"[0-9]{1,9}", limit) and int(limit):
        return Memory(int(limit) << 20, "iogpu.wired_limit_mb")
    return None


def _text(path: Path) -> str:
    try:
        with open(path, "rb") as file:
            return file.read(100_000).decode("ascii", "replace")
    except OSError:
        return ""


def _number(path: Path) -> int | None:
    text = _text(path).strip()
    return int(text) if re.fullmatch(r"[0-9]{1,18}", text) else None
