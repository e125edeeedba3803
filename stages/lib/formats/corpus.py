"""A corpus of `Documents` cut into shards for parallel work, and its columns without making Python objects of them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from stages.lib.formats.documents import write_documents

SHARD_BYTES = 64 << 20
"""Bytes of one unit of parallel work, about: what is lost with a worker."""
DOCUMENT_BYTES = 512
"""What a document weighs besides its bytes: millions of tiny documents are many shards, each of a bounded number."""
MAX_SHARDS = 20_000
"""Beyond this many shards they grow instead: every one costs a file here and there."""


@dataclass(frozen=True)
class Shard:
    """Consecutive row groups of one part: the unit of parallel work. The same cut whatever the number of workers."""

    path: str
    first_group: int
    end_group: int
    start: int
    """Number of its first document, counted over all folders."""
    rows: int


def shards(folders: Sequence[Path], size: int = SHARD_BYTES) -> list[Shard]:
    """Cut the parts of several artifacts into shards of about `size` bytes, in order, from the Parquet footers
    alone.
    """
    groups: list[list[tuple[str, int, int, int]]] = []  # of each part: (path, group, rows, bytes)
    for path in (path for folder in folders for path in sorted(Path(folder).glob("part-*.parquet"))):
        metadata = pq.read_metadata(path)
        rows = [metadata.row_group(g) for g in range(metadata.num_row_groups)]
        groups.append(
            [
                (str(path), g, row.num_rows, row.total_byte_size + DOCUMENT_BYTES * row.num_rows)
                for g, row in enumerate(rows)
            ]
        )
    size = max(size, sum(b for part in groups for _, _, _, b in part) // MAX_SHARDS)
    found: list[Shard] = []
    start = 0
    for part in groups:
        first = rows = held = 0
        for number, (path, group, count_, weight) in enumerate(part):
            rows, held = rows + count_, held + weight
            if rows and (held >= size or number == len(part) - 1):
                found.append(Shard(path, first, group + 1, start, rows))
                start, first, rows, held = start + rows, group + 1, 0, 0
    return found


def read_shard(shard: Shard, columns: list[str] | None = None, rows: int = 8192) -> Iterator[pa.RecordBatch]:
    """Record batches of one shard, in order, each within one row group."""
    with pq.ParquetFile(shard.path) as parquet:
        for group in range(shard.first_group, shard.end_group):
            yield from parquet.iter_batches(batch_size=rows, row_groups=[group], columns=columns, use_threads=False)


def gather_parts(folders: Iterable[Path], target: Path) -> None:
    """Bring the parts that shards were written into under one numbering; one empty part when there is none."""
    number = 0
    for path in (path for folder in folders for path in sorted(Path(folder).glob("part-*.parquet"))):
        try:
            os.link(path, target / f"part-{number:05d}.parquet")
        except OSError:
            shutil.copyfile(path, target / f"part-{number:05d}.parquet")
        number += 1
    if not number:
        write_documents(target, [])
