"""Streams of ids into windows in a random order, out of core: two passes, and the same order whatever the memory.

Every window has a random key that its number and the seed decide; the order is that of the keys. The first pass reads the streams
once, cuts windows and deals them to buckets by the upper bits of their keys; the second sorts one bucket after another in memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from stages.formats.shards import ShardWriter

BUCKET_BYTES = 64 << 20
"""Of a bucket, about: what is sorted in memory."""
READ_TOKENS = 1 << 22
"""Ids read together."""


@dataclass(frozen=True)
class Stream:
    """Files of ids, one after another, and how many ids to take of them: the files are read again when they do not suffice."""

    files: Sequence[Path]
    take: int


def window_keys(start: int, count: int, seed: int) -> np.ndarray:
    """Random keys of the windows from `start` on: [count], uint64. SplitMix64 (Steele et al. 2014) over their numbers."""
    with np.errstate(over="ignore"):
        value = np.arange(start, start + count, dtype=np.uint64) + (np.uint64(seed & 0xFFFFFFFF) << np.uint64(32)) + np.uint64(1)
        value *= np.uint64(0x9E3779B97F4A7C15)
        value = (value ^ value >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
        value = (value ^ value >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
        return value ^ value >> np.uint64(31)


def window_order(count: int, seed: int) -> np.ndarray:
    """The order in which windows are written: [count], their numbers."""
    return np.argsort(window_keys(0, count, seed), kind="stable")


def windows(streams: Sequence[Stream], length: int, dtype: np.dtype) -> Iterator[np.ndarray]:
    """Cut windows from the streams, one after another: arrays [n, length]. What does not fill the last one is left out."""
    rest = np.empty(0, dtype)
    for stream in streams:
        left = stream.take
        while left > 0:
            before = left
            for path in stream.files:
                size = path.stat().st_size // dtype.itemsize
                for start in range(0, min(size, left), READ_TOKENS):
                    ids = np.fromfile(path, dtype, min(READ_TOKENS, size - start, left), offset=start * dtype.itemsize)
                    left -= len(ids)
                    ids = np.concatenate([rest, ids]) if len(rest) else ids
                    whole = len(ids) // length
                    if whole:
                        yield ids[: whole * length].reshape(whole, length)
                    rest = ids[whole * length :]
                    if not left:
                        break
                if not left:
                    break
            if left == before:
                raise ValueError("a stream without ids was asked for some")


def write_shuffled(streams: Sequence[Stream], length: int, dtype: np.dtype, seed: int, scratch: Path, writer: ShardWriter) -> None:
    """Write all windows of the streams in the order of their keys."""
    total = sum(stream.take for stream in streams) * dtype.itemsize
    bits = max(0, (max(1, -(-total // BUCKET_BYTES)) - 1).bit_length())
    scratch.mkdir(parents=True, exist_ok=True)
    paths = [scratch / f"bucket-{n:05d}" for n in range(1 << bits)]
    files = [open(path, "wb") for path in paths] if bits else []  # noqa: SIM115
    keys: list[np.ndarray] = []
    held: list[np.ndarray] = []
    number = 0
    try:
        for rows in windows(streams, length, dtype):
            found = window_keys(number, len(rows), seed)
            number += len(rows)
            keys.append(found)
            if bits:
                _deal(rows, found, bits, files)
            else:
                held.append(rows)
    finally:
        for file in files:
            file.close()
    every = np.concatenate([np.empty(0, np.uint64), *keys])
    if not bits:
        if held:
            _write(np.concatenate(held), every, writer)
        return
    bucket = (every >> np.uint64(64 - bits)).astype(np.int64)
    for n, path in enumerate(paths):
        _write(np.fromfile(path, dtype).reshape(-1, length), every[bucket == n], writer)
        path.unlink()


def _deal(rows: np.ndarray, keys: np.ndarray, bits: int, files: Sequence) -> None:
    """Append each window to its bucket's file, in order."""
    bucket = (keys >> np.uint64(64 - bits)).astype(np.int64)
    order = np.argsort(bucket, kind="stable")
    ends = np.cumsum(np.bincount(bucket, minlength=1 << bits))
    dealt = rows[order]
    for n in np.unique(bucket).tolist():
        files[n].write(dealt[ends[n - 1] if n else 0 : ends[n]].data)


def _write(rows: np.ndarray, keys: np.ndarray, writer: ShardWriter, block: int = 8192) -> None:
    order = np.argsort(keys, kind="stable")
    for start in range(0, len(order), block):
        writer.add(rows[order[start : start + block]])
