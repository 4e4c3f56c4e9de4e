"""Settings: bounds, other spellings, precedence, and all failures at once."""

import dataclasses

import pytest
import yaml

from wgtrain.data.examples import KINDS
from wgtrain.errors import OptionError
from wgtrain.train.config import LoraConfig, RunConfig, TrainConfig
from wgtrain.train.settings import as_mapping, build, canonical, changed, merge

ALL = (RunConfig, LoraConfig, TrainConfig)
RUN = {"model": "m.gguf", "data": "d.jsonl"}


def test_defaults_are_those_of_the_interface():
    assert dataclasses.asdict(LoraConfig()) == {
        "rank": 16,
        "alpha": 32.0,
        "dropout": 0.0,
        "target_modules": "all-linear",
        "layers": "all",
    }
    train = TrainConfig()
    expected = {
        "method": "lora",
        "epochs": 3,
        "iters": None,
        "batch_size": 4,
        "grad_accum": 1,
        "seq_len": 512,
        "packing": False,
        "learning_rate": 2e-4,
        "lr_schedule": "cosine",
        "warmup_ratio": 0.03,
        "warmup_steps": None,
        "optimizer": "adamw",
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "train_on": "completions",
        "grad_checkpoint": "auto",
        "capture": "f32",
        "tuning": "auto",
        "valid": None,
        "seed": 42,
        "shuffle": True,
    }
    assert {name: getattr(train, name) for name in expected} == expected


@pytest.mark.parametrize("config", ALL)
def test_every_field_declares_itself(config):
    for f in dataclasses.fields(config):
        assert f.metadata["setting"].help, f.name


@pytest.mark.parametrize(
    ("name", "bad", "good"),
    [
        ("rank", [0, -1, 1.5, "x", True, ""], [1, "7"]),
        ("alpha", [0, -1, "nan", "inf", "x", True], [1, 0.5, "1e-2"]),
        ("dropout", [-0.1, 1, 1.5, "nan"], [0, 0.999]),
        ("target_modules", [[]], ["q_proj", ["q_proj", "v_proj"], "attn_q , lm_head"]),
        ("layers", ["", "0", 0, "-1", "3-1", "a", "1,,2", "1-", True], ["all", 2, "0-3,8", "5-5"]),
        ("method", ["dora", "LoRA", ""], ["lora"]),
        ("epochs", [0, -3, 1.5, "x"], [1, "2"]),
        ("iters", [0, -1], [1]),
        ("batch_size", [0, -4, "4.0"], [1]),
        ("grad_accum", [0], [1, 8]),
        ("seq_len", [1, 0, -5], [2, 4096]),
        ("packing", ["yes", 1, "maybe"], [True, "true", "False"]),
        ("learning_rate", [0, -1e-4, "inf", "nan", "fast"], ["2e-4", 1]),
        ("lr_schedule", ["Cosine", "poly", 1], ["constant", "linear", "cosine-restarts"]),
        ("warmup_ratio", [-0.1, 1.1], [0, 1, "0.5"]),
        ("warmup_steps", [-1, 0.5], [0, 10]),
        ("optimizer", ["sgd", "AdamW"], ["adamw"]),
        ("weight_decay", [-1, "nan"], [0, 0.5]),
        ("max_grad_norm", [-1, "inf"], [0, 2]),
        ("train_on", ["prompt"], ["all"]),
        ("grad_checkpoint", ["maybe", 1], ["on", "off", True, False]),
        ("tuning", ["fast", True], ["auto", "default", "measure"]),
        ("capture", ["f16"], ["bf16"]),
        ("valid", [0, 1, -0.1, "1.5", "nan", "", True], [0.1, "0.25", "v.jsonl"]),
        ("eval_every", [-1], [0, 5]),
        ("save_every", [-1], [0, 5]),
        ("save_total_limit", [-1], [0, 5]),
        ("seed", [-1, 2**63, 0.5], [0, 2**63 - 1]),
        ("shuffle", ["on", 0], [False, "true"]),
        ("adapter_index", [-1, "a"], [0, "1"]),
        ("kind", ["alpaca", "", 1], list(KINDS)),
        ("precision", ["bf16", "F16", 16], ["f32", "f16"]),
    ],
)
def test_bounds(name, bad, good):
    (config,) = [c for c in ALL if name in {f.name for f in dataclasses.fields(c)}]
    rest = RUN if config is RunConfig else {}
    for value in good:
        config(**rest, **{name: value})
    for value in bad:
        with pytest.raises(OptionError, match=f"^{name} = .*allowed is "):
            config(**rest, **{name: value})


@pytest.mark.parametrize("value", ["", "q_proj,,v_proj", "q_prj", ["q_proj", "embed"]])
def test_unknown_modules(value):
    for wrong in (5, [], [3], None):
        with pytest.raises(OptionError, match="target_modules = .*: allowed is (names|a text)"):
            LoraConfig(target_modules=wrong)
    with pytest.raises(OptionError, match="target_modules: unknown module .*allowed: all-linear"):
        LoraConfig(target_modules=value)


