"""One reader for each raw format. A reader yields records, or the reason why one is unusable; memory stays bounded.

A damaged file (truncated gzip, broken Parquet) ends its own reading with one `Bad` record and nothing else: what was
read before it is kept (decompression runs up to 64 KiB ahead of the records, and those are lost with it). In a WARC on disk the
records behind the damage are found again.
"""

from __future__ import annotations

import gzip
import http.client
import io
import json
import os
import urllib.parse
import urllib.request
import zlib
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

from stages.core.contracts import InfraError, InputError
from stages.formats.sources import RawFile
from stages.ingest import resync
from stages.ingest.spec import IngestConfig


@dataclass(frozen=True)
class Record:
    """A usable record."""

    text: str
    url: str = ""
    license: str = ""


@dataclass(frozen=True)
class Bad:
    """An unusable record: why, and where (`file:line`, `file@offset`)."""

    reason: str
    place: str


Reader = Callable[[RawFile, Path, IngestConfig], Iterator[Record | Bad]]


DAMAGED = "truncated or damaged file"


@contextmanager
def opened(file: RawFile, folder: Path) -> Iterator[IO[bytes]]:
    """Open a raw file for reading, wherever it is. Raises InputError or InfraError naming it."""
    parts = urllib.parse.urlsplit(file.uri)
    try:
        if parts.scheme in ("", "file"):
            path = Path(urllib.parse.unquote(parts.path)) if parts.scheme else folder / file.uri
            if not parts.scheme and not path.resolve().is_relative_to(folder.resolve()):
                raise InputError(f"the listing names a path outside its artifact: {file.uri}")
            with open(path, "rb") as stream:
                yield stream
        elif parts.scheme == "s3":
            yield io.BufferedReader(_s3_body(file.uri, parts.netloc, parts.path.lstrip("/")), 1 << 20)
        elif parts.scheme == "https":
            with urllib.request.urlopen(file.uri, timeout=60) as answer:
                yield answer
        else:
            raise InputError(f"{file.uri}: no way to read '{parts.scheme}://' addresses of format {file.format}")
    except FileNotFoundError as error:
        raise InputError(f"raw file {file.uri} is not there") from error
    except (IsADirectoryError, NotADirectoryError) as error:
        raise InputError(f"raw file {file.uri} is no file but a folder, or lies under a file") from error
    except (OSError, http.client.HTTPException) as error:
        raise InfraError(f"raw file {file.uri} cannot be read: {error}") from error


def _s3_body(uri: str, bucket: str, key: str) -> Any:
    """The body of an object, as a raw stream. Raises InputError when there is none, InfraError for all else."""
    import boto3
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        client = boto3.client("s3", endpoint_url=os.environ.get("MOXIN_RAW_S3_ENDPOINT") or None)
        return client.get_object(Bucket=bucket, Key=key)["Body"]
    except ClientError as error:
        if error.response.get("Error", {}).get("Code") in ("404", "NoSuchKey", "NoSuchBucket"):
            raise InputError(f"raw file {uri} is not there") from error
        raise InfraError(f"raw file {uri} cannot be read: {error}") from error
    except BotoCoreError as error:
        raise InfraError(f"raw file {uri} cannot be read: {error}") from error


def lines(stream: IO[bytes], limit: int) -> Iterator[tuple[int, bytes | None]]:
    """Number and content of each line; None for one longer than `limit` bytes, which is passed over in pieces."""
    number = 0
    while piece := stream.readline(limit + 1):
        number += 1
        if len(piece) <= limit or (piece.endswith(b"\n") and len(piece) == limit + 1):
            yield number, piece
            continue
        while piece and not piece.endswith(b"\n"):
            piece = stream.readline(limit + 1)
        yield number, None


def _decompressed(stream: IO[bytes], uri: str) -> IO[bytes]:
    """The stream decompressed by its name's ending; a stream that ends inside a frame raises EOFError or OSError."""
    if uri.endswith(".zst"):
        import pyarrow as pa  # zstandard's own reader takes a truncated frame for the end of the file

        source = pa.CompressedInputStream(pa.PythonFile(stream, mode="r"), "zstd")
        return cast("IO[bytes]", io.BufferedReader(cast(Any, source), 1 << 16))
    if uri.endswith(".gz"):
        return cast("IO[bytes]", gzip.GzipFile(fileobj=stream))
    return stream


