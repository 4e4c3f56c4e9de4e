"""Models of random weights as GGUF bytes, random batches for them, and ways to open them.

Nothing but numpy and the `gguf` package's quantisation is needed; see `tiny.py` for models that
transformers can run as well.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from random_blocks import dequantised, encoded

from wgtrain import gpu
from wgtrain.bench.random_model import RandomModel
from wgtrain.data import Batch
from wgtrain.engine.dispatch import Caller
from wgtrain.engine.kernel import load_kernel
from wgtrain.engine.tuning import default_tuning
from wgtrain.engine.weight import Weight
from wgtrain.files import BytesSource, Raw, read_gguf, write_gguf
from wgtrain.gpu import Device
from wgtrain.infer.model import Model
from wgtrain.infer.opening import open_model
from wgtrain.model.base import plan_base
from wgtrain.model.weights import load_weights
from wgtrain.train.config import LoraConfig
from wgtrain.train.learner import Learner, lora_learner


@dataclass(frozen=True)
class Shape(RandomModel):
    """A small model, untied, whose sizes differ from each other."""

    name: str = "random"
    architecture: str = "llama"
    width: int = 64
    layers: int = 2
    heads: int = 4
    kv_heads: int = 2
    head_size: int = 16
    feed_forward: int = 96
    vocabulary: int = 101
    tied: bool = False


def encode(values: np.ndarray, type_: str) -> np.ndarray | Raw:
    """float32 values as a tensor of any type; see `encoded`."""
    if type_ == "F32":
        return values.astype(np.float32)
    return Raw(type_, values.shape, encoded(np.atleast_2d(values), type_).tobytes())


def decode(tensor: np.ndarray | Raw) -> np.ndarray:
    """What a tensor means, float32, by the `gguf` package."""
    if isinstance(tensor, np.ndarray):
        return tensor
    rows = np.frombuffer(bytes(tensor.data), np.uint8).reshape(*tensor.shape[:-1], -1)
    return dequantised(rows, tensor.type)


def tensors(shape: Shape, seed: int = 0) -> dict[str, np.ndarray | Raw]:
    """Random weights with which a model neither explodes nor is indifferent."""
    rng = np.random.default_rng(seed)
    found: dict[str, np.ndarray | Raw] = {}
    for name, (type_, size) in shape.tensors().items():
        if len(size) == 1:
            values = (0.0 if name.endswith("bias") else 1.0) + 0.2 * rng.standard_normal(size)
        else:
            values = rng.standard_normal(size, np.float32) / np.float32(np.sqrt(size[1]))
            if name == "token_embd.weight" and not shape.tied:
                values *= np.float32(np.sqrt(size[1]))
        found[name] = encode(values.astype(np.float32), type_)
    return found


def build(shape: Shape, seed: int = 0) -> bytes:
    """A GGUF file."""
    return write_gguf(shape.metadata(), tensors(shape, seed))


def load(data: Any, **options: Any) -> Model:
    """Opens GGUF bytes, or a source, with WebGPU's default limits."""
    source = BytesSource(data, "random.gguf") if isinstance(data, bytes) else data
    return gpu.run(open_model(source, **{"limits": "default", **options}))


def load_split(data: Any, weights: dict[str, int], device: dict[str, int]) -> Model:
    """A model laid out under smaller limits of `weights`, on a device that then claims `device`."""

    async def open_() -> Model:
        source = BytesSource(data, "random.gguf") if isinstance(data, bytes) else data
        gguf = await read_gguf(source)
        opened = await gpu.open_device(limits="default")
        base = plan_base(gguf, replace(opened.limits, **weights), default_tuning(opened))
        await load_weights(opened, source, gguf, base.weights)
        opened.limits = replace(opened.limits, **device)
        return Model(gguf, replace(base, limits=opened.limits), opened, "fingerprint")

    return gpu.run(open_())


def decoded(device: Device, weight: Weight) -> np.ndarray:
    """All rows of a weight, as kernels see them, (rows, columns)."""

    async def read() -> np.ndarray:
        kernel = load_kernel("embed", libraries=weight.libraries)
        call = await Caller.open(device, kernel)
        width = -(-weight.columns // 4) * 4
        ids = device.create_buffer(4 * weight.rows, "ids")
        out = device.create_buffer(4 * weight.rows * width, "out")
        device.write(ids, 0, np.arange(weight.rows, dtype=np.uint32))
        device.write(out, 0, np.full((weight.rows, width), np.nan, np.float32))
        for segment in weight.segments:
            operands = {
                name: (window.storage.buffer, window.offset, window.size)
                for name, window in weight.operands(segment).items()
            }
            call(
                {"tokens": ids, "y": out, **operands},
                {
                    "rows": "T",
                    "d4": width // 4,
                    "row_start": segment.first,
                    "row_count": segment.rows,
                    **weight.strides(),
                },
                tokens=weight.rows,
            )
        raw = await device.read(out, 0, out.size)
        for buffer in (ids, out):
            device.free(buffer)
        call.close()
        return np.frombuffer(raw, np.float32).reshape(weight.rows, width)[:, : weight.columns]

    return gpu.run(read())


def batch(rng: np.random.Generator, lengths: list[int], vocabulary: int) -> Batch:
    """Rows of random tokens; about a third of the targets, and each row's last, are ignored."""
    sizes = np.array(lengths, np.uint32)
    ends = np.cumsum(sizes, dtype=np.uint32)
    total = int(ends[-1])
    targets = rng.integers(0, vocabulary, total).astype(np.int32)
    targets[rng.random(total) < 0.3] = -1
    targets[ends - 1] = -1
    return Batch(
        tokens=rng.integers(0, vocabulary, total).astype(np.uint32),
        targets=targets,
        starts=np.repeat(ends - sizes, sizes),
        ends=np.repeat(ends, sizes),
        lines=tuple(range(1, len(lengths) + 1)),
    )


def planned(model: Model, lora: LoraConfig, **options: Any) -> Learner:
    """A learner that is not built yet."""
    return lora_learner(model.base, lora, device=model.device, **options)


def learner(model: Model, lora: LoraConfig | None = None, **options: Any) -> Learner:
    """A built learner with random parameters, B not zero."""
    made = planned(
        model,
        lora or LoraConfig(rank=4, alpha=8.0),
        **{"max_tokens": 40, "max_row": 24, **options},
    )
    gpu.run(made.build())
    made.set_parameters(start(made.shapes))
    return made


def start(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """The parameters `learner` begins with."""
    rng = np.random.default_rng(7)
    return {
        name: (rng.standard_normal(size) / np.sqrt(4 * size[1])).astype(np.float32)
        for name, size in shapes.items()
    }


def difference(got: np.ndarray, expected: np.ndarray) -> float:
    """Relative L2 distance."""
    g, e = got.astype(np.float64), expected.astype(np.float64)
    return float(np.linalg.norm(g - e) / max(np.linalg.norm(e), 1e-30))
