"""Plans: who shares a buffer with whom, what is dropped, what it weighs, where submits are cut."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import random_model as rm

from wgtrain import gpu
from wgtrain.engine.graph import Graph, Launch, Storage, Tensor
from wgtrain.engine.kernel import load_kernel
from wgtrain.engine.plan import Plan
from wgtrain.errors import OutOfMemoryError
from wgtrain.gpu import Device
from wgtrain.infer.model import Model
from wgtrain.infer.session import Session
from wgtrain.train.config import LoraConfig
from wgtrain.train.learner import Learner

pytestmark = pytest.mark.gpu
TOKENS = 40


@pytest.fixture(scope="module")
def model() -> Iterator[Model]:
    opened = rm.load(rm.build(rm.Shape(layers=3)))
    yield opened
    opened.close()


def add(g: Graph, a: Tensor, b: Tensor, y: Tensor | None = None, name: str = "sum") -> Tensor:
    y = y or g.tensor(name, "T", a.cols)
    g.launch("add", {"a": a, "b": b, "y": y}, {"rows": "T", "d4": a.cols // 4})
    return y


def copy(g: Graph, x: Tensor | Storage, y: Tensor | Storage, cols: int) -> None:
    """y = x, by gathering rows at positions of a storage."""
    x_, y_ = (o.window() if isinstance(o, Storage) else o for o in (x, y))
    g.launch("add", {"a": x_, "b": x_, "y": y_}, {"rows": "T", "d4": cols // 4})


def storage(name: str, cols: int = 16, purpose: str = "test") -> Storage:
    return Storage(name, purpose, TOKENS * cols * 4)


def slots(plan: Plan) -> dict[Tensor, int]:
    """The buffer of every temporary, read from what the plan prints of itself."""
    found = {}
    text = iter(str(plan).splitlines())
    for name, launches in plan.launches.items():
        while not next(text).startswith(f"{name}: "):
            pass
        for launch in launches:
            printed = next(text).split(launch.kernel.name, 1)[1].strip().split(", ")
            for (operand, _), part in zip(launch.accesses(), printed, strict=True):
                if isinstance(operand, Tensor):
                    found[operand] = int(part.rsplit("@", 1)[1])
    return found


def assert_nobody_alive_is_overwritten(plan: Plan) -> int:
    """Plays every program: a read must find what its own tensor's last write left; counts reads."""
    place, reads = slots(plan), 0
    for launches in plan.launches.values():
        content: dict[int, Tensor] = {}
        for number, launch in enumerate(launches):
            fresh = set()
            for operand, access in launch.accesses():
                if not isinstance(operand, Tensor):
                    continue
                assert plan.slot_sizes[place[operand]] >= operand.nbytes(plan.max_tokens)
                held = content.get(place[operand])
                if held is operand:
                    reads += 1
                else:
                    assert access == "read_write", f"{number}: {operand.name} was overwritten"
                    fresh.add(operand)
            for operand in fresh:
                assert not still_read(launches, number, content.get(place[operand])), (
                    f"{number}: {operand.name} overwrites {content[place[operand]].name}"
                )
                content[place[operand]] = operand
    return reads


def still_read(launches: list[Launch], after: int, tensor: Tensor | None) -> bool:
    return tensor is not None and any(
        operand is tensor for launch in launches[after:] for operand, _ in launch.accesses()
    )


def assert_aliasing(plan: Plan) -> None:
    """No buffer is bound twice in a dispatch where one of the two may write."""
    place = slots(plan)
    for launches in plan.launches.values():
        for launch in launches:
            bound = [
                (place[operand] if isinstance(operand, Tensor) else id(operand.storage), access)
                for operand, access in launch.accesses()
            ]
            written = [key for key, access in bound if access == "read_write"]
            for key in written:
                assert [k for k, _ in bound].count(key) == 1, launch


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("capture", ["f32", "bf16"])
def test_no_two_live_temporaries_share_a_buffer(
    model: Model, recompute: bool, capture: str
) -> None:
    lora = LoraConfig(rank=4, dropout=0.1, target_modules="all-linear,lm_head")
    learner = rm.planned(
        model, lora, max_tokens=TOKENS, max_row=24, grad_checkpoint=recompute, capture=capture
    )
    plan = learner.plan
    assert assert_nobody_alive_is_overwritten(plan) > 200
    assert_aliasing(plan)
    tensors = slots(plan)
    assert len(plan.slot_sizes) < len(tensors) / 3, "buffers are reused"
    assert set(tensors.values()) == set(range(len(plan.slot_sizes)))
    # Not far from what has to be there at once.
    assert sum(plan.slot_sizes) < 1.6 * live_bytes(plan)


