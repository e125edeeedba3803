"""External shuffles: records of many tasks come together by partition, each of which another task then reads.

    task      spill = Spiller(folder, "rows", layout, cut)        # one task for each shard
              spill.add(partitions, keys, numbers); spill.close()
    stage     rows = gather(pool, "rows", [files of every task, in order], cut)
    task      for found in read(source): ...                      # source: rows.source(partition), in its arguments

Records of one partition come in the order of the tasks, and in that in which they were added. Where there are many
files they are merged `FAN` at a time, each merge for a run of partitions; no file is opened beside another. What a task
is told is the name of one listing and a number.
"""

from __future__ import annotations

import bisect
import functools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stages.core.artifacts import FileEntry
from stages.core.reading import open_file
from stages.lib.data import stored_array
from stages.lib.data.spills import FAN, Cut, Layout, Records, Spiller, joined, nothing, read_files
from stages.lib.data.stored_array import StoredArray
from stages.lib.data.workers import Pool

__all__ = ["FAN", "Cut", "Drop", "Layout", "Records", "Shuffled", "Spiller", "gather", "read", "read_all"]

MERGED_BYTES = 256 << 20
"""Compressed bytes that one task merges, about."""

Progress = Callable[[float, float, str], None]


@dataclass(frozen=True)
class Drop:
    """Records to leave out: those whose number in `column` is marked (not 0 in `marks`). spans: from and to which
    numbers each task has; of those that are read together `marks` is held, a byte for each number.
    """

    marks: StoredArray
    column: int
    spans: Sequence[tuple[int, int]]

    def part(self, first: int, last: int) -> dict[str, Any]:
        """For those who read the files of tasks [first, last)."""
        return {"column": self.column, "marks": self.marks.part(self.spans[first][0], self.spans[last - 1][1])}


@dataclass(frozen=True)
class Shuffled:
    """Where the partitions lie: of each run of them a listing of files; what is to be left out of them."""

    runs: tuple[tuple[int, int, FileEntry], ...]
    drop: Mapping[str, Any] | None = None

    def source(self, partition: int) -> dict[str, Any]:
        """What a task that reads a partition is told."""
        at = bisect.bisect([low for low, _, _ in self.runs], partition) - 1
        partition_source = {"listing": self.runs[at][2].value(), "partition": partition}
        return partition_source if self.drop is None else {**partition_source, "drop": self.drop}


def gather(
    pool: Pool,
    name: str,
    files: Sequence[Sequence[FileEntry]],
    cut: Cut,
    progress: Progress | None = None,
    fan: int = FAN,
    drop: Drop | None = None,
) -> Shuffled:
    """Make partitions readable that tasks have spilled. files: of each task its files of this kind, in order."""
    groups = list(_groups([len(some) for some in files], fan))
    entries = [[entry for some in files[a:b] for entry in some] for a, b in groups]
    listings = list_files(pool, f"{name}-files", entries)
    drops = [None if drop is None or not files else drop.part(a, b) for a, b in groups]
    if len(groups) == 1 and cut.per_block == 1:
        return Shuffled(((0, cut.partitions, listings[0]),), drops[0])
    blocks = -(-cut.partitions // cut.per_block)
    size = sum(entry.size for some in entries for entry in some)
    together = -(-size // (len(groups) * MERGED_BYTES))  # tasks for each group
    span = -(-blocks // max(1, min(blocks, together))) * cut.per_block
    runs = [(low, min(low + span, cut.partitions)) for low in range(0, cut.partitions, span)]
    tasks = [
        {"listing": listing.value(), "low": low, "high": high, "fan": fan, "drop": drop_}
        for low, high in runs
        for listing, drop_ in zip(listings, drops, strict=True)
    ]
    merged = pool.map(f"{name}-merge", merge, tasks, progress)
    several = [
        [entry for result in merged[n : n + len(listings)] for entry in result.files]
        for n in range(0, len(merged), len(listings))
    ]
    return Shuffled(
        tuple((*run, entry) for run, entry in zip(runs, list_files(pool, f"{name}-merged", several), strict=True))
    )


def _groups(counts: Sequence[int], fan: int) -> Iterator[tuple[int, int]]:
    """Runs of tasks that left about `fan` files together, at most (or are one task)."""
    first = held = 0
    for number, count in enumerate(counts):
        if held and held + count > fan:
            yield first, number
            first, held = number, 0
        held += count
    yield first, len(counts)


def merge(folder: Path, listing: dict[str, Any], low: int, high: int, fan: int, drop: dict[str, Any] | None) -> Any:
    """Bring the partitions [low, high) of the files of a listing together: a task."""
    spill: Spiller | None = None
    for places, records in _read_listed(listing, low, high, drop):
        runs = len(records.ends) > 1
        if spill is None:
            columns = tuple((c.dtype.str, 1 if c.ndim == 1 else c.shape[1]) for c in records.columns)
            spill = Spiller(folder, "part", Layout(columns, runs), Cut.into(high - low, fan), low, high)
        spill.add(places, *records.columns, **({"source": records.source, "ends": records.ends} if runs else {}))
    return spill.close() if spill else 0


def read(source: Mapping[str, Any]) -> Iterator[Records]:
    """The records of one partition, chunk by chunk, in order. source: of `Shuffled.source`."""
    partition = int(source["partition"])
    for _, records in _read_listed(source["listing"], partition, partition + 1, source.get("drop")):
        yield records


def _read_listed(
    listing: Mapping[str, Any], low: int, high: int, drop: Mapping[str, Any] | None
) -> Iterator[tuple[np.ndarray, Records]]:
    """As `read_files`, of the files of a listing, without what is dropped."""
    marked = None if drop is None else _marks(json.dumps(drop["marks"], sort_keys=True))
    for places, records in read_files(_listing(json.dumps(listing, sort_keys=True)), low, high):
        if drop is None or marked is None:
            yield places, records
            continue
        left = ~marked[
            records.columns[drop["column"]] - records.columns[drop["column"]].dtype.type(drop["marks"]["low"])
        ]
        if left.any():
            yield places[left], records.where(left)


def read_all(source: Mapping[str, Any], layout: Layout) -> Records:
    """All records of one partition, at once."""
    return joined([nothing(layout), *read(source)], layout)


# --- listings ---------------------------------------------------------------------------------------------------------


def list_files(pool: Pool, name: str, groups: Sequence[Sequence[FileEntry]]) -> list[FileEntry]:
    """A stored listing for each group of files: what tasks carry instead of the files themselves."""
    tasks = [{"files": [entry.value() for entry in some]} for some in groups]
    return [result.file("listing.json") for result in pool.map(name, write_listing, tasks)]


def write_listing(folder: Path, files: list[dict[str, Any]]) -> Any:
    """Write down which files there are: a task."""
    (folder / "listing.json").write_text(json.dumps(files), encoding="utf-8")
    return len(files)


@functools.lru_cache(maxsize=64)
def _listing(listing: str) -> tuple[FileEntry, ...]:
    with open_file(FileEntry.model_validate_json(listing)) as stream:
        return tuple(FileEntry.model_validate(row) for row in json.load(stream))


@functools.lru_cache(maxsize=1)
def _marks(part: str) -> np.ndarray:
    """Which numbers of a range are marked: bool."""
    return stored_array.read(json.loads(part)) != 0
