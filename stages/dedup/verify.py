"""The real Jaccard similarity of candidate pairs, out of core.

    spill    shard           -> the texts of the documents that are candidates
    verify   slice of pairs  -> the pairs at or above the threshold
    extremes clusters        -> of each, the documents to keep (the-stack-dedup's rule)

The sets are hash tables that are stamped anew instead of being cleared: one pass over a text counts its set and what it shares
with the other. A pair whose documents verified pairs connect already is not looked at: the clusters are the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from stages.compiled import compiled, mix
from stages.corpus import Shard, read_shard
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
from stages.documents import text_buffer

CHUNK_BYTES = 16 << 20
"""Text of the pairs that are looked at together."""
MOST_HASHES = 1 << 21
"""Hashes in a table, on average. A larger set is compared in several passes, each over the hashes of one range."""


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
    """The spilled texts by document number. Reads from disk, and maps only the index: memory is the caller's chunk."""

    def __init__(self, folders: list[str], starts: list[int], kind: ShingleKind) -> None:
        self._folders, self._starts = [Path(f) for f in folders], np.array(starts, np.int64)
        self._kind: ShingleKind = kind
        self._index: dict[int, tuple[np.ndarray, np.ndarray, Any]] = {}

    def _open(self, shard: int) -> tuple[np.ndarray, np.ndarray, Any]:
        if shard not in self._index:
            folder = self._folders[shard]
            index = [np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("numbers", "ends")]
            if len(self._index) >= 64:
                self._index.pop(next(iter(self._index)))[2].close()
            self._index[shard] = (index[0], index[1], open(folder / "texts", "rb", buffering=0))  # noqa: SIM115
        return self._index[shard]

    def _place(self, document: int) -> tuple[Any, int, int]:
        """Stream, offset and length of a document's text."""
        shard = int(np.searchsorted(self._starts, document, side="right")) - 1
        numbers, ends, stream = self._open(shard)
        row = int(np.searchsorted(numbers, np.uint32(document)))
        return stream, int(ends[row]), int(ends[row + 1] - ends[row])

    def length(self, document: int) -> int:
        """Bytes of a text."""
        return self._place(document)[2]

    def read(self, document: int) -> bytes:
        """A text, ready for the compiled path: what needs Python's normalization has had it."""
        stream, offset, length = self._place(document)
        stream.seek(offset)
        text = stream.read(length)
        while len(text) < length:
            text += stream.read(length - len(text))
        if b"\xc4\xb0" in text or b"\xce\xa3" in text:  # U+0130, U+03A3
            return reread(self._kind, text.decode())
        return text


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
def _count(kind, width, mapping, source, start, end, codes, words, hashes, state, keys, stamps, stamp, mask, shift, turn, others, marks, mark):
    """Put a set into the table `keys` (those hashes whose upper bits are `turn`): its size, and how many `others` has too."""
    size, common = 0, 0
    begin(state, start)
    while state[DONE] == 0:
        made = next_hashes(kind, width, mapping, source, end, state, codes, words, hashes)
        for i in range(made):
            value = mix(hashes[i])
            if shift < np.uint64(64) and np.int64(value >> shift) != turn:
                continue
            place = np.int64(value) & mask
            while stamps[place] == stamp and keys[place] != value:
                place = (place + 1) & mask
            if stamps[place] == stamp:
                continue
            stamps[place], keys[place] = stamp, value
            size += 1
            if mark:
                place = np.int64(value) & mask
                while marks[place] == mark and others[place] != value:
                    place = (place + 1) & mask
                common += int(marks[place] == mark)
    return size, common


