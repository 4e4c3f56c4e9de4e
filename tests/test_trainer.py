"""The training loop against a numpy learner: order, weights, reports, checkpoints, bit by bit."""

import asyncio
import dataclasses
import math

import fake_learner
import numpy as np
import pytest
from fake_learner import FakeLearner, FakeModel, fake_rows

from wgtrain import random
from wgtrain.errors import FileError, NonFiniteError, OptionError
from wgtrain.files.adapters import read_adapter_gguf, read_adapter_peft
from wgtrain.model.lora import initial_parameters
from wgtrain.train import loop as loop_module
from wgtrain.train import trainer as trainer_module
from wgtrain.train.config import LoraConfig, TrainConfig
from wgtrain.train.trainer import Trainer

LORA = LoraConfig(rank=2, alpha=4, target_modules="q_proj,v_proj", layers="0-1")
TRAIN = TrainConfig(epochs=2, batch_size=3, learning_rate=0.05)


@pytest.fixture(autouse=True)
def numpy_learner(monkeypatch):
    monkeypatch.setattr(trainer_module, "lora_learner", FakeLearner)


def make(lora=None, valid=None, init_adapter=None, given=(), rows=None, **train):
    train = {"epochs": None, **train} if "iters" in train else train
    if isinstance(valid, float):
        train, valid = {**train, "valid": valid}, None
    config = dataclasses.replace(TRAIN, **train)
    return Trainer(
        FakeModel(), rows or fake_rows(), lora or LORA, config, valid, init_adapter, given
    )


def parameters(trainer):
    return trainer.learner.p


def numbers(results):
    """What of the results does not depend on the clock."""
    return [dataclasses.replace(r, elapsed_seconds=0.0, tokens_per_second=0.0) for r in results]


def same(a, b):
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


def test_every_step_is_reported_in_order():
    trainer = make()
    results = list(trainer.run())
    assert [r.step for r in results] == list(range(1, 11))  # ceil(14 / 3) = 5 steps an epoch
    assert [round(r.epoch, 6) for r in results] == [0.2, 0.4, 0.6, 0.8, 1, 1.2, 1.4, 1.6, 1.8, 2]
    assert [r.learning_rate for r in results] == [trainer.schedule(n) for n in range(1, 11)]
    lengths = sum(len(row.tokens) for row in trainer.rows.rows)
    trained = sum((row.targets >= 0).sum() for row in trainer.rows.rows)
    assert results[-1].tokens_seen == 2 * lengths
    assert sum(r.trained_tokens for r in results) == 2 * trained
    assert all(r.tokens_per_second > 0 for r in results)
    elapsed = [r.elapsed_seconds for r in results]
    assert elapsed == sorted(elapsed) and elapsed[0] > 0


def test_it_learns():
    results = list(make(epochs=30).run())
    assert results[-1].loss < 0.5 * results[0].loss


def test_first_loss_is_that_of_the_base():
    # B = 0: the toy base has equal logits
    assert next(make().run()).loss == pytest.approx(math.log(fake_learner.VOCAB), rel=1e-6)


def test_two_runs_are_bitwise_equal():
    a, b = make(), make()
    assert numbers(a.run()) == numbers(b.run())
    assert same(parameters(a), parameters(b))


@pytest.mark.parametrize(
    "change",
    [
        {"epochs": 3},
        {"iters": 4},
        {"batch_size": 2},
        {"grad_accum": 2},
        {"packing": True},
        {"learning_rate": 0.06},
        {"lr_schedule": "linear"},
        {"lr_schedule": "constant"},
        {"lr_schedule": "cosine-restarts"},
        {"lr_schedule": "cosine-restarts", "lr_period": 3},
        {"warmup_ratio": 0.5},
        {"warmup_steps": 3},
        {"weight_decay": 0.5},
        {"max_grad_norm": 0.01},
        {"max_grad_norm": 0},
        {"seed": 1},
        {"shuffle": False},
        {"valid": 0.3},
        {"lora": LoraConfig(rank=3, alpha=4, target_modules="q_proj,v_proj", layers="0-1")},
        {"lora": dataclasses.replace(LORA, alpha=5)},
        {"lora": dataclasses.replace(LORA, dropout=0.3)},
        {"lora": dataclasses.replace(LORA, target_modules="q_proj")},
        {"lora": dataclasses.replace(LORA, layers="2")},
    ],
    ids=str,
)
def test_each_option_changes_the_run(change):
    plain, changed = make(), make(**change)
    a, b = list(plain.run()), list(changed.run())
    assert numbers(a) != numbers(b) or not same(parameters(plain), parameters(changed))


