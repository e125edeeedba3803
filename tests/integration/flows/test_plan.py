"""The plan: each state with its reason, and refusals before anything runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from stages.probe_tokenizer.spec import Vocabulary

from flows import cost, profiles
from flows import plan as plans
from flows.execute import NodeFailed
from flows.plan import NodePlan, State, make_plan
from stages.core.errors import ConfigError
from stages.core.keys import source_digest
from stages.core.ledger import Ledger
from tests.support.checkpoints import save_checkpoint
from tests.support.plan_bench import PIPE, Bench
from tests.support.probe_pipeline import PROFILE, copy_ledger, profile_of

ALL = list(PIPE.nodes)


@pytest.fixture
def bench(ledger: Ledger, tmp_path: Path) -> Bench:
    return Bench(ledger, tmp_path)


@pytest.fixture
def finished(finished_run: Ledger, tmp_path: Path) -> Bench:
    """Everything has run once. For tests that only look."""
    return Bench(finished_run, tmp_path)


@pytest.fixture
def own(finished_run: Ledger, ledger: Ledger, tmp_path: Path) -> Bench:
    """Everything has run once. For tests that change something."""
    copy_ledger(finished_run, ledger)
    return Bench(ledger, tmp_path)


def states(found: dict[str, NodePlan]) -> dict[str, str]:
    return {name: plan.state.value for name, plan in found.items()}


# --- nothing is there -------------------------------------------------------------------------------------------------


def test_at_first_the_sources_run_and_the_rest_follows(bench: Bench) -> None:
    found = bench.plan()
    assert states(found) == dict.fromkeys(("source_a", "source_b"), "run") | dict.fromkeys(ALL[2:], "pending")
    assert found["source_a"].reason == "never ran in this profile"
    assert found["vocabulary"].reason == "follows source_a, source_b"
    assert found["train_2"].reason == "follows shards, vocabulary, train_1"
    assert all(plan.will_run for plan in found.values())
    assert found["vocabulary"].key is None


def test_a_node_alone_is_blocked_by_what_is_missing(bench: Bench) -> None:
    found = bench.plan(select="shards, train_1")
    assert states(found) == {"shards": "blocked", "train_1": "blocked"}
    assert found["shards"].reason == "needs source_a, which has no result and is not selected: select '+shards'"
    assert not any(plan.will_run for plan in found.values())


def test_planning_writes_nothing(bench: Bench) -> None:
    bench.plan()
    assert list(bench.ledger.store.list("")) == []


# --- everything is there ----------------------------------------------------------------------------------------------


def test_after_a_run_everything_is_cached(finished: Bench) -> None:
    found = finished.plan()
    assert states(found) == dict.fromkeys(ALL, "cached")
    assert not any(plan.will_run for plan in found.values())
    assert {name: plan.key for name, plan in found.items()} == finished.keys()
    assert found["shards"].reason.startswith("made 20")
    assert found["shards"].reason.endswith(" UTC")


def test_an_operational_field_makes_nothing_run(finished: Bench) -> None:
    assert states(finished.plan("probe_train.workers=4", "probe_source.act=bug")) == dict.fromkeys(ALL, "cached")


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        (["train_1.learning_rate=0.2"], "learning_rate 0.1 -> 0.2"),
        (["train_1.shape.layers=3"], "shape.layers 2 -> 3"),
        (["train_1.steps=5", "train_1.learning_rate=1"], "learning_rate 0.1 -> 1.0; steps 4 -> 5"),
    ],
)
def test_a_changed_field_is_named_with_both_values(finished: Bench, overrides: list[str], reason: str) -> None:
    found = finished.plan(*overrides)
    assert states(found) == dict.fromkeys(ALL[:4], "cached") | {"train_1": "run", "train_2": "pending"}
    assert found["train_1"].reason == reason
    assert found["train_2"].reason == "follows train_1"


def test_a_field_that_is_unset_now_is_said_so_and_long_values_are_cut(finished: Bench) -> None:
    text = "long " * 40
    assert finished.plan(f"source_a.text='{text}'")["source_a"].reason == f"text a -> {text[:57]}..."
    profile = profile_of(PIPE, finished.folder, text='[node.source_b]\ntext = "b"\n')
    found = {p.node.name: p for p in make_plan(PIPE, profile, finished.ledger, "full")}
    assert found["train_1"].reason == "sequence_length 16 -> unset"


def test_a_changed_input_is_named_with_its_producer(own: Bench) -> None:
    own.run("source_b.text=new", select="source_b", until="source_b")
    found = own.plan("source_b.text=new")
    assert found["source_b"].state is State.CACHED
    assert found["vocabulary"].state is State.RUN
    assert found["vocabulary"].reason == "input documents changed (from source_b)"


def test_a_raised_revision_is_named(finished: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Vocabulary, "revision", 2)
    found = finished.plan()
    assert found["vocabulary"].reason == "revision 1 -> 2"
    assert found["shards"].state is State.PENDING


def test_going_back_to_an_earlier_value_is_answered_from_the_ledger(own: Bench) -> None:
    own.run("train_2.learning_rate=0.2")
    assert states(own.plan()) == dict.fromkeys(ALL, "cached")
    assert own.plan("train_2.steps=9")["train_2"].reason == "learning_rate 0.2 -> 0.1; steps 4 -> 9", (
        "against the last result"
    )


def test_a_result_that_was_deleted_runs_again(own: Bench) -> None:
    key = own.keys()["train_2"]
    own.ledger.store.delete([f"manifests/{key}.json"])
    found = own.plan()
    assert found["train_2"].state is State.RUN
    assert found["train_2"].reason == "its last result is gone from the store"


def test_another_profile_shares_results_but_not_history(finished: Bench) -> None:
    (finished.folder / "test.toml").write_text(PROFILE)
    (finished.folder / "other.toml").write_text('extends = "test"\n')
    other = profiles.load("other", PIPE, ["train_1.steps=5"], finished.folder)
    found = {p.node.name: p for p in make_plan(PIPE, other, finished.ledger, "full")}
    assert found["shards"].state is State.CACHED
    assert found["train_1"].reason == "never ran in this profile"


# --- objects that went missing ----------------------------------------------------------------------------------------


def lose_one(bench: Bench, node: str) -> str:
    """Delete one object of a node's result; its key."""
    found = bench.ledger.manifest(bench.keys()[node])
    assert found is not None
    lost = next(iter(found[0].outputs.values())).files[0].object
    bench.ledger.store.delete([lost])
    return lost


