"""Streams of ids into windows in a random order, out of core: two passes, and the same order whatever the memory.

Every window has a random key that its number and the seed decide; the order is that of the keys. The first pass reads
the streams once, cuts windows and deals them to buckets by the upper bits of their keys; the second sorts one bucket
after another in memory. Beyond 256 buckets (16 GB) a bucket is dealt again: memory and open files stay bounded whatever
the size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from stages.lib.formats.shards import ShardWriter
from stages.tokenize import hash_sampling

BUCKET_BYTES = 64 << 20
"""Of a bucket, about: what is sorted in memory."""
MOST_BUCKETS = 256
"""Of one pass; two open files each."""
READ_TOKENS = 1 << 22
"""Ids read together."""


@dataclass(frozen=True)
class Stream:
    """Files of ids, one after another, and how many ids to take of them: the files are read again when they do not
    suffice.

    total: ids in the files. A pass that does not need all of them takes the documents up to the place `last`
    (hash_sampling.py), which `<file>.documents` lists; ALL: the first ids.
    """

    files: Sequence[Path]
    take: int
    total: int
    last: int = hash_sampling.ALL

    def ids(self, dtype: np.dtype) -> Iterator[np.ndarray]:
        """The ids that are taken, in pieces."""
        left = self.take
        if left and not self.total:
            raise ValueError("a stream without ids was asked for some")
        while left > 0:
            last = self.last if left < self.total else hash_sampling.ALL
            for path in self.files:
                for ids in _file(path, dtype, last):
                    yield ids[:left]
                    left -= len(ids)
                    if left <= 0:
                        return


def _file(path: Path, dtype: np.dtype, last: int) -> Iterator[np.ndarray]:
    """The ids of a file's documents up to a place, in pieces of about READ_TOKENS."""
    size = path.stat().st_size // dtype.itemsize
    if last >= hash_sampling.ALL:
        for start in range(0, size, READ_TOKENS):
            yield np.fromfile(path, dtype, min(READ_TOKENS, size - start), offset=start * dtype.itemsize)
        return
    rows = hash_sampling.read_rows(path.with_name(path.name + ".documents"))
    ends = np.cumsum(rows["tokens"], dtype=np.int64)
    first = 0
    while first < len(rows):
        begin = int(ends[first - 1]) if first else 0
        end = max(first + 1, int(np.searchsorted(ends, begin + READ_TOKENS, side="right")))
        taken = rows["place"][first:end] <= np.uint64(last)
        if taken.any():
            ids = np.fromfile(path, dtype, int(ends[end - 1]) - begin, offset=begin * dtype.itemsize)
            yield ids[np.repeat(taken, rows["tokens"][first:end])]
        first = end


def window_keys(start: int, count: int, seed: int) -> np.ndarray:
    """Random keys of the windows from `start` on: [count], uint64. SplitMix64 (Steele et al. 2014) of their numbers."""
    with np.errstate(over="ignore"):
        value = (
            np.arange(start, start + count, dtype=np.uint64)
            + (np.uint64(seed & 0xFFFFFFFF) << np.uint64(32))
            + np.uint64(1)
        )
        value *= np.uint64(0x9E3779B97F4A7C15)
        value = (value ^ value >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
        value = (value ^ value >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
        return value ^ value >> np.uint64(31)


def windows(streams: Sequence[Stream], length: int, dtype: np.dtype) -> Iterator[np.ndarray]:
    """Cut windows from the streams, one after another: arrays [n, length]. What does not fill the last is left out."""
    rest = np.empty(0, dtype)
    for stream in streams:
        for ids in stream.ids(dtype):
            ids = np.concatenate([rest, ids]) if len(rest) else ids
            whole = len(ids) // length
            if whole:
                yield ids[: whole * length].reshape(whole, length)
            rest = ids[whole * length :]


def write_shuffled(
    streams: Sequence[Stream], length: int, dtype: np.dtype, seed: int, scratch: Path, writer: ShardWriter
) -> None:
    """Write all windows of the streams in the order of their keys."""
    scratch.mkdir(parents=True, exist_ok=True)
    total = sum(stream.take for stream in streams) * dtype.itemsize
    _sorted(_keyed(windows(streams, length, dtype), seed), total, 0, length, scratch, writer)


Piece = tuple[np.ndarray, np.ndarray]
"""Some windows: their keys, [n] uint64, and their ids, [n, length]."""


def _keyed(parts: Iterator[np.ndarray], seed: int) -> Iterator[Piece]:
    number = 0
    for rows in parts:
        yield window_keys(number, len(rows), seed), rows
        number += len(rows)


def _sorted(pieces: Iterator[Piece], size: int, used: int, length: int, scratch: Path, writer: ShardWriter) -> None:
    """Write windows in the order of their keys, whose upper `used` bits are equal; `size` is about their bytes.

    What does not fit is dealt to as many buckets as it needs, MOST_BUCKETS at most, and those are dealt again.
    """
    bits = min(max(0, (max(1, -(-size // BUCKET_BYTES)) - 1).bit_length()), MOST_BUCKETS.bit_length() - 1)
    if not bits or used + bits > 63:
        if held := list(pieces):
            _write(np.concatenate([keys for keys, _ in held]), np.concatenate([rows for _, rows in held]), writer)
        return
    paths = [scratch / f"bucket-{used:02d}-{n:04d}" for n in range(1 << bits)]
    with ExitStack() as stack:
        files = [
            (stack.enter_context(open(f"{path}.keys", "wb")), stack.enter_context(open(path, "wb"))) for path in paths
        ]
        for keys, rows in pieces:
            _deal(keys, rows, (keys << np.uint64(used) >> np.uint64(64 - bits)).astype(np.int64), files)
    for path in paths:
        written = path.stat().st_size
        _sorted(
            _bucket(path, length, writer.dtype),
            written if written > 2 * BUCKET_BYTES else 0,
            used + bits,
            length,
            scratch,
            writer,
        )
        path.unlink()
        Path(f"{path}.keys").unlink()


def _bucket(path: Path, length: int, dtype: np.dtype) -> Iterator[Piece]:
    """A bucket, in pieces of BUCKET_BYTES."""
    keys = np.fromfile(f"{path}.keys", np.uint64)
    step = max(1, BUCKET_BYTES // (length * dtype.itemsize))
    for start in range(0, len(keys), step):
        count = min(step, len(keys) - start)
        ids = np.fromfile(path, dtype, count * length, offset=start * length * dtype.itemsize)
        yield keys[start : start + count], ids.reshape(count, length)


def _deal(keys: np.ndarray, rows: np.ndarray, bucket: np.ndarray, files: Sequence[tuple[BinaryIO, BinaryIO]]) -> None:
    """Append each window, and its key, to its bucket's files, in order."""
    order = np.argsort(bucket, kind="stable")
    ends = np.cumsum(np.bincount(bucket, minlength=len(files)))
    sorted_keys, dealt = keys[order], rows[order]
    for n in np.unique(bucket).tolist():
        part = slice(ends[n - 1] if n else 0, ends[n])
        files[n][0].write(sorted_keys[part].data)
        files[n][1].write(dealt[part].data)


def _write(keys: np.ndarray, rows: np.ndarray, writer: ShardWriter, block: int = 8192) -> None:
    order = np.argsort(keys, kind="stable")
    for start in range(0, len(order), block):
        writer.add(rows[order[start : start + block]])
