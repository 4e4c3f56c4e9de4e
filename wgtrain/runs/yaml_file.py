"""Settings in YAML: one mapping, read within bounds of size and nesting."""

import re
from pathlib import Path
from typing import Any

from wgtrain.errors import FileError
from wgtrain.runs.paths import read_input

_WHOLE = re.compile(r"[+-]?(0|[1-9][0-9]*)\Z")
_MOST_BYTES = 1 << 20
_MOST_VALUES = 10_000  # with every alias written out
_MOST_SAID = 300  # characters of what PyYAML says


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file that a person named; FileError names the file and the line."""
    return parse_yaml(read_input(path), str(path))


def parse_yaml(data: bytes, name: str) -> dict[str, Any]:
    """The mapping in the bytes of a YAML file; FileError names it and the line."""
    import yaml

    if len(data) > _MOST_BYTES:
        raise FileError(f"{name}: {len(data):,} bytes; settings take at most {_MOST_BYTES:,}")
    try:
        text = data.decode("utf-8")
        # Before the nodes, which are slow: of each collection and each value there is an event.
        for n, _ in enumerate(yaml.parse(text, yaml.SafeLoader)):
            if n > 2 * _MOST_VALUES:
                raise _too_many(name)
        loader = yaml.SafeLoader(text)
        loader.yaml_implicit_resolvers = _with_plain_numbers(loader.yaml_implicit_resolvers)
        try:
            node = loader.get_single_node()
            if node is not None:
                _check(node, name)
            values = None if node is None else loader.construct_document(node)
        finally:
            loader.dispose()
    except FileError:
        raise
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise FileError(f"{name}: not YAML: {_said(error)}") from None
    except Exception as error:  # a value that is none of its tag's: `!!int ''`, `!!bool x`
        what = f"{type(error).__name__}: {_said(error)}"
        raise FileError(
            f"{name}: not YAML: a value that is not what its tag says: {what}"
        ) from None
    if values is not None and not isinstance(values, dict):
        raise FileError(f"{name}: a mapping of settings is needed, not {type(values).__name__}")
    return values or {}


def _too_many(name: str) -> FileError:
    return FileError(f"{name}: more than {_MOST_VALUES:,} values, with its aliases written out")


def _said(error: Exception) -> str:
    return " ".join(str(error).split())[:_MOST_SAID]


def _with_plain_numbers(resolvers: dict[str, Any]) -> dict[str, Any]:
    """Whole numbers in the digits of JSON alone: YAML 1.1 takes `1_6`, `0b1`, `010` for 8, and
    `1:30` for 90. What is no number now stays a text, which the settings check.
    """
    numbers = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
    plain = {
        first: [(tag, pattern) for tag, pattern in found if tag not in numbers]
        for first, found in resolvers.items()
    }
    for first in "+-0123456789":
        plain[first] = [*plain.get(first, []), (numbers[0], _WHOLE)]
    return plain


def _check(root: Any, name: str) -> None:
    """Refuses what aliases blow up, and a setting that stands there twice."""
    import yaml

    sizes: dict[int, int] = {}

    def size(node: Any) -> int:
        if id(node) not in sizes:
            sizes[id(node)] = _MOST_VALUES + 1  # of one that holds itself
            parts = [] if isinstance(node, yaml.ScalarNode) else node.value
            if isinstance(node, yaml.MappingNode):
                parts = [part for pair in parts for part in pair]
            sizes[id(node)] = 1 + sum(map(size, parts))
        return sizes[id(node)]

    if size(root) > _MOST_VALUES:
        raise _too_many(name)
    seen: set[str] = set()
    for key, _ in root.value if isinstance(root, yaml.MappingNode) else []:
        if isinstance(key, yaml.ScalarNode) and key.value != "<<":
            if key.value in seen:
                line = key.start_mark.line + 1
                raise FileError(f"{name} line {line}: {key.value!r} is given twice")
            seen.add(key.value)
