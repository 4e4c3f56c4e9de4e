"""Cuts special tokens out of texts, in time linear in the text however many tokens there are.

A special token that is longer, anywhere in the text, goes before a shorter one, also before one
that begins earlier: so llama.cpp cuts, which looks for one after the other.
"""

import heapq
import re
from bisect import bisect_right
from functools import cached_property

from wgtrain.errors import FileError

MOST_CHARACTERS = 1 << 20  # of all special tokens; those of known models have some 50,000
_CHARACTERS = 0x110000  # of Unicode: a transition is state * this + character


class Cutter:
    """Splits texts at special tokens; `ids` has their pieces. FileError, naming the file `name`,
    for pieces that are too many to look for.
    """

    def __init__(self, ids: dict[str, int], name: str) -> None:
        if (size := sum(map(len, ids))) > MOST_CHARACTERS:
            raise FileError(
                f"{name}: tokenizer.ggml.token_type makes {len(ids):,} pieces special tokens, of "
                f"{size:,} characters; at most {MOST_CHARACTERS:,} are looked for in texts"
            )
        self._pieces = sorted(ids, key=lambda piece: -len(piece.encode()))  # the first goes first
        self._ids = [ids[piece] for piece in self._pieces]
        self._chains: dict[int, list[int]] = {}
        last = sorted({piece[-1] for piece in ids})
        self._last = re.compile(f"[{re.escape(''.join(last))}]") if ids else None

    def __call__(self, text: str) -> list[str | int]:
        """The parts of a text in order: plain text, or the id of a special token."""
        parts: list[str | int] = []
        at = 0
        for start, rank in self._chosen(self._found(text)):
            if start > at:
                parts.append(text[at:start])
            parts.append(self._ids[rank])
            at = start + self._size(rank)
        if at < len(text):
            parts.append(text[at:])
        return parts

    @cached_property
    def _machine(self) -> tuple[dict[int, int], list[int], list[int], list[int]]:
        """Aho and Corasick's machine over the pieces read backwards: transitions, the state to
        fall back to, the longest piece that a state has read (-1: none), and for each piece the
        next shorter one that begins it.
        """
        after: dict[int, int] = {}
        parents, letters, depths, ends = [0], [0], [0], [-1]
        for rank, piece in enumerate(self._pieces):
            state = 0
            for depth, letter in enumerate(map(ord, reversed(piece)), 1):
                key = state * _CHARACTERS + letter
                if key not in after:
                    after[key] = len(parents)
                    parents.append(state)
                    letters.append(letter)
                    depths.append(depth)
                    ends.append(-1)
                state = after[key]
            ends[state] = rank
        back = [0] * len(parents)
        shorter = [-1] * len(self._pieces)
        for state in sorted(range(1, len(parents)), key=depths.__getitem__):
            if depths[state] > 1:
                fall = back[parents[state]]
                while fall and fall * _CHARACTERS + letters[state] not in after:
                    fall = back[fall]
                back[state] = after.get(fall * _CHARACTERS + letters[state], 0)
            if ends[state] < 0:
                ends[state] = ends[back[state]]
            else:
                shorter[ends[state]] = ends[back[state]]
        return after, back, ends, shorter

    def _size(self, rank: int) -> int:
        return len(self._pieces[rank])

    def _prefixes(self, rank: int) -> list[int]:
        """The pieces that begin a piece, itself the last, from short to long."""
        if rank not in self._chains:
            chain, shorter = [rank], self._machine[3]
            while shorter[chain[-1]] >= 0:
                chain.append(shorter[chain[-1]])
            self._chains[rank] = chain[::-1]
        return self._chains[rank]

    def _found(self, text: str) -> list[tuple[int, int]]:
        """(start, rank) of the longest piece at each place where one begins, in order."""
        if self._last is None or not self._last.search(text):
            return []
        after, back, ends, _ = self._machine
        backwards, size = text[::-1], len(text)
        found = []
        state = at = 0
        while at < size:
            if state == 0:
                match = self._last.search(backwards, at)
                if match is None:
                    break
                at = match.start()
            letter = ord(backwards[at])
            at += 1
            while state and state * _CHARACTERS + letter not in after:
                state = back[state]
            state = after.get(state * _CHARACTERS + letter, 0)
            if ends[state] >= 0:
                found.append((size - at, ends[state]))
        return found[::-1]

    def _chosen(self, found: list[tuple[int, int]]) -> list[tuple[int, int]]:
        """Those that stay: in each group that overlaps, the longest first."""
        out: list[tuple[int, int]] = []
        first = 0
        while first < len(found):
            end, last = found[first][0], first
            while last < len(found) and (last == first or found[last][0] < end):
                end = max(end, found[last][0] + self._size(found[last][1]))
                last += 1
            group = found[first:last]
            out += group if len(group) == 1 else self._longest_first(group, end)
            first = last
        return out

    def _longest_first(self, group: list[tuple[int, int]], end: int) -> list[tuple[int, int]]:
        begin = group[0][0]
        taken = bytearray(end - begin)
        queue = [(rank, start - begin) for start, rank in group]
        heapq.heapify(queue)
        chosen = []
        while queue:
            rank, start = heapq.heappop(queue)
            stop = start + self._size(rank)
            room = taken.find(1, start, stop) - start
            if room < -start:
                taken[start:stop] = b"\1" * (stop - start)
                chosen.append((start + begin, rank))
            elif room > 0 and (fits := bisect_right(self._prefixes(rank), room, key=self._size)):
                heapq.heappush(queue, (self._prefixes(rank)[fits - 1], start))
        return sorted(chosen)
