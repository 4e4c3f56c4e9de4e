"""precision = f16: products with the weights round their operands to 11 bits, and nothing else.

The bounds are those of docs/precision.md.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import random_model as rm
from figures import record
from kernel_check import Checker, pack_weight
from random_blocks import SHAPES_OF_PACKS
from tiny import SPECS, random_adapter, random_rows, targets, tiny

import wgtrain
from wgtrain import gpu
from wgtrain.data.batches import make_batch
from wgtrain.data.jsonl import Dataset, Row
from wgtrain.errors import DeviceError, OptionError
from wgtrain.files import BLOCKS, write_gguf
from wgtrain.gpu import Device
from wgtrain.train.config import LoraConfig
from wgtrain.train.trainer import Trainer

pytestmark = pytest.mark.gpu

PRODUCT, LOGITS, GRADIENT, LOSS = 1e-3, 5e-3, 1e-2, 1e-3  # the bounds of the claim
F16 = {"tile": "tile_f16"}
SMALL = {"TILE_ROWS": 4, "TILE_COLS4": 1, "LANE_ROWS": 2, "LANE_COLS": 2}


@pytest.fixture(scope="module")
def half(full_device: Device) -> Device:
    if "f16" not in full_device.features:
        pytest.skip(f"{full_device.info.name} has no shader-f16")
    return full_device


@pytest.fixture(scope="module")
def checker(half: Device) -> Iterator[Checker]:
    made = Checker(half)
    yield made
    made.close()


@pytest.fixture(scope="module")
def models(half: Device) -> Iterator[dict[str, Any]]:
    opened = {p: wgtrain.load_model(tiny("llama").gguf, precision=p) for p in ("f32", "f16")}
    yield opened
    for model in opened.values():
        model.close()


@pytest.mark.parametrize("type_", [*SHAPES_OF_PACKS, "Q6_K"])
def test_products(checker: Checker, type_: str) -> None:
    """Both products in f16 tiles, at sizes around theirs: close, and not f32's result."""
    for rows, n, k in [(1, 7, 32), (9, 9, 32), (17, 70, 96)]:
        k = -(-k // BLOCKS[type_].size) * BLOCKS[type_].size
        weight = pack_weight(np.random.standard_normal((n, k)), type_)
        common = {"rows": "T", "n": n, "k4": k // 4, "scale": 0.5, "weight_row": 0, "add": 0}
        for kernel, given, params in (
            ("matmul_nt_tiled", "x", {"y_stride": -(-n // 4), "y_column": 0}),
            ("matmul_nn_tiled", "dy", {"dy_stride": -(-n // 4), "dy_column": 0}),
        ):
            checker.errors.clear()
            arrays = {given: np.random.standard_normal((rows, k if given == "x" else n))}
            checker.check(
                kernel,
                {**arrays, "weight": weight},
                {**common, **params},
                rows=rows,
                constants=SMALL,
                libraries=F16,
                tolerance=PRODUCT,
            )
            assert checker.errors[kernel] > 2e-6


def test_any_size_of_activations_and_gradients_will_do(checker: Checker) -> None:
    """f16 itself has 11 bits only from 6e-5 on, and ends at 65504."""
    weight = pack_weight(np.random.standard_normal((33, 32)))
    params = {"rows": "T", "n": 33, "k4": 8, "scale": 1.0, "weight_row": 0, "add": 0}
    params |= {"dy_stride": 9, "dy_column": 0}
    for size in (1e-30, 1e-6, 1.0, 1e6, 1e30):
        arrays = {"dy": size * np.random.standard_normal((5, 33)), "weight": weight}
        checker.check(
            "matmul_nn_tiled",
            arrays,
            params,
            rows=5,
            constants=SMALL,
            libraries=F16,
            tolerance=PRODUCT,
        )


@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
def test_what_is_not_finite_stays_so(checker: Checker, bad: float) -> None:
    """Or nobody would notice."""
    weight = pack_weight(np.random.standard_normal((8, 32)))
    params = {"rows": "T", "n": 8, "k4": 8, "scale": 1.0, "weight_row": 0, "add": 0}
    params |= {"y_stride": 2, "y_column": 0}
    x = np.random.standard_normal((3, 32)).astype(np.float32)
    x[1, 5] = bad
    got = checker.run(
        "matmul_nt_tiled",
        {"x": x.view(np.uint32), "weight": weight},
        params,
        {"y": np.zeros((3, 8))},
        rows=3,
        constants=SMALL,
        libraries=F16,
    )["y"]
    assert not np.isfinite(got[1]).any() and np.isfinite(got[[0, 2]]).all()


def outcome(model: Any) -> tuple[np.ndarray, float, dict[str, np.ndarray]]:
    """(logits, mean loss, gradients) of an adapter that matters."""
    pairs = random_adapter(SPECS["llama"], targets(SPECS["llama"]), 3, seed=7)
    config = LoraConfig(rank=3, alpha=6.0)
    learner = rm.planned(model, config, max_tokens=96, max_row=32)
    values = {f"{n}.lora_{k}": x for n, ab in pairs.items() for k, x in zip("ab", ab, strict=True)}
    learner.set_parameters(values)
    gpu.run(learner.build())
    rows = [Row(*pair, i) for i, pair in enumerate(random_rows(SPECS["llama"], [23, 2, 17, 8], 2))]
    learner.micro(make_batch(rows))
    gradients = gpu.run(learner.gradients())
    learner.update(step=1, learning_rate=1e-3)
    [report] = gpu.run(learner.reports())
    learner.close()
    return model.logits(random_rows(SPECS["llama"], [29], 1)[0][0]), report.loss, gradients


def test_a_model_is_within_the_bounds_and_not_the_same(models: dict[str, Any]) -> None:
    (logits, loss, gradients), (rounded, its_loss, its) = (outcome(models[p]) for p in models)
    far = {name: rm.difference(its[name], gradients[name]) for name in gradients}
    record(
        "f16 against f32",
        logits=rm.difference(rounded, logits),
        loss=abs(its_loss - loss) / loss,
        gradients=max(far.values()),
    )
    assert 1e-5 < rm.difference(rounded, logits) <= LOGITS
    assert 0 < abs(its_loss - loss) <= LOSS * loss
    assert 1e-5 < max(far.values()) <= GRADIENT, far


def test_weights_take_half_the_memory(models: dict[str, Any]) -> None:
    kinds = {p: {w.type for w in m.weights.matrices.values()} for p, m in models.items()}
    assert kinds == {"f32": {"F32"}, "f16": {"F16"}}
    sizes = {p: sum(w.nbytes for w in m.weights.matrices.values()) for p, m in models.items()}
    assert sizes["f16"] <= 0.55 * sizes["f32"]


@pytest.mark.parametrize("type_", ["BF16", "Q8_0"])
def test_stored_types(half: Device, type_: str) -> None:
    """Floats become F16, blocks stay; either way the products are in f16."""
    model = wgtrain.load_model(tiny("qwen2", type_).gguf, precision="f16")
    stored = {weight.type for weight in model.weights.matrices.values()}
    assert stored == {"F16" if type_ == "BF16" else type_}
    learner = rm.learner(model)
    launches = learner.plan.launches["micro"]
    products = [x for x in launches if x.family.startswith(("nt f16/", "nn f16/"))]
    assert products and all("f16" in x.kernel.features for x in products)
    [batch] = [rm.batch(np.random.default_rng(3), [13, 1, 9], model.config.vocabulary)]
    learner.micro(batch)
    assert all(np.isfinite(g).all() for g in gpu.run(learner.gradients()).values())
    model.close()


def test_runs_repeat_and_checkpoints_know_their_precision(models: dict[str, Any]) -> None:
    pairs = random_rows(SPECS["llama"], [9, 17, 5, 12], 0)
    rows = Dataset([Row(*pair, line) for line, pair in enumerate(pairs, 1)], "rows", 32)
    config = wgtrain.TrainConfig(iters=3, epochs=None, batch_size=2, learning_rate=1e-2)
    results, files = [], {}
    for precision in ("f32", "f16", "f16"):
        trainer = Trainer(models[precision], rows, LoraConfig(rank=2), config)
        results.append([(r.loss, r.grad_norm) for r in trainer.run()])
        files[precision] = trainer.checkpoint()
        trainer.close()
    assert results[1] == results[2] and results[0] != results[1]
    trainer = Trainer(models["f32"], rows, LoraConfig(rank=2), config)
    with pytest.raises(OptionError, match="precision = f32: checkpoint was made with 'f16'"):
        trainer.restore(files["f16"])
    trainer.restore(files["f32"])
    trainer.close()


def test_values_that_f16_cannot_hold_are_refused(half: Device) -> None:
    shape = rm.Shape()
    tensors = dict(rm.tensors(shape))
    name = "blk.0.ffn_up.weight"
    tensors[name] = np.array(tensors[name])
    tensors[name][1, 2] = 7e4
    data = write_gguf(shape.metadata(), tensors)
    with pytest.raises(OptionError, match=f"precision = f16: {name}: values beyond 65504"):
        wgtrain.load_model(data, precision="f16")
    wgtrain.load_model(data).close()


def test_a_device_without_f16_is_refused() -> None:
    """As every device is that was opened with no more than each adapter grants."""
    with pytest.raises(DeviceError, match="precision = f16: .* shader-f16.*use precision = f32"):
        wgtrain.load_model(tiny("llama").gguf, limits="default", precision="f16")


@pytest.mark.parametrize("wrong", ["bf16", "", None, 16])
def test_unknown_precisions(wrong: Any) -> None:
    with pytest.raises(OptionError, match="precision = .*: allowed is f32 or f16"):
        wgtrain.load_model(tiny("llama").gguf, precision=wrong)
