"""Files: where the repository is, names that others chose, a file that appears whole or not at all, and the SHA-256 of
one. Light to import.
"""

from __future__ import annotations

import hashlib
import os
import re
import unicodedata
import uuid
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from stages.core.errors import InputError

ROOT = Path(__file__).resolve().parents[2]
"""The folder that holds the package `stages`: the repository, or what an image has of it."""

PATH_BYTES, NAME_BYTES = 1024, 255
"""The longest relative path, and the longest part of one, as UTF-8: what S3 takes as a key, and Linux as a name."""
_PLAIN = re.compile(r"(?:(?!\.{1,2}(?:/|\Z))[^/\\\x00-\x1f\x7f]+(?:/(?!\Z)|\Z))+")
_DRIVE = re.compile(r"[A-Za-z]:")


def is_inside(name: str) -> bool:
    """Whether a name that somebody else chose (in a manifest, a listing, an archive, a repository of the hub) is a path
    inside a folder, on every system: parts joined by single slashes, none of them '.' or '..', no drive, no backslash,
    no control character, short enough for a file, and no look-alike of a dot or a slash that leads elsewhere once it is
    normalized (NFKC).
    """
    if not _PLAIN.fullmatch(name) or _DRIVE.match(name):
        return False
    if not name.isascii():
        alike = unicodedata.normalize("NFKC", name).replace("\\", "/")
        if alike.startswith("/") or _DRIVE.match(alike) or {".", ".."} & set(alike.split("/")):
            return False
    try:
        data = name.encode()
    except UnicodeEncodeError:  # half of a surrogate pair
        return False
    return len(data) <= PATH_BYTES and all(len(part) <= NAME_BYTES for part in data.split(b"/"))


def inside(folder: Path, name: str, who: str = "") -> Path:
    """The path of a name that somebody else chose below a folder. Raises InputError where it is none (`is_inside`), or
    where a link in the folder leads out of it. who: what its message begins with.
    """
    before = f"{who}: " if who else ""
    if not is_inside(name):
        raise InputError(f"{before}{name[:200]!r} is no path inside a folder")
    path = folder / name
    if not path.resolve().is_relative_to(folder.resolve()):
        raise InputError(f"{before}{name[:200]!r} leads out of its folder by a link")
    return path


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
