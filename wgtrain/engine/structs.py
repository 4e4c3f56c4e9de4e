"""Structs that shaders share with Python, as numpy types read from the WGSL that declares them."""

import re
from typing import Any

import numpy as np

from wgtrain.engine.kernel import read_shader

_STRUCT = r"struct\s+{name}\s*\{{([^}}]*)\}}"
_FIELD = re.compile(r"(\w+)\s*:\s*(?:vec([24])<)?(u32|i32|f32)>?")


def struct_type(code: str, name: str) -> np.dtype:
    """The type of `struct <name>` in WGSL, laid out as WGSL does.

    Fields are scalars and vectors of two or four; ValueError for others, and if there is no such
    struct.
    """
    body = re.search(_STRUCT.format(name=name), re.sub(r"//.*", "", code))
    if not body:
        raise ValueError(f"there is no struct {name}")
    names, formats, offsets, end, widest = [], [], [], 0, 4
    for text in filter(None, (part.strip() for part in body[1].split(","))):
        field = _FIELD.fullmatch(text)
        if not field:
            raise ValueError(f"struct {name}: '{text}' is neither a scalar nor a vector")
        count = int(field[2] or 1)
        names.append(field[1])
        formats.append((f"<{field[3][0]}4", (count,) if field[2] else ()))
        offsets.append(-(-end // (4 * count)) * 4 * count)  # a vector is aligned to its size
        end, widest = offsets[-1] + 4 * count, max(widest, 4 * count)
    size = -(-end // widest) * widest
    layout = {"names": names, "formats": formats, "offsets": offsets, "itemsize": size}
    return np.dtype(layout)  # type: ignore[call-overload]


STEP = struct_type(read_shader("lib/step"), "Step")  # what a replay reads beside its buffers
_control = read_shader("lib/control")
TOTALS = struct_type(_control, "Totals")
CONTROL = struct_type(_control, "Control")
REPORT = struct_type(_control, "Report")  # an entry of the report ring
RUNNING = struct_type(read_shader("lib/running"), "Running")  # of a token's loss

# Fields of `Step` under which AdamW leaves parameters and moments as they are: all times one.
IDLE_UPDATE = dict.fromkeys(("keep", "beta1", "beta2", "correction1", "correction2", "epsilon"), 1)


def step_bytes(tokens: int = 0, trained: int = 0, **fields: Any) -> bytes:
    """The step uniform for T tokens, C of them trained; other fields by name, zero if not given."""
    block = np.zeros((), STEP)
    block["counts"][:2] = tokens, trained
    with np.errstate(over="ignore"):  # what overflows shows in what is computed with it
        for name, value in fields.items():
            block[name] = value
    return block.tobytes()
