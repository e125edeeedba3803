"""Leases and attempts: who works on a key, and how each attempt at it went."""

from __future__ import annotations

import contextlib
import re
import secrets
import time

from stages.core.errors import ExitClass, InfraError
from stages.core.messages import Lease
from stages.core.processes import host_identity, process_identity
from stages.core.records import (
    LEASE_SECONDS,
    AttemptOutcome,
    AttemptRecord,
    DamagedRecord,
    LeaseRecord,
    RecordStore,
    attempt_folder,
    now,
    sealed,
)
from stages.core.store_errors import Conflict

LEASE_ENDURANCE = 900.0
"""How long a holder goes on when it cannot renew its lease because the store does not answer (docs/decisions/lease.md).
"""

NODE_MARK = ".node."
"""Stands between the epoch and the node in the name of an attempt's mark: attempts/<key>/<epoch>.node.<node>."""


class LeaseHeld(Exception):
    """Somebody else works on the key."""

    def __init__(self, record: LeaseRecord) -> None:
        self.record = record
        super().__init__(f"held by {record.holder}, who renewed it {record.age:.0f} s ago")


class LeaseLost(InfraError):
    """The lease went to another holder: whatever this attempt made must not be published."""


class LeaseTakenOver(LeaseLost):
    """Another process follows the same attempt now (`take_over`): its job goes on, and is not this one's to stop."""


