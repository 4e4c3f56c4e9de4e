"""The kernels that a run of a shape would use here, chosen as a training run chooses them."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

from wgtrain import gpu
from wgtrain.bench.shapes import Shape
from wgtrain.bench.weights import RandomWeights
from wgtrain.engine.probe import find_subgroup_size
from wgtrain.engine.tuning import Choice, Tuning
from wgtrain.engine.weight import FORMATS
from wgtrain.files import read_gguf
from wgtrain.gpu import Device
from wgtrain.model.base import Base, base_on
from wgtrain.model.weights import stored_type
from wgtrain.train.config import LoraConfig
from wgtrain.train.learner import Learner, lora_learner
from wgtrain.tune import cache as tune
from wgtrain.tune.sweep import Measured

RUN = 1000  # steps of the run that a measured step stands for
AUTO, MEASURE = "auto", "measure"  # modes of `tune.choose`


def open_device(adapter_index: int | None) -> Device:
    """A device as a model opens it."""
    device: Device = gpu.run(gpu.open_device(adapter_index))
    gpu.run(find_subgroup_size(device))
    return device


def planned(shape: Shape, device: Device, precision: str = "f32") -> Base:
    """A shape's model, laid out: no weight is on the GPU."""
    gguf = gpu.run(read_gguf(RandomWeights(shape)))
    return base_on(device, gguf, shape.config, precision)


def make_learner(base: Base, device: Device, shape: Shape, mode: str, steps: int = RUN) -> Learner:
    """A learner of the shape's step, not built yet, with the tuning of a run of so many steps."""
    lora = LoraConfig(rank=shape.rank, alpha=shape.alpha)
    make = partial(
        lora_learner,
        base,
        lora,
        device=device,
        max_tokens=shape.tokens,
        max_row=shape.length,
    )
    learner = make()
    tuning = tune.choose(learner.device, learner.plan, learner.max_row, steps, mode)
    if tuning.table != learner.tuning.table:
        learner.close()
        learner = make(tuning=tuning)
    learner.tuning = tuning  # also where only its origin differs
    return learner


def tuning_of(
    shape: Shape, types: Sequence[str], device: Device, mode: str, precision: str
) -> Tuning:
    """The tuning of a shape with weights of several types: what is known of each, or measured."""
    table: dict[str, Choice] = {}
    origins = []
    for type_ in types:
        base = planned(replace(shape, type=type_), device, precision)
        found = make_learner(base, device, replace(shape, type=type_), mode, 0).tuning
        library = f"/{FORMATS[stored_type(type_, precision)].library}"
        table.update({f: c for f, c in found.table.items() if not table or f.endswith(library)})
        origins.append(found.origin)
    return Tuning(table, "; ".join(dict.fromkeys(origins)))


def measure_anew(
    shapes: Sequence[Shape], adapter_index: int | None, advance: Callable[[str], None]
) -> tuple[Measured, ...]:
    """Sweeps over the kernels of each shape, stored for runs to come; all that is stored now."""
    device = open_device(adapter_index)
    try:
        for shape in shapes:
            advance(shape.name)
            make_learner(planned(shape, device), device, shape, MEASURE)
        return tune.load(device.info).measured
    finally:
        device.close()
