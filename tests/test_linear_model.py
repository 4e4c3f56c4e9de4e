"""LoRA for models of one's own: linear layers and activations, against PyTorch."""

import dataclasses
import itertools
import math
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from needs import ROOT
from shared_device import borrow

import wgtrain
from wgtrain import Activation, FileError, Linear, LinearModel, NonFiniteError, OptionError
from wgtrain.files.gguf import parse_gguf, write_gguf
from wgtrain.files.quantise_base import NF4, encode_nf4
from wgtrain.layers.description import ACTIVATIONS

pytestmark = pytest.mark.gpu
RANK, ALPHA, RATE = 3, 5.0, 0.02
SIZES = [64, 128, 71, 10]  # three layers; the first two can be quantised
LAYERS = ["fc1", "block.fc2", "out"]


@pytest.fixture
def lent(device: Any) -> Iterator[Any]:
    made = borrow(device)
    yield made
    made.close()


def arrays(sizes: list[int] = SIZES) -> list[tuple[np.ndarray, np.ndarray | None]]:
    """Weights and biases; the second layer has no bias."""
    found = []
    for number, (inputs, outputs) in enumerate(itertools.pairwise(sizes)):
        weight = np.random.standard_normal((outputs, inputs)) / math.sqrt(inputs)
        bias = None if number == 1 else 0.1 * np.random.standard_normal(outputs)
        found.append((weight.astype(np.float32), bias))
    return found


def make(device: Any, kinds: tuple[str, str] = ("gelu", "silu"), **options: Any) -> LinearModel:
    layers: list[Any] = []
    for number, (name, (weight, bias)) in enumerate(zip(LAYERS, arrays(), strict=True)):
        layers.append(Linear(name, weight, bias))
        layers += [Activation(kinds[number])] if number < 2 else []
    return LinearModel(layers, device=device, **options)


def adapted(device: Any, targets: Any = "all-linear", **options: Any) -> LinearModel:
    """A model whose adapter is not zero."""
    model = make(device, **options)
    wgtrain.inject_lora(model, RANK, ALPHA, targets)
    shapes = model.trainables.layout.shapes
    values = {n: 0.3 * np.random.standard_normal(s).astype(np.float32) for n, s in shapes.items()}
    model.set_parameters(values)
    return model


def batch(loss: str, rows: int = 9) -> tuple[np.ndarray, np.ndarray]:
    x = np.random.standard_normal((rows, SIZES[0]))
    if loss == "mse":
        return x, np.random.standard_normal((rows, SIZES[-1]))
    classes = np.random.randint(0, SIZES[-1], rows)
    classes[2] = -1
    return x, classes


def relative(got: np.ndarray, want: np.ndarray) -> float:
    return float(np.linalg.norm(got - want) / np.linalg.norm(want))


class Torch:
    """The same network in float64."""

    def __init__(self, model: LinearModel, types: dict[str, str]):
        import torch

        self._torch, self._layers = torch, model.layers
        self._frozen = {}
        for name, layer in model.linears.items():
            weight = layer.weight
            if name in types:
                codes, absmax = encode_nf4(weight)
                weight = (NF4[codes].reshape(-1, 64) * absmax[:, None]).reshape(weight.shape)
            bias = None if layer.bias is None else torch.tensor(layer.bias, dtype=torch.float64)
            self._frozen[name] = torch.tensor(weight, dtype=torch.float64), bias
        self.parameters = {
            name: torch.tensor(value, dtype=torch.float64, requires_grad=True)
            for name, value in model.parameters().items()
        }
        self.optimizer = torch.optim.AdamW(
            self.parameters.values(), lr=RATE, weight_decay=0.01, betas=(0.9, 0.99), eps=1e-8
        )

    def replace(self, kind: str, other: str) -> None:
        """Another activation in the place of one: what is nearly right."""
        self._layers = tuple(
            Activation(other) if layer == Activation(kind) else layer for layer in self._layers
        )

    def forward(self, x: np.ndarray) -> Any:
        functional = self._torch.nn.functional
        act = {
            "relu": functional.relu,
            "gelu": functional.gelu,
            "gelu_tanh": lambda x: functional.gelu(x, approximate="tanh"),
            "silu": functional.silu,
            "tanh": self._torch.tanh,
        }
        y = self._torch.tensor(x.astype(np.float32), dtype=self._torch.float64)
        for layer in self._layers:
            if isinstance(layer, Activation):
                y = act[layer.kind](y)
                continue
            weight, bias = self._frozen[layer.name]
            z = functional.linear(y, weight, bias)
            if (a := self.parameters.get(f"{layer.name}.lora_a")) is not None:
                z = z + ALPHA / RANK * (y @ a.T @ self.parameters[f"{layer.name}.lora_b"].T)
            y = z
        return y

    def loss(self, x: np.ndarray, target: np.ndarray, loss: str) -> Any:
        functional, y = self._torch.nn.functional, self.forward(x)
        if loss == "mse":
            desired = self._torch.tensor(target.astype(np.float32), dtype=y.dtype)
            return functional.mse_loss(y, desired)
        return functional.cross_entropy(y, self._torch.tensor(target), ignore_index=-1)


