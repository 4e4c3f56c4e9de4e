"""A run as it is planned: what trains, what stays, the memory that takes, and whether it fits."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from html import escape
from typing import Any

from wgtrain.engine.graph import padded
from wgtrain.engine.tuning import DEFAULT_GPU, Tuning
from wgtrain.files import GGUF
from wgtrain.gpu import Limits, Memory, format_size
from wgtrain.model.base import Base, plan_base
from wgtrain.train.fit import advice
from wgtrain.train.needs import Lengths, Needs, Planner, PlanSamples, Settings, Space

_ARENAS = 4  # that hold a number of what trains: itself, its gradient and two moments
_STATE = 4 * _ARENAS  # bytes of a value that trains, in f32


@dataclass(frozen=True)
class LayerPlan:
    """A block, what is before the blocks ("embedding") or behind them ("head"): numbers of values,
    and bytes: `base` of the frozen weights, `adapter` of what trains with its gradients and
    moments, `full` of weights, gradients and moments where all would train.
    """

    name: str
    frozen: int
    trainable: int
    base: int
    adapter: int

    @property
    def full(self) -> int:
        """Bytes of full fine-tuning in f32, without activations."""
        return _STATE * self.frozen

    @property
    def saving(self) -> float:
        """The part of `full` that is not needed."""
        return 1 - (self.base + self.adapter) / self.full


@dataclass(frozen=True)
class TrainingPlan:
    """What a run takes. Bytes are those of GPU memory; `memory` is how much there is on `gpu`.

    `problem` says why it does not fit, `advice` what would.
    """

    model: str
    architecture: str
    types: Mapping[str, int]  # of matrices: how many have it
    settings: Settings
    needs: Needs
    layers: tuple[LayerPlan, ...]
    gpu: str
    memory: Memory
    problem: str = ""
    advice: str = ""

    @property
    def trainable(self) -> int:
        """Values that train."""
        return self.needs.trainable

    @property
    def frozen(self) -> int:
        """Values that do not."""
        return sum(layer.frozen for layer in self.layers)

    @property
    def by_purpose(self) -> dict[str, int]:
        """Bytes for base, adapter, optimizer, activations and scratch; see `Needs`."""
        return dict(self.needs.by_purpose)

    @property
    def base_bytes(self) -> int:
        """Of the frozen weights."""
        return self.needs.by_purpose["base"]

    @property
    def adapter_bytes(self) -> int:
        """Of what trains, with its gradients and moments."""
        return self.needs.by_purpose["adapter"] + self.needs.by_purpose["optimizer"]

    @property
    def total_bytes(self) -> int:
        """All, as the device will count it."""
        return self.needs.total

    @property
    def full_bytes(self) -> int:
        """Of full fine-tuning in f32, without activations."""
        return sum(layer.full for layer in self.layers)

    @property
    def saving(self) -> float:
        """The part of `full_bytes` that base and adapter do not need."""
        return 1 - (self.base_bytes + self.adapter_bytes) / self.full_bytes

    @property
    def fits(self) -> bool | None:
        """Whether it fits; None where nobody knows how much memory there is."""
        if self.problem:
            return False
        return None if self.memory.nbytes is None else True

    def shortage(self, advice: bool = True) -> str:
        """The text of the error that it does not fit."""
        text = f"the run needs {format_size(self.total_bytes)} of GPU memory, {self._there()}"
        text = f"{text}: {self.problem}"
        return f"{text}\n{self.advice}" if advice and self.advice else text

    def as_json(self) -> dict[str, Any]:
        """All of it as JSON values."""
        name, nbytes = self.needs.largest_binding
        return {
            "model": self.model,
            "architecture": self.architecture,
            "types": dict(self.types),
            "trainable": self.trainable,
            "frozen": self.frozen,
            "total_bytes": self.total_bytes,
            "by_purpose": self.by_purpose,
            "largest_binding": nbytes,
            "largest_binding_name": name,
            "full_bytes": self.full_bytes,
            "saving": self.saving,
            "grad_checkpoint": self.needs.recompute,
            "max_tokens": self.needs.max_tokens,
            "max_row": self.needs.max_row,
            "gpu": self.gpu,
            "memory_bytes": self.memory.nbytes,
            "memory_origin": self.memory.origin,
            "fits": self.fits,
            "problem": self.problem,
            "advice": self.advice,
            "layers": [
                {**vars(layer), "full": layer.full, "saving": layer.saving} for layer in self.layers
            ],
        }

    def lines(self) -> list[str]:
        """It in words."""
        n = self.needs
        types = ", ".join(f"{count} {name}" for name, count in self.types.items())
        blocks = len(self.layers) - 2
        name, nbytes = n.largest_binding
        how = "recomputed in the backward pass" if n.recompute else "kept"
        return [
            f"{self.model}: {self.architecture}, {blocks} blocks, {self.frozen:,} parameters "
            f"(matrices: {types})",
            f"{self.trainable:,} train beside them, {self.trainable / self.frozen:.2%}",
            f"steps of up to {n.max_tokens:,} tokens, rows of up to {n.max_row:,}, activations "
            f"are {how}",
            f"GPU memory: {format_size(n.total)}",
            *(
                f"  {purpose:<12}{format_size(share):>12}"
                for purpose, share in n.by_purpose.items()
            ),
            f"largest binding: {name}, {format_size(nbytes)}",
            f"full fine-tuning in f32: {format_size(self.full_bytes)} for weights, gradients and "
            f"moments alone; {self.saving:.1%} are saved",
            f"{self.gpu}: {self._verdict()}",
            *self.advice.splitlines(),
        ]

    def _verdict(self) -> str:
        there = self._there()
        if self.problem:
            return f"{there}; it does not fit: {self.problem}"
        return there if self.fits is None else f"{there}; it fits"

    def _there(self) -> str:
        if self.memory.nbytes is None:
            return f"how much there is is {self.memory.origin}"
        return f"{format_size(self.memory.nbytes)} are there ({self.memory.origin})"

    def table(self) -> list[tuple[str, ...]]:
        """By layer, with a row of names in front and of sums behind; equal blocks are one row."""
        rows: list[tuple[str, ...]] = [
            ("layer", "frozen", "trainable", "base", "adapter", "full fine-tuning", "saved")
        ]
        groups: list[list[LayerPlan]] = []
        for layer in self.layers:
            if groups and replace(layer, name="") == replace(groups[-1][0], name=""):
                groups[-1].append(layer)
            else:
                groups.append([layer])
        for group in groups:
            first = group[0]
            name = first.name if len(group) == 1 else f"{first.name} to {group[-1].name}, each"
            rows.append(_row(name, first.frozen, first.trainable, first.base, first.adapter))
        sums = (self.frozen, self.trainable, self.base_bytes, self.adapter_bytes)
        return [*rows, _row("all", *sums)]

    def __str__(self) -> str:
        return "\n".join([*self.lines(), *_aligned(self.table())])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        head, *rows = self.table()
        lines = "<br>".join(escape(line) for line in self.lines())
        cells = "".join(f"<th>{escape(cell)}</th>" for cell in head)
        body = "".join(
            "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows
        )
        return f"<p>{lines}</p><table><tr>{cells}</tr>{body}</table>"


def _row(name: str, frozen: int, trainable: int, base: int, adapter: int) -> tuple[str, ...]:
    full = _STATE * frozen
    sizes = map(format_size, (base, adapter, full))
    return (name, f"{frozen:,}", f"{trainable:,}", *sizes, f"{1 - (base + adapter) / full:.1%}")


def _aligned(rows: list[tuple[str, ...]]) -> Iterable[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for name, *cells in rows:
        yield "  ".join(
            [f"{name:<{widths[0]}}", *(f"{c:>{w}}" for c, w in zip(cells, widths[1:], strict=True))]
        )


def make_plan(
    gguf: GGUF,
    settings: Settings,
    lengths: Lengths,
    *,
    gpu: str,
    limits: Limits,
    memory: Memory,
    plan_samples: PlanSamples,
    tuning: Tuning = DEFAULT_GPU,
    precision: str = "f32",
    fixed: Iterable[str] = (),
) -> TrainingPlan:
    """The plan of a run on a model of which the metadata is known; nothing else is read, and
    nothing is allocated. OutOfMemoryError where not even the limits of the adapter allow it.
    """

    @cache
    def base_of(quantize_base: str | None) -> Base:
        return plan_base(gguf, limits, tuning, precision, quantize_base)

    planner = Planner(base_of, lengths, Space(limits, 0, memory.nbytes), plan_samples)
    needs, problem = planner.plan(settings)
    base = base_of(settings.quantize_base)
    types: dict[str, int] = {}
    for weight in base.weights.matrices.values():
        types[weight.type] = types.get(weight.type, 0) + 1
    return TrainingPlan(
        gguf.name,
        base.config.architecture,
        types,
        settings,
        needs,
        tuple(_layers(base, needs)),
        gpu,
        memory,
        problem,
        advice(planner, settings, set(fixed)) if problem else "",
    )


def _layers(base: Base, needs: Needs) -> Iterable[LayerPlan]:
    config, weights = base.config, base.weights
    names = ["embedding", *(f"blk.{i}" for i in range(config.n_layer)), "head"]
    frozen, trainable, nbytes, adapter = (dict.fromkeys(names, 0) for _ in range(4))

    def aligned(n: int) -> int:
        return -(-n // base.limits.alignment) * base.limits.alignment

    for name, (rows, columns) in config.matrices().items():
        frozen[_layer(name)] += rows * columns
        nbytes[_layer(name)] += weights.matrices[name].nbytes
    for name, length in config.vectors().items():
        frozen[_layer(name)] += length
        nbytes[_layer(name)] += aligned(weights.vectors[name].size)
    for name, (rows, columns) in needs.shapes.items():
        trainable[_layer(name)] += rows * columns
        adapter[_layer(name)] += _ARENAS * aligned(4 * rows * padded(columns))
    for name in names:
        yield LayerPlan(name, frozen[name], trainable[name], nbytes[name], adapter[name])


def _layer(tensor: str) -> str:
    if tensor.startswith("blk."):
        return ".".join(tensor.split(".")[:2])
    return "embedding" if tensor.startswith(("token_embd", "rope")) else "head"
