"""WGSL files as kernels: the file is the only signature, this module reads it.

A kernel file is valid WGSL once the libraries its header names are appended. Its header holds

    // grid: ceil_div(rows, TILE), n4      workgroup counts, one to three expressions over Params
                                           fields, constants, rows (T or C), ceil_div, min, max;
                                           or that of a library
    // flops: 2 * rows * n                 optional: work, for cutting submits
    // use: step, weight=weight_f32        libraries of shaders/lib; `role=` ones can be replaced;
                                           a library may name others it needs

Bindings and `struct Params` (u32, i32 and f32 scalars) are parsed from the code. Lines such as
`const NAME: type = value;` are rewritten by name, and a `for` over a constant range marked
`// unroll` is expanded textually; `// unroll N`, a number or a constant, only where it has at most
N turns.
"""

import re
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from wgtrain import gpu

_BINDING = re.compile(
    r"@group\(0\)\s*@binding\((\d+)\)\s*var<\s*(uniform|storage\s*,\s*(?:read_write|read))\s*>"
    r"\s*(\w+)\s*:\s*([^;]+);"
)
_PARAMS = re.compile(r"struct\s+Params\s*\{([^}]*)\}")
_FIELD = re.compile(r"(\w+)\s*:\s*(u32|i32|f32)")
_CONST = re.compile(r"^const\s+(\w+)\s*:\s*(\w+)\s*=\s*([^;]+);", re.MULTILINE)
_UNROLL = re.compile(
    r"^\s*for\s*\(\s*var\s+(\w+)\s*=\s*(\w+)\s*;\s*\1\s*<\s*([^;]+?)\s*;\s*\1\+\+\s*\)"
    r"\s*\{\s*//\s*unroll(?:\s+(\w+))?\s*$"
)
_CODES = {"u32": "I", "i32": "i", "f32": "f"}
DIMENSIONS = (
    "T",
    "C",
)  # per-step sizes: tokens, trained tokens; their index selects step.counts[i]


@dataclass(frozen=True)
class Slot:
    """A binding a kernel declares."""

    number: int
    name: str
    access: str  # "read", "read_write" or "uniform"
    type: str


