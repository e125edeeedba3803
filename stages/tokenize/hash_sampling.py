"""Which documents a node takes, and in which order: by a hash of their id, so that every prefix is a uniform sample of
the source.

A document's place is a number in [0, 2^64) that its id decides. `draw = [from, to)` is a range of places: nodes with
disjoint ranges share no document. Of its range a node takes the documents with the lowest places until it has the
tokens that it wants. Files order
nothing: a source sorted by language gives each language its share, whatever the budget.

Encoding leaves beside the ids of a shard a histogram of tokens over places, and the place and the length of each
document (12 bytes). `cut` finds the last place that is taken: one step of tasks adds the histograms up, another looks
at the documents of one bin, each task for FILES shards, so that nobody reads all documents but once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from stages.core.artifacts import FileEntry
from stages.core.reading import open_file
from stages.lib.data.workers import Pool

END = 1 << 64
BINS = 4096
"""Of a histogram: at 10^9 documents the bin that is looked into holds 240,000 of them, 3 MB."""
ROW = np.dtype([("place", "<u8"), ("tokens", "<u4")])
ALL = END - 1
"""The last place: a whole pass."""
FILES = 128
"""Shards whose documents one task looks at."""


def places(ids: Iterable[str]) -> np.ndarray:
    """The place of each document: [n], uint64. Bytes 8 to 16 of the SHA-256 of its id; the first 8 decide what is held
    out.
    """
    digests = b"".join(hashlib.sha256(id.encode("utf-8", "surrogatepass")).digest()[8:16] for id in ids)
    return np.frombuffer(digests, ">u8").astype(np.uint64)


def bounds(draw: Sequence[float]) -> tuple[int, int]:
    """First place of a range of shares, and the last: [0.25, 0.5) -> (2^62, 2^63 - 1)."""
    return int(draw[0] * END), min(int(draw[1] * END), END) - 1


def drawn(where: np.ndarray, draw: Sequence[float]) -> np.ndarray:
    """Which places lie in a range: [n], bool."""
    first, last = bounds(draw)
    return (where >= np.uint64(first)) & (where <= np.uint64(last)) if last >= first else np.zeros(len(where), bool)


def bins(where: np.ndarray) -> np.ndarray:
    """The bin of each place: [n]."""
    return (where >> np.uint64(64 - BINS.bit_length() + 1)).astype(np.int64)


def write_rows(path: Path, where: np.ndarray, tokens: np.ndarray) -> None:
    """Leave the documents of a shard, in its order, at `path`, after their histogram."""
    rows = np.empty(len(where), ROW)
    rows["place"], rows["tokens"] = where, tokens
    with open(path, "wb") as stream:
        stream.write(np.bincount(bins(where), weights=tokens, minlength=BINS).astype(np.int64).data)
        stream.write(rows.data)


def read_rows(documents: FileEntry) -> np.ndarray:
    """The documents of a shard: [n], ROW."""
    with open_file(documents) as stream:
        stream.seek(BINS * 8)
        return np.frombuffer(stream.read(), ROW)


def _histogram(stream: BinaryIO) -> np.ndarray:
    return np.frombuffer(stream.read(BINS * 8), np.int64)


@dataclass(frozen=True)
class Cut:
    """Where a sample ends. taken: of each file, the ids of its documents up to the place `last`."""

    last: int
    taken: tuple[int, ...]


def add_up(folder: Path, files: Sequence[Mapping[str, Any]]) -> None:
    """A task: the histograms of some shards together, in `histogram`."""
    total = np.zeros(BINS, np.int64)
    for file in files:
        with open_file(FileEntry.model_validate(file)) as stream:
            total += _histogram(stream)
    total.tofile(folder / "histogram")


def look_into(folder: Path, files: Sequence[Mapping[str, Any]], bin: int) -> Any:
    """A task: the documents of one bin of some shards, in `rows`. Returns how many each shard has there, and the tokens
    that it has in the bins before.
    """
    counts, before = [], []
    with open(folder / "rows", "wb") as out:
        for file in files:
            rows = read_rows(FileEntry.model_validate(file))
            of = bins(rows["place"])
            mine = rows[of == bin]
            out.write(mine.data)
            counts.append(len(mine))
            before.append(int(rows["tokens"][of < bin].sum(dtype=np.int64)))
    return {"counts": counts, "before": before}


def cut(pool: Pool, name: str, documents: Sequence[FileEntry], tokens: int) -> Cut | None:
    """Where the sample ends when the documents with the lowest places give `tokens` ids or, by less than the last one
    has, more. None when there are no more than that. name: of the steps.
    """
    groups = [[e.value() for e in documents[n : n + FILES]] for n in range(0, len(documents), FILES)]
    sums = pool.map(f"{name}-histograms", add_up, [{"files": group} for group in groups])
    total = np.zeros(BINS, np.int64)
    for result in sums:
        with open_file(result.file("histogram")) as stream:
            total += _histogram(stream)
    reached = np.cumsum(total)
    if tokens >= int(reached[-1]):
        return None
    bin = int(np.searchsorted(reached, tokens))
    missing = tokens - (int(reached[bin - 1]) if bin else 0)
    looks = pool.map(f"{name}-bin", look_into, [{"files": group, "bin": bin} for group in groups])
    looked = []
    for result in looks:
        with open_file(result.file("rows")) as stream:
            looked.append(np.frombuffer(stream.read(), ROW))
    rows = np.concatenate(looked)
    ordered = np.sort(rows, order="place")
    last = int(ordered["place"][int(np.searchsorted(np.cumsum(ordered["tokens"], dtype=np.int64), missing))])
    counts = np.array([n for result in looks for n in result.value["counts"]])
    before = np.array([n for result in looks for n in result.value["before"]], np.int64)
    chosen = np.concatenate([[0], np.cumsum(np.where(rows["place"] <= np.uint64(last), rows["tokens"], 0))])
    ends = np.cumsum(counts)
    taken = before + (chosen[ends] - chosen[ends - counts]).astype(np.int64)
    return Cut(last, tuple(taken.tolist()))