def test_a_result_that_lost_objects_runs_again(own: Bench) -> None:
    lost = lose_one(own, "vocabulary")
    found = own.plan()
    assert found["vocabulary"].state is State.RUN
    assert found["vocabulary"].reason == f"its result has 1 lost or damaged objects (first: {lost})"
    assert found["shards"].state is State.PENDING


def test_lost_objects_of_a_node_that_is_not_selected_block(own: Bench) -> None:
    lose_one(own, "shards")
    found = own.plan("train_1.steps=9", select="train_1")
    assert found["train_1"].state is State.BLOCKED
    assert found["train_1"].reason == "needs shards, which has lost objects and is not selected: select '+train_1'"
    with pytest.raises(
        NodeFailed, match=r"shards failed \(input\): its result has 1 lost or damaged objects .* select '\+shards'"
    ):
        own.run("train_1.steps=9", select="train_1")


# --- drift ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def drifted(finished: Bench, monkeypatch: pytest.MonkeyPatch) -> Bench:
    """The code of the vocabulary stage is another one than the one that made the result."""
    monkeypatch.setattr(
        plans, "source_digest", lambda stage: "new" if stage == "probe_tokenizer" else source_digest(stage)
    )
    return finished


def test_drift_is_kept_and_said(drifted: Bench) -> None:
    found = drifted.plan("on_drift=warn")
    assert states(found) == dict.fromkeys(ALL, "cached") | {"vocabulary": "drift"}
    assert found["vocabulary"].reason == "made by other code; kept"
    assert not found["vocabulary"].will_run


def test_drift_runs_again_where_the_profile_says_so(drifted: Bench) -> None:
    found = drifted.plan("on_drift=rerun")
    assert (found["vocabulary"].state, found["vocabulary"].will_run) == (State.DRIFT, True)
    assert found["vocabulary"].reason == "its code changed since (drift)"
    assert found["shards"].state is State.PENDING


def test_drift_stops_where_the_profile_forbids_it(drifted: Bench) -> None:
    with pytest.raises(ConfigError, match="node vocabulary: its result was made by other code"):
        drifted.plan("on_drift=fail")


@pytest.mark.parametrize("on_drift", ["warn", "rerun", "fail"])
def test_drift_of_a_node_that_is_not_selected_is_let_be(drifted: Bench, on_drift: str) -> None:
    assert states(drifted.plan(f"on_drift={on_drift}", select="shards")) == {"shards": "cached"}


# --- force, leases, checkpoints ---------------------------------------------------------------------------------------


def test_force_runs_what_is_selected_and_nothing_else(finished: Bench) -> None:
    found = finished.plan(select="train_1+", force=True)
    assert states(found) == {"train_1": "run", "train_2": "pending"}
    assert found["train_1"].reason == "forced"
    assert found["train_1"].key == finished.keys()["train_1"]


