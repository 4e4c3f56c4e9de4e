"""The trainer on the real engine: options, determinism, resuming, what is not finite."""

import dataclasses

import numpy as np
import pytest
import tiny

import wgtrain
from wgtrain.data import Dataset, Row
from wgtrain.errors import DeviceLostError, NonFiniteError, OptionError
from wgtrain.train.config import LoraConfig, TrainConfig
from wgtrain.train.trainer import Trainer

pytestmark = pytest.mark.gpu

LORA = LoraConfig(rank=3, alpha=6, target_modules="q_proj,down_proj", layers="1-2")
TRAIN = TrainConfig(epochs=None, iters=4, batch_size=2, learning_rate=0.01, warmup_steps=1)


@pytest.fixture(scope="module")
def model():
    with wgtrain.load_model(tiny.tiny("llama").gguf, limits="default") as opened:
        yield opened


def rows(lengths=(9, 17, 5, 12, 7), seed=0):
    pairs = tiny.random_rows(tiny.SPECS["llama"], list(lengths), seed)
    return Dataset([Row(*pair, line) for line, pair in enumerate(pairs, 1)], "rows", 32)


@pytest.fixture
def make(model):
    """A function that makes trainers, which are closed in the end."""
    made = []

    def trainer(lora=LORA, valid=None, data=None, **train):
        config = dataclasses.replace(TRAIN, **train)
        made.append(Trainer(model, data or rows(), lora, config, valid))
        return made[-1]

    yield trainer
    for each in made:
        each.close()


def outcome(trainer):
    """(losses and gradient norms, adapter bytes) of a whole run."""
    results = list(trainer.run())
    return [(r.loss, r.grad_norm, r.trained_tokens) for r in results], trainer.adapter_gguf()


@pytest.fixture(scope="module")
def plain(model):
    trainer = Trainer(model, rows(), LORA, TRAIN)
    yield outcome(trainer)
    trainer.close()


def test_two_runs_are_bitwise_equal(make, plain):
    assert outcome(make()) == plain


def test_another_trainer_on_a_model_compiles_nothing(make, model, plain, monkeypatch):
    monkeypatch.setattr(model.device, "_pipelines", {})
    outcome(make())
    compile_, compiled = model.device._compile, []

    async def counted(name, *rest):
        compiled.append(name)
        return await compile_(name, *rest)

    monkeypatch.setattr(model.device, "_compile", counted)
    assert outcome(make()) == plain
    assert not compiled
    outcome(make(dataclasses.replace(LORA, target_modules="lm_head")))
    assert compiled  # the loss reads an adapter: another kernel


@pytest.mark.parametrize(
    "change",
    [
        {"rank": 4},
        {"alpha": 5},
        {"dropout": 0.1},
        {"target_modules": "q_proj"},
        {"target_modules": "q_proj,down_proj,lm_head"},
        {"target_modules": "all-linear"},
        {"layers": "all"},
        {"layers": "1"},
    ],
    ids=str,
)
def test_adapter_options_change_the_run(make, plain, change):
    trainer = make(dataclasses.replace(LORA, **change))
    steps, adapter = outcome(trainer)
    assert steps[1:] != plain[0][1:] and adapter != plain[1]


@pytest.mark.parametrize(
    "change",
    [
        {"capture": "bf16"},
        {"max_grad_norm": 0.01},
        {"max_grad_norm": 0},
        {"weight_decay": 0.5},
        {"learning_rate": 0.02},
        {"lr_schedule": "constant"},
        {"seed": 7},
        {"packing": True},
        {"grad_accum": 2},
        {"shuffle": False},
    ],
    ids=str,
)
def test_training_options_change_the_run(make, plain, change):
    _, adapter = outcome(make(**change))
    assert adapter != plain[1]


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_recomputed_activations_give_the_same_numbers(make, dropout):
    lora = dataclasses.replace(LORA, dropout=dropout, target_modules="all-linear", layers="all")
    kept, recomputed = make(lora), make(lora, grad_checkpoint="on")
    assert outcome(kept) == outcome(recomputed)
    assert recomputed.learner.nbytes < kept.learner.nbytes


def test_targets_and_layers(make):
    lora = LoraConfig(rank=2, target_modules="attn_k,lm_head", layers="0-0,2-2")
    names = {"blk.0.attn_k.weight", "blk.2.attn_k.weight", "output.weight"}
    assert set(make(lora).adapter().tensors) == names
    with pytest.raises(OptionError, match="layers = 3-3: the model has 3 blocks"):
        make(LoraConfig(layers="3-3"))