@pytest.mark.parametrize("change", [{"eval_every": 1}, {"save_every": 1}, {"save_total_limit": 0}])
def test_looking_does_not_change_the_run(change):
    plain, changed = make(valid=fake_rows(5)), make(valid=fake_rows(5), **change)
    list(plain.run()), list(changed.run())
    assert same(parameters(plain), parameters(changed))


def test_engine_options_reach_the_learner():
    trainer = make(grad_checkpoint="on", capture="bf16")
    assert trainer.learner.options == {"grad_checkpoint": True, "capture": "bf16"}
    assert make().learner.options == {"grad_checkpoint": False, "capture": "f32"}


def test_row_order():
    rows = fake_rows(7)
    trainer = make(rows=rows, shuffle=False, epochs=1)
    list(trainer.run())
    assert [lines for lines, _ in trainer.learner.micros] == [(1, 2, 3), (4, 5, 6), (7,)]
    shuffled = make(rows=rows, epochs=2)
    list(shuffled.run())
    seen = [lines for lines, _ in shuffled.learner.micros]
    first, second = sum(seen[:3], ()), sum(seen[3:], ())
    assert sorted(first) == sorted(second) == list(range(1, 8))
    assert first != second


def test_accumulation_equals_the_large_batch():
    # three micro-batches of unequal token counts weigh by tokens: the same window as one batch
    small, large = make(batch_size=2, grad_accum=3), make(batch_size=6)
    a, b = list(small.run()), list(large.run())
    assert [r.trained_tokens for r in a] == [r.trained_tokens for r in b]
    np.testing.assert_allclose([r.loss for r in a], [r.loss for r in b], rtol=1e-6)
    np.testing.assert_allclose([r.grad_norm for r in a], [r.grad_norm for r in b], rtol=1e-5)
    for name, p in parameters(large).items():
        np.testing.assert_allclose(parameters(small)[name], p, rtol=1e-3, atol=1e-5)


def test_last_window_of_an_epoch_may_be_short():
    trainer = make(batch_size=3, grad_accum=2)  # 5 batches: windows of 2, 2, 1
    assert trainer.total_steps == 6
    list(trainer.run())
    assert [len(lines) for lines, _ in trainer.learner.micros[:5]] == [3, 3, 3, 3, 2]


def test_dropout_keys_differ_by_step_and_micro_batch():
    trainer = make(grad_accum=2)
    list(trainer.run())
    keys = [key for _, key in trainer.learner.micros]
    assert len(set(keys)) == len(keys)
    assert keys[:3] == [random.key(42, "dropout", *place) for place in ((1, 0), (1, 1), (2, 0))]


def test_iters_go_over_epochs():
    trainer = make(iters=12)
    assert trainer.total_steps == 12
    assert [r.step for r in trainer.run()][-1] == 12


# ---- start ------------------------------------------------------------------------------------


def test_initial_parameters():
    shapes = {"x.lora_a": (3, 50), "x.lora_b": (7, 3), "y.lora_a": (3, 50), "y.lora_b": (5, 3)}
    start = initial_parameters(shapes, 42)
    bound = 1 / math.sqrt(50)
    assert not start["x.lora_b"].any() and start["x.lora_b"].shape == (7, 3)
    a = start["x.lora_a"]
    assert a.dtype == np.float32 and abs(a).max() <= bound and abs(a).max() > 0.95 * bound
    assert abs(a.mean()) < 0.15 * bound
    assert not np.array_equal(a, start["y.lora_a"])
    alone = initial_parameters({"x.lora_a": (3, 50)}, 42)
    assert np.array_equal(alone["x.lora_a"], a)
    assert not np.array_equal(initial_parameters(shapes, 43)["x.lora_a"], a)


