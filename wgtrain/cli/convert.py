"""`wgtrain convert`: one form of a model or an adapter -> another, told by what the input is."""

from pathlib import Path

from wgtrain.cli.convert_adapter import convert_adapter
from wgtrain.errors import FileError, OptionError
from wgtrain.files.adapters import CONFIG_FILE
from wgtrain.files.huggingface import CONFIG
from wgtrain.gpu import format_size, run
from wgtrain.model.convert import plan_conversion
from wgtrain.runs.output import check_output, write_model
from wgtrain.runs.paths import check_path
from wgtrain.runs.sources import folder_sources, is_adapter
from wgtrain.runs.telling import Say


def convert(
    source: str, out: str, kind: str | None, model: str | None, force: bool, say: Say
) -> None:
    """Converts what is at `source`; FileError or OptionError for what cannot be."""
    path = Path(source)
    check_path(path)
    if path.is_dir() and (path / CONFIG).is_file():
        if model is not None:
            raise OptionError(f"model: {path} is a model; only adapters have a base")
        return convert_folder(path, Path(out), kind, force, say)
    if is_adapter(path):
        if kind is not None:
            raise OptionError(f"type: {path} is an adapter; adapters are written in f32")
        return convert_adapter(path, Path(out), model, force, say)
    raise FileError(
        f"{path}: a model's folder with {CONFIG}, a PEFT folder with {CONFIG_FILE} or an adapter "
        "GGUF is needed; for GGUFs of models there is wgtrain quantize"
    )


def convert_folder(path: Path, out: Path, kind: str | None, force: bool, say: Say) -> None:
    """Writes the GGUF of a Hugging Face folder."""
    check_output(out, force, path)
    with folder_sources(path) as files:
        made = run(plan_conversion(files, str(path), kind))
        for note in made.notes:
            say(note)
        total = write_model(out, made.metadata, made.tensors, force)
    architecture = made.metadata["general.architecture"]
    say(f"{out}: {architecture}, {made.type}, {format_size(total)}")
