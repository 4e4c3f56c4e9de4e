"""Rows of tokens that a model has read: their keys and values stay in the GPU's memory, and each
further token costs one pass over the weights for all rows together.
"""

import operator
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np

from wgtrain.engine.attention import Cache
from wgtrain.engine.graph import Graph, Storage, padded
from wgtrain.engine.inputs import InputBuffer
from wgtrain.engine.linear import Adapter
from wgtrain.engine.loss import head_logits
from wgtrain.engine.merged import merged
from wgtrain.engine.plan import SUBMIT_SECONDS, Plan
from wgtrain.engine.structs import step_bytes
from wgtrain.engine.tuning import Tuning
from wgtrain.errors import OptionError, OutOfMemoryError
from wgtrain.gpu import Device, format_size
from wgtrain.infer.plans import build, record_head, tuned
from wgtrain.model.base import Base
from wgtrain.model.forward import Network, forward
from wgtrain.model.host import Host
from wgtrain.model.layers import RopeTables

CHUNK = 256  # tokens that are read at once
_NEAR = 1024  # tokens of room up to which a chunk goes on with the next row
_SHORTEST = 64  # tokens of room that are still proposed


class Sequences(Protocol):
    """Rows of tokens that a model has read, each in a place of its own in the GPU's memory."""

    @property
    def places(self) -> int:
        """Rows at once."""

    @property
    def room(self) -> int:
        """Tokens that each may hold."""

    def length(self, place: int) -> int:
        """Tokens that a row holds."""

    async def extend(self, rows: Mapping[int, Sequence[int]]) -> dict[int, np.ndarray]:
        """Appends tokens to rows, by place; float32 logits (V,) after the last token of each."""

    def truncate(self, place: int, length: int) -> None:
        """Forgets what lies behind `length` tokens; 0 = all."""

    def close(self) -> None:
        """Frees the memory."""


@dataclass(frozen=True)
class _Part:
    """Tokens that follow each other in a row: the first has this position. `last`: their row ends
    with them.
    """

    place: int
    position: int
    tokens: Sequence[int]
    last: bool = True