def test_accumulation_equals_the_large_batch(make):
    data = rows((9, 17, 5, 12, 7, 8, 6, 11))
    small, large = make(data=data, grad_accum=2), make(data=data, batch_size=4)
    a, b = list(small.run()), list(large.run())
    assert [r.trained_tokens for r in a] == [r.trained_tokens for r in b]
    np.testing.assert_allclose([r.loss for r in a], [r.loss for r in b], rtol=1e-6)
    np.testing.assert_allclose([r.grad_norm for r in a], [r.grad_norm for r in b], rtol=1e-5)


def test_packing_does_not_mix_rows(make):
    """One batch of rows behind one another equals the rows one by one."""
    data = rows((9, 17, 5))
    packed = make(data=data, iters=2, packing=True, batch_size=3, shuffle=False)
    single = make(data=data, iters=2, grad_accum=3, batch_size=1, shuffle=False)
    a, b = list(packed.run()), list(single.run())
    np.testing.assert_allclose([r.loss for r in a], [r.loss for r in b], rtol=1e-6)


def test_validation_changes_nothing(make, plain):
    trainer = make(valid=rows((6, 13, 31), seed=5), eval_every=1)
    steps, adapter = outcome(trainer)
    assert (steps, adapter) == plain
    assert [e.step for e in trainer.evaluations] == [0, 1, 2, 3, 4]
    base = trainer.evaluations[0]
    assert base.count == sum((row.targets >= 0).sum() for row in trainer.valid.rows)
    assert trainer.evaluations[-1].loss == trainer.evaluate()[0] != base.loss


def test_validation_loss_is_that_of_the_logits(make, model):
    valid = rows((6, 13, 31), seed=5)
    loss, count = make(valid=valid).evaluate()
    total = 0.0
    for row in valid.rows:
        logits = model.logits(row.tokens).astype(np.float64)
        trained = np.flatnonzero(row.targets >= 0)
        chosen = logits[trained, row.targets[trained]]
        total += (np.log(np.exp(logits[trained]).sum(1)) - chosen).sum()
    assert loss == pytest.approx(total / count, rel=1e-5)


@pytest.mark.parametrize("stop", [1, 2, 3])
def test_resumed_is_bitwise_the_undisturbed_run(make, stop):
    settings = {"save_every": 1, "grad_accum": 2, "weight_decay": 0.1}
    lora = dataclasses.replace(LORA, dropout=0.2)
    whole = make(lora, **settings)
    expected = outcome(whole)
    first, second = make(lora, **settings), make(lora, **settings)
    got = []
    for result in first.run():
        got.append((result.loss, result.grad_norm, result.trained_tokens))
        if result.step == stop:
            break
    second.restore(first.checkpoint())
    rest, adapter = outcome(second)
    assert (got + rest, adapter) == expected
    for kind in range(2):
        a, b = (wgtrain.run(t.learner.moments())[kind] for t in (whole, second))
        assert all(np.array_equal(a[name], b[name]) for name in a)


def test_adapter_is_read_back(make, model):
    trainer = make()
    list(trainer.run())
    again = Trainer(model, rows(), None, TRAIN, init_adapter=trainer.adapter_gguf())
    assert again.lora == dataclasses.replace(LORA, target_modules="attn_q,ffn_down")
    assert again.adapter_gguf()[:4] == b"GGUF"
    for name, pair in trainer.adapter().tensors.items():
        assert all(map(np.array_equal, pair, again.adapter().tensors[name]))
    again.close()


def test_training_starts_from_whatever_is_an_adapter(make, model, tmp_path):
    trainer = make()
    (tmp_path / "a.gguf").write_bytes(trainer.adapter_gguf())
    for file, data in trainer.adapter_peft().items():
        (tmp_path / file).write_bytes(data)
    for given in (tmp_path / "a.gguf", str(tmp_path), trainer.adapter()):
        again = Trainer(model, rows(), None, TRAIN, init_adapter=given)
        assert again.lora.rank == LORA.rank and again.adapter_gguf()
        again.close()
    with pytest.raises(OptionError, match="adapter: 5: a path, an Adapter, or its bytes"):
        Trainer(model, rows(), None, TRAIN, init_adapter=5)