class LeaseStore(RecordStore):
    """The leases of keys, and the records of the attempts that held them."""

    # --- leases -----------------------------------------------------------------------------------------------

    def lease(self, key: str) -> tuple[LeaseRecord, str] | None:
        """The lease record of a key with its ETag, or None if nobody ever worked on it. Raises DamagedRecord."""
        name = f"leases/{key}.json"
        stored = self.store.get_with_age(name)
        if stored is None:
            return None
        body, etag, age = stored
        return self._parse(LeaseRecord, name, body, etag).model_copy(update={"age": age}), etag

    def busy(self, key: str) -> bool:
        """Whether somebody may be at work on a key: also when its lease cannot be read."""
        try:
            held = self.lease(key)
        except DamagedRecord:
            return True
        return held is not None and held[0].live

    def mend_lease(self, key: str) -> None:
        """Put a free lease in the place of one that cannot be read, which moves aside. A holder that is at work learns
        that it lost it.
        """
        self.set_aside(f"leases/{key}.json")
        with contextlib.suppress(Conflict):  # somebody has taken it meanwhile
            self._put_lease(LeaseRecord(key=key, epoch=self.last_epoch(key), holder="", expires_at=0.0), None)

    def last_epoch(self, key: str) -> int:
        """The highest epoch that left anything, for a key whose lease is gone: its number must not be given again.

        An attempt's objects lie under its epoch; a second one of that number would write over what is published.
        """
        rows = (row.key.rsplit("/", 1)[1].partition(".")[0] for row in self.store.list(f"attempts/{key}/"))
        epochs = [int(row) for row in rows if row.isdigit()]
        published = self.store.get(f"manifests/{key}.json")
        if published is not None and (
            stated := re.search(rb'"epoch":\s*(\d+)', published[0])
        ):  # also of one that is damaged
            epochs.append(int(stated[1]))
        last = max(epochs, default=0)
        while self.store.stored(f"attempts/{key}/{last + 1:06d}.json") is not None:  # the list came late
            last += 1
        return last

    def acquire(self, key: str, holder: str, seconds: float = LEASE_SECONDS) -> Lease:
        """Take the lease of a key, with the next epoch. Raises LeaseHeld while somebody else has it."""
        previous = self.lease(key)
        if previous is not None and previous[0].live:
            raise LeaseHeld(previous[0])
        record = LeaseRecord(
            key=key,
            epoch=(previous[0].epoch if previous else self.last_epoch(key)) + 1,
            holder=holder,
            expires_at=time.time() + seconds,
            seconds=seconds,
            host=host_identity(),
            process=process_identity(),
        )
        try:
            self._put_lease(record, previous[1] if previous else None)
        except Conflict:
            winner = self.lease(key)
            raise LeaseHeld(winner[0] if winner else record) from None
        if previous is not None and previous[0].holder:  # it was never released: whoever followed that attempt has died
            self.end_attempt(key, previous[0].epoch)
        return Lease(key=key, epoch=record.epoch, holder=holder)

    def take_over(self, key: str, seconds: float = LEASE_SECONDS) -> Lease:
        """Go on with the lease of a holder that is dead, for a job that lives on. Raises LeaseHeld.

        Epoch and holder stay, since the job was started with them and publishes under them; this process is written
        into the record, so that the former one, should it come back, can neither renew nor release.
        """
        previous = self.lease(key)
        if previous is None or previous[0].live or not previous[0].holder:
            raise LeaseHeld(previous[0] if previous else LeaseRecord(key=key, epoch=0, holder="", expires_at=0))
        record = previous[0].model_copy(
            update={
                "expires_at": time.time() + seconds,
                "seconds": seconds,
                "host": host_identity(),
                "process": process_identity(),
            }
        )
        try:
            self._put_lease(record, previous[1])
        except Conflict:
            raise LeaseHeld(record) from None
        return Lease(key=key, epoch=record.epoch, holder=record.holder)

    def _put_lease(self, record: LeaseRecord, etag: str | None) -> None:
        body = record.model_dump_json().encode()
        self.store.put(f"leases/{record.key}.json", body, if_absent=etag is None, if_match=etag)

    def _current(self, lease: Lease) -> tuple[LeaseRecord, str]:
        """The record of a lease with its ETag. Raises LeaseLost when another attempt has it."""
        current = self.lease(lease.key)
        if current is None or current[0].epoch != lease.epoch or current[0].holder != lease.holder:
            state = f"epoch {current[0].epoch} of '{current[0].holder}'" if current else "gone"
            raise LeaseLost(f"the lease on key {lease.key[:12]} (epoch {lease.epoch}) is lost: it is now {state}")
        return current

    def _followed(self, lease: Lease) -> tuple[LeaseRecord, str]:
        """As `_current`, for the process that follows the attempt. Raises LeaseTakenOver when another process has taken
        the lease over: the job goes on under the same epoch, but not under this process.
        """
        record, etag = self._current(lease)
        if record.process and (record.host, record.process) != (host_identity(), process_identity()):
            raise LeaseTakenOver(
                f"the lease on key {lease.key[:12]} (epoch {lease.epoch}) was taken over by another process, which"
                " follows the job now"
            )
        return record, etag

    def check(self, lease: Lease) -> None:
        """Raise LeaseLost unless the lease is still this one (an expired lease that nobody took is still good)."""
        self._current(lease)

    def renew(self, lease: Lease, seconds: float = LEASE_SECONDS) -> None:
        """Push the expiry out. Raises LeaseLost when another attempt has it, LeaseTakenOver when another process."""
        record, etag = self._followed(lease)
        try:
            self._put_lease(record.model_copy(update={"expires_at": time.time() + seconds, "seconds": seconds}), etag)
        except Conflict as error:
            self._followed(lease)  # raises what has become of it
            raise LeaseLost(f"the lease on key {lease.key[:12]} was taken over") from error

    def release(self, lease: Lease) -> None:
        """Give the lease back; quietly does nothing when it is already somebody else's."""
        try:
            record, etag = self._followed(lease)
            self._put_lease(record.model_copy(update={"holder": "", "expires_at": 0.0}), etag)
        except (LeaseLost, Conflict):
            return

    # --- attempts ---------------------------------------------------------------------------------------------

    start = ""
    """Names what this process stores apart from what an earlier process of its attempt does; empty for the first."""

    def begin_process(self, lease: Lease, rank: int) -> None:
        """Write down that a process of an attempt begins. A scheduler may begin a job once more under its epoch, while
        the machine of the first lives on: what the second stores has names of its own (`start`).
        """
        start = secrets.token_hex(4)
        try:
            self.store.put(f"attempts/{lease.key}/{lease.epoch:06d}.begun.{rank}", start.encode(), if_absent=True)
        except Conflict:
            self.start = start

    def folder(self, lease: Lease) -> str:
        """The last part of the names of folders that this process stores to."""
        return attempt_folder(lease.epoch, self.start)

    def begin_attempt(self, record: AttemptRecord) -> None:
        """Write the first record of an attempt, with a mark in whose name its node stands: lists tell then whose
        attempts there are, and none of another node has to be read.
        """
        self.store.put(f"attempts/{record.key}/{record.epoch:06d}{NODE_MARK}{record.node}", b"")
        self.record_attempt(record)

    def attempts_of(self, node: str) -> list[tuple[str, int]]:
        """Key and epoch of each attempt that may be one of a node: those of other nodes have marks that say so. An
        attempt of a version that made no marks is among them.
        """
        records, others = set[str](), set[str]()
        for row in self.store.list("attempts/"):
            name, mark, whose = row.key.partition(NODE_MARK)
            if mark and whose != node:
                others.add(name)
            elif row.key.endswith(".json"):
                records.add(row.key.removesuffix(".json"))
        parts = [name.split("/") for name in sorted(records - others)]
        return [(key, int(number)) for _, key, number in parts if number.isdigit()]

    def record_attempt(self, record: AttemptRecord) -> None:
        """Write or overwrite the record of an attempt."""
        self.store.put(f"attempts/{record.key}/{record.epoch:06d}.json", sealed(record))

    def attempts(self, key: str) -> list[AttemptRecord]:
        """Every attempt at a key, oldest first. Raises DamagedRecord."""
        rows = [o.key for o in self.store.list(f"attempts/{key}/") if o.key.endswith(".json")]
        bodies = ((row, self.store.get(row)) for row in rows)
        return [self._parse(AttemptRecord, row, body[0]) for row, body in bodies if body]

    def attempt(self, key: str, epoch: int) -> AttemptRecord | None:
        """One attempt at a key. Raises DamagedRecord."""
        name = f"attempts/{key}/{epoch:06d}.json"
        stored = self.store.get(name)
        return self._parse(AttemptRecord, name, *stored) if stored else None

    def end_attempt(self, key: str, epoch: int) -> bool:
        """Give an attempt whose end nobody told an end: its own, where it left one. False when it has one, or is not
        known.
        """
        try:
            record, outcome = self.attempt(key, epoch), self.outcome(key, epoch)
        except DamagedRecord:
            return False
        if record is None or record.ended_at:
            return False
        end = {
            "ended_at": outcome.ended_at if outcome else now(),
            "exit_class": (outcome.exit_class if outcome else ExitClass.PREEMPTED).value,
            "message": outcome.message if outcome else "whoever followed it died; its own end is not known",
        }
        self.record_attempt(record.model_copy(update=end))
        return True

    def leave_outcome(self, outcome: AttemptOutcome) -> None:
        """Write down how an attempt ended, by its own process."""
        self.store.put(self._outcome_name(outcome.key, outcome.epoch), sealed(outcome))

    def outcome(self, key: str, epoch: int) -> AttemptOutcome | None:
        """How an attempt ended, by its own word; None when it left none. Raises DamagedRecord."""
        name = self._outcome_name(key, epoch)
        stored = self.store.get(name)
        return self._parse(AttemptOutcome, name, *stored) if stored else None

    def _outcome_name(self, key: str, epoch: int) -> str:
        return f"attempts/{key}/{epoch:06d}.outcome"

    def log_key(self, key: str, epoch: int) -> str:
        """Where the events of an attempt are kept."""
        return f"attempts/{key}/{epoch:06d}.log.jsonl"
