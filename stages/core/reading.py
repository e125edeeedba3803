"""Stored files opened where they are worked on, in any process of any machine: by ranges, or whole through the cache.

    with open_file(entry) as stream: ...       # seekable, reads only what is asked for
    with local_file(entry) as path: ...        # whole, verified, gone afterwards (the cache may keep it)

The runtime says in MOXIN_STORE where the store is, for this process and those that it starts. Credentials come from the
standard AWS environment. A file on a local disk (`FileEntry.is_local`) is read where it lies.
"""

from __future__ import annotations

import functools
import io
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from stages.core.artifacts import FileEntry
from stages.core.errors import InfraError
from stages.core.messages import StoreAddress
from stages.core.staging import Cache
from stages.core.store import Store
from stages.core.workspace import workspace

STORE = "MOXIN_STORE"
"""JSON of a `StoreAddress`."""
CACHE = "MOXIN_CACHE"
"""The folder of the local cache; without it nothing is kept."""
ATTEMPT = "MOXIN_ATTEMPT"
"""Whose processes may share a verification."""
BUFFER = 1 << 20
"""Bytes of the smallest request."""


def share(address: StoreAddress, attempt: str) -> None:
    """Let this process and those that it starts read the store. attempt: which attempt they belong to."""
    os.environ[STORE] = address.model_dump_json()
    os.environ[ATTEMPT] = attempt


def open_file(entry: FileEntry) -> BinaryIO:
    """A stored file, seekable. Raises InfraError when the store fails, Damaged when the file is lost."""
    if entry.is_local:
        return open(entry.object, "rb")
    return io.BufferedReader(RangeFile(_store(_address()), entry), BUFFER)


@contextmanager
def local_file(entry: FileEntry) -> Iterator[Path]:
    """A stored file whole on local disk, verified. Raises InfraError or Damaged."""
    if entry.is_local:
        yield Path(entry.object)
        return
    store = _store(_address())
    with workspace() as folder:
        target = folder / Path(entry.path).name
        cache = Path(os.environ.get(CACHE) or folder / "cache")
        Cache(cache, store, os.environ.get(ATTEMPT, ""), logging.getLogger(__name__).warning).fetch([(entry, target)])
        yield target


class RangeFile(io.RawIOBase):
    """A stored file that is read by ranges."""

    def __init__(self, store: Store, entry: FileEntry) -> None:
        self._store, self._entry, self._position = store, entry, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._position = max(0, offset + (0, self._position, self._entry.size)[whence])
        return self._position

    def readinto(self, buffer: Any) -> int:
        end = min(self._position + len(buffer), self._entry.size)
        data = self._store.get_range(self._entry.object, self._position, end)
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)


def _address() -> str:
    try:
        return os.environ[STORE]
    except KeyError:
        raise InfraError(f"{STORE} is not set: this process was not started by a stage") from None


@functools.lru_cache(maxsize=4)
def _store(address: str) -> Store:
    return Store(StoreAddress.model_validate_json(address))
