"""Whether a run fits: plans beside the device's counter, recomputation where it must be, and that
what an error proposes is true.
"""

import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import random_model as rm

from wgtrain import gpu
from wgtrain.data import Dataset, Row
from wgtrain.errors import OutOfMemoryError
from wgtrain.infer.model import Model
from wgtrain.model.host import Host
from wgtrain.train import fit
from wgtrain.train.config import LoraConfig, TrainConfig
from wgtrain.train.needs import PURPOSES, Lengths
from wgtrain.train.trainer import Trainer

pytestmark = pytest.mark.gpu
SHAPE = rm.Shape(layers=4, vocabulary=131)
LORA, CONFIG = LoraConfig(rank=8), TrainConfig(iters=2, batch_size=4, seq_len=96, valid=None)


@pytest.fixture(scope="module")
def opened() -> Iterator[Model]:
    model = rm.load(rm.build(SHAPE))
    yield model
    model.close()


@pytest.fixture
def model(opened: Model) -> Iterator[Model]:
    """With as much memory as it likes, until a test says otherwise."""
    before, allocated = opened.device.budget, opened.device.allocated
    yield opened
    opened.device.budget = before
    assert opened.device.allocated == allocated, "something was left"


def rows(seq_len: int = 96, lengths: tuple[int, ...] = (96, 80, 96, 60, 33, 90)) -> Dataset:
    rng = np.random.default_rng(0)
    made = []
    for line, length in enumerate(lengths, 1):
        tokens = rng.integers(0, 131, min(length, seq_len)).astype(np.uint32)
        made.append(Row(tokens, np.append(tokens[1:], 0).astype(np.int32) % 131, line))
    return Dataset(made, "rows", seq_len, 0, 0, [])


def trainer(model: Model, lora: LoraConfig = LORA, **changes: Any) -> Trainer:
    config = replace(CONFIG, **changes)
    return Trainer(model, rows(config.seq_len), lora, config)


def needed(model: Model, **changes: Any) -> int:
    made = trainer(model, **changes)
    total = made.needs.total
    made.close()
    return total


@pytest.mark.parametrize("way", ["on", "off"])
@pytest.mark.parametrize("packing", [False, True])
def test_needs_are_what_the_device_counts(model: Model, way: str, packing: bool) -> None:
    made = trainer(model, grad_checkpoint=way, packing=packing)
    needs = made.needs
    assert tuple(needs.by_purpose) == PURPOSES and min(needs.by_purpose.values()) > 0
    made.build()
    assert needs.total == model.device.allocated
    assert needs.by_purpose["base"] == model.weights.nbytes
    assert needs.trainable == made.learner.parameter_count
    list(made.run())
    assert needs.total == model.device.allocated == made.needs.total
    biggest = max(buffer.size for buffer in made.learner.plan._owned)
    assert needs.largest_binding[1] <= max(biggest, *(s.size for s in model.weights.storages))
    assert needs.largest_binding[1] >= 131 * 64 * 4
    made.close()


def test_what_stays_for_the_backward_pass_is_apart(model: Model) -> None:
    kept, recomputed = (trainer(model, grad_checkpoint=way) for way in ("off", "on"))
    tokens = kept.needs.max_tokens
    inputs = 4 * tokens * SHAPE.width * SHAPE.layers  # of each block
    assert inputs <= recomputed.needs.by_purpose["activations"] < 2.5 * inputs
    assert kept.needs.by_purpose["activations"] > 5 * inputs
    for purpose in ("base", "adapter", "optimizer"):
        assert kept.needs.by_purpose[purpose] == recomputed.needs.by_purpose[purpose]


def test_activations_are_recomputed_where_they_must_be(model: Model) -> None:
    kept, recomputed = needed(model, grad_checkpoint="off"), needed(model, grad_checkpoint="on")
    assert recomputed < kept
    adapters = []
    for budget, way in ((kept, False), (kept - 1, True), (recomputed, True)):
        model.device.budget = budget
        made = trainer(model)
        assert made.recompute is way
        made.build()
        assert model.device.allocated <= budget
        losses = [step.loss for step in made.run()]
        adapters.append((losses, made.adapter_gguf()))
        made.close()
    assert adapters[0] == adapters[1] == adapters[2]
    model.device.budget = recomputed - 1
    with pytest.raises(OutOfMemoryError, match="1 too few"):
        trainer(model).build()
    model.device.budget = kept - 1
    with pytest.raises(OutOfMemoryError, match="\ngrad_checkpoint = on: "):
        trainer(model, grad_checkpoint="off").build()


