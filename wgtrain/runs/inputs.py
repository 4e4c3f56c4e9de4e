"""The files a run reads: opened before any work is done, read once, known again by their hashes."""

import hashlib
import os
import threading
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from wgtrain.api import data_file
from wgtrain.data.templates import CHATML
from wgtrain.errors import FileError, OptionError, WgtrainError
from wgtrain.files.parts import part_names
from wgtrain.runs.adapters import adapter_path
from wgtrain.runs.entries import INPUTS, NAMES, places
from wgtrain.runs.paths import check_model, check_path, is_pipe, read_input
from wgtrain.train.config import RunConfig, TrainConfig


class Rows:
    """A file of rows as it was read; from a pipe it cannot be read again.

    `identity` is its size and SHA-256.
    """

    def __init__(self, path: Path):
        """Reads it; FileError where there is nothing to read."""
        self.path, self.pipe = path, is_pipe(path)
        self._content = read_input(path)
        sha = hashlib.sha256(self._content).hexdigest()
        self.identity: dict[str, Any] = {"bytes": len(self._content), "sha256": sha}
        if self.pipe:
            self.identity["pipe"] = True

    def take(self) -> bytes:
        """What it holds, once: a run needs it no longer."""
        content, self._content = self._content, b""
        return content


class Inputs:
    """What the settings of a run name, found and, but for the model, read; `read` already is."""

    def __init__(
        self, paths: RunConfig, config: TrainConfig, read: Mapping[str, Rows] | None = None
    ):
        check_model(Path(paths.model))
        files = {"data": data_file(paths.data), "valid": valid_file(paths, config)}
        if paths.init_adapter is not None:
            files["init_adapter"] = adapter_path(paths.init_adapter)
        done = read or {}
        files["test"] = done["test"].path if "test" in done else test_file(paths)
        self._read = {n: done.get(n) or Rows(f) for n, f in files.items() if f is not None}
        self.data, self.valid = self._read["data"], self._read.get("valid")
        self.test = self._read.get("test")
        self.paths, self.config = paths, config
        self.model_hash = _ModelHash(Path(paths.model))

    def notes(self) -> list[str]:
        """What a person may not have meant."""
        said = []
        for name, rows in (("data", self.data), ("valid", self.valid)):
            if rows is not None and rows.pipe:
                said.append(
                    f"{name}: {rows.path} is a pipe, read once: to resume, a file with the same "
                    f"rows has to be named beside --resume, {rows.identity['bytes']:,} bytes with "
                    f"SHA-256 {rows.identity['sha256']}"
                )
        if self.valid is not None and self.valid.identity["sha256"] == self.data.identity["sha256"]:
            said.append(
                f"warning: valid = {self.valid.path}: the same rows as the training rows; its loss "
                "says nothing about rows that were not trained"
            )
        for name, other in (("training", self.data), ("validation", self.valid)):
            if self.test and other and self.test.identity["sha256"] == other.identity["sha256"]:
                said.append(f"warning: {self.test.path}: the same rows as the {name} rows")
        return said

    def used(self) -> dict[str, str]:
        """Absolute paths of the settings, so that the run can be resumed from anywhere."""
        named: dict[str, Any] = {
            name: getattr(self.paths, name) for name in NAMES if name != "valid"
        }
        named["valid"] = self.valid and self.valid.path
        if self.paths.chat_template != CHATML:
            named["chat_template"] = self.paths.chat_template
        return {name: str(Path(path).absolute()) for name, path in named.items() if path}

    def identity(
        self, folder: Path, fingerprint: str, wait: bool = True
    ) -> dict[str, dict[str, Any]]:
        """Place, also as seen from the run's folder, and hash of every file.

        The hash of a whole model takes a while: without `wait` it may be missing.
        """
        place = _place(Path(self.paths.model), folder)
        model = {**place, "fingerprint": fingerprint, "sha256": self.model_hash(wait)}
        files = {
            name: {**_place(rows.path, folder), **rows.identity}
            for name, rows in self._read.items()
        }
        return {"model": {key: value for key, value in model.items() if value}, **files}


def valid_file(paths: RunConfig, config: TrainConfig) -> Path | None:
    """The file of validation rows: as set, or that of a data folder."""
    if isinstance(config.valid, str):
        return data_file(config.valid, "valid")
    if config.valid is None and Path(paths.data).is_dir():
        beside = data_file(paths.data, "valid")
        return beside if beside.is_file() else None
    return None


def test_file(paths: RunConfig) -> Path | None:
    """The file of test rows, where they are wanted; OptionError if it is not there."""
    if not paths.test:
        return None
    path = test_beside(paths.data)
    if not path.is_file():
        raise OptionError(f"test: there is no {path}")
    return path


