"""Models made up by their sizes: what stands in the file of one of random weights.

Benchmarks and tests make their models here, of every row of `wgtrain.files.architectures`.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from wgtrain.files import ARCHITECTURES, Architecture
from wgtrain.model.config import ModelConfig, make_config


@dataclass(frozen=True)
class RandomModel:
    """The sizes of a model; `type` is that of its matrices, `vector_type` of norms and biases."""

    name: str
    architecture: str
    width: int
    layers: int
    heads: int
    kv_heads: int
    head_size: int
    feed_forward: int
    vocabulary: int
    type: str = "F32"
    tied: bool = True
    rope_theta: float = 10_000.0
    norm_eps: float = 1e-5
    context: int = 512
    vector_type: str = "F32"
    types: tuple[tuple[str, str], ...] = ()  # of single matrices

    @property
    def row(self) -> Architecture:
        """The row of the table of architectures."""
        return ARCHITECTURES[self.architecture]

    @property
    def values(self) -> dict[str, int | float]:
        """Its numbers by `Key.field`."""
        return {
            "width": self.width,
            "n_layer": self.layers,
            "n_head": self.heads,
            "n_head_kv": self.kv_heads,
            "head_size": self.head_size,
            "value_size": self.head_size,
            "rotary": self.head_size,
            "feed_forward": self.feed_forward,
            "norm_eps": float(np.float32(self.norm_eps)),  # as a file holds it
            "rope_theta": self.rope_theta,
            "context": self.context,
        }

    @cached_property
    def config(self) -> ModelConfig:
        """What `read_config` makes of a file of `metadata`."""
        return make_config(
            self.row,
            self.values,
            vocabulary=self.vocabulary,
            tied_head=self.tied,
        )

    def metadata(self) -> dict[str, Any]:
        """The metadata of a GGUF."""
        values = self.values
        numbers = {
            f"{self.row.name}.{key.gguf}": values[key.field]
            for key in self.row.keys
            if key.field in values
        }
        return {"general.architecture": self.row.name, **numbers}

    def hf_config(self) -> dict[str, Any]:
        """The fields of transformers' configuration."""
        values = self.values
        numbers = {key.hf: values[key.field] for key in self.row.keys if key.field in values}
        theta = numbers.pop("rope_theta")
        return {
            **numbers,
            "vocab_size": self.vocabulary,
            "tie_word_embeddings": self.tied,
            "rope_parameters": {"rope_type": "default", "rope_theta": theta},
        }

    def tensors(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """(type, shape) of every tensor, matrices first."""
        special = dict(self.types)
        matrices = self.config.matrices()
        found: dict[str, tuple[str, tuple[int, ...]]] = {
            name: (special.get(name, self.type), shape) for name, shape in matrices.items()
        }
        vectors = self.config.vectors()
        return found | {name: (self.vector_type, (length,)) for name, length in vectors.items()}
