"""A linear with adapters beside it: over all rows, and over ranges of them as in the head."""

from itertools import pairwise
from typing import Any

import numpy as np
import oracles
import pytest
import random_model as rm

from wgtrain import gpu
from wgtrain.engine.graph import Graph, Storage, Tensor, padded
from wgtrain.engine.linear import Linear, linear_rows
from wgtrain.engine.lora import LoraKind
from wgtrain.engine.loss import cross_entropy
from wgtrain.engine.ops import Inputs
from wgtrain.engine.plan import Plan
from wgtrain.engine.products import Rows, product_backward
from wgtrain.engine.structs import step_bytes
from wgtrain.engine.trainables import Trainables
from wgtrain.engine.weight import Weight, plan_weight
from wgtrain.gpu import Limits
from wgtrain.random import key

pytestmark = pytest.mark.gpu
T, N, K, KEY = 21, 149, 45, 77
WHOLE, RANGES = [Rows(0, N)], [Rows(0, 64), Rows(64, 64), Rows(128, 21)]
SEGMENTS = {"one": Limits(), "three": Limits(binding=64 * 4 * padded(K) + 511)}
# Two adapters, of which a product can take only the first along; dropout keeps its dx apart.
STACKS = {"none": [], "lora": [(5, 0.0)], "dropout": [(8, 0.4)], "two": [(3, 0.0), (5, 0.4)]}
Numbers = dict[str, np.ndarray]


def numbers(stack: list[tuple[int, float]]) -> Numbers:
    rng = np.random.default_rng(1)
    shapes = {"w": (N, K), "bias": (1, N), "x": (T, K), "dy": (T, N)}
    for i, (rank, _) in enumerate(stack):
        shapes |= {f"a{i}": (rank, K), f"b{i}": (N, rank)}
    return {name: rng.standard_normal(s, np.float32) for name, s in shapes.items()}


def expected(given: Numbers, stack: list[tuple[int, float]]) -> Numbers:
    """y = x W^T + b + sum of s dropout(x) A^T B^T, and the gradients, in float64."""
    v = {name: array.astype(np.float64) for name, array in given.items()}
    found = {"y": v["x"] @ v["w"].T + v["bias"], "dx": v["dy"] @ v["w"]}
    for i, (rank, p) in enumerate(stack):
        a, b, s = v[f"a{i}"], v[f"b{i}"], 7 / rank
        site, d4 = key(0, "w"), padded(K) // 4
        step = (d4, KEY, site, round(p * 2**24), 1 / (1 - p))
        x = oracles.dropout(v["x"], *step)["y"] if p else v["x"]
        through = s * v["dy"] @ b @ a
        found["dx"] += oracles.dropout(through, *step)["y"] if p else through
        found["y"] += s * x @ a.T @ b.T
        found[f"a{i}"] = s * (v["dy"] @ b).T @ x
        found[f"b{i}"] = s * v["dy"].T @ (x @ a.T)
    return found


