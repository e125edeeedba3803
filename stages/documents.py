"""Reading and writing `Documents`: Parquet parts of one fixed schema, in a deterministic order, a batch at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType

import pyarrow as pa
import pyarrow.parquet as pq

SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("text", pa.large_string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("url", pa.string(), nullable=False),
        pa.field("license", pa.string(), nullable=False),
    ]
)
"""id: unique in the artifact; source: name of the raw source; url: where it came from, or a path; license: SPDX or ''."""

ROW_GROUP_BYTES = 16 << 20
"""Bytes buffered before a row group is written: bounds memory whatever the corpus."""
ROW_BYTES = 256
"""What a buffered row weighs besides its text, about: millions of tiny documents are bounded too."""
PART_BYTES = 512 << 20
"""Text bytes in one part, before compression."""


class DocumentWriter:
    """Write documents into `part-NNNNN.parquet` under `folder`. Same rows, same bytes.

    A context manager; on an exception nothing more is written (the runtime publishes nothing of a failed stage).
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.documents, self.text_bytes = folder, 0, 0
        self._rows: list[tuple[str, str, str, str, str]] = []
        self._buffered = self._in_part = self._part = 0
        self._writer: pq.ParquetWriter | None = None

    def add(self, id: str, text: str, source: str, url: str = "", license: str = "") -> None:
        """Append one document."""
        size = len(text.encode("utf-8", "surrogatepass"))
        self._rows.append((id, text, source, url, license))
        self.documents += 1
        self.text_bytes += size
        self._buffered += size + len(url) + ROW_BYTES
        if self._buffered >= ROW_GROUP_BYTES:
            self._flush()

    def _flush(self) -> None:
        if not self._rows:
            return
        columns = [pa.array(column, type=field.type) for column, field in zip(zip(*self._rows, strict=True), SCHEMA, strict=True)]
        if self._writer is None:
            path = self.folder / f"part-{self._part:05d}.parquet"
            self._writer = pq.ParquetWriter(path, SCHEMA, compression="zstd", write_statistics=False)
        self._writer.write_table(pa.Table.from_arrays(columns, schema=SCHEMA))
        self._in_part += self._buffered
        self._rows, self._buffered = [], 0
        if self._in_part >= PART_BYTES:
            self._close_part()

    def _close_part(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer, self._in_part, self._part = None, 0, self._part + 1

    def __enter__(self) -> DocumentWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is None:
            self._flush()
            if self._part == 0 and self._writer is None:  # an empty corpus is still a valid artifact: one empty part
                self._writer = pq.ParquetWriter(self.folder / "part-00000.parquet", SCHEMA, compression="zstd")
        self._close_part()


def read_batches(folder: Path, columns: list[str] | None = None, rows: int = 1024) -> Iterator[pa.RecordBatch]:
    """Yield record batches of at most `rows` documents, part by part in name order; never more than one row group."""
    for path in sorted(Path(folder).glob("part-*.parquet")):
        with pq.ParquetFile(path) as parquet:
            for group in range(parquet.num_row_groups):  # a batch over several would hold them all at once
                yield from parquet.iter_batches(batch_size=rows, row_groups=[group], columns=columns)


def read_documents(folder: Path) -> Iterator[dict[str, str]]:
    """Yield documents as dictionaries, in order."""
    for batch in read_batches(folder):
        yield from batch.to_pylist()


def write_documents(folder: Path, documents: Iterable[dict[str, str]]) -> DocumentWriter:
    """Write all documents; returns the closed writer, whose counters say what was written."""
    with DocumentWriter(folder) as writer:
        for document in documents:
            writer.add(**document)
    return writer


def count(folder: Path) -> int:
    """Number of documents, from the Parquet footers alone."""
    return sum(pq.read_metadata(path).num_rows for path in sorted(Path(folder).glob("part-*.parquet")))
