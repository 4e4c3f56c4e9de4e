"""The recording: kernel launches over symbolic tensors, and the tape that differentiates them.

Nothing here touches a GPU. Rows of a tensor are "T" (tokens of a step) or "C" (trained tokens),
which each replay gives a number; a row of `cols` values is stored with its length rounded up to a
multiple of four, and the padding is always zero.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from wgtrain.engine.kernel import Kernel, check_rows, load_kernel
from wgtrain.engine.tuning import DEFAULT_CPU, Choice, Tuning
from wgtrain.errors import DeviceLostError
from wgtrain.gpu import Buffer


def padded(n: int) -> int:
    """The stored length of a row of `n` values."""
    return -(-n // 4) * 4


@dataclass(eq=False)
class Storage:
    """A buffer that outlives a step; its size is known before it exists. `size` in bytes."""

    name: str
    purpose: str  # "weights", "adapter", "gradients", "optimizer", "inputs", ...
    size: int
    buffer: Buffer | None = None

    @property
    def live(self) -> Buffer:
        """The buffer; DeviceLostError where there is none."""
        buffer = self.buffer  # asked once: another thread may close the model meanwhile
        if buffer is None:
            raise DeviceLostError(f"'{self.name}' is not on the GPU: closed, or not built yet")
        return buffer

    def window(self, offset: int = 0, size: int | None = None) -> "Window":
        """A part of it, all by default; `offset` must be a multiple of 256."""
        return Window(self, offset, self.size - offset if size is None else size)


class Window(NamedTuple):
    """Bytes of a storage, bound as one operand."""

    storage: Storage
    offset: int
    size: int


@dataclass(eq=False)
class Tensor:
    """A temporary of one step: `rows` x `cols` values of `item` bytes.

    `trains`: a gradient of it is wanted, because a trainable lies below it.
    """

    name: str
    rows: str
    cols: int
    trains: bool = False
    item: int = 4

    def __post_init__(self) -> None:
        check_rows(f"tensor '{self.name}'", self.rows)

    def nbytes(self, tokens: int) -> int:
        """Bytes at `tokens` tokens, all of them trained."""
        return max(tokens * padded(self.cols) * self.item, 16)


Operand = Tensor | Window


@dataclass(frozen=True)
class Tuned:
    """What an operation asks of any variant of a family: its own constants and libraries."""

    family: str
    constants: Mapping[str, Any]
    libraries: Mapping[str, str]

    def kernel(self, choice: Choice) -> Kernel:
        """The variant `choice` for this operation."""
        constants = {**dict(choice.constants), **self.constants}
        return load_kernel(choice.kernel, constants, self.libraries)


@dataclass(eq=False)
class Launch:
    """One kernel call over symbolic operands, in slot order."""

    kernel: Kernel
    operands: dict[str, Operand]
    params: dict[str, Any]
    label: str
    tuned: "Tuned | None" = None

    @property
    def family(self) -> str:
        """Whose choice of `Graph.tuning` the kernel is; empty if of none."""
        return self.tuned.family if self.tuned else ""

    def accesses(self) -> list[tuple[Operand, str]]:
        """(operand, "read" or "read_write") of every storage binding."""
        access = {slot.name: slot.access for slot in self.kernel.slots}
        return [(operand, access[name]) for name, operand in self.operands.items()]


@dataclass
class Graph:
    """What has been recorded so far.

    `training`: a backward pass will follow. `capture`: "f32" keeps saved activations as they are,
    "bf16" packs them to half the memory. `tuning`: which variants of the kernels are recorded.
    `few`: the most rows of a step where they are so few that products read a weight once for all of
    them; 0 = many.
    """

    training: bool = True
    capture: str = "f32"
    tuning: Tuning = DEFAULT_CPU
    few: int = 0
    launches: list[Launch] = field(default_factory=list)
    forward: frozenset[Launch] = frozenset()  # those before the backward pass, if it has one
    _scope: str = ""
    _discarding: bool = False
    _tape: list[tuple[Sequence[Tensor], Callable[..., None]]] = field(default_factory=list)
    _gradients: dict[Tensor, Tensor] = field(default_factory=dict)
    _packed: dict[Tensor, Tensor] = field(default_factory=dict)
    _restored: dict[Tensor, Tensor] = field(default_factory=dict)

    @contextmanager
    def scope(self, name: str) -> Iterator[None]:
        """Prefixes the names of what is recorded inside."""
        before, self._scope = self._scope, f"{self._scope}{name}."
        yield
        self._scope = before

    def tensor(
        self, name: str, rows: str, cols: int, *, trains: bool = False, item: int = 4
    ) -> Tensor:
        """A new temporary."""
        return Tensor(self._scope + name, rows, cols, trains and self.training, item)

    def launch(
        self,
        kernel: str,
        operands: Mapping[str, Any],  # of Operand
        params: Mapping[str, Any],
        constants: Mapping[str, Any] | None = None,
        libraries: Mapping[str, str] | None = None,
    ) -> None:
        """Records one kernel call; every storage slot the kernel declares must be given, and no
        other.
        """
        self._record(load_kernel(kernel, constants, libraries), operands, params)

    def launch_tuned(
        self,
        family: str,
        operands: Mapping[str, Any],  # of Operand
        params: Mapping[str, Any],
        constants: Mapping[str, Any] | None = None,
        libraries: Mapping[str, str] | None = None,
    ) -> None:
        """Records a call of the kernel that `tuning` has for a family."""
        tuned = Tuned(family, constants or {}, libraries or {})
        self._record(tuned.kernel(self.tuning.choice(family)), operands, params, tuned)

    def kernel(
        self,
        family: str,
        constants: Mapping[str, Any] | None = None,
        libraries: Mapping[str, str] | None = None,
    ) -> Kernel:
        """What `launch_tuned` would record."""
        return Tuned(family, constants or {}, libraries or {}).kernel(self.tuning.choice(family))

    def _record(
        self,
        kernel: Kernel,
        operands: Mapping[str, Any],
        params: Mapping[str, Any],
        tuned: Tuned | None = None,
    ) -> None:
        slots = [slot.name for slot in kernel.slots if slot.access != "uniform"]
        if set(slots) != set(operands):
            raise KeyError(f"kernel '{kernel.name}' binds {slots}, got {sorted(operands)}")
        ordered = {name: operands[name] for name in slots}
        label = self._scope.rstrip(".")
        self.launches.append(Launch(kernel, ordered, dict(params), label, tuned))

    def on_backward(self, output: Tensor | Sequence[Tensor], vjp: Callable[..., None]) -> None:
        """Registers how the gradient of `output`, or of several at once, flows on;
        `vjp(d_output, ...)` records the launches.
        """
        outputs = (output,) if isinstance(output, Tensor) else output
        if outputs[0].trains and not self._discarding:
            self._tape.append((outputs, vjp))

    def gradient(self, tensor: Tensor) -> tuple[Tensor, bool]:
        """Where a vjp writes the gradient of `tensor`, and whether to add to what is there."""
        found = self._gradients.get(tensor)
        if found is not None:
            shared = [t.name for t, g in self._gradients.items() if g is found and t is not tensor]
            assert not shared, f"gradient of {tensor.name} is still to be read as that of {shared}"
            return found, True
        made = Tensor(f"d.{tensor.name}", tensor.rows, tensor.cols)
        self._gradients[tensor] = made
        return made, False

    def pass_gradient(self, tensor: Tensor, gradient: Tensor) -> None:
        """Makes `gradient` itself the gradient of `tensor`, or adds it to the one there is."""
        if tensor not in self._gradients:
            self._gradients[tensor] = gradient
            return
        total = Tensor(f"d.{tensor.name}", tensor.rows, tensor.cols)
        operands = {"a": self._gradients[tensor], "b": gradient, "y": total}
        self.launch("add", operands, {"rows": tensor.rows, "d4": padded(tensor.cols) // 4})
        self._gradients[tensor] = total

    def backward(self) -> None:
        """Walks the tape once, newest first, from the gradients known so far."""
        self.forward = self.forward or frozenset(self.launches)
        tape, self._tape = self._tape, []
        for outputs, vjp in reversed(tape):
            missing = [output.name for output in outputs if output not in self._gradients]
            if len(missing) < len(outputs):
                assert not missing, f"nothing reads {missing}, but what was made with them"
                vjp(*[self._gradients.pop(output) for output in outputs])

    def save(self, tensor: Tensor) -> Callable[[], Tensor]:
        """Keeps an activation for the backward pass; the returned function gives it back there."""
        if not self.training or self._discarding or self.capture == "f32":
            return lambda: tensor
        if tensor not in self._packed:
            packed = Tensor(f"{tensor.name}.bf16", tensor.rows, tensor.cols, item=2)
            self._convert("capture_bf16", tensor, packed)
            self._packed[tensor] = packed
        return lambda: self._restore(tensor)

    def _restore(self, tensor: Tensor) -> Tensor:
        if tensor not in self._restored:
            restored = Tensor(f"{tensor.name}.restored", tensor.rows, tensor.cols)
            self._convert("restore_bf16", self._packed[tensor], restored)
            self._restored[tensor] = restored
        return self._restored[tensor]

    def _convert(self, kernel: str, source: Tensor, target: Tensor) -> None:
        params = {"rows": source.rows, "d4": padded(source.cols) // 4}
        self.launch(kernel, {"x": source, "y": target}, params)

    def checkpoint(self, block: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """Records `block(x)` keeping only `x`; its backward pass records the block again first."""
        if not self.training:
            return block(x)
        kept = self.save(x)
        self._discarding = True
        y = block(x)
        self._discarding = False

        def vjp(dy: Tensor) -> None:
            rest, self._tape = self._tape, []
            start = kept()
            start.trains = x.trains
            self._gradients[block(start)] = dy
            self.backward()
            self._tape = rest
            if start is not x and start in self._gradients:
                self.pass_gradient(x, self._gradients.pop(start))

        self.on_backward(y, vjp)
        return y