def proposed(error: pytest.ExceptionInfo[OutOfMemoryError]) -> list[dict[str, str]]:
    """The changes an error proposes: any of them, or all together."""
    head, *lines = str(error.value).splitlines()[1:]
    found = [re.match(r"(\w+) = ([^:]+)(?:: .*)?$", line) for line in lines]
    changes = [{match[1]: match[2]} for match in found if match]
    assert len(changes) == len(lines) and changes, error.value
    if "any one of these" in head:
        return changes
    assert "all of these" in head
    return [{name: value for change in changes for name, value in change.items()}]


@pytest.mark.parametrize("lacking", [1, 300_000, 900_000])
def test_what_an_error_proposes_is_true(model: Model, lacking: int) -> None:
    model.device.budget = needed(model, grad_checkpoint="on") - lacking
    with pytest.raises(OutOfMemoryError) as error:
        trainer(model).build()
    assert f"{lacking:,} too few" in str(error.value)
    choices = proposed(error)
    names = {name for change in choices for name in change}
    assert names & {"batch_size", "seq_len", "capture"}, names
    for change in choices:
        lora = {n: v for n, v in change.items() if hasattr(LORA, n)}
        values: dict[str, Any] = {n: v for n, v in change.items() if n not in lora}
        if values.pop("quantize_base", None):
            continue
        made = trainer(model, replace(LORA, **lora), **values)  # type: ignore[arg-type]
        if "seq_len" in values:
            assert int(values["seq_len"]) < 96
        made.build()
        assert model.device.allocated <= model.device.budget
        made.close()


