"""Options of commands, made of the fields of configs; messages about settings, spelt as options."""

import re
from collections.abc import Callable, Collection
from dataclasses import Field, fields
from typing import Any

import click

from wgtrain.train.config import CONFIGS
from wgtrain.train.settings import setting_of


def option(f: Field) -> Callable[[Any], Any]:
    """The click option of a config field; values stay text, the config checks them."""
    info = setting_of(f)
    default = "" if f.default in (None, "") else f"  [default: {_shown(f.default)}]"
    if info.kind is bool:
        name = dashes(f.name)
        return click.option(
            f"{name}/--no-{name[2:]}", f.name, default=None, help=info.help + default
        )
    kind = {int: "N", float: "NUMBER", str: "TEXT"}[info.kind]
    metavar = info.metavar or ("|".join(info.choices) if info.choices else kind)
    names = [dashes(name) for name in (f.name, *info.aliases)]
    return click.option(*names, f.name, metavar=metavar, help=info.help + default)


def switches(f: Field) -> list[Callable[[Any], Any]]:
    """The on/off spelling of a setting that has one (`--mask-prompt` for `--train-on`)."""
    switch = setting_of(f).switch
    if switch is None:
        return []
    name, on, off = switch
    text = f"The same as {dashes(f.name)} {on} (or {off})."
    flags = f"{dashes(name)}/--no-{dashes(name)[2:]}"
    return [click.option(flags, name, default=None, help=text)]


def options_of(*classes: Any, only: Collection[str] = ()) -> Callable[[Any], Any]:
    """Decorator that adds the options of all (or `only` some) fields of some configs, in order."""

    def decorate(command: Any) -> Any:
        declared = [f for config_class in classes for f in fields(config_class)]
        for f in reversed([f for f in declared if not only or f.name in only]):
            for add in (*switches(f), option(f)):
                command = add(command)
        return command

    return decorate


def dashes(name: str) -> str:
    """A setting's name as an option."""
    return "--" + name.replace("_", "-")


def _shown(default: Any) -> str:
    if isinstance(default, bool):
        return "on" if default else "off"
    return f"{default:g}" if isinstance(default, float) else str(default)


def as_options(message: str) -> str:
    """Names of settings that begin a line of a message, or its warning, spelt as options."""
    known = {f.name for config_class in CONFIGS for f in fields(config_class)}
    known |= {"resume", "config", "rows", "type"}

    def spelt(match: re.Match[str]) -> str:
        names = [dashes(name) if name in known else name for name in match[2].split(", ")]
        return match[1] + ", ".join(names) + match[3]

    return re.sub(r"^((?:warning: )?)(\w+(?:, \w+)*)( = |: )", spelt, message, flags=re.MULTILINE)