def read_jsonl(file: RawFile, folder: Path, config: IngestConfig) -> Iterator[Record | Bad]:
    """JSON lines, plain or compressed (.gz, .zst)."""
    number = 0
    with opened(file, folder) as raw:
        try:
            for number, line in lines(_decompressed(raw, file.uri), config.max_record_bytes):
                yield Bad("too long", f"{file.uri}:{number}") if line is None else _json_record(line, f"{file.uri}:{number}", config)
        except (EOFError, OSError, zlib.error) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise  # the disk or the network, not the content
            yield Bad(DAMAGED, f"{file.uri} after line {number}: {error}")


def _json_record(line: bytes, place: str, config: IngestConfig) -> Record | Bad:
    try:
        value = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError:
        return Bad("invalid UTF-8", place)
    except (ValueError, RecursionError):
        return Bad("empty line" if not line.strip() else "not JSON", place)
    if not isinstance(value, dict):
        return Bad("not a JSON object", place)
    return _record(value, place, config)


def _record(value: dict[str, Any], place: str, config: IngestConfig) -> Record | Bad:
    if config.text_field not in value:
        return Bad(f"no field '{config.text_field}'", place)
    text = value[config.text_field]
    if not isinstance(text, str):
        return Bad(f"'{config.text_field}' is not a string", place)
    if not text.strip():
        return Bad("empty text", place)
    try:
        if not text.isascii():
            text.encode("utf-8")
    except UnicodeEncodeError:  # a JSON escape such as \ud800 makes a string that no file can hold
        return Bad("invalid UTF-8", place)
    return Record(text, _label(value.get(config.url_field)), _label(value.get(config.license_field)))


def _label(value: Any) -> str:
    """An address or licence as text; what UTF-8 cannot hold becomes '?', since the document itself is usable."""
    return str(value or "").encode("utf-8", "replace").decode()


def read_parquet(file: RawFile, folder: Path, config: IngestConfig) -> Iterator[Record | Bad]:
    """Parquet with a text column; row groups are read a batch at a time."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    with opened(file, folder) as stream:
        if not stream.seekable():
            stream = io.BytesIO(stream.read())
        try:
            parquet = pq.ParquetFile(stream)
        except (pa.ArrowInvalid, OSError) as error:
            yield Bad(DAMAGED, f"{file.uri}: {str(error).strip()}")
            return
        present = set(parquet.schema_arrow.names)
        if config.text_field not in present:
            raise InputError(f"{file.uri} has no column '{config.text_field}'; it has: {', '.join(sorted(present))}")
        columns = [c for c in (config.text_field, config.url_field, config.license_field) if c in present]
        row = 0
        try:
            for batch in parquet.iter_batches(batch_size=1024, columns=columns):
                for value in _rows(batch):
                    row += 1
                    place = f"{file.uri}:{row}"
                    yield Bad("invalid UTF-8", place) if value is None else _record(value, place, config)
        except (pa.ArrowInvalid, OSError) as error:
            yield Bad(DAMAGED, f"{file.uri} after row {row}: {str(error).strip()}")


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


def read_warc(file: RawFile, folder: Path, config: IngestConfig) -> Iterator[Record | Bad]:
    """Web pages: HTML responses with status 200, their main text by resiliparse, the charset detected.

    After damage reading goes on with the next record that can be found, where the file can be sought in (a local one)."""
    with opened(file, folder) as stream:
        start: int | None = 0
        while start is not None:
            start = yield from _read_records(stream, start, file.uri, config)


def _read_records(stream: IO[bytes], start: int, uri: str, config: IngestConfig) -> Generator[Record | Bad, None, int | None]:
    """The records from an offset on; returns where to go on after damage, None where there is nothing more to read."""
    from fastwarc.warc import ArchiveIterator, WarcRecordType

    seekable = stream.seekable()
    if start:
        stream.seek(start)
    counted = _Counted(stream)
    offset, records, declared, cut, problem = start, 0, 0, False, ""
    held: Record | Bad | None = None  # the last page, until what follows says that its length was right
    try:
        for record in ArchiveIterator(cast(Any, counted), record_types=WarcRecordType.response, parse_http=False):
            if held is not None:
                yield held
            held = None
            offset, records, declared = start + record.stream_pos, records + 1, record.content_length
            place, cut = f"{uri}@{offset}", False
            if declared > config.max_record_bytes:
                yield Bad("too long", place)
                here = stream.tell() if seekable else 0
                if seekable and (after := resync.after_long(stream, offset, declared)) is not None:
                    return after
                if seekable:
                    stream.seek(here)
                continue
            record.freeze()  # the whole block into memory: only now is its real length known
            cut = record.content_length < declared or not declared  # a header cut in two declares nothing
            if cut:
                yield Bad(DAMAGED, place)
                continue
            held = _page(record, place, config)
    except Exception as error:  # fastwarc raises its own stream errors, which share no base class
        problem = f"{uri} after record @{offset}: {error}"
    if not problem and not cut and not counted.clean_end():
        problem = f"{uri}@{start + counted.position} (after {records} records)"
    if held is not None and problem and seekable and not resync.whole(stream, offset, declared):
        held, problem = None, f"{uri}@{offset}: not as long as it says"
    if held is not None:
        yield held
    if problem and not cut and (records or not start):  # else this damage has been told: by its record, or by what led here
        yield Bad(DAMAGED, problem)
    elif records == 0 and start == 0:
        yield Bad("no response record", uri)
    return resync.next_record(stream, offset + 1) if seekable and (problem or cut) else None


def _page(record: Any, place: str, config: IngestConfig) -> Record | Bad:
    """The text of a response."""
    from resiliparse.extract.html2text import extract_plain_text
    from resiliparse.parse.encoding import bytes_to_str, detect_encoding

    record.parse_http()
    if record.http_headers is None or record.http_headers.status_code != 200:
        return Bad("not status 200", place)
    if "html" not in (record.http_content_type or ""):
        return Bad("not HTML", place)
    body = record.reader.read()
    text = extract_plain_text(bytes_to_str(body, detect_encoding(body) or "utf-8"), main_content=config.main_content)
    return Record(text, record.headers.get("WARC-Target-URI") or "") if text.strip() else Bad("no main text", place)


TAIL = 1 << 20
"""Bytes kept at least of what was read last, in which the last gzip member is looked for."""


class _Counted(io.RawIOBase):
    """A stream that counts what was read, and knows whether a WARC file ended where a record ends."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream, self.position = stream, 0
        self._head, self._tail = b"", bytearray()

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        data = self._stream.read(size)
        self.position += len(data)
        self._head = self._head or data[:2]
        self._tail += data
        if len(self._tail) > 2 * TAIL:
            del self._tail[:-TAIL]
        return data

    def tell(self) -> int:
        return self.position

    def clean_end(self) -> bool:
        """Whether the last gzip member of what was read is whole; without compression, whether two empty lines end it."""
        if self._head != b"\x1f\x8b":
            return self._head != b"WA" or self._tail.endswith(b"\r\n\r\n")
        start = self._tail.rfind(b"\x1f\x8b\x08")
        while start >= 0:
            try:
                gzip.decompress(self._tail[start:])
                return True
            except (EOFError, OSError, zlib.error):
                before = self._tail.rfind(b"\x1f\x8b\x08", 0, start)
                if before < 0:
                    return len(self._tail) >= TAIL  # a member of over 1 MiB: cannot tell, fastwarc did not object
                start = before
        return False


