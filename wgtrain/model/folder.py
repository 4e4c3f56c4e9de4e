"""A Hugging Face folder for `open_model`: weights, configuration and tokenizer as one GGUF."""

from dataclasses import dataclass, replace

from wgtrain.data.huggingface import read_tokenizer_metadata
from wgtrain.errors import FileError
from wgtrain.files import GGUF
from wgtrain.files.huggingface import Files, read_folder
from wgtrain.files.source import Source


@dataclass(frozen=True)
class Folder:
    """What `open_model` takes instead of the source of a GGUF file."""

    source: Source
    gguf: GGUF
    no_tokenizer: str | None  # why there is none; the model can be used without


async def open_folder(files: Files, name: str = "folder") -> Folder:
    """The model whose files are given by their names; see `read_folder`."""
    source, gguf = await read_folder(files, name)
    try:
        tokenizer = await read_tokenizer_metadata(files, name)
    except FileError as error:
        return Folder(source, gguf, str(error))
    return Folder(source, replace(gguf, metadata=gguf.metadata | tokenizer), None)
