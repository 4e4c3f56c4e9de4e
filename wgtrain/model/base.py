"""A base model as plans see it: known from a file's metadata alone, with or without a device."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from wgtrain.data import Dataset
from wgtrain.data.prompts import Prompt
from wgtrain.engine.linear import Adapter as Beside
from wgtrain.engine.plan import Plan
from wgtrain.engine.tuning import DEFAULT_GPU, Tuning, default_tuning, fitted
from wgtrain.files import GGUF, Adapter
from wgtrain.gpu import Device, Limits
from wgtrain.model.config import ModelConfig, read_config
from wgtrain.model.host import Host
from wgtrain.model.weights import Weights, plan_weights


@dataclass(frozen=True)
class Base:
    """Frozen weights and where they lie, what an adapter allows, and the kernels of its programs.

    What a plan over it takes is known before anything is on a GPU: `Plan.nbytes` beside
    `weights.nbytes`.
    """

    config: ModelConfig
    weights: Weights
    limits: Limits
    tuning: Tuning

    def tuned(self, tuning: Tuning | None, device: Device | None) -> "Base":
        """The same with another table, fitted to the device if there is one; None = as it is."""
        if tuning is None:
            return self
        return replace(self, tuning=fitted(tuning, device) if device else tuning)


def plan_base(
    gguf: GGUF,
    limits: Limits | None = None,
    tuning: Tuning = DEFAULT_GPU,
    precision: str = "f32",
    quantize_base: str | None = None,
) -> Base:
    """The base model of a file, of whose tensors nothing is read; by default as on any GPU."""
    config, limits = read_config(gguf), limits or Limits()
    weights = plan_weights(gguf, config, limits, precision, quantize_base)
    return Base(config, weights, limits, tuning)


def base_on(
    device: Device,
    gguf: GGUF,
    config: ModelConfig,
    precision: str = "f32",
    quantize_base: str | None = None,
) -> Base:
    """The base model of a file, whose configuration was read, as it will lie on a device."""
    weights = plan_weights(gguf, config, device.limits, precision, quantize_base)
    return Base(config, weights, device.limits, default_tuning(device))


class Answering(Protocol):
    """What answers some prompts under what stands beside a model; `infer.samples.Samples` is
    one.
    """

    async def open(self) -> None:
        """Allocates and compiles; OutOfMemoryError where it does not fit."""

    async def answers(self) -> list[str]:
        """The answers as things stand."""

    def close(self) -> None:
        """Frees the memory."""


class OpenModel(Protocol):
    """What training asks of a model on a device; `infer.Model` is one."""

    @property
    def name(self) -> str:
        """What messages call it."""

    @property
    def base_name(self) -> str | None:
        """The repository it came from, where that is known."""

    @property
    def fingerprint(self) -> str:
        """A hash that tells it from other models."""

    @property
    def precision(self) -> str:
        """Of products with its weights."""

    @property
    def quantize_base(self) -> str | None:
        """How its matrices were quantised as they were loaded, if they were."""

    @property
    def gguf(self) -> GGUF:
        """Its file's metadata and tensor table."""

    @property
    def config(self) -> ModelConfig:
        """That of `base`."""

    @property
    def base(self) -> Base:
        """As plans see it."""

    @property
    def device(self) -> Device:
        """Where its weights are."""

    @property
    def host(self) -> Host:
        """What it was opened with."""

    def clear_cache(self) -> None:
        """Gives back the memory of what can be made again."""

    def read_adapter(self, adapter: Any) -> Adapter:
        """What a person names as an adapter, read."""

    def sample_prompts(
        self, texts: Sequence[str], rows: Dataset, valid: Dataset | None
    ) -> list[Prompt]:
        """The prompts of samples; see `infer.samples`."""

    def plan_samples(
        self, base: Base, beside: Mapping[str, tuple[Beside, ...]], lengths: Sequence[int]
    ) -> Plan:
        """What answers to prompts of so many tokens take under a base as plans see it."""

    def answering(
        self, beside: Mapping[str, tuple[Beside, ...]], prompts: Sequence[Sequence[int]]
    ) -> Answering:
        """What answers prompts under what stands beside the linears, which its owner has on the
        GPU.
        """


def base_name(gguf: GGUF) -> str | None:
    """The repository a model came from, where its file says so."""
    for key in ("general.base_model.0.repo_url", "general.base_model.0.name"):
        value = gguf.metadata.get(key)
        if isinstance(value, str):
            return value
    return None
