"""The ledger: manifests, attempts, leases, checkpoints, tags. All of it is objects in the store; there is no database.

    manifests/<key>.json                      one published result per key; its conditional PUT publishes
    objects/<stage>/<key>/<epoch>/<port>/...  the files that a manifest lists
    attempts/<key>/<epoch>.json               how each attempt went; .log.jsonl beside it holds its events
    leases/<key>.json                         who works on a key now
    checkpoints/<key>/<step>/<epoch>/...      files of a mid-stage checkpoint; COMMIT.json makes it visible
    nodes/<profile>/<node>.json               the key that a node last had in a profile
    tags/<name>.json                          names that people gave to results
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from stages.core.artifacts import FileEntry
from stages.core.contracts import InfraError, InputError, Lease, StageResult
from stages.core.store import Conflict, Store

LEASE_SECONDS = 60.0
"""A lease that is not renewed for this long may be taken over. Heartbeats come three times as often."""


class LeaseHeld(Exception):
    """Somebody else works on the key."""

    def __init__(self, record: LeaseRecord) -> None:
        self.record = record
        super().__init__(f"held by {record.holder} until {record.expires_at:.0f}")


class LeaseLost(InfraError):
    """The lease went to another holder: whatever this attempt made must not be published."""


class LeaseRecord(BaseModel):
    """The lease object. `holder` is empty once released; the epoch only ever grows."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    key: str
    epoch: int
    holder: str
    expires_at: float
    host: str = ""
    process: str = ""

    @property
    def live(self) -> bool:
        """Whether the holder may still be at work: not released, not expired, and not a dead process of this machine."""
        if not self.holder or self.expires_at < time.time():
            return False
        return not (self.host == host_identity() and self.process and not process_alive(self.process))


class NodeRecord(BaseModel):
    """Which key a node had when it last ran in a profile: what `moxin why` and the report start from."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    node: str
    key: str
    run_id: str
    at: str


class AttemptRecord(BaseModel):
    """How one attempt went."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    key: str
    epoch: int
    node: str
    run_id: str
    launcher: str
    started_at: str
    ended_at: str | None = None
    exit_class: str | None = None
    message: str = ""
    job: str = ""
    """The engine's name for it, where the job outlives its control plane."""


class CheckpointCommit(BaseModel):
    """The commit marker of a checkpoint."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    step: int
    epoch: int
    files: tuple[FileEntry, ...]


def now() -> str:
    """The time in UTC, ISO 8601 with milliseconds."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def host_identity() -> str:
    """This machine, this boot, and in it these process numbers: a dead process can only be told from a live one here.

    Two workers in containers of one machine have the same boot, and do not see each other's processes.
    """
    try:
        return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return socket.gethostname()


def process_identity(pid: int | None = None) -> str:
    """A process by number and start time, so that a reused number is not mistaken for it."""
    pid = pid or os.getpid()
    try:
        start = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        start = "0"
    return f"{pid}:{start}"


def process_alive(identity: str) -> bool:
    """Whether the process that `process_identity` named still runs (zombies do not count)."""
    pid, _, start = identity.partition(":")
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return not Path("/proc/self/stat").exists()  # without /proc nothing can be said: trust the expiry alone
    return fields[19] == start and fields[0] not in "ZX"


