"""A setting is one dataclass field that says everything of itself; here they are read and merged.

The command line, YAML files and notebook forms are generated from such fields.
"""

import functools
import math
import operator
import re
import reprlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import Field, asdict, dataclass, field, fields
from typing import Any, TypeVar

from wgtrain.errors import OptionError
from wgtrain.files.source import shown
from wgtrain.train.spellings import nearest

_WHOLE = re.compile(r"[+-]?[0-9]+")
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
_Config = TypeVar("_Config", bound=type)


@dataclass(frozen=True)
class Setting:
    """What a field says of itself beside its default; `kind` is int, float, bool or str.

    `low` and `high` are allowed values, `above` and `below` are not. `aliases` are other names;
    `switch` is a name that takes true or false, and the two values these stand for. A setting with
    `instead_of` replaces that other one, whose default then does not count.
    """

    help: str
    kind: type
    choices: tuple[str, ...] = ()
    low: float | None = None
    high: float | None = None
    above: float | None = None
    below: float | None = None
    aliases: tuple[str, ...] = ()
    switch: tuple[str, str, str] | None = None
    metavar: str | None = None
    required: bool = False
    instead_of: str = ""
    many: bool = False  # may be given several times
    convert: Callable[[Any], Any] | None = None

    def allowed(self) -> str:
        """The allowed values in words."""
        if self.choices:
            return " or ".join(self.choices) if len(self.choices) > 1 else f"only {self.choices[0]}"
        if self.kind is bool:
            return "true or false"
        words = [
            f"{text} {bound:g}"
            for text, bound in (
                ("at least", self.low),
                ("above", self.above),
                ("at most", self.high),
                ("below", self.below),
            )
            if bound is not None
        ]
        noun = {int: "a whole number", float: "a number", str: "a text"}[self.kind]
        return ", ".join([noun, *words])

    def read(self, value: Any) -> Any:
        """`value` (a text of the command line, a YAML value, an object) as this kind, checked."""
        if self.convert is not None:
            return self.convert(value)
        result = _as_kind(value, self)
        if self.choices and result not in self.choices:
            raise ValueError
        if self.kind in (int, float):
            inside = (
                (self.low is None or result >= self.low)
                and (self.high is None or result <= self.high)
                and (self.above is None or result > self.above)
                and (self.below is None or result < self.below)
            )
            if not inside or not math.isfinite(result):
                raise ValueError
        return result


def _as_kind(value: Any, setting: Setting) -> Any:
    if setting.kind is bool:
        if isinstance(value, bool):
            return value
        return {"true": True, "false": False}[str(value).lower()]
    if setting.kind is str:
        if isinstance(value, bool) and {"on", "off"} <= set(setting.choices):
            return "on" if value else "off"  # YAML 1.1 reads on and off as booleans
        if not isinstance(value, str) or not value:
            raise ValueError
        return value
    if isinstance(value, bool):
        raise ValueError
    if setting.kind is float:
        return number(value)
    return int(_matched(_WHOLE, value)) if isinstance(value, str) else operator.index(value)


def number(value: Any) -> float:
    """A number, or a text of one in the digits of JSON: `float` takes more, such as `1_6`."""
    return float(_matched(_NUMBER, value) if isinstance(value, str) else value)


def _matched(pattern: re.Pattern[str], text: str) -> str:
    if not pattern.fullmatch(text.strip(" ")):
        raise ValueError
    return text


def said(value: Any) -> str:
    """A value for a message, cut before it fills the screen: lists may hold lists without end."""
    if isinstance(value, str):
        return value if len(value) <= 100 and value.isprintable() else shown(value, 100)
    if isinstance(value, int) and value.bit_length() > 1000:
        return f"a number of {value.bit_length():,} bits"
    return str(value) if isinstance(value, int | float | None) else reprlib.repr(value)[:100]


def setting(default: Any, kind: type, help: str, **more: Any) -> Any:
    """A dataclass field with its `Setting`."""
    return field(default=default, metadata={"setting": Setting(help, kind, **more)})


def spelt_right(config_class: _Config) -> _Config:
    """Decorator of a config: a keyword it does not have is an OptionError that names the right
    one.
    """
    made: Any = config_class
    make = made.__init__
    names = {f.name for f in fields(made)}
    _CONFIGS.append(made)

    @functools.wraps(make)
    def init(self: Any, *values: Any, **settings: Any) -> None:
        if problems := [_unknown(made, name) for name in settings if name not in names]:
            raise OptionError("\n".join(problems))
        make(self, *values, **settings)

    made.__init__ = init
    return config_class


_CONFIGS: list[Any] = []


def _unknown(config_class: Any, name: str) -> str:
    owners = {f.name: other.__name__ for other in _CONFIGS for f in fields(other)}
    near = nearest(name, owners)
    if near is None:
        known = ", ".join(f.name for f in fields(config_class))
        return f"{config_class.__name__}: unknown setting {name!r}; it has {known}"
    there = "" if owners[near] == config_class.__name__ else f" of {owners[near]}"
    return f"{config_class.__name__}: unknown setting {name!r}; did you mean {near!r}{there}?"


