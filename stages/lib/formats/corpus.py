"""A corpus of `Documents` cut into shards for parallel work, and its columns without making Python objects of them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from stages.core.artifacts import FileEntry
from stages.core.context import Context
from stages.core.reading import open_file, sense
from stages.lib.formats.documents import write_documents
from stages.lib.formats.parquet_parts import OTHERS, VALUES

SHARD_BYTES = 64 << 20
"""Bytes of one unit of parallel work, about: what is lost with a worker."""
DOCUMENT_BYTES = 512
"""What a document weighs besides its bytes: millions of tiny documents are many shards, each of a bounded number."""
MAX_SHARDS = 20_000
"""Beyond this many shards they grow instead: every one costs a file here and there."""


@dataclass(frozen=True)
class Shard:
    """Consecutive row groups of one part: the unit of parallel work. The same cut whatever the number of workers."""

    entry: Mapping[str, Any]
    """The part as a stored file (`FileEntry.value`)."""
    first_group: int
    end_group: int
    start: int
    """Number of its first document, counted over all artifacts."""
    rows: int


def parts_of(entries: Iterable[FileEntry]) -> list[FileEntry]:
    """The Parquet parts among the files of an artifact, in order."""
    parts = (e for e in entries if Path(e.path).match("part-*.parquet") and "/" not in e.path)
    return sorted(parts, key=lambda entry: entry.path)


def groups_of(part: FileEntry) -> list[tuple[int, int]]:
    """(rows, bytes before compression) of each row group of a part: from its entry, or from its footer alone."""
    if part.detail:
        return [(int(rows), int(size)) for rows, size in json.loads(part.detail)["groups"]]
    with sense(part, pa.ArrowException, OSError), open_file(part) as stream:
        metadata = pq.read_metadata(stream)
    groups = [metadata.row_group(g) for g in range(metadata.num_row_groups)]
    return [(group.num_rows, group.total_byte_size) for group in groups]


def shards_of(artifacts: Iterable[Iterable[FileEntry]], size: int = SHARD_BYTES) -> list[Shard]:
    """Cut the parts of several artifacts into shards of about `size` bytes, in order. A part is opened, for its footer,
    only where its entry does not say its groups.
    """
    parts = [(part, groups_of(part)) for entries in artifacts for part in parts_of(entries)]
    weights = [[held + DOCUMENT_BYTES * rows for rows, held in groups] for _, groups in parts]
    size = max(size, sum(map(sum, weights)) // MAX_SHARDS)
    cuts: list[Shard] = []
    start = 0
    for (part, groups), weight in zip(parts, weights, strict=True):
        value = part.model_copy(update={"detail": ""}).value()
        first = rows = held = 0
        for number, (count_, _) in enumerate(groups):
            rows, held = rows + count_, held + weight[number]
            if rows and (held >= size or number == len(groups) - 1):
                cuts.append(Shard(value, first, number + 1, start, rows))
                start, first, rows, held = start + rows, number + 1, 0, 0
    return cuts


def renumbered(chosen: Iterable[Shard]) -> list[Shard]:
    """Some of the shards, as those of a corpus of their own: their documents counted from 0."""
    counted: list[Shard] = []
    for shard in chosen:
        counted.append(replace(shard, start=counted[-1].start + counted[-1].rows if counted else 0))
    return counted


def read_shard(shard: Shard, columns: list[str] | None = None, rows: int = 8192) -> Iterator[pa.RecordBatch]:
    """Record batches of one shard, in order, each within one row group. Of a stored part only the groups and columns
    asked for are read.
    """
    part = FileEntry.model_validate(shard.entry)
    yield from _read_groups(part, range(shard.first_group, shard.end_group), columns, rows)


def read_parts(
    parts: Iterable[FileEntry], columns: list[str] | None = None, rows: int = 8192
) -> Iterator[pa.RecordBatch]:
    """Record batches of whole parts, in order, each within one row group."""
    for part in parts:
        yield from _read_groups(part, None, columns, rows)


def _read_groups(
    part: FileEntry, groups: Iterable[int] | None, columns: list[str] | None, rows: int
) -> Iterator[pa.RecordBatch]:
    """groups: None for all."""
    with sense(part, pa.ArrowException, OSError), open_file(part) as stream, pq.ParquetFile(stream) as parquet:
        for group in range(parquet.num_row_groups) if groups is None else groups:
            yield from parquet.iter_batches(batch_size=rows, row_groups=[group], columns=columns, use_threads=False)


def stored_documents(entries: Iterable[FileEntry]) -> Iterator[dict[str, str]]:
    """The documents of an artifact, in order, a batch in memory at a time."""
    for batch in read_parts(parts_of(entries)):
        yield from batch.to_pylist()


def link_parts(ctx: Context[Any], port: str, entries: Iterable[FileEntry]) -> None:
    """Link what tasks left into an output, in order and under one numbering; one empty part when there is nothing."""
    number = 0
    for number, entry in enumerate(entries, 1):
        ctx.link(port, f"part-{number - 1:05d}.parquet", entry)
    if not number:
        write_documents(ctx.output(port), [])


def count_values(counts: Counter[str], column: Any) -> None:
    """Add the values of a string column to their counts."""
    compute: Any = pc  # its functions are made at import: no checker sees them
    for row in compute.value_counts(column).to_pylist():
        counts[row["values"]] += row["counts"]


def commonest(counts: Iterable[Mapping[str, int]], most: int = VALUES) -> dict[str, int]:
    """The counts of several tasks together, in the order of the values; beyond `most` of them, the rarest are `OTHERS`:
    every reader of an artifact gets them with its manifest.
    """
    total: Counter[str] = Counter()
    for part in counts:
        total.update(part)
    common = dict(sorted(total.most_common(most)))
    others = total.total() - sum(common.values())
    return common | ({OTHERS: others} if others else {})
