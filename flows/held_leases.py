"""The leases that one run holds, and how it finds one of its own that trouble with the store left behind. They are
renewed where their stages are followed (`flows/running_stages.py`).
"""

from __future__ import annotations

import threading
import time

from stages.core.errors import InfraError
from stages.core.ledger import Ledger
from stages.core.messages import Lease
from stages.core.processes import process_identity
from stages.core.records import LEASE_SECONDS, LeaseRecord


class HeldLeases:
    """Takes and gives back leases for one run. A run holds a key once at most, so a lease of its own that is not in use
    is left over.
    """

    def __init__(self, ledger: Ledger, holder: str) -> None:
        self._ledger, self._holder = ledger, holder
        self._held: set[tuple[str, int]] = set()
        self._lock = threading.Lock()

    def take(self, key: str) -> Lease:
        """Acquire a key. Raises LeaseHeld while somebody else, or another node of this run, works on it."""
        with self._lock:
            lease = self._ledger.acquire(key, self._holder)
            self._held.add((key, lease.epoch))
            return lease

    def taken_over(self, lease: Lease) -> None:
        """Note a lease that this run took over with its job (`flows/job_takeover.py`)."""
        with self._lock:
            self._held.add((lease.key, lease.epoch))

    def recover(self, held: LeaseRecord) -> bool:
        """Give back a lease of this run that is not in use: the store was away when it was taken, or given back."""
        with self._lock:
            if (
                held.holder != self._holder
                or held.process != process_identity()
                or (held.key, held.epoch) in self._held
            ):
                return False
            try:
                self._ledger.release(Lease(key=held.key, epoch=held.epoch, holder=held.holder))
            except InfraError:
                return False
            return True

    def release(self, lease: Lease) -> None:
        """Give a lease back. When the store is away, it raises InfraError, and `recover` finds the lease later."""
        with self._lock:
            self._held.discard((lease.key, lease.epoch))
        self._ledger.release(lease)


class LeaseWatch:
    """Whether a lease that ran out was watched while it did. When the store was away, its holder could not renew it
    either: whoever waits for the key lets the holder come first when the store is back.
    """

    def __init__(self) -> None:
        self._asked, self._holder_first_until = time.monotonic(), 0.0

    def free(self, record: LeaseRecord) -> bool:
        """Whether a lease, as the store just answered, may be taken."""
        now = time.monotonic()
        if now - self._asked > LEASE_SECONDS / 2:
            self._holder_first_until = now + LEASE_SECONDS
        self._asked = now
        return not record.live and (not record.holder or record.holder_died or now >= self._holder_first_until)
