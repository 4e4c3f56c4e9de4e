"""The device protocol as tests any back end has to pass: natively, and in a page.

Each check is an async function in `CHECKS`, by name. It opens its own devices through `wgtrain.gpu`
and needs nothing but numpy, so that a page can run this very file. `MAY_ABORT` names those in which
a careless back end takes the whole process down.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from itertools import pairwise
from typing import Any

import numpy as np

from wgtrain.errors import (
    DeviceError,
    DeviceLostError,
    FileError,
    OutOfMemoryError,
    ShaderError,
)
from wgtrain.files.source import BytesSource
from wgtrain.gpu import Binding, Buffer, Device, Dispatch, Limits, Slot, base, open_device
from wgtrain.gpu.protocol import FEATURES

Check = Callable[[], Awaitable[None]]
CHECKS: dict[str, Check] = {}
MAY_ABORT: set[str] = set()
PIECE = 4 << 20  # a large write is handed over in pieces of about this size

# y[i] = 3 y[i] + term: not commutative, so the order of dispatches shows in the result.
AFFINE = """
struct Params { term: u32 }
@group(0) @binding(0) var<storage, read_write> y: array<u32>;
@group(0) @binding(1) var<uniform> params: Params;
@compute @workgroup_size(4)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
  if id.x < arrayLength(&y) { y[id.x] = 3u * y[id.x] + params.term; }
}
"""
AFFINE_SLOTS = (Slot(0, "read_write"), Slot(1, "uniform"))
# y[i] = x[i] + 1, and the last word of y its own length: windows show.
NEXT = """
@group(0) @binding(0) var<storage, read> x: array<u32>;
@group(0) @binding(1) var<storage, read_write> y: array<u32>;
@compute @workgroup_size(4)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
  let n = arrayLength(&y);
  if id.x + 1u < n { y[id.x] = x[id.x] + 1u; }
  if id.x + 1u == n { y[id.x] = n; }
}
"""
NEXT_SLOTS = (Slot(0, "read"), Slot(1, "read_write"))
# Counts the workgroups of each dimension.
GRID = """
@group(0) @binding(0) var<storage, read_write> y: array<atomic<u32>>;
@compute @workgroup_size(1)
fn main(@builtin(workgroup_id) id: vec3<u32>) {
  atomicAdd(&y[0], 1u);
  atomicMax(&y[1], id.x + 1u);
  atomicMax(&y[2], id.y + 1u);
  atomicMax(&y[3], id.z + 1u);
}
"""
# Sums over subgroups, and a product that rounds to 11 bits.
SUBGROUPS = """
@group(0) @binding(0) var<storage, read_write> y: array<u32>;
@compute @workgroup_size(16)
fn main(@builtin(local_invocation_index) i: u32) { y[i] = subgroupAdd(1u); nothing }
"""
HALF = """
@group(0) @binding(0) var<storage, read_write> y: array<f32>;
@compute @workgroup_size(4)
fn main(@builtin(local_invocation_index) i: u32) { y[i] = f32(f16(y[i]) * 3.0h); nothing }
"""


def check(function: Check) -> Check:
    CHECKS[function.__name__] = function
    return function


def may_abort(function: Check) -> Check:
    MAY_ABORT.add(function.__name__)
    return check(function)


@asynccontextmanager
async def opened(**options: Any) -> AsyncIterator[Device]:
    device = await open_device(**{"limits": "default", **options})
    try:
        yield device
    finally:
        device.close()


async def words(device: Device, buffer: Buffer, offset: int = 0, n: int | None = None) -> list[int]:
    """`n` words from word `offset`, all by default."""
    size = buffer.size - 4 * offset if n is None else 4 * n
    return np.frombuffer(await device.read(buffer, 4 * offset, size), np.uint32).tolist()


async def refused(
    awaitable: Awaitable[Any] | Callable[[], Any],
    error: type[Exception] = DeviceError,
    *parts: str,
) -> Exception:
    """Asserts that a call raises `error`, and that its text holds `parts`."""
    try:
        if callable(awaitable):
            awaitable()
        else:
            await awaitable
    except error as raised:
        for part in parts:
            assert part in str(raised), f"{part!r} is not in: {raised}"
        return raised
    raise AssertionError(f"{error.__name__} was expected")


class Affine:
    """Programs of y = 3 y + term over buffers of `n` words."""

    def __init__(self, device: Device, pipeline: Any, n: int):
        self.device, self.pipeline, self.n = device, pipeline, n
        self.uniform = device.create_buffer(256 * 64, "terms", uniform=True)
        terms = np.zeros((64, 64), np.uint32)
        terms[:, 0] = np.arange(64)
        device.write(self.uniform, 0, terms)

    @classmethod
    async def open(cls, device: Device, n: int = 5) -> "Affine":
        return cls(device, await device.pipeline("affine", AFFINE, AFFINE_SLOTS), n)

    def buffer(self, label: str = "y") -> Buffer:
        return self.device.create_buffer(4 * self.n, label)

    def dispatch(self, y: Buffer, term: int, grid: int = 0) -> Dispatch:
        bindings = [Binding(0, y, 0, y.size), Binding(1, self.uniform, 256 * term, 16)]
        return Dispatch(self.pipeline, self.device.bind(self.pipeline, bindings), grid)

    def run(
        self,
        dispatches: Sequence[Dispatch],
        cuts: Iterable[int] = (),
        counts: Sequence[Sequence[int]] = ((2, 1, 1),),
    ) -> None:
        program = self.device.program(dispatches)
        self.device.run(program, np.array(counts, np.uint32), list(cuts))


def affine(start: int, terms: Iterable[int]) -> int:
    for term in terms:
        start = (3 * start + term) % (1 << 32)
    return start


@check
async def adapter_and_limits_are_known() -> None:
    async with opened() as device:
        assert device.limits == Limits()  # what "default" grants
        assert device.info.name and device.info.backend and device.info.index == 0
        assert device.info.limits["max-storage-buffer-binding-size"] >= Limits().binding
        assert isinstance(device.features, frozenset)
        assert device.allocated == 0


@check
async def default_limits_bring_no_feature_that_kernels_use() -> None:
    async with opened() as device:
        assert device.features <= {"timestamp-query"} and device.subgroup_size == 0
        for code, feature in ((SUBGROUPS, "subgroups"), (HALF, "f16")):
            pipeline = device.pipeline("special", code, [Slot(0, "read_write")])
            await refused(pipeline, ShaderError, "'special'", feature)


@check
async def features_that_the_adapter_has_can_be_used() -> None:
    async with opened(limits=None) as device:
        assert device.features <= set(FEATURES)
        for name, theirs in FEATURES.items():
            assert (name in device.features) == bool(set(theirs) & set(device.info.features))
        slots = [Slot(0, "read_write")]
        for code, feature in ((SUBGROUPS, "subgroups"), (HALF, "f16")):
            if feature not in device.features:
                continue
            error = await refused(device.pipeline("special", code, slots), ShaderError, "nothing")
            assert "line 4" in str(error), error
            pipeline = await device.pipeline("special", code.replace("nothing", ""), slots)
            y = device.create_buffer(64, "y")
            device.write(y, 0, np.array([1.0, 1.0009765625, 0.5, -2.0], np.float32))
            group = device.bind(pipeline, [Binding(0, y, 0, 64)])
            device.run(
                device.program([Dispatch(pipeline, group, 0)]), np.array([[1, 1, 1]], np.uint32), []
            )
            raw = await device.read(y, 0, 64)
            if feature == "f16":
                got = np.frombuffer(raw, np.float32)[:4]
                np.testing.assert_array_equal(got, np.float16([1, 1.001, 0.5, -2]) * np.float16(3))
            else:
                sums = np.frombuffer(raw, np.uint32)
                assert sums.min() > 0 and sums.max() <= 16, sums


@check
async def buffers_begin_as_zeros() -> None:
    async with opened() as device:
        for size, stored in ((1, 4), (4, 4), (17, 20), (5 << 20, 5 << 20), (0, 4)):
            buffer = device.create_buffer(size, "zeros")
            assert buffer.size == stored
            assert not any(await device.read(buffer, 0, buffer.size)), size


@check
async def a_buffer_is_zero_also_where_another_one_was() -> None:
    async with opened() as device:
        for _ in range(3):
            buffer = device.create_buffer(1 << 20, "reused")
            assert not any(await device.read(buffer, 0, buffer.size))
            device.write(buffer, 0, b"\xff" * (1 << 20))
            assert await device.read(buffer, 0, 8) == b"\xff" * 8
            device.free(buffer)


@check
async def writes_and_reads_at_offsets() -> None:
    async with opened() as device:
        buffer = device.create_buffer(64, "offsets")
        device.write(buffer, 0, np.arange(16, dtype=np.uint32))
        device.write(buffer, 8, np.array([100, 101], np.uint32))
        device.write(buffer, 60, np.array([200], np.uint32))
        expected = [0, 1, 100, 101, *range(4, 15), 200]
        assert await words(device, buffer) == expected
        for offset, n in ((0, 1), (1, 3), (15, 1), (4, 0), (16, 0)):
            assert await words(device, buffer, offset, n) == expected[offset : offset + n]


@check
async def a_write_ends_with_zeros_up_to_a_word() -> None:
    async with opened() as device:
        for n in range(1, 10):
            buffer = device.create_buffer(16, "tail")
            device.write(buffer, 0, b"\xaa" * 16)
            device.write(buffer, 4, bytes(range(1, n + 1)))
            padded = bytes(range(1, n + 1)).ljust(-(-n // 4) * 4, b"\0")
            expected = (b"\xaa" * 4 + padded).ljust(16, b"\xaa")
            assert await device.read(buffer, 0, 16) == expected[:16], n
            device.free(buffer)


@check
async def large_writes_arrive_whole() -> None:
    async with opened() as device:
        rng = np.random.default_rng(1)
        for n in (PIECE - 1, PIECE, PIECE + 5, 2 * PIECE, 3 * PIECE + 3):
            data = rng.integers(0, 256, n, np.uint8)
            buffer = device.create_buffer(n + 8, "large")
            device.write(buffer, 4, data)
            back = np.frombuffer(await device.read(buffer, 0, buffer.size), np.uint8)
            assert not back[:4].any() and not back[4 + n :].any(), n
            np.testing.assert_array_equal(back[4 : 4 + n], data)
            device.free(buffer)


@check
async def whatever_holds_bytes_can_be_written() -> None:
    async with opened() as device:
        buffer = device.create_buffer(64, "kinds")
        table = np.arange(6, dtype=np.float32).reshape(2, 3)
        kinds: list[Any] = [
            table,
            table.tobytes(),
            bytearray(table.tobytes()),
            memoryview(table),
            memoryview(table.tobytes())[:],
        ]
        frozen = table.copy()
        frozen.flags.writeable = False
        for data in [*kinds, frozen]:
            device.write(buffer, 0, bytes(64))
            device.write(buffer, 4, data)
            got = np.frombuffer(await device.read(buffer, 4, 24), np.float32)
            np.testing.assert_array_equal(got, table.reshape(-1))
        for empty in (b"", np.zeros(0, np.float32), np.zeros((0, 3), np.uint32)):
            device.write(buffer, 0, empty)
        assert await device.read(buffer, 0, 4) == bytes(4)


@check
async def a_file_is_written_in_slices() -> None:
    async with opened() as device:
        data = np.random.default_rng(2).integers(0, 256, 1003, np.uint8)
        source = BytesSource(data.tobytes(), "some.file")
        buffer = device.create_buffer(1012, "slices")
        for start, size, offset in ((3, 500, 4), (503, 500, 504), (0, 0, 0)):
            await device.write_from(source, start, size, buffer, offset)
        expected = bytes(4) + data[3:].tobytes() + bytes(8)
        assert await device.read(buffer, 0, 1012) == expected
        await refused(device.write_from(source, 900, 104, buffer, 0), FileError, "some.file")
        await refused(device.write_from(source, 0, 16, buffer, 1000), DeviceError, "slices")
        assert await device.read(buffer, 0, 1012) == expected


@check
async def what_was_handed_over_may_change_afterwards() -> None:
    async with opened() as device:
        for n in (16, PIECE + 16):
            data = np.ones(n, np.uint8)
            buffer = device.create_buffer(n, "copy")
            device.write(buffer, 0, data)
            data[:] = 2
            back = np.frombuffer(await device.read(buffer, 0, n), np.uint8)
            assert back.min() == back.max() == 1, n


@check
async def dispatches_run_in_order() -> None:
    async with opened() as device:
        maker = await Affine.open(device)
        y = maker.buffer()
        device.write(y, 0, np.arange(5, dtype=np.uint32))
        terms = [7, 1, 0, 63, 7, 2]
        maker.run([maker.dispatch(y, term) for term in terms])
        assert await words(device, y) == [affine(i, terms) for i in range(5)]


@check
async def dispatches_run_in_order_across_cuts_and_runs() -> None:
    async with opened() as device:
        maker = await Affine.open(device)
        terms = list(range(1, 12))
        for cuts in ([], [1], [5], [10], range(1, 11), [3, 3, 7], [0, 4, 11]):
            y = maker.buffer()
            dispatches = [maker.dispatch(y, term) for term in terms]
            maker.run(dispatches, cuts)
            maker.run(dispatches, cuts)
            assert await words(device, y) == [affine(0, terms + terms)] * 5, cuts


@check
async def one_dispatch_sees_what_another_wrote() -> None:
    async with opened() as device:
        pipeline = await device.pipeline("next", NEXT, NEXT_SLOTS)
        n = 1024
        chain = [device.create_buffer(4 * n, f"chain {i}") for i in range(9)]
        device.write(chain[0], 0, np.arange(n, dtype=np.uint32))
        dispatches = []
        for x, y in pairwise(chain):
            bindings = [Binding(0, x, 0, x.size), Binding(1, y, 0, y.size)]
            dispatches.append(Dispatch(pipeline, device.bind(pipeline, bindings), 0))
        device.run(device.program(dispatches), np.array([[n // 4, 1, 1]], np.uint32), [4])
        assert await words(device, chain[-1]) == [*range(8, n + 7), n]


@check
async def windows_are_bound() -> None:
    async with opened() as device:
        pipeline = await device.pipeline("next", NEXT, NEXT_SLOTS)
        x, y = device.create_buffer(1024, "x"), device.create_buffer(1024, "y")
        device.write(x, 0, np.arange(256, dtype=np.uint32))
        bindings = [Binding(0, x, 512, 40), Binding(1, y, 256, 24)]
        program = device.program([Dispatch(pipeline, device.bind(pipeline, bindings), 0)])
        device.run(program, np.array([[64, 1, 1]], np.uint32), [])
        expected = [0] * 64 + [129, 130, 131, 132, 133, 6] + [0] * 186
        assert await words(device, y) == expected


@check
async def writes_keep_their_place_between_runs() -> None:
    async with opened() as device:
        maker = await Affine.open(device, n=1)
        y = maker.buffer()
        uniform = device.create_buffer(16, "term", uniform=True)
        bindings = [Binding(0, y, 0, 4), Binding(1, uniform, 0, 16)]
        group = device.bind(maker.pipeline, bindings)
        program = device.program([Dispatch(maker.pipeline, group, 0)] * 2)
        expected = 0
        for term in (5, 9, 2, 11):
            device.write(uniform, 0, np.array([term], np.uint32))
            device.run(program, np.array([[1, 1, 1]], np.uint32), [1])
            expected = affine(expected, [term, term])
        assert await words(device, y) == [expected]
        device.write(y, 0, np.array([1], np.uint32))
        assert await words(device, y) == [1]


@check
async def counts_are_looked_up_at_each_run() -> None:
    async with opened() as device:
        pipeline = await device.pipeline("grid", GRID, [Slot(0, "read_write")])
        buffers = [device.create_buffer(16, f"grid {i}") for i in range(4)]
        rows = [1, 0, 1, 2]
        dispatches = [
            Dispatch(pipeline, device.bind(pipeline, [Binding(0, buffer, 0, 16)]), row)
            for buffer, row in zip(buffers, rows, strict=True)
        ]
        program = device.program(dispatches)
        for table in (
            [[2, 1, 1], [3, 4, 5], [1, 1, 7]],
            [[1, 1, 1], [1, 2, 1], [65_535, 1, 1]],
            [[9, 9, 1], [2, 1, 6], [1, 300, 2]],
        ):
            for buffer in buffers:
                device.write(buffer, 0, bytes(16))
            device.run(program, np.array(table, np.uint32), [2])
            for buffer, row in zip(buffers, rows, strict=True):
                assert await words(device, buffer) == [int(np.prod(table[row])), *table[row]]


@check
async def a_zero_count_skips_the_dispatch() -> None:
    async with opened() as device:
        maker = await Affine.open(device, n=1)
        for zero in ([0, 1, 1], [1, 0, 1], [1, 1, 0], [0, 0, 0]):
            y = maker.buffer()
            dispatches = [maker.dispatch(y, term, term % 2) for term in (4, 5, 6, 7)]
            maker.run(dispatches, [1, 2], [[1, 1, 1], zero])
            assert await words(device, y) == [affine(0, [4, 6])], zero
            maker.run(dispatches, [2], [zero, zero])
            assert await words(device, y) == [affine(0, [4, 6])], zero


@check
async def dispatches_are_timed() -> None:
    async with opened() as device:
        if "timestamp-query" in device.features:
            await times_are_those_of_a_run(device)


async def times_are_those_of_a_run(device: Device) -> None:
    """Timing a program does what running it does; what is skipped takes no time."""
    maker = await Affine.open(device)
    terms = list(range(1, 12))
    for cuts in ([], [4], [3, 3, 7], [0, 4, 11]):
        y = maker.buffer()
        dispatches = [maker.dispatch(y, term)._replace(grid=term == 5) for term in terms]
        program = device.program(dispatches)
        seconds = await device.profile(program, np.array([[2, 1, 1], [2, 0, 1]], np.uint32), cuts)
        done = [term for term in terms if term != 5]
        assert await words(device, y) == [affine(0, done)] * 5, cuts
        assert len(seconds) == 11 and seconds[4] == 0 and all(0 <= s < 60 for s in seconds)
    y = maker.buffer()
    program = device.program([maker.dispatch(y, 1)])
    device.free(y)
    await refused(device.profile(program, np.array([[1, 1, 1]], np.uint32), []), DeviceError)


@check
async def an_empty_program_runs() -> None:
    async with opened() as device:
        maker = await Affine.open(device, n=1)
        y = maker.buffer()
        device.run(device.program([]), np.zeros((0, 3), np.uint32), [])
        maker.run([maker.dispatch(y, 1)])
        assert await words(device, y) == [1]


@check
async def allocated_counts_every_byte() -> None:
    async with opened() as device:
        sizes = [4, 5, 4096, 1 << 20, 1]
        buffers = []
        expected = 0
        for size in sizes:
            buffers.append(device.create_buffer(size, "counted", uniform=size == 4096))
            expected += -(-size // 4) * 4
            assert device.allocated == expected
        await device.read(buffers[3], 0, 1 << 20)  # what a read needs for itself is given back
        device.write(buffers[3], 0, bytes(1 << 20))
        await device.pipeline("next", NEXT, NEXT_SLOTS)
        assert device.allocated == expected
        for buffer in buffers:
            device.free(buffer)
            expected -= buffer.size
            assert device.allocated == expected
            device.free(buffer)  # once is enough
            assert device.allocated == expected
        assert expected == 0
        device.create_buffer(64, "left to close")
    assert device.allocated == 0


@check
async def queued_work_keeps_freed_buffers() -> None:
    async with opened() as device:
        pipeline = await device.pipeline("next", NEXT, NEXT_SLOTS)
        n = 1 << 18
        x, y = device.create_buffer(4 * n, "x"), device.create_buffer(4 * n, "y")
        device.write(x, 0, np.arange(n, dtype=np.uint32))
        bindings = [Binding(0, x, 0, x.size), Binding(1, y, 0, y.size)]
        program = device.program([Dispatch(pipeline, device.bind(pipeline, bindings), 0)])
        device.run(program, np.array([[n // 4 // 16, 1, 1]], np.uint32), [])
        device.free(x)
        device.create_buffer(4 * n, "another")
        got = np.frombuffer(await device.read(y, 0, n // 4), np.uint32)
        np.testing.assert_array_equal(got, np.arange(1, n // 16 + 1))


@may_abort
async def freed_buffers_are_refused() -> None:
    async with opened() as device:
        maker = await Affine.open(device)
        y, other = maker.buffer("gone"), maker.buffer()
        program = device.program([maker.dispatch(other, 1), maker.dispatch(y, 1)])
        counts = np.array([[2, 1, 1]], np.uint32)
        device.run(program, counts, [])
        device.free(y)
        await refused(lambda: device.write(y, 0, bytes(4)), DeviceLostError, "'gone'")
        await refused(device.read(y, 0, 4), DeviceLostError, "'gone'")
        await refused(lambda: maker.dispatch(y, 1), DeviceLostError, "'gone'")
        await refused(lambda: device.run(program, counts, []), DeviceLostError, "'gone'")
        await refused(lambda: device.run(program, counts, [1]), DeviceLostError, "'gone'")
        assert await words(device, other) == [1] * 5  # no half of a refused run was done
        maker.run([maker.dispatch(other, 2)])
        assert await words(device, other) == [5] * 5


@may_abort
async def ranges_outside_are_refused() -> None:
    async with opened() as device:
        buffer = device.create_buffer(64, "small")
        device.write(buffer, 0, b"\1" * 64)
        for offset, n in ((60, 8), (64, 4), (-4, 4), (2, 4), (0, 65), (1 << 40, 4)):
            data = bytes(n)
            await refused(lambda o=offset, d=data: device.write(buffer, o, d), DeviceError, "small")
        for offset, n in ((60, 8), (64, 4), (-4, 4), (2, 4), (0, 3), (0, 68), (0, -4)):
            await refused(device.read(buffer, offset, n), DeviceError, "small")
        assert await device.read(buffer, 0, 64) == b"\1" * 64


@may_abort
async def wrong_bindings_are_refused() -> None:
    async with opened() as device:
        pipeline = await device.pipeline("next", NEXT, NEXT_SLOTS)
        x, y = device.create_buffer(512, "x"), device.create_buffer(512, "y")
        whole = Binding(1, y, 0, 512)
        for bindings in (
            [Binding(0, x, 0, 1024), whole],  # past the end
            [Binding(0, x, 32, 64), whole],  # not at a multiple of 256
            [whole],
            [Binding(0, x, 0, 512), whole, Binding(2, y, 0, 512)],
        ):
            await refused(lambda b=bindings: device.bind(pipeline, b))
        counts = np.array([[1, 1, 1]], np.uint32)
        # Read and written in one dispatch.
        group = device.bind(pipeline, [Binding(0, y, 0, 256), Binding(1, y, 256, 256)])
        program = device.program([Dispatch(pipeline, group, 0)])
        await refused(lambda: device.run(program, counts, []))
        group = device.bind(pipeline, [Binding(0, x, 0, 512), whole])
        program = device.program([Dispatch(pipeline, group, 0)])
        await refused(lambda: device.run(program, np.array([[65_536, 1, 1]], np.uint32), []))
        device.run(program, counts, [])
        assert await words(device, y, 0, 5) == [1, 1, 1, 1, 0]


@may_abort
async def shader_errors_name_kernel_line_and_message() -> None:
    async with opened() as device:
        lines = NEXT.splitlines()
        wrong = next(i for i, line in enumerate(lines) if "x[id.x] + 1u" in line)
        broken = NEXT.replace("x[id.x] + 1u", "x[id.x] + 1.5")
        error = await refused(
            device.pipeline("broken", broken, NEXT_SLOTS), ShaderError, "'broken'"
        )
        assert f"line {wrong + 1}" in str(error), error
        assert "x[id.x] + 1.5" in str(error), error
        error = await refused(
            device.pipeline("unknown", NEXT.replace("id.x + 1u <", "nothing <"), NEXT_SLOTS),
            ShaderError,
            "'unknown'",
            "nothing",
        )
        await refused(
            device.pipeline("entry", NEXT.replace("fn main", "fn other"), NEXT_SLOTS),
            ShaderError,
            "'entry'",
            "main",
        )
        for slots in (NEXT_SLOTS[:1], (Slot(0, "read"), Slot(1, "read"))):
            await refused(device.pipeline("slots", NEXT, slots), ShaderError, "'slots'")
        large = NEXT.replace("workgroup_size(4)", "workgroup_size(512)")
        await refused(device.pipeline("large", large, NEXT_SLOTS), ShaderError, "'large'")
        await device.pipeline("next", NEXT, NEXT_SLOTS)


@check
async def too_much_memory_is_refused_and_nothing_counted() -> None:
    async with opened(budget=1 << 20) as device:
        await refused(
            lambda: device.create_buffer(Limits().buffer + 4, "huge"),
            OutOfMemoryError,
            "'huge'",
            "268,435,460",
            "268,435,456",
        )
        assert device.allocated == 0
        first = device.create_buffer(1 << 19, "first")
        second = device.create_buffer(1 << 19, "second")
        await refused(
            lambda: device.create_buffer(4, "third"), OutOfMemoryError, "'third'", "1,048,576"
        )
        assert device.allocated == 1 << 20
        device.free(second)
        device.create_buffer(1 << 19, "again")
        device.write(first, 0, b"abcd")
        assert await device.read(first, 0, 4) == b"abcd"


@may_abort
async def a_closed_device_says_so() -> None:
    async with opened() as device:
        maker = await Affine.open(device)
        y = maker.buffer()
        dispatch = maker.dispatch(y, 1)
        program = device.program([dispatch])
        counts = np.array([[2, 1, 1]], np.uint32)
        device.run(program, counts, [])
        device.close()
        for call in (
            lambda: device.create_buffer(4, "late"),
            lambda: device.write(y, 0, bytes(4)),
            lambda: device.bind(maker.pipeline, [Binding(0, y, 0, 4)]),
            lambda: device.run(program, counts, []),
            device.read(y, 0, 4),
            device.pipeline("late", NEXT, NEXT_SLOTS),
            device.pipeline("affine", AFFINE, AFFINE_SLOTS),  # of those that were kept
        ):
            await refused(call, DeviceLostError, "closed")
        device.free(y)
        device.close()
        assert device.allocated == 0


@check
async def a_kernel_is_compiled_once() -> None:
    async with opened() as device, opened() as other:
        compile_, compiled = device._compile, []

        async def counted(name: str, *rest: Any) -> Any:
            compiled.append(name)
            return await compile_(name, *rest)

        device._compile = counted
        first = await device.pipeline("next", NEXT, NEXT_SLOTS)
        assert await device.pipeline("again", NEXT, list(NEXT_SLOTS)) is first
        wider = (Slot(0, "read"), Slot(1, "read_write"), Slot(2, "uniform"))
        assert await device.pipeline("slots", NEXT, wider) is not first
        assert await device.pipeline("code", NEXT + "\n", NEXT_SLOTS) is not first
        assert await device.pipeline("next", NEXT, NEXT_SLOTS) is first
        assert await other.pipeline("next", NEXT, NEXT_SLOTS) is not first
        for _ in range(2):
            await refused(device.pipeline("bad", NEXT + "nothing", NEXT_SLOTS), ShaderError, "bad")
        assert compiled == ["next", "slots", "code", "bad", "bad"]


@check
async def the_pipelines_used_last_are_kept() -> None:
    async with opened() as device:
        codes = [f"{NEXT}// {number}" for number in range(4)]
        most, base.MOST_PIPELINES = base.MOST_PIPELINES, 3
        try:
            first, second = [await device.pipeline("k", code, NEXT_SLOTS) for code in codes[:2]]
            assert await device.pipeline("k", codes[0], NEXT_SLOTS) is first
            for code in codes[2:]:
                await device.pipeline("k", code, NEXT_SLOTS)
            assert await device.pipeline("k", codes[0], NEXT_SLOTS) is first
            assert await device.pipeline("k", codes[1], NEXT_SLOTS) is not second
        finally:
            base.MOST_PIPELINES = most


@check
async def two_devices_do_not_meet() -> None:
    async with opened() as first, opened() as second:
        makers = [await Affine.open(device) for device in (first, second)]
        buffers = [maker.buffer() for maker in makers]
        for term, (maker, buffer) in enumerate(zip(makers, buffers, strict=True), 1):
            maker.run([maker.dispatch(buffer, term)])
        second.close()
        assert await words(first, buffers[0]) == [1] * 5


async def open_and_close(times: int) -> None:
    """Opens a device, works on it and closes it again, `times` times."""
    for _ in range(times):
        async with opened() as device:
            maker = await Affine.open(device, n=1 << 18)
            y = maker.buffer()
            device.write(y, 0, bytes(1 << 20))
            maker.run([maker.dispatch(y, 1)], counts=[[65_535, 1, 1]])
            assert await words(device, y, (1 << 18) - 5) == [1, 0, 0, 0, 0]