@dataclass(frozen=True)
class Kernel:
    """One specialised kernel: complete WGSL and its parsed signature."""

    name: str
    code: str
    slots: tuple[Slot, ...]
    params: tuple[tuple[str, str], ...]
    constants: Mapping[str, float]
    grid: tuple[str, ...]
    flops: str = ""

    @property
    def features(self) -> frozenset[str]:
        """The optional features of a device that the code needs."""
        return gpu.features_of(self.code)

    async def compiled(self, device: gpu.Device) -> Any:
        """Its pipeline on a device."""
        slots = [gpu.Slot(slot.number, slot.access) for slot in self.slots]
        return await device.pipeline(self.name, self.code, slots)

    def pack_params(self, values: Mapping[str, Any]) -> bytes:
        """The bytes of `Params`; a dimension name stands for its index. The text of a KeyError or
        ValueError names what is wrong.
        """
        expected = [name for name, _ in self.params]
        if set(values) != set(expected):
            raise KeyError(
                f"kernel '{self.name}' takes parameters {expected}, got {sorted(values)}"
            )
        if "rows" in values:
            check_rows(f"kernel '{self.name}'", values["rows"])
        packed = b"".join(
            struct.pack("<" + _CODES[kind], _index(values[name])) for name, kind in self.params
        )
        return packed.ljust(-(-len(packed) // 16) * 16, b"\0")

    def work(self, values: Mapping[str, Any], tokens: int) -> float:
        """Estimated operations at `tokens` tokens, all trained: the header's `// flops:`, else by
        the grid.
        """
        if not self.flops:
            x, y, z = self.grid_function(values)(tokens, tokens)
            return float(x * y * z * _WORKGROUP_WORK)
        names = {**_FUNCTIONS, **self.constants, **values, "rows": tokens, "T": tokens, "C": tokens}
        return float(eval(_compile_expression(self.name, self.flops), {"__builtins__": {}}, names))

    def grid_function(self, values: Mapping[str, Any]) -> Callable[[int, int], tuple[int, ...]]:
        """Workgroup counts (x, y, z) as a function of T and C, for these parameter values."""
        names = {**_FUNCTIONS, **self.constants, **values}
        dimension = names.get("rows")
        rows = dimension if isinstance(dimension, str) else "rows"
        sizes = [re.sub(r"\brows\b", rows, text) for text in self.grid]
        code = f"lambda T, C: ({', '.join(sizes + ['1'] * (3 - len(sizes)))})"
        function: Callable[[int, int], tuple[int, ...]] = eval(
            _compile_expression(self.name, code), {"__builtins__": {}, **names}
        )
        return function


_WORKGROUP_WORK = 2000.0  # operations of a workgroup whose kernel does not say
_BUILTINS: dict[str, Any] = {"min": min, "max": max}  # of WGSL, in constants
_FUNCTIONS: dict[str, Any] = {"ceil_div": lambda a, b: -(-a // b), **_BUILTINS}


def check_rows(what: str, rows: Any) -> None:
    """ValueError for rows that are no dimension: a number would select another of a step's."""
    if rows not in DIMENSIONS:
        raise ValueError(f"{what}: rows = {rows!r}: {' or '.join(map(repr, DIMENSIONS))} is needed")


def _index(value: Any) -> Any:
    return DIMENSIONS.index(value) if isinstance(value, str) else value


@cache
def _compile_expression(kernel: str, text: str) -> Any:
    return compile(text.strip(), f"<grid of {kernel}>", "eval")


@cache
def _root() -> Any:
    inside = resources.files("wgtrain") / "shaders"
    if inside.is_dir():
        return inside
    return Path(__file__).resolve().parents[2] / "shaders"


@cache
def read_shader(path: str) -> str:
    """The text of `shaders/<path>.wgsl`."""
    return (_root() / f"{path}.wgsl").read_text(encoding="utf-8")


def kernel_names() -> list[str]:
    """All kernels, sorted."""
    return sorted(p.name[:-5] for p in _root().iterdir() if p.name.endswith(".wgsl"))


def shader_paths() -> list[str]:
    """Everything that `read_shader` takes, sorted."""
    library = (_root() / "lib").iterdir()
    return sorted([*kernel_names(), *(f"lib/{p.name[:-5]}" for p in library)])


def load_kernel(
    name: str,
    constants: Mapping[str, Any] | None = None,
    libraries: Mapping[str, str] | None = None,
) -> Kernel:
    """Kernel `name` with constants rewritten and libraries replaced by role.

    Raises KeyError for an unknown constant or role, ValueError for a file that does not follow the
    conventions.
    """
    return _load(
        name,
        tuple(sorted((constants or {}).items())),
        tuple(sorted((libraries or {}).items())),
    )


@cache
def _load(
    name: str, constants: tuple[tuple[str, Any], ...], replaced: tuple[tuple[str, str], ...]
) -> Kernel:
    text = read_shader(name)
    parts = [text, *_with_theirs(_libraries(name, text, dict(replaced))).values()]
    code = "\n".join(parts)
    for constant, value in constants:
        code = _rewrite(name, code, constant, value)
    values = _constants(code)
    code = expand(code, values)
    plain = _strip_comments(code)
    params = _PARAMS.search(plain)
    grid = next(filter(None, (re.search(r"^// grid:(.*)$", x, re.MULTILINE) for x in parts)), None)
    if not grid:
        raise ValueError(f"kernel '{name}' has no '// grid:' line")
    flops = re.search(r"^// flops:(.*)$", text, re.MULTILINE)
    slots = tuple(
        Slot(
            int(number),
            slot,
            "uniform" if "uniform" in access else access.split(",")[1].strip(),
            kind.strip(),
        )
        for number, access, slot, kind in _BINDING.findall(plain)
    )
    return Kernel(
        name=name,
        code=code,
        slots=slots,
        params=_fields(name, params.group(1)) if params else (),
        constants=values,
        grid=tuple(_split(grid.group(1))),
        flops=flops.group(1).strip() if flops else "",
    )


def _fields(name: str, body: str) -> tuple[tuple[str, str], ...]:
    """(name, type) of each field of `Params`."""
    texts = [text.strip() for text in body.split(",") if text.strip()]
    matches = [_FIELD.fullmatch(text) for text in texts]
    wrong = [text for text, match in zip(texts, matches, strict=True) if not match]
    if wrong:
        raise ValueError(f"kernel '{name}': Params holds scalars u32, i32 and f32, not {wrong}")
    return tuple((match[1], match[2]) for match in matches if match)


def _libraries(name: str, text: str, replaced: dict[str, str]) -> list[str]:
    use = re.search(r"^// use:(.*)$", text, re.MULTILINE)
    found = []
    for item in use.group(1).split(",") if use else []:
        role, _, default = item.strip().rpartition("=")
        found.append(replaced.pop(role, default) if role else default)
    if replaced:
        raise KeyError(f"kernel '{name}' has no library role {sorted(replaced)}")
    return found


def _with_theirs(libraries: list[str]) -> dict[str, str]:
    """The text of each library and of those that it uses, each once."""
    found: dict[str, str] = {}
    for library in libraries:
        if library not in found:
            found[library] = text = read_shader(f"lib/{library}")
            own = _with_theirs(_libraries(library, text, {}))
            found |= {name: text for name, text in own.items() if name not in found}
    return found


def _rewrite(name: str, code: str, constant: str, value: Any) -> str:
    pattern = re.compile(rf"^const\s+{constant}\s*:\s*(\w+)\s*=\s*[^;]+;", re.MULTILINE)
    matches = pattern.findall(code)
    if len(matches) != 1:
        raise KeyError(f"kernel '{name}' has {len(matches)} constants named '{constant}', not one")
    kind = matches[0]
    if kind == "bool":
        text = "true" if value else "false"
    elif kind == "f32":
        text = repr(float(value))
    else:
        text = f"{int(value)}{'u' if kind == 'u32' else ''}"
    return pattern.sub(f"const {constant}: {kind} = {text};", code)


def expand(code: str, constants: Mapping[str, float]) -> str:
    """Expands every loop marked `// unroll`; its bounds are literals or integer expressions of
    constants.

    What follows keeps its line number: the first copy takes the lines of the loop, the others its
    last line.
    """
    lines = code.split("\n")
    out: list[str] = []
    position = 0
    while position < len(lines):
        match = _UNROLL.match(lines[position])
        if not match:
            out.append(lines[position])
            position += 1
            continue
        variable, low, high, most = match.groups()
        turns = range(_evaluate(low, constants), _evaluate(high, constants))
        if most and len(turns) > _evaluate(most, constants):
            out.append(lines[position])
            position += 1
            continue
        end = _block_end(lines, position)
        body = lines[position + 1 : end]
        copies = [
            expand(re.sub(rf"(?<!\.)\b{variable}\b", f"{i}u", "\n".join(body)), constants)
            for i in turns
        ]
        first = copies[0].split("\n") if copies else [""] * len(body)
        rest = ("{ " + _one_line(copy) + " }" for copy in copies[1:])
        out += ["{", *first[: len(body)], " ".join(["}", *rest])]
        position = end + 1
    return "\n".join(out)


def _one_line(text: str) -> str:
    return " ".join(_strip_comments(text).split())


def _block_end(lines: list[str], start: int) -> int:
    depth = 0
    for number in range(start, len(lines)):
        line = _strip_comments(lines[number])
        depth += line.count("{") - line.count("}")
        if depth == 0:
            return number
    raise ValueError(f"unclosed loop at line {start + 1}: {lines[start].strip()}")


def _evaluate(text: str, constants: Mapping[str, float]) -> int:
    plain = re.sub(r"\b(\d+)u\b", r"\1", text).replace("/", "//")
    return int(eval(plain, {"__builtins__": {}, **_BUILTINS}, dict(constants)))


def _constants(code: str) -> dict[str, float]:
    """The values of all integer and bool constants, also those made of others."""
    values: dict[str, float] = {"true": 1, "false": 0}
    pending = [(n, v) for n, kind, v in _CONST.findall(code) if kind in ("u32", "i32", "bool")]
    while pending:
        names = {*values, *_BUILTINS}
        known = [(n, v) for n, v in pending if set(re.findall(r"\b[A-Za-z_]\w*", v)) <= names]
        if not known:
            raise ValueError(f"constants {[n for n, _ in pending]} have no constant value")
        values.update({n: _evaluate(v, values) for n, v in known})
        pending = [item for item in pending if item not in known]
    return values


def _strip_comments(text: str) -> str:
    return re.sub(r"//.*", "", text)


def _split(text: str) -> list[str]:
    """Splits at commas outside parentheses."""
    parts, depth, current = [], 0, ""
    for character in text.strip():
        depth += (character == "(") - (character == ")")
        if character == "," and depth == 0:
            parts.append(current)
            current = ""
        else:
            current += character
    return [*parts, current]
