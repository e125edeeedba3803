"""Reading and writing `Documents`: Parquet parts of one fixed schema, in a deterministic order, a batch at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from stages.lib.formats.parquet_parts import PART_BYTES, ROW_BYTES, ROW_GROUP_BYTES, PartWriter, count, read_batches

__all__ = [
    "PART_BYTES",
    "ROW_BYTES",
    "ROW_GROUP_BYTES",
    "SCHEMA",
    "DocumentWriter",
    "count",
    "read_batches",
    "read_documents",
    "text_buffer",
    "text_bytes",
    "write_documents",
]

SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("text", pa.large_string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("url", pa.string(), nullable=False),
        pa.field("license", pa.string(), nullable=False),
    ]
)
"""id: unique in the artifact; source: name of the raw source; url: where it came from, or a path; license: SPDX or ''.
"""


class DocumentWriter(PartWriter):
    """Write documents into `part-NNNNN.parquet` under `folder`. Same rows, same bytes."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, SCHEMA, ROW_GROUP_BYTES, PART_BYTES)
        self.text_bytes = 0

    @property
    def documents(self) -> int:
        """Documents written so far."""
        return self.rows

    def add(self, id: str, text: str, source: str, url: str = "", license: str = "") -> None:
        """Append one document."""
        size = len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))
        self.text_bytes += size
        self.append((id, text, source, url, license), size + len(url))

    def add_batch(self, batch: pa.RecordBatch) -> None:
        """Append the documents of a record batch of this schema."""
        size = text_bytes(batch.column("text"))
        self.text_bytes += size
        self.append_batch(batch, size)


def text_buffer(column: Any) -> tuple[np.ndarray, np.ndarray]:
    """The UTF-8 bytes of a string column, uint8, and where each value begins and the last ends, int64: no copy of the
    text.
    """
    width = np.int64 if pa.types.is_large_string(column.type) else np.int32
    _, offsets, data = column.buffers()
    ends = np.frombuffer(offsets, width)[column.offset : column.offset + len(column) + 1].astype(np.int64)
    return read_only(data), ends


def read_only(data: Any) -> np.ndarray:
    """The bytes of one of Arrow's buffers (None: there are none), read-only whatever it is: to a compiled kernel a
    writable array is another type, to be compiled for once more.
    """
    return np.frombuffer(memoryview(b"" if data is None else data).toreadonly(), np.uint8)


def text_bytes(column: Any) -> int:
    """UTF-8 bytes of all values of a string column."""
    if not len(column):
        return 0
    _, ends = text_buffer(column)
    return int(ends[-1] - ends[0])


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
