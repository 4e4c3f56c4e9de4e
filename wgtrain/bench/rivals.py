"""Other trainers, each in a process of its own, doing the same step on the same weights and rows.

Their time counts only once loss and gradient norm have agreed with ours.
"""

import importlib.util
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from wgtrain.bench.shapes import Shape
from wgtrain.errors import OptionError, WgtrainError


@dataclass(frozen=True)
class Kind:
    """How a rival is started. `tolerance`: relative, of loss and gradient norm; `warmup`: steps
    before the first that is timed.
    """

    module: str
    packages: tuple[str, ...]
    tolerance: float
    warmup: int = 2
    dtype: str = "float32"
    architectures: tuple[str, ...] = ("llama", "qwen2", "qwen3")


_F16 = 1e-2  # relative, what f16 may change: docs/precision.md
_TORCH = ("torch", "transformers", "peft")
RIVALS = {
    "peft": Kind("wgtrain.bench.peft_step", _TORCH, 1e-4),
    # A bf16 base rounds every activation to three digits.
    "peft-bf16": Kind("wgtrain.bench.peft_step", _TORCH, 5e-2, dtype="bfloat16"),
    # Its JIT captures at the second step and replays from the third on.
    "tinygrad": Kind(
        "wgtrain.bench.tinygrad_step", ("tinygrad", "pydawn"), 1e-4, architectures=("llama",)
    ),
}

# Those that decode; their `tolerance` is of the range of logits, blocks of 8-bit activations by
# llama.cpp's way of multiplying quantised weights.
DECODERS = {"llama.cpp": Kind("wgtrain.bench.llama_decode", ("llama_cpp",), 5e-2)}


def check_rivals(
    names: tuple[str, ...], shape: Shape, known: Mapping[str, Kind] | None = None
) -> None:
    """Raises OptionError for a rival that is not in `known` (`RIVALS`), not installed or cannot do
    the shape.
    """
    known = RIVALS if known is None else known
    for name in names:
        if name not in known:
            raise OptionError(f"vs = {name!r}: allowed are {', '.join(known)}")
        kind = known[name]
        missing = [p for p in kind.packages if importlib.util.find_spec(p) is None]
        if missing:
            raise OptionError(
                f"vs = {name!r}: {', '.join(missing)} is not installed; the extra `bench` brings "
                "it, in a checkout by: pip install '.[bench]'"
            )
        if shape.architecture not in kind.architectures:
            raise OptionError(
                f"vs = {name!r}: shape {shape.name} is of architecture {shape.architecture}; "
                f"{name} is written for {', '.join(kind.architectures)} here"
            )


class Rival:
    """A running rival. A context manager: its process ends with it."""

    def __init__(self, name: str, shape: Shape, known: Mapping[str, Kind] | None = None):
        check_rivals((name,), shape, known)
        self.name, self.kind = name, (RIVALS if known is None else known)[name]
        self.peak_memory: int | None = None
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115
        self._process = subprocess.Popen(
            [sys.executable, "-m", self.kind.module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env=_environment(self.kind),
        )
        try:
            job = {"shape": asdict(shape), "dtype": self.kind.dtype}
            self.about: dict[str, Any] = self._ask(json.dumps(job))["about"]
        except BaseException:
            self.close()
            raise

    def steps(self, count: int) -> dict[str, float]:
        """Runs steps; see `child.Stepper`."""
        answer = self._ask(str(count))
        self.peak_memory = answer.pop("peak_memory")
        return answer

    def _ask(self, line: str) -> dict[str, Any]:
        assert self._process.stdin and self._process.stdout
        try:
            print(line, file=self._process.stdin, flush=True)
            answer = self._process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            self._process.wait()
            self._errors.seek(0)
            said = self._errors.read().decode(errors="replace").strip().splitlines()
            raise WgtrainError(
                f"{self.name} ended with status {self._process.returncode}: "
                f"{said[-1] if said else 'it said nothing'}"
            )
        found: dict[str, Any] = json.loads(answer)
        if "error" in found:
            raise WgtrainError(f"{self.name}: {found['error']}")
        return found

    def close(self) -> None:
        """Ends the process."""
        assert self._process.stdin and self._process.stdout
        self._process.kill()
        self._process.wait()
        self._process.stdin.close()
        self._process.stdout.close()
        self._errors.close()

    def __enter__(self) -> "Rival":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def check_same(
    name: str, ours: dict[str, float], theirs: dict[str, float], precision: str = "f32"
) -> dict[str, float]:
    """The relative differences of loss and gradient norm; WgtrainError where one is too large.

    `precision` is ours.
    """
    found = {n: abs(theirs[n] / ours[n] - 1) for n in ("loss", "grad_norm")}
    tolerance = max(RIVALS[name].tolerance, _F16 if precision == "f16" else 0.0)
    for what, difference in found.items():
        if not difference <= tolerance:  # also for NaN
            raise WgtrainError(
                f"{name} does not do the same work: {what} {theirs[what]:.6g}, ours "
                f"{ours[what]:.6g}, a relative difference of {difference:.1e}; {tolerance:.0e} is "
                "allowed"
            )
    return found


def _environment(kind: Kind) -> dict[str, str]:
    environment = dict(os.environ)
    if "tinygrad" in kind.packages:
        environment |= {"DEV": "WEBGPU", "TRAINING": "1"}
        if library := _dawn():
            environment.setdefault("WEBGPU_PATH", str(library))
    return environment


def _dawn() -> Path | None:
    """The library dawn-python brings for this machine; tinygrad finds the one of Windows itself."""
    spec = importlib.util.find_spec("pydawn")
    assert spec and spec.origin
    machine = {"AMD64": "x86_64", "aarch64": "aarch64", "arm64": "arm64"}.get(
        platform.machine(), platform.machine()
    )
    ending = {"Linux": "so", "Darwin": "dylib"}.get(platform.system())
    path = Path(spec.origin).parent / "lib" / f"libwebgpu_dawn_{machine}.{ending}"
    return path if path.is_file() else None
