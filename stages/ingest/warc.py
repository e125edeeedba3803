"""Web archives: the HTML responses with status 200, their main text by resiliparse. After damage reading goes on with
the next record.
"""

from __future__ import annotations

import functools
import gzip
import io
import operator
import zlib
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

from stages.ingest import bounded_process, warc_recovery
from stages.ingest.records import DAMAGED, Bad, Record
from stages.ingest.spec import IngestConfig
from stages.lib.formats.raw_file import Raw, opened
from stages.lib.formats.sources import RawFile
from stages.lib.formats.uris import shown

OTHERS = ("revisit", "resource", "conversion", "continuation")
"""Records that stand for a page which is elsewhere, or is none: counted. Requests and metadata stand beside one."""
TAIL = 1 << 20
"""Bytes kept of the end of a WARC, to see whether its last gzip member is whole: fastwarc takes a cut one for the end.
"""


TOGETHER, TOGETHER_BYTES = 16, 1 << 19
"""Pages, and bytes of them, that go to the process beside in one message."""


@dataclass(frozen=True)
class _Page:
    """A page whose text is still to be taken out."""

    body: bytes
    options: dict[str, Any]
    url: str
    at: int
    place: str


def read_warc(
    file: RawFile, folder: Path, config: IngestConfig, part: tuple[int, int] | None = None
) -> Iterator[Record | Bad]:
    """The pages of an archive. A part (of a packed one) has the records that begin in it."""
    with opened(file, folder) as raw:
        start: int | None = 0
        if part is not None and not warc_recovery.one_each(raw.stream):
            start, part = (None if part[0] > 0 else 0), None  # the first part has them all
        elif part is not None and part[0] > 0:
            start = warc_recovery.next_record(raw.stream, part[0])
        yield from _with_texts(_read_all(raw, start, part, config))


def _read_all(raw: Raw, start: int | None, part: tuple[int, int] | None, config: IngestConfig) -> Iterator[_Page | Bad]:
    while start is not None and (part is None or start < part[1]):
        start = yield from _read_records(raw, start, None if part is None else part[1], config)


def _with_texts(items: Iterator[_Page | Bad]) -> Iterator[Record | Bad]:
    """Pages with their text taken out, some at a time, in order."""
    held: list[_Page | Bad] = []
    size = 0
    for item in items:
        held.append(item)
        size += len(item.body) if isinstance(item, _Page) else 0
        if len(held) >= TOGETHER or size >= TOGETHER_BYTES:
            yield from _texts(held)
            held, size = [], 0
    yield from _texts(held)


def _texts(items: Sequence[_Page | Bad]) -> Iterator[Record | Bad]:
    answers = iter(
        bounded_process.shared().call_many(
            "page", [(item.body, item.options) for item in items if isinstance(item, _Page)]
        )
    )
    for item in items:
        if isinstance(item, Bad):
            yield item
            continue
        text, reason = next(answers)
        yield Bad(reason, item.place) if reason else Record(text, item.url, at=item.at)


def _read_records(
    raw: Raw, start: int, end: int | None, config: IngestConfig
) -> Generator[_Page | Bad, None, int | None]:
    """The records from an offset on; returns where to go on after damage, None where there is nothing more to read."""
    from fastwarc.warc import ArchiveIterator, WarcRecordType

    stream, uri = raw.stream, shown(raw.uri)
    seekable = stream.seekable()
    if seekable and stream.tell() != start:
        stream.seek(start)
    counted = _Counted(stream)
    offset, records, declared, cut, problem = start, 0, 0, False, ""
    held: _Page | Bad | None = None  # the last page, until what follows says that its length was right
    others = {int(getattr(WarcRecordType, name)): f"{name} record" for name in OTHERS}
    kinds = functools.reduce(operator.or_, others, int(WarcRecordType.response))
    try:
        for record in ArchiveIterator(cast(Any, counted), record_types=cast(Any, kinds), parse_http=False):
            if held is not None:
                yield held
            held = None
            offset, records, declared = start + record.stream_pos, records + 1, record.content_length
            if end is not None and offset >= end:
                return None
            place, cut = f"{uri}@{offset}", False
            if (kind := others.get(int(record.record_type))) is not None:
                yield Bad(kind, place)
                continue
            if declared > config.max_record_bytes:
                yield Bad("too long", place)
                here = stream.tell() if seekable else 0
                if seekable and (after := warc_recovery.after_long(stream, offset, declared)) is not None:
                    return after
                if seekable:
                    stream.seek(here)
                continue
            record.freeze()  # the whole block into memory: only now is its real length known
            cut = record.content_length < declared or not declared  # a header cut in two declares nothing
            if cut:
                raw.check()
                yield Bad(DAMAGED, place)
                continue
            held = _page(record, place, offset, config)
    except Exception as error:  # fastwarc raises its own stream errors, which share no base class
        raw.check()
        problem = f"{uri} after record @{offset}: {error}"
    raw.check()
    if not problem and not cut and not counted.clean_end():
        problem = f"{uri}@{start + counted.position} (after {records} records)"
    if held is not None and problem and seekable and not warc_recovery.whole(stream, offset, declared):
        held, problem = None, f"{uri}@{offset}: not as long as it says"
    if held is not None:
        yield held
    if (
        problem and not cut and (records or not start)
    ):  # else this damage has been told: by its record, or by what led here
        yield Bad(DAMAGED, problem)
    elif records == 0 and start == 0:
        yield Bad("no response record", uri)
    return warc_recovery.next_record(stream, offset + 1) if seekable and (problem or cut) else None


def _page(record: Any, place: str, offset: int, config: IngestConfig) -> _Page | Bad:
    """A response that is a page."""
    try:
        record.parse_http()
    except (OSError, ValueError):
        return Bad("no HTTP headers", place)
    headers = record.http_headers
    if headers is None or headers.status_code != 200:
        return Bad("not status 200", place)
    if "html" not in (record.http_content_type or ""):
        return Bad("not HTML", place)
    options = {
        "content_type": headers.get("Content-Type") or "",
        "encoding": headers.get("Content-Encoding") or "",
        "transfer": headers.get("Transfer-Encoding") or "",
        "limit": config.max_record_bytes,
        "main_content": config.main_content,
    }
    return _Page(record.reader.read(), options, record.headers.get("WARC-Target-URI") or "", offset, place)


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
        """Whether the last gzip member that was read is whole; without compression, whether two empty lines end it."""
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
