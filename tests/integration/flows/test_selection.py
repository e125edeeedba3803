"""Any selection over any state of the ledger: what the plan says is what a run does, gaps in the selection included."""

from __future__ import annotations

import functools
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flows import flow as flow_module
from flows import plan as plans
from flows.execute import NodeFailed
from flows.plan import NodePlan, State
from stages.core.errors import ExitClass
from stages.core.keys import source_digest
from stages.core.ledger import Ledger
from stages.core.messages import StageResult
from stages.core.store import Store
from tests.support.bench import PIPE, Bench, started
from tests.support.examples import max_examples
from tests.support.probe_pipeline import copy_ledger

NODES = list(PIPE.nodes)
CHANGES = [
    "source_a.text='new'",
    "source_b.text='newer'",
    "vocabulary.vocab_size=50",
    "train_1.learning_rate=0.2",
    "train_2.steps=5",
]


def run_like_the_flow(
    bench: Bench, selection: list[str], changes: list[str]
) -> dict[str, tuple[NodePlan, str, list[str]]]:
    """Plan and run; of each planned node its plan, how it ended, and what was started for it."""
    run = bench.begin(*changes, select=",".join(selection))
    made = plans.make_plan(PIPE, run.profile, run.ledger, ",".join(selection))
    results: dict[str, StageResult] = dict(flow_module._given(made, run.ledger, run.profile))
    ended: dict[str, tuple[NodePlan, str, list[str]]] = {}
    planned = {p.node.name for p in made}
    for plan in made:
        name, before = plan.node.name, len(started(run))
        if any(parent in planned and parent not in results for parent in plan.node.parents):
            ended[name] = (plan, "skipped", [])
            continue
        try:
            outcome = run.node(plan.node, results)
            results[name] = outcome.result
            how = "cached" if outcome.cached else "ran"
        except NodeFailed as error:
            how = "blocked" if error.kind is ExitClass.INPUT else str(error)
        ended[name] = (plan, how, started(run)[before:])
    return ended


@pytest.fixture(scope="module")
def ran(root_store: Store, tmp_path_factory: pytest.TempPathFactory) -> Callable[[frozenset[str]], Ledger]:
    """The ledger in which these nodes ran once: to be copied. There are few such states, and many examples of each."""

    @functools.cache
    def made(names: frozenset[str]) -> Ledger:
        folder = tmp_path_factory.mktemp("ran")
        bench = Bench(ledger_at(root_store, f"ran-{os.getpid()}-{folder.name}/"), folder)
        run_like_the_flow(bench, [name for name in NODES if name in names], [])
        return bench.ledger

    return made


def ledger_at(store: Store, prefix: str) -> Ledger:
    return Ledger(Store(store.address.model_copy(update={"prefix": prefix}), store._client))


@settings(max_examples(25), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sets(st.sampled_from(NODES)), st.sets(st.sampled_from(NODES), min_size=1), st.sets(st.sampled_from(CHANGES)))
def test_a_run_does_what_the_plan_says(
    root_store: Store, ran: Callable[[frozenset[str]], Ledger], monkeypatch: pytest.MonkeyPatch,
    before: set[str], selection: set[str], changes: set[str],
) -> None:  # fmt: skip
    """Some nodes ran once; then some are selected, after some changes."""
    monkeypatch.setattr(flow_module, "PIPELINE", PIPE)
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(ledger_at(root_store, f"selection-{Path(folder).name}/"), Path(folder))
        if before:
            closed = PIPE.select(",".join(f"+{name}" for name in NODES if name in before))
            copy_ledger(ran(frozenset(node.name for node in closed)), bench.ledger)
        for name, (plan, how, begun) in run_like_the_flow(
            bench, [n for n in NODES if n in selection], sorted(changes)
        ).items():
            allowed = {
                State.CACHED: {"cached"},
                State.RUN: {"ran"},
                State.RESUME: {"ran"},
                State.PENDING: {"ran", "cached"},  # what it follows may turn out as it was
                State.BLOCKED: {"blocked", "skipped"},
            }[plan.state]
            assert how in allowed, f"{name}: {plan.state} ({plan.reason}), but it was {how}"
            assert begun == ([name] if how == "ran" else [])


def test_a_gap_names_what_to_select(finished: Bench) -> None:
    run = finished.begin("source_a.text='new'", select="source_a,shards")
    source, shards = plans.make_plan(PIPE, run.profile, finished.ledger, "source_a,shards")
    assert (source.state, shards.state) == (State.RUN, State.BLOCKED)
    assert (
        shards.reason
        == "needs vocabulary, which has to be made anew (follows source_a) and is not selected: select '+shards'"
    )


@pytest.mark.parametrize("on_drift", ["fail", "rerun"])
def test_what_feeds_a_selected_node_is_used_as_the_plan_says_though_its_code_changed(
    finished: Bench, monkeypatch: pytest.MonkeyPatch, on_drift: str
) -> None:
    monkeypatch.setattr(flow_module, "PIPELINE", PIPE)
    monkeypatch.setattr(
        plans, "source_digest", lambda stage: "new" if stage == "probe_tokenizer" else source_digest(stage)
    )
    ended = run_like_the_flow(finished, ["shards"], [f"on_drift={on_drift}"])
    assert (ended["shards"][0].state, ended["shards"][1]) == (State.CACHED, "cached")


def test_a_node_whose_input_is_lost_is_not_begun(finished: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flow_module, "PIPELINE", PIPE)
    finished.ledger.store.delete([finished.results()["vocabulary"].outputs["tokenizer"].files[0].object])
    ended = run_like_the_flow(finished, ["shards"], [])
    plan, how, begun = ended["shards"]
    assert (plan.state, how, begun) == (State.BLOCKED, "blocked", [])
