"""One reader for each raw format. A reader yields records, or the reason why one is unusable; memory stays bounded.

A damaged file (truncated gzip, broken Parquet) ends its own reading with one `Bad` record and nothing else: what was
read before it is kept (decompression runs up to 64 KiB ahead of the records, and those are lost with it). In a WARC
the records behind the damage are found again. A network or disk that fails is neither: it ends the reading with
InfraError.

A part is a range of bytes of the file: what begins in it is read, the rest is another part's (`parted`).
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from stages.core.errors import InputError
from stages.ingest.fields import columns
from stages.ingest.records import DAMAGED, Bad, Record, record
from stages.ingest.spec import IngestConfig
from stages.ingest.warc import read_warc
from stages.lib.formats.compression import CODECS, Damaged, codec, decoded, mark
from stages.lib.formats.json_rows import begins_a_list, head, line_value, list_values, placed_lines
from stages.lib.formats.raw_file import Raw, opened
from stages.lib.formats.sources import RawFile
from stages.lib.formats.uris import named, shown

__all__ = [
    "DAMAGED",
    "READERS",
    "Bad",
    "Part",
    "Reader",
    "Record",
    "lines",
    "parted",
    "read_code",
    "read_jsonl",
    "read_parquet",
    "read_warc",
]

Part = tuple[int, int]
"""A range of bytes, start and end."""
Reader = Callable[..., Iterator[Record | Bad]]
"""(file, folder, configuration, part or None)"""

BATCH_ROWS, BATCH_BYTES = 1024, 16 << 20
"""Rows of a Parquet batch: fewer where they are large."""


def lines(stream: IO[bytes], limit: int) -> Iterator[tuple[int, bytes | None]]:
    """Number and content of each line; None for one longer than `limit` bytes, which is passed over in pieces."""
    for number, _, line in placed_lines(stream, limit):
        yield number, line


def read_jsonl(file: RawFile, folder: Path, config: IngestConfig, part: Part | None = None) -> Iterator[Record | Bad]:
    """JSON lines, or one JSON list, plain or packed (.gz, .zst, .bz2, .xz)."""
    name, number = shown(file.uri), 0
    with opened(file, folder) as raw:
        try:
            if part is not None and part[0] > 0:
                yield from _part_of_lines(raw, part, name, config)
                return
            base, _ = mark(head(raw.stream, 4))
            whole = part is None or not _in_parts(raw)
            text = raw.text()
            if begins_a_list(text):
                yield from _list(text, name, config)
                return
            for number, at, line in placed_lines(
                text, config.max_record_bytes, base, None if whole or part is None else part[1]
            ):
                yield _json_line(line, f"{name}:{number}", at, config)
        except Damaged as error:
            raw.check()
            yield Bad(DAMAGED, f"{name} after line {number}: {error}")


def _in_parts(raw: Raw) -> bool:
    """Whether a part can be read without what lies before it: not of UTF-16, of one JSON list, or of what is packed
    whatever its name.
    """
    begins = head(raw.stream, 1 << 12)
    size, encoding = mark(begins)
    return encoding == "utf-8" and begins[size:].lstrip()[:1] != b"[" and codec(named(raw.uri), begins) is None


def _part_of_lines(raw: Raw, part: Part, name: str, config: IngestConfig) -> Iterator[Record | Bad]:
    """The lines that begin in a part of a plain file; none of one that cannot be read in parts, whose first part has
    them all.
    """
    if not _in_parts(raw):
        return
    at = part[0] - 1
    raw.stream.seek(at)
    while piece := raw.stream.readline(1 << 20):  # the line that another part begins
        at += len(piece)
        if piece.endswith(b"\n"):
            break
    for _, offset, line in placed_lines(raw.stream, config.max_record_bytes, at, part[1]):
        yield _json_line(line, f"{name}@{offset}", offset, config)


def _json_line(line: bytes | None, place: str, at: int, config: IngestConfig) -> Record | Bad:
    value, reason = line_value(line)
    return Bad(reason, place) if reason else record(value, place, at, config)


def _list(stream: IO[bytes], name: str, config: IngestConfig) -> Iterator[Record | Bad]:
    """The elements of one JSON list."""
    for number, (place, value, reason) in enumerate(list_values(stream, config.max_record_bytes), 1):
        yield (
            Bad(reason, f"{name} {place}" if place.startswith("after") else f"{name}, {place}")
            if reason
            else record(value, f"{name}, {place}", number, config)
        )


def read_parquet(file: RawFile, folder: Path, config: IngestConfig, part: Part | None = None) -> Iterator[Record | Bad]:
    """Parquet with a text column; row groups are read a batch at a time. A part has the row groups that begin in it."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    name = shown(file.uri)
    with opened(file, folder) as raw:
        stream = raw.stream if raw.stream.seekable() else io.BytesIO(raw.stream.read())
        try:
            parquet = pq.ParquetFile(stream)
        except (pa.ArrowException, OSError) as error:
            raw.check()
            yield Bad(DAMAGED, f"{name}: {str(error).strip()}")
            return
        present = set(parquet.schema_arrow.names)
        if not columns([config.text_field], present):
            raise InputError(f"{name} has no column '{config.text_field}'; it has: {', '.join(sorted(present))}")
        fields = columns(
            [p for p in (config.text_field, config.url_field, config.license_field, config.source_field) if p], present
        )
        row = 0
        try:
            for group in range(parquet.num_row_groups):
                metadata = parquet.metadata.row_group(group)
                if part is not None and not part[0] <= _begins(metadata) < part[1]:
                    row += metadata.num_rows
                    continue
                size = max(1, min(BATCH_ROWS, BATCH_BYTES * metadata.num_rows // max(1, metadata.total_byte_size)))
                for batch in parquet.iter_batches(
                    batch_size=size, row_groups=[group], columns=fields, use_threads=False
                ):
                    for value in _rows(batch):
                        row += 1
                        place = f"{name}:{row}"
                        yield Bad("invalid UTF-8", place) if value is None else record(value, place, row, config)
        except (pa.ArrowException, OSError) as error:
            raw.check()
            yield Bad(DAMAGED, f"{name} after row {row}: {str(error).strip().splitlines()[0]}")


def _begins(metadata: Any) -> int:
    """Offset of a row group's first page."""
    column = metadata.column(0)
    return min(offset for offset in (column.dictionary_page_offset, column.data_page_offset) if offset)


def _rows(batch: Any) -> Iterator[dict[str, Any] | None]:
    """The rows of a record batch; None for one whose strings are no UTF-8 (Parquet does not check them)."""
    try:
        yield from batch.to_pylist()
    except UnicodeDecodeError:  # raised before the first row is yielded: now one by one
        for index in range(batch.num_rows):
            try:
                yield batch.slice(index, 1).to_pylist()[0]
            except UnicodeDecodeError:
                yield None


def read_code(file: RawFile, folder: Path, config: IngestConfig, part: Part | None = None) -> Iterator[Record | Bad]:
    """One source file, one document: UTF-8, or UTF-16 and UTF-32 with their mark."""
    name = shown(file.uri)
    with opened(file, folder) as raw:
        data = raw.stream.read(config.max_record_bytes + 1)
    if len(data) > config.max_record_bytes:
        yield Bad("too long", name)
        return
    try:
        text = decoded(data)
    except UnicodeDecodeError as error:
        yield Bad("binary" if b"\0" in data else "invalid UTF-8", name if b"\0" in data else f"{name}@{error.start}")
        return
    if "\0" in text:
        yield Bad("binary", name)
    else:
        yield Record(text, name) if text.strip() else Bad("empty text", name)


def read_hf(file: RawFile, folder: Path, config: IngestConfig, part: Part | None = None) -> Iterator[Record | Bad]:
    """A Hugging Face data set by name and revision: its files, each by the reader of its kind."""
    from stages.ingest.hub_files import files_of

    for one in files_of(file):
        yield from READERS[one.format](one, folder, config)


READERS: dict[str, Reader] = {
    "jsonl": read_jsonl,
    "parquet": read_parquet,
    "warc": read_warc,
    "code": read_code,
    "hf": read_hf,
}


def parted(file: RawFile) -> bool:
    """Whether a part of the file can be read without what lies before it."""
    name = named(file.uri).lower()
    if file.format == "jsonl":
        return not name.endswith(tuple(f".{ending}" for ending in CODECS))
    return file.format == "parquet" or (file.format == "warc" and name.endswith(".gz"))
