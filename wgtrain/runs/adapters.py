"""What a person names as an adapter: a GGUF, a folder of PEFT, a run or one of its checkpoints."""

import math
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wgtrain.errors import FileError, OptionError
from wgtrain.files.adapters import CONFIG_FILE, TENSOR_FILE
from wgtrain.files.source import shown
from wgtrain.runs import disk
from wgtrain.runs.entries import places, read_entries
from wgtrain.runs.folder import (
    ADAPTER_FILES,
    CHECKPOINTS,
    CONFIG,
    SUMMARY,
    TEMPLATE,
    RunFolder,
    checkpoints_in,
    read_summary,
)
from wgtrain.runs.paths import check_model, no_adapter_in
from wgtrain.runs.sources import AnyPath, is_dir
from wgtrain.runs.yaml_file import parse_yaml
from wgtrain.train.checkpoint import ADAPTER, STATE, unpack
from wgtrain.train.config import CONFIGS, LoraConfig, RunConfig, TrainConfig
from wgtrain.train.settings import build, canonical, number

_ALLOWED = "PATH or PATH:SCALE, where SCALE is a finite number, as in adapter.gguf:0.5"
_DRIVE = re.compile(r"[A-Za-z]:[\\/]")


def _unheard(text: str) -> None:
    pass


@dataclass(frozen=True)
class NamedAdapter:
    """An adapter that was named, and how strong it is to be; `scale` 1.0 = as trained. `name`: what
    it is called once it is loaded, "" = after its path.
    """

    path: str
    scale: float = 1.0
    name: str = ""


def parse_adapter(text: str) -> NamedAdapter:
    """The adapter in "PATH" or "PATH:SCALE"; OptionError for another form.

    A path that is there as it stands is meant whole, whatever it ends with.
    """
    head, colon, tail = text.rpartition(":")
    drive = len(head) == 1 and _DRIVE.match(text)
    if text and (not colon or drive or os.path.lexists(text)):
        return NamedAdapter(text)
    try:
        scale = number(tail)
        if not head or not math.isfinite(scale):
            raise ValueError
    except ValueError:
        raise OptionError(f"adapter = {shown(text, 200)}: allowed is {_ALLOWED}") from None
    return NamedAdapter(head, scale)


def adapter_path(path: AnyPath, say: Callable[[str], None] = _unheard) -> Path:
    """The file with the tensors of an adapter: a GGUF as it is, that of a folder of PEFT, of a
    checkpoint, of a run; FileError that says what is there instead.

    Of a run it is the result, or of one that has none yet the newest checkpoint that is whole;
    `say` hears of damaged ones.
    """
    path = Path(path)
    folder = path.parent if path.name == CONFIG_FILE else path
    if not is_dir(folder):
        return path
    if disk.is_file(folder / STATE):
        return _whole(folder)
    if disk.is_file(folder / CONFIG) and disk.is_file(folder / ADAPTER):
        return folder / ADAPTER
    if (folder / TENSOR_FILE).exists():
        return folder / TENSOR_FILE
    if disk.is_file(folder / CONFIG):
        return _newest(folder, say)
    raise no_adapter_in(folder)


def _whole(checkpoint: Path) -> Path:
    """The adapter of a checkpoint; FileError where a bit of it is damaged."""
    unpack(RunFolder.read_checkpoint(checkpoint), str(checkpoint))
    return checkpoint / ADAPTER


def _newest(run: Path, say: Callable[[str], None]) -> Path:
    damaged = []
    for _, checkpoint in checkpoints_in(run):
        try:
            found = _whole(checkpoint)
        except FileError as error:
            damaged.append(str(error))
            continue
        for text in damaged:
            say(f"warning: {text}; using {checkpoint.name} instead")
        return found
    if damaged:
        raise FileError("\n".join([*damaged, f"{run}: no checkpoint that is whole"]))
    raise FileError(f"{run}: a run that has neither {ADAPTER} nor a checkpoint yet")


def model_of_run(path: AnyPath) -> dict[str, Any] | None:
    """What a run was started with that says which model its adapter is for, and how it was used:
    `model`, where it is now, `precision`, `quantize_base`, `chat_template`, `template_args` (JSON),
    `system`. `path`: the run, a checkpoint, or the adapter in one of these; None for others.

    FileError where the model is gone.
    """
    run = run_of(Path(path))
    if run is None:
        return None
    settings, _, _ = run_settings(run)
    template = settings.chat_template
    if template is not None and disk.is_file(run / TEMPLATE):
        template = str(run / TEMPLATE)
    return {
        "model": str(_model(run, settings.model)),
        "precision": settings.precision,
        "quantize_base": settings.quantize_base,
        "chat_template": template,
        "template_args": settings.template_args,
        "system": settings.system,
    }


def run_settings(run: Path) -> tuple[RunConfig, LoraConfig, TrainConfig]:
    """The settings of a run, as they were used; FileError for a config.yaml that cannot be read."""
    config = run / CONFIG
    read = canonical(parse_yaml(disk.read_file(config), str(config)), CONFIGS, str(config))
    try:
        paths, lora, train = build(read, *CONFIGS)
    except OptionError as error:
        what = "; ".join(str(error).splitlines())
        raise FileError(f"{config}: not the settings of a run: {what}") from None
    return paths, lora, train


def run_entries(run: Path) -> dict[str, dict[str, Any]]:
    """The files that a run was started with, by its summary; FileError for a damaged one."""
    try:
        return read_entries(read_summary(run).get("inputs", {}))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise FileError(f"{run / SUMMARY}: damaged ({type(error).__name__}: {error})") from None


def run_of(path: Path) -> Path | None:
    """The folder of the run that an adapter belongs to, which is at a path; None for others."""
    folder = path if is_dir(path) else path.parent
    if folder is not path and path.name not in ADAPTER_FILES:
        return None
    above = folder.absolute().parent
    for run in (folder, above.parent if above.name == CHECKPOINTS else folder):
        if disk.is_file(run / CONFIG):
            return run
    return None


def _model(run: Path, named: str) -> Path:
    """Where the base model of a run is now."""
    entries = run_entries(run)
    where = places(entries["model"], run) if "model" in entries else [Path(named)]
    problems = []
    for place in where:
        try:
            check_model(place)
        except FileError as error:
            problems.append(error)
            continue
        return place
    raise FileError(f"model of the run in {run}: {problems[0]}; where it moved, --model names it")
