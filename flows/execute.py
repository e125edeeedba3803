"""Execute one node: look it up, lease it, launch it, watch it, retry what may be retried. Knows no Prefect.

The flow calls `Execution.node` from a task's thread. `Execution.stop` may be called from any thread at any time: it
stops every running stage and lets no new one start.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from flows.launch.base import Handle, Job, Launcher
from flows.plan import Resolved, changes, rerun_reason, resolve
from flows.profiles import Profile
from stages.core.contracts import (
    CodeRef,
    ExitClass,
    InfraError,
    Lease,
    Preempted,
    StageError,
    StageRequest,
    StageResult,
)
from stages.core.graph import Node
from stages.core.keys import ROOT, sha256, source_digest
from stages.core.ledger import LEASE_SECONDS, AttemptRecord, LeaseHeld, LeaseLost, Ledger, NodeRecord, now
from stages.core.store import disk_full

STOP_GRACE = 30.0
"""Seconds that a stopped stage gets for a last checkpoint. Prefect's worker waits as long before it kills the flow."""


class NodeFailed(StageError):
    """A node's attempt ended badly. The message is the stage's own line."""

    def __init__(self, node: str, exit_class: ExitClass, message: str) -> None:
        self.node, self.kind = node, exit_class
        super().__init__(f"{node} failed ({exit_class}): {message}")