@compiled
def _similar(kind, width, mapping, source, ends, firsts, seconds, threshold, codes, words, hashes, state, keys, stamps, others, marks, stamp, out):
    """Which of the pairs of texts reach the threshold, into `out`; returns the last stamp used."""
    parent = np.arange(ends.shape[0] - 1)
    held, held_mask, held_size, held_stamp = -1, 0, 0, 0
    for i in range(firsts.shape[0]):
        a, b = firsts[i], seconds[i]
        out[i] = False
        if find(parent, a) == find(parent, b):
            continue
        most = max(ends[a + 1] - ends[a], ends[b + 1] - ends[b], 64)
        shift, turns = np.uint64(64), 1
        while most > MOST_HASHES * turns:
            turns *= 2
            shift -= np.uint64(1)
        mask = 128  # slots: twice what is in the table at most; a turn of many is never far over the average
        while mask < 2 * min(most, MOST_HASHES):
            mask *= 2
        mask -= 1
        first_size, second_size, common = 0, 0, 0
        for turn in range(turns):
            if turns > 1 or held != a or held_mask != mask:
                stamp += 1
                held, held_mask = a, mask
                held_size, _ = _count(kind, width, mapping, source, ends[a], ends[a + 1], codes, words, hashes, state, others, marks, stamp, mask, shift, turn, others, marks, 0)
                held_stamp = stamp
            stamp += 1
            size, shared = _count(kind, width, mapping, source, ends[b], ends[b + 1], codes, words, hashes, state, keys, stamps, stamp, mask, shift, turn, others, marks, held_stamp)
            first_size, second_size, common = first_size + held_size, second_size + size, common + shared
        if turns > 1:
            held = -1
        together = first_size + second_size - common
        if together == 0 or common / together >= threshold:
            out[i] = True
            one, other = find(parent, a), find(parent, b)
            parent[max(one, other)] = min(one, other)
    return stamp


def similar_pairs(texts: list[bytes], firsts: np.ndarray, seconds: np.ndarray, kind: ShingleKind, width: int, threshold: float) -> np.ndarray:
    """Which pairs of texts (by place in the list, sorted) reach the threshold: [pairs], bool. Pairs that earlier ones of the
    answer connect are left out."""
    source = np.frombuffer(b"".join(texts), np.uint8)
    ends = np.concatenate([[0], np.cumsum([len(t) for t in texts])]).astype(np.int64)
    size = 128
    while size < 2 * min(max(map(len, texts), default=1), MOST_HASHES):
        size *= 2
    tables = [np.empty(size, np.uint64), np.zeros(size, np.int32), np.empty(size, np.uint64), np.zeros(size, np.int32)]
    out = np.zeros(len(firsts), bool)
    _similar(KINDS[kind], width, table(), source, ends, firsts, seconds, threshold, *buffers(), new_state(), *tables, 0, out)
    return out


def verify(
    folder: Path, pairs: str, low: int, high: int, spills: list[str], starts: list[int], kind: ShingleKind, width: int, threshold: float
) -> Any:
    """Of the pairs [low, high) of a file, write those that reach the threshold."""
    texts = Texts(spills, starts, kind)
    every = np.fromfile(pairs, np.uint64, high - low, offset=low * 8)
    found = [np.empty(0, np.uint64)]
    for chunk in _chunks(every, texts):
        ends = np.stack([chunk >> np.uint64(32), chunk & np.uint64(0xFFFFFFFF)])
        documents, places = np.unique(ends, return_inverse=True)
        places = places.reshape(2, -1)
        content = [texts.read(int(d)) for d in documents]
        found.append(chunk[similar_pairs(content, places[0], places[1], kind, width, threshold)])
    edges = np.concatenate(found)
    edges.tofile(folder / "edges")
    return {"pairs": len(every), "edges": len(edges)}


def _chunks(pairs: np.ndarray, texts: Texts) -> Iterator[np.ndarray]:
    """Consecutive pairs whose texts come to `CHUNK_BYTES`, or one pair."""
    start, held = 0, 0
    seen: set[int] = set()
    for i, value in enumerate(pairs.tolist()):
        new = {value >> 32, value & 0xFFFFFFFF} - seen
        size = sum(map(texts.length, new))
        if i > start and held + size > CHUNK_BYTES:
            yield pairs[start:i]
            start, held, seen, new = i, 0, set(), {value >> 32, value & 0xFFFFFFFF}
            size = sum(map(texts.length, new))
        seen |= new
        held += size
    if start < len(pairs):
        yield pairs[start:]


def extremes(
    folder: Path, members: str, low: int, high: int, spills: list[str], starts: list[int], kind: ShingleKind, width: int, threshold: float
) -> Any:
    """Of the clusters in rows [low, high) of `members` ([rows, 2]: cluster, document), the documents that go."""
    texts = Texts(spills, starts, kind)
    rows = np.fromfile(members, np.uint32, 2 * (high - low), offset=8 * low).reshape(-1, 2)
    gone: list[int] = []
    kept: list[np.ndarray] = []
    cluster = -1
    for number, document in rows.tolist():
        if number != cluster:
            cluster, kept = number, []
        found = shingles(kind, texts.read(document).decode(), width)
        if all(jaccard(found, other) < threshold for other in kept):
            kept.append(found)
        else:
            gone.append(document)
    np.array(gone, np.uint32).tofile(folder / "gone")
    return len(gone)
