"""Runs chat templates, which are code from strangers: jinja2's sandbox, plus bounds on time and
memory.

The sandbox keeps a template from Python's inside. It does not keep one from looping for hours or
from making strings of gigabytes, so every loop, macro, call, filter and operator is metered
here, and what can make much out of little is checked before it runs, or is not offered.
"""

import functools
import re
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from typing import Any

from jinja2 import Template, TemplateError, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.filters import do_indent
from jinja2.parser import Parser
from jinja2.runtime import Context, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer
from markupsafe import soft_str

from wgtrain.chat.values import CHARACTERS, Dict, Names, tojson, weigh

SECONDS = 0.5  # of computing time for one rendering; usual templates need a thousandth
SECONDS_CHARACTER = 1e-5  # more for each character of what is rendered
LONGEST_SOURCE = 500_000  # characters
MARK_OPEN, MARK_CLOSE = "\ufdd0", "\ufdd1"  # noncharacters: never in real text

_clock: Callable[[], float] = getattr(time, "thread_time", time.monotonic)

_STRING_METHODS = frozenset(
    "capitalize count endswith find format index isalnum isalpha isascii isdecimal isdigit islower"
    " isnumeric isspace istitle isupper join lower lstrip partition removeprefix removesuffix"
    " replace rfind rindex rpartition rsplit rstrip split splitlines startswith strip swapcase"
    " title upper".split()
)
_CONTAINER_METHODS = frozenset("count get index items keys values".split())
# Not offered: they fill up to a width or a count, are random, or serve HTML.
_NO_FILTERS = (
    "batch center filesizeformat forceescape format pprint random slice striptags urlize wordwrap"
    " xmlattr"
).split()
_WIDE_FORMAT = re.compile(r"\d{3}|\*|\{[^{}]*\{")  # a width of hundreds, or one given by a value


class _Meter(Extension):
    """Puts the calls that count into a template, and adds `{% generation %}`."""

    tags = {"generation"}  # noqa: RUF012  (jinja2 declares it so)
    environment: "Sandbox"

    def parse(self, parser: Parser) -> nodes.Node:
        """`{% generation %}...{% endgeneration %}`: what the model is to learn to write."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        self.environment.has_generation = True
        return nodes.CallBlock(self.call_method("generation"), [], [], body).set_lineno(line)

    def generation(self, caller: Callable[[], str]) -> str:
        """The block's text, between marks when they are asked for."""
        text = caller()
        return f"{MARK_OPEN}{text}{MARK_CLOSE}" if self.environment.marking else text

    def step(self, characters: int) -> str:
        """Counts one round of a loop, or one call of a macro, that may print so many characters."""
        self.environment.charge(characters)
        return ""

    def keep(self, value: Any) -> Any:
        """Counts a list or dict that the template makes."""
        self.environment.charge(weigh(value))
        return value

    def concat(self, *values: Any) -> str:
        """The operator `~`."""
        return "".join(self.environment.printed(value) for value in values)


class _Insert(NodeTransformer):
    """Rewrites a parsed template so that it meters itself."""

    def __init__(self, meter: _Meter) -> None:
        self.meter = meter

    def _body(self, node: Any) -> Any:
        size = sum(len(data.data) for data in node.find_all(nodes.TemplateData))
        node = self.generic_visit(node)
        call = self.meter.call_method("step", [nodes.Const(size)], lineno=node.lineno)
        node.body.insert(0, nodes.Output([call]).set_lineno(node.lineno))
        return node

    visit_For = visit_Macro = visit_CallBlock = _body

    def _literal(self, node: Any) -> Any:
        node = self.generic_visit(node)
        if getattr(node, "ctx", "load") != "load":
            return node
        return self.meter.call_method("keep", [node], lineno=node.lineno)

    visit_List = visit_Tuple = visit_Dict = _literal

    def visit_Concat(self, node: Any) -> Any:
        """`a ~ b ~ ...`, which jinja2 would join without asking."""
        node = self.generic_visit(node)
        return self.meter.call_method("concat", node.nodes, lineno=node.lineno)


