"""Training here is training by PyTorch and PEFT: logits, gradients and whole runs of tiny models.

The reference is PEFT in float64 on the weights of the file, dequantised. `record` writes how far
PyTorch's own float32 is from it, beside ours.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import random_model as rm
from figures import record
from peft_oracle import Pairs, Peft, Rows, Run, Settings, Tensors
from tiny import LINEARS, SPECS, TYPES, Tiny, from_gguf, random_adapter, random_rows, targets, tiny

import wgtrain
from wgtrain.data.batches import make_batch
from wgtrain.data.jsonl import Dataset, Row
from wgtrain.files.adapters import Adapter, read_adapter_gguf

pytestmark = [pytest.mark.oracle, pytest.mark.gpu]

SETTINGS = Settings()
ALPHA = 6.0
RANK = 3
LOGITS, GRADIENT, LOSS, NORM, UPDATE = 1e-5, 1e-4, 1e-5, 1e-4, 1e-3  # the bounds of the claim
CASES = [(name, type) for type in TYPES for name in SPECS]
# Each must be told from the reference by `failures`, or agreement means nothing.
CONTROLS = {
    "A frozen": {"freeze_a": True},
    "no decay": {"weight_decay": 0.0},
    "learning rate + 1 %": {"learning_rate": SETTINGS.learning_rate * 1.01},
    "no clipping": {"max_grad_norm": 0.0},
    "no warm-up": {"warmup": 0},
}


def relative(ours: np.ndarray, reference: np.ndarray) -> float:
    """Relative L2 distance."""
    return float(np.linalg.norm(ours - reference) / np.linalg.norm(reference))


def worst(ours: Tensors, reference: Tensors) -> tuple[float, str]:
    """The largest relative L2 distance of any tensor, and its name."""
    assert set(ours) == set(reference), set(ours) ^ set(reference)
    return max((relative(ours[name], reference[name]), name) for name in reference)


@dataclass(frozen=True)
class Distance:
    """How far one run is from another, in the measures of the claim."""

    loss: float
    norm: float
    update: float
    tensor: str

    def failures(self) -> list[str]:
        """The measures that are out of bounds."""
        bounds = {"loss": LOSS, "norm": NORM, "update": UPDATE}
        return [k for k, bound in bounds.items() if not getattr(self, k) <= bound]


def distance(run: Run, reference: Run, initial: Tensors) -> Distance:
    """The worst step's loss and norm, and the worst tensor's update (final minus initial)."""

    def steps(ours: list[float], theirs: list[float]) -> float:
        assert len(ours) == len(theirs)
        return max(abs(a - b) / abs(b) for a, b in zip(ours, theirs, strict=True))

    def updates(final: Tensors) -> Tensors:
        return {name: final[name].astype(np.float64) - initial[name] for name in initial}

    update, tensor = worst(updates(run.final), updates(reference.final))
    return Distance(
        steps(run.losses, reference.losses), steps(run.norms, reference.norms), update, tensor
    )


def to_rows(rows: Rows) -> list[Row]:
    """Rows as the data room makes them."""
    return [Row(tokens, goals, line) for line, (tokens, goals) in enumerate(rows, 1)]


def flat(pairs: Pairs) -> Tensors:
    """A and B by adapter tensor name."""
    return {f"{n}.lora_{k}": x for n, ab in pairs.items() for k, x in zip("ab", ab, strict=True)}


def module_names(pairs: Pairs) -> str:
    """The `target_modules` that give these tensors."""
    return ",".join(dict.fromkeys(n.removesuffix(".weight").split(".")[-1] for n in pairs))


def our_gradients(
    model: Any,
    pairs: Pairs,
    rows: Rows,
    layers: str = "all",
    checkpoint: bool = False,
    batches: int = 2,
) -> tuple[float, Tensors]:
    """Mean loss and the gradients of the loss sum, over one or two micro-batches."""
    config = wgtrain.LoraConfig(
        rank=RANK, alpha=ALPHA, target_modules=module_names(pairs), layers=layers
    )
    most = max(96, sum(len(row) for row, _ in rows)), max(32, *(len(row) for row, _ in rows))
    learner = rm.planned(
        model, config, max_tokens=most[0], max_row=most[1], grad_checkpoint=checkpoint
    )
    assert set(learner.shapes) == set(flat(pairs))
    learner.set_parameters(flat(pairs))
    wgtrain.run(learner.build())
    half = len(rows) // batches
    for part in (rows[:half], rows[half:]) if batches == 2 else (rows,):
        learner.micro(make_batch(to_rows(part)))
    gradients = wgtrain.run(learner.gradients())
    learner.update(step=1, learning_rate=1e-3)
    (report,) = wgtrain.run(learner.reports())
    assert report.count == sum(int((t >= 0).sum()) for _, t in rows)
    learner.close()
    return report.loss, gradients


def our_run(
    model: Any,
    pairs: Pairs,
    rows: list[Row],
    settings: Settings,
    start: Any = None,
    **more: Any,
) -> tuple[Run, Any]:
    """The run of `settings` by a Trainer from these A and B, or from the adapter `start` beside the
    same tensors, and the trainer.
    """
    start = start or Adapter(model.config.architecture, RANK, ALPHA, pairs, {})
    config = wgtrain.TrainConfig(
        iters=settings.steps,
        epochs=None,
        batch_size=settings.batch,
        grad_accum=settings.accumulation,
        learning_rate=settings.learning_rate,
        lr_schedule=settings.schedule,
        warmup_steps=settings.warmup,
        warmup_ratio=None,
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_grad_norm,
        shuffle=False,
        **more,
    )
    data = Dataset(rows, "rows", 512, 0, 0, [])
    lora = wgtrain.LoraConfig(rank=RANK, alpha=ALPHA, target_modules=module_names(pairs))
    trainer = wgtrain.Trainer(model, data, lora, config, init_adapter=start)
    steps = list(trainer.run())
    final = read_adapter_gguf(trainer.adapter_gguf(), "adapter.gguf")
    run = Run([s.loss for s in steps], [s.grad_norm for s in steps], flat(final.tensors))
    return run, trainer


def run_rows(base: Tiny) -> Rows:
    """Rows of unequal length for a whole run, none seen twice."""
    n = SETTINGS.steps * SETTINGS.batch * SETTINGS.accumulation
    lengths = [int(n) for n in np.random.default_rng(5).integers(3, 24, n)]
    return random_rows(base.spec, lengths, seed=3)


def all_targets(base: Tiny) -> list[str]:
    """All linears, and the head where it can be trained."""
    return targets(base.spec, [*LINEARS] if base.spec.tied else [*LINEARS, "output"])


@pytest.fixture(scope="module", params=CASES, ids=lambda case: "-".join(case))
def case(request: pytest.FixtureRequest) -> Iterator[tuple[Tiny, Any]]:
    base = tiny(*request.param)
    model = wgtrain.load_model(base.gguf, limits="default")
    yield base, model
    model.close()


def test_logits(case: tuple[Tiny, Any]) -> None:
    base, model = case
    pairs = random_adapter(base.spec, all_targets(base), RANK, seed=7)
    adapter = Adapter(base.spec.architecture, RANK, ALPHA, pairs, {})
    ((tokens, _),) = random_rows(base.spec, [29], seed=1)
    reference = Peft(base, pairs, ALPHA, "float64")
    expected = reference.logits(tokens)
    ours = relative(model.logits(tokens, adapters=[(adapter, 1.0)]), expected)
    theirs = relative(Peft(base, pairs, ALPHA).logits(tokens), expected)
    with reference.model.disable_adapter():
        plain_expected = reference.logits(tokens)
    plain = relative(model.logits(tokens), plain_expected)
    without = relative(plain_expected, expected)
    record("logits", model=name_of(base), ours=ours, plain=plain, torch_f32=theirs)
    assert without > 0.1, "the adapter must matter"
    assert ours <= LOGITS
    assert plain <= LOGITS


@pytest.mark.parametrize("checkpoint", [False, True], ids=["kept", "recomputed"])
def test_gradients(case: tuple[Tiny, Any], checkpoint: bool) -> None:
    base, model = case
    pairs = random_adapter(base.spec, all_targets(base), RANK, seed=7)
    rows = random_rows(base.spec, [23, 2, 17, 8, 3, 13], seed=2)
    loss, count, expected = Peft(base, pairs, ALPHA, "float64").gradients(rows)
    our_loss, ours = our_gradients(model, pairs, rows, checkpoint=checkpoint)
    _, _, theirs = Peft(base, pairs, ALPHA).gradients(rows)
    distance, tensor = worst(ours, expected)
    record(
        "gradients recomputed" if checkpoint else "gradients",
        model=name_of(base),
        ours=distance,
        tensor=tensor,
        loss=abs(our_loss * count - loss) / loss,
        torch_f32=worst(theirs, expected)[0],
    )
    assert distance <= GRADIENT, tensor
    assert our_loss == pytest.approx(loss / count, rel=LOSS)


def test_run(case: tuple[Tiny, Any]) -> None:
    base, model = case
    pairs = random_adapter(base.spec, all_targets(base), RANK, seed=7)
    rows = run_rows(base)
    reference = Peft(base, pairs, ALPHA, "float64").train(rows, SETTINGS)
    ours, trainer = our_run(model, pairs, to_rows(rows), SETTINGS)
    trainer.close()
    found = distance(ours, reference, flat(pairs))
    theirs = distance(Peft(base, pairs, ALPHA).train(rows, SETTINGS), reference, flat(pairs))
    record("run", model=name_of(base), ours=vars(found), torch_f32=vars(theirs))
    assert not found.failures(), found
    if base.type == "F32":
        for what, change in CONTROLS.items():
            other = Peft(base, pairs, ALPHA).train(rows, replace(SETTINGS, **change))
            control = distance(other, ours, flat(pairs))
            record("control", model=name_of(base), change=what, distance=vars(control))
            assert control.failures(), f"{what} passes as the same run"


def test_run_recomputed() -> None:
    """Whole run with activations recomputed in the backward pass."""
    base = tiny("qwen3")
    pairs = random_adapter(base.spec, all_targets(base), RANK, seed=7)
    rows = run_rows(base)
    reference = Peft(base, pairs, ALPHA, "float64").train(rows, SETTINGS)
    with wgtrain.load_model(base.gguf, limits="default") as model:
        ours, trainer = our_run(model, pairs, to_rows(rows), SETTINGS, grad_checkpoint="on")
        trainer.close()
    found = distance(ours, reference, flat(pairs))
    record("run recomputed", model=name_of(base), ours=vars(found))
    assert not found.failures(), found


def test_continual_training(tmp_path: Path) -> None:
    """On rows A and then, from the adapter's file with an optimizer that begins anew, on rows B, as
    PEFT does it that loads what it saved; from a folder of PEFT's own too.
    """
    base = tiny("llama-tied")
    pairs = random_adapter(base.spec, all_targets(base), RANK, seed=7)
    settings = Settings(steps=8)
    a, b = run_rows(base)[:32], run_rows(base)[40:72]
    reference = Peft(base, pairs, ALPHA, "float64")
    first_reference = reference.train(a, settings)
    whole = reference.train(b, replace(settings, learning_rate=0.0)).losses  # B after A, frozen
    reference.model.float().save_pretrained(tmp_path)
    loaded = Peft(base, pairs, ALPHA, "float64")
    loaded.load(tmp_path)
    second_reference = loaded.train(b, settings)
    assert second_reference.losses[0] == pytest.approx(whole[0], rel=1e-6)
    with wgtrain.load_model(base.gguf, limits="default") as model:
        first, trainer = our_run(model, pairs, to_rows(a), settings)
        data = trainer.adapter_gguf()
        trainer.close()
        second, trainer = our_run(model, pairs, to_rows(b), settings, data)
        trainer.close()
        afresh, trainer = our_run(model, pairs, to_rows(b), settings)
        trainer.close()
        from_peft, trainer = our_run(model, pairs, to_rows(b), settings, tmp_path)
        trainer.close()
        joined, trainer = our_run(model, pairs, to_rows([*a, *b]), replace(settings, steps=16))
        trainer.close()
    assert not distance(first, first_reference, flat(pairs)).failures()
    found = distance(second, second_reference, flat(pairs))
    record("continual", model=name_of(base), ours=vars(found))
    assert not found.failures(), found
    assert not distance(from_peft, second_reference, flat(pairs)).failures()
    # What is near and wrong: B alone, and B as a part of the run over A.
    assert distance(afresh, second_reference, flat(pairs)).failures()
    rest = Run(joined.losses[8:], joined.norms[8:], joined.final)
    assert distance(rest, second_reference, flat(pairs)).failures()


@pytest.mark.parametrize("schedule", ["constant", "linear"])
def test_schedules(schedule: str) -> None:
    """The other schedules, without clipping or accumulation, over more than one epoch."""
    base = tiny("qwen2")
    pairs = random_adapter(base.spec, all_targets(base), RANK, seed=7)
    rows = run_rows(base)[:6]
    settings = Settings(8, 2, 1, 5e-3, schedule, warmup=3, weight_decay=0.1, max_grad_norm=0.0)
    reference = Peft(base, pairs, ALPHA, "float64").train(rows, settings)
    with wgtrain.load_model(base.gguf, limits="default") as model:
        ours, trainer = our_run(model, pairs, to_rows(rows), settings)
        trainer.close()
    found = distance(ours, reference, flat(pairs))
    record(f"{schedule} schedule", model=name_of(base), ours=vars(found))
    assert not found.failures(), found


@pytest.mark.parametrize("name", list(SPECS))
@pytest.mark.parametrize(
    ("modules", "layers", "text"),
    [
        (["attn_v"], [0, 1, 2], "all"),
        (["attn_q", "ffn_down"], [1, 2], "2"),
        (["attn_k", "attn_output", "ffn_gate"], [0, 2], "0,2"),
        (["ffn_up"], [1], "1-1"),
    ],
)
def test_subsets(name: str, modules: list[str], layers: list[int], text: str) -> None:
    """Gradients where only some linears of some blocks have an adapter."""
    base = tiny(name)
    pairs = random_adapter(base.spec, targets(base.spec, modules, layers), RANK, seed=8)
    rows = random_rows(base.spec, [9, 14, 5, 20], seed=4)
    loss, count, expected = Peft(base, pairs, ALPHA, "float64").gradients(rows)
    with wgtrain.load_model(base.gguf, limits="default") as model:
        our_loss, ours = our_gradients(model, pairs, rows, layers=text)
    distance, tensor = worst(ours, expected)
    record("gradients of a subset", model=name_of(base), modules=modules, ours=distance)
    assert distance <= GRADIENT, tensor
    assert our_loss == pytest.approx(loss / count, rel=LOSS)


def test_head_alone() -> None:
    """An adapter on the untied output head and nowhere else."""
    base = tiny("llama")
    pairs = random_adapter(base.spec, ["output"], RANK, seed=9)
    rows = random_rows(base.spec, [9, 14, 5, 20], seed=4)
    _, _, expected = Peft(base, pairs, ALPHA, "float64").gradients(rows)
    with wgtrain.load_model(base.gguf, limits="default") as model:
        _, ours = our_gradients(model, pairs, rows)
    assert worst(ours, expected)[0] <= GRADIENT


@pytest.mark.parametrize("rank", [1, 16])
def test_ranks(rank: int) -> None:
    """Logits at ranks below and above a tile's width."""
    base = tiny("llama-tied")
    pairs = random_adapter(base.spec, all_targets(base), rank, seed=10)
    adapter = Adapter(base.spec.architecture, rank, ALPHA, pairs, {})
    ((tokens, _),) = random_rows(base.spec, [11], seed=1)
    expected = Peft(base, pairs, ALPHA, "float64").logits(tokens)
    with wgtrain.load_model(base.gguf, limits="default") as model:
        assert relative(model.logits(tokens, adapters=[(adapter, 1.0)]), expected) <= LOGITS


