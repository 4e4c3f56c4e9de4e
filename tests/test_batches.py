"""Batches: streams with row bounds, deterministic orders, packing."""

import numpy as np
import pytest

from wgtrain.data import Batches, Row, make_batch
from wgtrain.errors import OptionError


def rows(*sizes: int) -> list[Row]:
    """Rows of these lengths, each token with its own number."""
    out, at = [], 0
    for line, size in enumerate(sizes, 1):
        tokens = np.arange(at, at + size, dtype=np.uint32)
        targets = np.append(tokens[1:], 0).astype(np.int32)
        targets[-1] = -1
        out.append(Row(tokens, targets, line))
        at += size
    return out


def flat(groups: list[list[int]]) -> list[int]:
    return [i for group in groups for i in group]


def test_make_batch_by_hand() -> None:
    batch = make_batch(rows(3, 1, 2))
    assert batch.tokens.tolist() == [0, 1, 2, 3, 4, 5]
    assert batch.targets.tolist() == [1, 2, -1, -1, 5, -1]
    assert batch.starts.tolist() == [0, 0, 0, 3, 4, 4]
    assert batch.ends.tolist() == [3, 3, 3, 4, 6, 6]
    assert batch.lines == (1, 2, 3)
    kinds = [getattr(batch, name).dtype for name in ("tokens", "targets", "starts", "ends")]
    assert kinds == [np.uint32, np.int32, np.uint32, np.uint32]


def test_file_order_and_a_short_last_batch() -> None:
    batches = Batches(rows(*[2] * 7), 3, shuffle=False)
    for epoch in (0, 5):
        assert batches.per_epoch(epoch) == [[0, 1, 2], [3, 4, 5], [6]]


def test_shuffled_orders() -> None:
    """Each epoch has every row once; orders differ by epoch and seed, and are the same again."""
    data = rows(*[2] * 101)
    orders = {}
    for seed in (1, 2):
        for epoch in (0, 1, 7):
            groups = Batches(data, 4, seed=seed).per_epoch(epoch)
            assert [len(group) for group in groups] == [4] * 25 + [1]
            order = flat(groups)
            assert sorted(order) == list(range(101))
            orders[seed, epoch] = tuple(order)
    assert len(set(orders.values())) == 6 and tuple(range(101)) not in orders.values()
    jumped = Batches(data, 4, seed=2)
    assert flat(jumped.per_epoch(7)) == list(orders[2, 7])
    assert flat(jumped.per_epoch(0)) == list(orders[2, 0])


def test_an_order_that_must_never_change() -> None:
    """Runs are resumed by later versions: the numbers are part of the file format."""
    assert flat(Batches(rows(*[1] * 10), 10, seed=42).per_epoch(0)) == [
        2,
        9,
        0,
        5,
        3,
        7,
        6,
        8,
        1,
        4,
    ]


def test_packing_by_hand() -> None:
    """Whole rows in order while they fit 2 x 5 tokens; what does not fit begins the next batch."""
    data = rows(5, 4, 2, 1, 5, 5, 3, 3, 3, 3, 1)
    batches = Batches(data, 2, shuffle=False, packing=True, seq_len=5)
    assert batches.per_epoch(0) == [[0, 1], [2, 3, 4], [5, 6], [7, 8, 9, 10]]
    exact = Batches(rows(5, 5, 5), 2, shuffle=False, packing=True, seq_len=5)
    assert exact.per_epoch(0) == [[0, 1], [2]]


@pytest.mark.parametrize("shuffle", [False, True])
def test_packing_wastes_nothing_and_exceeds_nothing(shuffle: bool) -> None:
    rng = np.random.default_rng(0)
    data = rows(*rng.integers(1, 33, 500).tolist())
    batches = Batches(data, 3, shuffle=shuffle, packing=True, seq_len=32)
    for epoch in range(3):
        groups = batches.per_epoch(epoch)
        assert sorted(flat(groups)) == list(range(500))
        sizes = [sum(len(data[i].tokens) for i in group) for group in groups]
        assert max(sizes) <= 96
        for size, after in zip(sizes, groups[1:], strict=False):
            assert size + len(data[after[0]].tokens) > 96


def test_nothing_to_train_on() -> None:
    with pytest.raises(OptionError, match="0 rows"):
        Batches([], 4)
    with pytest.raises(OptionError, match="batches of 0"):
        Batches(rows(2), 0)
