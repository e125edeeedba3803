"""From shards to candidate pairs, out of core: signatures shuffled by hash, pairs by document.

    sign        shard                -> LSH records (key, document) and content digests, by hash
    exact       partition of digests -> documents whose content came before
    pair        partition of records -> pairs that share a band, by the range of their second document
    merge       range of documents   -> the pairs whose second document is in it, sorted, unique over all partitions

Documents are numbered over all inputs, 32 bits. A pair goes by its second document, of which a bucket makes few pairs,
however large it is; of its first it may make as many as it has documents. How many partitions and ranges there are
changes memory, never a result.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator, Mapping, Sequence, Sized
from pathlib import Path
from typing import Any

import numpy as np

from stages.dedup.minhash import Signer
from stages.lib.data.numba_jit import njit
from stages.lib.data.shuffle import Cut, Layout, Records, Spiller, read
from stages.lib.formats.corpus import Shard, read_shard
from stages.lib.formats.documents import text_buffer

ALL_PAIRS = 16
"""Up to this many documents in a bucket every pair is a candidate; beyond, each with the first and with its neighbour.
"""
KEPT, NEAR, SHORT, EXACT = range(4)
"""What becomes of a document, int8."""
BANDS = Layout((("<u8", 1), ("<u4", 1)))
"""An LSH record: key, document."""
DIGESTS = Layout((("<u8", 2), ("<u4", 1)))
PAIRS = Layout((("<u8", 1),))
"""First document << 32 | second."""
DOCUMENTS = Layout((("<u4", 1),))
FATES = Layout((("i1", 1),))
WHOLE = Cut(1, 1)


def partition_of(keys: np.ndarray, partitions: int) -> np.ndarray:
    """The partition of each key ([records] uint64), by its upper bits; `partitions` is a power of two."""
    if partitions == 1:
        return np.zeros(len(keys), np.uint32)
    return (keys >> np.uint64(65 - partitions.bit_length())).astype(np.uint32)


def sign(
    folder: Path,
    shard: dict[str, Any],
    signer: list[Any],
    least: dict[str, Any],
    bands: dict[str, int],
    digests: dict[str, int],
) -> Any:
    """Sign one shard. Documents of fewer than `characters` of `least` (as its `filter` counts) get no record, those of
    fewer `tokens` or no shingles none for LSH. bands, digests: how these are cut (`Cut`).
    """
    machine, start, size = Signer(*signer), shard["start"], 0
    by_key, by_digest = Cut(**bands), Cut(**digests)
    fates, keys, contents = (
        Spiller(folder, "fates", FATES, WHOLE),
        Spiller(folder, "bands", BANDS, by_key),
        Spiller(folder, "digests", DIGESTS, by_digest),
    )
    short = 0
    for batch in read_shard(Shard(**shard), columns=["text"]):
        source, ends = text_buffer(batch.column("text"))
        number = np.arange(start, start + len(ends) - 1, dtype=np.uint32)
        start, size = start + len(number), size + int(ends[-1] - ends[0])
        band_keys, counts, _ = machine.sign(source, ends)
        long = (
            _lengths(machine, source, ends, counts, least["filter"]) >= least["characters"]
            if least["characters"]
            else np.ones(len(number), bool)
        )
        short += len(long) - int(long.sum())
        fates.add(np.zeros(len(long), np.uint32), np.where(long, KEPT, SHORT).astype(np.int8))
        content = _digests(source, ends)[long]
        contents.add(partition_of(content[:, 0], by_digest.partitions), content, number[long])
        signed = long & (counts[:, 2] >= max(1, least["tokens"]))
        key = band_keys[signed].reshape(-1)
        keys.add(partition_of(key, by_key.partitions), key, np.repeat(number[signed], band_keys.shape[1]))
    if short:
        fates.close()
    keys.close()
    contents.close()
    return {"short": short, "bytes": size}


def _lengths(
    machine: Signer, source: np.ndarray, ends: np.ndarray, counts: np.ndarray, short_filter: str
) -> np.ndarray:
    """Characters of each text that count towards the short filter."""
    if machine.kind != "characters":  # only that kind counts as it goes
        counts = Signer("characters", 1, 1, 1, 1, 1).sign(source, ends)[1]
    return counts[:, 0] if short_filter == "code" else counts[:, 0] - counts[:, 1]


def _digests(source: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Half a SHA-256 of each text: [texts, 2], uint64."""
    view, bounds = memoryview(source.data), ends.tolist()
    digests = b"".join(hashlib.sha256(view[a:b]).digest()[:16] for a, b in itertools.pairwise(bounds))
    return np.frombuffer(digests, np.uint64).reshape(-1, 2)


def exact(folder: Path, source: dict[str, Any], most: int) -> Any:
    """Documents of a partition of the digests whose content an earlier one has. most: records that are held, about:
    what came often is held once.
    """
    gone, firsts = Spiller(folder, "documents", DOCUMENTS, WHOLE), Firsts()
    for some, _ in portions(source, most, firsts):
        again = firsts.add(*([r.columns[n] for r in some] for n in range(2)))
        gone.add(np.zeros(len(again), np.uint32), again)
    return gone.close()


class Firsts:
    """The first document of every digest that came."""

    def __init__(self) -> None:
        self._digests, self._documents = np.empty((0, 2), np.uint64), np.empty(0, np.uint32)

    def __len__(self) -> int:
        return len(self._documents)

    def add(self, digests: Sequence[np.ndarray], documents: Sequence[np.ndarray]) -> np.ndarray:
        """The documents, of more that come in order, whose digest an earlier one has: uint32."""
        both, every = np.concatenate([self._digests, *digests]), np.concatenate([self._documents, *documents])
        order = np.lexsort((both[:, 1], both[:, 0]))  # stable: documents come in order
        both, every = both[order], every[order]
        again = np.zeros(len(order), bool)
        again[1:] = (both[1:] == both[:-1]).all(axis=1)
        self._digests, self._documents = both[~again], every[~again]
        return every[again]


