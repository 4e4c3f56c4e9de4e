"""Logits of a model and what stands beside it: a plan for the hidden states, one for the head."""

from collections.abc import Mapping, Sequence

import numpy as np

from wgtrain.engine.graph import Graph, Storage, padded
from wgtrain.engine.inputs import InputBuffer
from wgtrain.engine.linear import Adapter
from wgtrain.engine.plan import Plan
from wgtrain.engine.structs import step_bytes
from wgtrain.engine.tuning import Tuning
from wgtrain.gpu import Device
from wgtrain.infer.plans import build, record_head
from wgtrain.model.base import Base
from wgtrain.model.forward import Network, forward
from wgtrain.model.layers import RopeTables

LOGITS_BYTES = 64 << 20  # of the logits read back at once


class Session:
    """Inference for streams of up to `max_tokens` tokens. `beside`: what stands beside linears, by
    tensor, and is on the device already. `tuning`: a table in place of the base's.
    """

    def __init__(
        self,
        device: Device,
        base: Base,
        beside: Mapping[str, tuple[Adapter, ...]],
        max_tokens: int,
        tuning: Tuning | None = None,
    ):
        config, base = base.config, base.tuned(tuning, device)
        self._device, self._config, self.tuning = device, config, base.tuning
        self.max_tokens, self.beside = max_tokens, beside
        self._inputs = InputBuffer(max_tokens, config.windows)
        self._ropes = RopeTables(config.layers, max_tokens)
        row = padded(config.vocabulary) * 4
        most = min(LOGITS_BYTES, base.limits.binding, base.limits.buffer)
        self.rows = max(min(most // row, max_tokens), 1)  # logits made at once
        self._logits = Storage("logits", "logits", self.rows * row)
        hidden = Storage("hidden", "activations", max_tokens * padded(config.width) * 4)
        net = Network(config, base.weights, beside, self._ropes.windows)
        body = Graph(training=False, tuning=self.tuning)
        forward(body, net, self._inputs.inputs, into=hidden.window())
        head = Graph(training=False, tuning=self.tuning)
        index = self._inputs.inputs.trained
        record_head(head, config, net, hidden.window(), index, self._logits.window())
        storages = [self._inputs.storage, hidden, self._ropes.storage, self._logits]
        self.plan = Plan({"body": body, "head": head}, storages, max_tokens)

    async def open(self) -> None:
        """Allocates and compiles."""
        await build(self.plan, self._ropes, self._device)

    async def logits(
        self, rows: Sequence[Sequence[int]], positions: Sequence[int] | None = None
    ) -> np.ndarray:
        """Logits of a stream of token rows, float32 (len(positions), V); `positions` in the
        stream, all by default.
        """
        lengths = np.array([len(row) for row in rows])
        ends = np.repeat(np.cumsum(lengths), lengths)
        starts = ends - np.repeat(lengths, lengths)
        tokens = np.concatenate([np.asarray(row, np.uint32) for row in rows])
        wanted = np.arange(len(tokens)) if positions is None else np.asarray(positions)
        self._inputs.write(self._device, tokens, starts, ends, np.full(len(tokens), -1))
        self._ropes.follow(self._device, int(lengths.max()))
        self.plan.run("body", step_bytes(len(tokens)), len(tokens), 0)
        parts = []
        index, logits = self._inputs.inputs.trained, self._logits.live
        for first in range(0, len(wanted), self.rows):
            chosen = wanted[first : first + self.rows]
            self._device.write(index.storage.live, index.offset, chosen.astype(np.int32))
            counts = len(tokens), len(chosen)
            self.plan.run("head", step_bytes(*counts), *counts)
            width = padded(self._config.vocabulary)
            data = await self._device.read(logits, 0, len(chosen) * width * 4)
            parts.append(
                np.frombuffer(data, np.float32).reshape(-1, width)[:, : self._config.vocabulary]
            )
        return np.concatenate(parts)

    def close(self) -> None:
        """Frees its buffers; no tokens are served from here on, also if an interrupt cuts this."""
        self.max_tokens = 0
        self.plan.close()