class Ledger:
    """All records about keys, over one store."""

    def __init__(self, store: Store) -> None:
        self.store = store

    # --- manifests --------------------------------------------------------------------------------------------

    def manifest(self, key: str) -> tuple[StageResult, str] | None:
        """The published result of a key and the ETag of its manifest, or None."""
        found = self.store.get(f"manifests/{key}.json")
        if found is None:
            return None
        try:
            return StageResult.model_validate_json(found[0]), found[1]
        except ValidationError as error:
            raise InputError(f"{self.store.where(f'manifests/{key}.json')} is not a manifest of this version: {error}") from error

    def missing_objects(self, result: StageResult) -> list[str]:
        """Objects that a manifest lists but the store has not (or has with another size)."""
        wanted = {f.object: f.size for manifest in result.outputs.values() for f in manifest.files}
        found: dict[str, int] = {}
        for prefix in sorted({key.rsplit("/", key.count("/") - 3)[0] + "/" for key in wanted}):
            found.update((row.key, row.size) for row in self.store.list(prefix))
        return sorted(key for key, size in wanted.items() if found.get(key) != size)

    def publish(self, result: StageResult, lease: Lease, replaces: str | None = None) -> None:
        """Make a result visible, once. Raises LeaseLost when the lease has moved on or somebody published first."""
        self.check(lease)
        body = result.model_dump_json().encode()
        try:
            self.store.put(f"manifests/{result.key}.json", body, if_absent=replaces is None, if_match=replaces)
        except Conflict as error:
            raise LeaseLost(f"node {result.node}: key {result.key[:12]} was published by another attempt meanwhile") from error

    # --- leases -----------------------------------------------------------------------------------------------

    def lease(self, key: str) -> tuple[LeaseRecord, str] | None:
        """The lease record of a key with its ETag, or None if nobody ever worked on it."""
        found = self.store.get(f"leases/{key}.json")
        return None if found is None else (LeaseRecord.model_validate_json(found[0]), found[1])

    def acquire(self, key: str, holder: str, seconds: float = LEASE_SECONDS) -> Lease:
        """Take the lease of a key, with the next epoch. Raises LeaseHeld while somebody else has it."""
        found = self.lease(key)
        if found is not None and found[0].live:
            raise LeaseHeld(found[0])
        record = LeaseRecord(
            key=key,
            epoch=(found[0].epoch if found else 0) + 1,
            holder=holder,
            expires_at=time.time() + seconds,
            host=host_identity(),
            process=process_identity(),
        )
        try:
            self._put_lease(record, found[1] if found else None)
        except Conflict:
            winner = self.lease(key)
            raise LeaseHeld(winner[0] if winner else record) from None
        return Lease(key=key, epoch=record.epoch, holder=holder)

    def take_over(self, key: str, seconds: float = LEASE_SECONDS) -> Lease:
        """Go on with the lease of a holder that is dead, for a job that lives on: same epoch, same holder. Raises LeaseHeld."""
        found = self.lease(key)
        if found is None or found[0].live or not found[0].holder:
            raise LeaseHeld(found[0] if found else LeaseRecord(key=key, epoch=0, holder="", expires_at=0))
        record = found[0].model_copy(
            update={"expires_at": time.time() + seconds, "host": host_identity(), "process": process_identity()}
        )
        try:
            self._put_lease(record, found[1])
        except Conflict:
            raise LeaseHeld(record) from None
        return Lease(key=key, epoch=record.epoch, holder=record.holder)

    def _put_lease(self, record: LeaseRecord, etag: str | None) -> None:
        body = record.model_dump_json().encode()
        self.store.put(f"leases/{record.key}.json", body, if_absent=etag is None, if_match=etag)

    def _mine(self, lease: Lease) -> tuple[LeaseRecord, str]:
        found = self.lease(lease.key)
        if found is None or found[0].epoch != lease.epoch or found[0].holder != lease.holder:
            now_at = f"epoch {found[0].epoch} of '{found[0].holder}'" if found else "gone"
            raise LeaseLost(f"the lease on key {lease.key[:12]} (epoch {lease.epoch}) is lost: it is now {now_at}")
        return found

    def check(self, lease: Lease) -> None:
        """Raise LeaseLost unless the lease is still this one (an expired lease that nobody took is still good)."""
        self._mine(lease)

    def renew(self, lease: Lease, seconds: float = LEASE_SECONDS) -> None:
        """Push the expiry out. Raises LeaseLost when somebody else has taken over."""
        record, etag = self._mine(lease)
        try:
            self._put_lease(record.model_copy(update={"expires_at": time.time() + seconds}), etag)
        except Conflict as error:
            raise LeaseLost(f"the lease on key {lease.key[:12]} was taken over") from error

    def release(self, lease: Lease) -> None:
        """Give the lease back; quietly does nothing when it is already somebody else's."""
        try:
            record, etag = self._mine(lease)
            self._put_lease(record.model_copy(update={"holder": "", "expires_at": 0.0}), etag)
        except (LeaseLost, Conflict):
            return

    # --- attempts ---------------------------------------------------------------------------------------------

    def record_attempt(self, record: AttemptRecord) -> None:
        """Write or overwrite the record of an attempt."""
        self.store.put(f"attempts/{record.key}/{record.epoch:06d}.json", record.model_dump_json().encode())

    def attempts(self, key: str) -> list[AttemptRecord]:
        """Every attempt at a key, oldest first."""
        rows = [o.key for o in self.store.list(f"attempts/{key}/") if o.key.endswith(".json")]
        found = (self.store.get(row) for row in rows)
        return [AttemptRecord.model_validate_json(body[0]) for body in found if body]

    def log_key(self, key: str, epoch: int) -> str:
        """Where the events of an attempt are kept."""
        return f"attempts/{key}/{epoch:06d}.log.jsonl"

    # --- checkpoints ------------------------------------------------------------------------------------------

    def save_checkpoint(self, lease: Lease, step: int, folder: Path) -> None:
        """Upload a checkpoint and commit it; older ones but the previous are then removed."""
        self.commit_checkpoint(lease, step, self.upload_checkpoint(lease, step, folder))

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

    def load_checkpoint(self, key: str, step: int, folder: Path) -> None:
        """Fetch and verify a checkpoint into `folder`."""
        found = self.store.get(f"checkpoints/{key}/{step:012d}/COMMIT.json")
        if found is None:
            raise InfraError(f"checkpoint {step} of key {key[:12]} has vanished from the store")
        for entry in CheckpointCommit.model_validate_json(found[0]).files:
            self.store.download(entry.object, folder / entry.path, entry.sha256)

    def drop_checkpoints(self, key: str, step: int | None = None) -> None:
        """Remove one checkpoint, or all of a key. The commit marker goes first: what is half removed is invisible."""
        prefix = f"checkpoints/{key}/" if step is None else f"checkpoints/{key}/{step:012d}/"
        rows = [o.key for o in self.store.list(prefix)]
        markers = [row for row in rows if row.endswith("/COMMIT.json")]
        self.store.delete(markers)  # a call of its own: a store may delete the rows of one call in any order
        self.store.delete(row for row in rows if row not in markers)

    # --- names ------------------------------------------------------------------------------------------------

    def set_node(self, profile: str, record: NodeRecord) -> None:
        """Remember the key that a node has now."""
        self.store.put(f"nodes/{profile}/{record.node}.json", record.model_dump_json().encode())

    def node(self, profile: str, name: str) -> NodeRecord | None:
        """The last known key of one node."""
        found = self.store.get(f"nodes/{profile}/{name}.json")
        return NodeRecord.model_validate_json(found[0]) if found else None

    def nodes(self, profile: str) -> dict[str, NodeRecord]:
        """The last known key of every node of a profile."""
        rows = [o.key for o in self.store.list(f"nodes/{profile}/")]
        with ThreadPoolExecutor(8) as pool:
            bodies = [body for body in pool.map(self.store.get, rows) if body]
        records = [NodeRecord.model_validate_json(body[0]) for body in bodies]
        return {record.node: record for record in records}

    def tag(self, name: str, record: dict[str, Any]) -> None:
        """Give a result a name, or move the name to it."""
        self.store.put(f"tags/{name}.json", json.dumps(record, sort_keys=True).encode())

    def tags(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """All tags with what they point at."""
        for row in self.store.list("tags/"):
            if (found := self.store.get(row.key)) is not None:
                yield row.key.removeprefix("tags/").removesuffix(".json"), json.loads(found[0])


def upload_folder(store: Store, prefix: str, folder: Path, on_bytes: Any = None) -> tuple[FileEntry, ...]:
    """Upload every file under `folder` as `<prefix>/<relative path>`; returns the entries in path order."""
    paths = sorted(p for p in folder.rglob("*") if p.is_file())

    def one(path: Path) -> FileEntry:
        relative = path.relative_to(folder).as_posix()
        size, digest = store.upload(f"{prefix}/{relative}", path, on_bytes)
        return FileEntry(path=relative, size=size, sha256=digest, object=f"{prefix}/{relative}")

    with ThreadPoolExecutor(8) as pool:
        return tuple(pool.map(one, paths))