CASES = [
    ("mse", "all-linear", None),
    ("cross_entropy", "all-linear", {"fc1": "nf4", "block.fc2": "nf4"}),
    ("cross_entropy", ["fc1", "block.fc2"], None),
    ("mse", "out", {"fc1": "nf4"}),
]


@pytest.mark.oracle
@pytest.mark.parametrize(("loss", "targets", "quantize"), CASES)
def test_as_pytorch(lent: Any, loss: str, targets: Any, quantize: Any) -> None:
    """Outputs, losses of five steps over batches of several sizes, gradients before each, and the
    matrices after them.
    """
    model = adapted(lent, targets, quantize=quantize)
    torch = Torch(model, quantize or {})
    plain = Torch(model, {})
    other = Torch(model, quantize or {})
    other.replace("gelu", "gelu_tanh")
    x, _ = batch(loss)
    y = model.forward(x)
    assert relative(y, torch.forward(x).detach().numpy()) < 2e-6
    assert relative(y, other.forward(x).detach().numpy()) > 2e-5
    if quantize:  # of the values before it is far off
        assert relative(y, plain.forward(x).detach().numpy()) > 0.01
    x, target = batch(loss)
    other.loss(x, target, loss).backward()
    for name, gradient in model.gradients(x, target, loss).items():
        assert relative(gradient, other.parameters[name].grad.numpy()) > 3e-5, name
    for rows in (9, 3, 17, 16, 1 if loss == "mse" else 33):
        x, target = batch(loss, rows)
        torch.optimizer.zero_grad()
        expected = torch.loss(x, target, loss)
        expected.backward()
        found = model.gradients(x, target, loss)
        assert found.keys() == torch.parameters.keys()
        for name, gradient in found.items():
            assert relative(gradient, torch.parameters[name].grad.numpy()) < 1e-5, name
        options = {"learning_rate": RATE, "weight_decay": 0.01, "betas": (0.9, 0.99)}
        got = model.step(x, target, loss, **options)
        assert abs(got - expected.item()) < 3e-6 * expected.item()
        torch.optimizer.step()
    for name, value in model.parameters().items():
        assert relative(value, torch.parameters[name].detach().numpy()) < 1e-5, name


@pytest.mark.oracle
@pytest.mark.parametrize("kind", ACTIVATIONS)
def test_activations(lent: Any, kind: str) -> None:
    model = adapted(lent, "fc1", kinds=(kind, kind))
    torch = Torch(model, {})
    x, target = batch("mse")
    assert relative(model.forward(3 * x), torch.forward(3 * x).detach().numpy()) < 2e-6
    torch.loss(x, target, "mse").backward()
    for name, gradient in model.gradients(x, target).items():
        assert relative(gradient, torch.parameters[name].grad.numpy()) < 1e-5, name


def test_an_adapter_changes_nothing_until_it_learns(lent: Any) -> None:
    model = make(lent)
    x, target = batch("mse")
    before = model.forward(x)
    assert wgtrain.trainable_param_count(model) == 0
    frozen = wgtrain.total_param_count(model)
    assert frozen == sum(w.size + (0 if b is None else b.size) for w, b in arrays())
    wgtrain.inject_lora(model, RANK, ALPHA, "fc1, out", seed=1)
    assert model.targets == ("fc1", "out")
    count = RANK * (SIZES[0] + SIZES[1] + SIZES[2] + SIZES[3])
    assert wgtrain.trainable_param_count(model) == count
    assert wgtrain.total_param_count(model) == frozen + count
    np.testing.assert_array_equal(model.forward(x), before)
    losses = [model.step(x, target, learning_rate=RATE) for _ in range(30)]
    assert losses[-1] < 0.8 * losses[0]
    assert relative(model.forward(x), before) > 0.1