def test_adapter_brings_rank_alpha_and_targets():
    first = make()
    list(first.run())
    data = first.adapter_gguf()
    second = make(lora=LoraConfig(), init_adapter=data)
    assert second.lora == dataclasses.replace(LORA, target_modules="attn_q,attn_v")
    assert same(parameters(first), parameters(second))
    peft = read_adapter_peft(first.adapter_peft(), architecture="qwen2", n_head=2, n_head_kv=1)
    assert same(parameters(first), parameters(make(lora=LoraConfig(), init_adapter=peft)))
    assert make(lora=LORA, init_adapter=data).lora.rank == 2  # explicit, and the same


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rank": 4}, "rank = 4: init_adapter brings 2"),
        ({"alpha": 8}, "alpha = 8.0: init_adapter brings 4.0"),
        (
            {"target_modules": "q_proj"},
            "target_modules = q_proj: init_adapter brings attn_q,attn_v",
        ),
        ({"layers": "1"}, "layers = 1: init_adapter brings 0-1"),
    ],
)
def test_settings_that_differ_from_the_adapter(change, message):
    data = make().adapter_gguf()
    with pytest.raises(OptionError) as error:
        make(lora=dataclasses.replace(LORA, **change), init_adapter=data)
    assert message in str(error.value)


def test_explicit_default_that_differs_from_the_adapter():
    with pytest.raises(OptionError, match="rank = 16: init_adapter brings 2"):
        make(lora=LoraConfig(), init_adapter=make().adapter_gguf(), given=("rank",))


def test_adapter_of_another_model():
    adapter = make().adapter()
    with pytest.raises(FileError, match="'llama'"):
        make(init_adapter=dataclasses.replace(adapter, architecture="llama"))
    del adapter.tensors["blk.1.attn_q.weight"]
    with pytest.raises(OptionError, match="do not all have the same targets"):
        make(init_adapter=adapter)


# ---- validation -------------------------------------------------------------------------------


def test_validation_at_start_every_few_steps_and_at_the_end():
    trainer = make(valid=fake_rows(5), eval_every=4)
    results = list(trainer.run())
    assert [e.step for e in trainer.evaluations] == [0, 4, 8, 10]
    assert [r.step for r in results if r.eval_loss is not None] == [4, 8, 10]
    assert trainer.evaluations[0].loss == pytest.approx(math.log(fake_learner.VOCAB), rel=1e-6)
    assert results[-1].eval_loss == trainer.evaluate()[0] == trainer.evaluations[-1].loss
    assert trainer.evaluate()[1] == sum((r.targets >= 0).sum() for r in trainer.valid.rows)


def test_validation_at_start_and_end_alone():
    trainer = make(valid=fake_rows(5), eval_every=0)
    list(trainer.run())
    assert [e.step for e in trainer.evaluations] == [0, 10]


def test_fraction_is_held_out():
    trainer, again, other = make(valid=0.25), make(valid=0.25), make(valid=0.25, seed=1)
    held = [row.line for row in trainer.valid.rows]
    left = [row.line for row in trainer.rows.rows]
    assert len(held) == 4 and sorted(held + left) == list(range(1, 15))
    assert held == sorted(held) and left == sorted(left)
    assert held == [row.line for row in again.valid.rows] != [row.line for row in other.valid.rows]
    list(trainer.run())
    seen = {line for lines, _ in trainer.learner.micros for line in lines}
    assert seen == set(left)


def test_fraction_leaves_rows_on_both_sides():
    assert len(make(valid=0.001).valid.rows) == 1
    with pytest.raises(OptionError, match="leaves none of the 14 rows of rows.jsonl"):
        make(valid=0.99)


def test_validation_without_rows():
    with pytest.raises(OptionError, match="no validation rows"):
        make().evaluate()
    with pytest.raises(OptionError, match=r"valid = v.jsonl: load its rows"):
        make(valid=None).__class__(
            FakeModel(), fake_rows(), LORA, dataclasses.replace(TRAIN, valid="v.jsonl")
        )


def test_no_rows():
    with pytest.raises(OptionError, match="rows.jsonl: no row with a token to train"):
        make(rows=fake_rows(0))


def test_seq_len_of_other_rows():
    make(seq_len=16)
    with pytest.raises(OptionError, match="seq_len = 32: rows.jsonl has 16"):
        make(seq_len=32)


# ---- not finite -------------------------------------------------------------------------------


