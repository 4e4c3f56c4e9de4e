"""`wgtrain convert`: one form of a model or an adapter -> another, told by what the input is."""

from pathlib import Path

from wgtrain.cli.convert_adapter import convert_adapter
from wgtrain.errors import FileError, OptionError
from wgtrain.files.adapters import CONFIG_FILE, TENSOR_FILE
from wgtrain.files.gguf import read_gguf
from wgtrain.files.gguf_writer import gguf_chunks, planned_nbytes
from wgtrain.files.huggingface import CONFIG
from wgtrain.gpu import format_size, run
from wgtrain.model.convert import plan_conversion
from wgtrain.runs.output import check_output, write_output
from wgtrain.runs.paths import check_path
from wgtrain.runs.sources import as_source, folder_sources
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
    if _is_adapter(path):
        if kind is not None:
            raise OptionError(f"type: {path} is an adapter; adapters are written in f32")
        return convert_adapter(path, Path(out), model, force, say)
    raise FileError(
        f"{path}: a model's folder with {CONFIG}, a PEFT folder with {CONFIG_FILE} or an adapter "
        "GGUF is needed; for GGUFs of models there is wgtrain quantize"
    )


def _is_adapter(path: Path) -> bool:
    if path.is_dir():
        return (path / CONFIG_FILE).is_file()
    if path.name in (CONFIG_FILE, TENSOR_FILE):
        return True
    with as_source(path) as opened:
        try:
            return run(read_gguf(opened)).get("general.type", str, "") == "adapter"
        except FileError:
            return False


def convert_folder(path: Path, out: Path, kind: str | None, force: bool, say: Say) -> None:
    """Writes the GGUF of a Hugging Face folder."""
    check_output(out, force)
    with folder_sources(path) as files:
        made = run(plan_conversion(files, str(path), kind))
        total = planned_nbytes(made.metadata, made.tensors)
        for note in made.notes:
            say(note)
        chunks = gguf_chunks(made.metadata, made.tensors)
        write_output(out, chunks, force, total)
    architecture = made.metadata["general.architecture"]
    say(f"{out}: {architecture}, {made.type}, {format_size(total)}")
