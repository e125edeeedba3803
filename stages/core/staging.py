"""The local cache: objects by their SHA-256, shared by the stages of a machine. Nothing is read from it unverified.

Every process verifies every file that it takes, once. A cheaper rule does not hold: a name and a size say nothing, and
bits that rot on a disk change neither the modification time nor the inode. SHA-256 takes half a second for a gigabyte
(measured with hashlib: 2.0 GB in a second of one core's time), several files at once, and leaves the file in the page
cache, from which the stage reads it next: less than the stage's own work on it. The processes of one attempt on one
machine (torchrun's ranks) share one verification while inode, size and modification time stay as they were. A lock for
each file also lets them fetch it once. What has no room makes others go first (`stages.core.eviction`).
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from stages.core.artifacts import FileEntry
from stages.core.eviction import count, entry_lock, make_room
from stages.core.files import file_sha256, replacing
from stages.core.store import Store, in_threads


class Cache:
    """The folder `<two digits>/<SHA-256>`. attempt: whose processes may share a verification."""

    def __init__(self, folder: Path, store: Store, attempt: str, warn: Callable[[str], None]) -> None:
        self._folder, self._store, self._attempt, self._warn = folder, store, attempt, warn

    def fetch(self, entries: Sequence[tuple[FileEntry, Path]]) -> None:
        """Bring files to their places, as links to verified entries. Raises Damaged where the store has other bytes."""
        missing = {e.sha256: e.size for e, _ in entries if not self.path(e.sha256).is_file()}
        if missing:
            make_room(self._folder, sum(missing.values()), frozenset(e.sha256 for e, _ in entries))
        try:
            in_threads(self._fetch_one, entries, self._store.interrupted)
        finally:
            self._store.interrupted.clear()

    def _fetch_one(self, entry_and_target: tuple[FileEntry, Path]) -> None:
        entry, target = entry_and_target
        cached = self.path(entry.sha256)
        target.parent.mkdir(parents=True, exist_ok=True)
        with self._locked(cached) as notes:
            os.utime(notes.fileno())  # used now
            if not self._verified(cached, entry, notes):
                self._store.get_file(entry, cached)
                cached.chmod(0o444)
                self._note(cached, notes)
            link_or_copy(cached, target)

    def path(self, sha256: str) -> Path:
        """Where an object with this digest lies."""
        return self._folder / sha256[:2] / sha256

    def keep(self, entry: FileEntry, output: Path) -> None:
        """Keep a file that this stage has made: the next stage on this machine reads it."""
        cached = self.path(entry.sha256)
        with self._locked(cached):
            if not cached.exists():
                output.chmod(0o444)
                with contextlib.suppress(OSError):  # where it must be copied and has no room: it can be fetched
                    link_or_copy(output, cached)
                    count(self._folder, entry.size)

    def _verified(self, cached: Path, entry: FileEntry, notes: IO[str]) -> bool:
        """Whether the entry is there and has the bytes that it should. One that has not is removed, and said."""
        if not cached.is_file():
            return False
        with contextlib.suppress(ValueError):
            notes.seek(0)
            if json.loads(notes.read() or "null") == [self._attempt, *_identity(cached)]:
                return True
        if cached.stat().st_size == entry.size and file_sha256(cached) == entry.sha256:
            self._note(cached, notes)
            return True
        cached.unlink()
        self._warn(
            f"the copy of {entry.path} in the local cache was damaged ({cached}): it is fetched anew; look at the disk"
            " if this comes again"
        )
        return False

    def _note(self, cached: Path, notes: IO[str]) -> None:
        notes.seek(0)
        notes.truncate()
        notes.write(json.dumps([self._attempt, *_identity(cached)]))
        notes.flush()

    @contextmanager
    def _locked(self, cached: Path) -> Generator[IO[str]]:
        """One process at a time works on an entry."""
        with entry_lock(cached) as notes:
            assert notes is not None  # as we wait for it
            yield notes


def _identity(path: Path) -> list[int]:
    status = path.stat()
    return [status.st_ino, status.st_size, status.st_mtime_ns]  # not the time of change: each link to it counts as one


def link_or_copy(source: Path, target: Path) -> None:
    """Hard-link where the file system allows it; copy otherwise. Appears whole or not at all."""
    try:
        os.link(source, target)
    except FileExistsError:
        return
    except OSError:
        with replacing(target) as partial:
            shutil.copyfile(source, partial)
