"""`wgtrain.plan`: what a run would take, by a model's metadata or by its shapes alone."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from wgtrain.api import HOST, opened_base
from wgtrain.data import Dataset, load_tokenizer
from wgtrain.data.prompts import DEFAULT_PROMPTS, Prompt
from wgtrain.dual import dual_function
from wgtrain.engine.tuning import DEFAULT_GPU, Tuning, default_table
from wgtrain.errors import DeviceError, FileError, OptionError
from wgtrain.files import GGUF
from wgtrain.files.adapters import fit_adapter
from wgtrain.files.huggingface import CONFIG, INDEX
from wgtrain.files.source import shown
from wgtrain.gpu import (
    GIVEN,
    UNKNOWN,
    Limits,
    Memory,
    chosen_adapter,
    find_adapters,
    find_memory,
    granted_limits,
    read_gpu_memory,
    wanted_features,
)
from wgtrain.infer.model import Model
from wgtrain.infer.samples import default_prompts, plan_samples, sample_prompts
from wgtrain.model.config import read_config
from wgtrain.model.folder import Folder
from wgtrain.model.shapes import gguf_of_config, gguf_of_tensors, retyped
from wgtrain.runs.paths import read_input
from wgtrain.train.config import LoraConfig, TrainConfig
from wgtrain.train.fit import BROUGHT
from wgtrain.train.needs import Lengths, Settings, lengths_of
from wgtrain.train.planning import TrainingPlan, make_plan
from wgtrain.train.start import adopt, check_settings, split_rows

_SOME = 8  # invocations of a subgroup


@dual_function
async def plan(
    model: Any,
    lora: LoraConfig | None = None,
    config: TrainConfig | None = None,
    rows: Dataset | None = None,
    valid: Dataset | None = None,
    test: Dataset | None = None,
    *,
    init_adapter: Any = None,
    given: tuple[str, ...] = (),
    type: str | None = None,
    quantize_base: str | None = None,
    precision: str | None = None,
    gpu_memory: int | str | None = None,
    adapter_index: int | None = None,
    samples: Sequence[Prompt] | None = None,
) -> TrainingPlan:
    """What training would take, by layer and by purpose, and whether it fits; nothing is loaded.

    `model`: a GGUF or a Hugging Face folder (paths, bytes and sources as in `load_model`), or
    shapes alone: a config.json, as a path, in a folder without weights, or as a dict; an object
    with `metadata()` and `tensors()`; or an open `Model`. Without `rows` a batch is `batch_size`
    rows of `seq_len` tokens. `valid`, `test`, `init_adapter`, `given` and `samples` are those of
    `Trainer`.

    `type` is what its matrices would be in place of what they are: a type of GGUF, a mix such as
    "Q4_K_M", or "nf4", "nf4-double", "int4", "int8", which quantise the blocks' linears.
    `gpu_memory` ("6GiB") stands in for what the GPU has free; without a GPU the plan is for
    WebGPU's own limits.
    """
    check_settings(lora, config)
    lora, config = lora or LoraConfig(), config or TrainConfig()
    for name, part in (("rows", rows), ("valid", valid), ("test", test)):
        if part is not None and not (isinstance(part, Dataset) and part.rows):
            raise OptionError(f"{name}: {shown(part)}: what wgtrain.load_dataset gives is needed")
    gguf = _metadata(model)
    if isinstance(model, Model):
        precision = precision or model.precision
        quantize_base = quantize_base or (model.quantize_base if type is None else None)
        gpu, limits, memory, tuning = _open_space(model)
    else:
        gpu, limits, memory, tuning = await _space(adapter_index)
    if gpu_memory is not None:
        memory = Memory(read_gpu_memory(gpu_memory), GIVEN)
    if type is not None:
        if quantize_base is not None:
            raise OptionError(f"type, quantize_base: only one of them may be given: {type} is both")
        gguf, quantize_base = retyped(gguf, type)
    fixed = {"quantize_base"} if type is not None else set()
    if init_adapter is not None:
        lora = adopted(gguf, lora, init_adapter, given)
        fixed |= BROUGHT
    if rows is not None:
        config = replace(config, seq_len=rows.seq_len)
    lengths = _lengths(model, gguf, config, (rows, valid, test), samples)
    return make_plan(
        gguf,
        Settings(lora, config, quantize_base),
        lengths,
        plan_samples=plan_samples,
        gpu=gpu,
        limits=limits,
        memory=memory,
        tuning=tuning,
        precision=precision or "f32",
        fixed=fixed,
    )


def _lengths(
    model: Any,
    gguf: GGUF,
    config: TrainConfig,
    data: tuple[Dataset | None, Dataset | None, Dataset | None],
    samples: Sequence[Prompt] | None,
) -> Lengths:
    """How many tokens rows to train, to validate and to test with have, and prompts of samples."""
    rows, valid, test = data
    if rows is None:
        prompts = len(config.sample or range(DEFAULT_PROMPTS)) if config.samples else 0
        return Lengths(samples=[config.seq_len] * prompts)
    if valid is None and isinstance(config.valid, float):
        rows, valid = split_rows(rows, config.valid, config.seed)
    if samples is None and config.samples:
        samples = _prompts(model, gguf, config, rows, valid)
    return lengths_of(rows, valid, test, samples or ())


def _prompts(
    model: Any, gguf: GGUF, config: TrainConfig, rows: Dataset, valid: Dataset | None
) -> list[Prompt]:
    """Those of a run; the model's tokenizer is asked only where it is needed."""
    if not config.sample:
        return [Prompt("", tuple(ids)) for ids in default_prompts(valid)]
    tokenizer = model.tokenizer if isinstance(model, Model) else None
    tokenizer = tokenizer or load_tokenizer(gguf.metadata, gguf.name)
    return sample_prompts(config.sample, rows, valid, tokenizer)


