"""A Hugging Face folder for `open_model`: weights, configuration and tokenizer as one GGUF."""

from dataclasses import dataclass, replace

from wgtrain.data.gguf_tokenizer import SENTENCEPIECE, tokenizer_for_gguf
from wgtrain.data.huggingface import read_tokenizer_metadata
from wgtrain.errors import FileError
from wgtrain.files import GGUF
from wgtrain.files.huggingface import TOKENIZER, Files, read_folder
from wgtrain.files.source import Source


@dataclass(frozen=True)
class Folder:
    """What `open_model` takes instead of the source of a GGUF file."""

    source: Source
    gguf: GGUF
    no_tokenizer: str | None  # why there is none; the model can be used without


async def open_folder(files: Files, name: str = "folder") -> Folder:
    """The model whose files are given by their names; see `read_folder`. Where `tokenizer.model` is
    all there is of a tokenizer, it is read as llama.cpp's converter would.
    """
    source, gguf = await read_folder(files, name)
    try:
        if TOKENIZER in files or SENTENCEPIECE not in files:
            tokenizer = await read_tokenizer_metadata(files, name)
        else:
            architecture = gguf.metadata["general.architecture"]
            rows = gguf.tensors["token_embd.weight"].shape[0]
            tokenizer, _ = await tokenizer_for_gguf(files, name, architecture, rows)
    except FileError as error:
        return Folder(source, gguf, str(error))
    return Folder(source, replace(gguf, metadata=gguf.metadata | tokenizer), None)
