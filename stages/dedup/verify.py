"""The real Jaccard similarity of candidate pairs, out of core.

    spill    shard           -> the texts of the documents that are candidates
    verify   slice of pairs  -> the pairs at or above the threshold
    extremes clusters        -> of each, the documents to keep (the-stack-dedup's rule)

Of the texts of some thousand pairs every set is made once, as a list of hashes (the pairs come cluster by cluster, so that is nearly
once for all); the first of a pair goes into a hash table (stamped anew instead of being cleared), the second is looked up in it
until it is clear that it cannot reach the threshold. A pair whose documents verified pairs connect already is not looked at: the
clusters are the same.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from stages.data.compiled import compiled, mix
from stages.dedup.normalization import table
from stages.dedup.shingles import (
    DONE,
    KINDS,
    ShingleKind,
    begin,
    buffers,
    jaccard,
    new_state,
    next_hashes,
    reread,
    shingles,
)
from stages.formats.corpus import Shard, read_shard
from stages.formats.documents import text_buffer

CHUNK_BYTES = 6 << 20
"""Text of the pairs that are looked at together. Their sets take some eight times that."""
MOST_HASHES = 1 << 21
"""Bytes of a text up to which its set is held whole; larger ones are those of `large.py`."""


def spill(folder: Path, shard: dict[str, Any], candidates: str) -> Any:
    """Write the texts of a shard's candidates one after another, with their numbers and ends."""
    mask, start = np.load(candidates, mmap_mode="r"), shard["start"]
    numbers, lengths = [np.empty(0, np.uint32)], [np.empty(0, np.int64)]
    with open(folder / "texts", "wb") as out:
        for batch in read_shard(Shard(**shard), columns=["text"]):
            chosen = np.flatnonzero(mask[start : start + batch.num_rows])
            if len(chosen):
                source, ends = text_buffer(pc.take(batch.column("text"), pa.array(chosen)))
                out.write(memoryview(source.data)[ends[0] : ends[-1]])
                numbers.append((chosen + start).astype(np.uint32))
                lengths.append(np.diff(ends))
            start += batch.num_rows
    np.save(folder / "numbers.npy", np.concatenate(numbers))
    np.save(folder / "ends.npy", np.concatenate([[0], np.cumsum(np.concatenate(lengths))]).astype(np.int64))
    return int(sum(map(len, numbers)))


