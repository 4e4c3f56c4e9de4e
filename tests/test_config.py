"""Settings: bounds, other spellings, precedence, and all failures at once."""

import dataclasses

import pytest
import yaml

from wgtrain.data.examples import KINDS
from wgtrain.errors import OptionError
from wgtrain.train import spellings
from wgtrain.train.config import CONFIGS as ALL
from wgtrain.train.config import LoraConfig, RunConfig, TrainConfig
from wgtrain.train.settings import as_mapping, build, canonical, changed, merge

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
        ("rank", [0, -1, 1.5, "x", True, "", "1_6", "\u0661\u0666", "0x10", "7.0"], [1, "7", "+7"]),
        ("alpha", [0, "nan", "inf", "x", True, "1_6", "\u0661", "1e", "."], [1, 0.5, "1e-2", ".5"]),
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
        (
            "valid",
            [0, 1, -0.1, "1.5", "nan", "", True, "0_1", "\u0660.1"],
            [0.1, "0.25", "v.jsonl"],
        ),
        ("eval_every", [-1], [0, 5]),
        ("save_every", [-1], [0, 5]),
        ("save_total_limit", [-1], [0, 5]),
        ("seed", [-1, 2**63, 0.5], [0, 2**63 - 1]),
        ("shuffle", ["on", 0], [False, "true"]),
        ("test", ["on", 1, "test.jsonl"], [True, "false"]),
        ("adapter_index", [-1, "a"], [0, "1"]),
        ("kind", ["alpaca", "", 1], list(KINDS)),
        ("precision", ["bf16", "F16", 16], ["f32", "f16"]),
        ("quantize_base", ["fp4", "NF4", 4], ["nf4", "nf4-double", "int4", "int8"]),
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


def test_paths_from_the_home_folder(monkeypatch):
    monkeypatch.setenv("HOME", "/somewhere")
    monkeypatch.setenv("USERPROFILE", "/somewhere")
    run = RunConfig(model="~/m.gguf", data="~/d", out="~/o", init_adapter="~/a.gguf")
    assert (run.model, run.data) == ("/somewhere/m.gguf", "/somewhere/d")
    assert (run.out, run.init_adapter) == ("/somewhere/o", "/somewhere/a.gguf")
    assert TrainConfig(valid="~/v.jsonl").valid == "/somewhere/v.jsonl"
    assert RunConfig(model="a~/m", data="./~/d").data == "./~/d"


LONG = {
    "digits": "9" * 10**5,
    "integer": 10**5000,
    "list": ["x"] * 10**6,
    "escape": "a\x1b[2J",
    "lists": [[[["x"] * 99] * 99] * 99] * 99,
}


@pytest.mark.parametrize("value", LONG)
def test_values_do_not_fill_the_screen(value):
    with pytest.raises(OptionError, match=r"^rank = .*: allowed is") as error:
        LoraConfig(rank=LONG[value])
    assert len(str(error.value)) < 200 and str(error.value).isprintable()


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
        ({"zzz": 1}, "c.yaml: unknown setting 'zzz'; known are model, data, kind, "),
        ({"lr": 1}, "c.yaml: unknown setting 'lr'; did you mean 'learning_rate'?"),
        ({"Num-Train-Epochs": 1}, "unknown setting 'Num-Train-Epochs'; did you mean 'epochs'?"),
        ({"batch-size": 1}, "unknown setting 'batch-size'; did you mean 'batch_size'?"),
        ({1: 1}, "unknown setting 1; known are model"),
        ({"rank": 1, "lora_r": 1}, "c.yaml: 'rank' is given twice, as 'rank' and as 'lora_r'"),
        ({"mask_prompt": "all"}, "c.yaml: mask_prompt = all: allowed is true or false"),
    ],
)
def test_unusable_keys(given, message):
    with pytest.raises(OptionError) as error:
        canonical(given, ALL, "c.yaml")
    assert message in str(error.value)


ELSEWHERE = {  # as they stand in the documentation of PEFT, TRL, Axolotl, LLaMA-Factory, mlx-lm
    "r": "rank",
    "lora_rank": "rank",
    "lora_target_modules": "target_modules",
    "lora_target": "target_modules",
    "layers_to_transform": "layers",
    "num_layers": "layers",
    "fine_tune_type": "method",
    "finetuning_type": "method",
    "num_epochs": "epochs",
    "num_train_epochs": "epochs",
    "max_steps": "iters",
    "per_device_train_batch_size": "batch_size",
    "micro_batch_size": "batch_size",
    "gradient_accumulation_steps": "grad_accum",
    "max_seq_len": "seq_len",
    "max_length": "seq_len",
    "sequence_len": "seq_len",
    "cutoff_len": "seq_len",
    "sample_packing": "packing",
    "lr": "learning_rate",
    "lr_scheduler_type": "lr_schedule",
    "warmup": "warmup_steps",
    "optim": "optimizer",
    "gradient_checkpointing": "grad_checkpoint",
    "gradient_clipping": "max_grad_norm",
    "train_on_inputs": "train_on",
    "val_set_size": "valid",
    "eval_steps": "eval_every",
    "steps_per_eval": "eval_every",
    "save_steps": "save_every",
    "random_state": "seed",
    "output_dir": "out",
    "adapter_path": "out",
    "model_name_or_path": "model",
    "base_model": "model",
    "dataset": "data",
    "adapter_name_or_path": "init_adapter",
}


@pytest.mark.parametrize("other", ELSEWHERE)
def test_names_of_other_trainers(other):
    with pytest.raises(OptionError, match=f"did you mean '{ELSEWHERE[other]}'\\?"):
        canonical({other: 1}, ALL, "c.yaml")


def test_every_name_elsewhere_is_of_a_setting_and_of_none_here():
    here = {f.name for config in ALL for f in dataclasses.fields(config)} | {"resume"}
    assert set(spellings._ELSEWHERE) <= here
    others = [name for names in spellings._ELSEWHERE.values() for name in names.split()]
    assert len(others) == len(set(others)) and not here & set(others)


def test_keywords_that_a_config_does_not_have():
    with pytest.raises(OptionError) as error:
        TrainConfig(lr=1, num_epochs=3, seed=1)
    assert str(error.value).splitlines() == [
        "TrainConfig: unknown setting 'lr'; did you mean 'learning_rate'?",
        "TrainConfig: unknown setting 'num_epochs'; did you mean 'epochs'?",
    ]
    with pytest.raises(OptionError, match="did you mean 'learning_rate' of TrainConfig?"):
        LoraConfig(lr=1)
    assert dataclasses.replace(TrainConfig(), seed=1).seed == 1


def test_command_line_over_file_over_defaults():
    file = {"rank": 4, "alpha": 8, "batch_size": 2}
    merged = merge(file, {"rank": 2, "alpha": None}, ALL)
    _, lora, train = build(RUN | merged, *ALL)
    assert (lora.rank, lora.alpha, train.batch_size, train.grad_accum) == (2, 8.0, 2, 1)


def test_used_settings_read_back_as_the_same():
    configs = (
        RunConfig(model="m", data="d", adapter_index=1, test=True),
        LoraConfig(rank=3, layers="0-1,4", target_modules="q_proj,v_proj"),
        TrainConfig(iters=7, warmup_steps=2, valid=0.1, grad_checkpoint="on", shuffle=False),
    )
    text = yaml.safe_dump(as_mapping(*configs))
    assert build(canonical(yaml.safe_load(text), ALL, "x"), *ALL) == configs


def test_changed():
    assert changed(LoraConfig()) == set()
    assert changed(LoraConfig(rank=4, layers="2")) == {"rank", "layers"}