def adopted(gguf: GGUF, lora: LoraConfig, init_adapter: Any, given: tuple[str, ...]) -> LoraConfig:
    """`lora` with what an adapter brings, which has to fit the model."""
    model = read_config(gguf)
    adapter = HOST.read_adapter(init_adapter, model)
    adapter = fit_adapter(adapter, gguf.tensors, model.architecture, "init_adapter")
    return adopt(lora, adapter, model.n_layer, model.block_linears, given)


def _metadata(model: Any) -> GGUF:
    """The metadata of whatever names a model."""
    if isinstance(model, Model):
        return model.gguf
    if isinstance(model, Folder):
        return model.gguf
    if isinstance(model, Mapping):
        return gguf_of_config(model)
    if hasattr(model, "metadata") and hasattr(model, "tensors"):
        return gguf_of_tensors(
            str(getattr(model, "name", "shapes")), model.metadata(), model.tensors()
        )
    if (path := config_file(model)) is not None:
        return gguf_of_config(_object(path), str(path))
    with opened_base(model) as base:
        return base.gguf


def config_file(model: Any) -> Path | None:
    """The config.json that a path means where there are no weights beside it."""
    if not isinstance(model, str | os.PathLike):
        return None
    path = Path(model)
    if path.suffix == ".json" and path.is_file():
        return path
    if not (path / CONFIG).is_file() or (path / INDEX).is_file():
        return None
    return None if any(path.glob("*.safetensors")) else path / CONFIG


def _object(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(read_input(path))
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise FileError(f"{path}: no JSON object; the config.json of a model is needed")
    return found


def _open_space(model: Model) -> tuple[str, Limits, Memory, Tuning]:
    """What there would be without the model."""
    device = model.device
    origin = device.find_budget()
    free = None
    if device.budget is not None:
        free = device.budget - device.allocated + model.weights.nbytes
    return device.info.name, device.limits, Memory(free, origin), model.base.tuning


async def _space(adapter_index: int | None) -> tuple[str, Limits, Memory, Tuning]:
    """The name, limits, free memory and default kernels of the GPU that a run would take."""
    try:
        infos = await find_adapters()
    except (DeviceError, ImportError, OSError):
        infos = []
    if not infos and adapter_index is None:
        name = "no GPU was found here; with what every WebGPU adapter grants"
        return name, Limits(), UNKNOWN, DEFAULT_GPU
    info = infos[chosen_adapter(infos, adapter_index)]
    # What kernels take does not depend on how large subgroups are, but on whether there are any.
    subgroups = "subgroups" in wanted_features(info, None)
    tuning = default_table(info, _SOME if subgroups else 0)
    return info.name, granted_limits(info), find_memory(info), tuning
