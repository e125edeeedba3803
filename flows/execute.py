"""Execute one node: look it up, lease it, launch it, watch it, retry what may be retried. Knows no Prefect.

The flow calls `Execution.node` from a task's thread. `Execution.stop` may be called from any thread at any time: it
stops every running stage and lets no new one start.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from flows.event_dispatch import EventDispatcher, Observer
from flows.held_leases import HeldLeases, LeaseWatch
from flows.job_takeover import take_over
from flows.launch.base import Handle, Job, Launcher
from flows.live.attempt_events import local_log
from flows.plan import Resolved, differences, rerun_reason, resolve
from flows.profiles import Profile
from flows.retry import RETRYABLE, Tries, judge
from flows.running_stages import RunningStages
from flows.slots import Slots
from flows.spending import OverBudget, Spending
from flows.stage_job import make_job
from stages.core.config import StageConfig
from stages.core.errors import ExitClass, InfraError, Preempted, StageError
from stages.core.graph import Node
from stages.core.leases import LeaseHeld, LeaseLost, LeaseTakenOver
from stages.core.ledger import Ledger
from stages.core.messages import Lease, StageResult
from stages.core.records import AttemptRecord, DamagedRecord, NodeRecord, now

T = TypeVar("T")


class NodeFailed(StageError):
    """A node's attempt ended badly. The message is the stage's own line."""

    def __init__(self, node: str, exit_class: ExitClass, message: str) -> None:
        self.node, self.kind = node, exit_class
        super().__init__(f"{node} failed ({exit_class}): {message}")


@dataclass(frozen=True)
class Outcome:
    """What became of a node: its result, and whether it came from the ledger."""

    result: StageResult
    cached: bool
    reason: str
    seconds: float


@dataclass
class Execution:
    """One run of a selection."""

    run_id: str
    profile: Profile
    ledger: Ledger
    launcher: Launcher
    home: Path
    selected: frozenset[str]
    force: bool = False
    observers: list[Observer] = field(default_factory=list[Observer])
    answered: Mapping[str, Resolved] = field(default_factory=dict[str, Resolved])
    """Nodes that the plan of this run, made a moment ago, found in the ledger: they are not looked up again."""
    launchers: Mapping[str, Launcher] = field(default_factory=dict[str, Launcher])
    """Who runs a node, where it is not `launcher`."""
    stops: frozenset[str] = frozenset()
    """Nodes whose first attempt waits after its first checkpoint until `stop_one` is called: a rehearsal's."""
    names: Mapping[str, str] | None = None
    """The names of results as the run found them (`Ledger.move_node`)."""
    spending: Spending | None = None
    """What the run has spent, where it has a budget."""

    def __post_init__(self) -> None:
        self._clean: set[str] = set()
        self.events = EventDispatcher(self.observers)
        self._stopping = threading.Event()
        self._slots = Slots(self.profile.settings.parallel, self.home, self._stopping, self.tell)
        self._running = RunningStages(self.ledger, self.events, self._stopping)
        self._leases = HeldLeases(self.ledger, f"{self.run_id} on {socket.gethostname()}")

    # --- control ------------------------------------------------------------------------------------------------

    def stop(self) -> None:
        """Stop every stage that runs, and start no more."""
        self._running.stop()

    def stop_one(self, node: str) -> None:
        """Ask one stage to stop, as a machine that is taken away would: it is tried again if it saved something."""
        self._running.stop_one(node)

    def wait_stopped(self, seconds: float | None = None) -> bool:
        """Wait until no stage runs any more, None: as long as last checkpoints take; False when some still do."""
        return self._running.wait_stopped(seconds)

    def tell(self, node: str, event: str, **fields: Any) -> None:
        """Pass an event of the execution itself to the observers."""
        self.events.tell(node, event, **fields)

    # --- one node -----------------------------------------------------------------------------------------------

    def node(self, node: Node, results: Mapping[str, StageResult]) -> Outcome:
        """Bring one node up to date. Raises StageError subclasses with one clear line."""
        waits = False
        try:
            return self._node(node, results, time.monotonic())
        except NodeFailed:
            raise
        except StageError as error:  # none of the ends that are told where they come about
            waits = isinstance(error, OverBudget)
            state = "stopped" if waits or self._stopping.is_set() else "failed"
            self.tell(node.name, "state", state=state, message=str(error))
            raise
        finally:
            if self.spending and not waits:
                self.spending.close(node.name)
            self.events.flush()

    def _node(self, node: Node, results: Mapping[str, StageResult], started: float) -> Outcome:
        selected = node.name in self.selected
        resolved = self.answered.get(node.name)
        if resolved is None and (missing := [parent for parent in node.parents if parent not in results]):
            self._failed(
                node, ExitClass.INPUT, f"it needs {missing[0]}, which has no result: select '+{node.name}'", "failed"
            )
        resolved = resolved or self._patiently(node, lambda: resolve(node, self.profile, self.ledger, results))
        on_drift = self.profile.settings.on_drift if selected else "warn"
        reason = rerun_reason(resolved, on_drift, self.force and selected)
        if reason is None and resolved.result is not None:
            if resolved.drift and on_drift == "fail":  # the plan could not know this node's key yet
                self._failed(
                    node,
                    ExitClass.CONFIG,
                    "its result was made by other code, and this profile forbids drift",
                    "failed",
                )
            return self._cached(node, resolved.result, "drift" if resolved.drift else "cached", started)
        if resolved.damaged and reason is None:
            self._failed(
                node, ExitClass.INPUT, f"{resolved.damaged}; '--force' sets it aside and runs the node", "failed"
            )
        if not selected:
            self._failed(node, ExitClass.INPUT, f"{reason}, and it is not selected: select '+{node.name}'", "failed")
        return self._make(node, self._set_aside(node, resolved), reason or "", started)

    def _make(self, node: Node, resolved: Resolved, reason: str, started: float) -> Outcome:
        """Attempt a node until it is made, or nothing speaks for another attempt (`flows.retry`)."""
        config, tries, number = self.profile.configs[node.name], Tries(), 0
        furthest = -1 if resolved.result is not None else self._furthest(node, resolved.key)
        while True:
            number += 1
            with self._slots.taken(node.name, self._launcher_for(node).name, self.profile.resources[node.name]):
                # before the lease, which would run out while it waited here
                if self.spending:
                    self.spending.check()
                lease, handle = self._acquire(node, resolved)
                if lease is None:  # whoever held the lease has published meanwhile
                    return self._cached(
                        node, self._published(node, resolved.key), "made by another run meanwhile", started
                    )
                began = time.monotonic()
                ended, message = self._attempt(node, resolved, config, lease, reason, handle)
            if ended is ExitClass.OK:
                result = self._published(node, resolved.key)
                if self.spending:
                    self.spending.settle(result)
                self._remember(node, resolved.key)
                seconds = time.monotonic() - started
                self.tell(node.name, "state", state="done", seconds=seconds)
                return Outcome(result, False, reason, seconds)
            if self._stopping.is_set():
                self._failed(node, ended, message, "stopped")
            before = furthest
            if (
                ended in RETRYABLE
            ):  # of another end nothing is to be decided, and trouble with the store must not hide it
                furthest = max(furthest, self._furthest(node, resolved.key))
            smaller = self._smaller(node, config) if ended is ExitClass.OOM else None
            verdict = judge(
                ended,
                furthest > before,
                tries.after_attempt(ended, time.monotonic() - began, self.profile.settings.patience),
                self.profile.settings.retries,
                self.profile.settings.patience,
                smaller is not None,
            )
            tries = verdict.tries
            if not verdict.again:
                tell = ended in RETRYABLE and (number > 1 or ended is ExitClass.OOM)
                self._failed(node, ended, f"{message}; {verdict.why}" if tell else message, "failed")
            why = verdict.why
            if smaller is not None:
                why += (
                    f" ({'; '.join(differences('', config.model_dump(mode='json'), smaller.model_dump(mode='json')))})"
                )
                config = smaller
            self.tell(node.name, "log", level="warning", message=f"attempt {number} ended ({ended}: {message}); {why}")
            if verdict.pause and self._stopping.wait(verdict.pause):
                self._failed(node, ended, message, "stopped")

    def _failed(self, node: Node, ended: ExitClass, message: str, state: str) -> NoReturn:
        self.tell(node.name, "state", state=state, message=message)
        raise NodeFailed(node.name, ended, message)

    def _patiently(self, node: Node, what: Callable[[], T]) -> T:
        """Do something that needs the store; trouble with it is waited out, as long as the profile's patience lasts."""
        tries = Tries()
        while True:
            try:
                return what()
            except LeaseLost:
                raise
            except InfraError as error:
                pause = tries.pause(self.profile.settings.patience)
                if pause is None:
                    raise
                tries = tries.after_pause(pause)
                self.tell(node.name, "log", level="warning", message=f"{error}; trying again in {pause:.0f} s")
                if self._stopping.wait(pause):
                    raise Preempted(f"{node.name}: the run is stopping") from error

    def _quietly(self, node: Node, doing: str, what: Callable[[], object]) -> None:
        """Do something whose failure changes nothing about how an attempt ended: it is told, and that is all."""
        try:
            what()
        except StageError as error:
            self.tell(node.name, "log", level="warning", message=f"{doing} failed: {error}")

    def _furthest(self, node: Node, key: str) -> int:
        """The newest step that is saved of a key; -1 without any."""
        if not node.checkpoints or self._stopping.is_set():
            return -1
        return max(self._patiently(node, lambda: self.ledger.checkpoint_steps(key)), default=-1)

    def _smaller(self, node: Node, config: StageConfig) -> StageConfig | None:
        """What the stage offers to try after it ran out of memory: the same result from less."""
        smaller = node.smaller(config)
        if smaller is not None and smaller.identity() != config.identity():
            raise NodeFailed(
                node.name,
                ExitClass.BUG,
                f"stage {node.stage}: `smaller` changes the key, so it would make something else",
            )
        return smaller

    def _published(self, node: Node, key: str) -> StageResult:
        manifest = self._patiently(node, lambda: self.ledger.manifest(key))
        if manifest is None:
            raise NodeFailed(node.name, ExitClass.BUG, "it said that it was done, but published nothing")
        return manifest[0]

    def _set_aside(self, node: Node, resolved: Resolved) -> Resolved:
        """Move a manifest that cannot be read out of the way of a forced run: it is not written over."""
        if not resolved.damaged:
            return resolved
        try:
            if self.ledger.manifest(resolved.key) is not None:  # another run has been faster
                return replace(resolved, damaged="")
        except DamagedRecord:
            pass
        where = self._patiently(node, lambda: self.ledger.set_aside(f"manifests/{resolved.key}.json"))
        self.tell(node.name, "log", level="warning", message=f"the damaged record of its last result is now {where}")
        return replace(resolved, etag=None, damaged="")

    def _cached(self, node: Node, result: StageResult, reason: str, started: float) -> Outcome:
        self._remember(node, result.key)
        seconds = time.monotonic() - started
        self.tell(node.name, "state", state="cached", seconds=seconds, message=reason)
        return Outcome(result, True, reason, seconds)

    def _remember(self, node: Node, key: str) -> None:
        record = NodeRecord(node=node.name, key=key, run_id=self.run_id, at=now())
        if other := self._patiently(node, lambda: self.ledger.move_node(self.profile.names, record, self.names)):
            self.tell(node.name, "log", level="warning", message=other)

    def _acquire(self, node: Node, resolved: Resolved) -> tuple[Lease | None, Handle | None]:
        """Take the lease, waiting while another run works on the key; with the job of a run that died, where there is
        one to go on with. No lease when another run has published the key.
        """
        announced, watch = False, LeaseWatch()
        while True:
            if self._stopping.is_set():
                raise Preempted(f"{node.name}: the run is stopping")
            try:
                lease, handle = self._patiently(node, lambda: self._take(node, resolved, watch))
            except LeaseHeld as held:
                if self._leases.recover(held.record):
                    continue
                if not announced:
                    self.tell(node.name, "state", state="waiting", message=f"{held.record.holder} works on it; waiting")
                    announced = True
                self._stopping.wait(1.0)
                continue
            if handle is not None:
                return lease, handle
            published = self._patiently(node, lambda: self.ledger.manifest(resolved.key))
            if published is not None and (resolved.etag is None or published[1] != resolved.etag):
                self._give_back(node, lease)
                return None, None
            return lease, None

    def _take(self, node: Node, resolved: Resolved, watch: LeaseWatch) -> tuple[Lease, Handle | None]:
        """Take over what a dead run left of the key, or acquire it. Raises LeaseHeld while somebody may be at work."""
        there = self.ledger.lease(resolved.key)
        if there is not None and not watch.free(there[0]):
            raise LeaseHeld(there[0])
        if there is not None and there[0].holder:
            launcher = self._launcher_for(node)
            lease = Lease(key=resolved.key, epoch=there[0].epoch, holder=there[0].holder)
            if job := take_over(self.ledger, launcher, there[0], self._job(node, resolved, lease)):
                self._leases.taken_over(job.lease)
                self.tell(node.name, "log", level="info", message=job.message)
                return job.lease, job.handle
        return self._leases.take(resolved.key), None

    def _give_back(self, node: Node, lease: Lease) -> None:
        self._quietly(node, "giving the lease back", lambda: self._leases.release(lease))

    def _attempt(
        self, node: Node, resolved: Resolved, config: StageConfig, lease: Lease, reason: str, taken_over: Handle | None
    ) -> tuple[ExitClass, str]:
        """Launch once and follow it to its end; the exit class and the line that says why. The lease is given back."""
        launcher = self._launcher_for(node)
        record = AttemptRecord(
            key=resolved.key, epoch=lease.epoch, node=node.name, run_id=self.run_id, launcher=launcher.name,
            started_at=now(),
        )  # fmt: skip
        exit_class, message, left_to_another = ExitClass.PREEMPTED, "the run is stopping", False
        try:
            if self._stopping.is_set():
                return exit_class, message
            exit_class, message = ExitClass.INFRA, "it could not be started"
            if resolved.result is not None and taken_over is None and resolved.key not in self._clean:
                # a forced rerun of a finished key starts clean; else it goes on from its own interrupted attempt
                forced = self.force and node.name in self.selected
                before = lease.epoch if forced else resolved.result.attempt.epoch + 1
                self.ledger.drop_checkpoints(resolved.key, before=before)
            self._clean.add(resolved.key)
            self.ledger.begin_attempt(record)
            self.tell(node.name, "state", state="running", message=reason)
            job = self._job(node, resolved, lease, config)
            handle = taken_over or launcher.start(job)
            if self.spending:
                handle = self.spending.metered(node.name, handle, launcher.detached, taken_over is not None)
            if launcher.detached:
                record = record.model_copy(update={"job": handle.id})
                self._record(record, handle)
            log = local_log(self.home, lease.key, lease.epoch)
            ranks, grace = job.ranks * job.resources.nodes, job.resources.grace_seconds
            exit_class, message = self._running.follow(node.name, handle, lease, log, ranks, grace)
            self._keep_log(node, lease, log)
        except StageError as error:
            exit_class, message, left_to_another = error.exit_class, str(error), isinstance(error, LeaseTakenOver)
        except BaseException as error:
            exit_class, message = ExitClass.BUG, f"{type(error).__name__}: {error}"
            raise
        finally:  # whatever happens to these records, how the attempt ended stands
            if self.spending:
                self.spending.end(node.name)
            done = record.model_copy(update={"ended_at": now(), "exit_class": exit_class.value, "message": message})
            if not left_to_another:  # else it has not ended, and its record is the other process's to write
                self._quietly(node, "writing down how the attempt ended", lambda: self.ledger.record_attempt(done))
            self._give_back(node, lease)
        if exit_class is ExitClass.OK:  # its lease is given back: what a later attempt saves is not this one's
            drop = partial(self.ledger.drop_checkpoints, resolved.key, before=lease.epoch + 1)
            self._quietly(node, "removing its checkpoints", drop)
        return exit_class, message

    def _launcher_for(self, node: Node) -> Launcher:
        return self.launchers.get(node.name, self.launcher)

    def _job(self, node: Node, resolved: Resolved, lease: Lease, config: StageConfig | None = None) -> Job:
        job = make_job(self.run_id, node, resolved, lease, self.profile, self.ledger.store.address, config)
        if node.name not in self.stops:
            return job
        return replace(job, request=job.request.model_copy(update={"rehearses_stop": True}))

    def _keep_log(self, node: Node, lease: Lease, log: Path) -> None:
        if log.stat().st_size:
            self._quietly(
                node,
                f"keeping its log, which stays on this machine alone ({log}),",
                lambda: self.ledger.store.upload(self.ledger.log_key(lease.key, lease.epoch), log),
            )

    def _record(self, record: AttemptRecord, handle: Handle) -> None:
        """Write down a job's number. A job that the ledger does not know of must not go on."""
        try:
            self.ledger.record_attempt(record)
        except StageError:
            handle.stop(0)
            raise
