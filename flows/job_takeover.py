"""How a run goes on with an attempt of another one whose control plane died: it follows the job that lives on, or
takes up the end that the job left in the store.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from flows.launch.base import Handle, Job, Launcher
from stages.core.errors import ExitClass
from stages.core.leases import LeaseHeld
from stages.core.ledger import Ledger
from stages.core.messages import Lease
from stages.core.records import AttemptOutcome, LeaseRecord

FINAL = (ExitClass.CONFIG, ExitClass.INPUT, ExitClass.OOM, ExitClass.BUG)
"""Ends that tell what to do next: an attempt as it was would come to the same one. After any other end, another attempt
is made: what it published, and its checkpoints, are in the store.
"""


@dataclass(frozen=True)
class TakenOver:
    """An attempt that this run goes on with."""

    lease: Lease
    handle: Handle
    message: str
    """For people."""


class EndedHandle:
    """A job that is over, as its own process told it in the store."""

    def __init__(self, id: str, outcome: AttemptOutcome) -> None:
        self.id, self._outcome = id, outcome

    def events(self) -> Iterator[dict[str, Any]]:
        yield {"event": "done", "exit": self._outcome.exit_class, "message": self._outcome.message}

    def wait(self) -> int:
        return self._outcome.exit_class.code

    def stop(self, grace: float) -> None:
        return


def take_over(ledger: Ledger, launcher: Launcher, held: LeaseRecord, job: Job) -> TakenOver | None:
    """Take over the attempt under a lease whose follower is dead; None when there is nothing to go on with.

    job: of the key, as it was started; its lease is that of `held`. Raises InfraError when the store or the launcher is
    away.
    """
    if not launcher.detached or held.live or not held.holder:
        return None
    last = ledger.attempt(held.key, held.epoch)
    if last is None or last.launcher != launcher.name or not last.job or last.ended_at:
        return None
    message = f"following job {last.job} of an earlier run that was lost"
    handle: Handle | None = launcher.take_over(last.job, job)
    if handle is None:
        outcome = ledger.outcome(held.key, held.epoch)
        if outcome is None or outcome.exit_class not in FINAL:
            return None
        handle = EndedHandle(last.job, outcome)
        message = f"job {last.job} of an earlier run that was lost has ended meanwhile"
    try:
        lease = ledger.take_over(held.key)
    except LeaseHeld:
        return None
    return TakenOver(lease, handle, message)
