"""Checkpoints of keys: files under a step, which a commit marker makes visible at once."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from stages.core.artifacts import FileEntry
from stages.core.leases import LeaseStore
from stages.core.messages import Lease
from stages.core.records import CheckpointCommit
from stages.core.store import Store, in_threads
from stages.core.store_errors import Damaged


class CheckpointStore(LeaseStore):
    """The checkpoints of keys. Whoever writes one holds the lease of its key."""

    # --- checkpoints ------------------------------------------------------------------------------------------

    def upload_checkpoint(self, lease: Lease, step: int, folder: Path) -> tuple[FileEntry, ...]:
        """Upload files of a checkpoint. They are invisible until it is committed."""
        self.check(lease)
        return upload_folder(self.store, f"checkpoints/{lease.key}/{step:012d}/{lease.epoch:06d}", folder)

    def commit_checkpoint(self, lease: Lease, step: int, files: tuple[FileEntry, ...]) -> None:
        """Make uploaded files a checkpoint; older ones but the previous are then removed."""
        self.check(lease)  # the upload may have outlived the lease
        commit = CheckpointCommit(step=step, epoch=lease.epoch, files=files)
        self.store.put(f"checkpoints/{lease.key}/{step:012d}/COMMIT.json", commit.model_dump_json().encode())
        for old in self.checkpoint_steps(lease.key)[:-2]:
            self.drop_checkpoints(lease.key, old)

    def checkpoint_steps(self, key: str) -> list[int]:
        """Steps of the complete checkpoints of a key, ascending."""
        rows = self.store.list(f"checkpoints/{key}/")
        return sorted(int(o.key.split("/")[2]) for o in rows if o.key.endswith("/COMMIT.json"))

    def checkpoint(self, key: str, step: int) -> CheckpointCommit:
        """The commit marker of a checkpoint. Raises Damaged or DamagedRecord."""
        name = f"checkpoints/{key}/{step:012d}/COMMIT.json"
        found = self.store.get(name)
        if found is None:
            raise Damaged(f"checkpoint {step} of key {key[:12]} has vanished from the store", name)
        return self._parse(CheckpointCommit, name, *found)

    def load_checkpoint(self, key: str, step: int, folder: Path) -> None:
        """Fetch and verify a checkpoint into `folder`. Raises Damaged or DamagedRecord when it is not whole."""
        for entry in self.checkpoint(key, step).files:
            self.store.get_file(entry, folder / entry.path)

    def set_checkpoint_aside(self, key: str, step: int) -> None:
        """Make a checkpoint that is not whole one no more: its marker moves; its files stay until the key's checkpoints
        are dropped.
        """
        self.set_aside(f"checkpoints/{key}/{step:012d}/COMMIT.json")

    def drop_checkpoints(self, key: str, step: int | None = None, before: int | None = None) -> None:
        """Remove one checkpoint, or all of a key, or those alone that attempts of an epoch below `before` made.

        The commit marker goes first: what is half removed is invisible.
        """
        prefix = f"checkpoints/{key}/" if step is None else f"checkpoints/{key}/{step:012d}/"
        rows = [o.key for o in self.store.list(prefix)]
        if before is not None:
            kept = {
                row.split("/")[2] for row in rows if (epoch := row.split("/")[3]).isdigit() and int(epoch) >= before
            }
            rows = [row for row in rows if row.split("/")[2] not in kept]
        markers = [row for row in rows if row.endswith("/COMMIT.json")]
        self.store.delete(markers)  # a call of its own: a store may delete the rows of one call in any order
        self.store.delete(row for row in rows if row not in markers)


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