def test_beside(data: str) -> Path:
    """Where the test rows are that belong to a folder of rows, or to a file in it."""
    path = Path(data)
    return (path if path.is_dir() else path.parent) / "test.jsonl"


def found_again(
    paths: RunConfig,
    config: TrainConfig,
    before: Mapping[str, Mapping[str, Any]],
    given: Mapping[str, str],
    folder: Path,
) -> Inputs:
    """The inputs of an earlier run, where they are now.

    `before` are the entries of its summary, `given` what a person names instead. FileError lists
    every file that is missing or is not what it was.
    """
    problems: list[str] = []
    chosen: dict[str, Any] = {}
    read: dict[str, Rows] = {}
    if "data" in given and paths.test and (moved := test_beside(given["data"])).is_file():
        given = {**given, "test": str(moved)}
    for name in INPUTS:
        if name == "test" and not (paths.test and name in before):
            continue
        old = getattr(config if name == "valid" else paths, name)
        entry = before.get(name)
        if entry is None and (name not in given or not isinstance(old, str)):
            if name in given:
                problems.append(f"{name} = {given[name]}: the run was started without")
            continue
        try:
            path, rows = _found(name, entry or {}, given.get(name), folder)
        except WgtrainError as error:
            problems.append(str(error))
            continue
        if name != "test":
            chosen[name] = str(path)
        read |= {} if rows is None else {name: rows}
    if problems:
        raise FileError("\n".join(problems))
    valid = chosen.pop("valid", config.valid)
    return Inputs(replace(paths, **chosen), replace(config, valid=valid), read)


def _found(
    name: str, entry: Mapping[str, Any], given: str | None, folder: Path
) -> tuple[Path, Rows | None]:
    """Where an input is, and what it holds if it is no model."""
    part = "valid" if name == "valid" else "train"
    if given is not None:
        path = adapter_path(given) if name == "init_adapter" else Path(given)
        found = [data_file(path, part) if name in ("data", "valid") else path]
    elif entry.get("pipe"):
        raise FileError(
            f"{name}: {entry['path']} was a pipe, which is read once; name a file with the same "
            f"rows beside --resume: {_option(name)} FILE"
        )
    else:
        found = places(entry, folder)
    problem = ""
    for path in found:
        try:
            check_path(path)
            rows = None if name == "model" else Rows(path)
        except FileError as error:
            option = "--data FOLDER" if name == "test" else f"{_option(name)} PATH"
            moved = f"; where it moved, name it beside --resume: {option}"
            problem = problem or f"{name}: {error}{'' if given else moved}"
            continue
        if rows is None or not entry or rows.identity["sha256"] == entry.get("sha256"):
            return path, rows
        problem = changed(name, str(path), folder)
    raise FileError(problem)


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")


def changed(name: str, path: str, folder: Path) -> str:
    """The error of a file that is another one than at the start of a run."""
    return f"{name}: {path} has changed since the run in {folder} was started"


class _ModelHash:
    """SHA-256 over all bytes of a model, computed beside the run.

    The fingerprint covers what stands before the tensors and the ends of the file.
    """

    def __init__(self, path: Path):
        self._path, self._value = path, ""
        self._thread = threading.Thread(target=self._compute, daemon=True)
        self._thread.start()

    def _compute(self) -> None:
        digest = hashlib.sha256()
        try:
            for path in _model_files(self._path):
                with open(path, "rb", buffering=0) as file:
                    while part := file.read(1 << 20):
                        digest.update(part)
                if path != self._path:  # of several, each counts under its name
                    digest.update(path.name.encode("utf-8", "surrogateescape"))
        except OSError:
            return  # unknown; whoever reads the file next says what is wrong with it
        self._value = digest.hexdigest()

    def __call__(self, wait: bool = True) -> str:
        """The hash, "" where it is not known."""
        if wait:
            self._thread.join()
        return self._value


def _model_files(path: Path) -> Iterable[Path]:
    if not path.is_dir():
        parts = [path.with_name(name) for name in part_names(path.name)]
        return parts if parts and all(part.is_file() for part in parts) else [path]
    kinds = (".json", ".jinja", ".safetensors")
    return sorted(file for file in path.iterdir() if file.suffix in kinds and file.is_file())


def _place(path: Path, folder: Path) -> dict[str, str]:
    place = {"path": str(path.absolute())}
    try:
        place["relative"] = os.path.relpath(path, folder)
    except ValueError:  # on another drive
        pass
    return place