def test_values_are_converted():
    assert LoraConfig(target_modules=["q_proj", "v_proj", "q_proj"]).target_modules == (
        "q_proj,v_proj"
    )
    assert LoraConfig(layers=4).layers == "4"
    assert TrainConfig(learning_rate="2e-4").learning_rate == 2e-4
    assert TrainConfig(valid="0.25").valid == 0.25
    assert TrainConfig(grad_checkpoint=True).grad_checkpoint == "on"
    assert isinstance(TrainConfig(learning_rate=1).learning_rate, float)


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        ("all", (0, 1, 2, 3, 4, 5)),
        ("2", (4, 5)),
        ("6", (0, 1, 2, 3, 4, 5)),
        ("0-1,4", (0, 1, 4)),
        ("4,0-1,1-2", (0, 1, 2, 4)),
        ("3-3", (3,)),
    ],
)
def test_layers(layers, expected):
    assert LoraConfig(layers=layers).layer_indices(6) == expected


@pytest.mark.parametrize("layers", ["7", "0-6", "6-6", "1,9"])
def test_layers_the_model_does_not_have(layers):
    with pytest.raises(OptionError, match="the model has 6 blocks"):
        LoraConfig(layers=layers).layer_indices(6)


def test_all_failures_at_once():
    with pytest.raises(OptionError) as error:
        build({"rank": 0, "batch_size": "x", "lr_schedule": "poly", "seed": -1}, *ALL)
    text = str(error.value)
    for part in (
        "model: needed",
        "data: needed",
        "rank = 0: allowed is a whole number, at least 1",
        "batch_size = x: allowed is a whole number, at least 1",
        "lr_schedule = poly: allowed is constant or linear or cosine or cosine-restarts",
        "seed = -1: ",
    ):
        assert part in text


@pytest.mark.parametrize(
    ("loser", "winner", "values"),
    [("epochs", "iters", (3, 10)), ("warmup_ratio", "warmup_steps", (0.03, 5))],
)
def test_settings_that_exclude_each_other(loser, winner, values):
    assert getattr(TrainConfig(**{winner: values[1]}), loser) is None
    both = {loser: values[0], winner: values[1]}
    with pytest.raises(OptionError, match=f"{loser}, {winner}: only one of them may be given"):
        build(both, TrainConfig)  # explicit, even if it is the default
    with pytest.raises(OptionError, match=f"{loser}, {winner}: only one"):
        TrainConfig(**{loser: values[0] * 2, winner: values[1]})
    with pytest.raises(OptionError, match=f"{loser}, {winner}: one of them is needed"):
        TrainConfig(**{loser: None})
    file = {loser: values[0], "seed": 1}
    assert merge(file, {winner: values[1]}, [TrainConfig]) == {"seed": 1, winner: values[1]}


def test_restart_period_needs_restarts():
    TrainConfig(lr_schedule="cosine-restarts", lr_period=5)
    with pytest.raises(OptionError, match="lr_period = 5: only for lr_schedule = cosine-restarts"):
        TrainConfig(lr_period=5)


def test_other_spellings():
    given = {
        "max_seq_length": 64,
        "grad_accumulation_steps": 2,
        "lora_r": 8,
        "lora_alpha": 4,
        "lora_dropout": 0.1,
        "mask_prompt": False,
    }
    assert canonical(given, ALL, "c.yaml") == {
        "seq_len": 64,
        "grad_accum": 2,
        "rank": 8,
        "alpha": 4,
        "dropout": 0.1,
        "train_on": "all",
    }
    assert canonical({"mask_prompt": True}, ALL, "c.yaml") == {"train_on": "completions"}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"learning_rat": 1}, "c.yaml: unknown setting 'learning_rat'; did you mean 'learning_ra"),
        ({"zzz": 1}, "c.yaml: unknown setting 'zzz'; did you mean '"),
        ({"batch-size": 1}, "unknown setting 'batch-size'; did you mean 'batch_size'?"),
        ({1: 1}, "unknown setting 1; did you mean"),
        ({"rank": 1, "lora_r": 1}, "c.yaml: 'rank' is given twice, as 'rank' and as 'lora_r'"),
        ({"mask_prompt": "all"}, "c.yaml: mask_prompt = all: allowed is true or false"),
    ],
)
def test_unusable_keys(given, message):
    with pytest.raises(OptionError) as error:
        canonical(given, ALL, "c.yaml")
    assert message in str(error.value)


def test_command_line_over_file_over_defaults():
    file = {"rank": 4, "alpha": 8, "batch_size": 2}
    merged = merge(file, {"rank": 2, "alpha": None}, ALL)
    _, lora, train = build(RUN | merged, *ALL)
    assert (lora.rank, lora.alpha, train.batch_size, train.grad_accum) == (2, 8.0, 2, 1)


def test_used_settings_read_back_as_the_same():
    configs = (
        RunConfig(model="m", data="d", adapter_index=1),
        LoraConfig(rank=3, layers="0-1,4", target_modules="q_proj,v_proj"),
        TrainConfig(iters=7, warmup_steps=2, valid=0.1, grad_checkpoint="on", shuffle=False),
    )
    text = yaml.safe_dump(as_mapping(*configs))
    assert build(canonical(yaml.safe_load(text), ALL, "x"), *ALL) == configs


def test_changed():
    assert changed(LoraConfig()) == set()
    assert changed(LoraConfig(rank=4, layers="2")) == {"rank", "layers"}
