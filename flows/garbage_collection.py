"""What killed runs left behind, removed at the next start: never what a live process or a held lease still needs."""

from __future__ import annotations

import contextlib
import fcntl
import json
import shutil
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from stages.core.errors import StageError
from stages.core.ledger import Ledger
from stages.core.records import DamagedRecord
from stages.core.workspace import KEPT, STATE, sweep


def collect(home: Path, ledger: Ledger) -> Iterator[str]:
    """Remove what is left; one line for each kind that there was. Trouble with one kind is a line too, and spoils
    nothing.
    """
    for kind in (_workspaces, _kept, _requests, _downloads, _checkpoints):
        try:
            if line := kind(home, ledger):
                yield line
        except (StageError, OSError) as error:
            yield f"what is left behind could not all be removed: {error}"


def _workspaces(home: Path, ledger: Ledger) -> str | None:
    count, freed = sweep(home / "scratch")
    return f"removed the folders of {count} killed stages: {freed:,} bytes" if count else None


def _kept(home: Path, ledger: Ledger) -> str | None:
    """Outputs that an attempt could not publish, of keys that have been published since."""
    done = [
        p for p in (home / "scratch").glob(f"{KEPT}*") if _published(ledger, p.name.removeprefix(KEPT)) > _kept_by(p)
    ]
    for folder in done:
        shutil.rmtree(folder, ignore_errors=True)
    return f"removed outputs kept for {len(done)} keys that are published now" if done else None


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


def _requests(home: Path, ledger: Ledger) -> str | None:
    """Requests of attempts that hold no lease any more."""
    gone = []
    for path in (home / "requests").glob("*.json"):
        try:
            lease = json.loads(path.read_text(encoding="utf-8"))["lease"]
            held = ledger.lease(lease["key"])
            if held is not None and held[0].live and held[0].epoch == lease["epoch"]:
                continue
        except (ValueError, KeyError, TypeError):
            if time.time() - path.stat().st_mtime < 3600:  # it may be being written just now
                continue
        except FileNotFoundError:
            continue
        gone.append(path)
    for path in gone:
        path.unlink(missing_ok=True)
    return f"removed {len(gone)} requests of attempts that are over" if gone else None


def _downloads(home: Path, ledger: Ledger) -> str | None:
    """Parts of downloads into the cache whose processes are gone: a live one holds the lock of its entry."""
    count = freed = 0
    for path in (home / "cache").glob("??/.*"):
        entry = path.with_name(path.name[1:].partition(".")[0] + ".verified")
        with contextlib.suppress(OSError), open(entry, "a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            size = path.stat().st_size
            path.unlink()
            count, freed = count + 1, freed + size
    return f"removed {count} broken downloads from the cache: {freed:,} bytes" if count else None


def _checkpoints(home: Path, ledger: Ledger) -> str | None:
    """Checkpoints of keys that are published since, and that nobody works on."""
    sizes: dict[str, int] = defaultdict(int)
    newest: dict[str, int] = defaultdict(int)
    for row in ledger.store.list("checkpoints/"):  # checkpoints/<key>/<step>/<epoch>/..., and COMMIT.json
        _, key, _, epoch, *_ = row.key.split("/")
        sizes[key] += row.size
        newest[key] = max(newest[key], int(epoch) if epoch.isdigit() else 0)
    done = [key for key in sizes if _published(ledger, key) >= max(1, newest[key]) and not ledger.busy(key)]
    for key in done:
        ledger.drop_checkpoints(key)
    return (
        f"removed the checkpoints of {len(done)} published results: {sum(sizes[key] for key in done):,} bytes"
        if done
        else None
    )