def portions(source: dict[str, Any], most: int, held: Sized) -> Iterator[tuple[list[Records], bool]]:
    """The records of a partition, so many at a time that with what is `held` of those before they are `most`, about, or
    twice what is held; and whether they are the last.
    """
    some: list[Records] = []
    count = 0
    for records in itertools.chain(read(source), [None]):
        if records is not None:
            some.append(records)
            count += len(records)
            if len(held) + count < max(most, 2 * len(held)):
                continue
        yield some, records is None
        some, count = [], 0


@njit
def _bucket_pairs(keys, documents, known, star, last, out, left):
    """Pairs of each run of equal keys, earlier document first, as `a << 32 | b`; how many (with no `out`, only
    counted).

    keys: [records] uint64, sorted; documents: [records] uint32. known: [records] bool: the record is the first or the
    latest document of a bucket whose pairs are made up to that. last: bool: no more records follow; where some do, no
    pair is made of a bucket that may still be a small one. Written: out uint64; left [records] uint8: what to hold
    until more come, 1, and 2 where it is known then.
    """
    count, start, counting = 0, 0, out.shape[0] == 0
    for i in range(1, keys.shape[0] + 1):
        if i < keys.shape[0] and keys[i] == keys[start]:
            continue
        size = i - start
        everyone = size <= ALL_PAIRS and not star and not known[start]
        if size == 1 or (everyone and not last):
            left[start:i] = 1
            start = i
            continue
        done = start + 2 if known[start] else start + 1  # up to here nothing is new
        for one in range(start, i):
            for other in range(max(one + 1, done), i):
                if not (everyone or one == start or (other == one + 1 and not star)):
                    break
                if not counting:
                    out[count] = np.uint64(documents[one]) << np.uint64(32) | np.uint64(documents[other])
                count += 1
        left[start:i] = 0
        left[start], left[i - 1] = 2, 2
        start = i
    return count


class Buckets:
    """The pairs of buckets whose records come bit by bit: of a small bucket all records are held, of a large one the
    first and the latest.
    """

    def __init__(self, star: bool) -> None:
        self._star = star
        self._keys, self._documents, self._known = np.empty(0, np.uint64), np.empty(0, np.uint32), np.empty(0, bool)

    def __len__(self) -> int:
        return len(self._keys)

    def add(self, keys: Sequence[np.ndarray], documents: Sequence[np.ndarray], last: bool = False) -> np.ndarray:
        """The pairs that more records make (some may come twice): uint64. Documents come in order; last: these are the
        last.
        """
        key = np.concatenate([self._keys, *keys])
        order = np.argsort(key, kind="stable")
        key, document = key[order], np.concatenate([self._documents, *documents])[order]
        known = np.concatenate([self._known, np.zeros(len(key) - len(self._known), bool)])[order]
        del order  # a bucket that everything is in makes one partition as large as all together should be
        left = np.zeros(len(key), np.uint8)
        out = np.empty(_bucket_pairs(key, document, known, self._star, last, np.empty(0, np.uint64), left), np.uint64)
        if len(out):
            _bucket_pairs(key, document, known, self._star, last, out, left)
        held = left > 0
        self._keys, self._documents, self._known = key[held], document[held], left[held] == 2
        return out


def pair(folder: Path, source: dict[str, Any], star: bool, most: int, width: int, ranges: Mapping[str, int]) -> Any:
    """Pairs that share a band whose key lies in this partition; `star`: just enough of them to connect each bucket.

    most: records that are looked at together, about; width: documents in a range; ranges: how they are cut (`Cut`).
    """
    spill, buckets = Spiller(folder, "pairs", PAIRS, Cut(**ranges)), Buckets(star)
    for some, last in portions(source, most, buckets):
        pairs = distinct(buckets.add(*([r.columns[n] for r in some] for n in range(2)), last=last))
        spill.add(range_of(pairs, width), pairs)
    return spill.close()


def range_of(pairs: np.ndarray, width: int) -> np.ndarray:
    """The range of documents that the second of each pair is in: uint32."""
    return ((pairs & np.uint64(0xFFFFFFFF)) // np.uint64(width)).astype(np.uint32)


def bucket_pairs(keys: np.ndarray, documents: np.ndarray, star: bool = False) -> np.ndarray:
    """Sorted unique pairs of the documents whose (sorted) keys are equal: uint64, `first << 32 | second`."""
    return distinct(Buckets(star).add([keys], [documents], last=True))


def distinct(values: np.ndarray) -> np.ndarray:
    """The values sorted, each once, as of np.unique, which sorts a copy: these are sorted in their own place."""
    values.sort()
    return values[np.concatenate([[True], values[1:] != values[:-1]])] if len(values) else values


def merge(folder: Path, source: dict[str, Any], most: int) -> Any:
    """The pairs of a range, sorted, each once; how many. most: pairs that are held together, about."""
    spill = Spiller(folder, "pairs", PAIRS, WHOLE)
    held, size, limit = [np.empty(0, np.uint64)], 0, most
    for records in read(source):
        held.append(records.columns[0])
        size += len(records)
        if size >= limit:
            held = [distinct(np.concatenate(held))]
            size, limit = len(held[0]), max(most, 2 * len(held[0]))
    pairs = distinct(np.concatenate(held))
    spill.add(np.zeros(len(pairs), np.uint32), pairs)
    return spill.close()
