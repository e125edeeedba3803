"""Executing nodes without Prefect: what the ledger answers, what is asked of a stage, retries. Stages run inline."""

from __future__ import annotations

import errno
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from stages.probe_tokenizer.spec import Vocabulary
from stages.probe_train.spec import Train

from flows import execute, retry, stage_job
from flows import plan as plans
from flows.execute import Execution, NodeFailed, Outcome
from flows.launch.base import Job
from stages.core.errors import ConfigError, ExitClass, InfraError, InputError, Preempted
from stages.core.keys import source_digest
from stages.core.ledger import Ledger
from stages.core.messages import Lease
from stages.core.store import Store
from tests.support.bench import PIPE, SOURCE, Bench, failing, recorder, started
from tests.support.checkpoints import save_checkpoint
from tests.support.limits import HANG
from tests.support.probe_pipeline import InlineLauncher, folder_with, run_nodes, wait_for

# --- the ledger's answers ---------------------------------------------------------------------------------------------


def test_a_finished_pipeline_is_answered_without_starting_anything(finished: Bench) -> None:
    before = {row.key: row.etag for row in finished.ledger.store.list("") if not row.key.startswith("nodes/")}
    run = finished.begin(run_id="run-2")
    results = run_nodes(run, PIPE)
    assert started(run) == []
    assert {name: recorder(run).states(name) for name in results} == {name: ["cached"] for name in PIPE.nodes}
    assert {row.key: row.etag for row in finished.ledger.store.list("") if not row.key.startswith("nodes/")} == before
    assert {record.run_id for record in finished.ledger.nodes("test").values()} == {"run-2"}


