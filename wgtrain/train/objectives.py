"""Objectives: what makes the scalar that is minimised, of hidden states and what a batch brings.

One records its loss onto the totals of a window (a sum and a count, by which gradients are divided)
and begins the backward pass; everything below the hidden states is the same for all.
"""

from collections.abc import Mapping
from typing import Protocol

import numpy as np

from wgtrain.data.batches import Batch
from wgtrain.engine.graph import Graph, Tensor, Window
from wgtrain.engine.loss import chunk_columns, cross_entropy
from wgtrain.engine.ops import Inputs, gather
from wgtrain.model.forward import Network


class Objective(Protocol):
    """A loss. It keeps nothing: one serves any number of plans."""

    @property
    def inputs(self) -> Mapping[str, int]:
        """Arrays of its own that a batch brings, by name: bytes a token."""

    def arrays(self, batch: Batch) -> Mapping[str, np.ndarray]:
        """Those arrays of a batch."""

    def record(
        self,
        g: Graph,
        net: Network,
        hidden: Tensor,
        inputs: Inputs,
        totals: Window,
        max_tokens: int,
    ) -> None:
        """Adds the loss of hidden (T, D) to `totals`, and the count it is divided by; begins the
        backward pass with `g.gradient(hidden)` or by operations over it.
        """


class NextToken:
    """Cross-entropy of each target with what the head predicts there, divided by their number."""

    inputs: Mapping[str, int] = {}

    def arrays(self, batch: Batch) -> Mapping[str, np.ndarray]:
        """None: targets come with every batch."""
        return {}

    def record(
        self,
        g: Graph,
        net: Network,
        hidden: Tensor,
        inputs: Inputs,
        totals: Window,
        max_tokens: int,
    ) -> None:
        """sum over trained positions of log sum_v exp(l[v]) - l[target]."""
        trained = gather(g, hidden, inputs.trained, inputs.where)
        columns = chunk_columns(net.config.vocabulary, max_tokens)
        cross_entropy(g, trained, net.head, inputs, totals, columns, net.config.softcap)
