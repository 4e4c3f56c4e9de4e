"""The folder of a run: settings, metrics, checkpoints, results; each file is written as a whole.

This, `disk` and the faces are the only places that know paths.
"""

import contextlib
import io
import json
import math
import os
import re
import secrets
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from wgtrain.errors import FileError, OptionError
from wgtrain.infer.evaluation import perplexity
from wgtrain.runs import disk, samples
from wgtrain.runs.chart import loss_svg
from wgtrain.runs.disk import read_file, write_file
from wgtrain.runs.yaml_file import parse_yaml
from wgtrain.train.results import Evaluation, StepResult

CONFIG, METRICS, SUMMARY, LOG = "config.yaml", "metrics.jsonl", "summary.json", "train.log"
CHECKPOINTS, DAMAGED, TEMPLATE = "checkpoints", "metrics.damaged", "chat_template.jinja"
ADAPTER_FILES = ("adapter.gguf", "adapter_config.json", "adapter_model.safetensors")
RESULTS = (*ADAPTER_FILES, "loss.svg")
_STEP = re.compile(r"step-([0-9]{6,15})")
_MADE = f".new-{CONFIG}-"  # what a folder may hold that is still free: of a run that was killed


def check_free(out: str) -> None:
    """Raises OptionError if a new run cannot have this folder; leaves nothing."""
    path = Path(out)
    try:
        if path.is_dir():
            if any(not name.startswith(_MADE) for name in os.listdir(path)):
                hint = f"; --resume {out} continues it" if (path / CONFIG).exists() else ""
                raise OptionError(f"out = {out}: exists already and is never overwritten{hint}")
        elif os.path.lexists(path):
            what = "a link to nothing" if path.is_symlink() else "a file"
            raise OptionError(f"out = {out}: exists already and is never overwritten, {what}")
        missing: list[str] = []
        while not os.path.lexists(path) and path.name:
            missing, path = [path.name, *missing], path.parent
        with tempfile.TemporaryDirectory(prefix=_MADE, dir=path) as tried:
            Path(tried, *missing).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OptionError(f"out = {out}: {error.strerror or error}") from None
    except ValueError as error:  # a NUL
        raise OptionError(f"out = {out!r}: {error}") from None


