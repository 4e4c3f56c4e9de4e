"""Samples and what surrounds them: spreads, ratios, the machine, peak memory."""

import datetime
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from wgtrain import __version__
from wgtrain.gpu import Device

FORMAT = 1  # of the records
Record = dict[str, Any]


def spread(samples: Sequence[float]) -> Record:
    """Median and extremes of samples, and the samples themselves."""
    return {
        "median": statistics.median(samples),
        "low": min(samples),
        "high": max(samples),
        "samples": list(samples),
    }


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> Record:
    """The spread of ours / theirs over samples taken in turn: below 1 ours is the faster."""
    return spread([a / b for a, b in zip(ours, theirs, strict=True)])


def timed(work: Callable[[], Any]) -> float:
    """Seconds a call takes."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def record(bench: str, command: str, device: Device) -> Record:
    """What every record begins with: which measurement, on what, by which command."""
    return {
        "bench": bench,
        "format": FORMAT,
        "command": command,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "machine": machine(),
        "adapter": {
            "name": device.info.name,
            "type": device.info.type,
            "backend": device.info.backend,
            "driver": device.info.driver,
        },
    }


def machine() -> Record:
    """Processor, memory and versions."""
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory": _memory(),
        "python": platform.python_version(),
        "wgtrain": __version__,
        "wgpu": metadata.version("wgpu"),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _memory() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None


def peak_memory() -> int | None:
    """The most bytes this process has held at once; None where the system does not say."""
    try:
        import resource
    except ImportError:
        return None
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024
