"""Runs one kernel on the device and compares what it wrote with its oracle.

`check("add", {"a": a, "b": b}, {"rows": "T", "d4": 2}, rows=3)` is a whole test: logical arrays go
in by binding, rows are padded as the engine pads them, what the kernel should write is poisoned
first unless it came in, and the space behind every array is poison too. The oracle gets the same
numbers in float64.
"""

import inspect
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import oracles
import pytest
from random_blocks import dequantised, encoded

from wgtrain.engine.dispatch import Caller
from wgtrain.engine.kernel import Kernel, load_kernel
from wgtrain.engine.structs import step_bytes
from wgtrain.engine.weight import FORMATS, Weight, plan_weight
from wgtrain.gpu import Buffer, Device, Limits, run
from wgtrain.model.weights import repack_places

POISON = 0x7FC0DEAD  # a quiet NaN that no computation makes
# Behind every array lie words that no kernel may use: NaN where it only reads, which shows in its
# results; where it writes a number, since NaN plus anything would look untouched.
READ_GUARD = np.full(64, 0x7FC0BEEF, "<u4").tobytes()
WRITE_GUARD = np.full(64, 0x4B3DEAD5, "<u4").tobytes()

# Relative L2 error allowed, three times what a software adapter makes: a rounding is 6e-8, and WGSL
# allows exp, log and inverseSqrt a few. What only moves bits or adds once is at the end.
TOLERANCES = {
    "glu_backward": 1.5e-6,  # where 1 + g (1 - s) cancels
    "activate_backward": 1.5e-6,
    "attention": 1e-6,
    "attention_decode": 1e-6,
    "attention_backward_q": 2e-6,  # p = exp(score - kept): its error is that of the scores
    "attention_backward_kv": 2e-6,
    **dict.fromkeys(("embed", "gather_rows", "restore_bf16"), 0.0),
    **dict.fromkeys(("add", "add_bias", "scale_rows"), 1e-7),
}
DEFAULT_TOLERANCE = 8e-7
NO_ADAPTER = {  # where a product's test names none
    **dict.fromkeys(("lora_rank", "lora_row", "lora_first", "lora_stride", "lora_outputs"), 0),
    "lora_scale": 0.0,
}


SCALARS = {"f32": 4, "u32": 4, "i32": 4, "vec2<f32>": 8, "vec4<f32>": 16, "vec4<u32>": 16}
SCALARS |= {"vec4<f16>": 8}


def plain(code: str) -> str:
    """WGSL without its comments."""
    return re.sub(r"//.*", "", code)


def nbytes(kind: str, constants: Mapping[str, float]) -> int:
    """Bytes of a WGSL type made of scalars, vectors and arrays."""
    array = re.fullmatch(r"array<(.*),([^,<>]*)>", kind.strip())
    if not array:
        return SCALARS[kind.strip()]
    return nbytes(array[1], constants) * int(eval(array[2].replace("u", ""), {}, dict(constants)))


def workgroup(kernel: Kernel) -> tuple[int, int]:
    """(invocations of a workgroup, bytes of its memory)."""
    code = plain(kernel.code)
    for alias, meaning in re.findall(r"alias\s+(\w+)\s*=\s*([^;]+);", code):
        code = re.sub(rf"\b{alias}\b", meaning, code)
    declared = re.findall(r"var<workgroup>\s*\w+\s*:\s*([^;]+);", code)
    memory = sum(nbytes(kind, kernel.constants) for kind in declared)
    (size,) = re.findall(r"@workgroup_size\((.*?)\)\n", kernel.code)
    sizes = [eval(part.replace("u", ""), {}, dict(kernel.constants)) for part in size.split(",")]
    return math.prod(sizes), memory


@dataclass(frozen=True)
class Packed:
    """A weight as it lies in GPU memory, and the values it stands for, float64 (rows, columns)."""

    type: str
    values: np.ndarray
    raw: np.ndarray  # the bytes of a GGUF
    shape: Weight
    planes: dict[str, np.ndarray]  # words, by the name of their binding

    @property
    def libraries(self) -> dict[str, str]:
        return self.shape.libraries


