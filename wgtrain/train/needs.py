"""The memory a run needs, known before anything is allocated."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from wgtrain.data import Dataset
from wgtrain.data.prompts import Prompt
from wgtrain.engine.linear import Adapter
from wgtrain.engine.plan import Plan
from wgtrain.errors import OutOfMemoryError
from wgtrain.gpu import Limits, format_size
from wgtrain.model.base import Base
from wgtrain.train.config import LoraConfig, TrainConfig
from wgtrain.train.learner import Learner, lora_learner
from wgtrain.train.samples import beside_of

PlanSamples = Callable[[Base, Mapping[str, tuple[Adapter, ...]], Sequence[int]], Plan]
PURPOSES = ("base", "adapter", "optimizer", "activations", "scratch")
_OF_PLAN = {"adapter": "adapter", "gradients": "adapter", "optimizer": "optimizer"}
_OF_PLAN |= {"activations": "activations"}


@dataclass(frozen=True)
class Needs:
    """Bytes of GPU memory of a run: `base` the frozen weights; `adapter` what trains and its
    gradients; `optimizer` its moments; `activations` what stays from the forward pass for the
    backward one; `samples`, where there are any, what answers them; `scratch` all other.
    `largest_binding` is the name and the bytes of the largest part of a buffer that a kernel sees
    at once. Steps have up to `max_tokens` tokens, rows up to `max_row`.
    """

    by_purpose: Mapping[str, int]
    largest_binding: tuple[str, int]
    max_tokens: int
    max_row: int
    recompute: bool
    shapes: Mapping[str, tuple[int, int]]  # of what trains

    @property
    def total(self) -> int:
        """Bytes in all."""
        return sum(self.by_purpose.values())

    @property
    def trainable(self) -> int:
        """Values that train."""
        return sum(rows * columns for rows, columns in self.shapes.values())


def needs_of(base: Base, learner: Learner, recompute: bool, samples: Plan | None = None) -> Needs:
    """Those of a learner, built or only planned, beside its base, with what answers samples."""
    sizes = {"base": base.weights.nbytes, **dict.fromkeys(PURPOSES[1:], 0)}
    for purpose, nbytes in learner.plan.by_purpose().items():
        sizes[_OF_PLAN.get(purpose, "scratch")] += nbytes
    # A segment of a weight is bound whole while it is made.
    segments = [(storage.size, storage.name) for storage in base.weights.storages]
    name, nbytes = learner.plan.largest()
    nbytes, name = max([(nbytes, name), *segments])
    if samples is not None:
        sizes["samples"] = samples.nbytes
        nbytes, name = max((nbytes, name), samples.largest()[::-1])
    return Needs(
        sizes,
        (name, nbytes),
        learner.plan.max_tokens,
        learner.max_row,
        recompute,
        learner.shapes,
    )


@dataclass(frozen=True)
class Lengths:
    """How many tokens the rows of a run have, in their order, as they were cut at `seq_len`;
    `train` None = as many rows as are wanted, each as long as is allowed. `samples` are the
    prompts that are answered meanwhile.
    """

    train: Sequence[int] | None = None
    valid: Sequence[int] = ()
    seq_len: int = 0
    test: Sequence[int] = ()
    samples: Sequence[int] = ()

    def most(self, config: TrainConfig) -> tuple[int, int]:
        """(tokens of the largest batch, of the longest row), with rows cut at `config.seq_len`."""
        size, cut = config.batch_size, config.seq_len
        if self.train is None:
            return size * cut, cut
        shorter = cut < self.seq_len
        lengths = sorted((min(n, cut) if shorter else n for n in self.train), reverse=True)
        tokens = sum(lengths[:size])
        if config.packing:
            tokens = min(size * cut, sum(lengths))
        longest = lengths[0]
        for part in (self.valid, self.test):
            held = [min(n, cut) if shorter else n for n in part]
            batches = [sum(held[i : i + size]) for i in range(0, len(held), size)]
            tokens, longest = max([tokens, *batches]), max([longest, *held])
        return tokens, longest


def lengths_of(
    rows: Dataset,
    valid: Dataset | None = None,
    test: Dataset | None = None,
    samples: Sequence[Prompt] = (),
) -> Lengths:
    """Those of rows that are read."""
    train, held, tests = (
        [len(row.tokens) for row in part.rows] if part else [] for part in (rows, valid, test)
    )
    return Lengths(train, held, rows.seq_len, tests, [len(prompt.ids) for prompt in samples])


@dataclass
class Space:
    """What there is: limits of the adapter, bytes allocated already, and how many may be in all,
    None = not known.
    """

    limits: Limits
    allocated: int
    budget: int | None


@dataclass(frozen=True)
class Settings:
    """What decides how much memory a run needs."""

    lora: LoraConfig
    config: TrainConfig
    quantize_base: str | None = None

    def with_(self, **changes: Any) -> "Settings":
        """The same with some of them changed, by the names of options."""
        more = dict(changes)
        base = more.pop("quantize_base", self.quantize_base)
        lora = {name: more.pop(name) for name in list(more) if hasattr(self.lora, name)}
        return Settings(replace(self.lora, **lora), replace(self.config, **more), base)


@dataclass(frozen=True)
class Planner:
    """Plans runs of one model that differ in their settings. `base_of` makes the base for a value
    of `quantize_base`; `space` is what there is without a base. `plan_samples` is
    `infer.samples.plan_samples`.
    """

    base_of: Callable[[str | None], Base]
    lengths: Lengths
    space: Space
    plan_samples: PlanSamples

    def plan(self, settings: Settings) -> tuple[Needs, str]:
        """(what a run needs, why it does not fit or ""). Where activations may be recomputed or
        not, they are if it does not fit otherwise. OutOfMemoryError where nothing can be planned
        within the adapter's limits.
        """
        way = settings.config.grad_checkpoint
        found = self._plan(settings, way == "on")
        if way == "auto" and found[1]:
            smaller = self._plan(settings, True)
            found = smaller if smaller[0].total < found[0].total else found
        return found

    def _plan(self, settings: Settings, recompute: bool) -> tuple[Needs, str]:
        base = self.base_of(settings.quantize_base)
        max_tokens, max_row = self.lengths.most(settings.config)
        learner = lora_learner(
            base,
            settings.lora,
            max_tokens=max_tokens,
            max_row=max_row,
            grad_checkpoint=recompute,
            capture=settings.config.capture,
        )
        space, plans = self.space, [learner.plan]
        if self.lengths.samples:
            plans.append(self.plan_samples(base, beside_of(learner), self.lengths.samples))
        needs = needs_of(base, learner, recompute, *plans[1:])
        try:
            for plan in plans:
                plan.check(Space(space.limits, 0, None))
        except OutOfMemoryError as error:
            return needs, str(error)
        over = 0 if space.budget is None else space.allocated + needs.total - space.budget
        return needs, f"{format_size(over)} too much" if over > 0 else ""
