"""The real Jaccard similarity of candidate pairs, out of core.

    assign   range of documents -> their pairs by slice: clusters of candidates that fit together
    spill    shard              -> the texts of candidates by slice
    verify   slice              -> the pairs at or above the threshold
    extremes slice of clusters  -> of each, the documents to keep (the-stack-dedup's rule)

A task reads its slice, pairs and texts, and nothing else: no text is looked up among those of all shards. A cluster
larger than a slice has several; a pair is in that of its second document, and the text of its first goes there too.

The pairs of a slice are compared some thousand at a time (`jaccard.py`). They are put into an order in which documents
that have much in common are neighbours (`union_find.splice`), so that nearly every set is made once for all of its
pairs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from stages.core.artifacts import FileEntry
from stages.dedup.jaccard import MOST_HASHES, joined, small_pairs
from stages.dedup.jaccard_on_disk import large_pairs
from stages.dedup.lsh import DOCUMENTS, PAIRS, WHOLE
from stages.dedup.shingles import ShingleKind, SimilarityRule, jaccard, reread, shingles
from stages.dedup.union_find import LARGE, around, find, splice, unite
from stages.lib.data import stored_array
from stages.lib.data.numba_jit import njit
from stages.lib.data.shuffle import Cut, Layout, Records, Spiller, read, read_all
from stages.lib.data.spills import read_files, taken
from stages.lib.formats.corpus import Shard, read_shard
from stages.lib.formats.documents import text_buffer

CHUNK_BYTES = 4 << 20
"""Text of the pairs that are looked at together. Their sets take some eight times that."""
NOWHERE = np.uint32(0xFFFFFFFF)
"""The slice of a document that is no candidate."""
TEXTS = Layout((("<u4", 1),), payload=True)
"""Document, and its text."""
BESIDES = Layout((("<u4", 1), ("<u4", 1)))
"""Document, and a slice besides its own that its text goes to."""
MEMBERS = Layout((("<u4", 2),))
"""First document of a cluster, and one of it."""


def assign(
    folder: Path,
    pairs: list[dict[str, Any]],
    slices: dict[str, Any],
    width: int,
    cut: Mapping[str, int],
    ranges: Mapping[str, int],
) -> Any:
    """Send the pairs of a range to the slices of their second documents. pairs: the range's files; slices: of its
    documents (`stored_array`); width, ranges: how documents are cut into ranges; cut: how slices are.

    Returns how many texts go to slices that may not be their own.
    """
    label, low = stored_array.read(slices), np.uint64(slices["low"])
    spill, besides = Spiller(folder, "pairs", PAIRS, Cut(**cut)), Spiller(folder, "besides", BESIDES, Cut(**ranges))
    for _, records in read_files(map(FileEntry.model_validate, pairs), 0, 1):
        chunk = records.columns[0]
        slice_ = label[(chunk & np.uint64(0xFFFFFFFF)) - low]
        spill.add(slice_ & ~LARGE, chunk)
        large = slice_ >= LARGE
        if large.any():
            firsts = (chunk[large] >> np.uint64(32)).astype(np.uint32)
            wish = np.unique(np.stack([firsts, slice_[large] & ~LARGE]), axis=1)
            besides.add(wish[0] // np.uint32(width), wish[0], wish[1])
    spill.close()
    return {"besides": besides.close()}


def spill(
    folder: Path, shard: dict[str, Any], slices: dict[str, Any], besides: list[dict[str, Any]], cut: Mapping[str, int]
) -> Any:
    """Write the texts of a shard's candidates by slice; how many. slices: of the shard's documents; besides: sources of
    the ranges that they are in (`BESIDES`), where there are any; cut: how slices are cut.
    """
    texts, start, label = Spiller(folder, "texts", TEXTS, Cut(**cut)), shard["start"], stored_array.read(slices)
    home = label & ~LARGE
    extras, where = _wishes(besides, start, home)
    done = 0
    for batch in read_shard(Shard(**shard), columns=["text"]):
        some = slice(done, done + batch.num_rows)
        chosen, done = np.flatnonzero(label[some] != NOWHERE), done + batch.num_rows
        places = home[some][chosen]
        more = slice(*np.searchsorted(extras, (some.start, some.stop)).tolist())
        if more.start < more.stop:
            chosen = np.concatenate([chosen, extras[more] - some.start])
            places = np.concatenate([places, where[more]])
        if len(chosen):
            source, ends = text_buffer(pc.take(batch.column("text"), pa.array(chosen)))
            numbers = (chosen + (start + some.start)).astype(np.uint32)
            texts.add(places, numbers, source=source, ends=ends)
    return texts.close()


def _wishes(besides: list[dict[str, Any]], start: int, home: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which documents of a shard (counted within it, sorted) go to which slices besides their `home`."""
    pairs = [np.empty((2, 0), np.int64)]
    for source in besides:
        for records in read(source):
            document = records.columns[0].astype(np.int64) - start
            here = (document >= 0) & (document < len(home))
            document, place = document[here], records.columns[1][here].astype(np.int64)
            other = home[document] != place
            pairs.append(np.stack([document[other], place[other]]))
    wishes = np.unique(np.concatenate(pairs, axis=1), axis=1)
    return wishes[0], wishes[1]


