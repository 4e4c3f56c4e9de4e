"""What a run starts from: rows held out, a given adapter, hash of the rows."""

import dataclasses
import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from wgtrain import random
from wgtrain.data import Dataset, Row, check_vocabulary
from wgtrain.errors import OptionError
from wgtrain.files.adapters import Adapter
from wgtrain.files.names import resolve_targets, split_tensor
from wgtrain.files.source import shown
from wgtrain.train.config import LoraConfig, TrainConfig
from wgtrain.train.settings import changed


def check_arguments(
    model: Any,
    rows: Dataset,
    lora: LoraConfig | None,
    config: TrainConfig | None,
    valid: Dataset | None,
    test: Dataset | None = None,
) -> None:
    """OptionError for arguments of `Trainer` in each other's place, FileError for rows that are not
    of the model's vocabulary.
    """
    if not hasattr(model, "fingerprint"):
        raise OptionError(f"model: {shown(model)}: load it first, with wgtrain.load_model")
    for name, part in {"rows": rows, "valid": valid, "test": test}.items():
        if not isinstance(part, Dataset) and (part is not None or name == "rows"):
            raise OptionError(f"{name}: {shown(part)}: load them first, with wgtrain.load_dataset")
    check_settings(lora, config)
    for data in (rows, valid, test):
        if data is not None:
            check_vocabulary(data, model.config.vocabulary)


def check_settings(lora: Any, config: Any) -> None:
    """OptionError for settings that are not what they have to be, or None."""
    for name, value, kind in (("lora", lora, LoraConfig), ("config", config, TrainConfig)):
        if value is not None and not isinstance(value, kind):
            hint = "; write config=TrainConfig(...)" if isinstance(value, TrainConfig) else ""
            what = f"{name}: a {kind.__name__} is needed, not {type(value).__name__}"
            raise OptionError(what + hint)


def settled_rows(
    rows: Dataset, valid: Dataset | None, test: Dataset | None, config: TrainConfig
) -> tuple[Dataset, Dataset | None]:
    """(rows to train, rows held out); OptionError where some are none, or were not made as `config`
    says.
    """
    if config.seq_len not in (TrainConfig().seq_len, rows.seq_len):
        raise OptionError(f"seq_len = {config.seq_len}: {rows.name} has {rows.seq_len}")
    if config.train_on not in (TrainConfig().train_on, rows.train_on):
        marked = repr(rows.train_on) if rows.train_on else "marks of its own"
        raise OptionError(f"train_on = {config.train_on!r}: {rows.name} has {marked}")
    if valid is None and isinstance(config.valid, str):
        raise OptionError(f"valid = {config.valid}: load its rows and pass them as `valid`")
    if valid is None and config.valid is not None:
        rows, valid = split_rows(rows, float(config.valid), config.seed)
    for part in (rows, valid, test):
        if part is not None and not part.rows:
            raise OptionError(f"{part.name}: no row with a token to train")
    return rows, valid


def split_rows(data: Dataset, fraction: float, seed: int) -> tuple[Dataset, Dataset]:
    """(rows to train, rows held out), in the order of the file; OptionError if one is empty."""
    n = len(data.rows)
    held = max(1, round(fraction * n))
    if held >= n:
        raise OptionError(
            f"valid = {fraction}: leaves none of the {n} rows of {data.name} to train"
        )
    chosen = set(random.permutation(random.key(seed, "valid"), n)[:held].tolist())
    train = [row for i, row in enumerate(data.rows) if i not in chosen]
    valid = [row for i, row in enumerate(data.rows) if i in chosen]
    return dataclasses.replace(data, rows=train), dataclasses.replace(data, rows=valid)


def adopt(
    lora: LoraConfig,
    adapter: Adapter,
    n_layer: int,
    linears: Mapping[str, str],
    given: Iterable[str] = (),
) -> LoraConfig:
    """`lora` with rank, alpha and targets of an `adapter` that fits the model of `n_layer` blocks
    of `linears`, GGUF name -> module.

    Raises OptionError, listing all of them, for settings that differ from the adapter's and are in
    `given` or not at their default.
    """
    places = {name: split_tensor(name) for name in adapter.tensors}
    if strange := [name for name, place in places.items() if place is None]:
        raise OptionError(f"init_adapter: no linears that are trained: {', '.join(strange)}")
    modules = resolve_targets([place[1] for place in places.values() if place], linears)
    blocks = sorted({place[0] for place in places.values() if place and place[0] >= 0})
    layers = "all" if len(blocks) in (0, n_layer) else _ranges(blocks)
    chosen = [name for name in modules if name != "output"]
    if len(places) != len(chosen) * len(blocks) + len(modules) - len(chosen):
        raise OptionError("init_adapter: its blocks do not all have the same targets")
    brought = LoraConfig(
        adapter.rank, adapter.alpha or adapter.rank, lora.dropout, ",".join(modules), layers
    )
    explicit = set(given) | changed(lora)
    same = {
        "rank": lora.rank == brought.rank,
        "alpha": np.float32(lora.alpha) == np.float32(brought.alpha),
        "target_modules": resolve_targets(lora.target_modules, linears) == modules,
        "layers": lora.layer_indices(n_layer) == brought.layer_indices(n_layer),
    }
    problems = [
        f"{name} = {getattr(lora, name)}: init_adapter brings {getattr(brought, name)}"
        for name, equal in same.items()
        if name in explicit and not equal
    ]
    if problems:
        raise OptionError("\n".join(problems))
    return brought


def _ranges(blocks: list[int]) -> str:
    """[0, 1, 2, 8] -> "0-2,8-8": what `LoraConfig.layers` reads as just these blocks."""
    parts: list[list[int]] = []
    for block in blocks:
        if parts and parts[-1][1] == block - 1:
            parts[-1][1] = block
        else:
            parts.append([block, block])
    return ",".join(f"{first}-{last}" for first, last in parts)


def other_chats(ours: Mapping[str, Any], theirs: Any) -> str:
    """What a checkpoint says of how its conversations became text, where that differs from ours."""
    theirs = theirs if isinstance(theirs, dict) else {}
    names = [name for name in sorted({*ours, *theirs}) if ours.get(name) != theirs.get(name)]
    told = ", ".join(f"{name} = {shown(theirs.get(name))}" for name in names)
    return f"; its conversations had {told}" if told else ""


def hash_rows(rows: Iterable[Row]) -> str:
    """SHA-256 over the tokens and targets of rows, in their order."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(len(row.tokens).to_bytes(8, "little"))
        digest.update(np.ascontiguousarray(row.tokens, "<u4").tobytes())
        digest.update(np.ascontiguousarray(row.targets, "<i4").tobytes())
    return digest.hexdigest()