def test_not_finite_stops_with_the_place():
    good = make()
    before = []
    for result in good.run():
        before.append(result)
        if result.step == 6:
            break
    trainer = make()
    trainer.learner.poison_at = 7
    results = []
    with pytest.raises(NonFiniteError) as error:
        for result in trainer.run():
            results.append(result)
    assert numbers(results) == numbers(before)
    lines = sorted(trainer.learner.micros[6][0])
    text = f"in the rows of lines {lines[0]}, {lines[1]}, {lines[2]} of rows.jsonl"
    assert "step 7: loss nan" in str(error.value) and text in str(error.value)
    for again in (trainer.checkpoint, lambda: list(trainer.run())):
        with pytest.raises(NonFiniteError, match="step 7"):
            again()
    steady = make(iters=6)
    steady.schedule = trainer.schedule
    list(steady.run())
    assert same(parameters(trainer), parameters(steady))


def test_validation_that_is_not_finite():
    trainer = make(valid=fake_rows(5), eval_every=3)
    real = trainer.learner.evaluate

    async def evaluate(batches):
        return math.inf if trainer.step == 3 else (await real(batches))[0], 1

    trainer.learner.evaluate = evaluate
    results = []
    with pytest.raises(NonFiniteError, match="step 3: the validation loss is inf"):
        for result in trainer.run():
            results.append(result)
    assert [r.step for r in results] == [1, 2, 3]


# ---- checkpoints ------------------------------------------------------------------------------


@pytest.mark.parametrize("stop", range(1, 10))
def test_resumed_is_bitwise_the_undisturbed_run(stop):
    settings = {
        "lora": dataclasses.replace(LORA, dropout=0.2),
        "grad_accum": 2,
        "batch_size": 2,
        "epochs": 3,
        "save_every": 1,
        "weight_decay": 0.1,
    }
    whole = make(**settings)
    expected = list(whole.run())
    first = make(**settings)
    got = []
    for result in first.run():
        got.append(result)
        if result.step == stop:
            break
    files = first.checkpoint()
    second = make(**settings)
    second.restore(files)
    got += second.run()
    assert numbers(got) == numbers(expected)
    assert same(parameters(whole), parameters(second))
    assert same(whole.learner.m, second.learner.m) and same(whole.learner.v, second.learner.v)
    assert whole.adapter_gguf() == second.adapter_gguf()


def test_checkpoint_does_not_disturb():
    whole, looked_at = make(save_every=1), make(save_every=1)
    list(whole.run())
    for _ in looked_at.run():
        looked_at.checkpoint()
    assert same(parameters(whole), parameters(looked_at))


def test_checkpoint_in_the_middle_of_a_burst_is_of_the_newest_step(monkeypatch):
    monkeypatch.setattr(loop_module, "READ_SECONDS", 1e9)
    trainer = make()
    run = trainer.run()
    assert next(run).step == 1 and next(run).step == 2
    assert trainer.step == 9
    other = make()
    other.restore(trainer.checkpoint())
    assert other.step == 9
    assert [r.step for r in run] == list(range(3, 11))
    list(other.run())
    assert same(parameters(trainer), parameters(other))


def test_run_goes_on_where_it_was_left():
    trainer = make()
    for result in trainer.run():
        if result.step == 4:
            break
    assert [r.step for r in trainer.run()] == [5, 6, 7, 8, 9, 10]
    assert list(trainer.run()) == []


def test_restored_validates_again():
    trainer = make(valid=fake_rows(5), eval_every=4)
    start = trainer.checkpoint()
    list(trainer.run())
    first = list(trainer.evaluations)
    trainer.restore(start)
    assert trainer.evaluations == []
    list(trainer.run())
    assert trainer.evaluations == first


def test_many_epochs_are_counted_at_once():
    assert (
        make(iters=None, epochs=10**12).total_steps
        == 10**12 * make(iters=None, epochs=1).total_steps
    )