class SpilledTexts:
    """The texts of a slice by document number: on local disk, mapped, so that memory is what is asked for at a time."""

    def __init__(self, records: Iterable[Records], kind: ShingleKind, folder: Path) -> None:
        self._kind: ShingleKind = kind
        numbers, lengths = [np.empty(0, np.uint32)], [np.empty(0, np.int64)]
        with TemporaryFile(dir=folder) as file:
            for some in records:
                numbers.append(some.columns[0])
                lengths.append(np.diff(some.ends))
                file.write(some.source.data)
            file.flush()
            empty = not file.tell()
            self._source = np.empty(0, np.uint8) if empty else np.memmap(file, np.uint8, "r")
        self._ends = np.concatenate([[0], np.cumsum(np.concatenate(lengths))]).astype(np.int64)
        every = np.concatenate(numbers)
        self._order = np.argsort(every, kind="stable")
        self._numbers = every[self._order]

    def locate(self, documents: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Where each text is, and its bytes: [documents], int64."""
        rows = self._order[np.searchsorted(self._numbers, documents)]
        return rows, self._ends[rows + 1] - self._ends[rows]

    def read(self, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The texts at these places, as bytes and ends; what needs Python's normalization has had it."""
        source, ends = taken(self._source, self._ends, places)
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
    first, second, needed = source[:-1], source[1:], False
    for i in range(second.shape[0]):
        needed |= ((first[i] == 0xC4) & (second[i] == 0xB0)) | ((first[i] == 0xCE) & (second[i] == 0xA3))
    return needed


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


def verify(folder: Path, pairs: dict[str, Any], texts: dict[str, Any], rule: dict[str, Any]) -> Any:
    """Of the pairs of a slice, write those that reach the threshold (`PAIRS`). pairs, texts: sources of the slice;
    rule: arguments of `SimilarityRule`.
    """
    similarity = SimilarityRule(**rule)
    every = np.sort(read_all(pairs, PAIRS).columns[0])
    documents, places = _as_neighbours(every)
    slice_ = SpilledTexts(read(texts), similarity.kind, folder)
    located, lengths = slice_.locate(documents)
    parent, members = np.arange(len(documents)), np.empty(len(documents), np.int64)
    local, chosen = np.full((2, len(documents)), -1), np.empty((2, len(every)), np.int64)
    values = np.empty(max(CHUNK_BYTES, 2 * MOST_HASHES) * 9 // 8, np.uint64)
    edges, start = Spiller(folder, "edges", PAIRS, WHOLE), 0
    while start < len(every):
        size, count, start = next_pairs(places, lengths, start, CHUNK_BYTES, parent, local, members, chosen)
        here, (firsts, seconds) = members[:size], chosen[:, :count]
        reached = similar_pairs(*slice_.read(located[here]), firsts, seconds, similarity, values, folder)
        one, other = here[firsts[reached]], here[seconds[reached]]
        unite(parent, one, other)
        similar = documents[one].astype(np.uint64) << np.uint64(32) | documents[other]
        edges.add(np.zeros(len(similar), np.uint32), similar)
    return {"pairs": len(every), "edges": edges.close()}


def _as_neighbours(pairs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The documents of sorted pairs, those that have much in common close together; and the pairs as places among them
    ([2, pairs], int64), sorted.
    """
    documents, places = np.unique(
        np.stack([pairs >> np.uint64(32), pairs & np.uint64(0xFFFFFFFF)]), return_inverse=True
    )
    firsts, seconds = places.reshape(2, -1).astype(np.uint32)
    parent, following = np.arange(len(documents), dtype=np.uint32), np.arange(len(documents), dtype=np.uint32)
    splice(parent, following, firsts, seconds)
    order = around(parent, following)
    ranks = np.empty(len(documents), np.uint64)
    ranks[order] = np.arange(len(order), dtype=np.uint64)
    firsts, seconds = ranks[firsts], ranks[seconds]
    ordered = np.sort(np.minimum(firsts, seconds) << np.uint64(32) | np.maximum(firsts, seconds))
    return documents[order].astype(np.uint32), np.stack(
        [ordered >> np.uint64(32), ordered & np.uint64(0xFFFFFFFF)]
    ).astype(np.int64)


@njit
def next_pairs(places, lengths, start, most, parent, local, members, chosen):
    """From `start` on the next pairs that are not connected yet, of texts that come to `most` bytes (or one pair): how
    many documents, how many pairs, and where the next begin. `members` gets the documents, `chosen` the pairs as places
    among them.

    places: [2, pairs] int64, documents; lengths: [documents] int64, bytes; most: bytes; parent: see `union_find.find`;
    local: [2, documents] int64, worked in. Written: members [documents] int64; chosen [2, pairs] int64.
    """
    size = count = held = 0
    for i in range(start, places.shape[1]):
        a, b = places[0, i], places[1, i]
        if find(parent, a) == find(parent, b):
            continue
        more = (lengths[a] if local[0, a] != start else 0) + (lengths[b] if local[0, b] != start else 0)
        if count and held + more > most:
            return size, count, i
        for d in (a, b):
            if local[0, d] != start:
                local[0, d], local[1, d], members[size] = start, size, d
                size += 1
        chosen[0, count], chosen[1, count] = local[1, a], local[1, b]
        count, held = count + 1, held + more
    return size, count, places.shape[1]


def extremes(folder: Path, members: dict[str, Any], texts: dict[str, Any], rule: dict[str, Any]) -> Any:
    """Of the clusters of a slice, write the documents that go (`DOCUMENTS`). members: source of the rows of clusters,
    in order (`MEMBERS`); texts: source of theirs; rule: arguments of `SimilarityRule`.
    """
    similarity = SimilarityRule(**rule)
    slice_ = SpilledTexts(read(texts), similarity.kind, folder)
    rows = read_all(members, MEMBERS).columns[0]
    located, _ = slice_.locate(rows[:, 1])
    gone: list[int] = []
    kept: list[np.ndarray] = []
    cluster = -1
    for (number, document), place in zip(rows.tolist(), located.tolist(), strict=True):
        if number != cluster:
            cluster, kept = number, []
        text = slice_.read(np.array([place]))[0].tobytes().decode()
        hashes = shingles(similarity.kind, text, similarity.width)
        if all(jaccard(hashes, other) < similarity.threshold for other in kept):
            kept.append(hashes)
        else:
            gone.append(document)
    spill = Spiller(folder, "gone", DOCUMENTS, WHOLE)
    spill.add(np.zeros(len(gone), np.uint32), np.array(gone, np.uint32))
    return spill.close()
