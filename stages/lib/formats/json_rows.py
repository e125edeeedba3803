"""JSON lines and JSON lists, value by value in bounded memory; no schema is made up, and what cannot be read is told by
its place.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from typing import IO, Any

NOT_JSON = (ValueError, RecursionError)
"""What json raises: no JSON, a number of over 4,300 digits, lists 1,000 deep."""
EMPTY = "empty line"


def head(stream: IO[bytes], size: int) -> bytes:
    """The next bytes, which stay unread. stream: must have `peek`."""
    return bytes(stream.peek(size)[:size])  # type: ignore[attr-defined]


def begins_a_list(stream: IO[bytes]) -> bool:
    """Whether what comes is one JSON list."""
    return head(stream, 1 << 12).lstrip()[:1] == b"["


def placed_lines(
    stream: IO[bytes], limit: int, at: int = 0, end: int | None = None
) -> Iterator[tuple[int, int, bytes | None]]:
    """(number, offset, content) of each line that begins before `end`; None for one over `limit` bytes, which is passed
    over in pieces.
    """
    number = 0
    while (end is None or at < end) and (piece := stream.readline(limit + 1)):
        number += 1
        start, at = at, at + len(piece)
        if len(piece) <= limit or (piece.endswith(b"\n") and len(piece) == limit + 1):
            yield number, start, piece
            continue
        while piece and not piece.endswith(b"\n"):
            piece = stream.readline(limit + 1)
            at += len(piece)
        yield number, start, None


def line_value(line: bytes | None, errors: str = "strict") -> tuple[Any, str]:
    """(value, '') of a line, or (None, why there is none). errors: "surrogateescape" keeps bytes that are no UTF-8, as
    lone surrogates.
    """
    if line is None:
        return None, "too long"
    try:
        return json.loads(line.decode("utf-8", errors)), ""
    except UnicodeDecodeError:
        return None, "invalid UTF-8"
    except NOT_JSON:
        return None, EMPTY if not line.strip() else "not JSON"


def list_values(stream: IO[bytes], limit: int) -> Iterator[tuple[str, Any, str]]:
    """(place, value, '') of each element of one JSON list, or (place, None, why there is none): then nothing follows.

    A window of text is decoded that holds one element at least, and doubles until it does; one over `limit` characters
    is too long. Bytes that are no UTF-8 come as lone surrogates.
    """
    decoder, window, number, to_read, ended = json.JSONDecoder(), "", 0, 1 << 16, False
    text = io.TextIOWrapper(stream, "utf-8", errors="surrogateescape", newline="")
    window = text.read(to_read).lstrip()[1:]
    while True:
        window = window.lstrip(" \t\r\n,")
        if window.startswith("]"):
            if window[1:].strip():
                yield f"after element {number}", None, "not JSON"
            return
        try:
            value, end = decoder.raw_decode(window)
            if end == len(window) and not ended:  # a number may go on
                raise ValueError
        except NOT_JSON:
            more = "" if ended or len(window) > limit else text.read(to_read)
            if not more:
                yield f"element {number + 1}, and what follows", None, "too long" if len(window) > limit else "not JSON"
                return
            window, to_read, ended = window + more, 2 * to_read, len(more) < to_read
            continue
        number, window, to_read = number + 1, window[end:], max(1 << 16, min(to_read, 2 * end))
        yield f"element {number}", value, ""
