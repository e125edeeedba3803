"""Stored files opened where they are worked on, in any process of any machine: by ranges, or whole through the cache.

    with open_file(entry) as stream: ...       # seekable, reads only what is asked for
    with local_file(entry) as path: ...        # whole, verified, gone afterwards (the cache may keep it)

The runtime says in MOXIN_STORE where the store is, for this process and those that it starts. Credentials come from the
standard AWS environment. A file on a local disk (`FileEntry.is_local`) is read where it lies.
"""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from stages.core.artifacts import FileEntry
from stages.core.errors import InfraError, InputError, StageError
from stages.core.messages import StoreAddress
from stages.core.range_file import StoredFile
from stages.core.staging import Cache
from stages.core.store import Store
from stages.core.store_errors import Damaged
from stages.core.workspace import workspace

STORE = "MOXIN_STORE"
"""JSON of a `StoreAddress`."""
CACHE = "MOXIN_CACHE"
"""The folder of the local cache; without it nothing is kept."""
ATTEMPT = "MOXIN_ATTEMPT"
"""Whose processes may share a verification."""


def share(address: StoreAddress, attempt: str) -> None:
    """Let this process and those that it starts read the store. attempt: which attempt they belong to."""
    os.environ[STORE] = address.model_dump_json()
    os.environ[ATTEMPT] = attempt


def open_file(entry: FileEntry, verified: bool = False) -> BinaryIO:
    """A stored file, seekable (`stages.core.range_file`). Reading raises InfraError when the store fails, Damaged when
    the file is lost or holds other bytes. verified: nothing is fetched but whole blocks, whose CRC32 tells.
    """
    if entry.is_local:
        return open(entry.object, "rb")
    return StoredFile(_store(_address(), os.getpid()), entry, verified)


def read_checked(entry: FileEntry, at: int, size: int, problem: Callable[[bytes], str]) -> bytes:
    """A part of a stored file that carries its own sums. problem: what is wrong with the bytes; "": nothing.

    What came wrong is fetched once more: it may have changed on its way. Raises what `open_file` and `unreadable` do.
    """
    why = ""
    for _ in range(2):
        with open_file(entry) as stream:
            stream.seek(at)
            data = stream.read(size)
        why = problem(data) if len(data) == size else f"it ends after {at + len(data)} bytes"
        if not why:
            return data
    raise unreadable(entry, why)


@contextmanager
def local_file(entry: FileEntry) -> Generator[Path]:
    """A stored file whole on local disk, verified. Raises InfraError or Damaged."""
    if entry.is_local:
        yield Path(entry.object)
        return
    store = _store(_address(), os.getpid())
    with workspace() as folder:
        target = folder / Path(entry.path).name
        cache = Path(os.environ.get(CACHE) or folder / "cache")
        Cache(cache, store, os.environ.get(ATTEMPT, ""), logging.getLogger(__name__).warning).fetch([(entry, target)])
        yield target


def unreadable(entry: FileEntry, why: object) -> StageError:
    """What to raise when a file's bytes make no sense to its reader: InfraError where the store has them whole (they
    changed on their way, or this machine is bad), Damaged where it has others, InputError for a file of this machine.
    """
    line = " ".join(str(why).split())
    if entry.is_local:
        return InputError(f"{entry.path} cannot be read: {line}")
    store = _store(_address(), os.getpid())
    try:
        digest = store.digest(entry.object)
    except Damaged as error:
        return error
    if digest != entry.sha256:
        return Damaged(
            f"{store.where(entry.object)} is damaged: SHA-256 {digest}, but its manifest says {entry.sha256}",
            entry.object,
            digest,
        )
    return InfraError(
        f"{store.where(entry.object)} is whole in the store, but came here as what is no file of its kind"
        f" ({line}): try again, and look at this machine's network and memory"
    )


@contextmanager
def sense(entry: FileEntry, *kinds: type[Exception]) -> Generator[None]:
    """Turn a library's errors of these kinds over a file's bytes into `unreadable`; what the store raised stays."""
    try:
        yield
    except StageError:
        raise
    except kinds as error:
        raise unreadable(entry, error) from error


def _address() -> str:
    try:
        return os.environ[STORE]
    except KeyError:
        raise InfraError(f"{STORE} is not set: this process was not started by a stage") from None


@functools.lru_cache(maxsize=4)
def _store(address: str, process: int) -> Store:
    """The connections of this process: none is inherited through a fork."""
    return Store(StoreAddress.model_validate_json(address))
