"""Executing nodes without Prefect: what the ledger answers, what is asked of a stage, retries. Stages run inline."""

from __future__ import annotations

import pytest
from stages.probe_tokenizer.spec import Vocabulary

from flows import execute
from flows import plan as plans
from flows.execute import NodeFailed, Outcome
from stages.core.contracts import ConfigError, ExitClass, InfraError, InputError, Preempted
from stages.core.keys import source_digest
from tests.flow.bench import PIPE, SOURCE, Bench, failing, recorder, started
from tests.support import InlineLauncher, run_nodes

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
    monkeypatch.setattr(execute, "resolve", lambda node, *rest: (asked.append(node.name), plans.resolve(node, *rest))[1])
    results = run_nodes(run, PIPE)
    assert asked == started(run) == ["train_1", "train_2"]
    assert results["shards"] == finished.results()["shards"]
    assert {record.run_id for record in finished.ledger.nodes("test").values()} == {"run-2"}


def test_only_what_follows_from_a_change_runs(finished: Bench) -> None:
    run = finished.begin("train_1.learning_rate=0.2")
    run_nodes(run, PIPE)
    assert started(run) == ["train_1", "train_2"]


def test_a_rerun_that_gives_the_same_leaves_what_follows_alone(finished: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
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
    assert running["message"].startswith("its result has lost 1 objects")
    assert finished.ledger.missing_objects(results["vocabulary"]) == []


@pytest.mark.parametrize(("on_drift", "runs"), [("warn", []), ("rerun", ["vocabulary"])])
def test_drift(finished: Bench, monkeypatch: pytest.MonkeyPatch, on_drift: str, runs: list[str]) -> None:
    for module in (plans, execute):
        monkeypatch.setattr(module, "source_digest", lambda stage: "new" if stage == "probe_tokenizer" else source_digest(stage))
    run = finished.begin(f"on_drift={on_drift}")
    results = run_nodes(run, PIPE)
    assert started(run) == runs
    assert (results["vocabulary"].code.source_digest == "new") == bool(runs)


def test_drift_that_the_plan_could_not_see_stops_a_profile_that_forbids_it(finished: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
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


@pytest.mark.parametrize("error", [MemoryError(), Preempted("the machine goes away")])
def test_what_may_go_better_is_tried_again(bench: Bench, error: BaseException) -> None:
    run = bench.begin(before=failing(error))
    outcome = run.node(SOURCE, {})
    assert started(run) == ["source_a", "source_a"]
    assert outcome.result.attempt.epoch == 2
    attempts = bench.ledger.attempts(outcome.result.key)
    assert [a.exit_class for a in attempts] == ["oom" if isinstance(error, MemoryError) else "preempted", "ok"]
    assert all(a.ended_at for a in attempts)
    assert len(recorder(run).messages("warning")) == 1
    assert "trying again" in recorder(run).messages("warning")[0]


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
    run = bench.begin(f"retries={retries}", before=failing(*[MemoryError()] * 5))
    with pytest.raises(NodeFailed, match=r"source_a failed \(oom\): out of memory"):
        run.node(SOURCE, {})
    assert len(started(run)) == retries + 1


def test_a_retry_resumes_from_the_checkpoint_and_drops_it_in_the_end(finished: Bench) -> None:
    run = finished.begin("train_2.steps=9", "train_2.die_after=5")
    result = run_nodes(run, PIPE)["train_2"]
    assert started(run) == ["train_2", "train_2"]
    assert result.attempt.resumed_from == 4
    assert finished.ledger.checkpoint_steps(result.key) == []


def test_a_forced_run_starts_clean_but_its_retries_resume(finished: Bench) -> None:
    key = finished.results()["train_2"].key
    stale = finished.folder / "stale"
    stale.mkdir()
    finished.ledger.save_checkpoint(finished.ledger.acquire(key, "x", seconds=-1), 3, stale)
    run = finished.begin("train_2.die_after=2", select="train_2", force=True)
    result = run_nodes(run, PIPE)["train_2"]
    assert started(run) == ["train_2", "train_2"]
    assert result.attempt.resumed_from == 2
    assert recorder(run).messages().count("begins at step 0") == 1


def test_a_node_with_a_launcher_of_its_own_is_started_by_it(bench: Bench) -> None:
    run = bench.begin()
    other = InlineLauncher(run.home)
    run.launchers = {"source_a": other}
    run.node(SOURCE, {})
    assert (other.started, started(run)) == (["source_a"], [])
