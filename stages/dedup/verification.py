"""The real Jaccard similarity of candidate pairs, out of core.

    spill    shard           -> the texts of the documents that are candidates
    verify   slice of pairs  -> the pairs at or above the threshold
    extremes clusters        -> of each, the documents to keep (the-stack-dedup's rule)

The pairs of a slice are compared some thousand at a time (`jaccard.py`). They come in an order in which documents that
have much in common are neighbours (`clusters.splice`), so that nearly every set is made once for all of its pairs.
"""

from __future__ import annotations

import os
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from stages.dedup.jaccard import MOST_HASHES, joined, small_pairs
from stages.dedup.jaccard_on_disk import large_pairs
from stages.dedup.shingles import ShingleKind, SimilarityRule, jaccard, reread, shingles
from stages.dedup.union_find import find, unite
from stages.lib.data.numba_jit import njit
from stages.lib.formats.corpus import Shard, read_shard
from stages.lib.formats.documents import text_buffer

CHUNK_BYTES = 4 << 20
"""Text of the pairs that are looked at together. Their sets take some eight times that."""


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


class SpilledTexts:
    """The spilled texts by document number. Reads from disk, and maps only the index: memory is what is asked for at a
    time.
    """

    def __init__(self, folders: list[str], starts: list[int], kind: ShingleKind) -> None:
        self._folders, self._starts = [Path(f) for f in folders], np.array(starts, np.int64)
        self._kind: ShingleKind = kind

    def locate(self, documents: np.ndarray) -> np.ndarray:
        """Shard, offset and length of each text: [documents, 3], int64."""
        found = np.empty((len(documents), 3), np.int64)
        found[:, 0] = np.searchsorted(self._starts, documents, side="right") - 1
        for shard in np.unique(found[:, 0]):
            mine = found[:, 0] == shard
            numbers, ends = (
                np.load(self._folders[shard] / f"{name}.npy", mmap_mode="r") for name in ("numbers", "ends")
            )
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
                for low, high, offset in zip(
                    ends[rows].tolist(), ends[rows + 1].tolist(), places[rows, 1].tolist(), strict=True
                ):
                    while low < high:
                        done = os.preadv(stream.fileno(), [view[low:high]], offset)
                        low, offset = low + done, offset + done
        if not _needs_python(source):
            return source, ends
        pieces = (source[low:high] for low, high in pairwise(ends.tolist()))
        return joined(
            [
                reread(self._kind, piece.tobytes().decode()) if _needs_python(piece) else piece.tobytes()
                for piece in pieces
            ]
        )


@njit
def _needs_python(source):
    """Whether U+0130 or U+03A3 is anywhere in the text (`normalization`)."""
    first, second, found = source[:-1], source[1:], False
    for i in range(second.shape[0]):
        found |= ((first[i] == 0xC4) & (second[i] == 0xB0)) | ((first[i] == 0xCE) & (second[i] == 0xA3))
    return found


def similar_pairs(
    source: np.ndarray,
    ends: np.ndarray,
    firsts: np.ndarray,
    seconds: np.ndarray,
    rule: SimilarityRule,
    values: np.ndarray | None = None,
    folder: Path | None = None,
) -> np.ndarray:
    """Which pairs of texts (by place) reach the threshold: [pairs], bool. Pairs that earlier ones of the answer connect
    are left out. `values`: see `small_pairs`; `folder`: for what does not fit into memory.
    """
    lengths = np.diff(ends)
    large = (lengths[firsts] > MOST_HASHES) | (lengths[seconds] > MOST_HASHES)
    if not large.any():
        return small_pairs(source, ends, firsts, seconds, rule, values)
    out = np.zeros(len(firsts), bool)
    out[large] = large_pairs(source, ends, firsts[large], seconds[large], rule, folder)
    if not large.all():
        here, local = np.unique(np.stack([firsts[~large], seconds[~large]]), return_inverse=True)
        small, (one, other) = joined([source[ends[d] : ends[d + 1]].tobytes() for d in here]), local.reshape(2, -1)
        out[~large] = small_pairs(*small, one, other, rule, values)
    return out