def test_a_key_that_somebody_works_on_is_leased(bench: Bench) -> None:
    key = bench.plan()["source_a"].key
    assert key is not None
    lease = bench.ledger.acquire(key, "run-7 on elsewhere")
    found = bench.plan()
    assert found["source_a"].state is State.LEASED
    assert found["source_a"].reason == "run-7 on elsewhere works on it (epoch 1)"
    assert found["source_a"].will_run, "a run would wait for it"
    bench.ledger.release(lease)
    assert bench.plan()["source_a"].state is State.RUN


def test_a_broken_attempt_with_checkpoints_is_resumed(own: Bench) -> None:
    with pytest.raises(NodeFailed):
        own.run("train_2.steps=9", "train_2.die_after=5", "retries=0")
    found = own.plan("train_2.steps=9")["train_2"]
    assert (found.state, found.step, found.will_run) == (State.RESUME, 4, True)
    assert found.reason == "a checkpoint at step 4 is there; steps 4 -> 9"


def test_checkpoints_of_a_finished_key_are_no_resume(own: Bench) -> None:
    key = own.keys()["train_2"]
    save_checkpoint(own.ledger, own.ledger.acquire(key, "x", seconds=-1), 2, own.folder)
    assert own.plan(select="train_2", force=True)["train_2"].state is State.RUN


# --- selections and rows ----------------------------------------------------------------------------------------------


def test_only_selected_nodes_are_in_the_plan(finished: Bench) -> None:
    assert list(finished.plan(select="train_2, source_a")) == ["source_a", "train_2"]


def test_a_row_is_json(finished: Bench) -> None:
    row: dict[str, Any] = json.loads(json.dumps(finished.plan()["source_a"].row()))
    key = finished.keys()["source_a"]
    assert row.pop("reason").startswith("made ")
    assert row == {
        "name": "source_a",
        "stage": "probe_source",
        "state": "cached",
        "step": None,
        "key": key,
        "will_run": False,
    }


# --- damaged records
# ----------------------------------------------------------------------------------------------------


def cut_manifest(bench: Bench, node: str) -> str:
    key = bench.plan()[node].key
    found = bench.ledger.store.get(f"manifests/{key}.json")
    assert found is not None
    bench.ledger.store.put(f"manifests/{key}.json", found[0][: len(found[0]) // 2])
    return str(key)


def test_a_damaged_manifest_is_a_state_and_never_written_over_unasked(own: Bench) -> None:
    key = cut_manifest(own, "shards")
    found = own.plan()
    assert (found["shards"].state, found["shards"].will_run) == (State.DAMAGED, False)
    assert f"manifests/{key}.json is no manifest of this version" in found["shards"].reason
    assert "'moxin repair'" in found["shards"].reason
    assert (found["train_1"].state, found["train_1"].reason) == (
        State.BLOCKED,
        "needs shards, a record of which is damaged",
    )
    before = own.ledger.store.get(f"manifests/{key}.json")
    with pytest.raises(NodeFailed, match=r"shards failed \(input\): .*is no manifest .*'--force' sets it aside"):
        own.run()
    assert own.ledger.store.get(f"manifests/{key}.json") == before


def test_force_sets_a_damaged_manifest_aside_and_runs(own: Bench) -> None:
    key = cut_manifest(own, "shards")
    before = own.ledger.store.get(f"manifests/{key}.json")
    assert before is not None
    found = own.plan(select="shards", force=True)["shards"]
    assert (found.state, found.reason) == (State.RUN, "forced: the record of its last result is damaged")
    own.run(select="shards", force=True, until="shards")
    (kept,) = own.ledger.store.list(f"damaged/manifests/{key}.json")
    assert own.ledger.store.get(kept.key) is not None
    assert (own.ledger.store.get(kept.key) or (b"",))[0] == before[0]
    assert own.plan()["train_2"].state is State.CACHED, "the same contents again"


def test_a_damaged_lease_is_told_in_its_row(own: Bench) -> None:
    key = own.plan("train_1.steps=9")["train_1"].key
    own.ledger.store.put(f"leases/{key}.json", b'{"key": "')
    found = own.plan("train_1.steps=9")["train_1"]
    assert (found.state, found.will_run) == (State.DAMAGED, False)
    assert f"leases/{key}.json is no lease" in found.reason


def test_a_damaged_node_record_is_told_and_stops_nothing(own: Bench) -> None:
    own.ledger.store.put("nodes/test/train_1.json", b"")
    found = own.plan("train_1.steps=9")["train_1"]
    assert (found.state, found.will_run) == (State.RUN, True)
    assert "nodes/test/train_1.json is no node record" in found.reason
    cost.estimate([found], profile_of(PIPE, own.folder), own.ledger)  # nor does it stop the estimate
