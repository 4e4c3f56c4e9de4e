"""Which kernel, with which constants, each kind of product runs on an adapter: data, no logic.

A family is what is tuned as one: "nt/weight_q8_0" (x W^T over that weight library), "nn/..." (dy
W), the adapter products "nt small 8", "nn small 8", "tn 8x16" by the class of their shape, the
three of attention, and what walks along rows (norms, cross-entropy). A variant of a kernel has the
same slots, parameters and result, so an operation only asks `Graph.tuning` for a `Choice`. The
numbers were measured: docs/optimisation-log.md.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from wgtrain.engine.kernel import load_kernel
from wgtrain.gpu import AdapterInfo, Device


@dataclass(frozen=True)
class Choice:
    """A kernel and the constants rewritten in it."""

    kernel: str
    constants: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True)
class Tuning:
    """A choice for every family. `origin` says in words where the table comes from.

    A family "a/b" that is not listed is served by "a".
    """

    table: Mapping[str, Choice]
    origin: str

    def choice(self, family: str) -> Choice:
        """What `family` runs with."""
        found = self.table.get(family) or self.table.get(family.partition("/")[0])
        if not found:
            raise KeyError(f"no choice for family '{family}'")
        return found


def _choice(kernel: str, **constants: int) -> Choice:
    return Choice(kernel, tuple(constants.items()))


def _tiled(kernel: str, rows: int, cols4: int, lane_rows: int, lane_cols: int, **k4: int) -> Choice:
    """A workgroup of lane_rows x lane_cols invocations, rows x cols4 vec4s of sums each."""
    tile = {"TILE_ROWS": rows, "TILE_COLS4": cols4, "LANE_ROWS": lane_rows, "LANE_COLS": lane_cols}
    return _choice(kernel, **tile, **k4)


def _split(cols: int, split: int) -> Choice:
    """Four times so many columns of a workgroup, so many lanes for each four."""
    return _choice("matvec_split", COLS=cols, SPLIT=split)


def nt_small(columns: int) -> str:
    """The family of x P^T with an adapter matrix P of so many rows."""
    return _small("nt small", max(columns, 8))


def nn_small(columns: int) -> str:
    """The family of dy P with an adapter matrix P of so many columns."""
    return _small("nn small", columns)


def _small(family: str, columns: int) -> str:
    """Up to 128 columns are few: a rank; `family` alone is for more."""
    if columns > 128:
        return family
    return f"{family} {_power(columns, 16) if columns <= 16 else 128}"


def tn_small(rows: int, columns: int) -> str:
    """The family of a^T b, of so many rows (n = more than 8) and columns (16 = 16 or more)."""
    return f"tn {8 if rows <= 8 else 'n'}x{_power(columns, 16)}"


def _power(columns: int, most: int) -> int:
    """The power of two, at least 4, that holds so many columns."""
    return min(max(1 << (columns - 1).bit_length(), 4), most)


# Few columns want narrow tiles and all lanes along rows; the results of tn, tiles of at most 64
# vec4, as square as the result allows.
_CPU = {
    "nt": _choice("matmul_nt"),
    "nt small": _choice("matmul_nt"),
    "nt small 8": _choice("matmul_nt", TILE_ROWS=16, TILE_COLS=8, LANE_ROWS=8, LANE_COLS=1),
    "nt small 16": _choice("matmul_nt", TILE_ROWS=16, TILE_COLS=16, LANE_ROWS=8, LANE_COLS=1),
    "nt small 128": _choice("matmul_nt"),
    "nn": _choice("matmul_nn"),
    "nn small": _choice("matmul_nn"),
    "nn small 4": _choice("matmul_nn", TILE_ROWS=8, TILE_PACKS=1, LANE_ROWS=8, LANE_COLS=1),
    "nn small 8": _choice("matmul_nn", TILE_ROWS=8, TILE_PACKS=2, LANE_ROWS=8, LANE_COLS=1),
    "nn small 16": _choice("matmul_nn", TILE_ROWS=8, TILE_PACKS=4, LANE_ROWS=8, LANE_COLS=1),
    "nn small 128": _choice("matmul_nn"),
    "tn 8x4": _choice("matmul_tn", TILE_ROWS=8, TILE_COLS4=1),
    "tn 8x8": _choice("matmul_tn", TILE_ROWS=8, TILE_COLS4=2),
    "tn 8x16": _choice("matmul_tn", TILE_ROWS=8, TILE_COLS4=4),
    "tn nx4": _choice("matmul_tn", TILE_ROWS=32, TILE_COLS4=1),
    "tn nx8": _choice("matmul_tn", TILE_ROWS=32, TILE_COLS4=2),
    "tn nx16": _choice("matmul_tn", TILE_ROWS=16, TILE_COLS4=4),
    "nv": _choice("matvec"),
    "nv small": _split(1, 8),
    "attention": _choice("attention"),
    "attention_decode": _choice("attention_decode", LANES=8, STEPS=8),
    "attention_backward_q": _choice("attention_backward_q"),
    "attention_backward_kv": _choice("attention_backward_kv"),
    # Only tiled products have operands in f16; slower here than f32 ones.
    "nt f16": _tiled("matmul_nt_tiled", 8, 1, 8, 8, TILE_K4=8),
    "nn f16": _tiled("matmul_nn_tiled", 8, 1, 8, 8, TILE_N4=8),
    # One vector register's worth of invocations a row: what meets at a barrier costs there.
    "rms_norm": _choice("rms_norm", LANES=8),
    "rms_norm_backward": _choice("rms_norm_backward", LANES=8),
    "layer_norm": _choice("layer_norm", LANES=8),
    "layer_norm_backward": _choice("layer_norm_backward", LANES=8),
    "cross_entropy_chunk": _choice("cross_entropy_chunk", LANES=8),
}

# Where SwiftShader, Chrome's software adapter, differs: four lanes, and slow to compile.
_SWIFTSHADER = {
    "nt": _choice("matmul_nt", LANE_ROWS=2, LANE_COLS=2),
    "nt small": _choice("matmul_nt", LANE_ROWS=2, LANE_COLS=2),
    "nt small 8": _choice("matmul_nt", TILE_ROWS=16, TILE_COLS=8, LANE_ROWS=4, LANE_COLS=1),
    "nt small 128": _choice("matmul_nt", LANE_ROWS=2, LANE_COLS=2),
    "nn": _choice("matmul_nn", LANE_ROWS=2, LANE_COLS=2),
    "nn small": _choice("matmul_nn", LANE_ROWS=2, LANE_COLS=2),
    "nn small 8": _choice("matmul_nn", TILE_ROWS=8, TILE_PACKS=2, LANE_ROWS=4, LANE_COLS=1),
    "nn small 128": _choice("matmul_nn", LANE_ROWS=2, LANE_COLS=2),
    "nv": _choice("matvec", LANES=4),
    "nv small": _split(1, 4),
    "attention_decode": _choice("attention_decode", LANES=4, STEPS=8),
    "tn 8x16": _choice("matmul_tn", TILE_ROWS=8, TILE_COLS4=4, LANES=4),
    "tn nx8": _choice("matmul_tn", TILE_ROWS=16, TILE_COLS4=2, LANES=4),
}


def _rolled(choice: Choice) -> Choice:
    """The choice with the loops that store its sums left as loops: they took three quarters of the
    compiling, and SwiftShader keeps arrays in memory anyway.
    """
    if choice.kernel not in ("matmul_nt", "matmul_nn", "matmul_tn"):
        return choice
    return Choice(choice.kernel, (*choice.constants, ("UNROLL_ENDS", 0)))


def _tn(rows: int, cols4: int, lane_rows: int, lane_cols: int, split: int) -> Choice:
    return _tiled("matmul_tn_split", rows, cols4, lane_rows, lane_cols, SPLIT=split)


# Where a GPU differs. Designed from what others measured, not measured on one: see
# docs/optimisation-log.md. Large products are tiled in workgroup memory; where few columns come
# out of a long sum, the sum is split over the workgroup; where the sum is as short as a rank, one
# step of a tile holds it.
_GPU = {
    "nt": _tiled("matmul_nt_tiled", 8, 1, 8, 8),
    "nt small": _tiled("matmul_nt_tiled", 8, 1, 8, 8, TILE_K4=2),
    "nt small 8": _choice("matmul_nt_split"),
    "nt small 16": _choice("matmul_nt_split"),
    "nt small 128": _choice("matmul_nt_split"),
    "nn": _tiled("matmul_nn_tiled", 8, 1, 8, 8),
    "nn small": _tiled("matmul_nn_tiled", 8, 1, 8, 8, TILE_N4=2),
    "nn small 4": _choice("matmul_nn_split", TILE_PACKS=1, TILE_ROWS=8),
    "nn small 8": _choice("matmul_nn_split"),
    "nn small 16": _choice("matmul_nn_split"),
    "nn small 128": _choice("matmul_nn_split"),
    "tn 8x4": _tn(8, 1, 1, 1, 64),
    "tn 8x8": _tn(8, 1, 1, 2, 32),
    "tn 8x16": _tn(8, 1, 1, 16, 8),
    "tn nx4": _tn(4, 1, 16, 1, 8),
    "tn nx8": _tn(4, 2, 16, 1, 8),
    "tn nx16": _tn(8, 1, 2, 8, 8),
    "nv": _split(4, 16),
    "nv small": _split(1, 64),
    "attention": _choice("attention_tiled"),
    "attention_decode": _choice("attention_decode", MOST_HEADS=1),
    "attention_backward_q": _choice("attention_backward_q_tiled"),
    "attention_backward_kv": _choice("attention_backward_kv_tiled"),
    "rms_norm": _choice("rms_norm", LANES=64),
    "rms_norm_backward": _choice("rms_norm_backward", LANES=64),
    "layer_norm": _choice("layer_norm", LANES=64),
    "layer_norm_backward": _choice("layer_norm_backward", LANES=64),
    "cross_entropy_chunk": _choice("cross_entropy_chunk", LANES=256),
}
# Where an adapter with subgroups differs; SUBGROUP is set to their true size. SwiftShader's four
# lanes gain nothing.
_CPU_SUBGROUPS: dict[str, Choice] = {
    "nt": _choice("matmul_nt_subgroup"),
    "nt small": _choice("matmul_nt_subgroup"),
    "nt small 128": _choice("matmul_nt_subgroup"),
    "nn": _choice("matmul_nn_subgroup"),
    "nn small": _choice("matmul_nn_subgroup"),
    "nn small 128": _choice("matmul_nn_subgroup"),
    "nv": _choice("matvec_subgroup"),
    "attention": _choice("attention_subgroup"),
    "attention_backward_q": _choice("attention_backward_q_subgroup"),
    "attention_backward_kv": _choice("attention_backward_kv_subgroup"),
}
_GPU_SUBGROUPS: dict[str, Choice] = {}

DEFAULT_CPU = Tuning(_CPU, "defaults of CPU adapters: not measured here")
DEFAULT_SWIFTSHADER = Tuning(
    {family: _rolled(choice) for family, choice in {**_CPU, **_SWIFTSHADER}.items()},
    "defaults of SwiftShader: not measured here",
)
DEFAULT_GPU = Tuning({**_CPU, **_GPU}, "defaults of GPUs: not measured here")

# What a sweep tries for a family, beside the default: by family, else by what stands before "/".
CANDIDATES: dict[str, tuple[Choice, ...]] = {
    "nv": (_choice("matvec"), _choice("matvec_subgroup"), _split(2, 8)),
    "nv small": (_choice("matvec"), _split(1, 8), _split(1, 16)),
    "attention_decode": tuple(
        _choice("attention_decode", LANES=lanes, STEPS=steps)
        for lanes, steps in ((8, 4), (8, 16), (16, 4))
    ),
    "nt": (
        _choice("matmul_nt"),
        _choice("matmul_nt_subgroup"),
        _choice("matmul_nt_subgroup", TILE_ROWS=4, TILE_COLS=64),
        _choice("matmul_nt_subgroup", TILE_ROWS=5, TILE_COLS=48),
    ),
    "nn": (_choice("matmul_nn"), _choice("matmul_nn_subgroup")),
    **{
        f"nn/weight_{library}": (
            _choice("matmul_nn"),
            _choice("matmul_nn_subgroup"),
            *(_choice("matmul_nn_subgroup", TILE_PACKS=n) for n in packs),
        )
        for library, packs in {
            **dict.fromkeys(("f32", "f16", "bf16"), (12, 16)),
            "q8_0": (2, 3),
            "q4_0": (1,),
        }.items()
    },
    **{
        kernel: (_choice(kernel), _choice(f"{kernel}_subgroup"))
        for kernel in ("attention", "attention_backward_q", "attention_backward_kv")
    },
}
# And besides on anything but a CPU. Of the tiles, large ones need few reads of workgroup memory a
# product, small ones fill a large GPU at few tokens and a small one's registers.
_TILES = (
    (4, 1, 8, 8),
    (4, 1, 16, 16),
    (4, 2, 8, 8),
    (8, 1, 8, 16),
    (8, 2, 8, 8),
    (8, 2, 16, 8),
)
_NT = (
    *(_tiled("matmul_nt_tiled", *tile) for tile in _TILES),
    _tiled("matmul_nt_tiled", 4, 1, 8, 8, TILE_K4=8),
    _tiled("matmul_nt_tiled", 8, 1, 8, 8, TILE_K4=8),
    _tiled("matmul_nt_tiled", 8, 2, 8, 8, TILE_K4=2),
    _tiled("matmul_nt_tiled", 8, 2, 16, 16, TILE_K4=2),
)
_NN = (
    *(_tiled("matmul_nn_tiled", *tile) for tile in _TILES),
    _tiled("matmul_nn_tiled", 4, 1, 8, 8, TILE_N4=8),
    _tiled("matmul_nn_tiled", 8, 1, 8, 8, TILE_N4=8),
    _tiled("matmul_nn_tiled", 8, 2, 8, 8, TILE_N4=2),
    _tiled("matmul_nn_tiled", 8, 2, 16, 16, TILE_N4=2),
)
GPU_CANDIDATES: dict[str, tuple[Choice, ...]] = {
    # Few lanes a column where rows are short, many where few columns have to fill a GPU.
    "nv": tuple(_split(*how) for how in ((2, 16), (8, 8), (4, 8), (2, 32), (2, 64))),
    "nv small": (_split(1, 32), _split(1, 128), _split(2, 32)),
    "attention_decode": tuple(
        _choice("attention_decode", MOST_HEADS=heads, LANES=lanes, STEPS=steps)
        for heads, lanes, steps in ((1, 64, 2), (2, 64, 4), (4, 64, 4), (1, 128, 2), (1, 32, 4))
    ),
    "nt": _NT,
    "nt f16": _NT,
    "nn": _NN,
    "nn f16": _NN,
    **{
        f"{way} small {columns}": (
            _choice(f"matmul_{way}_split", TILE_ROWS=2),
            _choice(f"matmul_{way}_split", TILE_ROWS=8),
            _choice(f"matmul_{way}_split", TILE_ROWS=2, LANES=128),
            _choice(f"matmul_{way}_split", LANES=32),
        )
        for way in ("nt", "nn")
        for columns in (8, 16, 128)
    },
    "tn 8x16": (_tn(8, 1, 1, 16, 4), _tn(8, 1, 1, 32, 4), _tn(8, 2, 1, 8, 8)),
    "tn nx8": (_tn(4, 2, 16, 1, 4), _tn(4, 2, 32, 1, 4), _tn(8, 2, 8, 1, 8)),
    "tn nx16": (_tn(8, 1, 4, 4, 8), _tn(8, 1, 2, 8, 4), _tn(8, 2, 2, 4, 8)),
    # Fewer or more of the side a workgroup owns; the latter with thinner slices, for their memory.
    "attention": (
        _choice("attention_tiled", TILE_QUERIES=1),
        _choice("attention_tiled", TILE_QUERIES=4, MOST_SLICE4=8),
        _choice("attention_tiled", LANE_ROWS=4),
    ),
    "attention_backward_q": (
        _choice("attention_backward_q_tiled", TILE_QUERIES=1),
        _choice("attention_backward_q_tiled", TILE_QUERIES=4, MOST_SLICE4=4),
        _choice("attention_backward_q_tiled", LANE_ROWS=4),
    ),
    "attention_backward_kv": (
        _choice("attention_backward_kv_tiled", TILE_KEYS=1),
        _choice("attention_backward_kv_tiled", TILE_KEYS=4, MOST_SLICE4=2),
        _choice("attention_backward_kv_tiled", LANE_ROWS=4),
    ),
    **{
        kernel: tuple(_choice(kernel, LANES=lanes) for lanes in (32, 64, 128, 256))
        for kernel in (
            "rms_norm",
            "rms_norm_backward",
            "layer_norm",
            "layer_norm_backward",
            "cross_entropy_chunk",
        )
    },
}


def default_tuning(device: Device) -> Tuning:
    """The table for an adapter on which nothing was measured."""
    return default_table(device.info, device.subgroup_size)


def default_table(info: AdapterInfo, size: int) -> Tuning:
    """The same of an adapter that is not open, with subgroups of so many invocations, 0 = none."""
    if "swiftshader" in f"{info.name} {info.driver}".lower():
        base, more = DEFAULT_SWIFTSHADER, {}
    elif info.type == "CPU":
        base, more = DEFAULT_CPU, _CPU_SUBGROUPS
    else:
        base, more = DEFAULT_GPU, _GPU_SUBGROUPS
    sized = {family: _sized(choice, size) for family, choice in more.items()} if size else {}
    return Tuning({**base.table, **sized}, base.origin)


def candidates(family: str, device: Device) -> list[Choice]:
    """What can be tried for a family on this adapter, the default first."""
    base = family.partition("/")[0]
    listed = [*(CANDIDATES.get(family) or CANDIDATES.get(base, ()))]
    if device.info.type != "CPU":
        listed += GPU_CANDIDATES.get(base, ())
    found = [default_tuning(device).choice(family)]
    for choice in (_sized(choice, device.subgroup_size) for choice in listed):
        if choice not in found and runs_on(choice, family, device):
            found.append(choice)
    return found


def is_listed(choice: Choice, family: str) -> bool:
    """Whether this version has a choice for a family, on whatever adapter: what a file says is
    taken only then, because constants decide what is computed.
    """
    base = family.partition("/")[0]
    listed = [*(CANDIDATES.get(family) or CANDIDATES.get(base, ())), *GPU_CANDIDATES.get(base, ())]
    defaults = (DEFAULT_CPU, DEFAULT_SWIFTSHADER, DEFAULT_GPU)
    for table in (*(default.table for default in defaults), _CPU_SUBGROUPS, _GPU_SUBGROUPS):
        listed += [table[name] for name in {family, base} if name in table]
    constants = tuple(pair for pair in choice.constants if pair[0] != "SUBGROUP")
    return Choice(choice.kernel, constants) in listed


def runs_on(choice: Choice, family: str, device: Device) -> bool:
    """Whether a choice is a variant of what the family has by default, and the adapter has what it
    needs: its features, and subgroups of the size it was made for.
    """
    try:
        kernel = load_kernel(choice.kernel, dict(choice.constants))
        base = load_kernel(default_tuning(device).choice(family).kernel)
    except (FileNotFoundError, KeyError):  # of another version
        return False
    if kernel.params != base.params or set(kernel.slots) != set(base.slots):
        return False
    size = dict(choice.constants).get("SUBGROUP", device.subgroup_size)
    if size != device.subgroup_size or ("subgroups" in kernel.features and not size):
        return False
    return kernel.features <= device.features


def fitted(tuning: Tuning, device: Device) -> Tuning:
    """The table with this adapter's defaults where it cannot run a choice, or lacks one."""
    default = default_tuning(device)
    table = {family: c for family, c in tuning.table.items() if runs_on(c, family, device)}
    missing = len(tuning.table) - len(table)
    origin = tuning.origin
    if missing:
        origin += f"; {missing} kernels cannot run here and are replaced: numbers may differ"
    return Tuning({**default.table, **table}, origin)


def _sized(choice: Choice, subgroup_size: int) -> Choice:
    """The choice with the constant SUBGROUP of kernels that use subgroups."""
    if not subgroup_size or "subgroups" not in load_kernel(choice.kernel).features:
        return choice
    return Choice(choice.kernel, (*choice.constants, ("SUBGROUP", subgroup_size)))
