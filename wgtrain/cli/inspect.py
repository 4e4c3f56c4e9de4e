"""`wgtrain inspect`: what a model, an adapter or a data set holds, and whether it can be used."""

import json
import math
from collections import Counter
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np

from wgtrain.api import HOST, adapter_file, base_tokenizer, data_file, opened_base
from wgtrain.cli.facts import lines
from wgtrain.data.examples import kind_of_row
from wgtrain.data.jsonl import read_rows
from wgtrain.data.records import RowError, read_records
from wgtrain.errors import FileError, OptionError, WgtrainError, printable
from wgtrain.files import GGUF, read_range
from wgtrain.files.adapters import (
    CONFIG_FILE,
    TENSOR_FILE,
    Adapter,
    fit_adapter,
    read_adapter_gguf,
)
from wgtrain.files.huggingface import CONFIG
from wgtrain.files.names import split_tensor
from wgtrain.files.safetensors import json_object, read_safetensors
from wgtrain.gpu import run
from wgtrain.model.base import plan_base
from wgtrain.model.config import ModelConfig, read_config
from wgtrain.model.folder import Folder
from wgtrain.runs.adapters import run_of, run_settings
from wgtrain.runs.paths import check_path, is_pipe, no_adapter_in, read_input
from wgtrain.runs.sources import as_source, is_adapter

Facts = dict[str, Any]
_LONGEST = 1 << 24  # tokens of a row: none is cut
_ITEMS = 16  # of an array that JSON shows in full
_TEXT = 4000  # characters of a text of metadata


def inspect(source: str, model: str | None, as_json: bool) -> str:
    """The facts of what is at `source` as text or JSON; `model` is the base of an adapter, or
    gives the tokenizer for rows.
    """
    path = Path(source)
    check_path(path)
    kind = _kind(path)
    if kind == "model" and model is not None:
        raise OptionError(f"model: {path} is a model itself; --model goes with adapters and rows")
    found = {"model": _model, "adapter": _adapter, "data": _data}[kind](path, model)
    facts = {"kind": kind, "file": source} | found
    if as_json:
        return json.dumps(facts, ensure_ascii=False)
    return printable("\n".join(lines(facts)))


def _kind(path: Path) -> str:
    """ "model", "adapter" or "data"."""
    if path.is_dir():
        if (path / CONFIG).is_file():
            return "model"
        if (path / CONFIG_FILE).is_file():
            return "adapter"
        if data_file(path).is_file() or data_file(path, "valid").is_file():
            return "data"
        raise FileError(
            f"{path}: no model ({CONFIG}), no adapter ({CONFIG_FILE}) and no rows (train.jsonl)"
        )
    if is_pipe(path):
        return "data"
    if is_adapter(path):
        return "adapter"
    if path.name == CONFIG or path.suffix == ".safetensors":
        raise FileError(f"{path}: a file of a model; name its folder, {path.parent}")
    with as_source(path) as opened:
        named = path.suffix == ".gguf"  # one that is none is refused as such
        return "model" if named or bytes(run(_head(opened))) == b"GGUF" else "data"


def _text(gguf: GGUF, key: str) -> str | None:
    """A text of metadata; None where there is none or something else."""
    value = gguf.metadata.get(key)
    return value if isinstance(value, str) else None


async def _head(source: Any) -> Any:
    return await read_range(source, 0, min(4, source.size))


def _model(path: Path, _: str | None) -> Facts:
    try:
        opened: Any = opened_base(str(path))
        with opened as base:
            return _of_base(base)
    except FileError as error:
        if not path.is_dir():
            raise
        return {"refused": _reason(error, str(path))}


def _reason(error: WgtrainError, name: str) -> str:
    """An error without the name of the file, which stands above."""
    return str(error).removeprefix(f"{name}: ")


def _of_base(base: Folder) -> Facts:
    gguf = base.gguf
    infos = gguf.tensors.values()
    facts: Facts = {
        "architecture": _text(gguf, "general.architecture"),
        "name": _text(gguf, "general.name"),
        "parameters": sum(math.prod(info.shape) for info in infos),
        "types": dict(Counter(info.type for info in infos).most_common()),
        "type_bytes": {},
        "bytes": sum(info.nbytes for info in infos),
    }
    for info in infos:
        sizes = facts["type_bytes"]
        sizes[info.type] = sizes.get(info.type, 0) + info.nbytes
    facts |= _use(gguf) | _text_side(base)
    return facts | {"metadata": {key: _short(v) for key, v in gguf.metadata.items()}}


def _use(gguf: GGUF) -> Facts:
    """The configuration and memory of a model, or why it cannot be used."""
    try:
        config = read_config(gguf)
        base = plan_base(gguf)
    except WgtrainError as error:
        return {"refused": _reason(error, gguf.name), "notes": list(gguf.notes)}
    return {
        "refused": None,
        **_shape(config),
        "gpu_bytes": base.weights.nbytes,
        "notes": [*gguf.notes, *config.notes],
    }


def _shape(config: ModelConfig) -> Facts:
    return {
        "layers": config.n_layer,
        "width": config.width,
        "heads": config.n_head,
        "kv_heads": config.n_head_kv,
        "head_size": config.head_size,
        "feed_forward": config.feed_forward,
        "context": config.context,
        "windows": [window for window in config.windows if window],
        "vocabulary": config.vocabulary,
        "tied_head": config.tied_head,
    }