def live_bytes(plan: Plan) -> int:
    """The most bytes of temporaries alive in one launch: no plan can do with less."""
    most = 0
    for launches in plan.launches.values():
        first: dict[Tensor, int] = {}
        last: dict[Tensor, int] = {}
        for number, launch in enumerate(launches):
            for operand, _ in launch.accesses():
                if isinstance(operand, Tensor):
                    first.setdefault(operand, number)
                    last[operand] = number
        for number in range(len(launches)):
            alive = [t for t in first if first[t] <= number <= last[t]]
            most = max(most, sum(t.nbytes(plan.max_tokens) for t in alive))
    return most


def test_temporaries_take_turns() -> None:
    """A chain of any length needs two buffers; the sizes are those of the largest that use them."""
    g = Graph(training=False)
    source, result = storage("source"), storage("result")
    x = g.tensor("first", "T", 16)
    copy(g, source, x, 16)
    for i in range(9):
        x = add(g, x, x, name=f"link {i}")
    copy(g, x, result, 16)
    plan = Plan({"chain": g}, [source, result], TOKENS)
    assert plan.slot_sizes == [TOKENS * 64] * 2
    assert plan.nbytes == 4 * TOKENS * 64 + plan.by_purpose()["parameters of kernels"]
    assert_nobody_alive_is_overwritten(plan)


def test_a_temporary_kept_for_long_keeps_its_buffer() -> None:
    g = Graph(training=False)
    source, result = storage("source"), storage("result")
    kept = g.tensor("kept", "T", 16)
    copy(g, source, kept, 16)
    x = kept
    for _ in range(5):
        x = add(g, x, x)
    x = add(g, x, kept)
    copy(g, x, result, 16)
    plan = Plan({"chain": g}, [source, result], TOKENS)
    assert len(plan.slot_sizes) == 3
    place = slots(plan)
    assert [t for t, slot in place.items() if slot == place[kept]] == [kept]
    assert_nobody_alive_is_overwritten(plan)


def test_launches_whose_results_nothing_reads_are_dropped() -> None:
    g = Graph(training=False)
    source, result = storage("source"), storage("result")
    x, unused = g.tensor("x", "T", 16), g.tensor("unused", "T", 16)
    copy(g, source, x, 16)
    copy(g, source, unused, 16)
    more = add(g, unused, x, name="more of it")
    add(g, more, more, name="nor this")
    copy(g, x, result, 16)
    add(g, x, x, name="after the end")
    plan = Plan({"p": g}, [source, result], TOKENS)
    assert len(plan.launches["p"]) == 2
    assert "unused" not in str(plan) and "more" not in str(plan) and "after" not in str(plan)


def test_programs_share_buffers() -> None:
    """The k-th largest of each program is one buffer, as large as the larger of the two."""

    def chain(name: str, columns: list[int]) -> tuple[Graph, list[Storage]]:
        g = Graph(training=False)
        ends = []
        tensors = []
        for i, cols in enumerate(columns):
            source, result = storage(f"{name} in {i}", cols), storage(f"{name} out {i}", cols)
            x = g.tensor(f"x{i}", "T", cols)
            copy(g, source, x, cols)
            tensors.append((x, result, cols))
            ends += [source, result]
        for x, result, cols in tensors:  # all are alive at once
            copy(g, x, result, cols)
        return g, ends

    first, first_ends = chain("a", [64, 8])
    second, second_ends = chain("b", [32, 16, 4])
    plan = Plan({"a": first, "b": second}, first_ends + second_ends, TOKENS)
    assert plan.slot_sizes == [TOKENS * 4 * c for c in (64, 16, 4)]
    assert_nobody_alive_is_overwritten(plan)


def test_one_buffer_readable_and_writable_is_refused() -> None:
    g = Graph(training=False)
    x = g.tensor("x", "T", 16)
    shared = storage("shared", 32)
    copy(g, shared, x, 16)
    half = TOKENS * 64
    operands = {"a": x, "b": shared.window(0, half), "y": shared.window(half, half)}
    with g.scope("blk.7"):
        g.launch("add", operands, {"rows": "T", "d4": 4})
    with pytest.raises(AssertionError, match=r"blk\.7 add binds one buffer readable and writable"):
        Plan({"p": g}, [shared], TOKENS)
    # Read twice is allowed.
    g = Graph(training=False)
    result = storage("result")
    operands = {"a": shared.window(0, half), "b": shared.window(half, half), "y": result.window()}
    g.launch("add", operands, {"rows": "T", "d4": 4})
    Plan({"p": g}, [shared, result], TOKENS)


