"""Which kernel, with which constants, each kind of product runs on an adapter: data, no logic.

A family is what is tuned as one: "nt/weight_q8_0" (x W^T over that weight library), "nv/..." (the
same of few rows), "nn/..." (dy W), the adapter products "nt small 8", "nv small", "nn small 8", "tn
8x16" by the class of their shape, the four of attention, and what walks along rows (norms,
cross-entropy). A variant of a kernel has the same slots, parameters and result, so an operation
only asks `Graph.tuning` for a `Choice`. The numbers were measured: docs/optimisation-log.md. What
else is tried is in `candidates`.
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


def variant(kernel: str, **constants: int) -> Choice:
    """A kernel with these constants, the others as its file has them."""
    return Choice(kernel, tuple(constants.items()))


def tiled(kernel: str, rows: int, cols4: int, lane_rows: int, lane_cols: int, **k4: int) -> Choice:
    """A workgroup of lane_rows x lane_cols invocations, rows x cols4 vec4s of sums each."""
    tile = {"TILE_ROWS": rows, "TILE_COLS4": cols4, "LANE_ROWS": lane_rows, "LANE_COLS": lane_cols}
    return variant(kernel, **tile, **k4)


def matvec_split(cols: int, split: int) -> Choice:
    """Four times so many columns of a workgroup, so many lanes for each four."""
    return variant("matvec_split", COLS=cols, SPLIT=split)


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
    "nt": variant("matmul_nt"),
    "nt small": variant("matmul_nt"),
    "nt small 8": variant("matmul_nt", TILE_ROWS=16, TILE_COLS=8, LANE_ROWS=8, LANE_COLS=1),
    "nt small 16": variant("matmul_nt", TILE_ROWS=16, TILE_COLS=16, LANE_ROWS=8, LANE_COLS=1),
    "nt small 128": variant("matmul_nt"),
    "nn": variant("matmul_nn"),
    "nn small": variant("matmul_nn"),
    "nn small 4": variant("matmul_nn", TILE_ROWS=8, TILE_PACKS=1, LANE_ROWS=8, LANE_COLS=1),
    "nn small 8": variant("matmul_nn", TILE_ROWS=8, TILE_PACKS=2, LANE_ROWS=8, LANE_COLS=1),
    "nn small 16": variant("matmul_nn", TILE_ROWS=8, TILE_PACKS=4, LANE_ROWS=8, LANE_COLS=1),
    "nn small 128": variant("matmul_nn"),
    "tn 8x4": variant("matmul_tn", TILE_ROWS=8, TILE_COLS4=1),
    "tn 8x8": variant("matmul_tn", TILE_ROWS=8, TILE_COLS4=2),
    "tn 8x16": variant("matmul_tn", TILE_ROWS=8, TILE_COLS4=4),
    "tn nx4": variant("matmul_tn", TILE_ROWS=32, TILE_COLS4=1),
    "tn nx8": variant("matmul_tn", TILE_ROWS=32, TILE_COLS4=2),
    "tn nx16": variant("matmul_tn", TILE_ROWS=16, TILE_COLS4=4),
    "nv": variant("matvec"),
    "nv small": matvec_split(1, 8),
    "attention": variant("attention"),
    "attention_decode": variant("attention_decode", LANES=8, STEPS=8),
    "attention_backward_q": variant("attention_backward_q"),
    "attention_backward_kv": variant("attention_backward_kv"),
    # Only tiled products have operands in f16; slower here than f32 ones.
    "nt f16": tiled("matmul_nt_tiled", 8, 1, 8, 8, TILE_K4=8),
    "nn f16": tiled("matmul_nn_tiled", 8, 1, 8, 8, TILE_N4=8),
    # One vector register's worth of invocations a row: what meets at a barrier costs there.
    "rms_norm": variant("rms_norm", LANES=8),
    "rms_norm_backward": variant("rms_norm_backward", LANES=8),
    "layer_norm": variant("layer_norm", LANES=8),
    "layer_norm_backward": variant("layer_norm_backward", LANES=8),
    "cross_entropy_chunk": variant("cross_entropy_chunk", LANES=8),
}

# Where SwiftShader, Chrome's software adapter, differs: four lanes, and slow to compile.
_SWIFTSHADER = {
    "nt": variant("matmul_nt", LANE_ROWS=2, LANE_COLS=2),
    "nt small": variant("matmul_nt", LANE_ROWS=2, LANE_COLS=2),
    "nt small 8": variant("matmul_nt", TILE_ROWS=16, TILE_COLS=8, LANE_ROWS=4, LANE_COLS=1),
    "nt small 128": variant("matmul_nt", LANE_ROWS=2, LANE_COLS=2),
    "nn": variant("matmul_nn", LANE_ROWS=2, LANE_COLS=2),
    "nn small": variant("matmul_nn", LANE_ROWS=2, LANE_COLS=2),
    "nn small 8": variant("matmul_nn", TILE_ROWS=8, TILE_PACKS=2, LANE_ROWS=4, LANE_COLS=1),
    "nn small 128": variant("matmul_nn", LANE_ROWS=2, LANE_COLS=2),
    "nv": variant("matvec", LANES=4),
    "nv small": matvec_split(1, 4),
    "attention_decode": variant("attention_decode", LANES=4, STEPS=8),
    "tn 8x16": variant("matmul_tn", TILE_ROWS=8, TILE_COLS4=4, LANES=4),
    "tn nx8": variant("matmul_tn", TILE_ROWS=16, TILE_COLS4=2, LANES=4),
}


def _rolled(choice: Choice) -> Choice:
    """The choice with the loops that store its sums left as loops: they took three quarters of the
    compiling, and SwiftShader keeps arrays in memory anyway.
    """
    if choice.kernel not in ("matmul_nt", "matmul_nn", "matmul_tn"):
        return choice
    return Choice(choice.kernel, (*choice.constants, ("UNROLL_ENDS", 0)))


def tn_split(rows: int, cols4: int, lane_rows: int, lane_cols: int, split: int) -> Choice:
    """Tiles of a^T b, whose sums so many slices of the rows share."""
    return tiled("matmul_tn_split", rows, cols4, lane_rows, lane_cols, SPLIT=split)


# Where a GPU differs. Designed from what others measured, not measured on one: see
# docs/optimisation-log.md. Large products are tiled in workgroup memory; where few columns come
# out of a long sum, the sum is split over the workgroup; where the sum is as short as a rank, one
# step of a tile holds it.
_GPU = {
    "nt": tiled("matmul_nt_tiled", 8, 1, 8, 8),
    "nt small": tiled("matmul_nt_tiled", 8, 1, 8, 8, TILE_K4=2),
    "nt small 8": variant("matmul_nt_split"),
    "nt small 16": variant("matmul_nt_split"),
    "nt small 128": variant("matmul_nt_split"),
    "nn": tiled("matmul_nn_tiled", 8, 1, 8, 8),
    "nn small": tiled("matmul_nn_tiled", 8, 1, 8, 8, TILE_N4=2),
    "nn small 4": variant("matmul_nn_split", TILE_PACKS=1, TILE_ROWS=8),
    "nn small 8": variant("matmul_nn_split"),
    "nn small 16": variant("matmul_nn_split"),
    "nn small 128": variant("matmul_nn_split"),
    "tn 8x4": tn_split(8, 1, 1, 1, 64),
    "tn 8x8": tn_split(8, 1, 1, 2, 32),
    "tn 8x16": tn_split(8, 1, 1, 16, 8),
    "tn nx4": tn_split(4, 1, 16, 1, 8),
    "tn nx8": tn_split(4, 2, 16, 1, 8),
    "tn nx16": tn_split(8, 1, 2, 8, 8),
    "nv": matvec_split(4, 16),
    "nv small": matvec_split(1, 64),
    "attention": variant("attention_tiled"),
    "attention_decode": variant("attention_decode", MOST_HEADS=1),
    "attention_backward_q": variant("attention_backward_q_tiled"),
    "attention_backward_kv": variant("attention_backward_kv_tiled"),
    "rms_norm": variant("rms_norm", LANES=64),
    "rms_norm_backward": variant("rms_norm_backward", LANES=64),
    "layer_norm": variant("layer_norm", LANES=64),
    "layer_norm_backward": variant("layer_norm_backward", LANES=64),
    "cross_entropy_chunk": variant("cross_entropy_chunk", LANES=256),
}
# Where an adapter with subgroups differs; SUBGROUP is set to their true size. SwiftShader's four
# lanes gain nothing.
_CPU_SUBGROUPS: dict[str, Choice] = {
    "nt": variant("matmul_nt_subgroup"),
    "nt small": variant("matmul_nt_subgroup"),
    "nt small 128": variant("matmul_nt_subgroup"),
    "nn": variant("matmul_nn_subgroup"),
    "nn small": variant("matmul_nn_subgroup"),
    "nn small 128": variant("matmul_nn_subgroup"),
    "nv": variant("matvec_subgroup"),
    "attention": variant("attention_subgroup"),
    "attention_backward_q": variant("attention_backward_q_subgroup"),
    "attention_backward_kv": variant("attention_backward_kv_subgroup"),
}
_GPU_SUBGROUPS: dict[str, Choice] = {}

DEFAULT_CPU = Tuning(_CPU, "defaults of CPU adapters: not measured here")
DEFAULT_SWIFTSHADER = Tuning(
    {family: _rolled(choice) for family, choice in {**_CPU, **_SWIFTSHADER}.items()},
    "defaults of SwiftShader: not measured here",
)
DEFAULT_GPU = Tuning({**_CPU, **_GPU}, "defaults of GPUs: not measured here")
# All defaults there are; those with subgroups before their size is set.
TABLES: tuple[Mapping[str, Choice], ...] = (
    *(default.table for default in (DEFAULT_CPU, DEFAULT_SWIFTSHADER, DEFAULT_GPU)),
    *(_CPU_SUBGROUPS, _GPU_SUBGROUPS),
)


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
    own = {family: sized(choice, size) for family, choice in more.items()} if size else {}
    return Tuning({**base.table, **own}, base.origin)


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


def sized(choice: Choice, subgroup_size: int) -> Choice:
    """The choice with the constant SUBGROUP of kernels that use subgroups."""
    if not subgroup_size or "subgroups" not in load_kernel(choice.kernel).features:
        return choice
    return Choice(choice.kernel, (*choice.constants, ("SUBGROUP", subgroup_size)))