class RunFolder:
    """An open run folder; `create` makes a new one, `open` an existing one."""

    def __init__(self, path: Path):
        self.path = path
        self.losses: list[tuple[int, float]] = []
        self.evaluations: list[tuple[int, float]] = []
        checkpoints = path / CHECKPOINTS
        if os.path.lexists(checkpoints) and not disk.is_folder(checkpoints):
            raise FileError(f"{checkpoints}: a link or a file, not the folder of a run")
        self._place = _identity(path)
        self._metrics = disk.open_append(path / METRICS, encoding="utf-8")
        try:
            self._log = disk.open_append(path / LOG, encoding="utf-8", errors="backslashreplace")
        except FileError:
            self._metrics.close()
            raise
        try:
            disk.lock(self._log)
        except OSError:
            self.close()
            raise OptionError(f"{path}: another process is training in this folder") from None

    @classmethod
    def create(cls, out: str | None, name: str, settings: Mapping[str, Any]) -> "RunFolder":
        """A new folder `out`, or runs/<time>-<name>; OptionError if `out` holds anything."""
        if out is not None:
            return cls._made(Path(out), settings)
        name = re.sub(r"[\x00-\x1f\x7f/\\]", "-", name)
        while len(os.fsencode(name)) > 150:
            name = name[:-1]
        first = Path("runs") / f"{time.strftime('%Y%m%d-%H%M%S')}-{name}"
        path, number = first, 1
        while True:
            try:
                return cls._made(path, settings)
            except OptionError:
                if not os.path.lexists(path):
                    raise
            number += 1
            path = first.with_name(f"{first.name}-{number}")

    @classmethod
    def _made(cls, path: Path, settings: Mapping[str, Any]) -> "RunFolder":
        check_free(str(path))
        missing = [p for p in (path, *path.parents) if not os.path.lexists(p)]
        try:
            path.mkdir(parents=True, exist_ok=True)
            # The settings appear at once, for one process: killed before, there is no run yet.
            new = path / f"{_MADE}{secrets.token_hex(8)}"
            try:
                disk.write_new(new, _yaml({**settings, "out": str(path)}))
                disk.publish(new, path / CONFIG)
            except (FileExistsError, FileNotFoundError):
                raise OptionError(f"out = {path}: another run was just made there") from None
            finally:
                new.unlink(missing_ok=True)
        except BaseException as error:
            for parent in missing:
                with contextlib.suppress(OSError):
                    parent.rmdir()  # only where it is empty
            if isinstance(error, OSError):
                raise OptionError(f"out = {path}: {error.strerror or error}") from None
            raise
        for left in path.glob(f"{_MADE}*"):
            disk.remove(left)
        return cls(path)

    @classmethod
    def open(cls, path: str) -> "RunFolder":
        """The folder of an earlier run; clears what it left when it was killed."""
        if not disk.is_file(Path(path, CONFIG)):
            name = path if path.isprintable() else repr(path)
            raise FileError(f"{name}: not a run folder, it has no {CONFIG}")
        folder = cls(Path(path))
        for name in (*RESULTS, SUMMARY, METRICS, CONFIG, TEMPLATE, samples.FILE):
            disk.remove(folder.path / f".new-{name}")
        checkpoints = folder.path / CHECKPOINTS
        for left in checkpoints.iterdir() if disk.is_folder(checkpoints) else ():
            prefix, _, name = left.name.partition("step-")
            whole = checkpoints / f"step-{name}"
            if prefix == ".old-" and not os.path.lexists(whole):
                left.rename(whole)  # it was about to be replaced
            elif prefix in (".new-", ".old-", ".gone-"):
                disk.remove(left)
        return folder

    def close(self) -> None:
        """Closes the files; another process may then continue the run."""
        self._metrics.close()
        self._log.close()

    def check(self) -> None:
        """Raises FileError where the folder was moved or removed, or files in it were."""
        held = [os.fstat(file.fileno()).st_nlink for file in (self._metrics, self._log)]
        here = _identity(self.path) == self._place and os.path.lexists(self.path / CONFIG)
        if 0 in held or not here:
            raise FileError(
                f"{self.path}: moved or removed while training in it; what it held goes on from "
                "its last checkpoint, with --resume"
            )

    # ---- settings --------------------------------------------------------------------------------

    def settings(self) -> dict[str, Any]:
        """What config.yaml holds."""
        path = self.path / CONFIG
        return parse_yaml(read_file(path), str(path))

    def write_settings(self, settings: Mapping[str, Any]) -> None:
        """Replaces config.yaml, where it holds other settings."""
        self.check()
        text = _yaml({**settings, "out": str(self.path)})
        if text != read_file(self.path / CONFIG):
            write_file(self.path / CONFIG, text)

    def write_template(self, text: str) -> None:
        """Keeps the chat template that goes in the place of the model's."""
        write_file(self.path / TEMPLATE, text.encode())

    def read_template(self) -> str:
        """That template again."""
        try:
            return read_file(self.path / TEMPLATE).decode()
        except UnicodeDecodeError as error:
            raise FileError(f"{self.path / TEMPLATE}: no UTF-8 at byte {error.start}") from None

    # ---- metrics and log -----------------------------------------------------------------------

    def record(self, result: StepResult, earlier: Evaluation | None = None) -> None:
        """Appends the lines of one step, and before them that of the validation at the start."""
        self.check()
        if earlier is not None:
            self._evaluated(earlier.step, earlier.loss)
        line = asdict(result)
        eval_loss = line.pop("eval_loss")
        del line["samples"]  # which have a file of their own
        self.losses.append((result.step, result.loss))
        self._append(line)
        if eval_loss is not None:
            self._evaluated(result.step, eval_loss)
        samples.append(self.path, result)

    def _evaluated(self, step: int, loss: float) -> None:
        self.evaluations.append((step, loss))
        self._append({"step": step, "eval_loss": loss, "eval_perplexity": perplexity(loss)})

    def _append(self, line: dict[str, Any]) -> None:
        self._metrics.write(json.dumps(line, allow_nan=False) + "\n")
        self._metrics.flush()

    def log(self, text: str) -> None:
        """Appends lines with the time of day to train.log."""
        now = time.strftime("%Y-%m-%d %H:%M:%S")
        self._log.write("".join(f"{now} {line}\n" for line in text.splitlines()))
        self._log.flush()

    def rewind(self, step: int) -> "Rewound":
        """Drops metrics and samples after `step` and lines cut short, reads the other metrics.

        Damaged lines go to metrics.damaged.
        """
        samples.rewind(self.path, step)
        kept, damaged = [], []
        self.losses, self.evaluations = [], []
        for text in io.BytesIO(read_file(self.path / METRICS)):  # ends of lines are "\n" alone
            if (found := _metric(text)) is None:
                damaged += [text] if text.endswith(b"\n") else []
                continue
            number, loss, held = found
            if number > step or (held and step == 0):  # validation at the start is done again
                continue
            (self.evaluations if held else self.losses).append((number, loss))
            kept.append(text)
        if damaged:
            with disk.open_append(self.path / DAMAGED, encoding="utf-8", errors="replace") as file:
                file.write(b"".join(damaged).decode("utf-8", "replace"))
        self._metrics.close()
        write_file(self.path / METRICS, b"".join(kept))
        self._metrics = disk.open_append(self.path / METRICS, encoding="utf-8")
        whole = [number for number, _ in self.losses] == list(range(1, step + 1))
        return Rewound(whole, len(damaged))

    # ---- checkpoints ---------------------------------------------------------------------------

    def checkpoints(self) -> list[tuple[int, Path]]:
        """(step, folder) of the checkpoints, newest first."""
        return checkpoints_in(self.path)

    def save_checkpoint(self, step: int, files: Mapping[str, bytes], keep: int) -> Path:
        """Writes a checkpoint under another name, renames it, drops all but the newest `keep`.

        Killed at any moment, the checkpoint before it, or one of the same step, is still there.
        """
        self.check()
        os.fsync(self._metrics.fileno())  # the lines up to here must outlive what refers to them
        folder = self.path / CHECKPOINTS
        folder.mkdir(exist_ok=True)
        if not disk.is_folder(folder):
            raise FileError(f"{folder}: a link, which is not followed here")
        path = folder / f"step-{step:06d}"
        new, old = (path.with_name(f"{prefix}{path.name}") for prefix in (".new-", ".old-"))
        disk.remove(new)
        new.mkdir()
        for name, data in files.items():
            disk.write_new(new / name, data)
        disk.sync_folder(new)
        if os.path.lexists(path):
            disk.remove(old)
            path.rename(old)
        new.rename(path)
        disk.remove(old)
        disk.sync_folder(folder)
        for _, surplus in self.checkpoints()[keep:] if keep else []:
            gone = surplus.with_name(f".gone-{surplus.name}")  # half removed it looks like none
            disk.remove(gone)
            surplus.rename(gone)
            disk.remove(gone)
        return path

    @staticmethod
    def read_checkpoint(path: Path) -> dict[str, bytes]:
        """The files of a checkpoint."""
        if not disk.is_folder(path):
            raise FileError(f"{path}: a link or a file, not the folder of a checkpoint")
        try:
            return {file.name: read_file(file) for file in path.iterdir()}
        except OSError as error:
            raise FileError(f"{path}: {error.strerror or error}") from None

    # ---- results -------------------------------------------------------------------------------

    def write_results(self, adapter: bytes, peft: Mapping[str, bytes]) -> None:
        """The adapter as GGUF and PEFT, and the loss curve."""
        self.check()
        write_file(self.path / "adapter.gguf", adapter)
        for name, data in peft.items():
            write_file(self.path / name, data)
        self.draw()

    def has_results(self) -> bool:
        """Whether the adapter is there in both forms."""
        return all(disk.is_file(self.path / name) for name in ADAPTER_FILES)

    def draw(self) -> None:
        """Writes loss.svg."""
        self.check()
        title = os.path.basename(os.path.abspath(self.path))
        write_file(self.path / "loss.svg", loss_svg(self.losses, self.evaluations, title))

    def read_summary(self) -> dict[str, Any]:
        """summary.json; empty where there is none that can be read."""
        return read_summary(self.path)

    def write_summary(self, **values: Any) -> None:
        """Updates summary.json."""
        self.check()
        summary = {**self.read_summary(), **values}
        write_file(self.path / SUMMARY, (json.dumps(summary, indent=2) + "\n").encode())


