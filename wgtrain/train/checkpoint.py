"""A checkpoint as three files of bytes: adapter, optimizer moments, and where the run stands.

Random numbers are counter-based, so seed and step are the whole random state. `state.json` holds
the hashes of the other two and ends with one of all that stands before it, so that a checkpoint of
which one bit is damaged is known before it is used.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np

from wgtrain.engine.tables import from_json
from wgtrain.engine.tuning import Tuning
from wgtrain.errors import FileError
from wgtrain.files.adapters import Adapter, read_adapter_gguf, write_adapter_gguf
from wgtrain.files.safetensors import read_safetensors, write_safetensors
from wgtrain.files.source import shown

ADAPTER, OPTIMIZER, STATE = "adapter.gguf", "optimizer.safetensors", "state.json"
FORMAT = 2
_SEAL = re.compile(rb',\n  "seal": "([0-9a-f]{64})"\n}\n')
_MOST = 2**53  # of a step or a number of tokens or seconds
_SEAL_BYTES = len(',\n  "seal": ""\n}\n') + 64


@dataclass(frozen=True)
class State:
    """Where a run stands: after `step` optimizer steps, before window `position` of `epoch`.

    `settings` are all of the adapter and the training, `rows` is a hash of the token rows, `tuning`
    the table of the kernels it ran with (empty in files of versions that had none).
    """

    step: int
    epoch: int
    position: int
    tokens_seen: int
    elapsed_seconds: float
    settings: dict[str, Any]
    rows: str
    version: str
    tuning: dict[str, Any]


@dataclass(frozen=True)
class Checkpoint:
    """A state with its adapter and the moments m, v by parameter name, float32."""

    state: State
    adapter: Adapter
    m: dict[str, np.ndarray]
    v: dict[str, np.ndarray]


def pack(checkpoint: Checkpoint) -> dict[str, bytes]:
    """The files of a checkpoint: {file name: bytes}."""
    moments = {f"m.{name}": x for name, x in checkpoint.m.items()}
    moments |= {f"v.{name}": x for name, x in checkpoint.v.items()}
    files = {
        ADAPTER: write_adapter_gguf(checkpoint.adapter),
        OPTIMIZER: write_safetensors(moments, {"format": "wgtrain"}),
    }
    state = {
        "format": FORMAT,
        **asdict(checkpoint.state),
        "sha256": {name: hashlib.sha256(data).hexdigest() for name, data in files.items()},
    }
    return files | {STATE: seal(state)}


def seal(state: Mapping[str, Any]) -> bytes:
    """The bytes of `state.json`; its last entry is the SHA-256 of all bytes before it."""
    text = json.dumps(state, indent=2).removesuffix("\n}").encode()
    return text + f',\n  "seal": "{hashlib.sha256(text).hexdigest()}"\n}}\n'.encode()


def unpack(files: Mapping[str, bytes], name: str = "checkpoint") -> Checkpoint:
    """The inverse of `pack`; FileError names what is missing or damaged."""
    for file in (STATE, ADAPTER, OPTIMIZER):
        if file not in files:
            raise FileError(f"{name}: {file} is missing")
    state, hashes = _read_state(files[STATE], f"{name}/{STATE}")
    for file, digest in hashes.items():
        if hashlib.sha256(files[file]).hexdigest() != digest:
            raise FileError(f"{name}/{file}: damaged, its contents are not what was written")
    moments = read_safetensors(files[OPTIMIZER], f"{name}/{OPTIMIZER}")
    m = {key[2:]: x for key, x in moments.items() if key.startswith("m.")}
    v = {key[2:]: x for key, x in moments.items() if key.startswith("v.")}
    return Checkpoint(state, read_adapter_gguf(files[ADAPTER], f"{name}/{ADAPTER}"), m, v)


def _read_state(data: bytes, name: str) -> tuple[State, dict[str, str]]:
    text, end = data[:-_SEAL_BYTES], data[-_SEAL_BYTES:]
    try:
        raw = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise FileError(f"{name}: not JSON: {error}") from None
    if not isinstance(raw, dict) or raw.get("format") != FORMAT:
        found = raw.get("format") if isinstance(raw, dict) else raw
        hint = ", which cannot be told from a damaged one" if found == 1 else ""
        raise FileError(
            f"{name}: format = {shown(found)}{hint}: this version reads format {FORMAT}; the "
            f"{ADAPTER} beside it can start a new run (init_adapter)"
        )
    match = _SEAL.fullmatch(end)
    if match is None or hashlib.sha256(text).hexdigest().encode() != match[1]:
        raise FileError(f"{name}: damaged, its contents are not what was written")
    values: dict[str, Any] = {f.name: raw.get(f.name) for f in fields(State)}
    for key, value in values.items():
        if not _usable(key, value):
            raise FileError(f"{name}: {key} = {shown(value)}: not usable")
    if values["tuning"]:
        check_tuning(values["tuning"], name)
    hashes = raw.get("sha256")
    if not isinstance(hashes, dict) or set(hashes) != {ADAPTER, OPTIMIZER}:
        raise FileError(f"{name}: sha256 = {shown(hashes)}: not usable")
    return State(**values), hashes


def _usable(key: str, value: Any) -> bool:
    """Whether a value in `state.json` is of its field's kind."""
    if key in ("settings", "tuning"):
        return isinstance(value, dict)
    if key in ("rows", "version"):
        return isinstance(value, str)
    if key == "elapsed_seconds":
        return type(value) in (int, float) and 0 <= value < _MOST
    return type(value) is int and 0 <= value < _MOST


def check_tuning(data: Any, name: str) -> Tuning:
    """The table in a file `name`; FileError where it is none."""
    try:
        return from_json(data)
    except ValueError as error:
        raise FileError(f"{name}: tuning: {error}") from None


def to_adapter(parameters: Mapping[str, np.ndarray], **fields: Any) -> Adapter:
    """The `Adapter` whose `matrices` are these parameters, with the other `fields`."""
    bases = [name.removesuffix(".lora_a") for name in parameters if name.endswith(".lora_a")]
    pairs = {b: (parameters[f"{b}.lora_a"], parameters[f"{b}.lora_b"]) for b in bases}
    return Adapter(tensors=pairs, **fields)
