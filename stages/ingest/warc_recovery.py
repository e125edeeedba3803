"""Finding the way in a WARC again: where the next record begins after damage, and whether one was as long as it said.

A record's length is its own word. One that is wrong takes its reader into the middle of other records; what lies behind
is found by what a record begins with. The stream must be seekable; its position afterwards is anywhere.
"""

from __future__ import annotations

import re
import zlib
from typing import IO

PIECE = 1 << 20
END = b"\r\n\r\n"
"""Ends a header, and a record (ISO 28500)."""


def packed(stream: IO[bytes]) -> bool:
    """Whether the file is a row of gzip members."""
    stream.seek(0)
    return stream.read(2) == b"\x1f\x8b"


def next_record(stream: IO[bytes], position: int) -> int | None:
    """Where, from `position` on, the next record begins: in a packed file a member that holds one. None: nowhere."""
    members = packed(stream)
    mark, skip = (b"\x1f\x8b\x08", 0) if members else (END + b"WARC/1.", len(END))
    start, data = position, b""
    stream.seek(position)
    while piece := stream.read(PIECE):
        data += piece
        offset = data.find(mark)
        while offset >= 0:
            if not members or _begins_a_record(stream, start + offset):
                return start + offset + skip
            offset = data.find(mark, offset + 1)
        kept = len(mark) - 1
        start, data = start + max(0, len(data) - kept), data[-kept:]
        stream.seek(start + len(data))
    return None


_LENGTH = re.compile(rb"^content-length:[ \t]*(\d{1,18})[ \t\r]*$", re.IGNORECASE | re.MULTILINE)
LONGEST_HEADER = 1 << 20
"""Bytes of a record's header that are looked through for its length."""


def one_each(stream: IO[bytes]) -> bool:
    """Whether a record begins where a gzip member does, as crawlers write: told by the first member, which then holds
    one record alone.

    In a file that was packed as a whole, or in blocks, fastwarc's positions are those of its buffers: it cannot be read
    in parts.
    """
    if not packed(stream):
        return True
    stream.seek(0)
    machine, head, size, record_size = zlib.decompressobj(31), b"", 0, -1
    while not machine.eof and (record_size < 0 or size <= record_size) and (piece := stream.read(1 << 16)):
        try:
            data = machine.decompress(piece)
        except zlib.error:
            return False
        size += len(data)
        if record_size < 0:
            head += data
            end = head.find(END)
            length = _LENGTH.search(head, 0, end) if end >= 0 else None
            if length is None and (end >= 0 or len(head) > LONGEST_HEADER):
                return False
            record_size = end + len(END) + int(length[1]) + len(END) if length else -1
    return machine.eof and record_size - len(END) <= size <= record_size


def _begins_a_record(stream: IO[bytes], position: int) -> bool:
    stream.seek(position)
    try:
        return zlib.decompressobj(31).decompress(stream.read(1024), 7) == b"WARC/1."
    except zlib.error:
        return False


def after_long(stream: IO[bytes], position: int, declared: int) -> int | None:
    """Where to go on after a record that is passed over for its length. None: where that length says.

    The length of a member is known without its record; in a plain file a length is believed unless it leads out of the
    file.
    """
    if not packed(stream) and position + declared <= stream.seek(0, 2):
        return None
    return next_record(stream, position + 1)


def whole(stream: IO[bytes], position: int, declared: int) -> bool:
    """Whether the record at `position` is as long as its header says: two empty lines, or the file's end, follow it."""
    members = packed(stream)
    stream.seek(position)
    machine = zlib.decompressobj(31) if members else None
    data = bytearray()
    body = -1
    while body < 0 or len(data) <= body + declared + len(END):
        if not (piece := stream.read(1 << 16)):
            break
        try:
            data += machine.decompress(piece) if machine else piece
        except zlib.error:
            break
        if body < 0 and (head_end := data.find(END)) >= 0:
            body = head_end + len(END)
        if machine and machine.eof:
            break
    if body < 0 or len(data) < body + declared:
        return False
    rest = bytes(data[body + declared :])
    return END.startswith(rest) if members or len(rest) < len(END) else rest.startswith(END)
