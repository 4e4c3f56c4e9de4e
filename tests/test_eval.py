"""The loss of rows under a model and adapters: that of training's validation, that of PEFT."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import random_model as rm
from peft_oracle import Pairs, Peft, Rows
from tiny import LINEARS, random_adapter, random_rows, targets, tiny

import wgtrain
from wgtrain.data import Dataset, Row
from wgtrain.errors import FileError, NonFiniteError, OptionError, OutOfMemoryError
from wgtrain.files import Adapter
from wgtrain.infer.evaluation import bounds, perplexity

pytestmark = pytest.mark.gpu
RANK, ALPHA = 3, 6.0
LENGTHS = [23, 2, 17, 8, 3, 13, 30]
LOSS = 1e-5  # the bound of the claim


@pytest.fixture(scope="module")
def model() -> Iterator[Any]:
    """One whose vocabulary takes several chunks, the last of them odd."""
    with rm.load(rm.build(rm.Shape(vocabulary=4321))) as opened:
        yield opened


def dataset(rows: Rows, name: str = "rows") -> Dataset:
    made = [Row(tokens, goals, 10 + line) for line, (tokens, goals) in enumerate(rows)]
    return Dataset(made, name, 64, train_on="completions")


def random_dataset(model: Any, lengths: list[int], seed: int) -> Dataset:
    made = rm.batch(np.random.default_rng(seed), lengths, model.config.vocabulary)
    cuts = np.cumsum(lengths)[:-1]
    pairs = zip(np.split(made.tokens, cuts), np.split(made.targets, cuts), strict=True)
    return dataset(list(pairs))


@pytest.mark.parametrize("targets", ["all-linear", "q_proj,lm_head"])
def test_it_is_the_loss_of_validation_to_the_bit(model: Any, targets: str) -> None:
    """Where batches are as large as training's, the very same numbers are added in one order."""
    held = random_dataset(model, LENGTHS, 1)
    config = wgtrain.TrainConfig(
        epochs=None, iters=2, batch_size=3, learning_rate=0.05, eval_every=0
    )
    lora = wgtrain.LoraConfig(rank=2, alpha=5, target_modules=targets)
    rows = random_dataset(model, [9, 4], 2)
    trainer = wgtrain.Trainer(model, rows, lora, config, held)
    list(trainer.run())
    start, end = trainer.evaluations
    assert trainer.learner.plan.max_tokens == bounds(held.rows, 3)[0]
    adapter = trainer.adapter_gguf()
    tuned = model.evaluate(held, [(adapter, 1.0)], batch_size=3)
    assert (tuned.loss, tuned.trained_tokens) == (end.loss, end.count)
    assert (tuned.loss, tuned.trained_tokens) == trainer.evaluate()
    trainer.close()
    base = model.evaluate(held, batch_size=3)
    assert base.loss == start.loss and base.trained_tokens == start.count
    assert abs(tuned.loss - base.loss) > 0.01, "the adapter must matter"
    half = model.evaluate(held, [(adapter, 0.5), (adapter, 0.5)], batch_size=3)
    assert half.loss == pytest.approx(tuned.loss, rel=1e-6)
    assert model.evaluate(held, [(adapter, 0.5)], batch_size=3).loss != pytest.approx(
        tuned.loss, rel=1e-4
    )


def test_rows_one_by_one(model: Any) -> None:
    """Each row's own loss, whatever its neighbours; batches change rounding alone."""
    held = random_dataset(model, LENGTHS, 1)
    seen: list[tuple[int, int]] = []
    whole = model.evaluate(held, batch_size=3, progress=lambda *at: seen.append(at))
    assert seen == [(3, 7), (6, 7), (7, 7)]
    assert [row.line for row in whole.rows] == [row.line for row in held.rows]
    assert whole.tokens == sum(LENGTHS) and whole.seconds > 0
    for row, found in zip(held.rows, whole.rows, strict=True):
        logits = model.logits(row.tokens.tolist()).astype(np.float64)
        at = np.flatnonzero(row.targets >= 0)
        top = logits.max(1, keepdims=True)
        logs = logits - top - np.log(np.exp(logits - top).sum(1, keepdims=True))
        assert found.trained_tokens == len(at)
        assert found.loss == pytest.approx(-logs[at, row.targets[at]].mean(), rel=1e-5)
    total = sum(row.loss * row.trained_tokens for row in whole.rows)
    assert whole.loss == pytest.approx(total / whole.trained_tokens, rel=1e-6)
    assert whole.perplexity == pytest.approx(np.exp(whole.loss))
    assert model.evaluate(held, batch_size=1).loss == pytest.approx(whole.loss, rel=1e-6)
    assert "7 rows" in repr(whole)


