"""The body of an HTTP answer as an archive keeps it: chunked, packed (gzip, deflate, br, zstd), or already taken apart.

Crawlers differ: some store what came over the line, some what it meant, and leave the headers as they were. So a header
is believed
only where the body bears it out: chunks must look like chunks, gzip must begin like gzip. Memory is bounded by the
limit given.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable

_CHUNK = re.compile(rb"[ \t]*([0-9A-Fa-f]{1,16})[ \t]*(?:;[^\r\n]{0,4096})?\r?\n")


class Undecodable(Exception):
    """The body cannot be decoded; the message is the reason that is counted."""


CUT = "damaged HTTP body"
LONG = "too long"


def decoded(body: bytes, content_encoding: str, transfer_encoding: str, limit: int) -> bytes:
    """The page itself, at most `limit` bytes. Raises Undecodable with the reason."""
    for coding in reversed(_codings(transfer_encoding)):
        body = _unchunked(body) if coding == "chunked" else _unpacked(body, coding, limit)
    for coding in reversed(_codings(content_encoding)):
        body = _unpacked(body, coding, limit)
    if len(body) > limit:
        raise Undecodable(LONG)
    return body


def _codings(value: str) -> list[str]:
    codings = [coding.strip().lower().removeprefix("x-") for coding in value.split(",")]
    return [coding for coding in codings if coding not in ("", "identity", "none", "binary", "utf-8", "8bit")]


def _unchunked(body: bytes) -> bytes:
    """The chunks put together (RFC 9112, 7.1). What does not begin as a chunk was put together before."""
    parts, at = [], 0
    while True:
        match = _CHUNK.match(body, at)
        if match is None:
            if not at:
                return body
            raise Undecodable(CUT)
        size = int(match[1], 16)
        if size == 0:
            return b"".join(parts)
        if match.end() + size > len(body):
            if not at and not body[match.end() + size :]:
                return body if body.lstrip()[:1] == b"<" else _raise()
            raise Undecodable(CUT)
        parts.append(body[match.end() : match.end() + size])
        at = match.end() + size
        at += 2 if body[at : at + 2] == b"\r\n" else 1 if body[at : at + 1] == b"\n" else 0
        if at >= len(body):
            raise Undecodable(CUT)  # no last chunk: cut


def _raise() -> bytes:
    raise Undecodable(CUT)


def _unpacked(body: bytes, coding: str, limit: int) -> bytes:
    if not body:
        return body
    if coding not in _PACKED:
        raise Undecodable("unknown HTTP encoding")
    if _PAGE.match(body) is not None:
        return body  # taken apart before, and the header left as it was
    return _PACKED[coding](body, limit)


_PAGE = re.compile(rb"(?:\xef\xbb\xbf)?\s{0,100}<[!?a-zA-Z/]")
"""How a page begins, and nothing packed does: gzip begins 1f 8b, zlib x8 or 78, zstd 28 b5 2f fd; brotli may, but not
as text goes on.
"""


def _inflated(body: bytes, limit: int, bits: int) -> bytes:
    """Members one after another, as gzip allows."""
    parts, size = [], 0
    while body:
        machine = zlib.decompressobj(bits)
        try:
            data = machine.decompress(body, limit - size + 1)
        except zlib.error as error:
            if parts and bits == 31:
                break  # whatever lies behind a whole member
            raise Undecodable(CUT) from error
        parts.append(data)
        size += len(data)
        if size > limit:
            raise Undecodable(LONG)
        if not machine.eof:
            raise Undecodable(CUT)
        body = machine.unused_data if bits == 31 else b""
    return b"".join(parts)


def _gzip(body: bytes, limit: int) -> bytes:
    return _inflated(body, limit, 31)


def _deflate(body: bytes, limit: int) -> bytes:
    """With zlib's header, as RFC 9110 has it, or without, as some servers send it."""
    try:
        return _inflated(body, limit, 15)
    except Undecodable as error:
        if str(error) == LONG:
            raise
        return _inflated(body, limit, -15)


def _brotli(body: bytes, limit: int) -> bytes:
    import brotli

    machine = brotli.Decompressor()
    parts, size, data = [], 0, body
    try:
        while True:
            part = machine.process(data, output_buffer_limit=1 << 20)
            parts.append(part)
            size += len(part)
            data = b""
            if size > limit:
                raise Undecodable(LONG)
            if machine.is_finished():
                return b"".join(parts)
            if not part and machine.can_accept_more_data():
                raise Undecodable(CUT)
    except brotli.error as error:
        raise Undecodable(CUT) from error


def _zstd(body: bytes, limit: int) -> bytes:
    import io

    from stages.lib.formats.compression import Damaged, unpacked

    try:
        data = unpacked(io.BytesIO(body), "body.zst").read(limit + 1)
    except Damaged as error:
        raise Undecodable(CUT) from error
    if len(data) > limit:
        raise Undecodable(LONG)
    return data


_PACKED: dict[str, Callable[[bytes, int], bytes]] = {"gzip": _gzip, "deflate": _deflate, "br": _brotli, "zstd": _zstd}
