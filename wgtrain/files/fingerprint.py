"""A hash that tells one base model from another without reading gigabytes."""

import hashlib

from wgtrain.files.source import Source, read_range

PIECE, PIECES = 1 << 20, 64


async def fingerprint(source: Source) -> str:
    """SHA-256 of a file of up to 64 MiB, as hex digits.

    Of a larger one: of 64 pieces of 1 MiB at equal distances, the first and the last among them,
    and its size (8 bytes, little-endian). Header and tensors of every block are in these.
    """
    digest = hashlib.sha256()
    if source.size <= PIECE * PIECES:
        for offset in range(0, source.size, PIECE):
            digest.update(await read_range(source, offset, min(PIECE, source.size - offset)))
    else:
        for i in range(PIECES):
            offset = i * (source.size - PIECE) // (PIECES - 1)
            digest.update(await read_range(source, offset, PIECE))
        digest.update(source.size.to_bytes(8, "little"))
    return digest.hexdigest()
