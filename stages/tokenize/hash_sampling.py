"""Which documents a node takes, and in which order: by a hash of their id, so that every prefix is a uniform sample of
the source.

A document's place is a number in [0, 2^64) that its id decides. `draw = [from, to)` is a range of places: nodes with
disjoint ranges share no document. Of its range a node takes the documents with the lowest places until it has the
tokens that it wants. Files order
nothing: a source sorted by language gives each language its share, whatever the budget.

Encoding leaves beside the ids of a shard the place and the length of each document (12 bytes) and a histogram of tokens
over places. `cut` finds the last place that is taken from the histograms and the documents of one bin, whatever the
size of the corpus.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

END = 1 << 64
BINS = 4096
"""Of a histogram: at 10^9 documents the bin that is looked into holds 240,000 of them, 3 MB."""
ROW = np.dtype([("place", "<u8"), ("tokens", "<u4")])
ALL = END - 1
"""The last place: a whole pass."""


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
    """Leave the documents of a shard, in its order, at `path`, and their histogram beside it."""
    rows = np.empty(len(where), ROW)
    rows["place"], rows["tokens"] = where, tokens
    rows.tofile(path)
    np.bincount(bins(where), weights=tokens, minlength=BINS).astype(np.int64).tofile(path.with_suffix(".histogram"))


def read_rows(path: Path) -> np.ndarray:
    """The documents of a shard: [n], ROW."""
    return np.fromfile(path, ROW)


def cut(paths: Sequence[Path], tokens: int) -> int:
    """The place of the last document taken when those with the lowest places give `tokens` ids or, by less than it has,
    more.

    ALL when there are no more than that.
    """
    total = np.zeros(BINS, np.int64)
    for path in paths:
        total += np.fromfile(path.with_suffix(".histogram"), np.int64)
    reached = np.cumsum(total)
    if tokens >= int(reached[-1]):
        return ALL
    bin = int(np.searchsorted(reached, tokens))
    missing = tokens - (int(reached[bin - 1]) if bin else 0)
    found = [rows[bins(rows["place"]) == bin] for rows in map(read_rows, paths)]
    rows = np.sort(np.concatenate(found), order="place")
    return int(rows["place"][int(np.searchsorted(np.cumsum(rows["tokens"], dtype=np.int64), missing))])
