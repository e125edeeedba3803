"""Opening a raw file wherever it is, and whoever serves it: on this disk, by address, or from a mirror.

with opened(file, folder) as raw:
    for line in raw.text(): ...
"""

from __future__ import annotations

import io
import urllib.parse
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path, PurePosixPath
from typing import IO, Any

from stages.core.artifacts import FileEntry
from stages.core.errors import InfraError, InputError, StageError
from stages.core.files import inside
from stages.core.reading import open_file
from stages.lib.formats.compression import unpacked, utf8
from stages.lib.formats.remote import RemoteFile
from stages.lib.formats.remote_http import Http, HubFile
from stages.lib.formats.remote_s3 import S3
from stages.lib.formats.sources import RawFile
from stages.lib.formats.uris import named, shown

BUFFER = 1 << 20
LOOPBACK = ("127.0.0.1", "localhost")
"""Hosts that are read from without encryption, as lists of files are."""
served: ContextVar[Counter[str]] = ContextVar("served")
"""Counts the files that another address than their own served, where somebody wants to know."""

required_size: ContextVar[int | None] = ContextVar("required_size", default=None)
"""Bytes of the file that parts were measured at: an address that has another length is none of its mirrors."""


stored: ContextVar[Mapping[str, FileEntry]] = ContextVar("stored")
"""Files of the listing's own artifact, by their path in it: read where they are stored."""


class Raw(io.RawIOBase):
    """A raw file as its reader sees it.

    The error of a disk or a network is kept: where a library swallows it, or calls it damage, `check` says what it was.
    """

    def __init__(self, below: Any, uri: str) -> None:
        self.uri = uri
        self._below = below
        self._failure: Exception | None = None
        self.stream: IO[bytes] = io.BufferedReader(self, BUFFER)
        if (
            isinstance(below, RemoteFile)
            and below.promise.encoding
            and not named(uri).endswith((".gz", ".zst", ".bz2", ".xz"))
        ):
            if below.promise.encoding not in ("gzip", "x-gzip"):
                raise InputError(
                    f"{shown(uri)}: the server packs it as {below.promise.encoding}, although it was asked not to"
                )
            self.stream = unpacked(self.stream, "body.gz")

    @property
    def size(self) -> int | None:
        """Bytes, where that is known."""
        if isinstance(self._below, RemoteFile):
            return self._below.promise.size if not self._below.promise.encoding else None
        here = self._below.tell()
        size = self._below.seek(0, 2)
        self._below.seek(here)
        return size

    def text(self) -> IO[bytes]:
        """Its content taken apart, as UTF-8 without a byte order mark."""
        return utf8(unpacked(self.stream, named(self.uri)))

    def check(self) -> None:
        """Raise what the disk or the network did, if they did."""
        if self._failure is not None:
            raise self._failure

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return self._below.seekable()

    def tell(self) -> int:
        return self._below.tell()

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._below.seek(offset, whence)

    def readinto(self, buffer: Any) -> int:
        try:
            return self._below.readinto(buffer)
        except OSError as error:
            self._failure = InfraError(f"raw file {shown(self.uri)} cannot be read: {error}")
            raise self._failure from error
        except StageError as error:
            self._failure = error
            raise

    def close(self) -> None:
        if not self.closed:
            self._below.close()
        super().close()


@contextmanager
def opened(file: RawFile, folder: Path) -> Iterator[Raw]:
    """Open a raw file, or the first of its mirrors that can be had. Raises InputError or InfraError naming it."""
    raw = _first(file, folder)
    try:
        yield raw
        raw.check()
    except StageError:
        raise
    except Exception:
        raw.check()
        raise
    finally:
        with suppress(Exception):
            raw.close()


def _first(file: RawFile, folder: Path) -> Raw:
    errors: list[StageError] = []
    for uri in (file.uri, *file.mirrors):
        try:
            raw = Raw(_below(uri, folder, file.format), uri)
        except (InputError, InfraError) as error:
            errors.append(error)
            continue
        if (required := required_size.get()) is not None and raw.size != required:
            errors.append(
                InputError(
                    f"{shown(uri)} has {raw.size} bytes, and the file was cut into parts as one of {required}: a mirror"
                    " must hold the same bytes"
                )
            )
            raw.close()
            continue
        if errors and (counter := served.get(None)) is not None:
            counter[shown(uri)] += 1
        return raw
    if len(errors) == 1:
        raise errors[0]
    kind = next((InfraError for error in errors if isinstance(error, InfraError)), InputError)
    raise kind(f"{'; '.join(map(str, errors))} ({len(errors)} addresses were tried)")


def _below(uri: str, folder: Path, format: str) -> Any:
    parts = urllib.parse.urlsplit(uri)
    if uri.startswith(("s3://", "https://", "hf://")) or (parts.scheme == "http" and parts.hostname in LOOPBACK):
        return remote(uri)
    if uri.startswith("file://"):
        path = Path(urllib.parse.unquote(parts.path))
    elif "://" in uri:
        raise InputError(f"{shown(uri)}: no way to read '{parts.scheme}://' addresses of format {format}")
    elif uri in (entries := stored.get(None) or {}):
        return open_file(entries[uri])
    else:
        path = inside(folder, str(PurePosixPath(uri)), "the listing names a path outside its artifact")
    try:
        return open(path, "rb", buffering=0)
    except FileNotFoundError as error:
        raise InputError(f"raw file {uri} is not there") from error
    except (IsADirectoryError, NotADirectoryError) as error:
        raise InputError(f"raw file {uri} is no file but a folder, or lies under a file") from error
    except OSError as error:
        raise InfraError(f"raw file {uri} cannot be read: {error}") from error


def remote(uri: str) -> RemoteFile:
    """Open a remote file. Raises InputError when there is none, or no way to it; InfraError when it cannot be
    reached.
    """
    scheme = urllib.parse.urlsplit(uri).scheme
    if scheme == "s3":
        return RemoteFile(S3(uri), uri)
    if scheme in ("https", "http"):
        return RemoteFile(Http(uri, uri), uri)
    assert scheme == "hf", scheme
    return RemoteFile(HubFile.parse(uri).source(uri), uri)
