"""Executing nodes without Prefect: how attempts end, torn publishing, stopping, leases. Stages run inline."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest

from flows import plan as plans
from flows import running_stages
from flows.execute import Execution, NodeFailed
from flows.launch.base import Job
from stages.core.errors import ConfigError, ExitClass, InfraError, Preempted
from stages.core.ledger import Ledger
from stages.core.messages import Lease, StageResult
from stages.core.records import LeaseRecord
from tests.support.bench import PIPE, SOURCE, Bench, ScriptedHandle, ScriptedLauncher, failing, recorder, started
from tests.support.limits import HANG
from tests.support.probe_pipeline import profile_of, run_nodes, wait_for

# --- the end of an attempt --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "exit_class", "message"),
    [
        (-9, "preempted", "killed by signal 9"),
        (-11, "bug", "killed by signal 11"),
        (3, "bug", "exit status 3, with no message"),
    ],
)
def test_a_stage_that_ends_without_a_word_is_told_by_its_status(
    bench: Bench, code: int, exit_class: str, message: str
) -> None:
    run = bench.begin("retries=0", launcher=ScriptedLauncher(code=code))
    with pytest.raises(NodeFailed, match=message) as caught:
        run.node(SOURCE, {})
    assert caught.value.kind == exit_class


def test_a_stage_that_says_done_but_published_nothing_is_a_bug(bench: Bench) -> None:
    run = bench.begin(launcher=ScriptedLauncher({"event": "done", "exit": "ok", "message": ""}))
    with pytest.raises(NodeFailed, match="published nothing") as caught:
        run.node(SOURCE, {})
    assert caught.value.kind is ExitClass.BUG


def test_a_status_of_failure_outweighs_a_word_of_success(bench: Bench) -> None:
    run = bench.begin(launcher=ScriptedLauncher({"event": "done", "exit": "ok", "message": ""}, code=65))
    with pytest.raises(NodeFailed) as caught:
        run.node(SOURCE, {})
    assert caught.value.kind is ExitClass.INPUT


def test_a_launcher_that_cannot_start_is_an_infrastructure_failure(bench: Bench) -> None:
    run = bench.begin(launcher=ScriptedLauncher(error=InfraError("no engine")))
    with pytest.raises(NodeFailed, match=r"source_a failed \(infra\): no engine"):
        run.node(SOURCE, {})
    assert [(a.exit_class, a.message) for a in bench.ledger.attempts(bench.source_key())] == [("infra", "no engine")]


def test_events_reach_the_observers_and_are_kept(bench: Bench) -> None:
    run = bench.begin()
    key = run.node(SOURCE, {}).result.key
    seen = [event for node, event in recorder(run).events if node == "source_a" and event["event"] != "state"]
    assert [event["event"] for event in seen] == ["metric", "metric", "done"]
    kept = bench.ledger.store.get(bench.ledger.log_key(key, 1))
    assert kept is not None
    rows = [json.loads(line) for line in kept[0].splitlines()]
    assert all(row.pop("time").startswith("20") for row in rows)
    assert rows == seen
    assert (bench.folder / "logs/stages" / key / "000001.jsonl").read_bytes() == kept[0]


# --- publishing -------------------------------------------------------------------------------------------------------


def test_a_torn_publish_is_invisible_and_the_next_attempt_publishes_under_its_own_epoch(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first attempt dies between its last object and the manifest."""
    publish, seen = Ledger.publish, []

    def dies_once(self: Ledger, result: StageResult, *arguments: Any) -> None:
        objects = [row.key for row in self.store.list(f"objects/probe_source/{result.key}/")]
        seen.append((self.manifest(result.key), objects))
        if len(seen) == 1:
            raise Preempted("power cut")
        publish(self, result, *arguments)

    monkeypatch.setattr(Ledger, "publish", dies_once)
    run = bench.begin()
    result = run.node(SOURCE, {}).result
    (first, torn), (second, _) = seen
    assert torn, "the first attempt's objects were there"
    assert all("/000001/" in key for key in torn)
    assert first is second is None, "and yet the key had no result"
    assert result.attempt.epoch == 2
    assert all("/000002/" in f.object for f in result.outputs["documents"].files)
    assert bench.begin().node(SOURCE, {}).cached


