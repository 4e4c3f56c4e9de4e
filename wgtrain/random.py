"""Counter-based random numbers, identical natively, in the page, in shaders and for every numpy.

`mix` is the finaliser of MurmurHash3 (Appleby, public domain): a bijection of 32 bits. A *key* is
made from (seed, purpose, counters) on the host; number i of a key's stream is `mix(key ^ mix(i))`.
`shaders/lib/random.wgsl` holds the same two lines.
"""

import numpy as np

_MASK = 0xFFFFFFFF


def mix(x: int) -> int:
    """Scrambles one 32-bit integer."""
    x &= _MASK
    x = ((x ^ (x >> 16)) * 0x85EBCA6B) & _MASK
    x = ((x ^ (x >> 13)) * 0xC2B2AE35) & _MASK
    return x ^ (x >> 16)


def key(seed: int, purpose: str, *counters: int) -> int:
    """The 32-bit key of one stream; `purpose` and `counters` separate the streams of one seed."""
    h = mix(seed ^ mix((seed >> 32) + 1))
    for byte in purpose.encode():
        h = mix(h ^ byte)
    for counter in counters:
        h = mix(mix(h ^ (counter & _MASK)) + (counter >> 32))
    return h


def stream(key: int, n: int) -> np.ndarray:
    """The first `n` numbers of a stream, uint32 (n,)."""
    h = _mix_array(np.arange(n, dtype=np.uint32))
    return _mix_array(h ^ np.uint32(key))


def uniform(key: int, n: int) -> np.ndarray:
    """`n` float32 numbers in [0, 1), multiples of 2^-24, (n,)."""
    return (stream(key, n) >> np.uint32(8)).astype(np.float32) * np.float32(2.0**-24)


def permutation(key: int, n: int) -> np.ndarray:
    """A shuffled `arange(n)`, int64 (n,): the indices ordered by their random number, ties by
    index.
    """
    return np.argsort(stream(key, n), kind="stable")


def _mix_array(x: np.ndarray) -> np.ndarray:
    x = x ^ (x >> np.uint32(16))
    x = x * np.uint32(0x85EBCA6B)
    x = x ^ (x >> np.uint32(13))
    x = x * np.uint32(0xC2B2AE35)
    return x ^ (x >> np.uint32(16))
