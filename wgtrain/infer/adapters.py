"""The adapters a model runs under by default: loaded, rescaled and removed between requests."""

import math
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import PurePath
from typing import Any

from wgtrain.errors import OptionError
from wgtrain.files.source import shown
from wgtrain.infer.stack import Checked, Stack, called, check_strength, read_stack
from wgtrain.turn import Turn


class Adapters:
    """The default stack of a model, `model.adapters`: any number of adapters in order, each with
    its scale, 1.0 = as trained; a request that brings `adapters` of its own runs under those alone.

    Iterating gives (name, scale). Changes are for requests that begin later; they take no new plan
    on the GPU unless there is no room for an adapter, or it stands beside other linears.
    """

    def __init__(
        self,
        check: Callable[[Any], Checked],
        forget: Callable[[bytes], None],
        close: Callable[[], None],
        turn: Turn,
    ):
        self._check, self._forget, self._close, self._turn = check, forget, close, turn
        self._loaded: dict[str, tuple[Checked, float]] = {}

    def read(self, adapter: Any) -> Checked:
        """An adapter (what `load_adapter` takes) read once: given for it in requests, it is neither
        read nor checked again. FileError where it does not fit the model.
        """
        return self._check(adapter)

    def load(self, adapter: Any, scale: float = 1.0, name: str | None = None) -> str:
        """Puts an adapter (a path, bytes, an `Adapter`, what `read` gave) on top of the stack, and
        gives its name: as named, or after its path.

        FileError for one that cannot be read or does not fit the model, OptionError for a scale
        that is no finite number and for a name that is taken. The GPU gets it with the next
        request.
        """
        if name is not None and (not isinstance(name, str) or not name):
            raise OptionError(f"name = {shown(name)}: a text is needed")
        one = self.read(adapter)
        strength = _strength(one, scale, called(adapter, name or "scale"))
        with self._turn(wait=True):
            if name is not None and name in self._loaded:
                raise OptionError(f"name = {name}: an adapter of this name is loaded already")
            name = name or self._free(_after(adapter))
            self._loaded = {**self._loaded, name: (one, strength)}
        return name

    def rescale(self, name: str, scale: float) -> None:
        """Another scale for an adapter; OptionError for an unknown name or no finite number."""
        with self._turn(wait=True):
            one, _ = self._found(name)
            self._loaded = {**self._loaded, name: (one, _strength(one, scale, f"scale of {name}"))}

    def remove(self, name: str) -> None:
        """Takes an adapter from the stack; its place on the GPU is free for the next one."""
        with self._turn(wait=True):
            one, _ = self._found(name)
            self._loaded = {n: entry for n, entry in self._loaded.items() if n != name}
            if all(other.key != one.key for other, _ in self._loaded.values()):
                self._forget(one.key)

    def clear(self) -> None:
        """Removes all, and gives back the memory of these and of those that requests brought."""
        with self._turn(wait=True):
            self._loaded = {}
            self._close()

    @property
    def stack(self) -> Stack:
        """As it is now."""
        return Stack(tuple(self._loaded.values()))

    def of(self, adapters: Sequence[tuple[Any, float]] | Stack | None) -> Stack:
        """The stack of a request: its own, or for None this one."""
        if adapters is None:
            return self.stack
        pairs = adapters.adapters if isinstance(adapters, Stack) else adapters
        return read_stack(pairs, self.read)

    def _found(self, name: str) -> tuple[Checked, float]:
        if not isinstance(name, str) or name not in self._loaded:
            there = ", ".join(map(repr, self._loaded)) or "none"
            raise OptionError(f"adapter {shown(name)} is not loaded; loaded: {there}")
        return self._loaded[name]

    def _free(self, name: str) -> str:
        """The name, with a number where it is taken."""
        number, found = 1, name
        while found in self._loaded:
            number += 1
            found = f"{name}-{number}"
        return found

    def __iter__(self) -> Iterator[tuple[str, float]]:
        return iter([(name, scale) for name, (_, scale) in self._loaded.items()])

    def __len__(self) -> int:
        return len(self._loaded)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and name in self._loaded

    def __repr__(self) -> str:
        inside = ", ".join(f"{name}:{scale:g}" for name, scale in self)
        return f"<Adapters {inside or 'none'}>"


def _strength(adapter: Checked, scale: float, what: str) -> float:
    """A scale, checked."""
    try:
        if not math.isfinite(scale):
            raise ValueError
    except (TypeError, ValueError, OverflowError):
        raise OptionError(f"scale = {shown(scale)}: allowed is a finite number") from None
    check_strength(adapter.adapter, float(scale), what)
    return float(scale)


def _after(adapter: Any) -> str:
    """A name after a path: that of the file, or of the folder of an `adapter.gguf`."""
    if not isinstance(adapter, str | os.PathLike):
        return "adapter"
    path = PurePath(adapter)
    stem = path.name.removesuffix(".gguf")
    plain = stem in ("adapter", "adapter_model.safetensors", "adapter_config.json")
    return (path.parent.name if plain else stem) or stem or "adapter"