def _text_side(base: Folder) -> Facts:
    metadata = base.gguf.metadata
    named = [metadata.get(f"tokenizer.ggml.{key}") for key in ("model", "pre")]
    facts: Facts = {"tokenizer": " ".join(name for name in named if isinstance(name, str)) or None}
    try:
        template = base_tokenizer(base).chat_template
        return facts | {"tokenizer_refused": None, "chat_template": template is not None}
    except WgtrainError as error:
        reason = _reason(error, base.gguf.name)
        return facts | {"tokenizer_refused": reason, "chat_template": None}


def _short(value: Any, depth: int = 8) -> Any:
    """A value of metadata for JSON, which has no NaN; of long arrays, of texts and of what lies
    deeper than `depth` the size.
    """
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, list | tuple | dict):
        if len(value) > _ITEMS or not depth:
            return f"{len(value)} values"
        if isinstance(value, dict):
            return {key: _short(part, depth - 1) for key, part in value.items()}
        return [_short(part, depth - 1) for part in value]
    if isinstance(value, str) and len(value) > _TEXT:
        return value[:_TEXT] + "..."
    return value if not isinstance(value, float) or math.isfinite(value) else str(value)


def _adapter(path: Path, model: str | None) -> Facts:
    file = adapter_file(path)
    facts: Facts
    if file.name == TENSOR_FILE:
        facts = _peft(file.parent)
    else:
        adapter = read_adapter_gguf(read_input(file), str(file))
        facts = _of_adapter(adapter) | {
            "form": "GGUF",
            "base": adapter.metadata.get("base.name"),
            "metadata": {key: _short(v) for key, v in adapter.metadata.items()},
        }
    if not facts["base"] and (run := run_of(path)) is not None:
        facts["base"] = run_settings(run)[0].model
    return facts | ({} if model is None else _fit(path, model))


def _of_adapter(adapter: Adapter) -> Facts:
    places = [split_tensor(base) or (-1, base) for base in adapter.tensors]
    return {
        "architecture": adapter.architecture,
        "rank": adapter.rank,
        "alpha": adapter.alpha,
        "parameters": sum(a.size + b.size for a, b in adapter.tensors.values()),
        "targets": list(dict.fromkeys(target for _, target in places)),
        "layers": sorted({layer for layer, _ in places if layer >= 0}),
        "types": {"F32": 2 * len(adapter.tensors)},
    }


def _peft(folder: Path) -> Facts:
    """A PEFT folder, as it says itself: without a base nobody knows more."""
    config = json_object(read_input(folder / CONFIG_FILE), f"{folder}/{CONFIG_FILE}")
    if not (folder / TENSOR_FILE).exists():
        raise no_adapter_in(folder)
    tensors = read_safetensors(read_input(folder / TENSOR_FILE), f"{folder}/{TENSOR_FILE}")
    return {
        "form": "PEFT folder",
        "architecture": None,
        "rank": _short(config.get("r")),
        "alpha": _short(config.get("lora_alpha")),
        "parameters": sum(array.size for array in tensors.values()),
        "targets": _short(config.get("target_modules")),
        "types": dict(Counter(str(array.dtype) for array in tensors.values())),
        "base": _short(config.get("base_model_name_or_path")),
        "metadata": {key: _short(value) for key, value in config.items()},
    }


def _fit(path: Path, model: str) -> Facts:
    """Whether an adapter fits a base."""
    with opened_base(model) as base:
        try:
            config = read_config(base.gguf)
            adapter = HOST.read_adapter(path, config)
            fit_adapter(adapter, base.gguf.tensors, config.architecture, str(path))
        except WgtrainError as error:
            return {"fits": False, "refused": _reason(error, str(path))}
    return {"fits": True, "refused": None, "architecture": config.architecture}


def _data(path: Path, model: str | None) -> Facts:
    file = data_file(path)
    if path.is_dir() and not file.is_file():
        file = data_file(path, "valid")
    content = read_input(file)
    kinds: Counter[str] = Counter()
    columns: Counter[str] = Counter()
    problems: dict[str, int] = {}
    first: Any = None
    rows = 0
    for line, row in read_records(content, str(file)):
        first = row if not rows else first
        rows += 1
        try:
            if not isinstance(row, dict):
                raise RowError("no JSON object")
            columns.update(row.keys())
            kinds[kind_of_row(row)] += 1
        except RowError as error:
            problems.setdefault(str(error), line)
    shown = [f"line {line}: {problem}" for problem, line in list(problems.items())[:_ITEMS]]
    facts = {"rows": rows, "kinds": dict(kinds), "columns": dict(columns), "problems": shown}
    lengths: Any = nullcontext(None) if model is None else opened_base(model)
    with lengths as base:
        if base is not None:
            facts |= _lengths(content, base, str(file))
    return facts | {"first": first}


def _lengths(content: bytes, base: Folder, name: str) -> Facts:
    """How many tokens rows have with the tokenizer and template of a model."""
    try:
        found = read_rows(content, base_tokenizer(base), seq_len=_LONGEST, name=name)
    except FileError as error:
        return {"refused": _reason(error, name)}
    rows = [*found.rows, *(row for row, _ in found.without)]
    lengths = sorted(len(row.tokens) for row in rows)
    return {
        "refused": None,
        "tokens": sum(lengths),
        "trained_tokens": sum(int((row.targets >= 0).sum()) for row in rows),
        "lengths": {
            "min": lengths[0],
            "median": lengths[len(lengths) // 2],
            "p95": lengths[math.ceil(0.95 * len(lengths)) - 1],
            "max": lengths[-1],
        },
        "notes": found.notes,
    }
