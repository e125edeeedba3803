"""A run's budget: refused, counted and held to, by a clock of the test's."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from flows import cli, spending
from flows.spending import NodeCost, OverBudget, Spending
from stages.core.errors import ConfigError
from stages.core.resources import Resources
from tests.support.probe_pipeline import result_with

PRICES = {"gpu": {"dollars_per_hour": 2.0}, "cpu": {"dollars_per_core_hour": 0.5}}
GPUS = Resources(gpus=8, nodes=2)
ROWS = [
    NodeCost("data", 4.0, core_hours=8.0, basis="bytes", resources=Resources(cpus=4)),
    NodeCost("train", 64.0, gpu_hours=32.0, basis="FLOPs", resources=GPUS, keeps=True),
    NodeCost("odd", None),
]


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Scripted:
    """A handle that says what it is told to say."""

    id = "7"

    def __init__(self, *events: dict[str, Any]) -> None:
        self._events = events
        self.stopped: list[float] = []

    def events(self) -> Iterator[dict[str, Any]]:
        yield from self._events

    def wait(self) -> int:
        return 3

    def stop(self, grace: float) -> None:
        self.stopped.append(grace)


def spent_of(budget: float = 100.0, **options: Any) -> tuple[Spending, Clock]:
    clock = Clock()
    return Spending(ROWS, PRICES, budget, clock=clock, **options), clock


@pytest.mark.parametrize("budget", [0.0, -1.0, math.nan, math.inf])
def test_a_budget_is_a_sum_of_money(budget: float) -> None:
    with pytest.raises(ConfigError, match=rf"budget = {budget:g}: give dollars"):
        spending.check_amount(budget)
    for command in ("run", "plan"):
        ended = CliRunner().invoke(cli.app, [command, "--budget", str(budget)])
        assert isinstance(ended.exception, ConfigError)


def test_an_estimate_above_the_budget_is_refused_and_may_be_approved() -> None:
    run, _ = spent_of(67.99)
    with pytest.raises(ConfigError) as refused:
        run.begin(lost=False)
    assert str(refused.value) == (
        "this run would cost about $68.00, above its budget of $67.99; most of it: train $64.00, data $4.00. Not in the"
        " sum, as their cost is not known: odd. Select fewer nodes, raise the budget, or approve the estimate:"
        " --approve (in a deployment: approve = true)"
    )
    assert spent_of(67.99, approved=True)[0].begin(lost=False) == [
        "budget $67.99, estimate $68.00, approved. Not in the sum, as their cost is not known: odd."
    ]
    assert spent_of(68.0)[0].begin(lost=False)


def test_the_table_has_the_dearest_node_first_and_the_sum_last() -> None:
    rows = spending.table(ROWS)
    assert [(row["node"], row["dollars"]) for row in rows] == [
        ("train", 64.0), ("data", 4.0), ("odd", "not known"), ("sum", 68.0),
    ]  # fmt: skip
    assert (rows[-1]["GPU-hours"], rows[-1]["core-hours"]) == (32.0, 8.0)


def test_an_attempt_costs_what_is_held_for_it_and_its_result_knows_better() -> None:
    run, clock = spent_of()
    run.metered("data", Scripted(), queues=False, taken_over=False)
    clock.now += 3600
    assert run.spent == pytest.approx(2.0), "four cores for an hour"
    assert run.rest == pytest.approx(66.0)
    run.end("data")
    assert run.spent == pytest.approx(2.0), "failed: it is paid for"
    assert run.rest == pytest.approx(68.0), "and begins anew"
    run.metered("data", Scripted(), queues=False, taken_over=False)
    clock.now += 3600
    run.end("data")
    outcome = result_with().model_copy(update={"node": "data"})
    used = outcome.attempt.model_copy(update={"cpu_seconds": 1800.0, "wall_seconds": 3600.0})
    run.settle(outcome.model_copy(update={"attempt": used}))
    run.close("data")
    assert (run.spent, run.rest) == (pytest.approx(2.25), pytest.approx(64.0))


def test_waiting_in_a_queue_costs_nothing() -> None:
    run, clock = spent_of()
    begun = clock.now + 7200
    job = Scripted({"event": "log"}, {"event": "begun", "at": begun})
    handle = run.metered("train", job, queues=True, taken_over=False)
    clock.now = begun
    assert run.spent == 0.0
    assert [event["event"] for event in handle.events()] == ["log", "begun"]
    clock.now += 1800
    assert run.spent == pytest.approx(16.0), "sixteen cards for half an hour"
    assert (handle.id, handle.wait()) == ("7", 3)
    handle.stop(5.0)
    assert job.stopped == [5.0]
    run.end("train")
    assert run.rest == pytest.approx(4.0 + 48.0), "what it paid for is in a checkpoint"


def test_nothing_more_begins_when_the_rest_no_longer_fits() -> None:
    run, clock = spent_of(70.0)
    run.check()
    run.metered("data", Scripted(), queues=False, taken_over=False)
    clock.now += 3600
    run.end("data")
    run.check()  # 2 + 68
    run.metered("data", Scripted(), queues=False, taken_over=False)
    clock.now += 3600 * 2.001
    with pytest.raises(OverBudget) as over:
        run.check()
    assert "$6.00 of $70.00 are spent, and 2 nodes (train, odd) would cost about $64.00 more" in str(over.value)
    assert "go on with --budget 64.00 or more, or with --approve" in str(over.value)
    run.end("data")
    run.close("data")
    run.budget = 1000.0
    with pytest.raises(OverBudget):
        run.check()  # a run that has stopped has stopped
    approved, clock = spent_of(1.0, approved=True)
    approved.metered("train", Scripted(), queues=False, taken_over=False)
    clock.now += 10**6
    approved.check()


def test_a_run_that_goes_on_after_a_crash_goes_on_with_its_count(tmp_path: Path) -> None:
    file = tmp_path / "spending" / "x.json"
    lost, clock = spent_of(70.0, file=file)
    assert lost.begin(lost=False) == [
        "budget $70.00, estimate $68.00. Not in the sum, as their cost is not known: odd."
    ]
    lost.metered("data", Scripted(), queues=False, taken_over=False)
    clock.now += 3600
    lost.end("data")
    list(lost.metered("train", Scripted({"event": "begun", "at": clock.now}), queues=True, taken_over=False).events())
    clock.now += 61
    lost._event("train", {"event": "metric"})  # written down: 61 s of 16 cards
    dollars = 61 / 3600 * 32
    again, clock = spent_of(70.0, file=file)
    with pytest.raises(ConfigError, match=r"\$2.54 of it spent before a crash"):
        again.begin(lost=True)
    assert again.before == pytest.approx(2 + dollars)
    job = Scripted({"event": "begun", "at": clock.now - 61})
    list(again.metered("train", job, queues=True, taken_over=True).events())
    assert again.spent == pytest.approx(2 + dollars), "a job that is followed counts once"
    again.finish()
    assert not file.exists()
    alone, _ = spent_of(70.0, file=file)
    assert alone.begin(lost=True)[0].endswith("is not known on this machine: counted anew")


def test_what_goes_on_from_a_checkpoint_costs_what_is_left() -> None:
    stage = SimpleNamespace(name="train", resumes=lambda config: "its newest checkpoint")
    plans: Any = [
        SimpleNamespace(will_run=True, node=stage, step=75),
        SimpleNamespace(will_run=False, node=SimpleNamespace(name="done")),
    ]
    profile: Any = SimpleNamespace(configs={"train": SimpleNamespace(steps=100)}, resources={"train": GPUS})
    estimate: Any = SimpleNamespace(dollars=64.0, gpu_hours=32.0, core_hours=0.0, basis="FLOPs")
    (row,) = spending.costs(plans, profile, {"train": estimate})
    assert row == NodeCost("train", 16.0, 8.0, 0.0, "FLOPs", GPUS, keeps=True)


@given(
    st.lists(st.tuples(st.sampled_from(["data", "train"]), st.floats(0, 1e5), st.booleans()), min_size=1, max_size=12)
)
def test_the_sum_is_that_of_the_attempts(attempts: list[tuple[str, float, bool]]) -> None:
    run, clock = spent_of(1e9)
    hourly = {"data": 2.0, "train": 32.0}
    for name, seconds, queues in attempts:
        handle = run.metered(name, Scripted({"event": "begun", "at": clock.now}), queues=queues, taken_over=False)
        list(handle.events())
        clock.now += seconds
        run.end(name)
    assert run.spent == pytest.approx(sum(hourly[name] * seconds / 3600 for name, seconds, _ in attempts))
    assert 0 <= run.rest <= 68.0
