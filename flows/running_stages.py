"""The stages of a run that are running now: followed to their end, kept leased, stopped together."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from flows.event_dispatch import EventDispatcher
from flows.launch.base import Handle
from stages.core.disk import disk_full
from stages.core.errors import ExitClass, InfraError, StageError
from stages.core.leases import LEASE_ENDURANCE, LeaseLost, LeaseTakenOver
from stages.core.ledger import Ledger
from stages.core.messages import Lease
from stages.core.records import LEASE_SECONDS, AttemptOutcome, now


class RunningStages:
    """Handles of the stages that run. Its methods may be called from any thread."""

    def __init__(self, ledger: Ledger, events: EventDispatcher, stopping: threading.Event) -> None:
        """stopping: set by `stop`; whoever starts stages starts none when it is set."""
        self._ledger, self._events, self._stopping = ledger, events, stopping
        self._handles: dict[str, tuple[Handle, float]] = {}
        self._lock = threading.Lock()

    def stop(self) -> None:
        """Stop every stage that runs, and start no more."""
        self._stopping.set()
        with self._lock:
            handles = list(self._handles.values())
        trouble: list[Exception] = []
        for handle, grace in handles:
            try:
                handle.stop(grace)
            except Exception as error:  # a launcher that is away must not keep the others from being asked
                trouble.append(error)
        if trouble:
            raise trouble[0]

    def stop_one(self, node: str) -> None:
        """Ask one stage to stop; whether it is started again is its follower's to say."""
        with self._lock:
            handle, grace = self._handles.get(node, (None, 0.0))
        if handle is not None:
            handle.stop(grace)

    def wait_stopped(self, seconds: float | None = None) -> bool:
        """Wait until no stage runs any more, for as long as any of them has for a last checkpoint."""
        with self._lock:
            longest = max((grace for _, grace in self._handles.values()), default=0.0)
        deadline = time.monotonic() + (longest if seconds is None else seconds)
        while time.monotonic() < deadline:
            with self._lock:
                if not self._handles:
                    return True
            time.sleep(0.05)
        return False

    def follow(
        self, node: str, handle: Handle, lease: Lease, log: Path, ranks: int, grace: float
    ) -> tuple[ExitClass, str]:
        """Follow a stage to its end: its events go to the log and to the observers, its lease is renewed. ranks: its
        processes, on all nodes, that a launcher's torchrun starts. grace: seconds that it gets for a last checkpoint.

        Returns the exit class and the line that says why. Raises what the launcher raises, after the stage has
        stopped; StageError when the disk of the log is full; LeaseTakenOver when another process follows the stage now,
        which goes on: this one lets go of it at its next event.
        """
        with self._lock:
            self._handles[node] = (handle, grace)
        ended = threading.Event()
        lost: list[InfraError] = []
        beat = threading.Thread(target=self._heartbeat, args=(node, lease, handle, grace, ended, lost), daemon=True)
        beat.start()
        last: dict[str, Any] = {}
        said = handle.events()
        try:
            if self._stopping.is_set():
                handle.stop(grace)
            log.parent.mkdir(parents=True, exist_ok=True)
            # half a surrogate pair is no reason to stop
            with open(log, "w", encoding="utf-8", errors="backslashreplace") as stream:
                for event in said:
                    if _taken_over(lost):
                        break
                    stream.write(json.dumps({"time": now(), **event}, ensure_ascii=False) + "\n")
                    stream.flush()
                    if event["event"] == "done":
                        last = event
                    self._events.publish(node, event)
            code = 0 if _taken_over(lost) else handle.wait()  # the end of a job is its follower's to clear up
        except BaseException as error:  # nobody follows the stage any more: it must not go on
            if not _taken_over(lost):
                handle.stop(grace)
                _wait_for_end(handle, said)  # it saves its checkpoint, for which it needs its lease
            if isinstance(error, OSError) and (full := disk_full(error, log.parent)):
                raise full from error
            raise
        finally:
            ended.set()
            with self._lock:
                self._handles.pop(node, None)
        if _taken_over(lost):
            raise lost[0]
        if lost:
            return ExitClass.INFRA, str(lost[0])
        exit_class = ExitClass.from_code(code)
        if not last and (outcome := self._outcome(lease)):  # its last line was lost, or rotated away
            last = {"exit": outcome.exit_class, "message": outcome.message}
            if code and outcome.exit_class is not ExitClass.OK:
                exit_class = outcome.exit_class
        if last.get("exit") == ExitClass.OK and code == 0:
            return ExitClass.OK, ""
        if not last and ranks > 1 and exit_class is ExitClass.BUG:
            # torchrun ends with 1 whatever became of its processes: the first, which tells every end, was lost
            return ExitClass.PREEMPTED, f"exit status {code}: its first process was lost without a word"
        default = f"killed by signal {-code}" if code < 0 else f"exit status {code}, with no message"
        return exit_class, str(last.get("message") or default)

    def _outcome(self, lease: Lease) -> AttemptOutcome | None:
        """How an attempt ended by its own word in the store; None when it left none, or the store is away."""
        try:
            return self._ledger.outcome(lease.key, lease.epoch)
        except StageError:
            return None

    def _heartbeat(
        self,
        node: str,
        lease: Lease,
        handle: Handle,
        grace: float,
        ended: threading.Event,
        lost: list[InfraError],
    ) -> None:
        """Renew the lease until the attempt ends; stop the stage when another attempt has it, or it could not be
        renewed for very long. A stage that another process follows now is only let go.

        A store that does not answer is waited for: nobody else can take a lease there either (docs/decisions/lease.md).
        """
        renewed, warned = time.monotonic(), False
        while not ended.wait(LEASE_SECONDS / 3):
            try:
                self._ledger.renew(lease)
                renewed, warned = time.monotonic(), False
            except LeaseLost as error:
                lost.append(error)
            except Exception as error:  # whatever it is: a beat that ended without a word would give the lease away
                away = time.monotonic() - renewed
                if away > LEASE_ENDURANCE:
                    lost.append(InfraError(f"the lease could not be renewed for {away:.0f} s: {error}"))
                elif away > LEASE_SECONDS and not warned:
                    warned = True
                    message = (
                        f"the lease could not be renewed for {away:.0f} s: {error}; going on for up to"
                        f" {LEASE_ENDURANCE:.0f} s"
                    )
                    self._events.tell(node, "log", level="warning", message=message)
            if _taken_over(lost):
                with self._lock:
                    if self._handles.get(node, (None,))[0] is handle:  # not that of a later attempt
                        del self._handles[node]
                return
            if lost:
                handle.stop(grace)
                return


def _wait_for_end(handle: Handle, said: Iterator[dict[str, Any]]) -> None:
    """Wait until a stage that was stopped has ended, as far as its launcher can tell."""
    with contextlib.suppress(Exception):
        for _ in said:  # a pipe that nobody reads would hold it up
            pass
        handle.wait()


def _taken_over(lost: list[InfraError]) -> bool:
    return bool(lost) and isinstance(lost[0], LeaseTakenOver)
