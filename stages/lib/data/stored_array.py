"""An array with a value for each of many numbers, that a stage makes and tasks read their range of.

    labels = store(pool, "labels", array)                 # in the stage
    read(labels.part(low, high))                          # in a task: the values of [low, high)

It lies in compressed files of `SEGMENT` values; a range is read in whole blocks of `BLOCK`.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stages.core.artifacts import FileEntry
from stages.lib.data.spills import Layout, Records, read_files, write_grouped
from stages.lib.data.workers import Pool

BLOCK = 1 << 16
"""Values that are compressed together."""
SEGMENT = 1 << 25
"""Values in one file."""


@dataclass(frozen=True)
class StoredArray:
    """Where the values lie: one file for each SEGMENT of them."""

    files: tuple[FileEntry, ...]
    dtype: str

    def part(self, low: int, high: int) -> dict[str, Any]:
        """What a task that reads the values of [low, high) is told."""
        some = self.files[low // SEGMENT : -(-high // SEGMENT)] if high > low else ()
        return {"files": [entry.value() for entry in some], "low": low, "high": high, "dtype": self.dtype}


def store(pool: Pool, name: str, values: np.ndarray) -> StoredArray:
    """Store an array of one dimension, a segment at a time."""
    files: list[FileEntry] = []
    layout = Layout(((values.dtype.str, 1),))
    for start in range(0, len(values), SEGMENT):
        some = values[start : start + SEGMENT]
        low, blocks = start // BLOCK, -(-len(some) // BLOCK)
        bounds = np.minimum(np.arange(blocks + 1) * BLOCK, len(some))

        def write(folder: Path, *arguments: Any) -> None:
            write_grouped(folder / "values", *arguments)

        what = (layout, low, low + blocks, 1, bounds, Records([some]))
        files += store_files(pool, f"{name}-{start // SEGMENT:05d}", lambda folder, what=what: write(folder, *what))
    return StoredArray(tuple(files), values.dtype.str)


def read(part: Mapping[str, Any]) -> np.ndarray:
    """The values of a range. part: of `StoredArray.part`."""
    low, high = int(part["low"]), int(part["high"])
    entries = [FileEntry.model_validate(row) for row in part["files"]]
    first, last = low // BLOCK, -(-high // BLOCK)
    blocks = [np.empty(0, part["dtype"]), *(r.columns[0] for _, r in read_files(entries, first, last))]
    return np.concatenate(blocks)[low - first * BLOCK :][: high - low]


def store_files(pool: Pool, name: str, write: Callable[[Path], None]) -> list[FileEntry]:
    """Store what `write` writes into a folder: files of the stage itself, that tasks read as those of other tasks."""
    name = f"{pool.prefix}{name}.stage.{secrets.token_hex(4)}"
    folder = pool.objects.folder(name)
    try:
        write(folder)
        return list(pool.objects.upload(name, folder))
    finally:
        pool.objects.drop(folder)