def test_the_seed_decides_where_it_starts(lent: Any) -> None:
    first, second, third = make(lent), make(lent), make(lent)
    for model, seed in ((first, 1), (second, 1), (third, 2)):
        wgtrain.inject_lora(model, RANK, ALPHA, seed=seed)
    a, b, c = (model.parameters()["fc1.lora_a"] for model in (first, second, third))
    np.testing.assert_array_equal(a, b)
    assert not np.array_equal(a, c)


def test_clipping_and_rate_of_zero(lent: Any) -> None:
    model = adapted(lent)
    x, target = batch("mse")
    start = model.parameters()
    model.step(x, target, learning_rate=0.0)
    for name, value in model.parameters().items():
        np.testing.assert_array_equal(value, start[name])
    twin = adapted(lent)
    twin.set_parameters(start)
    # AdamW is blind to the size of all gradients but for eps.
    model.step(x, target, learning_rate=RATE, max_grad_norm=1e-3, eps=1e-2)
    twin.step(x, target, learning_rate=0.0)
    twin.step(x, target, learning_rate=RATE, eps=1e-2)
    assert relative(model.parameters()["fc1.lora_b"], twin.parameters()["fc1.lora_b"]) > 1e-3


def test_an_adapter_comes_back_to_the_bit(lent: Any, tmp_path: Path) -> None:
    model = adapted(lent, ["fc1", "out"])
    x, target = batch("mse")
    model.step(x, target)
    path = tmp_path / "adapter.gguf"
    data = wgtrain.save_adapter(model, path)
    assert path.read_bytes() == data and [p.name for p in tmp_path.iterdir()] == [path.name]
    gguf = parse_gguf(data)
    assert gguf.metadata["adapter.lora.rank"] == RANK
    assert gguf.metadata["adapter.lora.alpha"] == ALPHA
    assert {name: (t.type, t.shape) for name, t in gguf.tensors.items()} == {
        "lora.fc1.weight_a": ("F32", (RANK, SIZES[0])),
        "lora.fc1.weight_b": ("F32", (SIZES[1], RANK)),
        "lora.out.weight_a": ("F32", (RANK, SIZES[2])),
        "lora.out.weight_b": ("F32", (SIZES[3], RANK)),
    }
    np.random.seed(0)  # the same weights
    fresh = make(lent)
    base = fresh.forward(x)
    wgtrain.load_adapter(fresh, path)
    assert fresh.targets == model.targets
    for name, value in fresh.parameters().items():
        np.testing.assert_array_equal(value, model.parameters()[name])
    np.testing.assert_array_equal(fresh.forward(x), model.forward(x))
    assert relative(fresh.forward(x), base) > 0.01
    assert wgtrain.save_adapter(fresh) == data
    wgtrain.load_adapter(model, data)  # one that fits replaces what is there


@pytest.mark.oracle
def test_the_package_gguf_reads_it(lent: Any, tmp_path: Path) -> None:
    import gguf

    model = adapted(lent)
    wgtrain.save_adapter(model, tmp_path / "a.gguf")
    values = model.parameters()
    tensors = gguf.GGUFReader(tmp_path / "a.gguf").tensors
    assert len(tensors) == len(values)
    for tensor in tensors:
        name, _, matrix = tensor.name.removeprefix("lora.").rpartition(".weight_")
        np.testing.assert_array_equal(tensor.data, values[f"{name}.lora_{matrix}"])


def test_more_rows_keep_what_was_learned(lent: Any) -> None:
    """A batch that needs larger buffers: AdamW's moments go on."""
    model = adapted(lent)
    start, (x, target) = model.parameters(), batch("mse", 40)
    model.forward(x)
    whole = [model.step(x[:5], target[:5]) for _ in range(3)], model.step(x, target)
    again = LinearModel(model.layers, device=lent)
    wgtrain.inject_lora(again, RANK, ALPHA)
    again.set_parameters(start)
    parts = [again.step(x[:5], target[:5]) for _ in range(3)], again.step(x, target)
    assert whole == parts
    for name, value in again.parameters().items():
        np.testing.assert_array_equal(value, model.parameters()[name])


