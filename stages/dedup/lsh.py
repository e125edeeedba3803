"""From shards to candidate pairs, out of core: signatures to runs partitioned by hash, each partition sorted by itself.

    sign        shard      -> LSH keys and content digests, grouped by partition (`*.keys`, `*.docs`)
    exact       partition  -> documents whose content came before
    pair        partition  -> sorted unique pairs that share a band
    rank        partition  -> the same pairs, of ranks instead of numbers: places in an order by candidate cluster
    merge       range      -> the pairs whose first rank lies in the range, sorted, unique over all partitions

Documents are numbered over all inputs, 32 bits. By rank those that have much in common are neighbours, so that
verification makes nearly every set only once. How many partitions and ranges there are changes memory, never a result.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from stages.dedup.minhash import Signer
from stages.lib.data.numba_jit import njit
from stages.lib.formats.corpus import Shard, read_shard
from stages.lib.formats.documents import text_buffer

ALL_PAIRS = 16
"""Up to this many documents in a bucket every pair is a candidate; beyond, each with the first and with its neighbour.
"""
RANKED_TOGETHER = 1 << 20
"""Pairs that are looked up at the same time: what that takes besides them is small."""
KEPT, NEAR, SHORT, EXACT = range(4)
"""What becomes of a document, int8."""


@njit
def group(keys, partitions, order, offsets):
    """A stable counting sort of `keys` by their upper bits: the order, and where each of `partitions` begins.

    keys: [records] uint64; partitions: a power of two. Written: order [records] int64; offsets [partitions + 1] int64.
    """
    shift = np.uint64(64)
    while (1 << (64 - np.int64(shift))) < partitions:
        shift -= np.uint64(1)
    count = np.zeros(partitions + 1, np.int64)
    for key in keys:
        count[(np.int64(key >> shift) if shift < np.uint64(64) else 0) + 1] += 1
    for p in range(partitions):
        count[p + 1] += count[p]
    offsets[:] = count
    for i in range(keys.shape[0]):
        p = np.int64(keys[i] >> shift) if shift < np.uint64(64) else 0
        order[count[p]] = i
        count[p] += 1


def write_run(folder: Path, name: str, keys: np.ndarray, documents: np.ndarray, partitions: int) -> None:
    """Write records grouped by partition (by the first column of `keys`), and where each partition begins."""
    first = np.ascontiguousarray(keys[:, 0])
    order, offsets = np.empty(len(keys), np.int64), np.empty(partitions + 1, np.int64)
    group(first, partitions, order, offsets)
    keys[order].tofile(folder / f"{name}.keys")
    documents[order].tofile(folder / f"{name}.docs")
    offsets.tofile(folder / f"{name}.starts")


def read_partition(runs: Sequence[str], name: str, partition: int, columns: int) -> tuple[np.ndarray, np.ndarray]:
    """(keys [records, columns], documents [records]) of one partition of every run, in run order."""
    keys, documents = [], []
    for path in map(Path, runs):
        low, high = np.fromfile(path / f"{name}.starts", np.int64, 2, offset=8 * partition).tolist()
        if high > low:
            keys.append(np.fromfile(path / f"{name}.keys", np.uint64, (high - low) * columns, offset=low * columns * 8))
            documents.append(np.fromfile(path / f"{name}.docs", np.uint32, high - low, offset=low * 4))
    if not keys:
        return np.empty((0, columns), np.uint64), np.empty(0, np.uint32)
    return np.concatenate(keys).reshape(-1, columns), np.concatenate(documents)


def sign(
    folder: Path,
    shard: dict[str, Any],
    signer: list[Any],
    shortest: int,
    short_filter: str,
    min_tokens: int,
    partitions: int,
) -> Any:
    """Sign one shard. Short documents get no record, those of too few or no shingles none for LSH."""
    machine = Signer(*signer)
    fates, keys, key_docs, digests, digest_docs = [], [], [], [], []
    start = shard["start"]
    for batch in read_shard(Shard(**shard), columns=["text"]):
        source, ends = text_buffer(batch.column("text"))
        number = np.arange(start, start + len(ends) - 1, dtype=np.uint32)
        start += len(number)
        found, counts, _ = machine.sign(source, ends)
        long = (
            _lengths(machine, source, ends, counts, short_filter) >= shortest
            if shortest
            else np.ones(len(number), bool)
        )
        fates.append(np.where(long, KEPT, SHORT).astype(np.int8))
        digests.append(_digests(source, ends)[long])
        digest_docs.append(number[long])
        signed = long & (counts[:, 2] >= max(1, min_tokens))
        keys.append(found[signed].reshape(-1, 1))
        key_docs.append(np.repeat(number[signed], found.shape[1]))
    np.concatenate(fates).tofile(folder / "fates")
    write_run(folder, "bands", np.concatenate(keys), np.concatenate(key_docs), partitions)
    write_run(folder, "digests", np.concatenate(digests), np.concatenate(digest_docs), partitions)
    return {"partitions": partitions}


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
    found = b"".join(hashlib.sha256(view[a:b]).digest()[:16] for a, b in itertools.pairwise(bounds))
    return np.frombuffer(found, np.uint64).reshape(-1, 2)


def exact(folder: Path, partition: int, runs: list[str]) -> Any:
    """Documents of this partition of the digests whose content an earlier one has."""
    digests, documents = read_partition(runs, "digests", partition, 2)
    order = np.lexsort((documents, digests[:, 1], digests[:, 0]))
    digests = digests[order]
    again = np.zeros(len(order), bool)
    again[1:] = (digests[1:] == digests[:-1]).all(axis=1)
    np.sort(documents[order][again]).tofile(folder / "documents")
    return int(again.sum())


@njit
def _bucket_pairs(keys, documents, star, out):
    """Pairs of each run of equal keys, earlier document first, as `a << 32 | b`; how many (with no `out`, only
    counted).
    """
    made, start, counting = 0, 0, out.shape[0] == 0
    for i in range(1, keys.shape[0] + 1):
        if i < keys.shape[0] and keys[i] == keys[start]:
            continue
        size = i - start
        everyone = size <= ALL_PAIRS and not star
        for one in range(start, i):
            for other in range(one + 1, i):
                if not (everyone or one == start or (other == one + 1 and not star)):
                    break
                if not counting:
                    out[made] = np.uint64(documents[one]) << np.uint64(32) | np.uint64(documents[other])
                made += 1
        start = i
    return made


def pair(folder: Path, partition: int, runs: list[str], fates: str, star: bool) -> Any:
    """Pairs that share a band whose key lies in this partition; `star`: just enough of them to connect each bucket."""
    keys, documents = read_partition(runs, "bands", partition, 1)
    kept = np.load(fates, mmap_mode="r")[documents] == KEPT
    keys, documents = keys[kept, 0], documents[kept]
    order = np.argsort(keys, kind="stable")
    keys, documents = keys[order], documents[order]
    del kept, order  # a bucket that everything is in makes one partition as large as all together should be
    found = bucket_pairs(keys, documents, star)
    found.tofile(folder / "pairs")
    return len(found)


def bucket_pairs(keys: np.ndarray, documents: np.ndarray, star: bool = False) -> np.ndarray:
    """Sorted unique pairs of the documents whose (sorted) keys are equal: uint64, `first << 32 | second`."""
    if not len(keys):
        return np.empty(0, np.uint64)
    out = np.empty(_bucket_pairs(keys, documents, star, np.empty(0, np.uint64)), np.uint64)
    if len(out):
        _bucket_pairs(keys, documents, star, out)
    return distinct(out)


def distinct(values: np.ndarray) -> np.ndarray:
    """The values sorted, each once, as of np.unique, which sorts a copy: these are sorted in their own place."""
    values.sort()
    return values[np.concatenate([[True], values[1:] != values[:-1]])] if len(values) else values


def rank(folder: Path, pairs: str, ranks: str) -> Any:
    """The pairs of a file with each document's rank in its place, sorted."""
    places, found = np.load(ranks, mmap_mode="r"), np.fromfile(pairs, np.uint64)
    for start in range(0, len(found), RANKED_TOGETHER):
        part = found[start : start + RANKED_TOGETHER]
        firsts, seconds = places[part >> np.uint64(32)], places[part & np.uint64(0xFFFFFFFF)]
        part[:] = np.minimum(firsts, seconds).astype(np.uint64) << np.uint64(32) | np.maximum(firsts, seconds)
    found.sort()
    found.tofile(folder / "pairs")
    return len(found)