def pack_weight(values: np.ndarray, type_: str = "F32") -> Packed:
    """Quantises a matrix, see `encoded`, and lays it out with the oracles."""
    raw = encoded(values, type_)
    exact = dequantised(raw, type_).astype(np.float64)
    rows, columns = values.shape
    weight = plan_weight("test", type_, rows, columns, Limits())
    (segment,) = weight.segments
    common = {
        "raw": raw.ravel(),
        "marks": np.zeros(1, np.uint32),
        "planes": np.full(segment.storage.size // 4, POISON, np.uint32),
        "slice_rows": rows,
        "first_row": 0,
        **repack_places(weight, segment),
        "raw_offset": 0,
        "raw_row": raw.nbytes // rows,
    }
    entry = FORMATS[type_]
    known = {**load_kernel(entry.repack, dict(entry.constants)).constants, **common}
    made = call_oracle(entry.repack, known)
    assert not made["marks"][0]
    planes = made["planes"]
    return Packed(type_, exact, common["raw"], weight, split_planes(weight, planes))


def split_planes(weight: Weight, words: np.ndarray) -> dict[str, np.ndarray]:
    """The planes of a weight of one segment; nothing is between them."""
    found, end = {}, 0
    for name, window in weight.operands(*weight.segments).items():
        start, size = window.offset // 4, window.size // 4
        assert np.all(words[end:start] == POISON)
        end = start + size
        found[name] = words[start:end]
    assert end == len(words)
    return found


def call_oracle(name: str, known: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The oracle of a kernel, given those of the `known` values that it names."""
    oracle = getattr(oracles, name)
    return oracle(**{n: known[n] for n in inspect.signature(oracle).parameters if n in known})


def pad_rows(array: np.ndarray) -> np.ndarray:
    """Rows of floats padded to a multiple of four: with zeros, or NaN if a row is not written."""
    missing = -array.shape[-1] % 4
    if array.dtype.kind != "f" or array.ndim > 2 or not missing:
        return array
    fill = np.where(np.isnan(array[..., -1:]), np.nan, 0.0)
    return np.concatenate([array, np.repeat(fill, missing, -1)], -1)


def stored(array: np.ndarray) -> bytes:
    """What goes into a buffer: padded rows, float32, NaN as poison."""
    if array.dtype.kind == "f":
        array = pad_rows(array).astype(np.float32)
        array = np.where(np.isnan(array), np.uint32(POISON), array.view(np.uint32))
    return np.ascontiguousarray(array).tobytes()


def stored_type(array: np.ndarray) -> np.dtype:
    """The type of its values on the GPU."""
    return np.dtype(np.float32) if array.dtype.kind == "f" else array.dtype


def as_float64(value: Any) -> Any:
    """The numbers that reach the GPU, in float64."""
    if isinstance(value, Packed):
        return value.values
    if isinstance(value, float):
        return float(np.float32(value))
    if isinstance(value, np.ndarray) and value.dtype.kind == "f":
        return value.astype(np.float32).astype(np.float64)
    return value


class Checker:
    """Compiles and calls kernels. `errors`: the largest relative error of each so far."""

    def __init__(self, device: Device):
        self.device = device
        self.errors: dict[str, float] = {}
        self._callers: dict[int, tuple[Kernel, Caller]] = {}

    def check(
        self,
        name: str,
        arrays: Mapping[str, Any],
        params: Mapping[str, Any],
        *,
        rows: int = 0,
        step: Mapping[str, Any] | None = None,
        constants: Mapping[str, Any] | None = None,
        tolerance: float | None = None,
        scale: float = 0.0,
        libraries: Mapping[str, str] | None = None,
    ) -> dict[str, np.ndarray]:
        """Compares everything the kernel writes with its oracle, and returns it.

        `libraries` by role, beside that of the weight.
        """
        kernel, params = self._kernel(name, arrays, params, constants, libraries)
        known = {**(libraries or {}), **(constants or {}), **kernel.constants, **params}
        known |= {**(step or {}), **arrays}
        want = call_oracle(name, {n: as_float64(value) for n, value in known.items()})
        written = {slot.name for slot in kernel.slots if slot.access == "read_write"}
        assert set(want) == written, f"kernel '{name}' writes {written}, its oracle {set(want)}"
        shapes = {n: pad_rows(array) for n, array in want.items()}
        got = self.run(
            name,
            arrays,
            params,
            shapes,
            rows=rows,
            step=step,
            constants=constants,
            libraries=libraries,
        )
        base = re.sub("_(tiled|subgroup)$", "", name)
        allowed = TOLERANCES.get(base, DEFAULT_TOLERANCE)
        bound = allowed if tolerance is None else tolerance
        for output, expected in shapes.items():
            where = f"kernel '{name}', {output}, {dict(params)}, {dict(constants or {})}"
            error = compare(got[output], expected, bound, where, scale)
            self.errors[name] = max(self.errors.get(name, 0.0), error)
        return got

    def run(
        self,
        name: str,
        arrays: Mapping[str, Any],
        params: Mapping[str, Any],
        outputs: Mapping[str, np.ndarray],
        *,
        rows: int = 0,
        step: Mapping[str, Any] | None = None,
        constants: Mapping[str, Any] | None = None,
        libraries: Mapping[str, str] | None = None,
    ) -> dict[str, np.ndarray]:
        """Runs a kernel and reads back what has the shapes and types of `outputs`."""
        kernel, params = self._kernel(name, arrays, params, constants, libraries)
        counts = {d: rows if params.get("rows") == d else 0 for d in ("T", "C")}
        block = step_bytes(counts["T"], counts["C"], **(step or {}))
        contents = dict(arrays)
        if isinstance(weight := contents.get("weight"), Packed):
            contents |= weight.planes
        for output, like in outputs.items():
            words = -(-like.size * stored_type(like).itemsize // 4)
            contents.setdefault(output, np.full(words, POISON, "<u4"))
        buffers: dict[str, Buffer] = {}
        try:
            for slot in kernel.slots:
                if slot.access != "uniform":
                    guard = READ_GUARD if slot.access == "read" else WRITE_GUARD
                    data = stored(contents[slot.name]) + guard
                    buffers[slot.name] = self.device.create_buffer(len(data), slot.name)
                    self.device.write(buffers[slot.name], 0, data)
            self._caller(kernel)(
                buffers, params, tokens=counts["T"], trained=counts["C"], step=block
            )
            return {n: self._read(name, buffers[n], n, like) for n, like in outputs.items()}
        finally:
            for buffer in buffers.values():
                self.device.free(buffer)

    def _read(self, kernel: str, buffer: Buffer, output: str, like: np.ndarray) -> np.ndarray:
        raw = run(self.device.read(buffer, 0, buffer.size))
        kind = stored_type(like)
        size = like.size * kind.itemsize
        assert raw[size:] == WRITE_GUARD, f"kernel '{kernel}' wrote past {output}"
        return np.frombuffer(raw, kind, like.size).reshape(like.shape)

    def _kernel(
        self,
        name: str,
        arrays: Mapping[str, Any],
        params: Mapping[str, Any],
        constants: Mapping[str, Any] | None,
        libraries: Mapping[str, str] | None,
    ) -> tuple[Kernel, dict[str, Any]]:
        weight = arrays.get("weight")
        if isinstance(weight, Packed):
            libraries = {**weight.libraries, **(libraries or {})}
            params = {**params, **weight.shape.strides()}
        kernel = load_kernel(name, constants, libraries)
        absent = {n: v for n, v in NO_ADAPTER.items() if n in dict(kernel.params)}
        return kernel, {**absent, **params}

    def _caller(self, kernel: Kernel) -> Caller:
        found = self._callers.get(id(kernel))
        if found is None:
            found = (kernel, run(Caller.open(self.device, kernel)))
            self._callers[id(kernel)] = found
        return found[1]

    def close(self) -> None:
        """Frees every kernel's parameters."""
        for _, caller in self._callers.values():
            caller.close()


def fit(
    checkers: tuple[Checker, Checker], kernel: str, constants: Mapping[str, int] | None
) -> tuple[Checker, dict[str, int]]:
    """A checker whose device has what the kernel needs, and the constants with its size of
    subgroups.
    """
    features = load_kernel(kernel).features
    if not features:
        return checkers[0], dict(constants or {})
    device = checkers[1].device
    if not (features <= device.features and device.subgroup_size):
        pytest.skip(f"the adapter has no {', '.join(features)}")
    return checkers[1], {**(constants or {}), "SUBGROUP": device.subgroup_size}


def make_positions(*lengths: int) -> np.ndarray:
    """The position of each token in its row, for rows of these lengths."""
    return np.concatenate([np.arange(n) for n in lengths]).astype(np.uint32)


def who_sees(*lengths: int, window: int = 0) -> np.ndarray:
    """(T, T) bool: does token t see token s, one of its row and of the last `window` (0 = all)."""
    row, at = np.repeat(np.arange(len(lengths)), lengths), np.arange(sum(lengths))
    back = at[:, None] - at
    return (row[:, None] == row) & (back >= 0) & (back < (window or len(at)))


def make_ranges(sees: np.ndarray) -> dict[str, np.ndarray]:
    """(first, after) of what each token sees and is seen by, from a matrix as of `who_sees`."""

    def ranges(seen: np.ndarray) -> np.ndarray:
        first = seen.argmax(1)
        return np.stack([first, first + seen.sum(1)], 1).astype(np.uint32)

    return {"key_range": ranges(sees), "query_range": ranges(sees.T)}


def compare(
    got: np.ndarray, want: np.ndarray, bound: float, where: str, scale: float = 0.0
) -> float:
    """The relative L2 error of floats; integers must be equal, and NaN in `want` still poison.

    `scale`: the least norm that errors are relative to, for results that cancel.
    """
    if want.dtype.names:
        fields = want.dtype.names
        return max(compare(got[n], want[n], bound, f"{where}, field {n}", scale) for n in fields)
    if want.dtype.kind != "f":
        np.testing.assert_array_equal(got, want, where)
        return 0.0
    untouched = np.isnan(want)
    assert np.all(got.view(np.uint32)[untouched] == POISON), f"{where}: wrote more than it should"
    missing = ~untouched & (got.view(np.uint32) == POISON)
    assert not missing.any(), f"{where}: index {np.argwhere(missing)[0].tolist()} is not written"
    with np.errstate(invalid="ignore"):
        off = np.where(untouched | (got == want), 0.0, np.abs(got - want))
    worst = tuple(int(i) for i in np.unravel_index(off.argmax(), off.shape))
    size = max(float(np.linalg.norm(want[~untouched])), scale)
    error = float(np.linalg.norm(off)) / (size or 1.0)
    assert error <= bound, (
        f"{where}: error {error:.1e} over {bound:.0e}, worst at {worst}: "
        f"{got[worst]} for {want[worst]}"
    )
    return error