@pytest.mark.parametrize("quantize", [None, "int4"])
def test_weights_in_segments(lent: Any, quantize: str | None) -> None:
    """Weights larger than an adapter binds at once give the same numbers."""
    np.random.seed(3)
    arrays = np.random.standard_normal((600, 64)), np.random.standard_normal((8, 600))
    ways = {"wide": quantize} if quantize else None

    def make() -> LinearModel:
        layers = [Linear("wide", arrays[0]), Activation("relu"), Linear("out", arrays[1])]
        made = LinearModel(layers, ways, device=lent)
        wgtrain.inject_lora(made, 2, 2.0)
        return made

    x, classes = np.random.standard_normal((5, 64)), np.array([1, 7, -1, 4, 0])
    whole = make()
    expected = whole.forward(x), whole.gradients(x, classes, "cross_entropy")
    limits = lent.limits
    lent.limits = dataclasses.replace(limits, binding=20_000)
    try:
        parted = make()
        y = parted.forward(x)
        assert parted._frozen is not None and len(parted._frozen.weights["wide"].segments) > 1
        gradients = parted.gradients(x, classes, "cross_entropy")
    finally:
        lent.limits = limits
    np.testing.assert_array_equal(y, expected[0])
    for name, gradient in gradients.items():
        np.testing.assert_allclose(gradient, expected[1][name], rtol=1e-5, atol=1e-6)


def test_what_is_not_finite_changes_nothing(lent: Any) -> None:
    model = adapted(lent)
    x, target = batch("mse")
    model.step(x, target)
    before = model.parameters()
    with pytest.raises(NonFiniteError, match="step 2: the loss is (inf|nan)"):
        model.step(1e38 * x, target)
    for name, value in model.parameters().items():
        np.testing.assert_array_equal(value, before[name])
    assert np.isfinite(model.step(x, target))


def test_memory_is_given_back(lent: Any) -> None:
    before = lent.allocated
    for _ in range(3):
        with adapted(lent, quantize={"fc1": "int8"}) as model:
            model.forward(batch("mse")[0])
            assert lent.allocated > before
        assert lent.allocated == before
    with pytest.raises(wgtrain.DeviceLostError, match="was closed"):
        model.forward(batch("mse")[0])


def test_awaitable_forms(lent: Any) -> None:
    model = adapted(lent)
    x, target = batch("mse")

    async def all_() -> tuple[Any, Any, Any]:
        y = await model.aio.forward(x)
        return y, await model.aio.step(x, target), await wgtrain.aio.save_adapter(model)

    y, loss, data = wgtrain.run(all_())
    assert y.shape == (9, SIZES[-1]) and loss > 0 and data[:4] == b"GGUF"


ONE = np.ones((4, 3))
BAD_LAYERS: list[tuple[Any, str]] = [
    (lambda: Linear("", ONE), "a layer's name is ''"),
    (lambda: Linear("x" * 60, ONE), "a name of at most 49 bytes"),
    (lambda: Linear("a", np.ones(3)), r"'a': weight has the shape \(3,\)"),
    (lambda: Linear("a", [["x"]]), "'a': weight is .*; an array of numbers"),
    (lambda: Linear("a", np.ones((0, 3))), "'a': weight is empty"),
    (lambda: Linear("a", np.where(np.eye(4, 3) == 1, math.nan, 1)), r"weight\[0, 0\] is nan"),
    (lambda: Linear("a", 1e300 * ONE), r"weight\[0, 0\] is 1e\+300; numbers that float32 holds"),
    (lambda: Linear("a", ONE, np.ones(3)), "'a': bias has 3 values for 4 outputs"),
    (lambda: Activation("swish"), "activation 'swish': allowed is relu, gelu"),
    (lambda: LinearModel([Activation("relu")]), "none is a Linear"),
    (lambda: LinearModel([ONE]), r"layers\[0\] is"),
    (lambda: LinearModel(Linear("a", ONE)), "a list of Linear and Activation is needed"),
    (lambda: LinearModel(None), "layers = None: a list"),
    (lambda: LinearModel([Linear("a", ONE), Linear("b", ONE)]), "'b' takes 3 values, 'a' .* 4"),
    (lambda: LinearModel([Linear("a", ONE), Linear("a", ONE)]), "two layers of name 'a'"),
    (lambda: LinearModel([Linear("a", ONE)], "nf5"), "quantize = 'nf5': allowed is nf4"),
    (lambda: LinearModel([Linear("a", ONE)], "nf4"), "'a' has rows of 3 values, .* multiple of 64"),
    (lambda: LinearModel([Linear("a", ONE)], {"b": "nf4"}), "quantize: there is no layer 'b'"),
]


