"""What nobody needs any more, removed: at every start what killed runs left behind, with `moxin gc` all of it.

Each kind is found as `Garbage` (here on this machine's disks, in `flows.store_garbage` in the object store) and removed
by what found it: never what a live process or a held lease still needs.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

from flows.garbage_items import DAY, HOUR, Garbage, Limits, remove_all
from flows.store_garbage import CHECKPOINTS, StoreGarbage
from stages.core import eviction
from stages.core.errors import StageError
from stages.core.ledger import Ledger
from stages.core.records import DamagedRecord
from stages.core.workspace import KEPT, STATE, attempt_folders, sweep, unused

FOLDERS, KEPT_OUTPUTS, DOWNLOADS, CACHE = "killed stages", "kept outputs", "broken downloads", "cache"
LOCAL_REQUESTS, LOGS = "local requests", "local logs"


def collect(home: Path, ledger: Ledger) -> Iterator[str]:
    """Remove what is left; one line for each kind that there was. Trouble with one kind is a line too, and spoils
    nothing.
    """
    for kind in (_workspaces, _kept, _requests, _downloads, _checkpoints):
        try:
            items = list(kind(home, ledger))
            done = [gone for _, gone in remove_all(items)]
            count, size = sum(any(one) for one in done), sum(size for _, size in done)
            if count:
                yield LINES[items[0].kind].format(count=count, size=size)
        except (StageError, OSError) as error:
            yield f"what is left behind could not all be removed: {error}"


LINES = {
    FOLDERS: "removed the folders of {count} killed stages: {size:,} bytes",
    KEPT_OUTPUTS: "removed outputs kept for {count} keys that are published now",
    LOCAL_REQUESTS: "removed {count} requests of attempts that are over",
    DOWNLOADS: "removed {count} broken downloads from the cache: {size:,} bytes",
    CHECKPOINTS: "removed the checkpoints of {count} published results: {size:,} bytes",
}
"""What a start says of each kind."""


def local(home: Path, ledger: Ledger, cache_bytes: int | None = None, shared: Path | None = None) -> Iterator[Garbage]:
    """Everything of this machine's disks that goes.

    cache_bytes: what the cache may keep, instead of its budget. shared: the folder that a cluster's jobs share.
    """
    for kind in (_workspaces, _kept, _requests, _downloads, _logs):
        yield from kind(home, ledger)
    if shared is not None:  # folders of its stages are swept by the launcher, which knows whether jobs are in the queue
        yield from _kept(shared, ledger)
    yield from _cache(home, cache_bytes)


def _workspaces(home: Path, ledger: Ledger) -> Iterator[Garbage]:
    """Folders of stages that were killed: nobody holds the lock of their owner's mark."""
    for folder in attempt_folders(home / "scratch"):
        with contextlib.suppress(OSError), unused(folder) as free:
            if not free:
                continue
            count, size = _measure(folder)
            yield Garbage(FOLDERS, str(folder), count, size, removal=partial(_sweep, folder))


def _sweep(folder: Path) -> tuple[int, int]:
    return sweep(folder.parent, [folder])


def _kept(home: Path, ledger: Ledger) -> Iterator[Garbage]:
    """Outputs that an attempt could not publish, of keys that have been published since."""
    for folder in (home / "scratch").glob(f"{KEPT}*"):
        key = folder.name.removeprefix(KEPT)
        if _published(ledger, key) > _kept_by(folder):
            count, size = _measure(folder)
            yield Garbage(KEPT_OUTPUTS, str(folder), count, size, key, removal=partial(_remove_folder, folder, size))


def _remove_folder(folder: Path, size: int) -> tuple[int, int]:
    shutil.rmtree(folder, ignore_errors=True)
    return 1, size


def _measure(folder: Path) -> tuple[int, int]:
    """Files of a folder, and bytes that go with it: what is linked elsewhere too frees nothing."""
    stats = [path.lstat() for path in folder.rglob("*") if path.is_file()]
    return len(stats), sum(stat.st_size for stat in stats if stat.st_nlink == 1)


def _kept_by(folder: Path) -> int:
    """The last epoch whose result cannot be newer than these outputs."""
    try:
        return int(json.loads((folder / STATE).read_text(encoding="utf-8"))["epoch"]) - 1
    except (OSError, ValueError, KeyError, TypeError):
        return 0


def _published(ledger: Ledger, key: str) -> int:
    """The epoch whose result is published; 0: none, or one that cannot be read. A later attempt makes a damaged result
    again.
    """
    try:
        manifest = ledger.manifest(key)
    except DamagedRecord:
        return 0
    return manifest[0].attempt.epoch if manifest else 0


