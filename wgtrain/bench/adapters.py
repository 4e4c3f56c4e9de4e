"""Adapters between requests at a shape: loaded, rescaled, removed, switched, until the GPU has what
the next request takes; and what a new plan takes, where there is no room.
"""

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from wgtrain import gpu
from wgtrain.bench.measure import Record, record, spread, timed
from wgtrain.bench.shapes import Shape
from wgtrain.bench.tuned import AUTO
from wgtrain.bench.weights import RandomWeights
from wgtrain.files import write_adapter_gguf
from wgtrain.infer.cached import CachedSession, open_sequences
from wgtrain.infer.model import Model
from wgtrain.infer.opening import open_model
from wgtrain.infer.slots import Slots
from wgtrain.infer.stack import Checked, Stack

COUNT, MORE = 3, 8  # adapters of one stack, and that come after it: they have no room all at once
Samples = dict[str, list[float]]


class Changer:
    """Sequences of a model under slots of their own, and adapters of the shape."""

    def __init__(self, model: Model, shape: Shape):
        self.model = model
        each = shape.adapters(COUNT + MORE)
        self.files = [write_adapter_gguf(adapter) for adapter in each]
        self.adapters = [model.adapters.read(adapter) for adapter in each]
        self.slots = Slots(model.device, model.base)
        self.session: CachedSession | None = None
        self._beside: object = None  # the linears of its plan

    def use(self, *adapters: tuple[Checked, float]) -> None:
        """Makes it the stack of what follows; waits until the GPU has it."""
        gpu.run(self.slots.use(Stack(adapters)))
        beside, device = self.slots.beside, self.model.device
        if self.session is None or self._beside is not beside:
            if self.session is not None:
                self.session.close()
            self._beside = beside
            made = open_sequences(device, self.model.base, beside, 1, 64, self.model.host)
            self.session = gpu.run(made)
            gpu.run(self.session.extend({0: [1, 2]}))
            gpu.run(self.session.extend({0: [3]}))
        gpu.run(device.read(self.session.plan.storages[0].live, 0, 4))

    def token(self) -> None:
        """Reads one token more."""
        assert self.session is not None
        gpu.run(self.session.extend({0: [1]}))
        self.session.truncate(0, 3)

    def round(self, samples: Samples) -> None:
        """A sample of everything; all starts without an adapter."""

        def sample(what: str, work: Callable[[], Any]) -> None:
            samples.setdefault(what, []).append(timed(work))

        one, two, three, *others = self.adapters
        self.slots.close()
        self.use()
        sample("a token, none loaded", self.token)
        sample("read and check a file", lambda: self.model.adapters.read(self.files[0]))
        sample("load the first: a new plan", lambda: self.use((one, 1.0)))
        sample("load a second", lambda: self.use((one, 1.0), (two, 1.0)))
        self.use((one, 1.0), (two, 1.0), (three, 1.0))
        sample("a token under three", self.token)
        sample("rescale", lambda: self.use((one, 0.5), (two, 1.0), (three, 1.0)))
        sample("remove", lambda: self.use((one, 0.5), (two, 1.0)))
        sample("switch to one that is there", lambda: self.use((three, 1.0)))
        sample("a token under one of three", self.token)
        sample("switch to the bare base", lambda: self.use())
        for other in others:  # until there is no room left
            self.use((other, 1.0))
        sample("load in place of another", lambda: self.use((one, 1.0)))

    def close(self) -> None:
        """Gives the memory back."""
        if self.session is not None:
            self.session.close()
        self.slots.close()


def measure_adapters(
    shape: Shape,
    *,
    command: str,
    rounds: int,
    adapter_index: int | None = None,
    mode: str = AUTO,
    advance: Callable[[str], None],
) -> Record:
    """The record of `wgtrain bench adapters`; kernels are the defaults, whatever `mode` says."""
    with ExitStack() as stack:
        advance("loading and compiling")
        model = gpu.run(open_model(RandomWeights(shape), adapter_index=adapter_index))
        stack.callback(model.close)
        changer = Changer(model, shape)
        stack.callback(changer.close)
        changer.round({})  # compiles
        samples: Samples = {}
        for number in range(rounds):
            advance(f"round {number + 1}")
            changer.round(samples)
        assert changer.slots.stacked is not None
        return {
            **record("adapters", command, model.device),
            "shape": shape.facts(),
            "changes": [{"what": n, "seconds": spread(each)} for n, each in samples.items()],
            "adapter_bytes": len(changer.files[0]),
            "ranks": 4 * changer.slots.stacked.quads,
            "gpu_bytes": changer.slots.stacked.nbytes,
        }