@pytest.mark.parametrize(
    "pair", ["a.gguf", "ab", 5, ("a.gguf",), ("a.gguf", "1"), ("a.gguf", np.nan), ("a", 1, 2)]
)
def test_adapters_that_are_no_pairs(model, pair):
    with pytest.raises(OptionError, match=r"adapters\[0\] = .*: \(adapter, strength\) is needed"):
        model.logits([1], adapters=[pair])


@pytest.mark.parametrize("tokens", [5, [1.7], "abc", [None], [[1, 2]]])
def test_tokens_that_are_no_whole_numbers(model, tokens):
    with pytest.raises(OptionError, match="tokens: .*: a list of whole numbers is needed"):
        model.logits(tokens)


@pytest.mark.parametrize("prompt", [b"a", None, [1, 2], [], {"role": "user", "content": "a"}])
def test_prompts_that_are_neither_text_nor_messages(model, prompt):
    with pytest.raises(OptionError, match="messages.*: (a list|.*is not an object|.*is empty)"):
        next(model.generate(prompt))


@pytest.mark.parametrize("wrong", ["3", -1, 2.0, True])
def test_numbers_of_tokens_that_are_none(model, wrong):
    with pytest.raises(OptionError, match="max_tokens = .*: allowed is a whole number, at least 0"):
        list(model.generate("a", max_tokens=wrong))


def test_things_that_cannot_be_read(model):
    for wrong in (3, None, [5]):
        with pytest.raises(OptionError, match="a path, bytes, or an object with read_range"):
            wgtrain.load_model(wrong)
    for wrong in (5, [{"text": "a"}], None):
        with pytest.raises(OptionError, match="a path, or the bytes of JSONL are needed"):
            wgtrain.load_dataset(wrong, None)
    with pytest.raises(OptionError, match="limits = 'most': allowed is 'default' or None"):
        wgtrain.load_model(tiny.tiny("llama").gguf, limits="most")


def test_not_finite_stops_and_changes_nothing(make):
    """A weight decay that overflows the parameters: step 3 sees infinities."""
    settings = {"learning_rate": 1e3, "weight_decay": 1e30, "lr_schedule": "constant", "iters": 6}
    trainer = make(**settings, warmup_ratio=None)
    results = []
    with pytest.raises(NonFiniteError, match=r"step \d: loss .* in the rows of lines") as error:
        for result in trainer.run():
            results.append(result)
    assert len(results) < 5
    assert f"step {len(results) + 1}:" in str(error.value)
    good = make(**{**settings, "iters": len(results)})
    list(good.run())
    assert trainer.adapter_gguf() == good.adapter_gguf()


def test_a_checkpoint_revives_a_run_that_was_not_finite(make, plain):
    trainer = make()
    start = trainer.checkpoint()
    poison = {name: np.full(shape, np.nan) for name, shape in trainer.learner.shapes.items()}
    trainer.learner.set_parameters(poison)
    with pytest.raises(NonFiniteError, match="step 1"):
        list(trainer.run())
    trainer.restore(start)
    assert outcome(trainer) == plain


def test_a_closed_trainer_has_no_adapter(model):
    trainer = Trainer(model, rows(), LORA, TRAIN)
    next(iter(trainer.run()))
    trainer.close()
    calls = (trainer.adapter_gguf, trainer.checkpoint, trainer.build, lambda: list(trainer.run()))
    for call in calls:
        with pytest.raises(DeviceLostError, match="the trainer was closed"):
            call()


def test_a_model_closed_inside_the_loop():
    with wgtrain.load_model(tiny.tiny("llama").gguf, limits="default") as model:
        trainer = Trainer(model, rows(), LORA, TRAIN)
        with pytest.raises(DeviceLostError, match="the device was closed"):
            for _ in trainer.run():
                model.close()
        for call in (trainer.adapter, trainer.checkpoint, lambda: list(trainer.run())):
            with pytest.raises(DeviceLostError):
                call()
        trainer.close()


def test_a_learner_closed_inside_the_loop(make):
    trainer = make()
    steps = trainer.run()
    next(steps)
    trainer.learner.close()
    with pytest.raises(DeviceLostError, match="not on the GPU"):
        list(steps)


def test_memory_is_given_back(model):
    before = model.device.allocated
    trainer = Trainer(model, rows(), LORA, TRAIN)
    assert model.device.allocated == before
    trainer.build()
    assert model.device.allocated == before + trainer.learner.nbytes
    trainer.close()
    assert model.device.allocated == before