def verify(
    folder: Path,
    pairs: str,
    low: int,
    high: int,
    order: str,
    spilled: dict[str, Any],
    rule: dict[str, Any],
) -> Any:
    """Of the pairs [low, high) of a file (ranks: places in `order`), write those that reach the threshold, as
    documents (uint64, first << 32 | second). spilled: arguments of `SpilledTexts`; rule: those of `SimilarityRule`.
    """
    similarity = SimilarityRule(**rule)
    texts = SpilledTexts(**spilled, kind=similarity.kind)
    every = np.fromfile(pairs, np.uint64, high - low, offset=low * 8)
    ranks, places = np.unique(np.stack([every >> np.uint64(32), every & np.uint64(0xFFFFFFFF)]), return_inverse=True)
    documents = np.load(order, mmap_mode="r")[ranks]
    located, places = texts.locate(documents), places.reshape(2, -1)
    parent, members = np.arange(len(ranks)), np.empty(len(ranks), np.int64)
    local, chosen = np.full((2, len(ranks)), -1), np.empty((2, len(every)), np.int64)
    values = np.empty(max(CHUNK_BYTES, 2 * MOST_HASHES) * 9 // 8, np.uint64)
    found, start = [np.empty(0, np.uint64)], 0
    while start < len(every):
        size, made, start = next_pairs(places, located[:, 2], start, CHUNK_BYTES, parent, local, members, chosen)
        here, (firsts, seconds) = members[:size], chosen[:, :made]
        reached = similar_pairs(*texts.read(located[here]), firsts, seconds, similarity, values, folder)
        one, other = here[firsts[reached]], here[seconds[reached]]
        unite(parent, one, other)
        found.append(documents[one].astype(np.uint64) << np.uint64(32) | documents[other])
    edges = np.concatenate(found)
    edges.tofile(folder / "edges")
    return {"pairs": len(every), "edges": len(edges)}


@njit
def next_pairs(places, lengths, start, most, parent, local, members, chosen):
    """From `start` on the next pairs that are not connected yet, of texts that come to `most` bytes (or one pair): how
    many documents, how many pairs, and where the next begin. `members` gets the documents, `chosen` the pairs as places
    among them.

    places: [2, pairs] int64, documents; lengths: [documents] int64, bytes; most: bytes; parent: see `union_find.find`;
    local: [2, documents] int64, worked in. Written: members [documents] int64; chosen [2, pairs] int64.
    """
    size = made = held = 0
    for i in range(start, places.shape[1]):
        a, b = places[0, i], places[1, i]
        if find(parent, a) == find(parent, b):
            continue
        more = (lengths[a] if local[0, a] != start else 0) + (lengths[b] if local[0, b] != start else 0)
        if made and held + more > most:
            return size, made, i
        for d in (a, b):
            if local[0, d] != start:
                local[0, d], local[1, d], members[size] = start, size, d
                size += 1
        chosen[0, made], chosen[1, made] = local[1, a], local[1, b]
        made, held = made + 1, held + more
    return size, made, places.shape[1]


def extremes(
    folder: Path,
    members: str,
    low: int,
    high: int,
    spilled: dict[str, Any],
    rule: dict[str, Any],
) -> Any:
    """Of the clusters in rows [low, high) of `members` ([rows, 2]: cluster, document), the documents that go.

    spilled: arguments of `SpilledTexts`; rule: those of `SimilarityRule`.
    """
    similarity = SimilarityRule(**rule)
    texts = SpilledTexts(**spilled, kind=similarity.kind)
    rows = np.fromfile(members, np.uint32, 2 * (high - low), offset=8 * low).reshape(-1, 2)
    documents, places = np.unique(rows[:, 1], return_inverse=True)
    located = texts.locate(documents)
    gone: list[int] = []
    kept: list[np.ndarray] = []
    cluster = -1
    for (number, document), place in zip(rows.tolist(), places.tolist(), strict=True):
        if number != cluster:
            cluster, kept = number, []
        text = texts.read(located[place : place + 1])[0].tobytes().decode()
        hashes = shingles(similarity.kind, text, similarity.width)
        if all(jaccard(hashes, other) < similarity.threshold for other in kept):
            kept.append(hashes)
        else:
            gone.append(document)
    np.array(gone, np.uint32).tofile(folder / "gone")
    return len(gone)
