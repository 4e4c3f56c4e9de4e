"""Options of commands, made of the fields of configs; messages about settings, spelt as options."""

import re
from collections.abc import Callable, Collection
from dataclasses import Field, fields
from typing import Any

import click

from wgtrain.train.config import CONFIGS
from wgtrain.train.settings import setting_of

_FIELDS = [f for config_class in CONFIGS for f in fields(config_class)]
# What messages call settings, and what else is an option alone.
_KNOWN = {name for f in _FIELDS for name in (f.name, *setting_of(f).aliases)}
_KNOWN |= {"resume", "config", "rows", "type", "prompt", "message", "prompts", "stop", "json"}
_KNOWN |= {"max_tokens", "temperature", "top_k", "top_p", "min_p", "repeat_penalty", "stats"}
_KNOWN |= {"force", "adapter", "api_key", "allow_origin", "host", "port"}
_WORDS = {"adapter"}  # which begin lines that are of no option


class _Named(click.Option):
    """An option whose other names are told with it. They are options of their own, so that one
    setting that is given under two names is seen.
    """

    def __init__(self, *arguments: Any, others: Collection[str] = (), **more: Any):
        super().__init__(*arguments, **more)
        self._others = others

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        record = super().get_help_record(ctx)
        if record is None:
            return None
        name, _, value = record[0].partition(" ")
        return f"{', '.join([name, *self._others])} {value}".rstrip(), record[1]


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
    if info.many:
        return click.option(
            dashes(f.name), f.name, metavar=metavar, help=info.help, multiple=True, callback=_given
        )
    others = [dashes(name) for name in info.aliases]
    return click.option(
        dashes(f.name),
        f.name,
        cls=_Named,
        others=others,
        metavar=metavar,
        help=info.help + default,
    )


def aliases(f: Field) -> list[Callable[[Any], Any]]:
    """The other names of a setting, as options that are not listed."""
    return [click.option(dashes(n), n, hidden=True) for n in setting_of(f).aliases]


def _given(context: Any, parameter: Any, values: tuple[str, ...]) -> list[str] | None:
    """What was given of an option that may be repeated, None for nothing."""
    return list(values) or None


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
            for add in (*aliases(f), *switches(f), option(f)):
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


_FIRST = re.compile(r"^((?:warning: )?)(\w+(?:, \w+)*)( = |: )")
_NEXT = re.compile(r"(?:, |( for ))(\w+) = ")
_SWITCH = re.compile(r"--(\S+) (True|False)\b")


def as_options(message: str) -> str:
    """Names of settings that begin a line of a message, or its warning, spelt as options that can
    be copied: `seq_len = 64, packing = True: ...` is `--seq-len 64 --packing: ...`.
    """
    return "\n".join(map(_spelt, message.split("\n")))


def _spelt(line: str) -> str:
    found = _FIRST.match(line)
    if not found or not any(name in _KNOWN for name in found[2].split(", ")):
        return line
    if found[2] in _WORDS and found[3] == ": ":
        return line
    names = ", ".join(dashes(n) if n in _KNOWN else n for n in found[2].split(", "))
    if found[3] == ": ":
        return f"{found[1]}{names}: {line[found.end() :]}"
    rest = _NEXT.sub(_following, line[found.end() :])
    return _SWITCH.sub(_switched, f"{found[1]}{names} {rest}")


def _following(found: re.Match[str]) -> str:
    if found[2] not in _KNOWN:
        return found[0]
    return f"{found[1] or ' '}{dashes(found[2])} "


def _switched(found: re.Match[str]) -> str:
    return f"--{found[1]}" if found[2] == "True" else f"--no-{found[1]}"