class CachedSession:
    """`Sequences` of `places` rows of up to `room` tokens. `beside`: what stands beside the
    linears, by tensor, and is on the device. `tuning`: a table in place of the base's. Without a
    `device` it is only planned.

    Where rotations go by the length of rows (LongRoPE), each row takes those of its own length, and
    is read again when it crosses the original one.
    """

    def __init__(
        self,
        device: Device | None,
        base: Base,
        beside: Mapping[str, tuple[Adapter, ...]],
        places: int,
        room: int,
        tuning: Tuning | None = None,
    ):
        for name, count in (("places", places), ("room", room)):
            if operator.index(count) < 1:
                raise OptionError(f"{name} = {count}: allowed is a whole number, at least 1")
        self.places, self.room = places, room
        self._opened_on, self._given = device, base
        self._beside = beside
        self._tokens: list[list[int]] = [[] for _ in range(places)]
        base = base.tuned(tuning, device)
        config, self.tuning, self._vocabulary = base.config, base.tuning, base.config.vocabulary
        self.chunk = max(min(CHUNK, places * room), places)
        self._windows = config.windows
        self._ropes = RopeTables(config.layers, room)
        self._kinds = [self._ropes.kind(1)] * places  # of the tables with which keys were made
        self._width = padded(config.vocabulary)
        self._logits = Storage("logits", "logits", places * self._width * 4)
        hidden = Storage("hidden", "scratch", self.chunk * padded(config.width) * 4)
        size = places * room * config.n_head_kv * config.head_size * 4
        kept = [
            [
                Storage(f"{what} of layer {il}", "keys and values", size)
                for what in ("keys", "values")
            ]
            for il in range(config.n_layer)
        ]
        self._many = InputBuffer(self.chunk, self._windows, {"places": 8})
        self._few = InputBuffer(places, self._windows, {"places": 8})
        nets = []
        for buffer in (self._many, self._few):
            at = buffer.inputs.more["places"]
            caches = [Cache(keys.window(), values.window(), at) for keys, values in kept]
            nets.append(Network(config, base.weights, beside, self._ropes.windows, caches))

        prefill = Graph(training=False, tuning=self.tuning)
        forward(prefill, nets[0], self._many.inputs, into=hidden.window())
        head = Graph(training=False, tuning=self.tuning, few=places)
        index = self._many.inputs.trained
        record_head(head, config, nets[0], hidden.window(), index, self._logits.window())
        decode = Graph(training=False, tuning=self.tuning, few=places)
        last = forward(decode, nets[1], self._few.inputs)
        head_logits(decode, last, nets[1].head, self._logits.window(), config.softcap)
        storages = [
            *(self._many.storage, self._few.storage, self._ropes.storage, hidden, self._logits),
            *(storage for pair in kept for storage in pair),
        ]
        for graph in (prefill, decode):
            graph.launches = merged(graph.launches)
        graphs = {"prefill": prefill, "head": head, "decode": decode}
        self.plan = Plan(graphs, storages, self.chunk)
        self._since, self._work = 0.0, 0.0  # when what is queued began, and how much it is
        self._kept_bytes = size  # of keys, or values, of a layer

    @property
    def _device(self) -> Device:
        assert self._opened_on is not None, "this session is only planned"
        return self._opened_on

    async def open(self) -> None:
        """Allocates and compiles; OutOfMemoryError, before anything is allocated, with what would
        fit.
        """
        try:
            self.plan.check(self._device)
        except OutOfMemoryError as error:
            raise OutOfMemoryError(
                f"{self.places:,} rows of {self.room:,} tokens with their keys and values: {error}"
                f"{self._proposal()}"
            ) from None
        await build(self.plan, self._ropes, self._device)

    def length(self, place: int) -> int:
        """Tokens that a row holds."""
        return len(self._row(place))

    def truncate(self, place: int, length: int) -> None:
        """Forgets what lies behind `length` tokens; 0 = all."""
        row = self._row(place)
        if not 0 <= length <= len(row):
            raise OptionError(f"length = {length}: row {place} holds {len(row)} tokens")
        del row[length:]

    async def extend(self, rows: Mapping[int, Sequence[int]]) -> dict[int, np.ndarray]:
        """Appends tokens to rows (many: in chunks; one a row: in one pass for all), by place;
        float32 logits (V,) after the last token of each.
        """
        new = {place: self._checked(place, rows[place]) for place in sorted(rows)}
        alike: dict[tuple[bool, ...], list[_Part]] = {}
        for place, tokens in new.items():
            row = self._tokens[place]
            kind = self._ropes.kind(len(row) + len(tokens))
            start = len(row) if kind == self._kinds[place] else 0
            alike.setdefault(kind, []).append(_Part(place, start, row[start:] + tokens))
            del row[start:]
            self._kinds[place] = kind
        found: dict[int, np.ndarray] = {}
        self._since, self._work = time.perf_counter(), 0.0
        for parts in alike.values():
            self._ropes.follow(self._device, max(x.position + len(x.tokens) for x in parts))
            if all(len(part.tokens) == 1 for part in parts):
                found |= await self._decode(parts)
                continue
            for batch in self._batches(parts):
                found |= await self._prefill(batch)
        return found

    async def _prefill(self, batch: Sequence[_Part]) -> dict[int, np.ndarray]:
        """Reads some parts; the logits of those rows that end with them."""
        count = self._write(self._many, batch)
        self._run("prefill", count, 0)
        self._hold(batch)
        ends = np.cumsum([len(part.tokens) for part in batch]) - 1
        wanted = [(part.place, end) for part, end in zip(batch, ends, strict=True) if part.last]
        if not wanted:
            return {}
        index = self._many.inputs.trained
        chosen = np.array([end for _, end in wanted], np.int32)
        self._device.write(index.storage.live, index.offset, chosen)
        self._run("head", len(wanted), len(wanted))
        return await self._read([place for place, _ in wanted])

    async def _decode(self, batch: Sequence[_Part]) -> dict[int, np.ndarray]:
        """Reads one token a row, and makes the logits, in one program."""
        count = self._write(self._few, batch)
        self._run("decode", count, count)
        self._hold(batch)
        return await self._read([part.place for part in batch])

    def _run(self, name: str, tokens: int, trained: int) -> None:
        self.plan.run(name, step_bytes(tokens, trained), tokens, trained)
        self._work += self.plan.total_work(name, tokens)

    def _hold(self, batch: Sequence[_Part]) -> None:
        for part in batch:
            self._tokens[part.place] += part.tokens

    async def _read(self, places: Sequence[int]) -> dict[int, np.ndarray]:
        data = await self._device.read(self._logits.live, 0, len(places) * self._width * 4)
        now = time.perf_counter()
        if now > self._since:  # so much work goes into a submit
            self.plan.work_limit = self._work / (now - self._since) * SUBMIT_SECONDS
        self._since, self._work = now, 0.0
        logits = np.frombuffer(data, np.float32).reshape(-1, self._width)[:, : self._vocabulary]
        return dict(zip(places, logits, strict=True))

    def _write(self, buffer: InputBuffer, batch: Sequence[_Part]) -> int:
        """Queues what a program reads of the tokens; how many they are."""
        counts = [len(part.tokens) for part in batch]
        tokens = np.concatenate([np.asarray(part.tokens, np.uint32) for part in batch])
        positions = np.concatenate([part.position + np.arange(len(part.tokens)) for part in batch])
        first = np.repeat([part.place * self.room for part in batch], counts)
        arrays = {"tokens": tokens, "positions": positions}
        arrays["places"] = np.stack([positions, first + positions], 1)
        for window in self._windows:
            least = np.maximum(positions + 1 - window, 0) if window else 0
            arrays[f"keys {window}"] = np.stack([first + least, first + positions + 1], 1)
        content = {name: array.astype(np.uint32) for name, array in arrays.items()}
        self._device.write(buffer.storage.live, 0, buffer.put(content))
        return len(tokens)

    def _batches(self, parts: Sequence[_Part]) -> Iterator[list[_Part]]:
        """The parts, in order, so many tokens at once as a chunk has. Where rows are long, each
        begins a chunk: a tile of queries of two rows walks all keys between theirs.
        """
        batch: list[_Part] = []
        space = self.chunk
        for part in parts:
            if batch and self.room > _NEAR:
                yield batch
                batch, space = [], self.chunk
            first = 0
            while first < len(part.tokens):
                tokens = part.tokens[first : first + space]
                end = first + len(tokens)
                last = end == len(part.tokens)
                batch.append(_Part(part.place, part.position + first, tokens, last))
                first, space = end, space - len(tokens)
                if not space:
                    yield batch
                    batch, space = [], self.chunk
        if batch:
            yield batch

    def _row(self, place: int) -> list[int]:
        if not 0 <= place < self.places:
            raise OptionError(f"place = {place}: there are {self.places}, from 0 on")
        return self._tokens[place]

    def _checked(self, place: int, tokens: Sequence[int]) -> list[int]:
        ids, held = [operator.index(token) for token in tokens], self.length(place)
        if not ids or not all(0 <= token < self._vocabulary for token in ids):
            raise OptionError(
                f"row {place}: one or more ids from 0 to {self._vocabulary - 1} are needed"
            )
        if held + len(ids) > self.room:
            raise OptionError(
                f"row {place}: {held} tokens and {len(ids)} more are over the {self.room} of its "
                "room"
            )
        return ids

    def _proposal(self) -> str:
        """Which room would fit, as a part of a sentence."""
        device = self._device
        most = min(device.limits.buffer, device.limits.binding) * self.room // self._kept_bytes
        if device.budget is not None:
            grows = 2 * self._given.config.n_layer * self._kept_bytes + self._ropes.storage.size
            left = device.budget - device.allocated - (self.plan.nbytes - grows)
            most = min(most, left * self.room // grows)
        room = min(most, self.room - 1) // _SHORTEST * _SHORTEST
        if room >= _SHORTEST:
            smaller = CachedSession(
                device, self._given, self._beside, self.places, room, self.tuning
            )
            try:
                smaller.plan.check(device)
            except OutOfMemoryError:
                pass
            else:
                return f"; rows of {room:,} tokens fit, {format_size(smaller.plan.nbytes)} in all"
        return "; fewer rows at once may fit" if self.places > 1 else ""

    def close(self) -> None:
        """Frees its buffers; there is no room from here on, also if an interrupt cuts this."""
        self.room = 0
        self.plan.close()


async def open_sequences(
    device: Device,
    base: Base,
    beside: Mapping[str, tuple[Adapter, ...]],
    places: int,
    room: int,
    host: Host,
) -> CachedSession:
    """A session with what stands beside the linears and is on the device, with the kernels that the
    host knows for it, open.
    """
    session = tuned(partial(CachedSession, device, base, beside, places, room), device, host, room)
    await session.open()
    return session
