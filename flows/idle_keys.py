"""Doing something to what belongs to a key while nobody works on it, and nobody can begin to."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

from stages.core.errors import ExitClass
from stages.core.leases import LeaseHeld
from stages.core.ledger import Ledger
from stages.core.messages import Lease
from stages.core.records import LEASE_SECONDS, DamagedRecord, LeaseRecord


def at_work(ledger: Ledger, record: LeaseRecord | None) -> bool:
    """Whether the holder of a lease may be at work: it renews it, or its job lives on without whoever followed it."""
    if record is None or not record.holder:
        return False
    if record.live:
        return True
    try:
        last = ledger.attempt(record.key, record.epoch)
        if last is None or not last.job or last.ended_at:
            return False
        published = ledger.manifest(record.key)
        if published is not None and published[0].attempt.epoch >= record.epoch:
            return False
        outcome = ledger.outcome(record.key, record.epoch)
    except DamagedRecord:
        return True
    return outcome is None or outcome.exit_class is ExitClass.PREEMPTED  # which a scheduler may start again


@contextmanager
def exclusive(ledger: Ledger, key: str, holder: str, seconds: float = LEASE_SECONDS) -> Generator[Lease | None]:
    """Hold a key's lease, which fences off every earlier attempt: none of them can publish any more. None: somebody is
    at work on it, a job of a lost run may be, or its lease cannot be read.
    """
    try:
        current = ledger.lease(key)
        lease = None if current and at_work(ledger, current[0]) else ledger.acquire(key, holder, seconds)
    except (LeaseHeld, DamagedRecord):
        lease = None
    try:
        yield lease
    finally:
        if lease is not None:
            ledger.release(lease)