class Texts:
    """The spilled texts by document number. Reads from disk, and maps only the index: memory is what is asked for at a time."""

    def __init__(self, folders: list[str], starts: list[int], kind: ShingleKind) -> None:
        self._folders, self._starts = [Path(f) for f in folders], np.array(starts, np.int64)
        self._kind: ShingleKind = kind

    def locate(self, documents: np.ndarray) -> np.ndarray:
        """Shard, offset and length of each text: [documents, 3], int64."""
        found = np.empty((len(documents), 3), np.int64)
        found[:, 0] = np.searchsorted(self._starts, documents, side="right") - 1
        for shard in np.unique(found[:, 0]):
            mine = found[:, 0] == shard
            numbers, ends = (np.load(self._folders[shard] / f"{name}.npy", mmap_mode="r") for name in ("numbers", "ends"))
            rows = np.searchsorted(numbers, documents[mine].astype(np.uint32))
            found[mine, 1], found[mine, 2] = ends[rows], ends[rows + 1] - ends[rows]
        return found

    def read(self, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The texts at these places, as bytes and ends; what needs Python's normalization has had it."""
        ends = np.concatenate([[0], np.cumsum(places[:, 2])]).astype(np.int64)
        source = np.empty(int(ends[-1]), np.uint8)
        view = memoryview(source.data)
        for shard in np.unique(places[:, 0]).tolist():
            rows = np.flatnonzero(places[:, 0] == shard)
            with open(self._folders[shard] / "texts", "rb", buffering=0) as stream:
                for low, high, offset in zip(ends[rows].tolist(), ends[rows + 1].tolist(), places[rows, 1].tolist(), strict=True):
                    while low < high:
                        done = os.preadv(stream.fileno(), [view[low:high]], offset)
                        low, offset = low + done, offset + done
        odd = _odd(source)
        if not len(odd):
            return source, ends
        pieces = [view[low:high].tobytes() for low, high in pairwise(ends.tolist())]
        for row in np.unique(np.searchsorted(ends, odd, side="right") - 1).tolist():
            pieces[row] = reread(self._kind, pieces[row].decode())
        return joined(pieces)


def _odd(source: np.ndarray) -> np.ndarray:
    """Where U+0130 and U+03A3 are in UTF-8, which need Python's normalization; looked for in pieces, for the sake of memory."""
    found = []
    for start in range(0, len(source), CHUNK_BYTES):
        here, after = source[start : start + CHUNK_BYTES], source[start + 1 : start + CHUNK_BYTES + 1]
        here = here[: len(after)]
        found.append(start + np.flatnonzero(((here == 0xC4) & (after == 0xB0)) | ((here == 0xCE) & (after == 0xA3))))
    return np.concatenate(found) if found else np.empty(0, np.int64)


def joined(texts: list[bytes]) -> tuple[np.ndarray, np.ndarray]:
    """Texts as bytes and ends."""
    return np.frombuffer(b"".join(texts), np.uint8), np.concatenate([[0], np.cumsum([len(t) for t in texts])]).astype(np.int64)


@compiled
def find(parent, node):
    """The root of a node; paths are halved on the way."""
    while parent[node] != node:
        parent[node] = parent[parent[node]]
        node = parent[node]
    return node


@compiled
def unite(parent, firsts, seconds):
    """Join the trees of every pair; the root of a tree is its lowest member."""
    for i in range(firsts.shape[0]):
        one, other = find(parent, firsts[i]), find(parent, seconds[i])
        if one < other:
            parent[other] = one
        else:
            parent[one] = other


@compiled
def _next_slot(keys, stamps, stamp, mask, value):
    """Where a value is in the table, or the slot to put it into."""
    place = np.int64(value) & mask
    while stamps[place] == stamp and keys[place] != value:
        place = (place + 1) & mask
    return place


@compiled
def _slots(most):
    """Slots less one of a table for so many values: at most half full."""
    mask = 128
    while mask < 2 * most:
        mask *= 2
    return mask - 1


@compiled
def prepare(kind, width, mapping, source, ends, codes, words, hashes, state, keys, stamps, values, bounds):
    """The set of each text, one after another in `values`: its mixed hashes, each once. `bounds` says where they begin."""
    filled = 0
    for d in range(ends.shape[0] - 1):
        mask = _slots(max(ends[d + 1] - ends[d], 64))
        begin(state, ends[d])
        while state[DONE] == 0:
            made = next_hashes(kind, width, mapping, source, ends[d + 1], state, codes, words, hashes)
            for i in range(made):
                value = mix(hashes[i])
                place = _next_slot(keys, stamps, d + 1, mask, value)
                if stamps[place] != d + 1:
                    stamps[place], keys[place] = d + 1, value
                    values[filled] = value
                    filled += 1
        bounds[d + 1] = filled
    return filled


@compiled
def _reaches(common, one, other, threshold):
    """Whether sets of these sizes and so much in common reach the threshold; two empty sets are equal."""
    return one + other == 0 or common / (one + other - common) >= threshold


@compiled
def compare(values, bounds, firsts, seconds, threshold, keys, stamps, stamp, out):
    """Which pairs of prepared sets reach the threshold, into `out`. Given up as soon as what is left cannot reach it."""
    parent = np.arange(bounds.shape[0] - 1)
    held, mask = -1, 0
    for i in range(firsts.shape[0]):
        a, b = firsts[i], seconds[i]
        one, other = bounds[a + 1] - bounds[a], bounds[b + 1] - bounds[b]
        out[i] = False
        if find(parent, a) == find(parent, b) or not _reaches(min(one, other), one, other, threshold):
            continue
        if held != a:
            stamp += 1
            held, mask = a, _slots(max(one, 64))
            for k in range(bounds[a], bounds[a + 1]):
                place = _next_slot(keys, stamps, stamp, mask, values[k])
                stamps[place], keys[place] = stamp, values[k]
        common, missed = 0, 0
        for k in range(bounds[b], bounds[b + 1]):
            place = np.int64(values[k]) & mask
            while stamps[place] == stamp and keys[place] != values[k]:
                place = (place + 1) & mask
            if stamps[place] == stamp:
                common += 1
            else:
                missed += 1
                if missed & 15 == 0 and not _reaches(min(one, other - missed), one, other, threshold):
                    break
        if common + missed == other and _reaches(common, one, other, threshold):
            out[i] = True
            first, second = find(parent, a), find(parent, b)
            parent[max(first, second)] = min(first, second)


def similar_pairs(
    source: np.ndarray,
    ends: np.ndarray,
    firsts: np.ndarray,
    seconds: np.ndarray,
    kind: ShingleKind,
    width: int,
    threshold: float,
    folder: Path | None = None,
) -> np.ndarray:
    """Which pairs of texts (by place, sorted) reach the threshold: [pairs], bool. Pairs that earlier ones of the answer connect
    are left out. `folder`: for what does not fit into memory."""
    lengths = np.diff(ends)
    large = (lengths[firsts] > MOST_HASHES) | (lengths[seconds] > MOST_HASHES)
    if large.any():
        out = np.zeros(len(firsts), bool)
        from stages.dedup.large import large_pairs

        out[large] = large_pairs(source, ends, firsts[large], seconds[large], kind, width, threshold, folder)
        if not large.all():
            here, local = np.unique(np.stack([firsts[~large], seconds[~large]]), return_inverse=True)
            local = local.reshape(2, -1)
            small = joined([source[ends[d] : ends[d + 1]].tobytes() for d in here])
            out[~large] = similar_pairs(*small, local[0], local[1], kind, width, threshold)
        return out
    longest = int(lengths.max(initial=64))
    size = int(_slots(longest)) + 1
    keys, stamps = np.empty(size, np.uint64), np.zeros(size, np.int32)
    values, bounds = np.empty(int(ends[-1]) + len(ends), np.uint64), np.zeros(len(ends), np.int64)
    prepare(KINDS[kind], width, table(), source, ends, *buffers(), new_state(), keys, stamps, values, bounds)
    out = np.zeros(len(firsts), bool)
    compare(values, bounds, firsts, seconds, threshold, keys, stamps, len(ends), out)
    return out


def verify(
    folder: Path,
    pairs: str,
    low: int,
    high: int,
    order: str,
    spills: list[str],
    starts: list[int],
    kind: ShingleKind,
    width: int,
    threshold: float,
) -> Any:
    """Of the pairs [low, high) of a file (ranks: places in `order`), write those that reach the threshold, as documents."""
    texts = Texts(spills, starts, kind)
    every = np.fromfile(pairs, np.uint64, high - low, offset=low * 8)
    ranks, places = np.unique(np.stack([every >> np.uint64(32), every & np.uint64(0xFFFFFFFF)]), return_inverse=True)
    documents = np.load(order, mmap_mode="r")[ranks]
    located, places = texts.locate(documents), places.reshape(2, -1)
    every = documents[places[0]].astype(np.uint64) << np.uint64(32) | documents[places[1]]
    found = [np.empty(0, np.uint64)]
    for start, end in _chunks(places, located[:, 2]):
        here, local = np.unique(places[:, start:end], return_inverse=True)
        local = local.reshape(2, -1)
        found.append(every[start:end][similar_pairs(*texts.read(located[here]), local[0], local[1], kind, width, threshold, folder)])
    edges = np.concatenate(found)
    edges.tofile(folder / "edges")
    return {"pairs": len(every), "edges": len(edges)}


def _chunks(places: np.ndarray, lengths: np.ndarray) -> Iterator[tuple[int, int]]:
    """Consecutive pairs whose texts come to `CHUNK_BYTES` (and no text of which is large), or one pair."""
    chunk_of = np.full(len(lengths), -1, np.int64)
    sizes, start, held, number = lengths.tolist(), 0, 0, 0
    for i, (a, b) in enumerate(places.T.tolist()):
        size = (sizes[a] if chunk_of[a] != number else 0) + (sizes[b] if chunk_of[b] != number else 0)
        if i > start and held + size > CHUNK_BYTES:
            yield start, i
            start, held, number = i, 0, number + 1
            size = sizes[a] + sizes[b]
        chunk_of[a] = chunk_of[b] = number
        held += size
    if start < places.shape[1]:
        yield start, places.shape[1]


def extremes(
    folder: Path, members: str, low: int, high: int, spills: list[str], starts: list[int], kind: ShingleKind, width: int, threshold: float
) -> Any:
    """Of the clusters in rows [low, high) of `members` ([rows, 2]: cluster, document), the documents that go."""
    texts = Texts(spills, starts, kind)
    rows = np.fromfile(members, np.uint32, 2 * (high - low), offset=8 * low).reshape(-1, 2)
    documents, places = np.unique(rows[:, 1], return_inverse=True)
    located = texts.locate(documents)
    gone: list[int] = []
    kept: list[np.ndarray] = []
    cluster = -1
    for (number, document), place in zip(rows.tolist(), places.tolist(), strict=True):
        if number != cluster:
            cluster, kept = number, []
        found = shingles(kind, texts.read(located[place : place + 1])[0].tobytes().decode(), width)
        if all(jaccard(found, other) < threshold for other in kept):
            kept.append(found)
        else:
            gone.append(document)
    np.array(gone, np.uint32).tofile(folder / "gone")
    return len(gone)
