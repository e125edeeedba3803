"""Files of ids as encoding leaves them, and the windows that a shuffle of them must give."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from stages.core.artifacts import FileEntry
from stages.lib.formats.shards import row_type
from stages.tokenize.packing import window_keys
from stages.tokenize.streams import Encoded

U16 = np.dtype(np.uint16)
LENGTH, VOCABULARY = 7, 300


def entry(path: Path) -> FileEntry:
    data = path.read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    return FileEntry(path=path.name, size=len(data), sha256=digest, object=str(path.absolute()))


def encoded(folder: Path, parts: Sequence[np.ndarray], name: str = "ids") -> list[Encoded]:
    """Files of ids, as encoding leaves them."""
    files = []
    for n, ids in enumerate(parts):
        ids.tofile(folder / f"{name}-{n}")
        files.append(Encoded(entry(folder / f"{name}-{n}"), len(ids)))
    return files


def ids_of(shards: Sequence[tuple[FileEntry, int]], length: int = LENGTH) -> np.ndarray:
    """All windows of some shards, [n, length]."""
    read = [np.fromfile(e.object, row_type(length, U16)) for e, _ in shards]
    assert [len(part) for part in read] == [rows for _, rows in shards]
    return np.concatenate([np.empty((0, length), U16), *(part["ids"] for part in read)])


def in_order(stream: np.ndarray, seed: int, length: int = LENGTH) -> np.ndarray:
    """The windows of a stream in the order of their keys, by a sort in memory."""
    count = len(stream) // length
    return stream[: count * length].reshape(-1, length)[np.argsort(window_keys(0, count, seed), kind="stable")]


def random_parts(sizes: Sequence[int], seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.integers(3, VOCABULARY, n, dtype=np.uint16) for n in sizes]
