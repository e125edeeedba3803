"""The records of the ledger: leases, attempts, checkpoints, names. Each is one JSON object in the store, which
`RecordStore` reads.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any, TypeVar, cast

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from stages.core.artifacts import FileEntry
from stages.core.errors import ExitClass, InputError
from stages.core.keys import canonical_json, sha256
from stages.core.messages import StageResult
from stages.core.processes import host_identity, process_alive
from stages.core.store import Store
from stages.core.store_errors import Damaged

LEASE_SECONDS = 60.0
"""A lease that is not renewed for this long may be taken over. Heartbeats come three times as often."""


SEAL = "seal"
"""The field of a stored record that holds the SHA-256 of the others: a byte that rots in one does not pass for another
value. `moxin verify` compares it; records of before have none.
"""


class DamagedRecord(InputError):
    """A record of the ledger cannot be read: cut, overwritten, or of another version. `key` is the object's name."""

    def __init__(self, where: str, key: str, kind: str, why: str, etag: str | None = None) -> None:
        self.key, self.etag = key, etag
        super().__init__(f"{where} is no {kind} of this version ({why}): 'moxin repair' says what can be done")


class LeaseRecord(BaseModel):
    """The lease object. `holder` is empty once released; the epoch only ever grows.

    Whether it has run out is asked of the store's clock alone, which wrote down when it was renewed: clocks of other
    machines differ.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    key: str
    epoch: int
    holder: str
    expires_at: float
    """By the holder's own clock, for people; it decides nothing."""
    seconds: float = LEASE_SECONDS
    """How long it is good after a renewal."""
    host: str = ""
    process: str = ""
    age: float = Field(default=0.0, exclude=True)
    """Seconds since it was renewed, when it was read, by the store's clock."""

    @property
    def live(self) -> bool:
        """Whether the holder may still be at work: not released, not run out, and not a dead process of this
        machine.
        """
        if not self.holder or self.age > self.seconds:
            return False
        return not self.holder_died

    @property
    def holder_died(self) -> bool:
        """Whether it is known that the holder's process is gone: one of this machine and boot."""
        return self.host == host_identity() and bool(self.process) and not process_alive(self.process)


class SealedRecord(BaseModel):
    """A record that is stored with a seal (`sealed`), which is no field of its own."""

    @model_validator(mode="before")
    @classmethod
    def _without_seal(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        return {key: value for key, value in cast("dict[str, Any]", data).items() if key != SEAL}


def sealed(record: SealedRecord) -> bytes:
    """A record as it is stored: canonical JSON, with the SHA-256 of the same without it as its seal."""
    rows = record.model_dump(mode="json")
    return canonical_json(rows | {SEAL: sha256(canonical_json(rows))})


def seal_holds(body: bytes) -> bool | None:
    """Whether a stored record's seal is that of its other fields; None: it has none. body: a record that can be
    read.
    """
    rows = dict(json.loads(body))
    seal = rows.pop(SEAL, None)
    return None if seal is None else seal == sha256(canonical_json(rows))


class NodeRecord(SealedRecord):
    """Which key a node had when it last ran in a profile: what `moxin why` and the report start from."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    node: str
    key: str
    run_id: str
    at: str


class ExperimentRecord(SealedRecord):
    """A named set of settings on top of a profile, with names of its own for what its runs make."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    profile: str
    overrides: tuple[str, ...]
    """As `--set` was given, each `node.field=value`."""
    why: str = ""
    created_by: str
    created_at: str
    git_commit: str | None = None


class TagRecord(SealedRecord):
    """A name for one result, which stays when its node gets another one: `moxin gc` removes nothing that it needs."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    key: str
    node: str
    why: str = ""
    created_by: str
    created_at: str


class AttemptRecord(SealedRecord):
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


class AttemptOutcome(SealedRecord):
    """How an attempt ended, in the words of its own process, which leaves them in the store: a log may be cut
    off or rotated, and the attempt's record is its follower's, who may be dead.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    key: str
    epoch: int
    ended_at: str
    exit_class: ExitClass
    message: str = ""


class CheckpointCommit(BaseModel):
    """The commit marker of a checkpoint."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    step: int
    epoch: int
    files: tuple[FileEntry, ...]


KINDS: dict[type[BaseModel], str] = {
    StageResult: "manifest", LeaseRecord: "lease", NodeRecord: "node record", AttemptRecord: "attempt record",
    CheckpointCommit: "commit marker of a checkpoint", AttemptOutcome: "outcome", ExperimentRecord: "experiment record",
    TagRecord: "tag",
}  # fmt: skip
"""What people call each record."""
Record = TypeVar("Record", bound=BaseModel)


def now() -> str:
    """The time in UTC, ISO 8601 with milliseconds."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def attempt_folder(epoch: int, start: str = "") -> str:
    """The part of a name that says which attempt stored it: `000003`, or `000003-<start>` of a process that began when
    another one had begun before under the same epoch.
    """
    return f"{epoch:06d}-{start}" if start else f"{epoch:06d}"


def epoch_of(folder: str) -> int:
    """The epoch in such a part of a name; 0 where it is another part."""
    number = folder.partition("-")[0]
    return int(number) if number.isdigit() else 0


class RecordStore:
    """Records as JSON objects of a store."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def _parse(self, kind: type[Record], key: str, body: bytes, etag: str | None = None) -> Record:
        """A record from its bytes. Raises DamagedRecord."""
        try:
            return kind.model_validate_json(body)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(str(part) for part in first["loc"])
            raise DamagedRecord(
                self.store.where(key), key, KINDS[kind], f"{place}: {first['msg']}" if place else first["msg"], etag
            ) from error

    def set_aside(self, key: str) -> str | None:
        """Move an object that cannot be used out of the way; its new name, or None where it is gone already. Nothing is
        deleted.
        """
        name = f"damaged/{key}.{datetime.now(UTC):%Y%m%dT%H%M%S%f}"
        try:
            self.store.move(key, name)
        except Damaged:
            return None
        return name