def checkpoints_in(run: Path) -> list[tuple[int, Path]]:
    """(step, folder) of the checkpoints in a run's folder, newest first."""
    folder = run / CHECKPOINTS
    found = []
    for path in folder.iterdir() if disk.is_folder(folder) else ():
        if match := _STEP.fullmatch(path.name):
            found.append((int(match[1]), path))
    return sorted(found, reverse=True)


def read_summary(run: Path) -> dict[str, Any]:
    """The summary.json in a run's folder; empty where there is none that can be read."""
    try:
        summary = json.loads(read_file(run / SUMMARY))
    except (FileError, ValueError, RecursionError):
        return {}
    return summary if isinstance(summary, dict) else {}


class Rewound(NamedTuple):
    """What `rewind` found: a line for every step up to there?, and how many damaged ones."""

    whole: bool
    damaged: int


def _metric(text: bytes) -> tuple[int, float, bool] | None:
    """(step, loss, whether of a validation) of a whole line of metrics.jsonl."""
    try:
        line = json.loads(text)
        held = "eval_loss" in line
        step, loss = line["step"], line["eval_loss" if held else "loss"]
        if type(step) is int and step >= 0 and type(loss) in (int, float) and math.isfinite(loss):
            return (step, loss, held) if text.endswith(b"\n") else None
    except (ValueError, KeyError, TypeError, RecursionError, OverflowError):
        pass
    return None


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return None
    return found.st_dev, found.st_ino


def _yaml(settings: Mapping[str, Any]) -> bytes:
    import yaml

    text: str = yaml.safe_dump(dict(settings), sort_keys=False, allow_unicode=True)
    return text.encode()