def _requests(home: Path, ledger: Ledger) -> Iterator[Garbage]:
    """Requests of attempts that hold no lease any more. Who followed such a one has died, and told nobody its end."""
    for path in (home / "requests").glob("*.json"):
        lease = None
        try:
            lease = json.loads(path.read_text(encoding="utf-8"))["lease"]
            held = ledger.lease(lease["key"])
            if held is not None and held[0].live and held[0].epoch == lease["epoch"]:
                continue
        except (ValueError, KeyError, TypeError):
            if time.time() - path.stat().st_mtime < HOUR:  # it may be being written just now
                continue
        except FileNotFoundError:
            continue
        removal = partial(_end_request, path, ledger, lease)
        yield Garbage(LOCAL_REQUESTS, str(path), 1, path.stat().st_size, removal=removal)


def _end_request(path: Path, ledger: Ledger, lease: Mapping[str, Any] | None) -> tuple[int, int]:
    if lease is not None:
        ledger.end_attempt(lease["key"], lease["epoch"])
    return _unlink(path)


def _unlink(path: Path) -> tuple[int, int]:
    with contextlib.suppress(FileNotFoundError):
        stat = path.stat()
        path.unlink()
        return 1, stat.st_size if stat.st_nlink == 1 else 0
    return 0, 0


def _downloads(home: Path, ledger: Ledger) -> Iterator[Garbage]:
    """Parts of downloads into the cache whose processes are gone: a live one holds the lock of its entry."""
    for path in (home / "cache").glob("??/.*"):
        with _lock_of(path) as held:
            if held and path.exists():
                yield Garbage(DOWNLOADS, str(path), 1, path.stat().st_size, removal=partial(_unlink_entry, path))


def _unlink_entry(path: Path) -> tuple[int, int]:
    """Remove a part of an entry of the cache, unless a process is about to use it."""
    with _lock_of(path) as held:
        return _unlink(path) if held else (0, 0)


def _lock_of(part: Path) -> AbstractContextManager[object]:
    """The lock of the entry that a part belongs to, if it can be had; nothing is removed by looking."""
    return eviction.entry_lock(part.with_name(part.name[1:].partition(".")[0]), wait=False, clean=False)


def _logs(home: Path, ledger: Ledger) -> Iterator[Garbage]:
    """Logs of attempts that the store has, too, where commands read them then. Those of the last day, and of keys that
    somebody works on, stay.
    """
    for path in (home / "logs" / "stages").glob("*/*.jsonl"):
        stat, key = path.stat(), path.parent.name
        if time.time() - stat.st_mtime < DAY or not path.stem.isdigit():
            continue
        stored = ledger.store.stored(ledger.log_key(key, int(path.stem)))
        if stored is not None and stored.size == stat.st_size and not ledger.busy(key):
            yield Garbage(LOGS, str(path), 1, stat.st_size, key, removal=partial(_unlink, path))


def _cache(home: Path, budget: int | None) -> Iterator[Garbage]:
    """Entries of the cache beyond its budget, those that were not used for longest first; what a stage has linked
    stays.
    """
    folder = home / "cache"
    entries = eviction.entries(folder)
    over = sum(entry.size for entry in entries) - (eviction.budget(folder) if budget is None else budget)
    for entry in sorted((entry for entry in entries if not entry.held), key=lambda entry: entry.used):
        if over <= 0:
            return
        over -= entry.size
        yield Garbage(CACHE, str(entry.path), 1, entry.size, removal=partial(_evict, entry))


def _evict(entry: eviction.Entry) -> tuple[int, int]:
    gone = eviction.evict_oldest([entry], 1)
    return (1 if gone else 0), gone


def _checkpoints(home: Path, ledger: Ledger) -> Iterator[Garbage]:
    """Checkpoints of keys that are published since, and that nobody works on."""
    sizes: dict[str, list[Garbage]] = {}
    for item in StoreGarbage(ledger, Limits(min_age=0.0)).checkpoints():
        sizes.setdefault(item.key, []).append(item)
    for key, items in sizes.items():
        objects, size = sum(item.objects for item in items), sum(item.bytes for item in items)
        yield Garbage(CHECKPOINTS, f"checkpoints/{key}/", objects, size, key, removal=partial(_all, items))


def _all(items: list[Garbage]) -> tuple[int, int]:
    done = [gone for _, gone in remove_all(items)]
    return sum(count for count, _ in done), sum(size for _, size in done)
