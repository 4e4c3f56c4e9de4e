"""Oracles of the kernels that repack blocks: numbers out of a file's bytes, by the formulas of
ggml's block types, and into the planes of `engine/weight.py`.
"""

from collections.abc import Callable

import numpy as np

Blocks = np.ndarray  # bytes of a file, (rows, blocks of a row, bytes of a block)
Planes = tuple[np.ndarray, np.ndarray]  # bytes (rows, n) of the packs and of what lies beside them


def write_rows(
    planes: np.ndarray, rows: np.ndarray, first_row: int, stride: int, at: int = 0
) -> None:
    """Puts bytes (rows, n) as zero-padded rows of `stride` words, from word `at` on."""
    padded = np.zeros((len(rows), 4 * stride), np.uint8)
    padded[:, : rows.shape[1]] = rows
    start = at + first_row * stride
    planes[start : start + len(rows) * stride] = padded.view("<u4").ravel()


def _flat(*parts: np.ndarray) -> np.ndarray:
    """Parts of blocks (rows, blocks, n), one after the other in each block -> bytes (rows, all)."""
    joined = [np.ascontiguousarray(p).view(np.uint8).reshape(*p.shape[:2], -1) for p in parts]
    return np.concatenate(joined, -1).reshape(len(parts[0]), -1)


def _words(values: np.ndarray, bits: int) -> np.ndarray:
    """Fields of `bits` bits, the first one lowest, into words."""
    n = 32 // bits
    fields = values.astype(np.uint32).reshape(*values.shape[:-1], -1, n)
    fields = fields << (bits * np.arange(n, dtype=np.uint32))
    return np.bitwise_or.reduce(fields, -1).astype("<u4")


def _nibble_packs(q: np.ndarray) -> np.ndarray:
    """Nibble s of word c of a pack is value 4 s + c of its 32."""
    return _words(q.reshape(*q.shape[:-1], -1, 8, 4).swapaxes(-1, -2), 4)


def _low_first(b: Blocks, at: int) -> np.ndarray:
    """32 nibbles of 16 bytes, all low ones first."""
    return np.concatenate([b[..., at : at + 16] & 15, b[..., at : at + 16] >> 4], -1)


def _fields(b: Blocks, at: int, step: int, bits: int) -> np.ndarray:
    """256 fields: those of 256 * bits / 8 bytes, at each `step` bytes all the lowest ones first."""
    parts = [
        b[..., first : first + step] >> shift & (1 << bits) - 1
        for first in range(at, at + 32 * bits, step)
        for shift in range(0, 8, bits)
    ]
    return np.concatenate(parts, -1)


def _half(b: Blocks, at: int) -> np.ndarray:
    return np.ascontiguousarray(b[..., at : at + 2]).view("<u2")


def _scale(b: Blocks, at: int) -> np.ndarray:
    with np.errstate(invalid="ignore"):
        return _half(b, at).view("<f2").astype("<f4")


def _q4_0(b: Blocks, flip: int = 8) -> Planes:
    return _flat(_nibble_packs(_low_first(b, 2) ^ flip)), _flat(_half(b, 0))


def _q8_0(b: Blocks) -> Planes:
    quants = b[..., 2:].reshape(*b.shape[:2], 2, 4, 4).swapaxes(-1, -2)
    return _flat(quants), _flat(_half(b, 0))


def _mxfp4(b: Blocks) -> Planes:
    return _flat(_nibble_packs(_low_first(b, 1))), _flat(b[..., :1])


def _q4_1(b: Blocks) -> Planes:
    return _flat(_nibble_packs(_low_first(b, 4))), _flat(b[..., :4])


def _q5_0(b: Blocks) -> Planes:
    return _flat(_nibble_packs(_low_first(b, 6))), _flat(b[..., 2:6], _scale(b, 0))


def _q5_1(b: Blocks) -> Planes:
    return _flat(_nibble_packs(_low_first(b, 8))), _flat(b[..., 4:8], b[..., :4])


def _q2_k(b: Blocks) -> Planes:
    packs = _words(_fields(b, 16, 32, 2), 2)
    return _flat(packs), _flat(b[..., :16], _scale(b, 80), _scale(b, 82))