def setting_of(f: Field) -> Setting:
    """The declaration in a field."""
    info: Setting = f.metadata["setting"]
    return info


def replaced(config_class: Any) -> dict[str, str]:
    """Setting -> the one that may stand instead of it."""
    return {i.instead_of: f.name for f in fields(config_class) if (i := setting_of(f)).instead_of}


def check(config: Any, rules: Callable[[Any], Iterable[str]] = lambda config: ()) -> None:
    """Converts and checks every field of a config in place; OptionError lists all failures."""
    problems = []
    pairs = replaced(config)
    for f in fields(config):
        name, value, info = f.name, getattr(config, f.name), setting_of(f)
        if value is None and (f.default is None or name in pairs):
            continue
        if info.required and not value:
            problems.append(f"{name}: needed; {info.help[0].lower()}{info.help[1:]}")
            continue
        try:
            object.__setattr__(config, name, info.read(value))
        except OptionError as error:
            problems.append(str(error))
        except (ValueError, TypeError, KeyError, OverflowError) as error:
            custom = info.convert is not None and error.args
            allowed = error.args[0] if custom else info.allowed()
            problems.append(f"{name} = {said(value)}: allowed is {allowed}")
    defaults = {f.name: f.default for f in fields(config)}
    for name, instead in pairs.items():
        if getattr(config, instead) is None:
            if getattr(config, name) is None:
                problems.append(f"{name}, {instead}: one of them is needed")
        elif getattr(config, name) in (None, defaults[name]):
            object.__setattr__(config, name, None)
        else:
            problems.append(f"{name}, {instead}: only one of them may be given")
    if not problems:
        problems += rules(config)
    if problems:
        raise OptionError("\n".join(problems))


def build(values: Mapping[str, Any], *classes: Any) -> tuple[Any, ...]:
    """One config of each class from explicit settings, all failures in one OptionError.

    `None` means not given; names must be field names (see `canonical`).
    """
    given = {name: value for name, value in values.items() if value is not None}
    problems: list[str] = []
    configs = []
    for config_class in classes:
        for name, instead in replaced(config_class).items():
            if name in given and instead in given:
                problems.append(f"{name}, {instead}: only one of them may be given")
        names = {f.name for f in fields(config_class)}
        try:
            configs.append(config_class(**{n: v for n, v in given.items() if n in names}))
        except OptionError as error:
            problems += [p for p in str(error).split("\n") if p not in problems]
    if problems:
        raise OptionError("\n".join(problems))
    return tuple(configs)


def canonical(values: Mapping[str, Any], classes: Iterable[Any], where: str) -> dict[str, Any]:
    """Settings under their field names, from a mapping that may use aliases (a YAML file).

    Raises OptionError, naming `where` and the nearest known name or all, for unknown or repeated
    names.
    """
    names: dict[str, tuple[str, Setting]] = {}
    for f in (f for config_class in classes for f in fields(config_class)):
        info = setting_of(f)
        switch = info.switch[:1] if info.switch else ()
        names |= dict.fromkeys((f.name, *info.aliases, *switch), (f.name, info))
    result: dict[str, Any] = {}
    spelt: dict[str, str] = {}
    problems = []
    for key, value in values.items():
        if key not in names:
            near = nearest(str(key), names)
            hint = f"did you mean {near!r}?" if near else f"known are {', '.join(names)}"
            problems.append(f"{where}: unknown setting {shown(key)}; {hint}")
            continue
        name, info = names[key]
        if info.switch and key == info.switch[0] and value is not None:
            if not isinstance(value, bool):
                problems.append(f"{where}: {key} = {said(value)}: allowed is true or false")
                continue
            value = info.switch[1] if value else info.switch[2]
        if name in result:
            problems.append(f"{where}: {name!r} is given twice, as {spelt[name]!r} and as {key!r}")
        result[name], spelt[name] = value, str(key)
    if problems:
        raise OptionError("\n".join(problems))
    return result


def merge(
    file: Mapping[str, Any], command_line: Mapping[str, Any], classes: Iterable[Any]
) -> dict[str, Any]:
    """Command line over file; a setting also displaces the one it stands instead of."""
    given = {name: value for name, value in command_line.items() if value is not None}
    displaced = set(given)
    for config_class in classes:
        for pair in replaced(config_class).items():
            if given.keys() & set(pair):
                displaced |= set(pair)
    return {n: v for n, v in file.items() if n not in displaced} | given


def as_mapping(*configs: Any) -> dict[str, Any]:
    """All settings of some configs as one plain mapping, in order."""
    return {name: value for config in configs for name, value in asdict(config).items()}


def changed(config: Any) -> set[str]:
    """The fields of a config that differ from their defaults."""
    return {f.name for f in fields(config) if getattr(config, f.name) != f.default}
