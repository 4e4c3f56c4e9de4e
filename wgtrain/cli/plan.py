"""`wgtrain plan`: what a run would take, told before anything is loaded."""

import json
from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

from wgtrain.api import data_file, load_dataset, opened_base, training_tokenizer
from wgtrain.data import Dataset
from wgtrain.data.prompts import Prompt
from wgtrain.errors import OptionError, printable
from wgtrain.infer.samples import sample_prompts
from wgtrain.model.folder import Folder
from wgtrain.planned import config_file, plan
from wgtrain.runs.chats import templating_of
from wgtrain.runs.inputs import test_file, valid_file
from wgtrain.train.config import CONFIGS, RunConfig, TrainConfig
from wgtrain.train.settings import build


def show(settings: Mapping[str, Any], type_: str | None, as_json: bool) -> tuple[str, bool]:
    """(the plan of a run with these settings, False where it does not fit)."""
    named = {name: value for name, value in settings.items() if value is not None}
    paths, lora, config = build({"data": "-", **named}, *CONFIGS)
    alone = config_file(paths.model)
    with nullcontext(alone) if alone else opened_base(paths.model) as model:
        rows = valid = test = samples = None
        if "data" in named:
            rows, valid, test, samples = _rows(model, paths, config)
        found = plan(
            model,
            lora,
            config,
            rows,
            valid,
            test,
            init_adapter=paths.init_adapter,
            given=tuple(named),
            type=type_,
            quantize_base=paths.quantize_base,
            precision=paths.precision,
            gpu_memory=paths.gpu_memory,
            adapter_index=paths.adapter_index,
            samples=samples,
        )
    text = json.dumps(found.as_json(), ensure_ascii=False) if as_json else printable(str(found))
    return text, found.fits is not False


def _rows(
    model: Any, paths: RunConfig, config: TrainConfig
) -> tuple[Dataset, Dataset | None, Dataset | None, list[Prompt] | None]:
    """The rows of a run, as they are read there, those for validation and the test in files, and
    the prompts of samples where the tokenizer is needed for them.
    """
    if not isinstance(model, Folder):
        raise OptionError(f"data = {paths.data}: {model} has no tokenizer; leave the data out")
    tokenizer = training_tokenizer(model)
    chat = templating_of(paths)
    read = (tokenizer, config.seq_len, config.train_on, None, paths.kind)
    rows = load_dataset(data_file(paths.data), *read, chat=chat)
    held, tests = (
        None if path is None else load_dataset(path, *read, chat=chat)
        for path in (valid_file(paths, config), test_file(paths))
    )
    samples = sample_prompts(config.sample, rows, held, tokenizer) if config.sample else None
    return rows, held, tests, samples