def test_stories(data_dir: Path) -> None:
    """A trained model on real text: a few steps from a fresh adapter, losses beside PEFT's."""
    path = data_dir / "stories260K.gguf"
    base = from_gguf(path)
    text = (data_dir / "wikisql_train.jsonl").read_bytes().splitlines(keepends=True)
    settings = Settings(steps=5, warmup=2, weight_decay=0.01, learning_rate=5e-3)
    n = settings.steps * settings.batch * settings.accumulation
    pairs = random_adapter(base.spec, all_targets(base), RANK, seed=11, scale=0.05)
    with wgtrain.load_model(path, limits="default") as model:
        data = wgtrain.load_dataset(b"".join(text[:n]), model, seq_len=256)
        rows = [(row.tokens, row.targets) for row in data.rows]
        ours, trainer = our_run(model, pairs, data.rows, settings)
        trainer.close()
    reference = Peft(base, pairs, ALPHA, "float64").train(rows, settings)
    theirs = Peft(base, pairs, ALPHA).train(rows, settings)
    found = distance(ours, reference, flat(pairs))
    record(
        "steps on wikisql",
        model="stories260K F32",
        ours=vars(found),
        torch_f32=vars(distance(theirs, reference, flat(pairs))),
        losses=ours.losses,
    )
    assert len(rows) == n
    assert not found.failures(), found


def name_of(base: Tiny) -> str:
    """A readable name for figures."""
    tied = "tied" if base.spec.tied else "untied"
    return f"{base.spec.architecture} {tied} {base.type}"