def _q3_k(b: Blocks) -> Planes:
    s = b[..., 96:108]
    low = np.concatenate([s[..., :8] & 15, s[..., :8] >> 4], -1)
    high = np.concatenate([s[..., 8:] >> shift & 3 for shift in (0, 2, 4, 6)], -1)
    scales = (low + 16 * high).astype(np.int8) - np.int8(32)
    thirds = _words(_fields(b, 0, 32, 1), 1)
    return _flat(_words(_fields(b, 32, 32, 2), 2)), _flat(thirds, scales, _scale(b, 108))


def _k_scales(b: Blocks) -> np.ndarray:
    s = b[..., 4:16]
    scales = np.concatenate([s[..., :4] & 63, (s[..., 8:] & 15) + 16 * (s[..., :4] >> 6)], -1)
    least = np.concatenate([s[..., 4:8] & 63, (s[..., 8:] >> 4) + 16 * (s[..., 4:8] >> 6)], -1)
    pairs = np.stack([scales, least], -1).reshape(*b.shape[:2], -1)
    return np.concatenate([pairs, _scale(b, 0).view(np.uint8), _scale(b, 2).view(np.uint8)], -1)


def _q4_k(b: Blocks) -> Planes:
    return _flat(_nibble_packs(_fields(b, 16, 32, 4))), _flat(_k_scales(b))


def _q5_k(b: Blocks) -> Planes:
    fifths = _words(_fields(b, 16, 32, 1), 1)
    return _flat(_nibble_packs(_fields(b, 48, 32, 4))), _flat(_k_scales(b), fifths)


def _q6_k(b: Blocks) -> Planes:
    high = _words(_fields(b, 128, 32, 2), 2)
    side = _flat(high, b[..., 192:208], _scale(b, 208))
    return _flat(_nibble_packs(_fields(b, 0, 64, 4))), side


def _iq4_xs(b: Blocks) -> Planes:
    q = np.concatenate([_low_first(b, 8 + 16 * j) for j in range(8)], -1)
    low = np.stack([b[..., 4:8] & 15, b[..., 4:8] >> 4], -1).reshape(*b.shape[:2], 8)
    high = _half(b, 2) >> (2 * np.arange(8, dtype=np.uint16)) & 3
    scales = (low + 16 * high).astype(np.int8) - np.int8(32)
    return _flat(_nibble_packs(q)), _flat(scales, _scale(b, 0))


def _halves(*places: int) -> Callable[[Blocks], bool]:
    """Whether one of the f16 scales there is not finite."""
    return lambda b: any(bool(np.any(_half(b, at) & 0x7C00 == 0x7C00)) for at in places)


def _oracle(
    nbytes: int, repack: Callable[..., Planes], not_finite: Callable[[Blocks], bool]
) -> Callable[..., dict[str, np.ndarray]]:
    def oracle(
        raw: np.ndarray,
        planes: np.ndarray,
        marks: np.ndarray,
        slice_rows: int,
        first_row: int,
        weight_stride: int,
        weight_side_stride: int,
        weight_side_at: int,
        raw_offset: int,
        raw_row: int,
        FLIP: int | None = None,
    ) -> dict[str, np.ndarray]:
        planes = planes.copy()
        rows = raw[raw_offset : raw_offset + slice_rows * raw_row]
        blocks = rows.reshape(slice_rows, -1, nbytes)
        options = {} if FLIP is None else {"flip": FLIP & 15}
        packs, side = repack(blocks, **options)
        write_rows(planes, packs, first_row, 4 * weight_stride)
        write_rows(planes, side, first_row, weight_side_stride, weight_side_at)
        return {"planes": planes, "marks": marks | np.uint32(not_finite(blocks))}

    return oracle


repack_q4_0 = _oracle(18, _q4_0, _halves(0))
repack_q4_1 = _oracle(20, _q4_1, _halves(0, 2))
repack_q5_0 = _oracle(22, _q5_0, _halves(0))
repack_q5_1 = _oracle(24, _q5_1, _halves(0, 2))
repack_q8_0 = _oracle(34, _q8_0, _halves(0))
repack_q2_k = _oracle(84, _q2_k, _halves(80, 82))
repack_q3_k = _oracle(110, _q3_k, _halves(108))
repack_q4_k = _oracle(144, _q4_k, _halves(0, 2))
repack_q5_k = _oracle(176, _q5_k, _halves(0, 2))
repack_q6_k = _oracle(210, _q6_k, _halves(208))
repack_iq4_xs = _oracle(136, _iq4_xs, _halves(0))
repack_mxfp4 = _oracle(17, _mxfp4, lambda b: bool(np.any(b[..., 0] >= 253)))