class Stage:
    """A graph over arrays that are brought, of which storages are left; T rows."""

    def __init__(self, device: Any):
        self.device, self.g = device, Graph()
        self.storages: list[Storage] = []
        self.arrays: list[tuple[Storage, np.ndarray]] = []

    def storage(self, name: str, columns: int, rows: int = T) -> Storage:
        self.storages.append(Storage(name, "test", 4 * rows * padded(columns)))
        return self.storages[-1]

    def brought(self, name: str, array: np.ndarray) -> Storage:
        storage = self.storage(name, array.shape[1], len(array))
        self.arrays.append((storage, array))
        return storage

    def tensor(self, name: str, array: np.ndarray, rows: str = "T", trains: bool = False) -> Tensor:
        made = Tensor(name, rows, array.shape[1], trains)
        self._copy(self.brought(name, array), made)
        return made

    def left(self, tensor: Tensor) -> Storage:
        storage = self.storage(tensor.name, tensor.cols)
        self._copy(tensor, storage)
        return storage

    def _copy(self, source: Tensor | Storage, target: Tensor | Storage) -> None:
        x, y = (o.window() if isinstance(o, Storage) else o for o in (source, target))
        size = next(o.size for o in (source, target) if isinstance(o, Storage))
        self.g.launch("copy", {"x": x, "y": y}, {"n4": size // 16})

    def weight(self, array: np.ndarray, limits: Limits) -> Weight:
        weight = plan_weight("w", "F32", *array.shape, limits)
        for segment in weight.segments:
            self.storages.append(segment.storage)
            rows = array[segment.first : segment.first + segment.rows]
            self.arrays.append((segment.storage, rows))
        return weight

    def adapter(self, kind: LoraKind, a: np.ndarray, b: np.ndarray) -> Trainables[Any]:
        made = Trainables([kind], self.device.limits, f"adapter {len(self.storages)}")
        made.values.set({"w.lora_a": a, "w.lora_b": b})
        self.storages += made.values.storages + made.gradients.storages
        return made

    def run(self, adapters: list[Trainables[Any]], step: bytes) -> None:
        self.plan = Plan({"all": self.g}, self.storages, T)
        gpu.run(self.plan.build(self.device))
        for storage, array in self.arrays:
            stored = np.zeros((len(array), padded(array.shape[1])), array.dtype)
            stored[:, : array.shape[1]] = array
            self.device.write(storage.buffer, 0, stored)
        for adapter in adapters:
            adapter.open(self.device)
        self.plan.run("all", step, T, T)

    def read(self, storage: Storage, columns: int) -> np.ndarray:
        data = gpu.run(self.device.read(storage.buffer, 0, storage.size))
        return np.frombuffer(data, np.float32).reshape(-1, padded(columns))[:, :columns]


def walk(
    device: Any, limits: Limits, given: Numbers, stack: list[tuple[int, float]], ranges: list[Rows]
) -> Numbers:
    """The same on the GPU; y, dy and the rows of B's gradients by ranges."""
    stage = Stage(device)
    g, weight = stage.g, stage.weight(given["w"], limits)
    adapters = [
        stage.adapter(LoraKind("w", N, K, rank, 7 / rank, p), given[f"a{i}"], given[f"b{i}"])
        for i, (rank, p) in enumerate(stack)
    ]
    made = tuple(t.made(training=True)["w"] for t in adapters)
    linear = Linear(weight, stage.brought("bias", given["bias"]).window(), made)

    x, dx = stage.tensor("x", given["x"], trains=True), Tensor("dx", "T", K)
    applied = linear.apply(g, x, "w", keep=ranges != WHOLE)
    parts = [stage.storage(f"y {rows.first}", rows.count) for rows in ranges]
    for rows, part in zip(ranges, parts, strict=True):
        applied.forward(g, part.window(), rows)
    for rows in ranges:
        dy = stage.tensor(f"dy {rows.first}", given["dy"][:, rows.first : rows.first + rows.count])
        dy = applied.receive(g, dy, rows)
        if ranges == WHOLE:
            applied.input_gradient(g, [(rows, dy)], dx, add=False)
        else:
            product_backward(g, dy, weight, rows, dx, add=rows.first > 0)
        applied.gradient_rows(g, x, dy, rows)
    applied.gradient_rest(g, x)
    if ranges != WHOLE:
        applied.add_inputs(g, dx)
    result = stage.left(dx)
    stage.run(adapters, step_bytes(T, T, dropout_key=KEY))

    y = [stage.read(part, rows.count) for part, rows in zip(parts, ranges, strict=True)]
    found = {"y": np.concatenate(y, 1), "dx": stage.read(result, K)}
    for i, adapter in enumerate(adapters):
        gradients = gpu.run(adapter.gradients.read())
        found |= {f"a{i}": gradients["w.lora_a"], f"b{i}": gradients["w.lora_b"]}
    stage.plan.close()
    return found


@pytest.mark.parametrize("stack", STACKS)
@pytest.mark.parametrize("segments", SEGMENTS)
def test_a_linear_by_ranges_of_rows(device: Any, segments: str, stack: str) -> None:
    """Ranges are columns of the whole, bit by bit where no sum runs over rows; see `expected`."""
    assert len(plan_weight("w", "F32", N, K, SEGMENTS[segments]).segments) == (
        1 if segments == "one" else 3
    )
    given = numbers(STACKS[stack])
    found = [walk(device, SEGMENTS[segments], given, STACKS[stack], r) for r in (WHOLE, RANGES)]
    for name, want in expected(given, STACKS[stack]).items():
        for got in found:
            assert got[name].shape == want.shape
            assert rm.difference(got[name], want) < 1e-6, name
    np.testing.assert_array_equal(found[0]["y"], found[1]["y"])
    for name in found[0]:
        if name.startswith("b"):
            np.testing.assert_array_equal(found[0][name], found[1][name])


HEADS = [(0, 80), (80, 40), (120, 29)]  # of 20 values, four and two; none at a multiple of 64


@pytest.mark.parametrize("stack", STACKS)
@pytest.mark.parametrize("segments", SEGMENTS)
def test_a_linear_of_several_outputs(device: Any, segments: str, stack: str) -> None:
    """They are columns of the one linear, bit by bit; its adapters have one A, one mask, one z."""
    given, stage = numbers(STACKS[stack]), Stage(device)
    weight = stage.weight(given["w"], SEGMENTS[segments])
    adapters = [
        stage.adapter(LoraKind("w", N, K, rank, 7 / rank, p), given[f"a{i}"], given[f"b{i}"])
        for i, (rank, p) in enumerate(STACKS[stack])
    ]
    made = tuple(t.made(training=True)["w"] for t in adapters)
    x = stage.tensor("x", given["x"], trains=True)
    of = Linear(weight, stage.brought("bias", given["bias"]).window(), made)
    outputs = linear_rows(stage.g, x, of, HEADS, ["q", "k", "v"])
    assert [y.name for y in outputs] == ["q", "k", "v"]
    left = [stage.left(y) for y in outputs]
    for y, (first, count) in zip(outputs, HEADS, strict=True):
        dy = stage.tensor(f"dy {first}", given["dy"][:, first : first + count])
        stage.g.pass_gradient(y, dy)
    stage.g.backward()
    result = stage.left(stage.g.gradient(x)[0])
    stage.run(adapters, step_bytes(T, T, dropout_key=KEY))

    y = [stage.read(part, count) for part, (_, count) in zip(left, HEADS, strict=True)]
    found = {"y": np.concatenate(y, 1), "dx": stage.read(result, K)}
    for i, adapter in enumerate(adapters):
        gradients = gpu.run(adapter.gradients.read())
        found |= {f"a{i}": gradients["w.lora_a"], f"b{i}": gradients["w.lora_b"]}
    stage.plan.close()
    for name, want in expected(given, STACKS[stack]).items():
        assert rm.difference(found[name], want) < 1e-6, name
    whole = walk(device, SEGMENTS[segments], given, STACKS[stack], WHOLE)
    for name in whole:
        if name == "y" or name.startswith("b"):
            np.testing.assert_array_equal(found[name], whole[name])


@pytest.mark.parametrize("ranges", [[(0, 80), (80, 40)], [(0, 80), (84, 65)], [(80, 69), (0, 80)]])
def test_outputs_have_to_cover_a_linear(ranges: list[tuple[int, int]]) -> None:
    weight = plan_weight("w", "F32", N, K, Limits())
    x = Tensor("x", "T", K)
    with pytest.raises(AssertionError):
        linear_rows(Graph(), x, Linear(weight), ranges, [f"y{first}" for first, _ in ranges])


def test_an_output_that_nothing_reads_is_told(device: Any) -> None:
    weight = plan_weight("w", "F32", N, K, Limits())
    g, x = Graph(), Tensor("x", "T", K, trains=True)
    q, *_ = linear_rows(g, x, Linear(weight), HEADS, ["q", "k", "v"])
    g.pass_gradient(q, Tensor("dq", "T", 80))
    with pytest.raises(AssertionError, match="nothing reads .'k', 'v'."):
        g.backward()


def test_ranges_cover_segments() -> None:
    """Every row once, none across a segment, wherever a range begins and ends."""
    weight = plan_weight("w", "F32", 1000, 45, Limits(binding=64 * 4 * 48 + 511))
    assert len(weight.segments) == 16
    for edges in ([0, 1000], [0, 64, 128, 640, 960, 1000], [0, 704, 1000]):
        rows = []
        for first, end in pairwise(edges):
            for segment, row, count in Rows(first, end - first).within(weight):
                assert count > 0 and row + count <= segment.rows
                rows += range(segment.first + row, segment.first + row + count)
        assert rows == list(range(1000)), edges


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("stack", STACKS)
def test_cross_entropy_with_adapters_beside_the_head(
    device: Any, stack: str, training: bool
) -> None:
    """Hidden states get the gradient of the logits they make, whether the adapters train or not."""
    given, stage = numbers(STACKS[stack]), Stage(device)
    weight = stage.weight(given["w"], SEGMENTS["three"])
    adapters = [
        stage.adapter(LoraKind("w", N, K, rank, 7 / rank, p), given[f"a{i}"], given[f"b{i}"])
        for i, (rank, p) in enumerate(STACKS[stack])
    ]
    head = Linear(weight, None, tuple(t.made(training)["w"] for t in adapters))
    targets = np.random.default_rng(3).integers(0, N, T).astype(np.uint32)
    names = ("tokens", "positions", "trained", "where")
    windows = dict.fromkeys(names, stage.storage("", 1).window())
    brought = stage.brought("targets", targets[None]).window()
    inputs = Inputs(**windows, ranges={}, targets=brought)
    x = stage.tensor("x", given["x"] / 8, rows="C", trains=True)
    totals = stage.storage("totals", 4, 1)
    cross_entropy(stage.g, x, head, inputs, totals.window(), 64)
    left = stage.left(stage.g.gradient(x)[0])
    stage.run(adapters, step_bytes(T, T, dropout_key=KEY))

    still = STACKS[stack] if training else [(rank, 0.0) for rank, _ in STACKS[stack]]
    values = {**given, "x": given["x"] / 8, "bias": np.zeros((1, N), np.float32)}
    logits = expected(values, still)["y"]
    p = np.exp(logits - logits.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    loss = -np.log(p[np.arange(T), targets]).sum()
    p[np.arange(T), targets] -= 1
    want = expected({**values, "dy": p}, still)
    assert stage.read(totals, 1)[0, 0] == pytest.approx(loss, rel=1e-6)
    assert rm.difference(stage.read(left, K), want["dx"]) < 1e-5
    for i, adapter in enumerate(adapters):
        gradients = gpu.run(adapter.gradients.read())
        for letter in "ab":
            got = gradients[f"w.lora_{letter}"]
            if training:
                assert rm.difference(got, want[f"{letter}{i}"]) < 1e-5
            else:
                assert not got.any()
    stage.plan.close()


@pytest.mark.parametrize("first", [1, 2, 63])
def test_a_range_within_a_vec4_is_refused(first: int) -> None:
    with pytest.raises(AssertionError, match="vec4"):
        Rows(first, 8)