def test_an_attempt_that_published_and_then_died_is_not_repeated(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    publish = Ledger.publish

    def dies_after(self: Ledger, *arguments: Any) -> None:
        publish(self, *arguments)
        raise Preempted("power cut")

    monkeypatch.setattr(Ledger, "publish", dies_after)
    run = bench.begin()
    outcome = run.node(SOURCE, {})
    assert started(run) == ["source_a"]
    assert outcome.cached
    assert outcome.result.attempt.epoch == 1


# --- stopping ---------------------------------------------------------------------------------------------------------


def begin_training(
    bench: Bench, threads: ThreadPoolExecutor, **options: Any
) -> tuple[Execution, Future[dict[str, StageResult]]]:
    """A run whose last node trains for minutes, once it has begun."""
    slow = ("train_2.steps=10000", "train_2.step_seconds=0.02", "train_2.save_every=10000")
    run = bench.begin(*slow, "resources.train_2.grace_seconds=77", **options)
    future = threads.submit(run_nodes, run, PIPE)
    wait_for(lambda: any(e["event"] == "metric" for n, e in recorder(run).events if n == "train_2"), "the first step")
    return run, future


def test_stop_stops_what_runs_and_lets_nothing_new_start(finished: Bench, threads: ThreadPoolExecutor) -> None:
    run, future = begin_training(finished, threads)
    assert not run.wait_stopped(0.1)
    run.stop()
    with pytest.raises(NodeFailed, match=r"train_2 failed \(preempted\): stopped at step \d+"):
        future.result(HANG)
    assert run.wait_stopped(1)
    assert recorder(run).states("train_2") == ["running", "stopped"]
    assert started(run) == ["train_2"], "no second attempt: it was asked to stop"
    assert run.launcher.handles[0].stops == [77], "with the time that its node has"  # type: ignore[attr-defined]
    new = run.profile.configs["source_a"].model_copy(update={"text": "never made before"})
    later = Execution(
        "run-1", replace(run.profile, configs={"source_a": new}), run.ledger, run.launcher, run.home, run.selected
    )
    later.stop()
    with pytest.raises(Preempted, match="source_a: the run is stopping"):
        later.node(SOURCE, {})
    assert started(later) == ["train_2"]


def test_what_was_stopped_goes_on_from_its_last_checkpoint(finished: Bench, threads: ThreadPoolExecutor) -> None:
    run, future = begin_training(finished, threads)
    run.stop()
    with pytest.raises(NodeFailed):
        future.result(HANG)
    job = run.launcher.jobs[0]  # type: ignore[attr-defined]
    steps = finished.ledger.checkpoint_steps(job.request.key)
    lease = finished.ledger.lease(job.request.key)
    assert len(steps) == 1
    assert lease is not None
    assert not lease[0].live
    again = finished.begin("train_2.steps=10000", run_id="run-2", before=failing(ConfigError("enough")))
    with pytest.raises(NodeFailed, match="enough"):
        run_nodes(again, PIPE)
    found = {p.node.name: p for p in plans.make_plan(PIPE, again.profile, finished.ledger)}["train_2"]
    assert (found.state, found.step) == (plans.State.RESUME, steps[0])


# --- leases -----------------------------------------------------------------------------------------------------------


def take_over(ledger: Ledger, key: str) -> None:
    """Another run takes the lease, as if this one's had expired."""
    found = ledger.lease(key)
    assert found is not None
    record = LeaseRecord(key=key, epoch=found[0].epoch + 1, holder="rival", expires_at=2e9, host="elsewhere")
    ledger.store.put(f"leases/{key}.json", record.model_dump_json().encode())


def test_a_stage_whose_lease_is_lost_is_stopped(
    bench: Bench, threads: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running_stages, "LEASE_SECONDS", 0.3)
    launcher = ScriptedLauncher({"event": "log", "level": "info", "message": "busy"}, until_stopped=True, code=75)
    run = bench.begin(launcher=launcher)
    future = threads.submit(run.node, SOURCE, {})
    wait_for(lambda: recorder(run).messages(), "the start")
    assert not launcher.handles[0].stopped.wait(0.3), "heartbeats keep the lease"
    take_over(bench.ledger, bench.source_key())
    with pytest.raises(
        NodeFailed,
        match=r"source_a failed \(infra\): the lease on key .* (is lost: it is now epoch 2 of 'rival'|was taken over)",
    ):
        future.result(HANG)
    assert launcher.handles[0].stopped.is_set()
    assert len(launcher.jobs) == 1
    lease = bench.ledger.lease(bench.source_key())
    assert lease is not None
    assert lease[0].holder == "rival", "and the rival's lease is left alone"


class TalkingHandle(ScriptedHandle):
    """A job that goes on until it is stopped, and says so again and again."""

    def events(self) -> Iterator[dict[str, Any]]:
        deadline = time.monotonic() + HANG
        while not self.stopped.wait(0.02):
            assert time.monotonic() < deadline, "nobody let go of the stage"
            yield {"event": "log", "level": "info", "message": "busy"}


class SavingHandle(ScriptedHandle):
    """A job whose launcher cannot say how it is, and that saves a checkpoint when it is asked to stop."""

    def __init__(self, ledger: Ledger, lease: Lease) -> None:
        super().__init__([], 0, until_stopped=True)
        self._ledger, self._lease = ledger, lease
        self.refused: list[Exception] = []

    def events(self) -> Iterator[dict[str, Any]]:
        yield {"event": "log", "level": "info", "message": "busy"}
        raise ValueError("the launcher has a fault")

    def wait(self) -> int:
        assert self.stopped.wait(HANG), "nobody stopped the stage"
        try:
            self._ledger.renew(self._lease)
        except Exception as error:
            self.refused.append(error)
        return 0


def test_a_stage_that_cannot_be_followed_keeps_its_lease_until_it_has_ended(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was asked to stop, and its lease given back at once: its last checkpoint was refused."""
    handles = list[SavingHandle]()

    def start(job: Job) -> SavingHandle:
        handles.append(SavingHandle(bench.ledger, job.request.lease))
        return handles[-1]

    launcher = ScriptedLauncher()
    monkeypatch.setattr(launcher, "start", start)
    with pytest.raises(ValueError, match="the launcher has a fault"):
        bench.begin(launcher=launcher).node(SOURCE, {})
    (handle,) = handles
    assert handle.stopped.is_set()
    assert handle.refused == []


def test_a_stage_that_another_process_follows_now_is_let_go_and_goes_on(
    bench: Bench, threads: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The successor has the same epoch and holder: to stop the job, or to write down its end, would be to end its."""
    monkeypatch.setattr(running_stages, "LEASE_SECONDS", 0.3)
    launcher, handle = ScriptedLauncher(), TalkingHandle([], 75, True)
    monkeypatch.setattr(launcher, "start", lambda job: handle)
    run = bench.begin("patience=0", launcher=launcher)
    future = threads.submit(run.node, SOURCE, {})
    wait_for(lambda: recorder(run).messages(), "the start")
    found = bench.ledger.lease(bench.source_key())
    assert found is not None
    successor = found[0].model_copy(update={"process": "4711:1"})
    bench.ledger.store.put(f"leases/{successor.key}.json", successor.model_dump_json().encode())
    with pytest.raises(NodeFailed, match="taken over by another process, which follows the job now"):
        future.result(HANG)
    run.stop()
    assert not handle.stopped.is_set()
    attempt = bench.ledger.attempt(successor.key, successor.epoch)
    assert attempt is not None
    assert not attempt.ended_at
    held = bench.ledger.lease(successor.key)
    assert held is not None
    assert (held[0].holder, held[0].process) == (successor.holder, "4711:1")


def test_heartbeats_push_the_expiry_out(
    bench: Bench, threads: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running_stages, "LEASE_SECONDS", 0.1)
    launcher = ScriptedLauncher({"event": "log", "level": "info", "message": "busy"}, until_stopped=True, code=64)
    run = bench.begin(launcher=launcher)
    future = threads.submit(run.node, SOURCE, {})
    wait_for(lambda: recorder(run).messages(), "the start")

    def expiry() -> float:
        found = bench.ledger.lease(bench.source_key())
        assert found is not None
        return found[0].expires_at

    first = expiry()
    wait_for(lambda: expiry() > first, "a renewal")
    launcher.handles[0].stop(0)
    with pytest.raises(NodeFailed):
        future.result(HANG)


@pytest.mark.parametrize("error", [InfraError, RuntimeError])
def test_a_stage_is_stopped_when_the_store_is_away_for_too_long(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    """Whatever a renewal raises: a heart that stops without a word would give the lease away."""

    def away(*_: Any) -> None:
        raise error("the object store cannot be reached")

    monkeypatch.setattr(running_stages, "LEASE_SECONDS", 0.15)
    monkeypatch.setattr(running_stages, "LEASE_ENDURANCE", 0.3)
    monkeypatch.setattr(bench.ledger, "renew", away)
    launcher = ScriptedLauncher(until_stopped=True, code=75)
    with pytest.raises(NodeFailed, match=r"could not be renewed for .* s: the object store cannot be reached"):
        bench.begin(launcher=launcher).node(SOURCE, {})


def test_a_store_that_is_away_for_a_while_stops_nothing(
    bench: Bench, threads: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody can have taken the lease meanwhile; when the store is back, it is renewed."""
    renew, gone = bench.ledger.renew, threading.Event()
    renewed: list[float] = []

    def away(lease: Any) -> None:
        if gone.is_set():
            raise InfraError("the object store cannot be reached")
        renew(lease)
        renewed.append(1)

    monkeypatch.setattr(running_stages, "LEASE_SECONDS", 0.1)
    monkeypatch.setattr(bench.ledger, "renew", away)
    gone.set()
    launcher = ScriptedLauncher({"event": "log", "level": "info", "message": "busy"}, until_stopped=True, code=64)
    run = bench.begin(launcher=launcher)
    future = threads.submit(run.node, SOURCE, {})
    wait_for(lambda: recorder(run).messages("warning"), "the warning")
    assert "could not be renewed for" in recorder(run).messages("warning")[0]
    assert not launcher.handles[0].stopped.is_set()
    gone.clear()
    wait_for(lambda: renewed, "a renewal")
    assert not launcher.handles[0].stopped.is_set()
    launcher.handles[0].stop(0)
    with pytest.raises(NodeFailed):
        future.result(HANG)
    assert len(recorder(run).messages("warning")) == 1, "said once"


def test_a_lease_that_another_took_while_the_store_was_away_stops_the_stage(
    bench: Bench, threads: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Away for this holder alone: the other goes on, this one stops when it learns of it, and can publish nothing."""
    renew, gone = bench.ledger.renew, threading.Event()

    def away(lease: Any) -> None:
        if gone.is_set():
            raise InfraError("the object store cannot be reached")
        renew(lease)

    monkeypatch.setattr(running_stages, "LEASE_SECONDS", 0.1)
    monkeypatch.setattr(bench.ledger, "renew", away)
    gone.set()
    launcher = ScriptedLauncher({"event": "log", "level": "info", "message": "busy"}, until_stopped=True, code=75)
    run = bench.begin(launcher=launcher)
    future = threads.submit(run.node, SOURCE, {})
    wait_for(lambda: recorder(run).messages("warning"), "the warning")
    take_over(bench.ledger, bench.source_key())
    gone.clear()
    with pytest.raises(NodeFailed, match="now epoch 2 of 'rival'"):
        future.result(HANG)


def test_a_log_that_cannot_be_stored_fails_nothing(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """The result is published: what it is does not depend on its log."""

    def away(*_: Any) -> None:
        raise InfraError("the object store cannot be reached")

    monkeypatch.setattr(bench.ledger.store, "upload", away)
    run = bench.begin()
    assert run.node(SOURCE, {}).result.outputs
    (line,) = recorder(run).messages("warning")
    assert "which stays on this machine alone" in line


def test_of_two_runs_one_works_and_the_other_waits_for_its_result(bench: Bench, threads: ThreadPoolExecutor) -> None:
    waiting = threading.Event()
    first = bench.begin(before=lambda _: waiting.wait(HANG) and None)
    second = bench.begin(run_id="run-2")
    future_1 = threads.submit(first.node, SOURCE, {})
    wait_for(lambda: started(first), "the first run's start")
    future_2 = threads.submit(second.node, SOURCE, {})
    wait_for(lambda: recorder(second).states("source_a"), "the second run's waiting")
    assert recorder(second).states("source_a") == ["waiting"]
    assert "run-1 on" in recorder(second).events[0][1]["message"]
    waiting.set()
    assert not future_1.result(HANG).cached
    outcome = future_2.result(HANG)
    assert (outcome.cached, outcome.reason) == (True, "made by another run meanwhile")
    assert outcome.result == future_1.result().result
    assert started(second) == []


def test_a_run_that_waits_for_another_can_be_stopped(bench: Bench) -> None:
    bench.ledger.acquire(bench.source_key(), "somebody")
    run = bench.begin()
    threading.Timer(0.3, run.stop).start()
    with pytest.raises(Preempted, match="source_a: the run is stopping"):
        run.node(SOURCE, {})


def test_no_more_nodes_run_at_once_than_the_profile_allows(bench: Bench, threads: ThreadPoolExecutor) -> None:
    go = threading.Event()
    run = bench.begin("parallel=1", before=lambda _: go.wait(HANG) and None)
    futures = [threads.submit(run.node, PIPE[name], {}) for name in ("source_a", "source_b")]
    wait_for(lambda: started(run), "the first start")
    assert not futures[0].done()
    assert not futures[1].done()
    threading.Event().wait(0.2)
    (running,) = started(run)
    waits = {"source_a": "source_b", "source_b": "source_a"}[running]
    profile = profile_of(PIPE, bench.folder)
    assert bench.ledger.lease(plans.resolve(PIPE[waits], profile, bench.ledger, {}).key) is None, (
        "a lease would run out in the queue"
    )
    go.set()
    assert {future.result(HANG).result.node for future in futures} == {"source_a", "source_b"}
    assert sorted(started(run)) == ["source_a", "source_b"]
