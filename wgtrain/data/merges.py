"""The merges of a vocabulary as (M, 2) ids, the earliest first: from a file's list, or from its
scores.
"""

from array import array
from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any

import numpy as np

from wgtrain.errors import FileError
from wgtrain.files.source import shown

LONGEST_PIECE = 1024  # characters
MOST_CUTS = 1 << 25  # characters of pieces, each counted for every piece that begins or ends it


def listed_merges(
    texts: Sequence[str], ids: dict[str, int], error: Callable[[int, str], FileError]
) -> np.ndarray:
    """Merges written as "left right"; `error(i, what is needed)` makes what is raised for one."""
    flat = array("i")
    for i, text in enumerate(texts):
        cut = text.find(" ", 1)
        left, right = text[:cut], text[cut + 1 :]
        if cut < 0 or not right:
            raise error(i, "two pieces and a space between them")
        try:
            head, tail, _ = ids[left], ids[right], ids[left + right]
        except KeyError as missing:
            piece = missing.args[0]
            raise error(i, f"pieces of the vocabulary, and {shown(piece)} is none") from None
        flat.append(head)
        flat.append(tail)
    return first_of_each(np.array(flat, np.int32).reshape(-1, 2), len(ids))


def paired_merges(
    listed: Sequence[Any], ids: dict[str, int], error: Callable[[int, str], FileError]
) -> tuple[np.ndarray, np.ndarray]:
    """Merges as a tokenizer.json has them, ["left", "right"] or "left right": all of them as ids,
    (M, 2), and what each makes, (M,). `ids` has the pieces without spaces in them; `error(i, what
    is wrong)` makes what is raised for one.
    """
    pairs = [merge.split(" ") if type(merge) is str else merge for merge in listed]
    try:
        if not all(type(pair) is list and len(pair) == 2 for pair in pairs):
            raise TypeError
        both = map(ids.__getitem__, chain.from_iterable(pairs))
        found = np.fromiter(both, np.int32, 2 * len(pairs)).reshape(-1, 2)
        return found, np.fromiter(map(ids.__getitem__, map("".join, pairs)), np.int32, len(pairs))
    except (KeyError, TypeError):  # only now it is worth a look which it is
        for i, pair in enumerate(pairs):
            if not (type(pair) is list and len(pair) == 2 and all(map(_may_merge, pair))):
                raise error(i, "two pieces are needed") from None
            missing = [piece for piece in (*pair, "".join(pair)) if piece not in ids]
            if missing:
                raise error(i, f"{shown(missing[0])} is no piece") from None
        raise


def _may_merge(piece: Any) -> bool:
    return isinstance(piece, str) and piece != "" and " " not in piece


def first_of_each(merges: np.ndarray, vocab_size: int) -> np.ndarray:
    """(M, 2) ids without repeats: of a merge listed twice the first counts."""
    first = np.unique(keys(merges, vocab_size), return_index=True)[1]
    return merges[np.sort(first)]


def keys(merges: np.ndarray, vocab_size: int) -> np.ndarray:
    """One number for each pair of ids: left * V + right, (M,) float64 and exact, as JavaScript's
    numbers are.
    """
    return merges[:, 0] * float(vocab_size) + merges[:, 1]


def scored_merges(pieces: Sequence[str], scores: np.ndarray, name: str) -> np.ndarray:
    """Every way to join two pieces into a third, in the order in which SentencePiece prefers
    them.

    There the best score goes first and, among equals, the leftmost pair. Here each pair has a
    rank of its own, so the ways to make one piece are ordered such that the leftmost pair wins
    where two overlap: that of x + y over y + z with x + y = y + z. Then y is both head and tail
    of the piece. Different pieces of equal score go by id, where SentencePiece looks at places
    alone; Llama's runs of spaces are such pieces, and come out the same.
    """
    sizes = np.fromiter(map(len, pieces), np.int32, len(pieces))
    heads = _heads(pieces, name)
    tails = _heads([piece[::-1] for piece in pieces], name)
    head_at, head = _places(heads, lambda piece, part: sizes[part])
    tail_at, tail = _places(tails, lambda piece, part: sizes[piece] - sizes[part])
    del heads, tails
    at, i, j = np.intersect1d(head_at, tail_at, assume_unique=True, return_indices=True)
    left, right = head[i], tail[j]
    del i, j
    piece, cut = np.divmod(at, LONGEST_PIECE + 1)
    other = piece * (LONGEST_PIECE + 1) + sizes[piece] - cut  # where its other overlap is cut
    overlap = _stands(tail_at, tail, other, left).astype(np.int8)  # the left part is a tail, too
    overlap -= _stands(head_at, head, other, right)
    del head_at, head, tail_at, tail, other, at
    rank = np.empty(len(pieces), np.int32)
    rank[np.lexsort((np.arange(len(pieces)), -scores))] = np.arange(len(pieces))
    order = np.lexsort((-cut, overlap, rank[piece]))
    return np.stack([left[order], right[order]], axis=1)


def _heads(pieces: Sequence[str], name: str) -> np.ndarray:
    """For each piece the longest other one that begins it, -1 for none: (V,) int32."""
    found = array("i", [-1]) * len(pieces)
    open_: list[int] = []  # each begins the next; in sorted order a piece follows what begins it
    cuts = 0
    for i in sorted(range(len(pieces)), key=pieces.__getitem__):
        piece = pieces[i]
        while open_ and not piece.startswith(pieces[open_[-1]]):
            open_.pop()
        if open_:
            found[i] = open_[-1]
            cuts += len(open_) * len(piece)
            if cuts > MOST_CUTS:
                raise FileError(
                    f"{name}: tokenizer.ggml.tokens[{i}] is {shown(piece)}: with it the ways to cut"
                    f" pieces in two take more than {MOST_CUTS:,} characters"
                )
        open_.append(i)
    return np.array(found, np.int32)


def _places(
    heads: np.ndarray, cut: Callable[[np.ndarray, np.ndarray], np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Each piece's parts: piece * (LONGEST_PIECE + 1) + where it is cut, ascending, and the part's
    id.
    """
    places, parts = [], []
    piece = np.flatnonzero(heads >= 0)
    part = heads[piece]
    while len(piece):
        places.append(piece * (LONGEST_PIECE + 1) + cut(piece, part))
        parts.append(part)
        part = heads[part]
        piece, part = piece[part >= 0], part[part >= 0]
    if not places:
        return np.zeros(0, np.int64), np.zeros(0, np.int32)
    every, ids = np.concatenate(places), np.concatenate(parts)
    order = np.argsort(every)
    return every[order], ids[order]


def _stands(at: np.ndarray, parts: np.ndarray, places: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """Whether the part at each place is the one of `ids`."""
    i = np.minimum(np.searchsorted(at, places), len(at) - 1)
    return (at[i] == places) & (parts[i] == ids) if len(at) else np.zeros(0, bool)
