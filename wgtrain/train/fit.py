"""What makes a run fit that does not: other settings, each of them tried in the planner."""

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from wgtrain.engine.plan import Plan
from wgtrain.engine.tuning import Tuning
from wgtrain.errors import OptionError, OutOfMemoryError
from wgtrain.files import resolve_targets
from wgtrain.gpu import format_size
from wgtrain.model.base import Base, OpenModel, plan_base
from wgtrain.train.config import LoraConfig, TrainConfig
from wgtrain.train.learner import Learner
from wgtrain.train.needs import Lengths, Planner, Settings, Space
from wgtrain.train.samples import beside_of

BROUGHT = frozenset({"rank", "target_modules", "layers"})  # settings that an adapter brings
_FEW_TARGETS = "q_proj,v_proj"  # those of the paper on LoRA
_SHORTEST, _LOWEST = 64, 4  # seq_len and rank that are still proposed


@dataclass(frozen=True)
class Suggestion:
    """Settings to change together, and the bytes that the run then needs in all."""

    changes: dict[str, Any]
    total: int


def suggestions(
    planner: Planner, settings: Settings, fixed: Collection[str] = ()
) -> tuple[list[Suggestion], bool]:
    """(changes each of which makes a run fit, True); where none does, ([changes that do together],
    False), or ([], False) if not even all of them do. Settings in `fixed` stay.
    """
    ladders = [(name, values) for name, values in _ladders(planner, settings) if name not in fixed]
    single = []
    for name, values in ladders:
        for value in values:
            if total := _fits(planner, settings, {name: value}):
                single.append(Suggestion({name: value}, total))
                break
    if single:
        return single, True
    changes: dict[str, Any] = {}
    total = None
    for name, value in ((name, value) for name, values in ladders for value in values):
        changes[name] = value
        if total := _fits(planner, settings, changes):
            break
    if not total:
        return [], False
    for name, values in reversed(ladders):  # what it takes, and no more: the dearest go first
        for value in values[: values.index(changes[name])] if name in changes else ():
            if gentler := _fits(planner, settings, changes | {name: value}):
                changes[name], total = value, gentler
                break
    for name in reversed(list(changes)):
        fewer = {other: value for other, value in changes.items() if other != name}
        if smaller := _fits(planner, settings, fewer):
            changes, total = fewer, smaller
    return [Suggestion(changes, total)], False


def _ladders(planner: Planner, settings: Settings) -> list[tuple[str, list[Any]]]:
    """Settings with values that take less memory, from those that cost the least to others."""
    return [(name, values) for name, values in _smaller(planner, settings) if values]


def _smaller(planner: Planner, settings: Settings) -> Iterator[tuple[str, list[Any]]]:
    lora, config = settings.lora, settings.config
    if config.grad_checkpoint == "off":
        yield "grad_checkpoint", ["on"]
    yield "batch_size", list(_halves(config.batch_size, 1))
    if config.capture == "f32":
        yield "capture", ["bf16"]
    yield "seq_len", list(_halves(config.seq_len, _SHORTEST))
    base = planner.base_of(settings.quantize_base).config
    chosen = set(resolve_targets(lora.target_modules, base.block_linears))
    try:
        few = set(resolve_targets(_FEW_TARGETS, base.block_linears))
    except OptionError:  # of a model with q, k and v in one
        few = chosen
    if few < chosen:
        yield "target_modules", [_FEW_TARGETS]
    yield "rank", list(_halves(lora.rank, _LOWEST))
    layers = lora.layer_indices(base.n_layer)
    if layers == tuple(range(base.n_layer - len(layers), base.n_layer)):
        yield "layers", [str(n) for n in _halves(len(layers), 1)]
    if settings.quantize_base is None:
        yield "quantize_base", ["int8", "nf4"]


