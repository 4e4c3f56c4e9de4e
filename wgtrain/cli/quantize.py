"""`wgtrain quantize`: a GGUF -> a GGUF of another block type."""

from collections import Counter
from pathlib import Path

from wgtrain.cli.convert import Say, progress
from wgtrain.errors import FileError
from wgtrain.files.gguf_writer import gguf_chunks, planned_nbytes
from wgtrain.files.parts import read_parts
from wgtrain.gpu import run
from wgtrain.model.quantise_file import plan_quantisation
from wgtrain.runs.output import check_output, write_output
from wgtrain.runs.sources import as_sources, is_dir


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
        total = planned_nbytes(made.metadata, made.tensors)
        with progress(total) as shown:
            write_output(path, gguf_chunks(made.metadata, made.tensors), force, shown)
    before = sum(info.nbytes for info in gguf.tensors.values())
    types = Counter(tensor.type for tensor in made.tensors)
    listed = ", ".join(f"{n} {name}" for name, n in types.most_common())
    say(f"{out}: {gguf.get('general.architecture', str)}, {kind}, {mib(total)}; tensors: {listed}")
    say(f"tensors took {mib(before)} in {source}")


def mib(nbytes: int) -> str:
    """Bytes as people read them."""
    return f"{nbytes / 2**20:,.1f} MiB"
