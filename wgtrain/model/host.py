"""What the core asks of the place it runs in, which has paths, caches and screens, or none."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

from wgtrain.engine.plan import Plan
from wgtrain.engine.tuning import Tuning, default_tuning
from wgtrain.errors import OptionError
from wgtrain.files import Adapter, read_adapter_gguf
from wgtrain.files.adapter_form import well_formed
from wgtrain.gpu import Device
from wgtrain.model.config import ModelConfig

Show = Callable[[Any], None]  # called with each `StepResult`
Loaded = Callable[[int, int], None]  # called with bytes of weights: on their way to the GPU, in all


def adapter_from_bytes(adapter: Any, config: ModelConfig | None = None) -> Adapter:
    """An Adapter as it is, or read from the bytes of an adapter GGUF."""
    if isinstance(adapter, Adapter):
        return well_formed(adapter)
    if isinstance(adapter, bytes | bytearray | memoryview):
        return read_adapter_gguf(adapter)
    raise OptionError(
        f"adapter: {type(adapter).__name__} is neither an Adapter nor bytes of an adapter GGUF"
    )


def _defaults(device: Device, plan: Plan, max_row: int, replays: int, mode: str) -> Tuning:
    return default_tuning(device)


def _silent(trainer: Any) -> AbstractContextManager[Show]:
    return nullcontext(lambda result: None)


def _unheard(text: str) -> None:
    pass


def unseen(done: int, total: int) -> None:
    """A `Loaded` that shows nothing."""


def _unseen() -> AbstractContextManager[Loaded]:
    return nullcontext(unseen)


@dataclass(frozen=True)
class Host:
    """Where the core runs, told to a model when it is opened. As it stands it knows nothing:
    adapters are objects or bytes, kernels the defaults, and nothing is shown.

    `read_adapter(adapter, config)` reads what a person names as an adapter of such a model.
    `choose_tuning(device, plan, max_row, replays, mode)` is the table of kernels for a plan, not
    built yet, of rows up to `max_row` tokens, that is replayed so often; `mode` is that of
    `TrainConfig.tuning`. `watch(trainer)` shows progress: entered, then called for each result.
    `say(text)` tells a line that nothing else would. `load()` shows how far the loading of weights
    is: entered, then called with the bytes done and those in all.
    """

    read_adapter: Callable[[Any, ModelConfig], Adapter] = adapter_from_bytes
    choose_tuning: Callable[[Device, Plan, int, int, str], Tuning] = _defaults
    watch: Callable[[Any], AbstractContextManager[Show]] = _silent
    say: Callable[[str], None] = _unheard
    load: Callable[[], AbstractContextManager[Loaded]] = _unseen


NOWHERE = Host()