def test_reading_what_nobody_wrote_is_refused() -> None:
    g = Graph(training=False)
    result = storage("result")
    copy(g, g.tensor("never written", "T", 16), result, 16)
    with pytest.raises(AssertionError, match="never written is read before it is written"):
        Plan({"p": g}, [result], TOKENS)


def test_a_launch_takes_the_slots_of_its_kernel_and_no_other() -> None:
    g = Graph()
    x = g.tensor("x", "T", 16)
    params = {"rows": "T", "d4": 4}
    with pytest.raises(KeyError, match="kernel 'add' binds"):
        g.launch("add", {"a": x, "y": x}, params)
    with pytest.raises(KeyError, match="kernel 'add' binds"):
        g.launch("add", {"a": x, "b": x, "y": x, "z": x}, params)
    result = storage("result")
    g.launch("add", {"a": x, "b": x, "y": result.window()}, {"rows": "T"})
    g.launches.insert(0, Launch(g.launches[0].kernel, {"a": result.window(), "y": x}, params, ""))
    with pytest.raises(KeyError, match="kernel 'add' takes parameters"):
        Plan({"p": g}, [result], TOKENS)


@pytest.mark.parametrize("recompute", [False, True])
def test_bytes_are_exact_and_sum_up(model: Model, recompute: bool) -> None:
    before = model.device.allocated
    learner = rm.planned(
        model, LoraConfig(rank=3), max_tokens=37, max_row=21, grad_checkpoint=recompute
    )
    assert model.device.allocated == before, "planning allocates nothing"
    planned = learner.nbytes
    purposes = learner.plan.by_purpose()
    assert sum(purposes.values()) == planned == learner.plan.nbytes
    assert list(purposes.values()) == sorted(purposes.values(), reverse=True)
    assert {"activations", "adapter", "gradients", "optimizer", "inputs"} <= set(purposes)
    assert purposes["optimizer"] == 2 * purposes["adapter"] == 2 * purposes["gradients"]
    assert purposes["adapter"] >= 4 * learner.parameter_count
    gpu.run(learner.build())
    assert model.device.allocated == before + planned
    assert learner.nbytes == planned, "building changes nothing"
    learner.close()
    assert model.device.allocated == before


def test_a_plan_prints_itself(model: Model) -> None:
    learner = rm.planned(model, LoraConfig(rank=4), max_tokens=TOKENS, max_row=24)
    text = str(learner.plan)
    lines = text.splitlines()
    assert f"{TOKENS} tokens" in lines[0] and f"{learner.nbytes:,} bytes" in lines[0]
    for purpose, size in learner.plan.by_purpose().items():
        assert f"  {purpose}: {size:,}" in lines
    for name, launches in learner.plan.launches.items():
        at = lines.index(f"{name}: {len(launches)} dispatches")
        for number, launch in enumerate(launches):
            line = lines[at + 1 + number]
            assert line.split()[0] == str(number) and launch.kernel.name in line
    norm = next(line for line in lines if " rms_norm " in line)
    assert "blk.0" in norm and "embed(T,64)@" in norm and "*blk.0.attn_norm(T,64)@" in norm
    assert max(map(len, lines)) < 400


def refusing(
    model: Model, make: Callable[[], Learner], **limits: int
) -> tuple[OutOfMemoryError, Learner]:
    """Builds a learner under smaller limits; nothing may be allocated."""
    learner = make()
    device = model.device
    kept, created = device.limits, []
    create = device.create_buffer
    device.limits = replace(kept, **limits)
    device.create_buffer = lambda *a, **k: created.append(a) or create(*a, **k)  # type: ignore
    before = device.allocated
    try:
        with pytest.raises(OutOfMemoryError) as caught:
            gpu.run(learner.build())
    finally:
        device.limits = kept
        del device.create_buffer
    assert not created, created
    assert device.allocated == before
    return caught.value, learner


def test_a_step_too_large_for_a_binding_is_refused_before_anything_is_allocated(
    model: Model,
) -> None:
    def make() -> Learner:
        return rm.planned(model, LoraConfig(rank=4), max_tokens=600, max_row=64)

    error, learner = refusing(model, make, binding=128 << 10)
    text = str(error)
    assert "600 tokens" in text and "131,072" in text and "batch_size" in text, text
    assert "blk.0" in text or "logits" in text, text
    error, _ = refusing(model, make, buffer=128 << 10)
    assert "131,072" in str(error)
    gpu.run(learner.build())  # with the limits there really are
    learner.close()


