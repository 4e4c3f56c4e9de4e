"""The compiled training plan: finite differences, recomputation, packed captures, targets."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import random_model as rm

from wgtrain import gpu
from wgtrain.engine.graph import Tensor
from wgtrain.engine.tuning import DEFAULT_CPU, DEFAULT_GPU
from wgtrain.errors import OptionError
from wgtrain.infer.model import Model
from wgtrain.model.layers import Layer, QueryScale, Rope
from wgtrain.model.rope import Yarn
from wgtrain.train.config import LoraConfig
from wgtrain.train.learner import Learner

pytestmark = pytest.mark.gpu
SHAPES = {
    "llama": rm.Shape(head_size=12, width=60, heads=3, kv_heads=1, feed_forward=100),
    "qwen2": rm.Shape(architecture="qwen2", tied=True, vocabulary=130),
    "qwen3": rm.Shape(architecture="qwen3", head_size=20, vocabulary=67),
}
LENGTHS = [13, 1, 9, 17]
LAYERS = (
    Layer(Rope(1e4, 16, interleaved=True), window=5, softcap=1.5),
    Layer(Rope(1e2, 8, interleaved=False)),
)
STRETCHED = (  # cos and sin are no longer those of a turn alone
    Layer(Rope(1e2, 12, interleaved=True, scaling=Yarn(4.0, 16, 2.0, 0.5), attn_factor=1.2)),
    Layer(None, window=7, query_scale=QueryScale(0.3, 4)),
)
KNOBS = {
    "layers that differ": {"layers": LAYERS},
    "factors, caps and stretched layers": {
        "layers": STRETCHED,
        "softcap": 3.0,
        "embedding_scale": 5.0,
        "residual_scale": 0.4,
        "logit_scale": 2.5,
        "attention_scale": 0.09,
    },
}


@pytest.fixture(scope="module", params=[*SHAPES, *KNOBS])
def model(request: pytest.FixtureRequest) -> Iterator[Model]:
    opened = rm.load(rm.build(SHAPES.get(request.param, SHAPES["qwen2"])))
    opened.config = replace(opened.config, **KNOBS.get(request.param, {}))
    opened.base = replace(opened.base, config=opened.config)
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def llama() -> Iterator[Model]:
    opened = rm.load(rm.build(SHAPES["llama"]))
    yield opened
    opened.close()


def batches(model: Model, n: int = 1, seed: int = 3) -> list[Any]:
    rng = np.random.default_rng(seed)
    return [rm.batch(rng, LENGTHS, model.config.vocabulary) for _ in range(n)]


def gradients(learner: Learner, batch: Any, *, dropout_key: int = 0) -> dict[str, np.ndarray]:
    learner.micro(batch, dropout_key=dropout_key)
    found = gpu.run(learner.gradients())
    learner.update(step=1, learning_rate=0.0)  # ends the window, changes nothing
    gpu.run(learner.reports())
    return found


def assert_close(
    got: dict[str, np.ndarray], expected: dict[str, np.ndarray], tolerance: float
) -> None:
    assert list(got) == list(expected)
    errors = {name: rm.difference(got[name], expected[name]) for name in expected}
    worst = max(errors, key=lambda name: errors[name])
    assert errors[worst] <= tolerance, f"{worst}: {errors[worst]:.2e}"


def test_gradients_are_those_of_finite_differences(model: Model) -> None:
    targets = "all-linear" if model.config.tied_head else "all-linear,lm_head"
    learner = rm.learner(model, LoraConfig(rank=4, alpha=8.0, target_modules=targets))
    assert model.base.config is model.config  # the learner's is the former
    [batch] = batches(model)
    found = gradients(learner, batch)
    parameters = gpu.run(learner.parameters())
    assert list(found) == list(parameters)
    rng = np.random.default_rng(5)

    def loss(direction: dict[str, np.ndarray], t: float) -> float:
        learner.set_parameters({n: p + np.float32(t) * direction[n] for n, p in parameters.items()})
        return gpu.run(learner.evaluate([batch]))[0]

    # One direction along the gradient, where noise matters least, and others at random, each
    # within one kind of matrix so that none hides behind another.
    kinds = sorted({name.split(".", 2)[-1] if "blk" in name else name for name in found})
    directions = [found] + [
        {
            name: rng.standard_normal(g.shape).astype(np.float32) * np.abs(g).mean()
            + 0.5 * g * float(name.endswith(kind))
            if name.endswith(kind)
            else np.zeros_like(g)
            for name, g in found.items()
        }
        for kind in kinds
    ]
    for number, direction in enumerate(directions):
        norm = np.sqrt(sum(float((d.astype(np.float64) ** 2).sum()) for d in direction.values()))
        unit = {name: (d / norm).astype(np.float32) for name, d in direction.items()}
        expected = sum(float((unit[n].astype(np.float64) * found[n]).sum()) for n in found)
        # Fourth order, because losses are f32 and h cannot be small: a change of about 0.5.
        h = min(0.5 / abs(expected), 0.05)
        near, far = loss(unit, h) - loss(unit, -h), loss(unit, 2 * h) - loss(unit, -2 * h)
        measured = (8 * near - far) / (12 * h)
        what = "along the gradient" if number == 0 else kinds[number - 1]
        assert measured == pytest.approx(expected, rel=5e-3, abs=5e-3), what
    learner.close()


@pytest.mark.parametrize("rank", [4, 24])
def test_the_kernels_of_gpus_give_the_same_gradients(llama: Model, rank: int) -> None:
    [batch] = batches(llama)
    lora = LoraConfig(rank=rank, alpha=8.0, target_modules="all-linear,lm_head")
    found, kernels = [], []
    for table in (DEFAULT_CPU, DEFAULT_GPU):
        learner = rm.learner(llama, lora, tuning=table)
        found.append(gradients(learner, batch))
        kernels.append({x.kernel.name for x in learner.plan.launches["micro"]})
        learner.close()
    assert not any(name.endswith(("_tiled", "_split")) for name in kernels[0])
    products = {f"matmul_{product}" for product in ("nt", "nn", "tn")}
    assert products <= kernels[0] and not products & kernels[1]
    assert_close(found[1], found[0], 1e-5)


def test_a_long_sum_over_rows_of_a_weight_goes_in_panels() -> None:
    model = rm.load(rm.build(rm.Shape(vocabulary=1601)), limits=None)
    lora = LoraConfig(rank=4, alpha=8.0, target_modules="all-linear,lm_head")
    [batch] = batches(model)
    found = []
    try:
        for table in (None, DEFAULT_CPU):
            learner = rm.learner(model, lora, tuning=table)
            found.append(gradients(learner, batch))
            launches = learner.plan.launches["micro"]
            learner.close()
            if table is None:
                panels = [x for x in launches if x.kernel.name == "matmul_nn_subgroup"]
                if not panels:
                    pytest.skip("needs an adapter whose products run over subgroups")
                assert [x.params["n"] for x in panels[:2]] == [804, 797]
        assert_close(found[0], found[1], 1e-5)
    finally:
        model.close()


def test_evaluation_sums_loss_and_counts(llama: Model) -> None:
    learner = rm.learner(llama)
    two = batches(llama, 2)
    single = [gpu.run(learner.evaluate([batch])) for batch in two]
    loss, count = gpu.run(learner.evaluate(two))
    assert loss == single[0][0] + single[1][0]
    assert count == sum(int((batch.targets >= 0).sum()) for batch in two)
    # By the logits of another plan, in float64.
    adapterless = rm.planned(llama, LoraConfig(rank=4), max_tokens=40, max_row=24)
    gpu.run(adapterless.build())
    expected, batch, start = 0.0, two[0], 0
    for length in LENGTHS:
        tokens = batch.tokens[start : start + length].tolist()
        logits = llama.logits(tokens).astype(np.float64)
        logits -= logits.max(1, keepdims=True)
        logs = logits - np.log(np.exp(logits).sum(1, keepdims=True))
        for i, target in enumerate(batch.targets[start : start + length]):
            expected -= logs[i, target] if target >= 0 else 0.0
        start += length
    loss, _ = gpu.run(adapterless.evaluate([batch]))
    assert loss == pytest.approx(expected, rel=1e-6)
    learner.close()
    adapterless.close()


@pytest.mark.parametrize(("dropout", "capture"), [(0.0, "f32"), (0.3, "f32"), (0.3, "bf16")])
def test_recomputed_gradients_are_the_same_bits(model: Model, dropout: float, capture: str) -> None:
    [batch] = batches(model)
    found = []
    for recompute in (False, True):
        lora = LoraConfig(rank=4, alpha=8.0, dropout=dropout)
        learner = rm.learner(model, lora, grad_checkpoint=recompute, capture=capture)
        found.append((gradients(learner, batch, dropout_key=99), learner.nbytes))
        learner.close()
    (kept, kept_bytes), (recomputed, recomputed_bytes) = found
    if capture == "f32":
        for name, expected in kept.items():
            np.testing.assert_array_equal(recomputed[name], expected, err_msg=name)
    else:  # the block's input is packed too
        assert_close(recomputed, kept, 0.05)
    assert recomputed_bytes < kept_bytes


def test_recomputing_saves_memory_with_depth() -> None:
    sizes = {}
    for layers in (2, 6):
        model = rm.load(rm.build(replace(SHAPES["llama"], layers=layers)))
        for recompute in (False, True):
            learner = rm.planned(
                model, LoraConfig(rank=4), max_tokens=256, max_row=256, grad_checkpoint=recompute
            )
            sizes[layers, recompute] = learner.plan.by_purpose()["activations"]
        model.close()
    kept = sizes[6, False] - sizes[2, False]
    recomputed = sizes[6, True] - sizes[2, True]
    # Of each of the four blocks only its input stays, beside a remainder of the packing.
    inputs = 4 * 256 * 60 * 4
    assert inputs <= recomputed < 1.5 * inputs < kept / 5, sizes


def test_dropout_follows_its_key(llama: Model) -> None:
    [batch] = batches(llama)
    learner = rm.learner(llama, LoraConfig(rank=4, alpha=8.0, dropout=0.3))
    first, again = (gradients(learner, batch, dropout_key=1) for _ in range(2))
    other = gradients(learner, batch, dropout_key=2)
    for name, expected in first.items():
        np.testing.assert_array_equal(again[name], expected)
        assert rm.difference(other[name], expected) > 0.01, name
    loss = gpu.run(learner.evaluate([batch]))
    learner.close()
    plain = rm.learner(llama, LoraConfig(rank=4, alpha=8.0))
    assert gpu.run(plain.evaluate([batch])) == loss  # evaluation drops nothing
    plain.close()


def test_the_mean_over_dropout_masks_is_the_loss_without(llama: Model) -> None:
    """1 / (1 - p) keeps the expectation: mean losses come close, with any mask they differ."""
    [batch] = batches(llama)
    learner = rm.learner(llama, LoraConfig(rank=4, alpha=0.5, dropout=0.5))
    expected, count = gpu.run(learner.evaluate([batch]))
    losses = []
    for key in range(1, 25):
        learner.micro(batch, dropout_key=key)
        learner.update(step=key, learning_rate=0.0)
    for report in gpu.run(learner.reports()):
        assert report.count == count and report.finite
        losses.append(report.loss * count)
    learner.close()
    spread = float(np.std(losses))
    assert spread > 1e-4
    assert abs(np.mean(losses) - expected) < 4 * spread / np.sqrt(24) + 1e-3 * expected


def test_packed_captures_are_close_and_smaller(model: Model) -> None:
    [batch] = batches(model)
    found, sizes = [], []
    for capture in ("f32", "bf16"):
        learner = rm.learner(model, capture=capture)
        found.append(gradients(learner, batch))
        sizes.append(learner.nbytes)
        learner.close()
        deep = rm.planned(model, LoraConfig(rank=4), max_tokens=512, max_row=512, capture=capture)
        sizes.append(deep.plan.by_purpose()["activations"])
    exact, packed = found
    assert_close(packed, exact, 0.03)
    differing = [name for name in exact if rm.difference(packed[name], exact[name]) > 1e-5]
    assert len(differing) > len(exact) / 2, "nothing was packed"
    assert sizes[3] < 0.88 * sizes[1], sizes


def test_layers_below_the_first_adapter_get_no_gradient_work() -> None:
    model = rm.load(rm.build(replace(SHAPES["llama"], layers=4)))
    counts = {}
    for layers in ("all", "1", "0-0", "2"):
        learner = rm.planned(model, LoraConfig(rank=4, layers=layers), max_tokens=40, max_row=24)
        launches = learner.plan.launches["micro"]
        counts[layers] = len(launches)
        if layers == "1":
            backward = [x for x in launches if "backward" in x.kernel.name]
            assert backward and {x.label for x in launches if x.kernel.name == "matmul_tn"} <= {""}
            names = [
                operand.name
                for launch in launches
                for operand, access in launch.accesses()
                if isinstance(operand, Tensor) and access == "read_write"
            ]
            gradients_ = {name for name in names if name.startswith("d.")}
            assert gradients_ and not [n for n in gradients_ if "blk." in n and "blk.3" not in n]
            # One block of forward beyond, and no attention backward but its own.
            assert len([x for x in launches if x.kernel.name == "attention_backward_q"]) == 1
            assert len([x for x in launches if x.kernel.name == "attention"]) == 4
            assert {name.split(".")[1] for name in learner.shapes} == {"3"}
            assert "d.blk.3.attn_norm" not in names, "nothing trains below"
    assert counts["1"] < counts["2"] < counts["all"]
    assert counts["1"] < counts["0-0"] < counts["all"]
    # The gradients there are those of an adapter everywhere, at equal parameters.
    [batch] = batches(model)
    everywhere = rm.learner(model)
    full_parameters = gpu.run(everywhere.parameters())
    last = rm.learner(model, LoraConfig(rank=4, alpha=8.0, layers="1"))
    zeros = {
        name: np.zeros_like(p) if name.endswith("lora_b") and "blk.3" not in name else p
        for name, p in full_parameters.items()
    }
    everywhere.set_parameters(zeros)
    last.set_parameters({name: full_parameters[name] for name in last.shapes})
    full, part = gradients(everywhere, batch), gradients(last, batch)
    assert_close(part, {name: full[name] for name in part}, 1e-6)
    model.close()


@pytest.mark.parametrize("targets", ["attn_q", "v_proj,down_proj", "attn_k,attn_output", "ffn_up"])
def test_targets_are_a_subset(llama: Model, targets: str) -> None:
    [batch] = batches(llama)
    everything = rm.learner(llama)
    parameters = gpu.run(everything.parameters())
    some = rm.learner(llama, LoraConfig(rank=4, alpha=8.0, target_modules=targets))
    names = {"v_proj": "attn_v", "down_proj": "ffn_down"}
    wanted = {names.get(t, t) for t in targets.split(",")}
    assert {name.split(".")[2] for name in some.shapes} == wanted
    everything.set_parameters(
        {
            name: np.zeros_like(p) if name.endswith("lora_b") and name not in some.shapes else p
            for name, p in parameters.items()
        }
    )
    some.set_parameters({name: parameters[name] for name in some.shapes})
    full, part = gradients(everything, batch), gradients(some, batch)
    assert_close(part, {name: full[name] for name in part}, 1e-6)
    assert some.parameter_count < everything.parameter_count
    everything.close()
    some.close()


def test_a_trained_head_alone(llama: Model) -> None:
    [batch] = batches(llama)
    learner = rm.learner(llama, LoraConfig(rank=4, alpha=8.0, target_modules="lm_head"))
    assert list(learner.shapes) == ["output.weight.lora_a", "output.weight.lora_b"]
    launches = learner.plan.launches["micro"]
    assert not [x for x in launches if "backward" in x.kernel.name], "no block needs a gradient"
    found = gradients(learner, batch)
    parameters = gpu.run(learner.parameters())
    # d B = (alpha / r) d logits^T (h A^T), d A = (alpha / r) (d logits B)^T h, in float64.
    expected = head_gradients(llama, batch, parameters, 2.0)
    assert_close(found, expected, 1e-5)
    learner.close()


def head_gradients(
    model: Model, batch: Any, parameters: dict[str, np.ndarray], scale: float
) -> dict[str, np.ndarray]:
    weight = rm.tensors(SHAPES["llama"])["output.weight"].astype(np.float64)
    a = parameters["output.weight.lora_a"].astype(np.float64)
    b = parameters["output.weight.lora_b"].astype(np.float64)
    da, db = np.zeros_like(a), np.zeros_like(b)
    start = 0
    for length in LENGTHS:
        tokens = batch.tokens[start : start + length].tolist()
        plain = model.logits(tokens).astype(np.float64)
        hidden = np.linalg.lstsq(weight, plain.T, rcond=None)[0].T  # logits = h W^T
        for i, target in enumerate(batch.targets[start : start + length]):
            if target >= 0:
                logits = plain[i] + scale * b @ (a @ hidden[i])
                p = np.exp(logits - logits.max())
                d = p / p.sum()
                d[target] -= 1
                db += scale * np.outer(d, a @ hidden[i])
                da += scale * np.outer(b.T @ d, hidden[i])
        start += length
    return {"output.weight.lora_a": da, "output.weight.lora_b": db}


def test_a_tied_head_is_no_target() -> None:
    model = rm.load(rm.build(SHAPES["qwen2"]))
    with pytest.raises(OptionError, match="lm_head"):
        rm.planned(model, LoraConfig(target_modules="lm_head"), max_tokens=8, max_row=8)
    model.close()


def test_gradients_add_up_over_a_window(llama: Model) -> None:
    learner = rm.learner(llama)
    two = batches(llama, 2)
    single = [gradients(learner, batch) for batch in two]
    for batch in two:
        learner.micro(batch)
    both = gpu.run(learner.gradients())
    assert_close(both, {n: single[0][n] + single[1][n] for n in both}, 1e-6)
    learner.update(step=1, learning_rate=0.0)
    [report] = gpu.run(learner.reports())
    count = sum(int((batch.targets >= 0).sum()) for batch in two)
    norm = np.sqrt(sum(float((g.astype(np.float64) ** 2).sum()) for g in both.values())) / count
    assert report.count == count and report.finite
    assert report.grad_norm == pytest.approx(norm, rel=1e-5)
    assert report.loss == pytest.approx(gpu.run(learner.evaluate(two))[0] / count, rel=1e-6)
    cleared = gpu.run(learner.gradients())
    assert not any(g.any() for g in cleared.values())
    learner.close()


def test_a_batch_without_any_target_changes_nothing(llama: Model) -> None:
    learner = rm.learner(llama)
    [batch] = batches(llama)
    expected = gradients(learner, batch)
    empty = replace(batch, targets=np.full_like(batch.targets, -1))
    learner.micro(empty)
    learner.micro(batch)
    learner.micro(empty)
    found = gpu.run(learner.gradients())
    for name in expected:
        np.testing.assert_array_equal(found[name], expected[name])
    assert gpu.run(learner.evaluate([empty])) == (0.0, 0)
    learner.close()


def test_rows_do_not_see_each_other(llama: Model) -> None:
    """The order of rows in the stream, and what lies before them, change nothing but rounding."""
    learner = rm.learner(llama)
    [batch] = batches(llama)
    full = gradients(learner, batch)
    total = {name: np.zeros_like(g) for name, g in full.items()}
    starts = np.cumsum([0, *LENGTHS])
    for first, last in pairwise(starts.tolist()):
        length = last - first
        row = replace(
            batch,
            tokens=batch.tokens[first:last],
            targets=batch.targets[first:last],
            starts=np.zeros(length, np.uint32),
            ends=np.full(length, length, np.uint32),
        )
        for name, g in gradients(learner, row).items():
            total[name] += g
    assert_close(full, total, 1e-5)
    learner.close()


def test_two_runs_are_the_same_bits(model: Model) -> None:
    def run() -> tuple[dict[str, np.ndarray], list[Any]]:
        learner = rm.learner(model, LoraConfig(rank=4, alpha=8.0, dropout=0.1))
        for step, batch in enumerate(batches(model, 4), 1):
            learner.micro(batch, dropout_key=2 * step)
            learner.micro(batch, dropout_key=2 * step + 1)
            learner.update(step=step, learning_rate=1e-2, weight_decay=0.1, max_grad_norm=1.0)
        reports = gpu.run(learner.reports())
        found = gpu.run(learner.parameters())
        learner.close()
        return found, reports

    (first, first_reports), (second, second_reports) = run(), run()
    assert first_reports == second_reports and len(first_reports) == 4
    for name in first:
        np.testing.assert_array_equal(first[name], second[name])


def test_what_an_earlier_stream_left_behind_does_not_matter(llama: Model) -> None:
    """Buffers hold a longer stream's values when a shorter one comes."""
    short = rm.batch(np.random.default_rng(8), [3, 5], llama.config.vocabulary)
    fresh = rm.learner(llama)
    expected = gradients(fresh, short)
    fresh.close()
    used = rm.learner(llama)
    for long in batches(llama, 2):
        gradients(used, long)
    for name, got in gradients(used, short).items():
        np.testing.assert_array_equal(got, expected[name])
    used.close()