class Sandbox(ImmutableSandboxedEnvironment):
    """The environment of Transformers' chat templates, metered. `now` is what `strftime_now`
    tells.
    """

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self, now: datetime | None = None) -> None:
        self.marking = self.has_generation = False
        self.objects_are_text = True  # False: an object written as Python would is an error
        self._values: dict[str, Any] = {}
        self._spent = 0
        self._until, self._seconds = float("inf"), SECONDS
        self._left = CHARACTERS
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[_Meter, loopcontrols],
            finalize=self.printed,
            optimized=False,  # folding constants would run them before they are metered
            undefined=_undefined(self),
        )
        filters = {name: f for name, f in self.filters.items() if name not in _NO_FILTERS}
        filters |= {"tojson": tojson, "join": self._join, "replace": self._replace}
        filters |= {"indent": self._indent, "string": self._string}
        self.filters = {name: self._metered(f) for name, f in filters.items()}
        del self.globals["lipsum"]
        self.globals |= {
            "raise_exception": _raise,
            "strftime_now": lambda format: (now or datetime.now()).strftime(format),
            "dict": Dict(),
            "namespace": Names,
        }

    def run(self, template: Template, marking: bool = False, **values: Any) -> str:
        """Renders within the bounds; raises whatever the template does, SecurityError at a
        bound.
        """
        self.marking, self._values = marking, values
        size = weigh(values)
        self._left = CHARACTERS + 8 * size
        self._seconds = SECONDS + SECONDS_CHARACTER * size
        self._until = _clock() + self._seconds
        try:
            return "".join(template.generate(values))
        finally:
            self._until = float("inf")

    def charge(self, characters: int) -> None:
        """Takes from what this rendering may still use."""
        self._left -= characters + 1
        if self._left < 0:
            raise SecurityError("it makes more text than any conversation needs")
        self._spent += 1
        if self._spent % 16 == 0 or characters > 10_000:
            self.check_time()

    def check_time(self) -> None:
        """Ends a rendering that takes too long."""
        if _clock() > self._until:
            raise SecurityError(f"it computes for more than {self._seconds:.1f} s")

    def printed(self, value: Any) -> str:
        """A value as text, metered; only values of JSON become text."""
        if type(value) is str:
            self.charge(len(value))
            return value
        if isinstance(value, Undefined):
            return str(value)
        self._check_text(value)
        self.charge(weigh(value, strict=True))
        return str(value)

    def path(self, owner: Any) -> str | None:
        """Where in the values that are rendered an object stands, as `messages[0].tool_calls`."""
        open_ = [(name, value) for name, value in self._values.items() if value is not None]
        while open_:
            name, value = open_.pop()
            if value is owner:
                return name
            if isinstance(value, dict):
                open_ += [(f"{name}.{key}", item) for key, item in value.items()]
            elif isinstance(value, list):
                open_ += [(f"{name}[{i}]", item) for i, item in enumerate(value)]
        return None

    def _check_text(self, value: Any) -> None:
        if not self.objects_are_text and isinstance(value, dict):
            raise SecurityError("an object is no text")

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        if len(source) > LONGEST_SOURCE:
            raise SecurityError(f"it is {len(source)} characters long, {LONGEST_SOURCE} allowed")
        (meter,) = (e for e in self.extensions.values() if isinstance(e, _Meter))
        return _Insert(meter).visit(super()._parse(source, name, filename))

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """No methods of texts and numbers but those that cannot fill memory."""
        if isinstance(obj, str):
            return attr in _STRING_METHODS
        if isinstance(obj, list | tuple | dict):
            return attr in _CONTAINER_METHODS
        if isinstance(obj, int | float | bytes):
            return False
        return super().is_safe_attribute(obj, attr, value)

    def call(self, context: Context, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Calls of functions, methods and macros."""
        owner, name = getattr(obj, "__self__", None), getattr(obj, "__name__", "")
        if isinstance(owner, str):
            self.charge(len(owner))
            if name == "replace" and len(args) >= 2:
                return self._replace(owner, *args)
            if name == "join" and args:
                return self._join(args[0], owner)
        result = super().call(context, obj, *args, **kwargs)
        self.charge(weigh(result))
        return result

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Operators; those that multiply are checked first."""
        if operator == "*":
            sizes = [
                abs(value) if isinstance(value, int) else weigh(value) for value in (left, right)
            ]
            if all(isinstance(value, int) for value in (left, right)):
                if max(sizes) >= 1 << 256:
                    raise SecurityError("a number grows too large")
            elif not any(isinstance(value, float) for value in (left, right)):
                self.charge(min(sizes[0] * sizes[1], 1 << 62))
        elif operator == "**" and (_size(left) > 1 << 64 or _size(right) > 64):
            raise SecurityError("a power grows too large")
        elif operator == "%" and isinstance(left, str):
            self._check_format(left, right if isinstance(right, tuple) else (right,))
        elif operator == "+" and type(left) is type(right) is str:
            self.charge(len(left) + len(right))
            return left + right
        elif operator == "+":
            self.charge(weigh(left) + weigh(right))
        result = super().call_binop(context, operator, left, right)
        self.charge(weigh(result))
        return result

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """The sandbox's own `str.format`, its widths checked."""
        safe = super().wrap_str_format(value)
        if safe is None:
            return None

        def format(*args: Any, **kwargs: Any) -> str:
            self._check_format(value.__self__, (*args, *kwargs.values()))
            return safe(*args, **kwargs)

        return format

    def _string(self, value: Any) -> Any:
        self._check_text(value)
        return soft_str(value)

    def _check_format(self, format: str, values: Iterable[Any]) -> None:
        values = list(values)
        for value in values:
            self._check_text(value)
        if _WIDE_FORMAT.search(format):
            raise SecurityError("a format with a width of hundreds")
        n_fields = format.count("%") + format.count("{")
        self.charge(100 * n_fields + sum(weigh(value, strict=True) for value in values))

    def _metered(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def metered(*args: Any, **kwargs: Any) -> Any:
            result = function(*args, **kwargs)
            self.charge(weigh(result))
            return self._counted(result) if isinstance(result, Iterator) else result

        return metered

    def _counted(self, items: Iterator[Any]) -> Iterator[Any]:
        for item in items:
            self.charge(0)
            yield item

    def _join(self, values: Iterable[Any], d: str = "", attribute: str | None = None) -> str:
        if attribute is not None:
            values = [self.getitem(value, attribute) for value in values]
        texts = [self.printed(value) for value in values]
        separator = self.printed(d)
        self.charge(len(separator) * len(texts))
        return separator.join(texts)

    def _indent(self, s: Any, width: Any = 4, first: bool = False, blank: bool = False) -> str:
        text = self.printed(s)
        self.charge((text.count("\n") + 1) * (width if isinstance(width, int) else weigh(width)))
        return do_indent(text, width, first, blank)

    def _replace(self, s: Any, old: Any, new: Any, count: Any = -1) -> str:
        text, old, new = self.printed(s), self.printed(old), self.printed(new)
        self.charge(text.count(old) * len(new))
        return text.replace(old, new, -1 if count is None else count)


def _undefined(sandbox: Sandbox) -> type[Undefined]:
    """The kind of what is not there, which knows where it is missed."""

    class Missing(Undefined):
        @property
        def _undefined_message(self) -> str:
            owner = self._undefined_obj
            where = sandbox.path(owner) if isinstance(owner, dict) else None
            if where is None:
                return str(super()._undefined_message)
            return f"{where}.{self._undefined_name} is missing"

    return Missing


def _size(value: Any) -> float:
    return abs(value) if isinstance(value, int | float) else float("inf")


def _raise(message: str) -> None:
    raise TemplateError(message)
