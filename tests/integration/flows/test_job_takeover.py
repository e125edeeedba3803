"""A run goes on with what another one left whose control plane died: a job that lives on, or an end that nobody saw."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import pytest

from flows import held_leases
from flows.execute import NodeFailed
from flows.held_leases import LeaseWatch
from flows.launch.base import Job
from stages.core.errors import ExitClass
from stages.core.ledger import Ledger
from stages.core.messages import Lease
from stages.core.records import LEASE_SECONDS, AttemptOutcome, AttemptRecord, LeaseRecord
from tests.support.bench import SOURCE, Bench, ScriptedHandle, ScriptedLauncher, recorder

CONFIG_DONE = {"event": "done", "exit": "config", "message": "the job's own word"}


@pytest.fixture
def bench(ledger: Ledger, tmp_path: Path) -> Bench:
    return Bench(ledger, tmp_path)


class DetachedLauncher(ScriptedLauncher):
    """Jobs that outlive their control plane: the one named "j" still runs, or has ended."""

    name: ClassVar[str] = "scripted"
    detached: ClassVar[bool] = True
    runs = True

    def take_over(self, id: str, job: Job) -> ScriptedHandle | None:  # type: ignore[override]
        return ScriptedHandle([CONFIG_DONE], 64, False) if self.runs and id == "j" else None


def left_behind(bench: Bench, seconds: float = 0.0) -> Lease:
    """An attempt of a control plane on another machine that died: a lease that it does not renew, a job, no end."""
    key = bench.source_key()
    record = LeaseRecord(
        key=key, epoch=3, holder="dead", expires_at=0, seconds=seconds, host="elsewhere", process="1:1"
    )
    bench.ledger.store.put(f"leases/{key}.json", record.model_dump_json().encode())
    bench.ledger.record_attempt(
        AttemptRecord(key=key, epoch=3, node="source_a", run_id="r", launcher="scripted", started_at="", job="j")
    )
    return Lease(key=key, epoch=3, holder="dead")


def leave(bench: Bench, lease: Lease, exit_class: ExitClass) -> None:
    """What the job writes at its end."""
    bench.ledger.leave_outcome(
        AttemptOutcome(key=lease.key, epoch=lease.epoch, ended_at="then", exit_class=exit_class, message="its own word")
    )


def test_a_job_is_followed_by_a_run_that_came_while_its_lease_was_still_good(bench: Bench) -> None:
    """It was looked for once, before the wait; then a second job began beside the first."""
    lease = left_behind(bench, seconds=1.0)
    bench.ledger.renew(lease_of_this_process(bench, lease), seconds=1.0)
    launcher = DetachedLauncher()
    run = bench.begin(launcher=launcher)
    with pytest.raises(NodeFailed, match="the job's own word"):
        run.node(SOURCE, {})
    assert recorder(run).states("source_a")[0] == "waiting"
    assert launcher.jobs == [], "none was started"
    attempt = bench.ledger.attempt(lease.key, 3)
    assert attempt is not None
    assert attempt.exit_class == "config"


def lease_of_this_process(bench: Bench, lease: Lease) -> Lease:
    """The lease as it is when its holder is at work, and of a machine that nobody here can look at."""
    held = bench.ledger.lease(lease.key)
    assert held is not None
    alive = held[0].model_copy(update={"process": ""})
    bench.ledger.store.put(f"leases/{lease.key}.json", alive.model_dump_json().encode())
    return lease


@pytest.mark.parametrize("exit_class", [ExitClass.CONFIG, ExitClass.INPUT, ExitClass.BUG])
def test_an_end_that_nobody_saw_counts(bench: Bench, exit_class: ExitClass) -> None:
    lease = left_behind(bench)
    leave(bench, lease, exit_class)
    launcher = DetachedLauncher()
    launcher.runs = False
    with pytest.raises(NodeFailed, match=rf"source_a failed \({exit_class}\): its own word"):
        bench.begin(launcher=launcher).node(SOURCE, {})
    assert launcher.jobs == [], "it would end the same way again"


@pytest.mark.parametrize("exit_class", [ExitClass.PREEMPTED, ExitClass.INFRA, None])
def test_a_job_that_was_interrupted_meanwhile_is_made_again(bench: Bench, exit_class: ExitClass | None) -> None:
    lease = left_behind(bench)
    if exit_class:
        leave(bench, lease, exit_class)
    launcher = DetachedLauncher(CONFIG_DONE, code=64)
    launcher.runs = False
    with pytest.raises(NodeFailed, match="the job's own word"):
        bench.begin(launcher=launcher).node(SOURCE, {})
    assert [job.request.lease.epoch for job in launcher.jobs] == [4]
    attempt = bench.ledger.attempt(lease.key, 3)
    assert attempt is not None
    line = "its own word" if exit_class else "whoever followed it died; its own end is not known"
    assert (attempt.exit_class, attempt.message) == (exit_class or "preempted", line)


def ends_without_a_line(bench: Bench, exit_class: ExitClass | None) -> Callable[[Job], None]:
    def before(job: Job) -> None:
        if exit_class:
            leave(bench, job.request.lease, exit_class)

    return before


@pytest.mark.parametrize(
    ("exit_class", "status", "ended"),
    [
        (ExitClass.PREEMPTED, 1, "preempted"),  # torchrun's status, read as a bug before
        (ExitClass.INPUT, 1, "input"),
        (None, 1, "bug"),
        (None, 137, "preempted"),
        (ExitClass.OK, 1, "bug"),
    ],
)
def test_a_last_line_that_was_rotated_away_is_read_in_the_store(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, exit_class: ExitClass | None, status: int, ended: str
) -> None:
    launcher = ScriptedLauncher(code=status)
    start, before = launcher.start, ends_without_a_line(bench, exit_class)

    def start_and_end(job: Job) -> ScriptedHandle:
        before(job)
        return start(job)

    monkeypatch.setattr(launcher, "start", start_and_end)
    with pytest.raises(NodeFailed, match=rf"source_a failed \({ended}\)"):
        bench.begin("retries=0", launcher=launcher).node(SOURCE, {})


def test_whoever_waits_lets_the_holder_come_first_after_an_outage(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(held_leases.time, "monotonic", lambda: clock[0])
    held = LeaseRecord(key="k", epoch=1, holder="h", expires_at=0, host="elsewhere", process="1:1")
    stale = held.model_copy(update={"age": 600.0})
    watch = LeaseWatch()
    clock[0] = 1.0
    assert not watch.free(held)
    clock[0] = 2.0
    assert watch.free(stale), "it was watched while it ran out"
    clock[0] = 602.0
    assert not watch.free(stale), "the store was away for ten minutes: nobody could renew"
    clock[0] = 603.0
    assert watch.free(stale.model_copy(update={"holder": ""})), "it was given back"
    for second in range(604, 662, 10):
        clock[0] = float(second)
        assert not watch.free(stale), second
    clock[0] = 602.0 + LEASE_SECONDS
    assert watch.free(stale), "its holder had its time, and did not come"