@pytest.mark.parametrize(("act", "message"), BAD_LAYERS)
def test_layers_that_cannot_be(act: Any, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        act()


BAD_CALLS: list[tuple[Any, str]] = [
    (lambda m: wgtrain.inject_lora(m, 0, 1), "rank = 0"),
    (lambda m: wgtrain.inject_lora(m, True, 1), "rank = True"),
    (lambda m: wgtrain.inject_lora(m, 1, 0.0), "alpha = 0.0"),
    (lambda m: wgtrain.inject_lora(m, 1, math.nan), "alpha = nan"),
    (lambda m: wgtrain.inject_lora(m, 1, 1, "fc9"), "no layer 'fc9'; allowed: all-linear, fc1, bl"),
    (lambda m: wgtrain.inject_lora(m, 1, 1, []), "target_modules: none named"),
    (lambda m: wgtrain.inject_lora(m, 1, 1, 7), "target_modules: 7"),
    (lambda m: wgtrain.inject_lora(m, 1, 1, seed=-1), "seed = -1"),
    (lambda m: wgtrain.inject_lora(m, 1, 1), "has an adapter already, beside fc1"),
    (lambda m: wgtrain.inject_lora("m", 1, 1), "model: 'm': a LinearModel is needed"),
    (lambda m: wgtrain.load_adapter(m, 5), "adapter: 5"),
    (lambda m: m.forward(np.ones((2, 5))), r"x has the shape \(2, 5\); \(rows, 64\)"),
    (lambda m: m.forward(np.ones((0, 64))), r"x has the shape \(0, 64\)"),
    (lambda m: m.forward(np.full((1, 64), np.nan)), r"x\[0, 0\] is nan"),
    (lambda m: m.step(np.ones((2, 64)), np.ones((2, 9))), r"target has the shape \(2, 9\)"),
    (lambda m: m.step(np.ones((2, 64)), [1, 2], "hinge"), "loss = 'hinge': allowed is mse or cr"),
    (lambda m: m.step(np.ones((2, 64)), [1, 10], "cross_entropy"), r"target\[1\] is 10; classes"),
    (lambda m: m.step(np.ones((2, 64)), [-1, -1], "cross_entropy"), "every row is left out"),
    (lambda m: m.step(np.ones((2, 64)), [0.5, 1], "cross_entropy"), "target is float64"),
    (lambda m: m.step(*batch("mse"), learning_rate=-1), "learning_rate = -1"),
    (lambda m: m.step(*batch("mse"), betas=(0.9, 1.0)), "betas = 1.0: .*below 1"),
    (lambda m: m.step(*batch("mse"), eps="x"), "eps = 'x'"),
    (lambda m: m.set_parameters(None), "tensors = None: allowed are matrices of fc1.lora_a"),
    (lambda m: m.set_parameters({"fc9.lora_a": ONE}), "allowed are matrices of fc1.lora_a"),
    (lambda m: m.set_parameters({"fc1.lora_a": ONE}), r"fc1.lora_a has the shape \(4, 3\)"),
    (lambda m: m.set_parameters({"fc1.lora_a": None}), "fc1.lora_a is None; an array"),
    (lambda m: wgtrain.save_adapter(m, 5), "path = 5: a path is needed"),
]


@pytest.mark.parametrize(("act", "message"), BAD_CALLS)
def test_calls_that_cannot_be(lent: Any, act: Any, message: str) -> None:
    model = make(lent)
    wgtrain.inject_lora(model, RANK, ALPHA, "fc1")
    with pytest.raises(OptionError, match=message):
        act(model)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs FIFOs")
def test_no_adapter_goes_in_the_place_of_what_is_no_file(lent: Any, tmp_path: Path) -> None:
    model = make(lent)
    wgtrain.inject_lora(model, RANK, ALPHA, "fc1")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(FileError, match="pipe: a device, FIFO or socket"):
        wgtrain.save_adapter(model, tmp_path / "pipe")
    with pytest.raises(FileError, match="a folder; the name of a file is needed"):
        wgtrain.save_adapter(model, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["pipe"]
    assert (tmp_path / "pipe").is_fifo()


def test_what_needs_more_than_there_is(lent: Any) -> None:
    with pytest.raises(OptionError, match="has no adapter: inject_lora"):
        make(lent).step(*batch("mse"))
    layers = [Linear("a", ONE), Activation("relu")]
    model = LinearModel(layers, device=lent)
    wgtrain.inject_lora(model, 1, 1)
    with pytest.raises(OptionError, match="the last layer is no Linear"):
        model.step(np.ones((1, 3)), [0], "cross_entropy")


KINDS = {"general.type": "adapter", "adapter.type": "lora", "general.architecture": "layers"}
HEAD = {**KINDS, "adapter.lora.rank": RANK, "adapter.lora.alpha": ALPHA}
A, B = np.ones((RANK, 64), np.float32), np.ones((128, RANK), np.float32)
PAIR = {"lora.fc1.weight_a": A, "lora.fc1.weight_b": B}
BAD_FILES: list[tuple[dict[str, Any], dict[str, Any], list[str]]] = [
    ({**HEAD, "general.type": "model"}, PAIR, ["general.type is 'model', 'adapter' expected"]),
    ({**KINDS, "adapter.lora.alpha": 1.0}, PAIR, ["'adapter.lora.rank' is missing"]),
    ({**HEAD, "adapter.lora.alpha": 0.0}, PAIR, ["rank 3 and alpha 0.0, both"]),
    ({**HEAD, "adapter.lora.alpha": 7.0}, PAIR, ["rank 3 and alpha 7, the model has 3 and 5"]),
    (HEAD, {"lora.fc1.weight_a": A}, ["'lora.fc1.weight_b' is missing"]),
    (HEAD, {**PAIR, "lora.fc9.weight_a": A}, ["'lora.fc9.weight_a': the model has no such layer"]),
    (HEAD, {**PAIR, "lora.out.weight_a": A}, ["'lora.out.weight_a': the model has no adapter"]),
    (HEAD, {**PAIR, "blk.0.lora_a": A}, ["'blk.0.lora_a': no lora.<layer>.weight_a"]),
    (
        HEAD,
        {"lora.fc1.weight_a": A[:, :60], "lora.fc1.weight_b": B.astype(np.float16)},
        ["F32 (3, 60), F32 (3, 64) expected", "F16 (128, 3), F32 (128, 3) expected"],
    ),
    (
        HEAD,
        {**PAIR, "lora.fc1.weight_a": np.float32(np.inf) * A},
        ["'lora.fc1.weight_a' has values that are"],
    ),
]


@pytest.mark.parametrize(("metadata", "tensors", "messages"), BAD_FILES)
def test_files_that_do_not_fit(
    lent: Any, metadata: dict[str, Any], tensors: dict[str, Any], messages: list[str]
) -> None:
    """All of a file's problems are named, and the adapter stays."""
    model = make(lent)
    wgtrain.inject_lora(model, RANK, ALPHA, "fc1")
    before = model.parameters()
    with pytest.raises(FileError) as caught:
        wgtrain.load_adapter(model, write_gguf(metadata, tensors))
    assert all(message in str(caught.value) for message in messages), caught.value
    np.testing.assert_array_equal(model.parameters()["fc1.lora_a"], before["fc1.lora_a"])
    wgtrain.load_adapter(model, write_gguf(HEAD, PAIR))
    np.testing.assert_array_equal(model.parameters()["fc1.lora_a"], A)


def test_files_that_are_not_there(lent: Any, tmp_path: Path) -> None:
    model = make(lent)
    with pytest.raises(FileError, match=r"none\.gguf"):
        wgtrain.load_adapter(model, tmp_path / "none.gguf")
    with pytest.raises(FileError, match="adapter: "):
        wgtrain.load_adapter(model, b"GGUF")
    wgtrain.inject_lora(model, 1, 1)
    with pytest.raises(FileError, match="no/folder"):
        wgtrain.save_adapter(model, tmp_path / "no" / "folder" / "a.gguf")


def test_the_example_runs(tmp_path: Path) -> None:
    path = tmp_path / "adapter.gguf"
    command = [sys.executable, str(ROOT / "examples" / "own_model.py"), str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "3,584 of 28,928 values" in done.stdout and "to the bit: True" in done.stdout
    before, after = map(int, re.findall(r"(\d+) with", done.stdout))
    assert before < 128 and after > 230, done.stdout
    assert set(parse_gguf(path.read_bytes()).tensors) == {
        f"lora.{layer}.weight_{matrix}" for layer in ("fc1", "fc2") for matrix in "ab"
    }


def test_the_document_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "layers.md").read_text(), re.S)
    names: dict[str, Any] = {}
    exec(code, names)
    assert names["y"].shape == (32, 10) and (tmp_path / "adapter.gguf").stat().st_size > 1000
