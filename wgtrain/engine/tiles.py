"""Tile constants of the matrix products by shape, measured on a software adapter; the defaults in
the shaders serve large products. See docs/optimisation-log.md.
"""

Constants = dict[str, int]


def nt_tiles(n: int) -> Constants:
    """matmul_nt with few columns: narrow tiles, all lanes along rows."""
    if n > 16:
        return {}
    return {"TILE_ROWS": 16, "TILE_COLS": 8 if n <= 8 else 16, "LANE_ROWS": 8, "LANE_COLS": 1}


def nn_tiles(k4: int) -> Constants:
    """matmul_nn over an f32 weight with few columns."""
    if k4 > 4:
        return {}
    packs = 1 << (k4 - 1).bit_length()
    return {"TILE_ROWS": 8, "TILE_PACKS": packs, "LANE_ROWS": 8, "LANE_COLS": 1}


def tn_tiles(m: int, n4: int) -> Constants:
    """matmul_tn: tiles of at most 64 vec4, as square as the result allows."""
    columns = min(1 << (n4 - 1).bit_length(), 4)
    rows = 8 if m <= 8 else 16 if columns == 4 else 32
    return {"TILE_ROWS": rows, "TILE_COLS4": columns}
