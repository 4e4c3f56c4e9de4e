"""`wgtrain quantize`: a GGUF -> a GGUF of another block type."""

from collections import Counter
from pathlib import Path

from wgtrain.errors import FileError
from wgtrain.files.parts import read_parts
from wgtrain.gpu import format_size, run
from wgtrain.model.quantise_file import plan_quantisation
from wgtrain.runs.output import check_output, write_model
from wgtrain.runs.sources import as_sources, is_dir
from wgtrain.runs.telling import Say


def quantize(source: str, out: str, kind: str, requantise: bool, force: bool, say: Say) -> None:
    """Writes the model at `source` as `kind`; FileError or OptionError where that cannot be."""
    if is_dir(source):
        raise FileError(f"{source}: a folder; wgtrain convert makes a GGUF of one")
    path = Path(out)
    with as_sources(source) as parts:
        check_output(path, force, *(Path(part.name) for part in parts))
        opened, gguf = run(read_parts(parts))
        made = plan_quantisation(opened, gguf, kind, requantise)
        for note in made.notes:
            say(note)
        total = write_model(path, made.metadata, made.tensors, force)
    before = sum(info.nbytes for info in gguf.tensors.values())
    types = Counter(tensor.type for tensor in made.tensors)
    listed = ", ".join(f"{n} {name}" for name, n in types.most_common())
    architecture = gguf.get("general.architecture", str)
    say(f"{out}: {architecture}, {kind}, {format_size(total)}; tensors: {listed}")
    say(f"tensors took {format_size(before)} in {source}")
