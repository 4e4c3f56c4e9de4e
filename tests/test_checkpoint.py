"""Checkpoints: damaged, made by somebody, of another base, of a run that is prolonged."""

import json
import math
from types import SimpleNamespace

import fake_learner
import pytest
from fake_learner import FakeModel, fake_rows

from wgtrain.errors import FileError, OptionError
from wgtrain.train import checkpoint
from wgtrain.train.config import LoraConfig, TrainConfig
from wgtrain.train.results import Queued, non_finite
from wgtrain.train.trainer import Trainer
from wgtrain.train.windows import START, Windows


@pytest.fixture(autouse=True)
def numpy_learner(monkeypatch):
    fake_learner.install(monkeypatch.setattr)


def make(**train):
    length = {} if "iters" in train or "epochs" in train else {"iters": 12}
    config = TrainConfig(**{"batch_size": 3, "learning_rate": 0.05, **length, **train})
    return Trainer(FakeModel(), fake_rows(), LoraConfig(rank=2, target_modules="q_proj"), config)


def test_every_bit_of_the_state_counts():
    files = make().checkpoint()
    data = bytearray(files["state.json"])
    for bit in range(8 * len(data)):
        data[bit // 8] ^= 1 << bit % 8
        with pytest.raises(FileError, match=r"at/state\.json"):
            checkpoint.unpack({**files, "state.json": bytes(data)}, "at")
        data[bit // 8] ^= 1 << bit % 8
    assert checkpoint.unpack({**files, "state.json": bytes(data)}).state.step == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": 1}, "format = 1, which cannot be told from a damaged one: this version reads"),
        ({"step": 10**20}, "step = 100000000000000000000: not usable"),
        ({"step": math.nan}, "step = nan: not usable"),
        ({"step": None}, "step = None: not usable"),
        ({"step": True}, "step = True: not usable"),
        ({"step": -1}, "step = -1: not usable"),
        ({"step": 2**52}, "at: it stands at step 4503599627370496 of 12"),
        ({"step": 2}, "at: its place in the data is not that of step 2"),
        ({"epoch": 1}, "at: its place in the data is not that of step 3"),
        ({"position": 9}, "at: its place in the data is not that of step 3"),
        ({"tokens_seen": 1e300}, "tokens_seen = 1e.300: not usable"),
        ({"elapsed_seconds": math.inf}, "elapsed_seconds = inf: not usable"),
        ({"elapsed_seconds": 10**400}, "elapsed_seconds = 1000+.*: not usable"),
        ({"rows": 5}, "rows = 5: not usable"),
        ({"settings": "\x1b[2J"}, r"settings = '\\x1b\[2J': not usable"),
        ({"sha256": {"adapter.gguf": 3}}, "sha256 = .* not usable"),
    ],
)
def test_a_state_that_somebody_wrote(changes, message):
    trainer = make(save_every=3)
    next(result for result in trainer.run() if result.step == 3)
    files = trainer.checkpoint()
    state = json.loads(files["state.json"]) | changes
    del state["seal"]
    with pytest.raises((FileError, OptionError), match=message):
        make().restore({**files, "state.json": checkpoint.seal(state)}, "at")


def test_a_state_that_is_nested_without_end():
    files = make().checkpoint() | {"state.json": b"[" * 200_000}
    with pytest.raises(FileError, match="at/state.json: not JSON"):
        make().restore(files, "at")


def test_another_base_of_the_same_shapes(monkeypatch):
    files = make().checkpoint()
    monkeypatch.setattr(FakeModel, "fingerprint", "e" * 64)
    with pytest.raises(OptionError, match=r"fake\.gguf: at was made with another base model"):
        make().restore(files, "at")


@pytest.mark.parametrize("packing", [False, True])
def test_the_place_in_the_data_follows_from_the_step(packing):
    windows = Windows(fake_rows(), TrainConfig(batch_size=3, grad_accum=2, packing=packing))
    at = START
    assert windows.place(0) == at
    for step in range(1, 3 * windows.per_epoch + 2):
        _, at = windows.window(at)
        assert windows.place(step) == at


def test_a_run_is_prolonged_by_the_schedule_of_the_new_total():
    trainer = make(iters=6)
    list(trainer.run())
    files = trainer.checkpoint()
    with pytest.raises(OptionError, match="iters = 9: at was made with 6"):
        make(iters=9).restore(files, "at")
    longer = make(iters=9)
    longer.restore(files, "at", prolong=True)
    rates = [result.learning_rate for result in longer.run()]
    assert rates == [longer.schedule(step) for step in (7, 8, 9)]
    with pytest.raises(OptionError, match="at: it stands at step 6 of 5; a run can be made longer"):
        make(iters=5).restore(files, "at", prolong=True)


def test_steps_of_endless_packed_epochs_are_not_counted():
    with pytest.raises(OptionError, match="epochs = 10000000: with packing .* give iters instead"):
        make(epochs=10_000_000, packing=True)
    assert make(epochs=10_000_000).total_steps == 10_000_000 * make(epochs=1).total_steps


def test_a_loss_that_is_not_finite_early_points_at_the_learning_rate():
    def message(step, loss=math.nan):
        report = SimpleNamespace(loss=loss, grad_norm=math.nan)
        return str(non_finite(report, Queued(step, 0.5, 0.02, 10, (3, 1)), "rows.jsonl"))

    assert [("learning rate than 0.02" in message(n)) for n in (1, 2, 100, 101)] == [0, 1, 1, 0]
    assert message(2, 6.9057536125183105).startswith("step 2: loss 6.90575, gradient norm nan, in")
