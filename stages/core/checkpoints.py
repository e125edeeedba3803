"""Checkpoints of keys: files under a step, which a commit marker makes visible at once.

A key's metric rows lie beside its steps, in segments that any later checkpoint of it may name: a commit stores those
that are new.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from stages.core.artifacts import FileEntry
from stages.core.files import inside
from stages.core.leases import LeaseStore
from stages.core.messages import Lease
from stages.core.range_file import BLOCK, RangeFile
from stages.core.records import CheckpointCommit, DamagedRecord, epoch_of
from stages.core.store import Store, in_threads
from stages.core.store_errors import Damaged

ROWS = "rows"
"""In the place of a step: segments of metric rows, checkpoints/<key>/rows/<epoch>/<number>."""
NEWEST = f"{ROWS}/NEWEST.json"
"""The step that was committed last, beside them: found by its name, also where a list is late."""


@dataclass(frozen=True)
class Retention:
    """Which checkpoints of a key stay when another is committed. All go once its result is published."""

    last: int = 2
    """The newest."""
    every: int = 0
    """And the first at or after each multiple of so many steps; 0: none."""
    behind: int = 0
    """And, for going back so many steps, those that leave one at or before each of them."""

    def kept(self, steps: Sequence[int]) -> set[int]:
        """Of steps that there are checkpoints of, ascending."""
        recent = {step for step in firsts(steps, self.behind) if step > steps[-1] - 3 * self.behind}
        return {*steps[-self.last :], *firsts(steps, self.every), *recent}


def firsts(steps: Sequence[int], every: int) -> set[int]:
    """The first of these steps, ascending, at or after each multiple of `every`: the same when others are gone."""
    before = (0, *steps)
    return {step for earlier, step in zip(before, steps, strict=False) if every and step // every > earlier // every}


class CheckpointStore(LeaseStore):
    """The checkpoints of keys. Whoever writes one holds the lease of its key."""

    # --- checkpoints ------------------------------------------------------------------------------------------

    def upload_checkpoint(self, lease: Lease, step: int, folder: Path) -> tuple[FileEntry, ...]:
        """Upload files of a checkpoint, and read a block of each back. They are invisible until it is committed.

        Raises Damaged when the store gives back other bytes than it was given.
        """
        self.check(lease)
        files = upload_folder(self.store, f"checkpoints/{lease.key}/{step:012d}/{self.folder(lease)}", folder)
        try:
            in_threads(self._read_back, files, self.store.interrupted)
        finally:
            self.store.interrupted.clear()
        return files

    def upload_rows(self, lease: Lease, number: int, path: Path, name: str) -> FileEntry:
        """Store a segment of metric rows that will not change any more. name: its path in checkpoints."""
        return self.store.put_file(f"checkpoints/{lease.key}/{ROWS}/{self.folder(lease)}/{number:06d}", path, name)

    def _read_back(self, entry: FileEntry) -> None:
        """Hold a block of a stored file, any one, against its CRC32."""
        if entry.size:
            with RangeFile(self.store, entry, verified=True) as stream:
                stream.read_at(BLOCK * random.randrange(-(-entry.size // BLOCK)), 1)

    def commit_checkpoint(
        self, lease: Lease, step: int, files: Sequence[FileEntry], retention: Retention = Retention()
    ) -> None:
        """Make uploaded files a checkpoint; those that are not to be kept are then removed.

        Raises Damaged when the store has lost one of them, or has it with another size.
        """
        self.check(lease)  # the upload may have outlived the lease
        self._require_stored(lease.key, files)
        commit = CheckpointCommit(step=step, epoch=lease.epoch, files=tuple(files))
        self.store.put(marker(lease.key, step), commit.model_dump_json().encode())
        self.store.put(f"checkpoints/{lease.key}/{NEWEST}", str(step).encode())
        steps = self.checkpoint_steps(lease.key)
        for old in sorted(set(steps) - retention.kept(steps)):
            self.drop_checkpoints(lease.key, old, before=lease.epoch + 1)

    def _require_stored(self, key: str, files: Sequence[FileEntry]) -> None:
        sizes = {row.key: row.size for row in self.store.list(f"checkpoints/{key}/")}
        for entry in files:
            if sizes.get(entry.object) != entry.size:
                there = self.store.stored(entry.object)  # by its name: a list may be late
                where, size = self.store.where(entry.object), there.size if there else None
                if size == entry.size:
                    continue
                what = "is not in the store" if size is None else f"has {size:,} bytes instead of {entry.size:,}"
                raise Damaged(f"{where}, stored a moment ago, {what}", entry.object)

    def checkpoint_steps(self, key: str) -> list[int]:
        """Steps of the complete checkpoints of a key, ascending."""
        rows = self.store.list(f"checkpoints/{key}/")
        return sorted(int(o.key.split("/")[2]) for o in rows if o.key.endswith("/COMMIT.json"))

    def resumable_steps(self, key: str) -> list[int]:
        """As `checkpoint_steps`, and the newest also where a list comes too late to have it."""
        steps, noted = self.checkpoint_steps(key), self.store.get(f"checkpoints/{key}/{NEWEST}")
        newest = int(noted[0]) if noted and noted[0].isdigit() else 0
        late = newest > max(steps, default=0) and self.store.stored(marker(key, newest)) is not None
        return [*steps, newest] if late else steps

    def checkpoint(self, key: str, step: int) -> CheckpointCommit:
        """The commit marker of a checkpoint. Raises Damaged or DamagedRecord."""
        name = marker(key, step)
        stored = self.store.get(name)
        if stored is None:
            raise Damaged(f"checkpoint {step} of key {key[:12]} has vanished from the store", name)
        return self._parse(CheckpointCommit, name, *stored)

    def load_checkpoint(self, files: Sequence[FileEntry], folder: Path) -> None:
        """Fetch and verify files of a checkpoint into `folder`. Raises Damaged when one is not whole, InputError for a
        path out of the folder.
        """
        for entry in files:
            self.store.get_file(entry, inside(folder, entry.path))

    def drop_checkpoints_after(self, lease: Lease, step: int) -> bool:
        """Remove the checkpoints of steps after this one, the newest first: what is then the newest leads there again.
        False: none is left.
        """
        self.check(lease)
        steps = self.resumable_steps(lease.key)
        rest = [other for other in steps if other <= step]
        self.store.put(f"checkpoints/{lease.key}/{NEWEST}", str(rest[-1] if rest else 0).encode())
        for other in reversed(steps[len(rest) :]):
            self.store.delete([marker(lease.key, other)])  # by its name: a list may be late
            self.drop_checkpoints(lease.key, other)
        return bool(rest)

    def set_checkpoint_aside(self, key: str, step: int) -> None:
        """Make a checkpoint that is not whole one no more: its marker moves; its files stay until the key's checkpoints
        are dropped.
        """
        self.set_aside(marker(key, step))

    def drop_checkpoints(self, key: str, step: int | None = None, before: int | None = None) -> None:
        """Remove one checkpoint, or all of a key, or those alone that attempts of an epoch below `before` made.

        The commit marker goes first, and by its name, since a list may be late: what is half removed is invisible.
        """
        prefix = f"checkpoints/{key}/" if step is None else f"checkpoints/{key}/{step:012d}/"
        rows = [o.key for o in self.store.list(prefix)]
        steps = {row.split("/")[2] for row in rows} - {ROWS}
        if before is not None:
            later = {row.split("/")[2] for row in rows if epoch_of(row.split("/")[3]) >= before}
            later |= {one for one in steps - later if self._committed_by(key, int(one)) >= before}
            kept = later | {ROWS} if later else later  # they may go on from rows of an attempt before
            rows, steps = [row for row in rows if row.split("/")[2] not in kept], steps - later
        self.store.delete(marker(key, int(one)) for one in sorted(steps))  # a store may delete one call's in any order
        self.store.delete(row for row in rows if not row.endswith("/COMMIT.json"))

    def _committed_by(self, key: str, step: int) -> int:
        """The epoch of the attempt whose checkpoint of a step counts; 0 where none does."""
        try:
            return self.checkpoint(key, step).epoch
        except (Damaged, DamagedRecord):
            return 0


def marker(key: str, step: int) -> str:
    """The object that makes a checkpoint visible."""
    return f"checkpoints/{key}/{step:012d}/COMMIT.json"


def upload_folder(
    store: Store, prefix: str, folder: Path, stored: Mapping[tuple[int, str], str] | None = None
) -> tuple[FileEntry, ...]:
    """Upload every file under `folder` as `<prefix>/<relative path>`; returns the entries in path order.

    stored: as `Store.upload` has it.
    """
    paths = sorted(p for p in folder.rglob("*") if p.is_file())

    def upload(path: Path) -> FileEntry:
        relative = path.relative_to(folder).as_posix()
        return store.put_file(f"{prefix}/{relative}", path, relative, stored)

    try:
        return tuple(in_threads(upload, paths, store.interrupted))
    finally:
        store.interrupted.clear()
