"""A model of linear layers as programs: what lies frozen on a device, and what is replayed there.

C rows of a batch; inputs and outputs are those of the first and the last layer.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from wgtrain.engine.graph import Graph, Storage, Tensor, Window, padded
from wgtrain.engine.inputs import InputBuffer
from wgtrain.engine.linear import Linear as Product
from wgtrain.engine.linear import linear
from wgtrain.engine.lora import Lora
from wgtrain.engine.loss import chunk_columns, cross_entropy, squared_error
from wgtrain.engine.ops import activate, scale
from wgtrain.engine.optimizer import AdamW
from wgtrain.engine.plan import Plan
from wgtrain.engine.structs import step_bytes
from wgtrain.engine.trainables import Trainables
from wgtrain.engine.tuning import Tuning
from wgtrain.engine.weight import QUANTISED, Weight, plan_weight
from wgtrain.errors import OutOfMemoryError
from wgtrain.files import TensorInfo
from wgtrain.files.source import BytesSource
from wgtrain.gpu import Device, Limits
from wgtrain.layers.description import ACTIVATIONS, Activation, Layer, Linear
from wgtrain.model.quantised import load_quantised


class Frozen:
    """Weights and biases of linear layers, in formats `types` by name, F32 where there is none."""

    def __init__(self, linears: Sequence[Linear], types: Mapping[str, str], limits: Limits):
        self._linears = linears
        self.weights: dict[str, Weight] = {}
        self.biases: dict[str, Window] = {}
        for layer in linears:
            type_ = types.get(layer.name, "F32")
            weight = plan_weight(layer.name, type_, layer.outputs, layer.inputs, limits)
            self.weights[layer.name] = weight
            if layer.bias is not None:
                size = padded(layer.outputs) * 4
                self.biases[layer.name] = Storage(f"{layer.name} bias", "weights", size).window()

    @property
    def _storages(self) -> list[Storage]:
        found = [s.storage for weight in self.weights.values() for s in weight.segments]
        return found + [window.storage for window in self.biases.values()]

    async def open(self, device: Device) -> None:
        """Allocates and writes; OutOfMemoryError where it does not fit."""
        size = sum(storage.size for storage in self._storages)
        if device.budget is not None and size > device.budget - device.allocated:
            raise OutOfMemoryError(
                f"the layers need {size:,} bytes of GPU memory; "
                f"{device.budget - device.allocated:,} are left"
            )
        try:
            for storage in self._storages:
                storage.buffer = device.create_buffer(storage.size, storage.name)
            for layer in self._linears:
                await self._write(device, layer)
        except BaseException:
            self.close(device)
            raise

    async def _write(self, device: Device, layer: Linear) -> None:
        weight, values = self.weights[layer.name], layer.weight
        if weight.type in QUANTISED:
            source = BytesSource(values.reshape(-1).view(np.uint8).data, layer.name)
            tensor = TensorInfo(layer.name, values.shape, "F32", 0, values.nbytes)
            await load_quantised(device, source, weight, tensor, lambda count: None)
        else:
            for segment in weight.segments:
                rows = values[segment.first : segment.first + segment.rows]
                device.write(segment.storage.live, segment.starts[0], padded_rows(rows))
        if layer.bias is not None:
            device.write(self.biases[layer.name].storage.live, 0, padded_rows(layer.bias[None]))

    def close(self, device: Device) -> None:
        """Frees its buffers."""
        for storage in self._storages:
            if storage.buffer is not None:
                device.free(storage.buffer)
            storage.buffer = None


class Network:
    """Programs for batches of up to `max_rows` rows: "forward", and where something trains one for
    each loss ("mse", and "cross_entropy" where the last layer is linear) and "update".
    """

    def __init__(
        self,
        layers: Sequence[Layer],
        frozen: Frozen,
        trainables: Trainables[Lora],
        optimizer: AdamW,
        totals: Storage,
        tuning: Tuning,
        max_rows: int,
    ):
        self._layers, self._frozen, self.max_rows = layers, frozen, max_rows
        linears = [layer for layer in layers if isinstance(layer, Linear)]
        self._columns, self.outputs = linears[0].inputs, linears[-1].outputs
        width = 4 * padded(self.outputs)
        rows = {"x": 4 * padded(self._columns), "desired": width}
        self._inputs = InputBuffer(max_rows, (), rows)
        self._result = Storage("outputs", "outputs", max_rows * width)
        graphs = {"forward": Graph(training=False, tuning=tuning)}
        y = self._record(graphs["forward"], layers, trainables)
        scale(graphs["forward"], y, 1.0, "outputs", into=self._result.window())
        storages = [self._inputs.storage, self._result]
        if trainables.kinds:
            inputs = self._inputs.inputs
            g = graphs["mse"] = Graph(tuning=tuning)
            y = self._record(g, layers, trainables)
            squared_error(g, y, inputs.more["desired"], totals.window())
            g.backward()
            if isinstance(layers[-1], Linear):
                g = graphs["cross_entropy"] = Graph(tuning=tuning)
                hidden = self._record(g, layers[:-1], trainables)
                head = self._product(layers[-1], trainables.made(training=True))
                columns = chunk_columns(self.outputs, max_rows)
                cross_entropy(g, hidden, head, inputs, totals.window(), columns)
                g.backward()
            graphs["update"] = Graph(training=False)
            optimizer.record(graphs["update"])
            storages += [*trainables.values.storages, *trainables.gradients.storages]
            storages += [*optimizer.storages, totals]
        self.plan = Plan(graphs, storages, max_rows)

    def _record(self, g: Graph, layers: Sequence[Layer], trainables: Trainables[Lora]) -> Tensor:
        """What layers make of the batch's rows, (C, outputs)."""
        made, inputs = trainables.made(g.training), self._inputs.inputs
        x = g.tensor("x", "C", self._columns)
        operands = {"x": inputs.more["x"], "index": inputs.trained, "y": x}
        g.launch("gather_rows", operands, {"rows": "C", "d4": padded(self._columns) // 4})
        for layer in layers:
            if isinstance(layer, Activation):
                x = activate(g, x, layer.kind, ACTIVATIONS[layer.kind])
            else:
                x = linear(g, x, self._product(layer, made), layer.name)
        return x

    def _product(self, layer: Linear, made: Mapping[str, Lora]) -> Product:
        adapters = (made[layer.name],) if layer.name in made else ()
        bias = self._frozen.biases.get(layer.name)
        return Product(self._frozen.weights[layer.name], bias, adapters)

    def run(
        self,
        device: Device,
        program: str,
        x: np.ndarray,
        desired: np.ndarray | None = None,
        targets: np.ndarray | None = None,
    ) -> None:
        """Queues a program over x (rows, inputs); `targets` (rows,): -1 = the row is left out."""
        none = np.zeros(len(x), np.int64)
        more = {"x": padded_rows(x)}
        if desired is not None:
            more["desired"] = padded_rows(desired)
        targets = none if targets is None else targets
        counts = len(x), self._inputs.write(device, none, none, none, targets, more)
        self.plan.run(program, step_bytes(*counts), *counts)

    async def result(self, device: Device, rows: int) -> np.ndarray:
        """What "forward" made, float32 (rows, outputs)."""
        width = padded(self.outputs)
        data = await device.read(self._result.live, 0, rows * width * 4)
        return np.frombuffer(data, np.float32).reshape(rows, width)[:, : self.outputs].copy()


def padded_rows(rows: np.ndarray) -> np.ndarray:
    """Rows of f32 as they lie on the GPU, padded with zeros to a multiple of four."""
    return np.pad(rows, ((0, 0), (0, -rows.shape[1] % 4)))
