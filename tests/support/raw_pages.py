"""Pages, rows and texts as raw sources have them."""

from __future__ import annotations

import json
import random
from typing import Any


def jsonl(*values: Any) -> bytes:
    return b"".join(json.dumps(v).encode() + b"\n" for v in values)


def page(
    number: int, status: str = "200 OK", kind: str = "text/html; charset=utf-8", type: str = "response", size: int = 20
) -> bytes:
    """One WARC record of a page with navigation around its article."""
    article = f"Words of page number {number} that are many enough to be the main text. " * size
    html = f"<html><body><nav><a href='/x'>Home</a></nav><main><article><p>{article}</p></article></main></body></html>"
    body = html.encode("latin-1" if "latin" in kind else "utf-8")
    block = f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
    head = (
        f"WARC/1.1\r\nWARC-Type: {type}\r\nWARC-Record-ID: <urn:uuid:00000000-0000-0000-0000-{number:012d}>\r\n"
        f"WARC-Target-URI: https://example.org/{number}\r\nWARC-Date: 2024-01-01T00:00:00Z\r\n"
        f"Content-Type: application/http; msgtype=response\r\nContent-Length: {len(block)}\r\n\r\n"
    )
    return head.encode() + block + b"\r\n\r\n"


def prose(seed: int = 0, sentences: int = 30) -> str:
    """A page that keeps every rule."""
    rng = random.Random(seed)
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = ["".join(rng.choices(letters, k=rng.randint(3, 9))) for _ in range(400)]
    lines = [
        f"The {' '.join(rng.choices(words, k=9))} and {' '.join(rng.choices(words, k=4))}." for _ in range(sentences)
    ]
    return "\n".join(lines)


PROSE = prose()


TUTORIAL = """Make arrays of numbers.

Parameters
----------
size{n} : int
    The number of elements in array {n}.
name{n} : str
    What the array number {n} is called.
copy{n} : bool
    Whether the values of {n} are copied.
scale{n} : float
    The factor that {n} is multiplied with.

Returns
-------
An array of numbers of the kind {n}.

Notes
-----
The array {n} is in the order of C.

Examples
--------
The example {n} shows how it is used.

See :class:`Array{n}`, :func:`make{n}`, :meth:`Array{n}.copy` and :attr:`Array{n}.size`.

The quick fox of number jumps over the lazy dog again.
"""
