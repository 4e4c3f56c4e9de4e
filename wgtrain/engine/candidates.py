"""What a sweep tries for a family beside its default: data, and the only choices that a file may
name beside the defaults.
"""

from wgtrain.engine.tuning import (
    TABLES,
    Choice,
    default_tuning,
    matvec_split,
    runs_on,
    sized,
    tiled,
    tn_split,
    variant,
)
from wgtrain.gpu import Device

# What a sweep tries for a family, beside the default: by family, else by what stands before "/".
CANDIDATES: dict[str, tuple[Choice, ...]] = {
    "nv": (variant("matvec"), variant("matvec_subgroup"), matvec_split(2, 8)),
    "nv small": (variant("matvec"), matvec_split(1, 8), matvec_split(1, 16)),
    "attention_decode": tuple(
        variant("attention_decode", LANES=lanes, STEPS=steps)
        for lanes, steps in ((8, 4), (8, 16), (16, 4))
    ),
    "nt": (
        variant("matmul_nt"),
        variant("matmul_nt_subgroup"),
        variant("matmul_nt_subgroup", TILE_ROWS=4, TILE_COLS=64),
        variant("matmul_nt_subgroup", TILE_ROWS=5, TILE_COLS=48),
    ),
    "nn": (variant("matmul_nn"), variant("matmul_nn_subgroup")),
    **{
        f"nn/weight_{library}": (
            variant("matmul_nn"),
            variant("matmul_nn_subgroup"),
            *(variant("matmul_nn_subgroup", TILE_PACKS=n) for n in packs),
        )
        for library, packs in {
            **dict.fromkeys(("f32", "f16", "bf16"), (12, 16)),
            "q8_0": (2, 3),
            "q4_0": (1,),
        }.items()
    },
    **{
        kernel: (variant(kernel), variant(f"{kernel}_subgroup"))
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
    *(tiled("matmul_nt_tiled", *tile) for tile in _TILES),
    tiled("matmul_nt_tiled", 4, 1, 8, 8, TILE_K4=8),
    tiled("matmul_nt_tiled", 8, 1, 8, 8, TILE_K4=8),
    tiled("matmul_nt_tiled", 8, 2, 8, 8, TILE_K4=2),
    tiled("matmul_nt_tiled", 8, 2, 16, 16, TILE_K4=2),
)
_NN = (
    *(tiled("matmul_nn_tiled", *tile) for tile in _TILES),
    tiled("matmul_nn_tiled", 4, 1, 8, 8, TILE_N4=8),
    tiled("matmul_nn_tiled", 8, 1, 8, 8, TILE_N4=8),
    tiled("matmul_nn_tiled", 8, 2, 8, 8, TILE_N4=2),
    tiled("matmul_nn_tiled", 8, 2, 16, 16, TILE_N4=2),
)
GPU_CANDIDATES: dict[str, tuple[Choice, ...]] = {
    # Few lanes a column where rows are short, many where few columns have to fill a GPU.
    "nv": tuple(matvec_split(*how) for how in ((2, 16), (8, 8), (4, 8), (2, 32), (2, 64))),
    "nv small": (matvec_split(1, 32), matvec_split(1, 128), matvec_split(2, 32)),
    "attention_decode": tuple(
        variant("attention_decode", MOST_HEADS=heads, LANES=lanes, STEPS=steps)
        for heads, lanes, steps in ((1, 64, 2), (2, 64, 4), (4, 64, 4), (1, 128, 2), (1, 32, 4))
    ),
    "nt": _NT,
    "nt f16": _NT,
    "nn": _NN,
    "nn f16": _NN,
    **{
        f"{way} small {columns}": (
            variant(f"matmul_{way}_split", TILE_ROWS=2),
            variant(f"matmul_{way}_split", TILE_ROWS=8),
            variant(f"matmul_{way}_split", TILE_ROWS=2, LANES=128),
            variant(f"matmul_{way}_split", LANES=32),
        )
        for way in ("nt", "nn")
        for columns in (8, 16, 128)
    },
    "tn 8x16": (tn_split(8, 1, 1, 16, 4), tn_split(8, 1, 1, 32, 4), tn_split(8, 2, 1, 8, 8)),
    "tn nx8": (tn_split(4, 2, 16, 1, 4), tn_split(4, 2, 32, 1, 4), tn_split(8, 2, 8, 1, 8)),
    "tn nx16": (tn_split(8, 1, 4, 4, 8), tn_split(8, 1, 2, 8, 4), tn_split(8, 2, 2, 4, 8)),
    # Fewer or more of the side a workgroup owns; the latter with thinner slices, for their memory.
    "attention": (
        variant("attention_tiled", TILE_QUERIES=1),
        variant("attention_tiled", TILE_QUERIES=4, MOST_SLICE4=8),
        variant("attention_tiled", LANE_ROWS=4),
    ),
    "attention_backward_q": (
        variant("attention_backward_q_tiled", TILE_QUERIES=1),
        variant("attention_backward_q_tiled", TILE_QUERIES=4, MOST_SLICE4=4),
        variant("attention_backward_q_tiled", LANE_ROWS=4),
    ),
    "attention_backward_kv": (
        variant("attention_backward_kv_tiled", TILE_KEYS=1),
        variant("attention_backward_kv_tiled", TILE_KEYS=4, MOST_SLICE4=2),
        variant("attention_backward_kv_tiled", LANE_ROWS=4),
    ),
    **{
        kernel: tuple(variant(kernel, LANES=lanes) for lanes in (32, 64, 128, 256))
        for kernel in (
            "rms_norm",
            "rms_norm_backward",
            "layer_norm",
            "layer_norm_backward",
            "cross_entropy_chunk",
        )
    },
}


def candidates(family: str, device: Device) -> list[Choice]:
    """What can be tried for a family on this adapter, the default first."""
    base = family.partition("/")[0]
    listed = [*(CANDIDATES.get(family) or CANDIDATES.get(base, ()))]
    if device.info.type != "CPU":
        listed += GPU_CANDIDATES.get(base, ())
    found = [default_tuning(device).choice(family)]
    for choice in (sized(choice, device.subgroup_size) for choice in listed):
        if choice not in found and runs_on(choice, family, device):
            found.append(choice)
    return found


def is_listed(choice: Choice, family: str) -> bool:
    """Whether this version has a choice for a family, on whatever adapter: what a file says is
    taken only then, because constants decide what is computed.
    """
    base = family.partition("/")[0]
    listed = [*(CANDIDATES.get(family) or CANDIDATES.get(base, ())), *GPU_CANDIDATES.get(base, ())]
    for table in TABLES:
        listed += [table[name] for name in {family, base} if name in table]
    constants = tuple(pair for pair in choice.constants if pair[0] != "SUBGROUP")
    return Choice(choice.kernel, constants) in listed
