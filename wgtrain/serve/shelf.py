"""The adapters that requests may name: those given at the start, and those in a folder."""

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wgtrain.errors import FileError, WgtrainError, printable
from wgtrain.files.adapters import TENSOR_FILE
from wgtrain.files.gguf import read_gguf
from wgtrain.files.source import shown
from wgtrain.gpu import run
from wgtrain.infer.stack import Checked, check_strength
from wgtrain.runs.adapters import adapter_path
from wgtrain.runs.sources import as_source, is_adapter
from wgtrain.serve.choice import Choice
from wgtrain.serve.refusals import Refused, wrong_field
from wgtrain.train.checkpoint import ADAPTER

KEPT = 16  # adapters of the folder that stay in memory

Version = tuple[int, int, int]  # of a file: another one after it was written anew


@dataclass(eq=False)
class Entry:
    """An adapter on the shelf; `path` is where one of the folder lies. `scale` is the usual one."""

    name: str
    file: str
    scale: float = 1.0
    adapter: Any = None
    path: Path | None = None
    version: Version | None = None


class Shelf:
    """Adapters by name and by number, beside the model called `base`.

    `given` are there from the start, and upon the model where a request names none. What lies in
    `folder` is looked for again whenever somebody asks; `read(path)` reads it, in the thread that
    calls `load`. A name belongs to whoever had it first.
    """

    def __init__(
        self,
        base: str,
        given: Iterable[tuple[str, Any, float]] = (),
        folder: Path | None = None,
        read: Callable[[Path], Any] | None = None,
        say: Callable[[str], None] = print,
    ):
        self.base = printable(base)  # JSON cannot hold what is not UTF-8 in a file's name
        self._folder, self._read, self._say = folder, read, say
        self._entries: list[Entry] = []
        self._default: dict[int, float] = {}
        for i, (called, adapter, scale) in enumerate(given):
            name = printable(called)
            self._entries.append(Entry(name, name, scale or 1.0, adapter))
            self._default[i] = scale
        self._passed: dict[str, Version] = {}  # what lies in the folder and is no adapter
        self._kept: list[Entry] = []
        self._unread = False  # the folder
        self.look()

    def look(self) -> None:
        """Finds what came into the folder, went away, or was written anew."""
        if self._folder is None:
            return
        found = {path.name: path for path in self._listed(self._folder)}
        for entry in self._entries:
            if entry.path is not None:
                there = found.pop(entry.path.name, None)
                version = None if there is None else _version(there)
                if version != entry.version:
                    entry.version, entry.adapter = version, None
        for path in found.values():
            version = _version(path)
            if version is None or self._passed.get(path.name) == version:
                continue
            self._passed[path.name] = version
            try:
                if not _holds_adapter(path):
                    continue
            except FileError as error:
                self._say(f"warning: {error}; it is left out")
                continue
            name = path.name.removesuffix(".gguf")
            if any(entry.name == name for entry in self._entries):
                self._say(f"warning: {path}: another adapter is called {name}; it is left out")
                continue
            self._entries.append(Entry(name, path.name, path=path, version=version))

    def _listed(self, folder: Path) -> list[Path]:
        """What lies in the folder; nothing where it cannot be read, which is told once."""
        try:
            names = sorted(os.listdir(folder))
        except OSError as error:
            if not self._unread:
                self._say(f"warning: {folder}: {error.strerror or error}; its adapters are gone")
            self._unread = True
            return []
        self._unread = False
        return [folder / n for n in names if n.isprintable() and not n.startswith(".")]

    def names(self) -> list[str]:
        """What models are called in requests: the base, and it with each adapter."""
        self.look()
        return [self.base, *(f"{self.base}+{entry.name}" for _, entry in self._there())]

    def listed(self) -> list[dict[str, Any]]:
        """The adapters as llama.cpp lists them, each with the scale it has where none is asked."""
        self.look()
        return [
            {"id": i, "name": e.name, "path": e.file, "scale": self._default.get(i, 0.0)}
            for i, e in self._there()
        ]

    def rescale(self, scales: dict[int, float]) -> None:
        """Sets what is upon the model where a request names no adapter; what is not in `scales`
        is not.
        """
        self.look()
        for i, scale in scales.items():
            _check_scale(self._at(i, "id"), scale)
        self._default = {i: scale for i, scale in sorted(scales.items()) if scale != 0}

    def choose(self, choice: Choice) -> tuple[str, list[tuple[Entry, float]]]:
        """What the model is called in the answer, and the adapters of it, in order; Refused for a
        name that nothing has.
        """
        self.look()
        name = self.base if choice.model is None else choice.model
        named = self._in(name)
        if named and (choice.named is not None or choice.numbered):
            what = "lora" if choice.named is None else "lora_adapters"
            raise wrong_field(f"the model's name {shown(name)} names the adapters", what)
        if choice.named is not None:
            return name, self._by_name(choice.named)
        if not named:
            scales = choice.numbered or self._default
            found = [(self._at(i, "lora"), scales[i]) for i in sorted(scales)]
            return name, [(entry, scale) for entry, scale in found if scale]
        return name, [(entry, entry.scale) for entry in named]

    def unknown(self, model: str) -> Refused:
        """The error for a model that nothing here is called."""
        return Refused(
            f"the model {shown(model)} does not exist; /v1/models lists those that do",
            404,
            param="model",
            code="model_not_found",
        )

    def load(self, chosen: Iterable[tuple[Entry, float]]) -> list[tuple[Any, float]]:
        """The adapters themselves, read where they are not in memory; Refused where one cannot be
        used, in the words of its error without the place of its file.
        """
        loaded = [(entry, self._loaded(entry), scale) for entry, scale in chosen]
        for entry, adapter, scale in loaded:
            _check_scale(entry, scale, adapter)
        return [(adapter, scale) for _, adapter, scale in loaded]

    def _loaded(self, entry: Entry) -> Any:
        version, adapter = entry.version, entry.adapter
        if adapter is not None:
            if entry in self._kept:
                self._kept.remove(entry)
                self._kept.append(entry)
            return adapter
        assert entry.path is not None and self._read is not None
        try:
            adapter = self._read(entry.path)
        except WgtrainError as error:
            place = "" if str(entry.path) in str(error) else f"{entry.path}: "
            self._say(f"error: {place}{error}")
            told = str(error).replace(str(entry.path), entry.name)
            raise wrong_field(f"the adapter {entry.name} cannot be used: {told}", "model") from None
        if entry.version != version:  # written anew in the meantime
            return adapter
        entry.adapter = adapter
        self._kept = [one for one in self._kept if one is not entry] + [entry]
        for old in self._kept[:-KEPT]:
            old.adapter = None
        del self._kept[:-KEPT]
        return adapter

    def _there(self) -> list[tuple[int, Entry]]:
        """Those that can be named, with their numbers."""
        return [
            (i, e) for i, e in enumerate(self._entries) if e.path is None or e.version is not None
        ]

    def _at(self, number: int, param: str) -> Entry:
        for i, entry in self._there():
            if i == number:
                return entry
        raise wrong_field(f"no adapter has the id {number}; /lora-adapters lists them", param)

    def _by_name(self, named: list[tuple[str | int, float | None]]) -> list[tuple[Entry, float]]:
        names = {entry.name: entry for _, entry in self._there()}
        out: list[tuple[Entry, float]] = []
        for i, (key, scale) in enumerate(named):
            where = f"lora_adapters[{i}]"
            if isinstance(key, int):
                entry = self._at(key, f"{where}.id")
            elif key in names:
                entry = names[key]
            else:
                known = ", ".join(sorted(names)) or "none"
                raise wrong_field(f"{shown(key)}; adapters here: {known}", f"{where}.name")
            if any(entry is other for other, _ in out):
                raise wrong_field(f"{entry.name} stands there twice", where)
            out.append((entry, entry.scale if scale is None else scale))
        return out

    def _in(self, model: str) -> list[Entry]:
        """The adapters in a model's name, which are separated as the base is from the first."""
        names = {entry.name: entry for _, entry in self._there()}
        found: list[Entry] = []
        if not model.startswith(self.base):
            raise self.unknown(model)
        rest = model.removeprefix(self.base)
        while rest:
            # The longest, because a name may have this sign in it.
            fitting = [n for n in names if rest == f"+{n}" or rest.startswith(f"+{n}+")]
            if not fitting or names[max(fitting, key=len)] in found:
                raise self.unknown(model)
            name = max(fitting, key=len)
            found.append(names[name])
            rest = rest[1 + len(name) :]
        return found


def _check_scale(entry: Entry, scale: float, adapter: Any = None) -> None:
    """OptionError for a scale at which an adapter that is in memory leaves no logits."""
    one = entry.adapter if adapter is None else adapter
    if isinstance(one, Checked):
        check_strength(one.adapter, scale, f"the adapter {entry.name}")


def _version(path: Path) -> Version | None:
    """What changes with the content of a file, or of the adapter in a folder."""
    for name in (ADAPTER, TENSOR_FILE) if path.is_dir() else ("",):
        try:
            found = os.stat(path / name)
        except OSError:
            continue
        return found.st_mtime_ns, found.st_size, found.st_ino
    return None


def _holds_adapter(path: Path) -> bool:
    """Whether an adapter is there; FileError for one that cannot be read."""
    if path.is_dir():
        found = (path / ADAPTER).is_file() or is_adapter(path)
        return found and bool(adapter_path(path))
    if path.suffix != ".gguf":
        return False
    with as_source(path) as opened:
        return run(read_gguf(opened)).metadata.get("general.type") == "adapter"