def _halves(value: int, least: int) -> Iterator[int]:
    while (value := value // 2) >= least:
        yield value


def _fits(planner: Planner, settings: Settings, changes: dict[str, Any]) -> int | None:
    """The bytes of a run with these changes, if it fits."""
    try:
        needs, problem = planner.plan(settings.with_(**changes))
    except (OutOfMemoryError, OptionError):  # within no limits, or no option of this model
        return None
    return None if problem else needs.total


def advice(planner: Planner, settings: Settings, fixed: Collection[str] = ()) -> str:
    """The lines of an error that say what would fit, with the names of settings in front."""
    if total := _fits(planner, settings, {}):  # so it seemed, but the driver knows better
        lines = [
            f"{name} = {values[0]}: {format_size(less)}"
            for name, values in _ladders(planner, settings)
            if name not in fixed
            if (less := _fits(planner, settings, {name: values[0]})) and less < total
        ]
        return "\n".join([f"It needs {format_size(total)} in all; with any one of these:", *lines])
    found, alone = suggestions(planner, settings, fixed)
    if not found:
        return "No option makes it fit: it takes a smaller model, or one quantised to fewer bits"
    if alone:
        lines = [f"{_said(s.changes)}: {format_size(s.total)}" for s in found]
        return "\n".join(["It fits with any one of these, which need in all:", *lines])
    (all_of,) = found
    lines = [f"{name} = {value}" for name, value in all_of.changes.items()]
    return "\n".join(
        [f"It fits with all of these, which need {format_size(all_of.total)}:", *lines]
    )


def _said(changes: dict[str, Any]) -> str:
    return ", ".join(f"{name} = {value}" for name, value in changes.items())


class Fit:
    """Makes the learners of a run, which recompute activations where they have to.

    `make` is `lora_learner`. Settings in `fixed` are not to be proposed; `advises` is False where
    none of them can be changed.
    """

    def __init__(
        self,
        model: OpenModel,
        lora: LoraConfig,
        config: TrainConfig,
        lengths: Lengths,
        make: Callable[..., Learner],
    ):
        self._model, self._lengths, self._make = model, lengths, make
        self._settings = Settings(
            lora, replace(config, seq_len=lengths.seq_len), model.quantize_base
        )
        self.recompute = config.grad_checkpoint == "on"
        self.fixed: set[str] = set()
        self.advises, self._settled = True, False

    @property
    def can_choose(self) -> bool:
        """Whether it is for us to say."""
        return self._settings.config.grad_checkpoint == "auto" and not self._settled

    @property
    def can_recompute(self) -> bool:
        """Whether recomputing is a choice that was not made."""
        return self.can_choose and not self.recompute

    def settle(self, recompute: bool) -> None:
        """Recomputes or not from now on, as a run did whose numbers depend on it."""
        self.recompute, self._settled = recompute, True

    def learner(self, tuning: Tuning | None) -> Learner:
        """A learner with a table of kernels; one that recomputes from now on if no other fits."""
        made = self._made(tuning)
        if self.can_recompute:
            device, samples = self._model.device, self.samples(made)
            beside = device.allocated + (samples.nbytes if samples else 0)
            try:
                made.check(Space(device.limits, beside, device.budget))
            except OutOfMemoryError:
                self.recompute = True
                return self._made(tuning)
        return made

    def samples(self, learner: Learner) -> Plan | None:
        """The plan of what answers samples beside what a learner trains."""
        if not self._lengths.samples:
            return None
        model = self._model
        return model.plan_samples(model.base, beside_of(learner), self._lengths.samples)

    def _made(self, tuning: Tuning | None) -> Learner:
        max_tokens, max_row = self._lengths.most(self._settings.config)
        return self._make(
            self._model.base,
            self._settings.lora,
            device=self._model.device,
            max_tokens=max_tokens,
            max_row=max_row,
            grad_checkpoint=self.recompute,
            capture=self._settings.config.capture,
            tuning=tuning,
        )

    def explained(self, error: OutOfMemoryError, tuning: Tuning) -> OutOfMemoryError:
        """An error of a build, with what would fit with these kernels; nothing of the run is on the
        device.
        """
        if not self.advises:
            return error
        model, device = self._model, self._model.device

        @cache
        def base_of(quantize_base: str | None) -> Base:
            if quantize_base == model.quantize_base:
                return model.base.tuned(tuning, device)
            return plan_base(model.gguf, device.limits, tuning, model.precision, quantize_base)

        allocated = device.allocated - model.base.weights.nbytes
        space = Space(device.limits, allocated, device.budget)
        planner = Planner(base_of, self._lengths, space, model.plan_samples)
        way = "on" if self.recompute else self._settings.config.grad_checkpoint
        settings = self._settings.with_(grad_checkpoint=way)
        return OutOfMemoryError(f"{error}\n{advice(planner, settings, self.fixed)}")
