"""Ctrl-C at any line, and every other way out of a loop: the next step is the one that was due."""

import dataclasses
import json
import random
from collections.abc import Callable, Iterator
from typing import Any

import fake_learner
import pytest
import tiny
from fake_learner import FakeModel, fake_rows
from interrupting import Lines

import wgtrain
from wgtrain.data import Dataset, Row
from wgtrain.errors import OptionError
from wgtrain.train.config import LoraConfig, TrainConfig
from wgtrain.train.trainer import Trainer

# What is interrupted before it began was never awaited, and Python says so.
pytestmark = pytest.mark.filterwarnings("ignore:coroutine:RuntimeWarning")
CONFIG = TrainConfig(
    iters=8, epochs=None, batch_size=2, learning_rate=0.05, tuning="default", eval_every=3
)


def state(files: dict[str, bytes]) -> tuple[Any, ...]:
    """What of a checkpoint does not depend on the clock."""
    found = json.loads(files["state.json"])
    place = [found[name] for name in ("step", "epoch", "position", "tokens_seen")]
    return (*place, files["adapter.gguf"], files["optimizer.safetensors"])


def reference(trainer: Trainer) -> dict[int, Any]:
    """The checkpoint after each step of an undisturbed run."""
    found = {0: state(trainer.checkpoint())}
    for result in trainer.run():
        found[result.step] = state(trainer.checkpoint())
    return found


@pytest.fixture
def make_fake(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Trainer]:
    fake_learner.install(monkeypatch.setattr)
    lora = LoraConfig(rank=2, alpha=4, target_modules="q_proj", layers="0-1", dropout=0.2)

    def make(**train: Any) -> Trainer:
        config = dataclasses.replace(CONFIG, **train)
        return Trainer(FakeModel(), fake_rows(), lora, config, fake_rows(3))

    return make


@pytest.mark.parametrize("accumulation", [1, 3])
def test_an_interrupt_at_any_line(make_fake: Callable[..., Trainer], accumulation: int) -> None:
    whole = make_fake(grad_accum=accumulation, save_every=1)
    expected = reference(whole)
    lines, counted = Lines(), make_fake(grad_accum=accumulation)
    with lines.watched():
        list(counted.run())
    for at in range(1, lines.seen, lines.seen // 50):
        trainer = make_fake(grad_accum=accumulation)
        results = []
        with pytest.raises(KeyboardInterrupt), Lines(at).watched():
            for result in trainer.run():
                results.append(result.step)
        assert state(trainer.checkpoint()) == expected[trainer.step], at
        results += [result.step for result in trainer.run()]
        assert results == sorted(set(results)) and len(results) >= trainer.total_steps - 1, at
        assert state(trainer.checkpoint()) == expected[trainer.total_steps], at
        assert trainer.evaluations == whole.evaluations, at


def test_an_interrupted_restore_has_to_be_done_again(make_fake: Callable[..., Trainer]) -> None:
    whole = make_fake(save_every=1)
    expected = reference(whole)
    first = make_fake(save_every=1)
    files = next(first.checkpoint() for result in first.run() if result.step == 5)
    lines, counted = Lines(), make_fake()
    with lines.watched():
        counted.restore(files)
    for at in range(1, lines.seen, lines.seen // 50):
        trainer = make_fake()
        with pytest.raises(KeyboardInterrupt), Lines(at).watched():
            trainer.restore(files)
        try:
            assert state(trainer.checkpoint()) in (expected[0], expected[5])
        except OptionError as error:
            assert "interrupted: restore a checkpoint again" in str(error)
            with pytest.raises(OptionError, match="restore a checkpoint again"):
                list(trainer.run())
        trainer.restore(files)
        list(trainer.run())
        assert state(trainer.checkpoint()) == expected[trainer.total_steps]


# ---- on the real engine ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model() -> Iterator[Any]:
    with wgtrain.load_model(tiny.tiny("llama").gguf, limits="default") as opened:
        yield opened


@pytest.fixture
def make(model: Any) -> Iterator[Callable[..., Trainer]]:
    made = []

    def trainer(**train: Any) -> Trainer:
        pairs = tiny.random_rows(tiny.SPECS["llama"], [9, 17, 5, 12, 7, 8, 11], 0)
        rows = Dataset([Row(*pair, line) for line, pair in enumerate(pairs, 1)], "rows", 32)
        lora = LoraConfig(rank=2, target_modules="q_proj,down_proj", layers="1", dropout=0.1)
        made.append(Trainer(model, rows, lora, dataclasses.replace(CONFIG, **train)))
        return made[-1]

    yield trainer
    for each in made:
        each.close()


@pytest.mark.gpu
@pytest.mark.parametrize("accumulation", [1, 3])
def test_fifty_interrupts_of_the_engine(make: Callable[..., Trainer], accumulation: int) -> None:
    whole = make(grad_accum=accumulation, save_every=1)
    expected = reference(whole)
    trainer = make(grad_accum=accumulation)
    start = trainer.checkpoint()
    lines, counted = Lines(), make(grad_accum=accumulation)
    counted.build()
    with lines.watched():
        list(counted.run())
    places = random.Random(1)
    for _ in range(50):
        if trainer.step >= trainer.total_steps - 2:
            trainer.restore(start)
        try:
            with Lines(places.randrange(1, lines.seen // 4)).watched():
                list(trainer.run())
        except KeyboardInterrupt:
            pass
        assert state(trainer.checkpoint()) == expected[trainer.step]
    list(trainer.run())
    assert state(trainer.checkpoint()) == expected[trainer.total_steps]


@pytest.mark.gpu
def test_an_interrupted_build_trains_on_no_zeros(make: Callable[..., Trainer]) -> None:
    whole = make()
    list(whole.run())
    expected = state(whole.checkpoint())
    lines, counted = Lines(), make()
    with lines.watched():
        counted.build()
    for at in random.Random(2).sample(range(1, lines.seen), 8):
        trainer = make()
        with pytest.raises(KeyboardInterrupt), Lines(at).watched():
            trainer.build()
        list(trainer.run())
        assert state(trainer.checkpoint()) == expected, at


@pytest.mark.gpu
@pytest.mark.parametrize("way", ["break", "exception", "stop"])
def test_other_ways_out_of_the_loop(make: Callable[..., Trainer], way: str) -> None:
    whole, trainer = make(grad_accum=3), make(grad_accum=3)
    list(whole.run())
    steps = []
    while trainer.step < trainer.total_steps:
        try:
            for result in trainer.run():
                steps.append(result.step)
                if way == "break":
                    break
                if way == "exception":
                    raise ZeroDivisionError
                trainer.stop()
        except ZeroDivisionError:
            pass
    steps += [result.step for result in trainer.run()]
    assert steps == list(range(1, trainer.total_steps + 1))
    assert state(trainer.checkpoint()) == state(whole.checkpoint())
