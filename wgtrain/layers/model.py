"""A model of one's own with LoRA adapters beside its linear layers."""

import math
import numbers
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from wgtrain.dual import aio_view, dual
from wgtrain.engine.graph import Storage
from wgtrain.engine.lora import Lora
from wgtrain.engine.optimizer import AdamW
from wgtrain.engine.probe import find_subgroup_size
from wgtrain.engine.structs import TOTALS
from wgtrain.engine.trainables import Arena, Trainables
from wgtrain.engine.tuning import default_tuning
from wgtrain.engine.weight import BLOCK
from wgtrain.errors import NonFiniteError, OptionError
from wgtrain.files.source import shown
from wgtrain.gpu import Device, Limits, open_device
from wgtrain.layers.description import Layer, Linear, check_layers, floats
from wgtrain.layers.network import Frozen, Network
from wgtrain.model.lora import lora_trainables
from wgtrain.model.quantised import QUANTIZE_BASE
from wgtrain.turn import Turn

LOSSES = ("mse", "cross_entropy")


class LinearModel:
    """Named linear layers with activations between, on a GPU; a context manager, `close` gives the
    memory back. `inject_lora` or `load_adapter` put beside them what trains.

    `layers`: `Linear` and `Activation` in the order of the forward pass. `quantize`: how weights
    are stored, "nf4", "nf4-double", "int4" or "int8", for all layers or by layer name; rows have to
    be multiples of 64 then. The GPU is opened at first use: number `adapter_index` of
    `list_adapters`, or `device`, which is not closed then.
    """

    aio = aio_view()

    def __init__(
        self,
        layers: Sequence[Layer],
        quantize: str | Mapping[str, str] | None = None,
        *,
        adapter_index: int | None = None,
        device: Device | None = None,
    ):
        self.layers = check_layers(layers)
        self.linears = {layer.name: layer for layer in self.layers if isinstance(layer, Linear)}
        self.rank, self.alpha = 0, 0.0  # of the adapter, where there is one
        self._types = _formats(quantize, self.linears)
        self._adapter_index, self._given = adapter_index, device
        self._device: Device | None = None
        self._frozen: Frozen | None = None
        self._network: Network | None = None
        self._turn = Turn("this model")
        self._steps, self._begun = 0, False
        self._train({})

    def __repr__(self) -> str:
        return f"<LinearModel: {', '.join(self.linears)}>"

    def adapt(self, names: Sequence[str], rank: int, alpha: float) -> None:
        """Puts an adapter beside the layers `names`, in place of any that is there; its matrices
        are zero until `set_parameters`.
        """
        with self._turn():
            self.rank, self.alpha = rank, alpha
            self._train({name: self.linears[name].weight.shape for name in names})

    def _train(self, bases: Mapping[str, tuple[int, ...]]) -> None:
        self._drop_network()
        shapes = {name: (shape[0], shape[1]) for name, shape in bases.items()}
        scale = self.alpha / self.rank if shapes else 0.0
        # Laid out as every adapter allows: none is open yet.
        self.trainables: Trainables[Lora] = lora_trainables(shapes, Limits(), self.rank, scale)
        self._totals = Storage("totals", "reports", TOTALS.itemsize)
        self._optimizer = AdamW(self.trainables, self._totals.window())
        self._steps, self._begun = 0, False

    @property
    def targets(self) -> tuple[str, ...]:
        """The layers that have an adapter."""
        return tuple(kind.tensor for kind in self.trainables.kinds)

    def set_parameters(self, tensors: Mapping[str, np.ndarray]) -> None:
        """Sets matrices of the adapter, f32 by name, `<layer>.lora_a` and `.lora_b`."""
        shapes = self.trainables.layout.shapes
        if not isinstance(tensors, Mapping) or not tensors.keys() <= shapes.keys():
            there = ", ".join(shapes) or "none"
            raise OptionError(f"tensors = {shown(tensors)}: allowed are matrices of {there}")
        found = {name: floats(name, values, 2) for name, values in tensors.items()}
        for name, values in found.items():
            if values.shape != shapes[name]:
                raise OptionError(f"{name} has the shape {values.shape}; {shapes[name]} is needed")
        with self._turn():
            self.trainables.values.set(found)

    @dual
    async def parameters(self) -> dict[str, np.ndarray]:
        """The matrices of the adapter, float32: A (rank, inputs) as `<layer>.lora_a`, B (outputs,
        rank) as `<layer>.lora_b`.
        """
        self._check_adapter()
        with self._turn(wait=True):
            await self._ready(1)
            return await self.trainables.values.read()

    @dual
    async def forward(self, x: Any) -> np.ndarray:
        """What the layers make of x (rows, inputs) under the adapter, float32 (rows, outputs)."""
        x = self._check_x(x)
        with self._turn(wait=True):
            device, network = await self._ready(len(x))
            network.run(device, "forward", x)
            return await network.result(device, len(x))

    @dual
    async def step(
        self,
        x: Any,
        target: Any,
        loss: str = "mse",
        *,
        learning_rate: float = 1e-3,
        weight_decay: float = 0.0,
        max_grad_norm: float = 0.0,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ) -> float:
        """One step of AdamW on the batch x (rows, inputs); the loss before it.

        `loss`: "mse", the mean over all values of (y - target)^2, target (rows, outputs);
        "cross_entropy", the mean over rows of a softmax over the last layer's outputs, target
        (rows,) = class numbers, of which -1 leaves a row out. NonFiniteError where loss or gradient
        is not finite; nothing changes then. `max_grad_norm` 0 = no clipping.
        """
        settings = {"learning_rate": learning_rate, "weight_decay": weight_decay}
        settings |= {"max_grad_norm": max_grad_norm, "eps": eps}
        for name, value in settings.items():
            _check_number(name, value)
        if not isinstance(betas, tuple | list) or len(betas) != 2:
            raise OptionError(f"betas = {shown(betas)}: two numbers are needed")
        for value in betas:
            _check_number("betas", value, below=1)
        rows, arrays = self._check_batch(x, target, loss)
        with self._turn(wait=True):
            device, network = await self._ready(len(rows))
            self._begin(device)
            network.run(device, loss, rows, **arrays)
            number = self._steps + 1
            update = self._optimizer.step(
                number,
                learning_rate=learning_rate,
                weight_decay=weight_decay,
                max_grad_norm=max_grad_norm,
                betas=(betas[0], betas[1]),
                eps=eps,
            )
            network.plan.run("update", update, 0, 0, whole=True)
            self._steps = number
            self._optimizer.queued(number)
            self._begun = False
            (report,) = await self._optimizer.reports([number])
            if not report.finite:
                self._steps -= 1
                self._optimizer.reset()
                self._clear(device)
                raise NonFiniteError(
                    f"step {number}: the loss is {report.loss}, the norm of the gradient "
                    f"{report.grad_norm}; the adapter is as it was"
                )
            return report.loss

    @dual
    async def gradients(self, x: Any, target: Any, loss: str = "mse") -> dict[str, np.ndarray]:
        """The gradients of a loss, see `step`, by name as `parameters`; nothing changes."""
        rows, arrays = self._check_batch(x, target, loss)
        with self._turn(wait=True):
            device, network = await self._ready(len(rows))
            self._begin(device)
            network.run(device, loss, rows, **arrays)
            found = await self.trainables.gradients.read()
            (totals,) = np.frombuffer(
                await device.read(self._totals.live, 0, TOTALS.itemsize), TOTALS
            )
            self._clear(device)
            return {name: array / np.float32(totals["count"]) for name, array in found.items()}

    def _begin(self, device: Device) -> None:
        """A batch's gradients begin at zero, also where an interrupt cut the one before short."""
        if self._begun:
            self._clear(device)
        self._begun = True

    def _clear(self, device: Device) -> None:
        self.trainables.gradients.clear()
        device.write(self._totals.live, 0, bytes(TOTALS.itemsize))
        self._begun = False

    def _check_adapter(self) -> None:
        if not self.targets:
            raise OptionError("this model has no adapter: inject_lora or load_adapter puts one in")

    def _check_x(self, x: Any) -> np.ndarray:
        rows = floats("x", x, 2)
        inputs = next(iter(self.linears.values())).inputs
        if not len(rows) or rows.shape[1] != inputs:
            raise OptionError(f"x has the shape {rows.shape}; (rows, {inputs}) is needed")
        return rows

    def _check_batch(
        self, x: Any, target: Any, loss: str
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """x, and what a loss takes besides, as arguments of `Network.run`."""
        self._check_adapter()
        rows = self._check_x(x)
        if loss not in LOSSES:
            raise OptionError(f"loss = {shown(loss)}: allowed is {' or '.join(LOSSES)}")
        last = self.layers[-1]
        outputs = list(self.linears.values())[-1].outputs
        if loss == "mse":
            desired = floats("target", target, 2)
            if desired.shape != (len(rows), outputs):
                what = f"target has the shape {desired.shape}; {(len(rows), outputs)} is needed"
                raise OptionError(what)
            return rows, {"desired": desired}
        if not isinstance(last, Linear):
            raise OptionError("loss = cross_entropy: the last layer is no Linear")
        try:
            classes = np.asarray(target)
        except ValueError:  # of lists of several lengths
            classes = np.zeros(0)
        if classes.dtype.kind not in "iu" or classes.shape != (len(rows),):
            raise OptionError(
                f"target is {classes.dtype} of the shape {classes.shape}; {len(rows)} whole "
                "numbers are needed, the class of each row"
            )
        wrong = np.flatnonzero((classes < -1) | (classes >= outputs))
        if len(wrong):
            raise OptionError(
                f"target[{wrong[0]}] is {classes[wrong[0]]}; classes from 0 to {outputs - 1}, or "
                "-1 for none, are allowed"
            )
        if (classes < 0).all():
            raise OptionError("target: every row is left out (-1)")
        return rows, {"targets": classes.astype(np.int64)}

    async def _ready(self, rows: int) -> tuple[Device, Network]:
        """The device, and programs for so many rows."""
        device = await self._open()
        assert self._frozen is not None
        if self._network is None or self._network.max_rows < rows:
            await self._keep()
            network = Network(
                self.layers,
                self._frozen,
                self.trainables,
                self._optimizer,
                self._totals,
                default_tuning(device),
                1 << (rows - 1).bit_length(),
            )
            await network.plan.build(device)
            if self.targets:
                self.trainables.open(device)
                self._optimizer.open(device)
                self.trainables.forget()
                self._optimizer.forget()
            self._network = network
        return device, self._network

    async def _open(self) -> Device:
        if self._device is None:
            device = self._given or await open_device(self._adapter_index)
            try:
                await find_subgroup_size(device)
                frozen = Frozen(list(self.linears.values()), self._types, device.limits)
                await frozen.open(device)
            except BaseException:
                if self._given is None:
                    device.close()
                raise
            self._device, self._frozen = device, frozen
        return self._device

    async def _keep(self) -> None:
        """Takes what is learned off the GPU, for programs of more rows."""
        if self._network is None:
            return
        values: dict[Arena, dict[str, np.ndarray]] = {}
        if self.targets:
            arenas = (self.trainables.values, self._optimizer.first, self._optimizer.second)
            values = {arena: await arena.read() for arena in arenas}
        self._drop_network()
        for arena, tensors in values.items():
            arena.set(tensors)

    def _drop_network(self) -> None:
        if self._network is not None:
            self._network.plan.close()
            self.trainables.close()
            self._optimizer.close()
            self._network = None
        self._begun = False

    def close(self) -> None:
        """Gives all GPU memory back; the model cannot be used afterwards."""
        if not self._turn.close("the model was closed"):
            return
        self._drop_network()
        if self._device is not None and self._frozen is not None:
            self._frozen.close(self._device)
            if self._given is None:
                self._device.close()
            self._device = None

    def __enter__(self) -> "LinearModel":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _formats(
    quantize: str | Mapping[str, str] | None, linears: Mapping[str, Linear]
) -> dict[str, str]:
    """The formats of quantised layers; OptionError where one cannot be."""
    chosen = quantize if isinstance(quantize, Mapping) else dict.fromkeys(linears, quantize)
    found = {}
    for name, way in chosen.items():
        if name not in linears:
            raise OptionError(
                f"quantize: there is no layer {name!r}; there is {', '.join(linears)}"
            )
        if way is None:
            continue
        if not isinstance(way, str) or way not in QUANTIZE_BASE:
            raise OptionError(f"quantize = {shown(way)}: allowed is {', '.join(QUANTIZE_BASE)}")
        if linears[name].inputs % BLOCK:
            raise OptionError(
                f"quantize = {way}: layer {name!r} has rows of {linears[name].inputs} values, "
                f"which is no multiple of {BLOCK}; name the layers that have: "
                f"quantize={{layer: {way!r}}}"
            )
        found[name] = QUANTIZE_BASE[way]
    return found


def is_number(value: Any) -> bool:
    """Whether a value is a real number, numpy's too."""
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def _check_number(name: str, value: Any, below: float = math.inf) -> None:
    if not is_number(value) or not 0 <= value < below or not math.isfinite(value):
        limit = f", below {below:g}" if below < math.inf else ""
        raise OptionError(f"{name} = {shown(value)}: a number, at least 0{limit}, is needed")
