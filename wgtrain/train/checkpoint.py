"""A checkpoint as three files of bytes: adapter, optimizer moments, and where the run stands.

Random numbers are counter-based, so seed and step are the whole random state. `state.json` holds
the hashes of the other two, so that a damaged checkpoint is known before it is used.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np

from wgtrain.engine.tuning import Tuning, from_json
from wgtrain.errors import FileError
from wgtrain.files.adapters import Adapter, read_adapter_gguf, write_adapter_gguf
from wgtrain.files.safetensors import read_safetensors, write_safetensors

ADAPTER, OPTIMIZER, STATE = "adapter.gguf", "optimizer.safetensors", "state.json"
FORMAT = 1


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
    return files | {STATE: json.dumps(state, indent=2).encode() + b"\n"}


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
    try:
        raw = json.loads(data)
    except ValueError as error:
        raise FileError(f"{name}: not JSON: {error}") from None
    if not isinstance(raw, dict) or raw.get("format") != FORMAT:
        found = raw.get("format") if isinstance(raw, dict) else raw
        raise FileError(f"{name}: format = {found}: this version reads format {FORMAT}")
    kinds: dict[str, Any] = {"settings": dict, "rows": str, "version": str, "tuning": dict}
    kinds |= {"elapsed_seconds": (int, float)}
    values = {}
    for f in fields(State):
        value = raw.get(f.name, {} if f.name == "tuning" else None)
        kind: Any = kinds.get(f.name, int)
        if not isinstance(value, kind):
            raise FileError(f"{name}: {f.name} = {value!r}: not usable")
        values[f.name] = value
    if values["tuning"]:
        check_tuning(values["tuning"], name)
    hashes = raw.get("sha256")
    if not isinstance(hashes, dict) or set(hashes) != {ADAPTER, OPTIMIZER}:
        raise FileError(f"{name}: sha256 = {hashes!r}: not usable")
    return State(**values), hashes


def check_tuning(data: Any, name: str) -> Tuning:
    """The table in a file `name`; FileError where it is none."""
    try:
        return from_json(data)
    except ValueError as error:
        raise FileError(f"{name}: tuning: {error}") from None


def to_adapter(parameters: Mapping[str, np.ndarray], **fields: Any) -> Adapter:
    """Parameters by name (`<tensor>.lora_a`, `.lora_b`) as an `Adapter` with the other `fields`."""
    bases = [name.removesuffix(".lora_a") for name in parameters if name.endswith(".lora_a")]
    pairs = {b: (parameters[f"{b}.lora_a"], parameters[f"{b}.lora_b"]) for b in bases}
    return Adapter(tensors=pairs, **fields)


def to_parameters(adapter: Adapter) -> dict[str, np.ndarray]:
    """The inverse of `to_adapter`."""
    result: dict[str, np.ndarray] = {}
    for base, (a, b) in adapter.tensors.items():
        result |= {f"{base}.lora_a": a, f"{base}.lora_b": b}
    return result
