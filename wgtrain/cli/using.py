"""What generate, chat, serve and eval have in common: a model, adapters upon it, a chat template.

@using_options
def command(..., **given): with opened(given) as using: using.model ...
"""

import os
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import click

from wgtrain.cli.options import options_of
from wgtrain.cli.streams import complain
from wgtrain.data.templates import Templating
from wgtrain.errors import FileError, OptionError, WgtrainError
from wgtrain.infer.model import Model
from wgtrain.runs.adapter_config import load_adapters, read_config
from wgtrain.runs.adapters import NamedAdapter, adapter_path, model_of_run, parse_adapter
from wgtrain.runs.chats import templating_of
from wgtrain.runs.paths import check_path
from wgtrain.train.config import RunConfig
from wgtrain.train.settings import build, canonical, setting_of

BASE = ("model", "quantize_base", "precision")
CHAT = ("chat_template", "template_args", "system")
USED = (*BASE, "chat_template", "template_args", "adapter_index", "gpu_memory")
_NAMES = {n for f in fields(RunConfig) if f.name in USED for n in (f.name, *setting_of(f).aliases)}
Say = Callable[[str], None]
# Parts of --help with a head of their own, by the names of parameters; what is in none comes first.
_FIRST = ("model", "adapter")
_SECTIONS = {
    "Sampling": ("temperature", "top_k", "top_p", "min_p", "repeat_penalty", "seed", "stop"),
    "Reading rows": ("kind", "batch_size", "seq_len", "train_on", "mask_prompt"),
    "Model and GPU": ("config_file", *USED[1:]),
}


class Sectioned(click.Command):
    """A command whose help begins with what everybody needs."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Writes the options, by section."""
        heads = {name: head for head, names in _SECTIONS.items() for name in names}
        sections: dict[str, list[tuple[str, str]]] = {head: [] for head in ("Options", *_SECTIONS)}
        params = sorted(self.get_params(ctx), key=lambda one: one.name not in _FIRST)
        for param in params:
            if (record := param.get_help_record(ctx)) is not None:
                sections[heads.get(param.name or "", "Options")].append(record)
        for head, records in sections.items():
            if records:
                with formatter.section(head):
                    formatter.write_dl(records)


def using_options(command: Any) -> Any:
    """Decorator that adds the options which `opened` reads."""
    return using_some(USED)(command)


def using_some(names: Collection[str]) -> Callable[[Any], Any]:
    """The same with some of `USED` alone."""
    return lambda command: _add_options(command, names)


def _add_options(command: Any, names: Collection[str]) -> Any:
    rest = [name for name in names if name != "model"]
    command = options_of(RunConfig, only=rest)(command)
    command = click.option(
        "--config",
        "config_file",
        metavar="FILE",
        help='JSON: {"model": {"path": ...}, "lora_adapters": [{"path": ..., "scale": 1.0}, ...]}, '
        "beside the path settings with underscores; the command line goes over it.",
    )(command)
    command = click.option(
        "--adapter",
        multiple=True,
        metavar="A[:SCALE]",
        help="Adapter on the model: a GGUF, a PEFT folder, a run or a checkpoint, of which the "
        "last two know their --model; repeatable.  [default: SCALE 1]",
    )(command)
    return options_of(RunConfig, only=("model",))(command)


@dataclass
class Using:
    """A model in use, with its default stack of adapters, whose conversations go through `chat`."""

    model: Model
    chat: Templating
    say: Say
    _merged: bool = False

    @property
    def templated(self) -> bool:
        """Whether there is a chat template."""
        return bool(self.chat.sources(self.model.tokenizer))

    def raw(self, text: str) -> list[int]:
        """The tokens of a text that is continued as it stands."""
        tokenizer = self.model.tokenizer
        ids: list[int] = tokenizer.encode(text, bos=tokenizer.add_bos, special=True)
        return ids

    def prompt(
        self,
        messages: list[dict[str, Any]],
        tools: list[Any] | None = None,
        args: Mapping[str, Any] | None = None,
    ) -> list[int]:
        """The tokens of a conversation, through the template, ready for the answer."""
        try:
            return self.model.prompt(messages, tools, args)
        except FileError:
            if self.chat.system != "keep" or not any(m["role"] == "system" for m in messages):
                raise
            try:
                ids = self.model.prompt(messages, tools, args, "merge")
            except WgtrainError:
                ids = None
            if ids is None:
                raise
        if not self._merged:
            self.say("the chat template takes no system message: it goes before the user's turn")
        self._merged = True
        return ids

    def check_template(self) -> None:
        """OptionError where no conversation can be had, with what helps."""
        if not self.templated:
            raise OptionError(
                f"{self.model.name} has no chat template; --chat-template chatml, or that of a "
                "file, brings one, and wgtrain generate --prompt continues a text without one"
            )
        self.prompt([{"role": "user", "content": "?"}])


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

    Other names in `given` are not looked at. `say` hears what a person should know.
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
        model.templating = wanted.chat
        load_adapters(model, wanted.adapters, wanted.skip, say)
        yield Using(model, wanted.chat, say)


def read_wanted(given: Mapping[str, Any], say: Say) -> Wanted:
    """The command line over a JSON configuration over what runs say of themselves."""
    settings = {n: value for n, value in given.items() if n in _NAMES and value is not None}
    line = canonical(settings, [RunConfig], "command line")
    asked = not line.keys().isdisjoint(CHAT)
    adapters = tuple(map(parse_adapter, given.get("adapter") or ()))
    skip = False
    if (config := given.get("config_file")) is not None:
        file = read_config(config)
        line = file.model | line
        if not adapters:
            adapters, skip = file.adapters, file.on_error == "skip"
    if not skip:
        for adapter in adapters:
            check_path(Path(adapter.path))
    settings = _of_runs(adapters, line, skip, say) | line
    if "model" not in settings:
        for adapter in adapters if not skip else ():
            adapter_path(adapter.path)  # a folder that holds none says so
        none = "; of these adapters none is a run, which knows its own" if adapters else ""
        raise OptionError(f"model: needed; a GGUF file, or a Hugging Face folder{none}")
    (paths,) = build({"data": "-", **settings}, RunConfig)
    if "model" not in line:
        named = [("quantize_base", paths.quantize_base), ("precision", paths.precision)]
        more = [f", {name} {value}" for name, value in named if value not in (None, "f32")]
        say(f"using {paths.model}{''.join(more)}: the base that the adapter was trained on")
    return Wanted(paths, replace(templating_of(paths), asked=asked), adapters, skip)


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
            if not skip and "model" not in line:
                raise
            continue  # what is wrong with it is said when it is loaded
        if found is not None:
            runs[adapter.path] = found
    settings: dict[str, Any] = {}
    if runs and "model" not in line:
        settings |= _agreed(runs, BASE)
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
            if _plain(name, values.get(name)) != _plain(name, found.get(name)):
                raise OptionError(
                    f"model: needed; {first} was trained with {name} = {found.get(name)}, "
                    f"{other} with {values.get(name)}"
                )
    return {name: found[name] for name in names if found.get(name) is not None}


def _plain(name: str, value: Any) -> Any:
    """A setting as it is compared: models by where they are."""
    return os.path.realpath(value) if name == "model" else value
