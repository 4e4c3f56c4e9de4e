"""`wgtrain doctor`: what this machine offers, and what to do where it offers nothing."""

import os
import platform
from importlib import metadata

from wgtrain import __version__
from wgtrain.engine.kernel import load_kernel
from wgtrain.engine.probe import find_subgroup_size
from wgtrain.engine.tuning import default_tuning
from wgtrain.errors import DeviceError
from wgtrain.gpu import INDEX_VARIABLE as VARIABLE
from wgtrain.gpu import AdapterInfo, list_adapters, open_device, run
from wgtrain.gpu.protocol import CHECKS_VARIABLE as CHECKS
from wgtrain.tune.cache import VARIABLE as CACHE
from wgtrain.tune.cache import cache_file, cache_folder, load
from wgtrain.tune.sweep import Measured, as_text

PACKAGES = (
    *("numpy", "wgpu", "tokenizers", "jinja2", "pyyaml", "click", "rich", "pygal"),
    *("starlette", "uvicorn"),
)
LIMITS = ("buffer-size", "buffer-binding-size", "storage-buffers", "compute")  # in their names
ADVICE = {
    "Linux": """Install a Vulkan driver. For a GPU, the one of its maker:
  AMD, Intel   Debian, Ubuntu: apt install mesa-vulkan-drivers libvulkan1
               Fedora: dnf install mesa-vulkan-drivers vulkan-loader
               Arch: pacman -S vulkan-icd-loader and vulkan-radeon or vulkan-intel
  NVIDIA       the proprietary driver, with its Vulkan part (libnvidia-gl, nvidia-utils)
mesa-vulkan-drivers also brings lavapipe, a software adapter that needs no GPU.
In a container the driver must be inside it, and /dev/dri passed in.""",
    "Darwin": "Metal is part of macOS 11 and newer: update the system.",
    "Windows": "Update the graphics driver: Direct3D 12 or Vulkan is needed.",
}


def report() -> tuple[str, bool]:
    """(what `wgtrain doctor` prints, whether there is an adapter to train on)."""
    lines = [
        f"wgtrain {__version__}, Python {platform.python_version()} on {platform.platform()}",
        ", ".join(f"{name} {_version(name)}" for name in PACKAGES),
        "",
    ]
    try:
        adapters, problem = list_adapters(), ""
    except (DeviceError, ImportError, OSError) as error:
        adapters, problem = [], f" ({error})"
    if not adapters:
        lines.append(f"No adapter was found{problem}.")
        lines.append(ADVICE.get(platform.system(), "Install a driver for Vulkan, Metal or D3D12."))
        return "\n".join(lines), False
    for adapter in adapters:
        lines += [*_described(adapter), ""]
    return "\n".join([*lines, *_choice(adapters), *_variables()]), True


def _described(adapter: AdapterInfo) -> list[str]:
    limits = {name: n for name, n in adapter.limits.items() if any(x in name for x in LIMITS)}
    width = max(map(len, limits), default=0)
    lines = [f"adapter {adapter.index}: {adapter.name}"]
    lines.append(f"  {adapter.type}, {adapter.backend}, {adapter.driver or 'driver not named'}")
    lines += [f"  {name:{width}}  {value:,}" for name, value in sorted(limits.items())]
    lines.append(f"  features: {', '.join(sorted(adapter.features)) or 'none'}")
    return [*lines, *_opened(adapter)]


def _opened(adapter: AdapterInfo) -> list[str]:
    """What shows once a device is open: what kernels may use, and which of them run."""
    try:
        device = run(open_device(adapter.index))
    except DeviceError as error:
        return [f"  cannot be used: {error}"]
    try:
        size = run(find_subgroup_size(device))
        used = ", ".join(sorted(device.features)) or "none"
        default = default_tuning(device).origin
    except DeviceError as error:
        return [f"  cannot be used: {error}"]
    finally:
        device.close()
    subgroups = f"{size} invocations" if size else "not used"
    return [f"  used of these: {used}", f"  subgroups: {subgroups}", *_kernels(adapter, default)]


def _kernels(adapter: AdapterInfo, default: str) -> list[str]:
    """The measured table of an adapter, as `train --tuning auto` takes it."""
    cached = load(adapter)
    lines = [f"  {cached.problem}"] if cached.problem else []
    if not cached.measured:
        return [*lines, f"  kernels: {default}"]
    lines.append(f"  kernels: measured {cached.made}, others {default.partition(':')[0]}")
    lines += [f"    {_line(entry)}" for entry in cached.measured]
    return [*lines, f"    from {cache_file(adapter)}"]


def _line(entry: Measured) -> str:
    rate = f"{entry.rate / 1e9:,.1f} GFLOP/s, " if load_kernel(entry.choice.kernel).flops else ""
    ratio = f"{entry.rate / entry.default_rate:.2f} x the default"
    return f"{entry.family}: {as_text(entry.choice)}; {rate}{ratio}, {entry.shape.rows} tokens"


def _choice(adapters: list[AdapterInfo]) -> list[str]:
    chosen = os.environ.get(VARIABLE) or None
    used = f"{adapters[0].index}, the strongest" if chosen is None else f"{chosen}, from {VARIABLE}"
    lines = [f"Used unless --adapter-index or {VARIABLE} says otherwise: {used}."]
    if chosen is not None and chosen.strip() not in [str(adapter.index) for adapter in adapters]:
        lines = [f"{VARIABLE} is {chosen!r}: allowed is 0 to {len(adapters) - 1}."]
    if all(adapter.type == "CPU" for adapter in adapters):
        lines.append("It is software. If this machine has a GPU, its driver is missing:")
        lines.append(ADVICE.get(platform.system(), ""))
    return lines


def _variables() -> list[str]:
    """The other environment variables, and what they are set to."""
    return [
        f"{CACHE}: folder of measured tables; now {cache_folder()}.",
        f"{CHECKS}: all, or bounds, which leaves out the counters that natively end loops; now "
        f"{os.environ.get(CHECKS, 'all')}.",
    ]


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "missing"