def test_of_settings_together_each_is_changed_as_little_as_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Smaller batches go before rows that are cut."""
    few = "q_proj,v_proj"
    ladders = [("batch_size", [2, 1]), ("seq_len", [256, 128, 64]), ("target_modules", [few])]
    start = {"batch_size": 4, "seq_len": 512, "target_modules": "all-linear"}

    def fits(planner: Any, settings: Any, changes: dict[str, Any]) -> int | None:
        now = start | changes
        tokens = now["batch_size"] * now["seq_len"]
        return tokens if tokens <= 256 and now["target_modules"] == few else None

    monkeypatch.setattr(fit, "_ladders", lambda planner, settings: ladders)
    monkeypatch.setattr(fit, "_fits", fits)
    unused: Any = None
    (found,), alone = fit.suggestions(unused, unused)
    wanted = {"batch_size": 1, "seq_len": 256, "target_modules": few}
    assert (found.changes, found.total, alone) == (wanted, 256, False)


def test_settings_that_an_adapter_brings_are_not_proposed(model: Model) -> None:
    first = trainer(model)
    first.build()
    adapter = first.adapter()
    first.close()
    model.device.budget = needed(model, grad_checkpoint="on") - 1
    with pytest.raises(OutOfMemoryError) as error:
        Trainer(model, rows(), None, CONFIG, init_adapter=adapter).build()
    names = {name for change in proposed(error) for name in change}
    assert names and not names & {"rank", "target_modules", "layers"}
    resumed = trainer(model)
    resumed.fixed_settings()
    with pytest.raises(OutOfMemoryError) as error:
        resumed.build()
    assert "\n" not in str(error.value)


def test_where_nothing_fits_it_says_so(model: Model) -> None:
    model.device.budget = model.weights.nbytes + 1000
    with pytest.raises(OutOfMemoryError, match="No option makes it fit"):
        trainer(model).build()


class Scarce:
    """A driver that has only so many bytes, and says so when they are gone."""

    def __init__(self, model: Model, nbytes: int, patch: pytest.MonkeyPatch) -> None:
        self.device, self.create, self.nbytes = model.device, model.device.create_buffer, nbytes
        self.device.budget = None
        patch.setattr(model.device, "find_budget", lambda: "not known")
        patch.setattr(model.device, "create_buffer", self.create_buffer)

    def create_buffer(self, size: int, label: str, **options: Any) -> Any:
        if self.device.allocated + size > self.nbytes:
            raise OutOfMemoryError(f"buffer '{label}': the GPU has not enough memory left")
        return self.create(size, label, **options)


def test_unknown_memory_is_tried_before_the_first_step(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept, recomputed = needed(model, grad_checkpoint="off"), needed(model, grad_checkpoint="on")
    plain = trainer(model)
    expected = [step.loss for step in plain.run()], plain.adapter_gguf()
    plain.close()
    Scarce(model, kept - 1, monkeypatch)
    said: list[str] = []
    made = Trainer(model, rows(), LORA, CONFIG, host=Host(say=said.append))
    assert not made.recompute
    made.build()
    assert made.recompute and model.device.allocated == recomputed == made.needs.total
    assert len(said) == 1 and "recomputed" in said[0]
    assert ([step.loss for step in made.run()], made.adapter_gguf()) == expected
    made.close()


def test_unknown_memory_that_is_too_little(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    before, recomputed = model.device.allocated, needed(model, grad_checkpoint="on")
    smaller = needed(model, grad_checkpoint="on", batch_size=2)
    Scarce(model, recomputed - 1, monkeypatch)
    made = trainer(model)
    for call in (made.build, made.evaluate, made.adapter, made.checkpoint):
        with pytest.raises(OutOfMemoryError, match="not enough memory left") as error:
            call()
        assert model.device.allocated == before
    text = str(error.value)
    assert f"It needs {recomputed / 2**20:,.1f} MiB in all" in text
    assert f"\nbatch_size = 2: {smaller / 2**20:,.1f} MiB" in text
    # Asked for, it is not done in another way.
    with pytest.raises(OutOfMemoryError, match="not enough memory left"):
        trainer(model, grad_checkpoint="off").build()


def test_an_adapter_set_before_survives_the_second_try(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = trainer(model, iters=4)
    list(whole.run())
    expected = whole.adapter_gguf()
    first = trainer(model, iters=4)
    for result in first.run():
        if result.step == 2:
            first.stop()
    half = first.checkpoint()
    whole.close(), first.close()
    Scarce(model, needed(model, grad_checkpoint="off") - 1, monkeypatch)
    resumed = trainer(model, iters=4)
    resumed.restore(half)
    list(resumed.run())
    assert resumed.recompute and resumed.adapter_gguf() == expected
    resumed.close()


@pytest.mark.parametrize("capture", ["f32", "bf16"])
def test_a_run_goes_on_as_its_numbers_depend_on(model: Model, capture: str) -> None:
    """bf16 rounds other values where blocks are recomputed; f32 gives the same bits."""
    least = needed(model, grad_checkpoint="on", capture=capture)
    model.device.budget = least
    first = trainer(model, iters=4, capture=capture)
    for result in first.run():
        if result.step == 2:
            first.stop()
    half = first.checkpoint()
    list(first.run())
    expected = first.adapter_gguf()
    first.close()
    model.device.budget = 1 << 40
    resumed = trainer(model, iters=4, capture=capture)
    assert not resumed.recompute
    resumed.restore(half)
    assert resumed.recompute is (capture == "bf16")
    list(resumed.run())
    assert resumed.adapter_gguf() == expected
    resumed.close()


def test_lengths_of_other_settings() -> None:
    lengths = Lengths([9, 30, 17, 30], [40, 8, 8], seq_len=40)
    config = TrainConfig(batch_size=2, seq_len=40)
    assert lengths.most(config) == (60, 40)
    assert lengths.most(replace(config, batch_size=1)) == (40, 40)
    assert lengths.most(replace(config, batch_size=3)) == (77, 40)
    assert lengths.most(replace(config, seq_len=20)) == (40, 20)
    assert lengths.most(replace(config, seq_len=20, packing=True)) == (40, 20)
    assert lengths.most(replace(config, batch_size=9, packing=True)) == (86, 40)
    tested = replace(lengths, test=[9, 9, 70])
    assert tested.most(config) == (70, 70)
    assert tested.most(replace(config, batch_size=3)) == (88, 70)
    assert Lengths().most(TrainConfig()) == (2048, 512)
    assert gpu.read_size("1KiB") == 1024