@pytest.mark.oracle
@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_it_is_the_loss_of_peft(name: str) -> None:
    base = tiny(name)
    every = [*LINEARS] if base.spec.tied else [*LINEARS, "output"]
    pairs: Pairs = random_adapter(base.spec, targets(base.spec, every), RANK, seed=7)
    rows = random_rows(base.spec, LENGTHS, seed=2)
    reference = Peft(base, pairs, ALPHA, "float64")
    total, count = reference.evaluate(rows)
    with reference.model.disable_adapter():
        plain, _ = reference.evaluate(rows)
    adapter = Adapter(base.spec.architecture, RANK, ALPHA, pairs, {})
    with wgtrain.load_model(base.gguf, limits="default") as model:
        ours = model.evaluate(dataset(rows), [(adapter, 1.0)])
        bare = model.evaluate(dataset(rows), [])
    assert ours.trained_tokens == bare.trained_tokens == count
    assert ours.loss == pytest.approx(total / count, rel=LOSS)
    assert bare.loss == pytest.approx(plain / count, rel=LOSS)
    assert ours.loss != pytest.approx(plain / count, rel=100 * LOSS), "no control"


def test_memory_is_planned_and_given_back(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    held = random_dataset(model, LENGTHS, 1)
    model._kept.close()  # or it would give way
    device, before = model.device, model.device.allocated
    most = []

    def create(*arguments: Any, **more: Any) -> Any:
        made = real(*arguments, **more)
        most.append(device.allocated)
        return made

    real = device.create_buffer
    monkeypatch.setattr(device, "create_buffer", create)
    loss = model.evaluate(held, batch_size=4).loss
    assert device.allocated == before and max(most) > before
    room = max(most) - before
    model.evaluate(held, batch_size=1)
    monkeypatch.setattr(device, "budget", before + room - 1)
    with pytest.raises(OutOfMemoryError, match="need .* bytes(?s:.*)\nbatch_size = 2 fits$"):
        model.evaluate(held, batch_size=4)
    assert device.allocated == before
    monkeypatch.setattr(device, "budget", before + 1000)
    with pytest.raises(OutOfMemoryError) as caught:
        model.evaluate(held, batch_size=4)
    assert "fits" not in str(caught.value)
    monkeypatch.setattr(device, "budget", before + room)
    assert model.evaluate(held, batch_size=4).loss == loss


def test_what_is_refused(model: Any) -> None:
    held = random_dataset(model, [4, 5], 1)
    with pytest.raises(OptionError, match="rows: 'data.jsonl': load them first"):
        model.evaluate("data.jsonl")
    with pytest.raises(OptionError, match="rows: no row with a token"):
        model.evaluate(dataset([]))
    for size in (0, 1.5, True, "4"):
        with pytest.raises(OptionError, match="batch_size = .*: allowed is a whole number"):
            model.evaluate(held, batch_size=size)
    other = dataset([(np.array([1, 5000], np.uint32), np.array([5000, -1], np.int32))])
    with pytest.raises(FileError, match="line 10: token id 5000 is outside"):
        model.evaluate(other)
    huge = np.full((1, 64), 1e30, np.float32)
    strong = {"blk.0.attn_q.weight": (huge, huge.T)}
    with pytest.raises(NonFiniteError, match="rows: the loss is (nan|inf), in the rows of lines"):
        model.evaluate(held, [(Adapter("llama", 1, 1.0, strong, {}), 1.0)])


def test_perplexity_of_what_is_large() -> None:
    assert perplexity(0.0) == 1 and perplexity(1e4) is None
