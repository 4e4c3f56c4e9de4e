"""Recorded launches of inference as fewer: what follows each other over the same small rows is one
kernel. Dispatches are what a step of few tokens waits for, besides its weights.

A merged launch stands where the last of its parts stood, and makes the same numbers.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from wgtrain.engine.graph import Launch, Operand
from wgtrain.engine.kernel import load_kernel

_SIZES = ("rows", "d4", "d", "eps")  # of a norm


def merged(launches: Sequence[Launch]) -> list[Launch]:
    """The launches of a program, without those that others took along."""
    merger = _Merger(launches)
    for number, launch in enumerate(launches):
        if launch.kernel.name == "rms_norm" and launch.params["groups"] == 1:
            merger.residual(number)
        elif launch.kernel.name == "store_rows":
            merger.rotations(number)
    return [launch for launch in merger.launches if launch]


class _Merger:
    """The launches by their numbers, None for one that is gone."""

    def __init__(self, launches: Sequence[Launch]):
        self.launches: list[Launch | None] = list(launches)
        self._readers: Counter[Operand] = Counter()
        self._writers: dict[Operand, list[int]] = defaultdict(list)
        for number, launch in enumerate(launches):
            for operand, access in launch.accesses():
                self._readers[operand] += 1
                if access == "read_write":
                    self._writers[operand].append(number)

    def residual(self, number: int) -> None:
        """A norm of rows, the residual that it reads, and a norm of what that adds."""
        norm = self._at(number)
        at = self._made_by(number, norm.operands["x"], "add", "add_scaled")
        if at is None or self._used_between(at, number, norm.operands["x"]):
            return
        add = self._at(at)
        operands = {name: add.operands[name] for name in "aby"}
        operands |= {"w": norm.operands["w"], "z": norm.operands["y"]}
        params = {name: norm.params[name] for name in _SIZES}
        params["factor"] = add.params.get("factor", 1.0)
        lanes = {"LANES": int(norm.kernel.constants["LANES"])}
        before = self._made_by(at, operands["b"], "rms_norm")
        if before is None or self._at(before).params != norm.params or self._shared(operands["b"]):
            self._put(number, [at], "add_norm", operands, params, lanes)
            return
        first = self._at(before)
        operands |= {"b": first.operands["x"], "w_b": first.operands["w"]}
        self._put(number, [at, before], "norm_add_norm", operands, params, lanes)

    def rotations(self, number: int) -> None:
        """Keys and values that are stored, and the rotations of keys and of the queries that come
        to meet them.
        """
        store, attention = self._at(number), self._at(number + 1)
        q, k = attention.operands["q"], store.operands["k"]
        of_q, of_k = self._made_by(number, q, "rope"), self._made_by(number, k, "rope")
        if of_q is None or of_k is None or self._shared(q) or self._shared(k):
            return
        one, other = self._at(of_q), self._at(of_k)
        constants = {"INTERLEAVED": bool(one.kernel.constants["INTERLEAVED"])}
        assert one.operands["table"] == other.operands["table"], "a layer turns by one table"
        operands = {"q": one.operands["x"], "k": other.operands["x"], "y": q}
        operands |= {name: store.operands[name] for name in ("v", "places", "keys", "values")}
        operands["table"] = one.operands["table"]
        params = {name: one.params[name] for name in ("rows", "heads", "head_size", "rotary")}
        params["kv_heads"] = other.params["heads"]
        self._put(number, [of_q, of_k], "rope_store", operands, params, constants)

    def _at(self, number: int) -> Launch:
        launch = self.launches[number]
        assert launch is not None
        return launch

    def _made_by(self, before: int, operand: Operand, *kernels: str) -> int | None:
        """The launch that wrote an operand last, where it is one of these kernels."""
        for number in reversed(self._writers[operand]):
            if number < before and (launch := self.launches[number]) is not None:
                return number if launch.kernel.name in kernels else None
        return None

    def _used_between(self, first: int, last: int, operand: Operand) -> bool:
        between = self.launches[first + 1 : last]
        return any(launch and operand in launch.operands.values() for launch in between)

    def _shared(self, operand: Operand) -> bool:
        """Whether it has more uses than being made and being read once."""
        return self._readers[operand] > 2

    def _put(
        self,
        number: int,
        gone: Sequence[int],
        name: str,
        operands: dict[str, Operand],
        params: dict[str, Any],
        constants: dict[str, Any],
    ) -> None:
        """In place of the launches `number` and `gone`."""
        kernel = load_kernel(name, constants)
        slots = [slot for slot in kernel.slots if slot.access != "uniform"]
        ordered = {slot.name: operands[slot.name] for slot in slots}
        for operand in (ordered[slot.name] for slot in slots if slot.access == "read_write"):
            self._writers[operand].append(number)
        for at in gone:
            self.launches[at] = None
        last = self._at(number)
        self.launches[number] = replace(
            last, kernel=kernel, operands=ordered, params=params, tuned=None
        )