def ranges(files: Sequence[Path], most: int) -> list[int]:
    """Boundaries that cut the pairs of all files into ranges of about `most` pairs, those that files share included."""
    mapped = [np.memmap(path, np.uint64, "r") for path in files if path.stat().st_size]
    total = sum(map(len, mapped))
    count = -(-total // most) if total else 0
    if count <= 1:
        return [0, 1 << 64] if count else []
    step = max(1, total // (count * 64))
    sample = np.sort(np.concatenate([m[::step] for m in mapped]))
    inner = {int(sample[len(sample) * n // count]) for n in range(1, count)} - {0}
    return [0, *sorted(inner), 1 << 64]


def merge(folder: Path, low: int, high: int, files: list[str]) -> Any:
    """All pairs in [low, high), sorted, each once."""
    parts = []
    for path in map(Path, files):
        if path.stat().st_size:
            mapped = np.memmap(path, np.uint64, "r")
            first = int(np.searchsorted(mapped, np.uint64(low)))
            last = len(mapped) if high >> 64 else int(np.searchsorted(mapped, np.uint64(high)))
            parts.append(np.asarray(mapped[first:last]))
    found = distinct(np.concatenate(parts)) if parts else np.empty(0, np.uint64)
    found.tofile(folder / "pairs")
    return len(found)
