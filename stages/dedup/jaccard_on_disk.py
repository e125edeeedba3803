"""Texts whose sets are too large to hold: their hashes go to disk, to a file for each range of values, and are compared
range by range.

A text is hashed once for each pair that it is in; the disk holds 8 bytes a hash of two texts, memory two tables.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from stages.dedup.jaccard import MOST_HASHES, next_values, reaches, slot, slots_of
from stages.dedup.lsh import partition_of
from stages.dedup.normalization import table
from stages.dedup.shingles import DONE, KINDS, SimilarityRule, begin, buffers, new_state
from stages.dedup.union_find import find, unite_two
from stages.lib.data.numba_jit import njit
from stages.lib.data.spills import group

READ_HASHES = 1 << 20
"""Hashes that are in memory together, besides the tables; a table holds MOST_HASHES, on average."""


@njit
def _next_mixed(kind, width, mapping, source, end, state, codes, words, hashes, out):
    """The next mixed hashes of a text, as many as `out` has room for; how many."""
    filled = 0
    while state[DONE] == 0 and filled + hashes.shape[0] <= out.shape[0]:
        count = next_values(kind, width, mapping, source, end, state, codes, words, hashes)
        out[filled : filled + count] = hashes[:count]
        filled += count
    return filled


@njit
def _add(values, slots, others):
    """Put values into the table `slots`: how many are new, and how many of those `others` has too."""
    size, common, mask = 0, 0, np.uint64(slots.shape[0] - 1)
    for value in values:
        place = slot(slots, mask, value)
        if slots[place] == 0:
            slots[place] = value
            size += 1
            common += int(others[slot(others, mask, value)] != 0)
    return size, common


def _scatter(folder: Path, rule: SimilarityRule, source: np.ndarray, start: int, end: int, ranges: int) -> list[Path]:
    """Write the hashes of one text to a file for each range of their values: each is made once, however many ranges
    there are.
    """
    folder.mkdir()
    paths = [folder / str(n) for n in range(ranges)]
    work = buffers()
    state, room, offsets = new_state(), np.empty(READ_HASHES, np.uint64), np.empty(ranges + 1, np.int64)
    begin(state, start)
    while not state[DONE]:
        values = room[: _next_mixed(KINDS[rule.kind], rule.width, table(), source, end, state, *work, room)]
        order = np.empty(len(values), np.int64)
        group(partition_of(values, ranges), order, offsets)
        values = values[order]
        for path, low, high in zip(paths, offsets[:-1].tolist(), offsets[1:].tolist(), strict=True):
            with open(path, "ab", buffering=0) as file:  # one at a time: a text of a gigabyte has a thousand ranges
                file.write(values[low:high].view(np.uint8).data)
    return paths


def _pieces(path: Path) -> Iterator[np.ndarray]:
    """The hashes of a file, some at a time: a text that says one thing again and again has all of them in one range."""
    with open(path, "rb") as stream:
        while len(piece := np.fromfile(stream, np.uint64, READ_HASHES)):
            yield piece


def large_pairs(
    source: np.ndarray,
    ends: np.ndarray,
    firsts: np.ndarray,
    seconds: np.ndarray,
    rule: SimilarityRule,
    folder: Path | None = None,
) -> np.ndarray:
    """As `similar_pairs`, for texts whose sets are too large to hold: pair by pair, range by range, hashes on disk
    under `folder`.
    """
    parent = np.arange(len(ends) - 1)
    out = np.zeros(len(firsts), bool)
    slots, others = np.empty((2, slots_of(MOST_HASHES)), np.uint64)
    for i, pair in enumerate(zip(firsts.tolist(), seconds.tolist(), strict=True)):
        if find(parent, pair[0]) == find(parent, pair[1]):
            continue
        ranges = 1 << max(1, int(max(ends[d + 1] - ends[d] for d in pair) // MOST_HASHES).bit_length())
        with TemporaryDirectory(dir=folder) as place:
            one, other = (
                _scatter(Path(place) / str(n), rule, source, int(ends[d]), int(ends[d + 1]), ranges)
                for n, d in enumerate(pair)
            )
            if reaches(*_large_similarity(one, other, slots, others), rule.threshold):
                out[i] = True
                unite_two(parent, *pair)
    return out


def _large_similarity(
    one: list[Path], other: list[Path], slots: np.ndarray, others: np.ndarray
) -> tuple[int, int, int]:
    """(In common, one, other) of two sets that lie in files, range by range."""
    totals = [0, 0, 0]
    for first, second in zip(one, other, strict=True):
        slots[:], others[:] = 0, 0
        for piece in _pieces(first):
            totals[1] += _add(piece, others, slots)[0]
        for piece in _pieces(second):
            size, common = _add(piece, slots, others)
            totals[2], totals[0] = totals[2] + size, totals[0] + common
    return totals[0], totals[1], totals[2]
