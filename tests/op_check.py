"""Operations of the engine through tape and plan, against a float64 function: one line a check.

The operation is recorded twice over the same inputs, so that gradients are written once and added
to once; every buffer holds NaN before. Its gradients are those of finite differences.
"""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np

from wgtrain import gpu
from wgtrain.engine.graph import Graph, Operand, Storage, Tensor, Window, padded
from wgtrain.engine.plan import Plan
from wgtrain.engine.structs import step_bytes
from wgtrain.engine.trainables import Parameter
from wgtrain.gpu import Device

TOLERANCE = 2e-6  # relative L2 error, of f32 sums over at most some hundred terms
STEP = 1e-4  # of finite differences of fourth order, in float64


class Tape:
    """A graph whose inputs have values and whose outputs are read back; rows are those of T."""

    def __init__(self, tokens: int):
        self.tokens = tokens
        self.graph = Graph()
        self._contents: dict[Storage, np.ndarray] = {}
        self._outputs: dict[str, tuple[Storage, tuple[int, int]]] = {}

    def fixed(self, name: str, array: np.ndarray) -> Window:
        """A window that holds `array`: rows of f32 padded with zeros, or 32-bit integers."""
        if array.dtype.kind == "f":
            columns = array.shape[-1]
            stored = np.zeros((*array.shape[:-1], padded(columns)), np.float32)
            stored[..., :columns] = array
        else:
            stored = array
        storage = Storage(name, "inputs", max(stored.nbytes, 16))
        self._contents[storage] = stored
        return storage.window()

    def put(self, storage: Storage, array: np.ndarray) -> None:
        """Gives a storage of somebody else's its content, f32 rows padded with zeros."""
        self._contents[storage] = self._contents.pop(self.fixed("", array).storage)

    def parameter(self, name: str, array: np.ndarray) -> Parameter:
        """A trainable matrix, whose gradient begins with ones."""
        gradient = self.fixed(f"gradient of {name}", np.ones(array.shape))
        self._outputs[f"d.{name}"] = gradient.storage, array.shape
        return Parameter(name, *array.shape, self.fixed(name, array), gradient)

    def input(self, name: str, array: np.ndarray, trains: bool = True) -> Tensor:
        """A temporary that holds `array` (T, columns)."""
        rows, columns = array.shape
        assert rows == self.tokens
        tensor = self.graph.tensor(name, "T", columns, trains=trains)
        self._copy(self.fixed(name, array), tensor, rows * padded(columns))
        return tensor

    def output(self, name: str, tensor: Tensor, rows: int | None = None) -> None:
        """Reads this temporary back."""
        shape = (self.tokens if rows is None else rows), tensor.cols
        storage = Storage(name, "outputs", shape[0] * padded(tensor.cols) * 4)
        self._copy(tensor, storage.window(), shape[0] * padded(tensor.cols))
        self._outputs[name] = storage, shape
        self._contents[storage] = np.full((shape[0], padded(tensor.cols)), np.nan, np.float32)

    def window(self, name: str, window: Window, shape: tuple[int, int]) -> None:
        """Reads a window back that is a storage of its own."""
        self._outputs[name] = window.storage, shape

    def _copy(self, x: Operand, y: Operand, values: int) -> None:
        self.graph.launch("copy", {"x": x, "y": y}, {"n4": values // 4}, {"GROUPS": 64})

    def run(self, device: Device, trained: int = 0, **step: Any) -> dict[str, np.ndarray]:
        """The outputs, float64, after one replay."""
        plan = Plan({"all": self.graph}, list(self._contents), self.tokens)
        gpu.run(plan.build(device))
        for slot in plan._slots:
            device.write(slot, 0, np.full(slot.size // 4, np.nan, np.float32))
        for storage, array in self._contents.items():
            assert storage.buffer is not None
            device.write(storage.buffer, 0, np.ascontiguousarray(array))
        block = step_bytes(self.tokens, trained, **step)
        plan.run("all", block, self.tokens, trained)
        found = {}
        for name, (storage, (rows, columns)) in self._outputs.items():
            assert storage.buffer is not None
            raw = gpu.run(device.read(storage.buffer, 0, rows * padded(columns) * 4))
            stored = np.frombuffer(raw, np.float32).reshape(rows, padded(columns))
            assert not stored[:, columns:].any(), f"{name}: the padding of its rows is not zero"
            found[name] = stored[:, :columns].astype(np.float64)
        plan.close()
        return found


def check_op(
    device: Device,
    operation: Callable[["Tape", Any], Tensor],
    oracle: Callable[[Any], np.ndarray],
    inputs: dict[str, np.ndarray],
    *,
    parameters: dict[str, np.ndarray] | None = None,
    fixed: dict[str, np.ndarray] | None = None,
    trained: int = 0,
    tolerance: float = TOLERANCE,
    **step: Any,
) -> None:
    """`operation(tape, x)` gives what `oracle(x)` does, and so do its gradients.

    x holds under their names: `inputs` (T, columns) as tensors that train, `parameters` as
    trainable matrices, `fixed` as windows; for the oracle they are arrays. `trained`: C; `step`:
    fields of the step uniform.
    """
    single = {n: _single(array) for n, array in {**inputs, **(parameters or {})}.items()}
    constant = {
        n: a.astype(np.float32) if a.dtype.kind == "f" else a for n, a in (fixed or {}).items()
    }
    tape = Tape(len(next(iter(inputs.values()))))
    operands = SimpleNamespace(
        **{name: tape.input(name, single[name]) for name in inputs},
        **{name: tape.parameter(name, single[name]) for name in parameters or {}},
        **{name: tape.fixed(name, array) for name, array in constant.items()},
    )
    values = {n: a.astype(np.float64) for n, a in single.items()}
    known = {n: a.astype(np.float64) if a.dtype.kind == "f" else a for n, a in constant.items()}

    def function(changed: dict[str, np.ndarray]) -> np.ndarray:
        return oracle(SimpleNamespace(**{**known, **values, **changed}))

    expected = function({})
    upstream = [np.random.standard_normal(expected.shape).astype(np.float32) for _ in range(2)]
    ends = [operation(tape, operands) for _ in upstream]
    for number, (y, dy) in enumerate(zip(ends, upstream, strict=True)):
        tape.output(f"y{number}", y, len(expected))
        gradient = tape.graph.tensor(f"dy{number}", y.rows, y.cols)
        tape._copy(tape.fixed(f"dy{number}", dy), gradient, dy.shape[0] * padded(dy.shape[1]))
        tape.graph.pass_gradient(y, gradient)
    tape.graph.backward()
    for name in inputs:
        tape.output(f"d.{name}", tape.graph.gradient(getattr(operands, name))[0])
    found = tape.run(device, trained, **step)
    for number in range(len(ends)):
        compare(f"y{number}", found[f"y{number}"], expected, tolerance)
    total = sum(dy.astype(np.float64) for dy in upstream)
    for name in single:
        want = finite_differences(
            lambda x, n=name: float((function({n: x}) * total).sum()), values[name]
        )
        got = found[f"d.{name}"] - (name in (parameters or {}))
        compare(f"d.{name}", got, want, tolerance)


def _single(array: np.ndarray) -> np.ndarray:
    """Numbers that f32 holds, and integers as they are."""
    return array.astype(np.float32) if array.dtype.kind == "f" else array


def finite_differences(function: Callable[[np.ndarray], float], at: np.ndarray) -> np.ndarray:
    """The gradient of a scalar at a point, of fourth order."""
    gradient = np.zeros_like(at)
    for index in np.ndindex(*at.shape):
        sides = []
        for steps in (1, -1, 2, -2):
            moved = at.copy()
            moved[index] += steps * STEP
            sides.append(function(moved))
        gradient[index] = (8 * (sides[0] - sides[1]) - (sides[2] - sides[3])) / (12 * STEP)
    return gradient


def compare(name: str, got: np.ndarray, want: np.ndarray, tolerance: float) -> None:
    """Raises AssertionError with the worst index where the relative L2 error is over the bound."""
    assert got.shape == want.shape, f"{name}: {got.shape} is not {want.shape}"
    off = np.abs(got - want)
    worst = tuple(
        int(i) for i in np.unravel_index(np.nan_to_num(off, nan=np.inf).argmax(), off.shape)
    )
    error = float(np.linalg.norm(off)) / max(float(np.linalg.norm(want)), 1e-30)
    assert error <= tolerance, (
        f"{name}: error {error:.1e} over {tolerance:.0e}, worst at {worst}: "
        f"{got[worst]} for {want[worst]}"
    )