class Observer(Protocol):
    """Whoever wants to see a node's events as they come."""

    def event(self, node: str, event: Mapping[str, Any]) -> None:
        """One event of a node: the stage's own, or `state` events of the execution."""
        ...


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
    observers: list[Observer] = field(default_factory=list)
    answered: Mapping[str, Resolved] = field(default_factory=dict)
    """Nodes that the plan of this run, made a moment ago, found in the ledger: they are not looked up again."""
    launchers: Mapping[str, Launcher] = field(default_factory=dict)
    """Who runs a node, where it is not `launcher`."""

    def __post_init__(self) -> None:
        self._slots = threading.BoundedSemaphore(self.profile.settings.parallel)
        self._handles: dict[str, Handle] = {}
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._holder = f"{self.run_id} on {socket.gethostname()}"

    # --- control ------------------------------------------------------------------------------------------------

    def stop(self) -> None:
        """Stop every stage that runs, and start no more."""
        self._stopping.set()
        with self._lock:
            handles = list(self._handles.values())
        for handle in handles:
            handle.stop(STOP_GRACE)

    def wait_stopped(self, seconds: float = STOP_GRACE) -> bool:
        """Wait until no stage runs any more."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            with self._lock:
                if not self._handles:
                    return True
            time.sleep(0.05)
        return False

    def tell(self, node: str, event: str, **fields: Any) -> None:
        """Pass an event of the execution itself to the observers."""
        for observer in self.observers:
            observer.event(node, {"event": event, **fields})

    # --- one node -----------------------------------------------------------------------------------------------

    def node(self, node: Node, results: Mapping[str, StageResult]) -> Outcome:
        """Bring one node up to date. Raises StageError subclasses with one clear line."""
        started = time.monotonic()
        resolved = self.answered.get(node.name) or resolve(node, self.profile, self.ledger, results)
        selected = node.name in self.selected
        on_drift = self.profile.settings.on_drift if selected else "warn"
        reason = rerun_reason(resolved, on_drift, self.force and selected)
        if reason is None and resolved.result is not None:
            if resolved.drift and on_drift == "fail":  # the plan could not know this node's key yet
                raise NodeFailed(node.name, ExitClass.CONFIG, "its result was made by other code, and this profile forbids drift")
            return self._cached(node, resolved.result, "drift" if resolved.drift else "cached", started)
        if not selected:
            raise NodeFailed(node.name, ExitClass.INPUT, f"{reason}, and it is not selected: select '+{node.name}'")
        retries = self.profile.settings.retries
        for attempt in range(retries + 1):
            with self._slots:  # before the lease, which would run out while it waited here
                lease, handle = self._adopt(node, resolved) if attempt == 0 else (None, None)
                lease = lease or self._acquire(node, resolved)
                if lease is None:  # whoever held the lease has published meanwhile
                    found = self.ledger.manifest(resolved.key)
                    assert found is not None
                    return self._cached(node, found[0], "made by another run meanwhile", started)
                try:
                    exit_class, message = self._attempt(node, resolved, lease, reason or "", attempt == 0, handle)
                finally:
                    self.ledger.release(lease)
            if exit_class is ExitClass.OK:
                found = self.ledger.manifest(resolved.key)
                if found is None:
                    raise NodeFailed(node.name, ExitClass.BUG, "it said that it was done, but published nothing")
                self._remember(node, resolved.key)
                seconds = time.monotonic() - started
                self.tell(node.name, "state", state="done", seconds=seconds)
                return Outcome(found[0], False, reason or "", seconds)
            if self._stopping.is_set() or not exit_class.retryable or attempt == retries:
                self.tell(node.name, "state", state="stopped" if self._stopping.is_set() else "failed", message=message)
                raise NodeFailed(node.name, exit_class, message)
            self.tell(node.name, "log", level="warning", message=f"attempt ended ({exit_class}: {message}); trying again")
        raise AssertionError("unreachable")

    def _cached(self, node: Node, result: StageResult, reason: str, started: float) -> Outcome:
        self._remember(node, result.key)
        seconds = time.monotonic() - started
        self.tell(node.name, "state", state="cached", seconds=seconds, message=reason)
        return Outcome(result, True, reason, seconds)

    def _remember(self, node: Node, key: str) -> None:
        self.ledger.set_node(self.profile.name, NodeRecord(node=node.name, key=key, run_id=self.run_id, at=now()))

    def _acquire(self, node: Node, resolved: Resolved) -> Lease | None:
        """Take the lease, waiting while another run works on the key; None when that run has published it."""
        told = False
        while True:
            if self._stopping.is_set():
                raise Preempted(f"{node.name}: the run is stopping")
            try:
                lease = self.ledger.acquire(resolved.key, self._holder)
            except LeaseHeld as held:
                if not told:
                    self.tell(node.name, "state", state="waiting", message=f"{held.record.holder} works on it; waiting")
                    told = True
                self._stopping.wait(1.0)
                continue
            published = self.ledger.manifest(resolved.key)
            if published is not None and (resolved.etag is None or published[1] != resolved.etag):
                self.ledger.release(lease)
                return None
            return lease

    def _adopt(self, node: Node, resolved: Resolved) -> tuple[Lease | None, Handle | None]:
        """Take over a job whose control plane died while the job itself lives on; (None, None) when there is none."""
        engine = self._engine(node)
        held = self.ledger.lease(resolved.key) if engine.detached else None
        if held is None or held[0].live or not held[0].holder:
            return None, None
        last = next((a for a in reversed(self.ledger.attempts(resolved.key)) if a.epoch == held[0].epoch), None)
        if last is None or last.launcher != engine.name or not last.job or last.ended_at:
            return None, None
        lease = Lease(key=resolved.key, epoch=held[0].epoch, holder=held[0].holder)
        handle = engine.adopt(last.job, self._job(node, resolved, lease))
        if handle is None:
            return None, None
        try:
            lease = self.ledger.take_over(resolved.key)
        except LeaseHeld:
            return None, None
        self.tell(node.name, "log", level="info", message=f"following job {last.job} of an earlier run that was lost")
        return lease, handle

    def _attempt(
        self, node: Node, resolved: Resolved, lease: Lease, reason: str, first: bool, adopted: Handle | None = None
    ) -> tuple[ExitClass, str]:
        """Launch once and follow it to its end; the exit class and the line that says why."""
        if self._stopping.is_set():
            return ExitClass.PREEMPTED, "the run is stopping"
        if resolved.result is not None and first and adopted is None:
            self.ledger.drop_checkpoints(resolved.key)  # a rerun of a finished key starts clean
        record = AttemptRecord(
            key=resolved.key,
            epoch=lease.epoch,
            node=node.name,
            run_id=self.run_id,
            launcher=self._engine(node).name,
            started_at=now(),
        )
        self.ledger.record_attempt(record)
        self.tell(node.name, "state", state="running", message=reason)
        exit_class, message = ExitClass.INFRA, "it could not be started"
        try:
            handle = adopted or self._engine(node).start(self._job(node, resolved, lease))
            if self._engine(node).detached:
                record = record.model_copy(update={"job": handle.id})
                self._record(record, handle)
            exit_class, message = self._follow(node, handle, lease)
        except InfraError as error:
            exit_class, message = ExitClass.INFRA, str(error)
        finally:
            done = {"ended_at": now(), "exit_class": exit_class.value, "message": message}
            self.ledger.record_attempt(record.model_copy(update=done))
        if exit_class is ExitClass.OK:
            self.ledger.drop_checkpoints(resolved.key)
        return exit_class, message

    def _engine(self, node: Node) -> Launcher:
        return self.launchers.get(node.name, self.launcher)

    def _job(self, node: Node, resolved: Resolved, lease: Lease) -> Job:
        config = self.profile.configs[node.name]
        known = {port: [r.manifest.facets for r in refs] for port, refs in resolved.inputs.items()}
        predicted = node.facets(config, known)
        expected = {port: {k: v for k, v in facets.items() if v is not None} for port, facets in predicted.items()}
        outputs = {p.name: p.type.__name__ for p in node.ports.values() if p.direction == "output"}
        request = StageRequest(
            run_id=self.run_id,
            node=node.name,
            stage=node.stage,
            revision=node.revision,
            key=resolved.key,
            lease=lease,
            config=config.model_dump(mode="json"),
            inputs=resolved.inputs,
            outputs=outputs,
            expected_facets=expected,
            code=code_ref(node),
            store=self.ledger.store.address,
            replaces=resolved.etag,
        )
        return Job(request, self.profile.resources[node.name], node.env)

    def _record(self, record: AttemptRecord, handle: Handle) -> None:
        """Write down a job's number. A job that the ledger does not know of must not go on."""
        try:
            self.ledger.record_attempt(record)
        except StageError:
            handle.stop(0)
            raise

    def _follow(self, node: Node, handle: Handle, lease: Lease) -> tuple[ExitClass, str]:
        with self._lock:
            self._handles[node.name] = handle
        ended = threading.Event()
        lost: list[str] = []
        beat = threading.Thread(target=self._heartbeat, args=(lease, handle, ended, lost), daemon=True)
        beat.start()
        if self._stopping.is_set():
            handle.stop(STOP_GRACE)
        log = self.home / "logs" / "stages" / lease.key / f"{lease.epoch:06d}.jsonl"
        log.parent.mkdir(parents=True, exist_ok=True)
        last: dict[str, Any] = {}
        try:
            with open(log, "w", encoding="utf-8") as stream:
                for event in handle.events():
                    stream.write(json.dumps({"time": now(), **event}, ensure_ascii=False) + "\n")
                    stream.flush()
                    if event["event"] == "done":
                        last = event
                    for observer in self.observers:
                        observer.event(node.name, event)
            code = handle.wait()
        except BaseException as error:  # nobody follows the stage any more: it must not go on
            handle.stop(STOP_GRACE)
            if isinstance(error, OSError) and (full := disk_full(error, log.parent)):
                raise full from error
            raise
        finally:
            ended.set()
            with self._lock:
                self._handles.pop(node.name, None)
        if log.stat().st_size:
            self.ledger.store.upload(self.ledger.log_key(lease.key, lease.epoch), log)
        if lost:
            return ExitClass.INFRA, lost[0]
        exit_class = ExitClass.from_code(code)
        if last.get("exit") == ExitClass.OK and code == 0:
            return ExitClass.OK, ""
        default = f"killed by signal {-code}" if code < 0 else f"exit status {code}, with no message"
        return exit_class, str(last.get("message") or default)

    def _heartbeat(self, lease: Lease, handle: Handle, ended: threading.Event, lost: list[str]) -> None:
        """Renew the lease until the attempt ends; stop the stage when the lease is lost or cannot be renewed in time."""
        renewed = time.monotonic()
        while not ended.wait(LEASE_SECONDS / 3):
            try:
                self.ledger.renew(lease)
                renewed = time.monotonic()
            except LeaseLost as error:
                lost.append(str(error))
            except StageError as error:
                if time.monotonic() - renewed > LEASE_SECONDS:
                    lost.append(f"the lease could not be renewed for {LEASE_SECONDS:.0f} s: {error}")
            if lost:
                handle.stop(STOP_GRACE)
                return


def code_ref(node: Node) -> CodeRef:
    """What code an attempt of this node runs, as far as this machine can tell."""
    lock = ROOT / "containers" / "embedded" / "requirements.lock"
    return CodeRef(
        source_digest=source_digest(node.stage),
        lock_digest=sha256(lock.read_bytes()) if lock.is_file() else None,
        git_commit=git_commit(),
    )


def git_commit() -> str | None:
    """The commit of this checkout; None outside one."""
    try:
        done = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, timeout=5, env={**os.environ}, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None


__all__ = ["Execution", "NodeFailed", "Observer", "Outcome", "changes", "code_ref"]
