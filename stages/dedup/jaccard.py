"""Exact Jaccard similarity of the shingle sets of texts, by 64-bit hashes, compiled.

Of the texts that pairs name every set is made once, as a list of hashes; the first of a pair goes into a hash table,
the second is looked up in it until it is clear that it cannot reach the threshold. A pair whose documents verified
pairs connect already is not
looked at: the clusters are the same.
"""

from __future__ import annotations

import numpy as np

from stages.dedup.normalization import table
from stages.dedup.shingles import DONE, KINDS, SimilarityRule, begin, buffers, new_state, next_hashes
from stages.dedup.union_find import find, unite_two
from stages.lib.data.numba_jit import fmix64, njit

TOGETHER = 32
"""Hashes that are looked up before it is asked again whether the threshold can still be reached."""
MOST_HASHES = 1 << 21
"""Bytes of a text up to which its set is held whole; larger ones are those of `jaccard_on_disk.py`."""


@njit
def slot(slots, mask, value):
    """Where a value is among the slots, or the empty one (0) to put it into.

    slots: [a power of two] uint64; mask: len(slots) - 1; value: uint64, not 0. Returns uint64.
    """
    place = value & mask
    while slots[place] != 0 and slots[place] != value:
        place = (place + np.uint64(1)) & mask
    return place


@njit
def slots_of(most):
    """How many slots so many values have: at most half of them are full.

    int64 in, a power of two out.
    """
    size = 128
    while size < 2 * most:
        size *= 2
    return size


@njit
def _emptied(slots, most):
    """Empty the slots for so many values. Returns their mask: the number of slots - 1."""
    size = slots_of(most)
    slots[:size] = 0
    return np.uint64(size - 1)


@njit
def next_values(kind, width, mapping, source, end, state, codes, words, hashes):
    """The next mixed hashes of a document, none of them 0, into `hashes`; how many.

    hashes: uint64, mixed; the rest: see `shingles.next_hashes`.
    """
    count = next_hashes(kind, width, mapping, source, end, state, codes, words, hashes)
    for i in range(count):
        hashes[i] = max(fmix64(hashes[i]), np.uint64(1))
    return count


@njit
def prepare(kind, width, mapping, source, ends, codes, words, hashes, state, slots, values, bounds):
    """The set of each text, one after another in `values`: its mixed hashes, each once; `bounds` says where they begin.

    source: [bytes] uint8; ends: [texts + 1] int64; mapping, codes, words, hashes, state: see `shingles.next_hashes`;
    slots: uint64, room of `slots_of` the longest text; values: uint64, [bytes + texts]; bounds: [texts + 1] int64.
    """
    filled = np.uint64(0)
    for d in range(ends.shape[0] - 1):
        mask = _emptied(slots, ends[d + 1] - ends[d])
        begin(state, ends[d])
        while state[DONE] == 0:
            count = next_values(kind, width, mapping, source, ends[d + 1], state, codes, words, hashes)
            for i in range(count):
                place = slot(slots, mask, hashes[i])
                values[filled] = hashes[i]
                filled += np.uint64(slots[place] == 0)
                slots[place] = hashes[i]
        bounds[d + 1] = filled


@njit
def reaches(common, one, other, threshold):
    """Whether sets of these sizes and so much in common reach the threshold; two empty sets are equal.

    common, one, other: elements, int64; threshold: 0 to 1.
    """
    return one + other == 0 or common / (one + other - common) >= threshold


@njit
def compare(values, bounds, firsts, seconds, threshold, slots, out):
    """Which pairs of prepared sets reach the threshold, into `out`. Given up when what is left cannot reach it.

    values, bounds, slots: see `prepare`; firsts, seconds: [pairs] int64, places of texts, sorted; out: [pairs] bool.
    """
    parent = np.arange(bounds.shape[0] - 1)
    held, mask = -1, np.uint64(0)
    for i in range(firsts.shape[0]):
        a, b = firsts[i], seconds[i]
        first, second = values[bounds[a] : bounds[a + 1]], values[bounds[b] : bounds[b + 1]]
        one, other = len(first), len(second)
        out[i] = False
        if find(parent, a) == find(parent, b) or not reaches(min(one, other), one, other, threshold):
            continue
        if held != a:
            held, mask = a, _emptied(slots, one)
            for k in range(one):
                slots[slot(slots, mask, first[k])] = first[k]
        common = looked = 0
        while looked < other and reaches(min(one, common + other - looked), one, other, threshold):
            for k in range(looked, min(looked + TOGETHER, other)):
                common += int(slots[slot(slots, mask, second[k])] != 0)
            looked = min(looked + TOGETHER, other)
        if looked == other and reaches(common, one, other, threshold):
            out[i] = True
            unite_two(parent, a, b)


def small_pairs(
    source: np.ndarray,
    ends: np.ndarray,
    firsts: np.ndarray,
    seconds: np.ndarray,
    rule: SimilarityRule,
    values: np.ndarray | None = None,
) -> np.ndarray:
    """Which pairs of texts reach the threshold: [pairs], bool; but none that earlier pairs of the answer connect.

    source, ends: the texts' bytes and their ends ([texts + 1]); firsts, seconds: places of the texts of each pair,
    sorted: [pairs]. values: uint64 room for the sets, to be used again (new memory costs a tenth of the work).
    """
    slots = np.empty(slots_of(int(np.diff(ends).max(initial=0))), np.uint64)
    most, bounds = int(ends[-1]) + len(ends), np.zeros(len(ends), np.int64)
    if values is None or len(values) < most:
        values = np.empty(most, np.uint64)
    prepare(KINDS[rule.kind], rule.width, table(), source, ends, *buffers(), new_state(), slots, values, bounds)
    out = np.zeros(len(firsts), bool)
    compare(values, bounds, firsts, seconds, rule.threshold, slots, out)
    return out


def joined(texts: list[bytes]) -> tuple[np.ndarray, np.ndarray]:
    """Texts as bytes (read-only, as those of `documents.read_only`) and ends."""
    ends = np.concatenate([[0], np.cumsum([len(t) for t in texts])]).astype(np.int64)
    return np.frombuffer(b"".join(texts), np.uint8), ends