def test_what_the_plan_found_is_not_looked_up_again(finished: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    run = finished.begin("train_1.learning_rate=0.2", run_id="run-2")
    made = plans.make_plan(PIPE, run.profile, finished.ledger)
    run.answered = {p.node.name: p.resolved for p in made if p.resolved and p.resolved.result and not p.will_run}
    asked: list[str] = []
    monkeypatch.setattr(
        execute, "resolve", lambda node, *rest: (asked.append(node.name), plans.resolve(node, *rest))[1]
    )
    results = run_nodes(run, PIPE)
    assert asked == started(run) == ["train_1", "train_2"]
    assert results["shards"] == finished.results()["shards"]
    assert {record.run_id for record in finished.ledger.nodes("test").values()} == {"run-2"}


def test_only_what_follows_from_a_change_runs(finished: Bench) -> None:
    run = finished.begin("train_1.learning_rate=0.2")
    run_nodes(run, PIPE)
    assert started(run) == ["train_1", "train_2"]


def test_a_rerun_that_gives_the_same_leaves_what_follows_alone(
    finished: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Keys hold digests of contents: when a new revision makes the same vocabulary, nothing after it runs."""
    monkeypatch.setattr(Vocabulary, "revision", 2)
    run = finished.begin()
    run_nodes(run, PIPE)
    assert started(run) == ["vocabulary"]
    assert recorder(run).states("shards") == ["cached"]


def test_a_node_that_ran_says_so(bench: Bench) -> None:
    run = bench.begin()
    outcome = run.node(SOURCE, {})
    assert (outcome.cached, outcome.reason) == (False, "no result for this key")
    assert recorder(run).states("source_a") == ["running", "done"]
    again = bench.begin().node(SOURCE, {})
    assert again == Outcome(outcome.result, True, "cached", again.seconds)


def test_a_node_that_is_not_selected_is_never_started(bench: Bench) -> None:
    run = bench.begin(select="train_1")
    with pytest.raises(NodeFailed, match=r"source_a failed \(input\): no result for this key, and it is not selected"):
        run.node(SOURCE, {})
    assert started(run) == []


def test_force_runs_the_selected_nodes_and_replaces_their_results(finished: Bench) -> None:
    old = finished.results()["train_2"]
    run = finished.begin(select="train_2", force=True)
    new = run_nodes(run, PIPE)["train_2"]
    assert started(run) == ["train_2"]
    assert new.key == old.key
    assert (old.attempt.epoch, new.attempt.epoch) == (1, 2)
    assert finished.results()["train_2"] == new
    assert new.outputs["model"].digest == old.outputs["model"].digest
    assert all("/000002/" in f.object for f in new.outputs["model"].files)


def test_lost_objects_are_made_again(finished: Bench) -> None:
    old = finished.results()["vocabulary"]
    finished.ledger.store.delete([old.outputs["tokenizer"].files[0].object])
    run = finished.begin()
    results = run_nodes(run, PIPE)
    assert started(run) == ["vocabulary"], "the same contents again: nothing after it has to run"
    running = next(e for n, e in recorder(run).events if n == "vocabulary" and e.get("state") == "running")
    assert running["message"].startswith("its result has 1 lost or damaged objects")
    assert finished.ledger.missing_objects(results["vocabulary"]) == []


@pytest.mark.parametrize(("on_drift", "runs"), [("warn", []), ("rerun", ["vocabulary"])])
def test_drift(finished: Bench, monkeypatch: pytest.MonkeyPatch, on_drift: str, runs: list[str]) -> None:
    for module in (plans, stage_job):
        monkeypatch.setattr(
            module, "source_digest", lambda stage: "new" if stage == "probe_tokenizer" else source_digest(stage)
        )
    run = finished.begin(f"on_drift={on_drift}")
    results = run_nodes(run, PIPE)
    assert started(run) == runs
    assert (results["vocabulary"].code.source_digest == "new") == bool(runs)


def test_drift_that_the_plan_could_not_see_stops_a_profile_that_forbids_it(
    finished: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plans, "source_digest", lambda stage: "new")
    with pytest.raises(NodeFailed, match="made by other code") as caught:
        finished.begin("on_drift=fail").node(SOURCE, {})
    assert caught.value.kind is ExitClass.CONFIG


# --- requests ---------------------------------------------------------------------------------------------------------


def test_the_request_carries_what_the_plan_knows(finished: Bench) -> None:
    run = finished.begin("train_1.learning_rate=0.2", "train_1.workers=3", "resources.train_1.memory_gib=9")
    results = run_nodes(run, PIPE, until="train_1")
    assert isinstance(run.launcher, InlineLauncher)
    job = run.launcher.jobs[0]
    request = job.request
    assert (request.node, request.stage, request.revision, request.run_id) == ("train_1", "probe_train", 1, "run-1")
    assert request.key == results["train_1"].key
    assert request.config["learning_rate"] == 0.2
    assert request.config["workers"] == 3
    assert request.outputs == {"model": "Model"}
    digest = results["vocabulary"].outputs["tokenizer"].facets["tokenizer_digest"]
    assert request.expected_facets == {"model": {"tokenizer_digest": digest, "vocab_size": 100}}
    assert [ref.node for ref in request.inputs["shards"]] == ["shards"]
    assert request.inputs["parent"] == ()
    assert (request.lease.key, request.lease.epoch) == (request.key, 1)
    assert request.code.source_digest == source_digest("probe_train")
    assert (job.resources.cpus, job.resources.memory_gib, job.env) == (3, 9, "train")
    assert job.labels == {"moxin.run": "run-1", "moxin.node": "train_1", "moxin.key": request.key, "moxin.epoch": "1"}


# --- retries ----------------------------------------------------------------------------------------------------------


def test_what_may_go_better_is_tried_again(bench: Bench) -> None:
    run = bench.begin(before=failing(Preempted("the machine goes away")))
    outcome = run.node(SOURCE, {})
    assert started(run) == ["source_a", "source_a"]
    assert outcome.result.attempt.epoch == 2
    attempts = bench.ledger.attempts(outcome.result.key)
    assert [a.exit_class for a in attempts] == ["preempted", "ok"]
    assert all(a.ended_at for a in attempts)
    line = "attempt 1 ended (preempted: the machine goes away); trying again as it was: retry 1 of 2"
    assert recorder(run).messages("warning") == [line]


def test_what_ran_out_of_memory_is_tried_again_with_less_and_makes_the_same(
    finished: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        Train,
        "smaller",
        lambda self, config: config.model_copy(update={"workers": config.workers // 2}) if config.workers > 1 else None,
        raising=False,
    )
    run = finished.begin("train_2.steps=9", "train_2.workers=4", before=failing(MemoryError(), MemoryError()))
    result = run_nodes(run, PIPE)["train_2"]
    assert isinstance(run.launcher, InlineLauncher)
    assert [job.request.config["workers"] for job in run.launcher.jobs] == [4, 2, 1]
    assert {job.request.key for job in run.launcher.jobs} == {result.key}
    assert (
        "trying again with a smaller configuration: retry 1 of 2 (workers 4 -> 2)"
        in recorder(run).messages("warning")[0]
    )
    last = finished.begin("train_2.steps=8", "train_2.workers=1", before=failing(MemoryError()))
    with pytest.raises(NodeFailed, match=r"train_2 failed \(oom\): out of memory"):
        run_nodes(last, PIPE)
    assert started(last) == ["train_2"], "there is nothing to make smaller"


def test_a_smaller_configuration_that_would_make_something_else_is_a_bug(
    finished: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Train, "smaller", lambda self, config: config.model_copy(update={"steps": 1}), raising=False)
    with pytest.raises(NodeFailed, match="`smaller` changes the key") as caught:
        run_nodes(finished.begin("train_2.steps=9", before=failing(MemoryError())), PIPE)
    assert caught.value.kind is ExitClass.BUG


def test_an_attempt_that_saved_a_checkpoint_uses_up_no_retry(finished: Bench) -> None:
    """As a training of weeks on a machine with a time limit of a day."""
    run = finished.begin("train_2.steps=12", "train_2.save_every=2", "retries=1")
    steps = iter((2, 4, 6, 8))

    def dies(job: Job) -> None:
        step = next(steps, None)
        if step is not None:
            folder = folder_with(finished.folder / f"step-{step}", **{"state__value.txt": "1.0", ".metrics.jsonl": ""})
            save_checkpoint(finished.ledger, job.request.lease, step, folder)
            raise Preempted("the time limit")

    run.launcher._before = dies  # type: ignore[attr-defined]
    result = run_nodes(run, PIPE)["train_2"]
    assert started(run) == ["train_2"] * 5
    assert result.attempt.resumed_from == 8
    assert all("this uses up no retry" in line for line in recorder(run).messages("warning"))
    assert len(recorder(run).messages("warning")) == 4


def test_trouble_with_the_infrastructure_is_waited_out(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "FIRST_PAUSE", 0.01)
    run = bench.begin("patience=60", "retries=0", before=failing(*[InfraError("the store is away")] * 4))
    run.node(SOURCE, {})
    assert started(run) == ["source_a"] * 5
    assert "attempt 1 ended (infra: the store is away); trying again in 0 s" in recorder(run).messages("warning")


def test_a_pause_ends_when_the_run_is_stopped(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, threads: ThreadPoolExecutor
) -> None:
    monkeypatch.setattr(retry, "FIRST_PAUSE", 10 * HANG)
    run = bench.begin("patience=1e6", before=failing(InfraError("the store is away")))
    future = threads.submit(run.node, SOURCE, {})
    wait_for(lambda: recorder(run).messages("warning"), "the pause")
    run.stop()
    with pytest.raises(NodeFailed, match="the store is away"):
        future.result(HANG)
    assert recorder(run).states("source_a") == ["running", "stopped"]


@pytest.mark.parametrize("away", ["get", "put", "list", "upload"])
def test_a_store_that_is_away_for_a_moment_fails_nothing(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, away: str
) -> None:
    """Each call of the control plane to the store fails once, wherever in a node's life it comes."""
    monkeypatch.setattr(retry, "FIRST_PAUSE", 0.001)
    whole = bench.begin("source_a.text='whole'")
    calls = counting(monkeypatch, whole, away)
    whole.node(SOURCE, {})
    assert calls[0] > 0 or away == "list"
    for broken in range(1, calls[0] + 1):
        run = bench.begin(
            f"source_a.text='call {broken} of {away}'", "patience=60", "retries=0", run_id=f"run {broken}"
        )
        counting(monkeypatch, run, away, broken)
        outcome = run.node(SOURCE, {})
        found = bench.ledger.manifest(outcome.result.key)
        assert found is not None
        assert found[0] == outcome.result
        lease = bench.ledger.lease(outcome.result.key)
        assert lease is not None


def counting(monkeypatch: pytest.MonkeyPatch, run: Execution, method: str, broken: int = 0) -> list[int]:
    """Count the calls of one method of the control plane's store, and let one of them fail. The stage has a store of
    its own.
    """
    calls = [0]
    store = Store(run.ledger.store.address, run.ledger.store._client)
    whole = getattr(store, method)

    def once(*arguments: Any, **more: Any) -> Any:
        calls[0] += 1
        if calls[0] == broken:
            raise InfraError("503")
        return whole(*arguments, **more)

    monkeypatch.setattr(store, method, once)
    run.ledger = Ledger(store)
    run._leases._ledger = run.ledger
    return calls


def test_the_first_error_is_not_replaced_by_one_of_its_records(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """The stage fails, and the store goes away before that can be written down."""
    run = bench.begin(before=failing(KeyError("the stage's own")))
    start = run.launcher.start

    def starts(job: Job) -> Any:
        def away(*_: Any) -> None:
            raise InfraError("503")

        monkeypatch.setattr(run.ledger, "record_attempt", away)
        monkeypatch.setattr(run.ledger, "release", away)
        return start(job)

    monkeypatch.setattr(run.launcher, "start", starts)
    with pytest.raises(NodeFailed, match=r"source_a failed \(bug\): .*the stage's own"):
        run.node(SOURCE, {})
    told = recorder(run).messages("warning")
    assert [line.partition(" failed")[0] for line in told] == [
        "writing down how the attempt ended",
        "giving the lease back",
    ]


@pytest.mark.parametrize(
    ("error", "exit_class"),
    [
        (ConfigError("wrong value"), "config"),
        (InputError("wrong row"), "input"),
        (InfraError("no store"), "infra"),
        (KeyError("x"), "bug"),
    ],
)
def test_what_will_fail_again_is_not_tried_again(bench: Bench, error: Exception, exit_class: str) -> None:
    run = bench.begin(before=failing(error))
    with pytest.raises(NodeFailed) as caught:
        run.node(SOURCE, {})
    assert caught.value.kind == exit_class
    assert str(caught.value).startswith(f"source_a failed ({exit_class}): ")
    assert started(run) == ["source_a"]
    assert recorder(run).states("source_a") == ["running", "failed"]
    lease = bench.ledger.lease(bench.source_key())
    assert lease is not None
    assert not lease[0].live, "a failed node leaves its key free"


@pytest.mark.parametrize("retries", [0, 1])
def test_retries_come_to_an_end(bench: Bench, retries: int) -> None:
    run = bench.begin(f"retries={retries}", before=failing(*[Preempted("the machine")] * 5))
    with pytest.raises(NodeFailed, match=r"source_a failed \(preempted\): the machine"):
        run.node(SOURCE, {})
    assert len(started(run)) == retries + 1


def test_a_retry_resumes_from_the_checkpoint_and_drops_it_in_the_end(finished: Bench) -> None:
    run = finished.begin("train_2.steps=9", "train_2.die_after=5")
    result = run_nodes(run, PIPE)["train_2"]
    assert started(run) == ["train_2", "train_2"]
    assert result.attempt.resumed_from == 4
    assert finished.ledger.checkpoint_steps(result.key) == []


def test_what_a_later_attempt_saves_is_not_removed_with_this_ones_checkpoints(
    finished: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody forces the key again as soon as its lease is given back, before its checkpoints are removed."""
    run = finished.begin("train_2.steps=9", "train_2.die_after=5")
    release, other = run.ledger.release, Ledger(finished.ledger.store)
    ended: list[int] = []

    def and_another(lease: Lease) -> None:
        release(lease)
        if other.published(lease.key) and not ended:
            ended.append(lease.epoch)
            save_checkpoint(other, other.acquire(lease.key, "another"), 30, folder_with(finished.folder, weights="1"))

    monkeypatch.setattr(run.ledger, "release", and_another)
    result = run_nodes(run, PIPE)["train_2"]
    assert ended == [result.attempt.epoch]
    assert other.checkpoint_steps(result.key) == [30]


def test_a_forced_run_starts_clean_but_its_retries_resume(finished: Bench) -> None:
    key = finished.results()["train_2"].key
    stale = finished.folder / "stale"
    stale.mkdir()
    save_checkpoint(finished.ledger, finished.ledger.acquire(key, "x", seconds=-1), 3, stale)
    run = finished.begin("train_2.die_after=2", select="train_2", force=True)
    result = run_nodes(run, PIPE)["train_2"]
    assert started(run) == ["train_2", "train_2"]
    assert result.attempt.resumed_from == 2
    assert recorder(run).messages().count("begins at step 0") == 1


def test_a_forced_run_that_slept_takes_nothing_of_the_attempt_after_it(
    finished: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It lost its lease while it slept before it cleared the old checkpoints away."""
    key = finished.results()["train_2"].key
    run, other = finished.begin(select="train_2", force=True), Ledger(finished.ledger.store)
    drop = run.ledger.drop_checkpoints

    def slept(key: str, step: int | None = None, before: int | None = None) -> None:
        if not other.checkpoint_steps(key):
            held = other.lease(key)
            assert held is not None
            other._put_lease(held[0].model_copy(update={"holder": "", "expires_at": 0.0}), held[1])
            save_checkpoint(other, other.acquire(key, "another"), 3, folder_with(finished.folder, weights="1"))
        drop(key, step, before)

    monkeypatch.setattr(run.ledger, "drop_checkpoints", slept)
    with pytest.raises(NodeFailed):
        run_nodes(run, PIPE)
    assert other.checkpoint_steps(key) == [3]


def test_a_lost_result_is_made_again_from_where_an_interrupted_attempt_was(finished: Bench) -> None:
    """Nobody forced it: days of training are not thrown away because the result before has lost an object."""
    old = finished.results()["train_2"]
    finished.ledger.store.delete([old.outputs["model"].files[0].object])
    with pytest.raises(NodeFailed):
        run_nodes(finished.begin("retries=0", "train_2.die_after=2", select="train_2"), PIPE)
    assert finished.ledger.checkpoint_steps(old.key) == [2]
    result = run_nodes(finished.begin(select="train_2"), PIPE)["train_2"]
    assert (result.key, result.attempt.resumed_from) == (old.key, 2)
    assert finished.ledger.checkpoint_steps(old.key) == []


def test_a_node_with_a_launcher_of_its_own_is_started_by_it(bench: Bench) -> None:
    run = bench.begin()
    other = InlineLauncher(run.home)
    run.launchers = {"source_a": other}
    run.node(SOURCE, {})
    assert (other.started, started(run)) == (["source_a"], [])


# --- what is told of an end -------------------------------------------------------------------------------------------


def test_a_folder_for_the_log_that_cannot_be_made_leaves_no_stage_behind(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = bench.begin("patience=0")

    def full(path: Path, *_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(execute.Path, "mkdir", full)
    with pytest.raises(NodeFailed, match="no space left on the disk"):
        run.node(SOURCE, {})
    assert run.wait_stopped(0.1), "it still counts as running"


def test_a_bug_is_told_though_the_store_is_away_when_its_checkpoints_are_asked_for(
    finished: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    train, asked = PIPE["train_1"], []

    def away(key: str) -> list[int]:
        asked.append(key)
        if len(asked) > 1:
            raise InfraError("the store is away")
        return []

    run = finished.begin("train_1.learning_rate=0.3", "patience=0", before=failing(KeyError("the stage's own")))
    monkeypatch.setattr(run.ledger, "checkpoint_steps", away)
    with pytest.raises(NodeFailed, match=r"train_1 failed \(bug\): .*the stage's own"):
        run.node(train, finished.results())


def test_a_node_that_the_store_let_down_is_told_as_failed(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(*_: Any) -> None:
        raise InfraError("the store is away")

    run = bench.begin("patience=0")
    monkeypatch.setattr(run.ledger, "manifest", away)
    with pytest.raises(InfraError, match="the store is away"):
        run.node(SOURCE, {})
    assert [e["state"] for _, e in recorder(run).events if e["event"] == "state"] == ["failed"]
