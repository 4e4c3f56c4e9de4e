"""Learning rates against numbers worked out by hand from the formulas of the file contract."""

import pytest

from wgtrain.train.config import TrainConfig
from wgtrain.train.schedule import make_schedule


def rates(total, **settings):
    settings = {"learning_rate": 1.0, "warmup_steps": 0, **settings}
    period = settings.pop("steps_per_epoch", 3)
    schedule = make_schedule(TrainConfig(**settings), total, period)
    return [schedule(step) for step in range(1, total + 1)]


def test_constant():
    assert rates(5, lr_schedule="constant", warmup_steps=2) == [0.5, 1, 1, 1, 1]


def test_linear():
    # 4 steps after the warm-up: p = 0, 1/4, 2/4, 3/4; the last is not zero
    assert rates(6, lr_schedule="linear", warmup_steps=2) == [0.5, 1, 1, 0.75, 0.5, 0.25]


def test_cosine():
    root = 2**-0.5
    expected = [1 / 3, 2 / 3, 1, 1, (1 + root) / 2, 0.5, (1 - root) / 2]
    assert rates(7, lr_schedule="cosine", warmup_steps=3) == pytest.approx(expected, rel=1e-15)


def test_cosine_restarts():
    # period 4 after one step of warm-up: p = 0, 1/4, 1/2, 3/4, 0, 1/4
    root = 2**-0.5
    cycle = [1, (1 + root) / 2, 0.5, (1 - root) / 2]
    got = rates(7, lr_schedule="cosine-restarts", warmup_steps=1, lr_period=4)
    assert got == pytest.approx([1, *cycle, *cycle[:2]], rel=1e-15)


def test_restarts_come_every_epoch_by_default():
    got = rates(6, lr_schedule="cosine-restarts", steps_per_epoch=2)
    assert got == pytest.approx([1, 0.5] * 3, rel=1e-15)


def test_base_rate_scales():
    one = rates(9, warmup_steps=2)
    assert rates(9, warmup_steps=2, learning_rate=2e-4) == pytest.approx(
        [2e-4 * rate for rate in one], rel=1e-14
    )


def test_warmup_longer_than_the_run():
    assert rates(3, warmup_steps=10) == [0.1, 0.2, 0.3]


def test_progress_is_clamped():
    schedule = make_schedule(TrainConfig(learning_rate=1.0, warmup_steps=0), 4, 4)
    assert schedule(5) == schedule(9) == 0.0


@pytest.mark.parametrize(
    ("ratio", "total", "warmup"),
    [(0.03, 100, 3), (0.03, 101, 4), (0.03, 1, 1), (0.07, 100, 7), (0.0, 50, 0), (1.0, 5, 5)],
)
def test_warmup_ratio_rounds_up(ratio, total, warmup):
    assert make_schedule(TrainConfig(warmup_ratio=ratio), total, 1).warmup == warmup
