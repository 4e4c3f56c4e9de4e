"""Runs of `wgtrain train` that are killed at random moments and resumed, until they are done."""

import json
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

from wgtrain.runs.folder import RunFolder
from wgtrain.train.checkpoint import unpack

CLOCK = {"elapsed_seconds", "tokens_per_second"}  # of metrics.jsonl, differ in every run


def state(out: Path | str) -> tuple[Any, ...]:
    """All of a finished run that must not depend on when it was killed."""
    lines = []
    for text in Path(out, "metrics.jsonl").read_text().splitlines():
        lines.append({k: v for k, v in json.loads(text).items() if k not in CLOCK})
    newest = max(Path(out, "checkpoints").iterdir())
    names = ("adapter.gguf", "adapter_model.safetensors", "adapter_config.json")
    moments = (newest / "optimizer.safetensors").read_bytes()
    return newest.name, lines, moments, *(Path(out, name).read_bytes() for name in names)


def series(
    command: list[str], options: list[str], folder: Path, kills: int, seed: int
) -> list[dict[str, Any]]:
    """Trains once undisturbed, then again under SIGKILL, in as many runs as `kills` need.

    Every checkpoint found after a kill must be readable, and every run must end in the state of
    the undisturbed one. Returns what happened, a dict a kill.
    """
    for old in [*folder.glob("whole"), *folder.glob("run[0-9]*")]:
        shutil.rmtree(old)
    dice = random.Random(seed)
    began = time.monotonic()
    subprocess.run([*command, *options, "--out", folder / "whole"], check=True, capture_output=True)
    whole_seconds, whole = time.monotonic() - began, state(folder / "whole")
    found: list[dict[str, Any]] = []
    number = 0
    while len(found) < kills:
        number += 1
        out = folder / f"run{number}"
        arguments = [*options, "--out", str(out)]
        while True:
            running = subprocess.Popen(
                [*command, *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
            )
            if len(found) < kills:
                delay = dice.uniform(0, whole_seconds)
                try:
                    running.wait(delay)
                except subprocess.TimeoutExpired:
                    running.kill()
            output, _ = running.communicate()
            if running.returncode == 0:
                break
            assert running.returncode == -signal.SIGKILL, output
            steps = [step for step, path in _readable(out)]
            found.append({"run": number, "after": round(delay, 2), "checkpoints": steps})
            if (out / "config.yaml").exists():
                arguments = ["--resume", str(out)]
        assert state(out) == whole, f"{out} is not what the undisturbed run is"
    return found


def _readable(out: Path) -> list[tuple[int, Path]]:
    """The checkpoints of a killed run; FileError where one is not whole."""
    if not (out / "config.yaml").exists():
        return []
    folder = RunFolder.open(str(out))
    folder.close()
    for _, path in folder.checkpoints():
        unpack(folder.read_checkpoint(path), str(path))
    return folder.checkpoints()