def test_stop_ends_the_run_without_losing_a_step():
    trainer = make()
    results = []
    for result in trainer.run():
        results.append(result)
        if result.step == 3:
            trainer.stop()
    assert [r.step for r in results] == list(range(1, trainer.step + 1)) and trainer.step < 10


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 1}, "seed = 1: run/step-3 was made with 42"),
        ({"learning_rate": 0.1}, "learning_rate = 0.1: run/step-3 was made with 0.05"),
        ({"lora": dataclasses.replace(LORA, alpha=5)}, "alpha = 5.0: run/step-3 was made with 4.0"),
        ({"lora": dataclasses.replace(LORA, layers="0-2")}, "its tensors are not those"),
        ({"rows": fake_rows(13)}, "rows.jsonl: run/step-3 was made with other rows"),
    ],
)
def test_checkpoint_of_another_run(change, message):
    trainer = make()
    next(trainer.run())
    with pytest.raises(OptionError) as error:
        make(**change).restore(trainer.checkpoint(), "run/step-3")
    assert message in str(error.value)


def test_checkpoint_may_be_looked_at_otherwise():
    trainer = make()
    next(trainer.run())
    make(eval_every=1, save_every=7, save_total_limit=9).restore(trainer.checkpoint())


@pytest.mark.parametrize("name", ["state.json", "adapter.gguf", "optimizer.safetensors"])
def test_damaged_checkpoint(name):
    files = make().checkpoint()
    generator = np.random.default_rng(3)
    with pytest.raises(FileError, match=f"at: {name} is missing"):
        make().restore({k: v for k, v in files.items() if k != name}, "at")
    broken = [files[name][:n] for n in generator.integers(0, len(files[name]) - 2, 20)]
    for place in generator.integers(0, len(files[name]), 20):
        data = bytearray(files[name])
        data[place] ^= 0x11
        broken.append(bytes(data))
    for data in broken:
        with pytest.raises(FileError, match=f"at/{name}"):
            make().restore({**files, name: data}, "at")


# ---- forms ------------------------------------------------------------------------------------


def test_adapter_files_say_what_they_are():
    trainer = make()
    list(trainer.run())
    adapter = read_adapter_gguf(trainer.adapter_gguf(), "a")
    assert (adapter.architecture, adapter.rank, adapter.alpha) == ("qwen2", 2, 4.0)
    assert adapter.metadata["base.name"] == "Fake"
    assert adapter.metadata["base.fingerprint"] == FakeModel.fingerprint
    assert adapter.metadata["rank"] == 2 and adapter.metadata["target_modules"] == "q_proj,v_proj"
    for base, (a, b) in adapter.tensors.items():
        assert np.array_equal(a, parameters(trainer)[f"{base}.lora_a"])
        assert np.array_equal(b, parameters(trainer)[f"{base}.lora_b"])


def test_awaitable_form_and_running_loop():
    blocking = make()
    expected = numbers(blocking.run())

    async def awaiting():
        trainer = make()
        results = [result async for result in trainer.aio.run()]
        return numbers(results), await trainer.aio.adapter_gguf()

    async def inside_a_loop():
        trainer = make()
        return numbers(trainer.run()), trainer.adapter_gguf()

    for form in (awaiting, inside_a_loop):
        assert asyncio.run(form()) == (expected, blocking.adapter_gguf())
    with pytest.raises(AttributeError, match="no awaitable method 'close'"):
        _ = blocking.aio.close


def test_fit_shows_every_step():
    shown = []

    class Watcher:
        def __init__(self, trainer):
            shown.append(trainer)

        def __enter__(self):
            return shown.append

        def __exit__(self, *error):
            shown.append("closed")

    host = dataclasses.replace(FakeModel.host, watch=Watcher)
    trainer = Trainer(FakeModel(), fake_rows(), LORA, TRAIN, host=host)
    assert trainer.fit() is trainer
    assert shown[0] is trainer and shown[-1] == "closed"
    assert [r.step for r in shown[1:-1]] == list(range(1, 11))


def test_train_on_must_be_that_of_the_rows() -> None:
    rows = dataclasses.replace(make().rows, train_on="completions")
    with pytest.raises(OptionError, match=r"train_on = 'all'.*'completions'"):
        make(rows=rows, train_on="all")


def test_parameters_that_overflowed_are_not_handed_out() -> None:
    trainer = make()
    list(trainer.run())
    values = parameters(trainer)
    name = next(iter(values))
    values[name].flat[0] = np.nan
    trainer.learner.set_parameters(values)
    for save in (trainer.adapter_gguf, trainer.adapter_peft, trainer.checkpoint):
        with pytest.raises(NonFiniteError, match="1 of .* matrices"):
            save()