def test_a_step_with_too_many_workgroups_is_refused(model: Model) -> None:
    def make() -> Learner:
        return rm.planned(model, LoraConfig(rank=4), max_tokens=600, max_row=64)

    error, _ = refusing(model, make, workgroups=500)
    assert "600 tokens" in str(error) and "500" in str(error) and "batch_size" in str(error)
    # Also where a kernel takes more workgroups than there are tokens.
    wide = rm.load(rm.build(rm.Shape(layers=1, vocabulary=3000)))
    error, _ = refusing(
        wide,
        lambda: rm.planned(wide, LoraConfig(rank=4), max_tokens=8, max_row=8),
        workgroups=20,
    )
    assert "8 tokens" in str(error) and "allows 20" in str(error)
    wide.close()


def test_a_plan_beyond_the_budget_is_refused_before_anything_is_allocated(model: Model) -> None:
    learner = rm.planned(model, LoraConfig(rank=4), max_tokens=600, max_row=64)
    device = model.device
    kept, created, create = device.budget, [], device.create_buffer
    device.create_buffer = lambda *a, **k: created.append(a) or create(*a, **k)  # type: ignore
    before = device.allocated
    try:
        device.budget = before + learner.nbytes - 1
        with pytest.raises(OutOfMemoryError) as caught:
            gpu.run(learner.build())
        assert not created and device.allocated == before
        text = str(caught.value)
        assert f"{learner.nbytes:,}" in text and f"{device.budget:,}" in text, text
        assert "activations" in text and "batch_size" in text, text
        device.budget += 1
        gpu.run(learner.build())
        assert device.allocated == device.budget
        learner.close()
        assert device.allocated == before
    finally:
        device.budget = kept
        del device.create_buffer


