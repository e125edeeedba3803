"""A sample of a corpus that reads a few of its row groups, spread evenly over all of it, and nothing else.

A uniform sample of documents would open nearly every row group of a large corpus. Instead, row groups are drawn that
hold several times as much as is least, and the sample is drawn from their documents: neighbours are hardly more alike
than any others, and what is read does not grow with the corpus. Where the corpus is not larger than what would be read,
the sample is that of all documents.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from stages.core.artifacts import FileEntry
from stages.core.reading import open_file
from stages.lib.formats.corpus import groups_of, parts_of

READERS = 4
"""Row groups that are fetched at the same time."""


@dataclass(frozen=True, slots=True)
class Group:
    """One row group of a part."""

    part: FileEntry
    number: int
    rows: int
    size: int
    """Bytes before compression, of all columns."""


def row_groups(entries: Iterable[FileEntry]) -> list[Group]:
    """The row groups of an artifact, in order."""
    return [
        Group(bare, number, rows, size)
        for part in parts_of(entries)
        for bare in (part.model_copy(update={"detail": ""}),)
        for number, (rows, size) in enumerate(groups_of(part))
        if rows
    ]


def spread(weights: Sequence[int], least: float) -> list[int]:
    """Which items to take so that their weights reach `least`: one from each of equal stretches of all, at a place
    that is drawn in it, so that no period of the corpus shows. All of them where they do not reach it.
    """
    ends = np.cumsum(np.array(weights, np.int64)) if len(weights) else np.zeros(1, np.int64)
    total = int(ends[-1])
    if least >= total:
        return list(range(len(weights)))
    stretches = max(1, int(least * len(weights) / total))
    while True:
        places = (np.arange(stretches) + np.random.default_rng(0).random(stretches)) * total / stretches
        taken = np.unique(np.searchsorted(ends, places, "right"))
        if int(np.array(weights)[taken].sum()) >= least:
            return taken.tolist()
        stretches += stretches // 8 + 1


def read_group(group: Group, columns: list[str]) -> pa.Table:
    """Some columns of a row group: nothing else of the part is read but its footer."""
    with open_file(group.part) as stream, pq.ParquetFile(stream) as parquet:
        return parquet.read_row_group(group.number, columns=columns, use_threads=False)


def read_groups(groups: Sequence[Group], columns: list[str]) -> Iterator[Any]:
    """As `read_group`, one after another: READERS of them are fetched at the same time."""
    with ThreadPoolExecutor(READERS) as readers:
        for n in range(0, len(groups), READERS):
            yield from list(readers.map(lambda group: read_group(group, columns), groups[n : n + READERS]))
