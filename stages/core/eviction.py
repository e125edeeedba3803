"""Room in the local cache: its budget in bytes, and which entries go when it is reached.

An entry is held while something else links to it (a stage's inputs are links) or a process has its lock; those that
nobody holds go, the one that was not used for longest first. Its file vanishes at once, so nobody sees half of it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from stages.core.errors import ConfigError, InfraError

BYTES = "MOXIN_CACHE_BYTES"
"""What the cache may keep; default: half of its disk."""
SPARE = 1 << 30
"""Bytes of the disk that stay free, or a hundredth of it where that is less."""
LEDGER = ".bytes"
"""What the entries take together, at most: a look at all of them is needed only when that reaches the budget."""


@dataclass(frozen=True)
class Entry:
    """One file of the cache. used: when, in seconds since the epoch. held: whether something else links to it."""

    path: Path
    size: int
    used: float
    held: bool


def budget(folder: Path) -> int:
    """Bytes that a cache may keep. Raises ConfigError."""
    given = os.environ.get(BYTES)
    if not given:
        return _disk(folder)[0] // 2
    if not given.isdigit():
        raise ConfigError(f"{BYTES} = {given!r}: set it to bytes, such as 500000000000")
    return int(given)


def entries(folder: Path) -> list[Entry]:
    """All entries of a cache, in no order."""
    rows: list[Entry] = []
    for path in folder.glob("[0-9a-f][0-9a-f]/*"):
        if len(path.name) == 64:
            with contextlib.suppress(OSError):  # gone meanwhile
                stat = path.stat()
                rows.append(Entry(path, stat.st_size, _used(path, stat.st_mtime), stat.st_nlink > 1))
    return rows


def make_room(folder: Path, coming: int, needed: frozenset[str] = frozenset()) -> None:
    """Remove entries until `coming` more bytes fit the budget and the disk. needed: digests that stay.

    A budget that is too small for what is held and what comes refuses nothing; the disk does. Raises ConfigError where
    it can never hold so much, InfraError where it cannot now.
    """
    folder.mkdir(parents=True, exist_ok=True)
    total, free = _disk(folder)
    spare = min(SPARE, total // 100)
    if coming > total - spare:
        raise ConfigError(
            f"{coming:,} bytes are to be fetched to {folder}, whose disk has {total:,} in all: use a machine with"
            " a larger disk, or point MOXIN_CACHE and MOXIN_SCRATCH to one"
        )
    with _ledger(folder) as ledger:
        limit, counted = budget(folder), _read(ledger)
        if counted is None or counted + coming > limit or coming + spare > free:
            rows = entries(folder)
            counted = sum(row.size for row in rows)
            over = max(counted + coming - limit, coming + spare - free)
            counted -= evict_oldest([r for r in rows if not r.held and r.path.name not in needed], over)
        _, free = _disk(folder)
        if coming + spare > free:
            raise InfraError(
                f"{coming:,} bytes are to be fetched to {folder}, whose disk has {free:,} free and keeps {spare:,} of"
                f" them so; what the cache still holds ({counted:,} bytes) is in use: free some, or use a larger disk"
            )
        _write(ledger, counted + coming)


def count(folder: Path, size: int) -> None:
    """Count an entry that came without being fetched."""
    with _ledger(folder) as ledger:
        if (counted := _read(ledger)) is not None:
            _write(ledger, counted + size)


@contextmanager
def entry_lock(entry: Path, wait: bool = True, clean: bool = True) -> Generator[IO[str] | None]:
    """The lock of an entry, a file with notes of its last verification; None: another process has it, and we do not
    wait. clean: remove what killed processes left of the entry. On a file system without locks the notes alone.
    """
    entry.parent.mkdir(parents=True, exist_ok=True)
    path = entry.with_name(f"{entry.name}.verified")
    while True:
        with open(path, "a+", encoding="utf-8") as notes:
            try:
                fcntl.flock(notes, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                yield None
                return
            except OSError:
                yield notes if wait else None
                return
            if _is_still(path, notes):
                for left in entry.parent.glob(f".{entry.name}.*") if clean else ():  # we have the lock: its owner died
                    left.unlink(missing_ok=True)
                yield notes
                return
        # who had it before us removed the entry, and this lock with it


def _is_still(path: Path, opened: IO[str]) -> bool:
    """Whether a name is still that of an open file."""
    try:
        return os.path.samestat(os.fstat(opened.fileno()), path.stat())
    except FileNotFoundError:
        return False


def evict_oldest(rows: list[Entry], over: int) -> int:
    """Remove entries until they were `over` bytes, if there are so many; the bytes that went."""
    gone = 0
    for row in sorted(rows, key=lambda row: row.used):
        if gone >= over:
            break
        with entry_lock(row.path, wait=False) as notes:
            if notes is not None:
                with contextlib.suppress(FileNotFoundError):
                    if row.path.stat().st_nlink == 1:
                        row.path.unlink()
                        gone += row.size
                        Path(notes.name).unlink(missing_ok=True)
    return gone


def _used(path: Path, written: float) -> float:
    try:
        return path.with_name(f"{path.name}.verified").stat().st_mtime
    except OSError:
        return written


def _disk(folder: Path) -> tuple[int, int]:
    """Bytes of a folder's disk: all, and free."""
    while not folder.exists():
        folder = folder.parent
    usage = shutil.disk_usage(folder)
    return usage.total, usage.free


@contextmanager
def _ledger(folder: Path) -> Generator[IO[str]]:
    """One process at a time counts."""
    with open(folder / LEDGER, "a+", encoding="utf-8") as ledger:
        with contextlib.suppress(OSError):
            fcntl.flock(ledger, fcntl.LOCK_EX)
        yield ledger


def _read(ledger: IO[str]) -> int | None:
    ledger.seek(0)
    text = ledger.read()
    return int(text) if text.isdigit() else None


def _write(ledger: IO[str], counted: int) -> None:
    ledger.seek(0)
    ledger.truncate()
    ledger.write(str(counted))
    ledger.flush()
