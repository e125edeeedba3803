"""Files: where the repository is, a file that appears whole or not at all, and the SHA-256 of one. Light to import."""

from __future__ import annotations

import hashlib
import os
import uuid
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
"""The folder that holds the package `stages`: the repository, or what an image has of it."""


@contextmanager
def replacing(path: Path) -> Generator[Path]:
    """A path beside `path` to write a file to; it takes the place of `path` at the end, at once.

    When the block raises, what it wrote is removed and `path` stays as it was. Two writers do not meet: the last one
    to finish wins. Raises OSError.
    """
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_atomically(path: Path, text: str, mode: int = 0o666, errors: str = "strict") -> None:
    """Write a text file as UTF-8; it appears whole, with the permissions `mode` (less the umask), or not at all.

    errors: what becomes of text that UTF-8 cannot hold, as `open` has it. Raises OSError.
    """
    with replacing(path) as partial:
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with open(descriptor, "w", encoding="utf-8", errors=errors) as stream:
            stream.write(text)


def file_sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file, streamed. Raises OSError."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