def test_a_build_that_fails_frees_what_it_made(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner = rm.planned(model, LoraConfig(rank=4), max_tokens=TOKENS, max_row=24)
    before = model.device.allocated
    for method in ("bind", "pipeline", "program"):
        with monkeypatch.context() as patch:

            def fail(*_: object) -> None:
                raise OutOfMemoryError("the driver has no more")

            patch.setattr(model.device, method, fail)
            with pytest.raises(OutOfMemoryError, match="no more"):
                gpu.run(learner.build())
        assert model.device.allocated == before, method
    # At any buffer the driver may have no more.
    create, left = model.device.create_buffer, [0]

    def scarce(*arguments: object, **options: object) -> object:
        left[0] -= 1
        if left[0] < 0:
            raise OutOfMemoryError("the driver has no more")
        return create(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(model.device, "create_buffer", scarce)
    total = len(learner.plan.storages) + len(learner.plan.slot_sizes) + 2
    for enough in (0, 1, total // 2, total - 3, total - 1):
        left[0] = enough
        with pytest.raises(OutOfMemoryError, match="no more"):
            gpu.run(learner.build())
        assert model.device.allocated == before, enough
    left[0] = total
    gpu.run(learner.build())
    assert left[0] == 0
    learner.close()
    assert model.device.allocated == before


class Recorder:
    """Stands for a device where only the cuts matter."""

    def __init__(self) -> None:
        self.cuts: list[list[int]] = []

    def write(self, *_: object) -> None:
        pass

    def run(self, program: object, counts: np.ndarray, cuts: list[int]) -> None:
        self.cuts.append(list(cuts))


def test_submits_hold_bounded_work(model: Model) -> None:
    learner = rm.learner(model)
    plan, device = learner.plan, model.device
    work = plan.programs["micro"].work
    assert all(w > 0 for w in work)
    recorder = Recorder()
    plan._device = recorder  # type: ignore[assignment]
    step = bytes(64)
    try:
        for limit in (sum(work) * 2, sum(work) / 3, sum(work) / 20, max(work) / 2, 1.0):
            plan.work_limit = limit
            for tokens in (TOKENS, TOKENS // 4):
                plan.run("micro", step, tokens, tokens)
                cuts = recorder.cuts.pop()
                assert cuts == sorted(set(cuts)) and all(0 < c < len(work) for c in cuts)
                scale = tokens / TOKENS
                spans = list(pairwise([0, *cuts, len(work)]))
                parts = [sum(work[a:b]) * scale for a, b in spans]
                for (a, b), part in zip(spans, parts, strict=True):
                    assert part <= limit * 1.0001 or b - a == 1, "only a single dispatch is more"
                # And no more submits than needed: two neighbours together are above the limit.
                for a, b in pairwise(parts):
                    assert a + b > limit
        assert len(plan.programs["micro"].cuts(1.0, 1.0)) == len(work) - 1
    finally:
        plan._device = device
    learner.close()


def test_cuts_change_no_bit(model: Model) -> None:
    rng = np.random.default_rng(2)
    batch = rm.batch(rng, [13, 9, 17], model.config.vocabulary)
    found = []
    for limit in (1e30, 1e5, 1.0):
        learner = rm.learner(model)
        learner.plan.work_limit = limit
        learner.micro(batch)
        found.append(gpu.run(learner.gradients()))
        learner.close()
    for other in found[1:]:
        for name in found[0]:
            np.testing.assert_array_equal(other[name], found[0][name])


def test_waiting_for_work_makes_no_submit_shorter(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two equal steps leave the same limit, though the host did something else before each."""
    now = [0.0]
    monkeypatch.setattr("wgtrain.train.learner.time", SimpleNamespace(perf_counter=lambda: now[0]))
    learner = rm.learner(model)
    batch = rm.batch(np.random.default_rng(4), [13, 9], model.config.vocabulary)
    limits = []
    for step, pause in enumerate((1.0, 1000.0), 1):
        now[0] += pause
        learner.micro(batch)
        learner.update(step=step, learning_rate=0.0)
        now[0] += 0.5
        gpu.run(learner.reports())
        limits.append(learner.plan.work_limit)
    assert limits[0] == limits[1]
    learner.close()


def test_a_large_step_takes_several_submits(device: Device) -> None:
    """Before anything was measured, the first estimate cuts a step of real size."""
    from wgtrain.engine.plan import FIRST_SUBMIT

    model = rm.load(
        rm.build(rm.Shape(width=256, heads=4, head_size=64, feed_forward=512, vocabulary=2000))
    )
    learner = rm.planned(model, LoraConfig(rank=8), max_tokens=2048, max_row=512)
    gpu.run(learner.build())
    program = learner.plan.programs["micro"]
    assert len(program.cuts(FIRST_SUBMIT, 1.0)) >= 3
    assert learner.plan.total_work("micro", 1024) == pytest.approx(sum(program.work) / 2)
    model.close()


def test_a_session_is_planned_alike(model: Model) -> None:
    before = model.device.allocated
    session = Session(model.device, model.base, {}, 33)
    assert_nobody_alive_is_overwritten(session.plan)
    assert_aliasing(session.plan)
    gpu.run(session.open())
    assert model.device.allocated == before + session.plan.nbytes
    session.close()
    assert model.device.allocated == before


def test_a_profile_names_every_launch_and_trains_nothing(model: Model) -> None:
    batch = rm.batch(np.random.default_rng(2), [13, 9, 17], model.config.vocabulary)
    learner = rm.learner(model)

    def state() -> list[dict[str, np.ndarray]]:
        return [gpu.run(learner.parameters()), *gpu.run(learner.moments())]

    learner.micro(batch)
    learner.update(step=1, learning_rate=0.01)
    assert len(gpu.run(learner.reports())) == 1
    before = state()
    profile = gpu.run(learner.profile(batch))
    launches = [*learner.plan.launches["micro"], *learner.plan.launches["update"]]
    assert [launch for launch, _ in profile] == launches
    assert all(seconds >= 0 for _, seconds in profile) and sum(s for _, s in profile) > 0
    for old, new in zip(before, state(), strict=True):
        for name in old:
            np.testing.assert_array_equal(new[name], old[name])
    # What comes after starts from an empty window.
    again = rm.learner(model)
    for each in (again, learner):
        if each is again:
            each.set_parameters(before[0])
            each.set_moments(before[1], before[2])
        each.micro(batch)
        each.update(step=2, learning_rate=0.01)
    assert gpu.run(learner.reports()) == gpu.run(again.reports())
    learner.close()
    again.close()


@pytest.mark.parametrize("rows", [0, 1, 5, "D", None])
def test_rows_that_are_no_dimension_are_refused(rows: Any) -> None:
    """A number would have selected another of a step's numbers, or one past them."""
    kernel = load_kernel("add")
    assert kernel.pack_params({"rows": "C", "d4": 3})[:8] == bytes([1, 0, 0, 0, 3, 0, 0, 0])
    wanted = f"rows = {rows!r}: 'T' or 'C' is needed"
    with pytest.raises(ValueError, match=f"kernel 'add': {wanted}"):
        kernel.pack_params({"rows": rows, "d4": 3})
    with pytest.raises(ValueError, match=f"tensor 'x': {wanted}"):
        Graph().tensor("x", rows, 8)
