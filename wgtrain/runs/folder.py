"""The folder of a run: settings, metrics, checkpoints, results; each file is written as a whole.

This and the faces are the only places that know paths.
"""

import json
import math
import os
import re
import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from wgtrain.errors import FileError, OptionError
from wgtrain.runs.chart import loss_svg
from wgtrain.train.results import Evaluation, StepResult

CONFIG, METRICS, SUMMARY, LOG = "config.yaml", "metrics.jsonl", "summary.json", "train.log"
CHECKPOINTS = "checkpoints"
_STEP = re.compile(r"step-(\d{6,})")


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file; FileError names the file and the line."""
    import yaml

    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise FileError(f"{path}: {error.strerror or error}") from None
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError, ValueError) as error:
        raise FileError(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    if values is not None and not isinstance(values, dict):
        raise FileError(f"{path}: a mapping of settings is needed, not {type(values).__name__}")
    return values or {}


def check_free(out: str) -> None:
    """Raises OptionError if a new run cannot have this folder."""
    path = Path(out)
    if path.is_dir() and not any(path.iterdir()):
        return
    if path.exists():
        hint = f"; --resume {out} continues it" if (path / CONFIG).exists() else ""
        raise OptionError(f"out = {out}: exists already and is never overwritten{hint}")


class RunFolder:
    """An open run folder; `create` makes a new one, `open` an existing one."""

    def __init__(self, path: Path):
        self.path = path
        self.losses: list[tuple[int, float]] = []
        self.evaluations: list[tuple[int, float]] = []
        self._metrics = open(path / METRICS, "a", encoding="utf-8")  # noqa: SIM115
        self._log = open(path / LOG, "a", encoding="utf-8")  # noqa: SIM115
        try:
            _lock(self._log)
        except OSError:
            self.close()
            raise OptionError(f"{path}: another process is training in this folder") from None

    @classmethod
    def create(cls, out: str | None, name: str, settings: Mapping[str, Any]) -> "RunFolder":
        """A new folder `out`, or runs/<time>-<name>; OptionError if `out` holds anything."""
        import yaml

        path = (
            Path("runs") / f"{time.strftime('%Y%m%d-%H%M%S')}-{name}" if out is None else Path(out)
        )
        first, number = path, 1
        while out is None and path.exists():
            number += 1
            path = first.with_name(f"{first.name}-{number}")
        check_free(str(path))
        used = {**settings, "out": str(path)}
        text = yaml.safe_dump(used, sort_keys=False, allow_unicode=True)
        # A folder with the settings in it appears at once: killed before, there is no run yet.
        new = path.absolute().with_name(f".new-{path.absolute().name}")
        shutil.rmtree(new, ignore_errors=True)
        try:
            new.mkdir(parents=True)
            _write_synced(new / CONFIG, text.encode())
            if path.exists():
                path.rmdir()
            new.rename(path)
        except OSError as error:
            raise OptionError(f"out = {path}: {error.strerror or error}") from None
        return cls(path)

    @classmethod
    def open(cls, path: str) -> "RunFolder":
        """The folder of an earlier run."""
        if not (Path(path) / CONFIG).is_file():
            raise FileError(f"{path}: not a run folder, it has no {CONFIG}")
        folder = cls(Path(path))
        for parent in (folder.path, folder.path / CHECKPOINTS):
            for left in [
                *parent.glob(".new-*"),
                *parent.glob(".old-*"),
            ]:  # of a run that was killed
                shutil.rmtree(left) if left.is_dir() else left.unlink()
        return folder

    def close(self) -> None:
        """Closes the files; another process may then continue the run."""
        self._metrics.close()
        self._log.close()

    # ---- metrics and log -----------------------------------------------------------------------

    def record(self, result: StepResult, earlier: Evaluation | None = None) -> None:
        """Appends the lines of one step, and before them that of the validation at the start."""
        if earlier is not None:
            self._evaluated(earlier.step, earlier.loss)
        line = asdict(result)
        eval_loss = line.pop("eval_loss")
        self.losses.append((result.step, result.loss))
        self._append(line)
        if eval_loss is not None:
            self._evaluated(result.step, eval_loss)

    def _evaluated(self, step: int, loss: float) -> None:
        self.evaluations.append((step, loss))
        perplexity = math.exp(loss) if loss < 700 else None  # above it there is no such float
        self._append({"step": step, "eval_loss": loss, "eval_perplexity": perplexity})

    def _append(self, line: dict[str, Any]) -> None:
        self._metrics.write(json.dumps(line, allow_nan=False) + "\n")
        self._metrics.flush()

    def log(self, text: str) -> None:
        """Appends lines with the time of day to train.log."""
        now = time.strftime("%Y-%m-%d %H:%M:%S")
        self._log.write("".join(f"{now} {line}\n" for line in text.splitlines()))
        self._log.flush()

    def rewind(self, step: int) -> bool:
        """Drops metrics after `step` (and a line cut short), reads the others; are all there?"""
        kept = []
        self.losses, self.evaluations = [], []
        for text in (self.path / METRICS).read_bytes().splitlines(keepends=True):
            try:
                line = json.loads(text)
                if not text.endswith(b"\n") or line["step"] > step:
                    break
                if "eval_loss" in line:
                    if step == 0:
                        break  # the validation at the start is done again
                    self.evaluations.append((line["step"], line["eval_loss"]))
                else:
                    self.losses.append((line["step"], line["loss"]))
            except (ValueError, KeyError, TypeError):
                break
            kept.append(text)
        self._metrics.close()
        write_file(self.path / METRICS, b"".join(kept))
        self._metrics = open(self.path / METRICS, "a", encoding="utf-8")  # noqa: SIM115
        return [number for number, _ in self.losses] == list(range(1, step + 1))

    # ---- checkpoints ---------------------------------------------------------------------------

    def checkpoints(self) -> list[tuple[int, Path]]:
        """(step, folder) of the checkpoints, newest first."""
        folder = self.path / CHECKPOINTS
        found = []
        for path in folder.iterdir() if folder.is_dir() else ():
            if match := _STEP.fullmatch(path.name):
                found.append((int(match[1]), path))
        return sorted(found, reverse=True)

    def save_checkpoint(self, step: int, files: Mapping[str, bytes], keep: int) -> Path:
        """Writes a checkpoint under another name, renames it, drops all but the newest `keep`."""
        os.fsync(self._metrics.fileno())  # the lines up to here must outlive what refers to them
        path = self.path / CHECKPOINTS / f"step-{step:06d}"
        new = path.with_name(f".new-{path.name}")
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(parents=True)
        for name, data in files.items():
            _write_synced(new / name, data)
        _sync_folder(new)
        if path.exists():
            _remove(path)
        new.rename(path)
        _sync_folder(path.parent)
        for _, old in self.checkpoints()[keep:] if keep else []:
            _remove(old)
        return path

    @staticmethod
    def read_checkpoint(path: Path) -> dict[str, bytes]:
        """The files of a checkpoint."""
        try:
            return {file.name: file.read_bytes() for file in path.iterdir()}
        except OSError as error:
            raise FileError(f"{path}: {error.strerror or error}") from None

    # ---- results -------------------------------------------------------------------------------

    def write_results(self, adapter: bytes, peft: Mapping[str, bytes]) -> None:
        """The adapter as GGUF and PEFT, and the loss curve."""
        write_file(self.path / "adapter.gguf", adapter)
        for name, data in peft.items():
            write_file(self.path / name, data)
        self.draw()

    def draw(self) -> None:
        """Writes loss.svg."""
        write_file(self.path / "loss.svg", loss_svg(self.losses, self.evaluations, self.path.name))

    def read_summary(self) -> dict[str, Any]:
        """summary.json; empty where there is none that can be read."""
        try:
            summary = json.loads((self.path / SUMMARY).read_bytes())
        except (OSError, ValueError):
            return {}
        return summary if isinstance(summary, dict) else {}

    def write_summary(self, **values: Any) -> None:
        """Updates summary.json."""
        summary = {**self.read_summary(), **values}
        write_file(self.path / SUMMARY, (json.dumps(summary, indent=2) + "\n").encode())


def write_file(path: Path, data: bytes) -> None:
    """Replaces a file as a whole: whoever reads it sees the old or the new contents."""
    new = path.with_name(f".new-{path.name}")
    _write_synced(new, data)
    os.replace(new, path)


def _write_synced(path: Path, data: bytes) -> None:
    try:
        with open(path, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:  # of a write it does not name the file
        raise OSError(error.errno, error.strerror, str(path)) from None


def _sync_folder(path: Path) -> None:
    if os.name == "posix":  # elsewhere a folder cannot be opened
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)


def _remove(path: Path) -> None:
    """Removes a checkpoint; killed half-way, what is left no longer looks like one."""
    old = path.with_name(f".old-{path.name}")
    shutil.rmtree(old, ignore_errors=True)
    path.rename(old)
    shutil.rmtree(old, ignore_errors=True)


def _lock(file: Any) -> None:
    """Holds a folder for this process; the system lets go when it ends, however it ends."""
    if os.name == "posix":
        import fcntl

        fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
