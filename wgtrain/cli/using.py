"""What generate, chat, serve and eval have in common: a model, adapters upon it, a chat template.

@using_options
def command(..., **given): with opened(given) as using: using.model ...
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import click

from wgtrain.cli.named import (
    NamedAdapter,
    adapter_path,
    model_of_run,
    parse_adapter,
    read_config,
)
from wgtrain.cli.options import options_of
from wgtrain.cli.streams import complain
from wgtrain.data.templates import Templating
from wgtrain.errors import DeviceError, OptionError, WgtrainError
from wgtrain.infer.model import Model
from wgtrain.runs.chats import templating_of
from wgtrain.train.config import RunConfig
from wgtrain.train.settings import build, canonical

BASE = ("model", "quantize_base", "precision")
CHAT = ("chat_template", "template_args", "system")
USED = (*BASE, "chat_template", "template_args", "adapter_index", "gpu_memory")
Say = Callable[[str], None]


def using_options(command: Any) -> Any:
    """Decorator that adds the options which `opened` reads."""
    command = click.option(
        "--config",
        "config_file",
        metavar="FILE",
        help='JSON: {"model": {"path": ...}, "lora_adapters": [{"path": ..., "scale": 1.0}, ...]}, '
        "beside the path settings with underscores; the command line goes over it.",
    )(command)
    command = options_of(RunConfig, only=USED)(command)
    return click.option(
        "--adapter",
        multiple=True,
        metavar="A[:SCALE]",
        help="Adapter on the model: a GGUF, a PEFT folder, a run or a checkpoint, which know their "
        "--model; repeatable.",
    )(command)


@dataclass(frozen=True)
class Using:
    """A model in use, with its default stack of adapters; conversations go through `chat`."""

    model: Model
    chat: Templating


@dataclass(frozen=True)
class Wanted:
    """What is to be opened; adapters that cannot be used are an error, or with `skip` left out."""

    paths: RunConfig
    chat: Templating
    adapters: tuple[NamedAdapter, ...]
    skip: bool


@contextmanager
def opened(given: Mapping[str, Any], say: Say = complain) -> Iterator[Using]:
    """The model that the values of `using_options` name, with its adapters; closed after.

    Other names in `given` are not looked at. `say` gets what a person should know.
    """
    from wgtrain.api import load_model

    wanted = read_wanted(given, say)
    paths = wanted.paths
    with load_model(
        paths.model,
        adapter_index=paths.adapter_index,
        precision=paths.precision,
        quantize_base=paths.quantize_base,
        gpu_memory=paths.gpu_memory,
    ) as model:
        for adapter in wanted.adapters:
            _load(model, adapter, wanted.skip, say)
        yield Using(model, wanted.chat)


def read_wanted(given: Mapping[str, Any], say: Say) -> Wanted:
    """The command line over a JSON configuration over what runs say of themselves."""
    line = {name: given[name] for name in USED if given.get(name) is not None}
    adapters = tuple(map(parse_adapter, given.get("adapter") or ()))
    skip = False
    if (config := given.get("config_file")) is not None:
        file = read_config(config)
        line = _settings(file.model, config) | line
        if not adapters:
            adapters, skip = file.adapters, file.on_error == "skip"
    settings = _of_runs(adapters, line, skip, say) | line
    if "model" not in settings:
        more = "" if not adapters else "; of these adapters none is a run, which knows its own"
        raise OptionError(f"model: needed; a GGUF file, or a Hugging Face folder{more}")
    (paths,) = build({"data": "-", **settings}, RunConfig)
    return Wanted(paths, templating_of(paths), adapters, skip)


def _settings(model: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The settings in the object `model` of a configuration."""
    values = {"model" if name == "path" else name: value for name, value in model.items()}
    settings = canonical(values, [RunConfig], where)
    if wrong := [name for name in settings if name not in (*USED, "system")]:
        names = ("path", *USED[1:])
        raise OptionError(f"{where}: model: {', '.join(wrong)}: allowed are {', '.join(names)}")
    return settings


def _of_runs(
    adapters: tuple[NamedAdapter, ...], line: Mapping[str, Any], skip: bool, say: Say
) -> dict[str, Any]:
    """The base of the runs among some adapters, where none is named, and their conversations'
    settings.
    """
    runs: dict[str, dict[str, Any]] = {}
    for adapter in adapters:
        try:
            found = model_of_run(adapter.path)
        except WgtrainError:
            if not skip:
                raise
            continue  # why it cannot be used is said when it is loaded
        if found is not None:
            runs[adapter.path] = found
    settings: dict[str, Any] = {}
    if runs and "model" not in line:
        settings |= _agreed(runs, BASE)
        origin = next(iter(runs))
        more = [
            f"{name} {settings[name]}" for name in BASE[1:] if settings.get(name, "f32") != "f32"
        ]
        say(f"using {', '.join([settings['model'], *more])}, the base of {origin}")
    chats = [{name: run[name] for name in CHAT if run.get(name)} for run in runs.values()]
    if chats and "chat_template" not in line:
        if all(chat == chats[0] for chat in chats):
            settings |= chats[0]
        else:
            say(
                f"warning: {' and '.join(runs)} wrote conversations in different ways; none is used"
            )
    return settings


def _agreed(runs: Mapping[str, Mapping[str, Any]], names: tuple[str, ...]) -> dict[str, Any]:
    """What all runs say alike; OptionError where they do not."""
    (first, found), *others = runs.items()
    for other, values in others:
        for name in names:
            if values.get(name) != found.get(name):
                raise OptionError(
                    f"model: needed; {first} was trained with {name} = {found.get(name)}, "
                    f"{other} with {values.get(name)}"
                )
    return {name: found[name] for name in names if found.get(name) is not None}


def _load(model: Any, adapter: NamedAdapter, skip: bool, say: Say) -> None:
    try:
        model.adapters.load(adapter_path(adapter.path), adapter.scale, adapter.name or None)
    except DeviceError:
        raise
    except WgtrainError as error:
        if not skip:
            raise
        reason = str(error).removeprefix(f"{adapter.path}: ")
        say(f"warning: the adapter {adapter.path} is skipped: {reason}")