def read_code(file: RawFile, folder: Path, config: IngestConfig) -> Iterator[Record | Bad]:
    """One source file, one document."""
    with opened(file, folder) as stream:
        data = stream.read(config.max_record_bytes + 1)
    if len(data) > config.max_record_bytes:
        yield Bad("too long", file.uri)
    elif b"\0" in data:
        yield Bad("binary", file.uri)
    else:
        try:
            text = data.decode("utf-8")
        except UnicodeDecodeError as error:
            yield Bad("invalid UTF-8", f"{file.uri}@{error.start}")
            return
        yield Record(text, file.uri) if text.strip() else Bad("empty text", file.uri)


def read_hf(file: RawFile, folder: Path, config: IngestConfig) -> Iterator[Record | Bad]:
    """A Hugging Face data set by name and revision, streamed: nothing is downloaded beforehand."""
    from datasets import load_dataset

    parts = urllib.parse.urlsplit(file.uri)
    query = dict(urllib.parse.parse_qsl(parts.query))
    name, _, revision = f"{parts.netloc}{parts.path}".partition("@")
    if not revision:
        raise InputError(f"{file.uri}: name a revision (hf://owner/name@<commit>), or the data may change under the same key")
    try:
        rows = load_dataset(name, query.get("config"), split=query.get("split", "train"), revision=revision, streaming=True)
        for number, value in enumerate(rows, 1):
            yield _record(dict(value), f"{file.uri}:{number}", config)
    except (ValueError, FileNotFoundError) as error:  # no such data set, configuration or split
        raise InputError(f"{file.uri} cannot be used: {str(error).partition(chr(10))[0]}") from error
    except Exception as error:  # the library's errors share no base class; each is about the data set, not about us
        raise InfraError(f"{file.uri} cannot be read: {type(error).__name__}: {str(error).partition(chr(10))[0]}") from error


READERS: dict[str, Reader] = {
    "jsonl": read_jsonl,
    "parquet": read_parquet,
    "warc": read_warc,
    "code": read_code,
    "hf": read_hf,
}
