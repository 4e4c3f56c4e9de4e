"""Files that a person names as a model, opened: a path, bytes, objects that hand out ranges."""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TypeGuard

from wgtrain.errors import FileError, OptionError
from wgtrain.files.adapters import CONFIG_FILE, TENSOR_FILE
from wgtrain.files.gguf import read_gguf
from wgtrain.files.huggingface import MORE_TEMPLATES
from wgtrain.files.parts import part_count, part_names
from wgtrain.files.source import BytesSource, Source, shown
from wgtrain.gpu import run
from wgtrain.runs.paths import check_model, unusable

AnyPath = str | os.PathLike[str]
AnyBytes = bytes | bytearray | memoryview
ModelFiles = AnyPath | AnyBytes | Source | list[Any] | tuple[Any, ...]
MODEL_FILES = (".json", ".jinja", ".safetensors", ".model", ".bin")  # the last two for messages


class FileSource:
    """A file on disk seen through byte ranges; nothing of it is kept in memory."""

    def __init__(self, path: AnyPath):
        self.name = str(path)
        check_model(Path(path))
        try:
            self._file = open(path, "rb", buffering=0)  # noqa: SIM115
            self.size = os.fstat(self._file.fileno()).st_size
        except (OSError, ValueError) as error:
            raise unusable(path, error) from None

    def read_range(self, offset: int, n: int) -> bytes:
        """The `n` bytes from `offset`; fewer where the file ends."""
        parts = []
        self._file.seek(offset)
        while n > 0 and (part := self._file.read(n)):
            parts.append(part)
            n -= len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


@contextmanager
def as_source(source: AnyPath | AnyBytes | Source) -> Iterator[Source]:
    """A `Source` over a path, bytes, or an object that is one already; a file is closed after."""
    if isinstance(source, str | os.PathLike):
        file = FileSource(source)
        try:
            yield file
        finally:
            file.close()
    elif isinstance(source, bytes | bytearray | memoryview):
        yield BytesSource(source)
    elif {"read_range", "size"} <= {*dir(source)}:  # no property of a stranger's is asked here
        yield source
    else:
        raise OptionError(
            f"a path, bytes, or an object with read_range and size, not {shown(source)}"
        )


@contextmanager
def as_sources(
    source: ModelFiles,
) -> Iterator[list[Source]]:
    """The files of one GGUF: where it is split, the parts in a list, or beside the path of one."""
    with ExitStack() as stack:
        if isinstance(source, list | tuple):
            if not source:
                raise OptionError("a model: a list without files")
            yield [stack.enter_context(as_source(part)) for part in source]
            return
        opened = stack.enter_context(as_source(source))
        paths: list[Path] = []
        if isinstance(source, str | os.PathLike):
            paths = _parts_beside(Path(source), opened)
        yield [stack.enter_context(as_source(path)) for path in paths] or [opened]


def _parts_beside(path: Path, opened: Source) -> list[Path]:
    """The parts of the model of which a file is one; none for a whole model."""
    names = part_names(path.name)
    if not names or part_count(run(read_gguf(opened))) == 1:
        return []
    for number, name in enumerate(names, 1):
        if not path.with_name(name).exists():
            raise FileError(
                f"{path}: part {number} of {len(names)} is missing: {path.with_name(name)}"
            )
    return [path.with_name(name) for name in names]


@contextmanager
def folder_sources(path: AnyPath) -> Iterator[dict[str, Source]]:
    """The files that a Hugging Face folder may consist of, by name; they are closed after."""
    with ExitStack() as stack:
        files: dict[str, Source] = {}
        try:
            found = [p for p in sorted(Path(path).iterdir()) if p.suffix in MODEL_FILES]
            found += sorted(Path(path, MORE_TEMPLATES).glob("*.jinja"))
            found = [p for p in found if p.is_file()]
        except OSError as error:
            raise unusable(path, error) from None
        for file in found:
            files[file.relative_to(path).as_posix()] = opened = FileSource(file)
            stack.callback(opened.close)
        yield files


def is_adapter(path: Path) -> bool:
    """Whether a path is that of an adapter: a GGUF that says so, a folder of PEFT or a file in it;
    False for what cannot be read.
    """
    if path.is_dir():
        return (path / CONFIG_FILE).is_file()
    if path.name in (CONFIG_FILE, TENSOR_FILE):
        return True
    with as_source(path) as opened:
        try:
            kind = run(read_gguf(opened)).metadata.get("general.type")
            return isinstance(kind, str) and kind == "adapter"
        except FileError:
            return False


def is_folder(source: Any) -> TypeGuard[AnyPath]:
    """Whether it is the path of one."""
    return isinstance(source, str | os.PathLike) and is_dir(source)


def is_dir(path: AnyPath) -> bool:
    """Whether a folder is there, for any text."""
    try:
        return Path(path).is_dir()
    except (OSError, ValueError):  # too long for a name, or a NUL in it
        return False
