"""Tables as Parquet parts: rows of one fixed schema, written a row group at a time, in a deterministic order.

    with PartWriter(folder, schema) as writer:
        writer.append((id, text), size=len(text))     # -> part-00000.parquet, part-00001.parquet ..
    for row in read_rows(folder): ...

`stages.lib.formats.documents` and `stages.lib.formats.examples` name the schemas. Same rows, same bytes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pyarrow as pa
import pyarrow.parquet as pq

ROW_GROUP_BYTES = 16 << 20
"""Bytes buffered before a row group is written: bounds memory whatever the size of the table."""
ROW_BYTES = 256
"""What a buffered row weighs besides its text, about: millions of tiny rows are bounded too."""
PART_BYTES = 512 << 20
"""Bytes of text in one part, before compression."""


class PartWriter:
    """Write rows into `part-NNNNN.parquet` under `folder`.

    A context manager; on an exception nothing more is written (the runtime publishes nothing of a failed stage).
    """

    def __init__(
        self, folder: Path, schema: pa.Schema, row_group_bytes: int = ROW_GROUP_BYTES, part_bytes: int = PART_BYTES
    ) -> None:
        self.folder, self.schema, self.rows = folder, schema, 0
        self._row_group_bytes, self._part_bytes = row_group_bytes, part_bytes
        self._rows: list[tuple[Any, ...]] = []
        self._batches: list[pa.RecordBatch] = []
        self._buffered = self._in_part = self._part = 0
        self._writer: pq.ParquetWriter | None = None

    def append(self, row: tuple[Any, ...], size: int) -> None:
        """Append one row, values in the order of the schema. size: bytes of its text, about."""
        self._rows.append(row)
        self.rows += 1
        self._buffered += size + ROW_BYTES
        if self._buffered >= self._row_group_bytes:
            self._flush()

    def append_batch(self, batch: pa.RecordBatch, size: int) -> None:
        """Append the rows of a record batch of this schema, without making Python objects of them. size: as in
        `append`.
        """
        if not batch.num_rows:
            return
        self._gather()
        self._batches.append(batch)
        self.rows += batch.num_rows
        self._buffered += size + ROW_BYTES * batch.num_rows
        if self._buffered >= self._row_group_bytes:
            self._flush()

    def _gather(self) -> None:
        """Rows that came one by one become a batch."""
        if self._rows:
            columns = [
                pa.array(column, type=field.type)
                for column, field in zip(zip(*self._rows, strict=True), self.schema, strict=True)
            ]
            self._batches.append(pa.RecordBatch.from_arrays(columns, schema=self.schema))
            self._rows = []

    def _flush(self) -> None:
        self._gather()
        if not self._batches:
            return
        if self._writer is None:
            path = self.folder / f"part-{self._part:05d}.parquet"
            self._writer = pq.ParquetWriter(path, self.schema, compression="zstd", write_statistics=False)
        self._writer.write_table(pa.Table.from_batches(self._batches, schema=self.schema))
        self._in_part += self._buffered
        self._batches, self._buffered = [], 0
        if self._in_part >= self._part_bytes:
            self._close_part()

    def _close_part(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer, self._in_part, self._part = None, 0, self._part + 1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._flush()
            if self._part == 0 and self._writer is None:  # an empty table is still a valid artifact: one empty part
                self._writer = pq.ParquetWriter(self.folder / "part-00000.parquet", self.schema, compression="zstd")
        self._close_part()


def read_batches(folder: Path, columns: list[str] | None = None, rows: int = 1024) -> Iterator[pa.RecordBatch]:
    """Yield record batches of at most `rows` rows, part by part in name order; never more than one row group."""
    for path in sorted(Path(folder).glob("part-*.parquet")):
        with pq.ParquetFile(path) as parquet:
            for group in range(parquet.num_row_groups):  # a batch over several would hold them all at once
                yield from parquet.iter_batches(batch_size=rows, row_groups=[group], columns=columns)


def read_rows(folder: Path, columns: list[str] | None = None) -> Iterator[dict[str, Any]]:
    """Yield rows as dictionaries, in order."""
    for batch in read_batches(folder, columns):
        yield from batch.to_pylist()


def count(folder: Path) -> int:
    """Number of rows, from the Parquet footers alone."""
    return sum(pq.read_metadata(path).num_rows for path in sorted(Path(folder).glob("part-*.parquet")))


def detail(path: Path) -> str:
    """What a reader needs to know of a part before it opens it (`FileEntry.detail`): of each row group its rows and its
    bytes before compression.
    """
    metadata = pq.read_metadata(path)
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    return json.dumps({"groups": [[group.num_rows, group.total_byte_size] for group in groups]}, separators=(",", ":"))


VALUES = 200
"""Values of a column that are counted one by one in a manifest, which every reader of the artifact gets."""
OTHERS = "others"
