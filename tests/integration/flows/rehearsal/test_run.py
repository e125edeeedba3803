"""The budget of a rehearsal: what its own small nodes cost, held before any of them is started and while they run."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from prefect.client.schemas.objects import State, StateType
from prefect.logging import disable_run_logger
from prefect.utilities.callables import parameter_schema

from flows.rehearsal import report
from flows.rehearsal import run as rehearsing
from flows.rehearsal.run import Allowance
from flows.settings import Settings
from stages.core.errors import ConfigError
from stages.core.store import Store

Runs = list[Any]


@pytest.fixture
def begun(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[Runs]:
    """Runs that were begun: each ends at once, one of more than a dollar as its budget had been used up."""
    runs: Runs = []

    def walk(run_id: str, run: Any) -> State[Any]:
        runs.append(run)
        run.api_calls.close()
        run.execution.spending.stopped = run.execution.spending.budget > 1
        return State(type=StateType.FAILED, name="Over budget")

    monkeypatch.setattr(rehearsing.Settings, "load", lambda: settings)
    monkeypatch.setattr(rehearsing.sources, "check", lambda *given: ([], []))
    monkeypatch.setattr(rehearsing.run_flow, "launchers_of", lambda *given: {})
    monkeypatch.setattr(rehearsing, "launcher", lambda *given: SimpleNamespace(queues=False))
    monkeypatch.setattr(rehearsing.run_flow, "walk", walk)
    with disable_run_logger():
        yield runs


def rehearsed(budget: float, approve: bool = False) -> report.RehearsalReport:
    rehearsal = rehearsing._Rehearsing("test", "7b", "wiring", [], processors=False)
    return rehearsal.run("scenes", False, Allowance(budget, approve))


def test_it_is_refused_above_its_budget_before_anything_starts(begun: Runs, store: Store) -> None:
    with pytest.raises(
        ConfigError, match=r"would cost about \$0\.0\d, above its budget of \$0\.001; most of it: scenes"
    ):
        rehearsed(0.001)
    assert begun == []
    assert list(store.list("")) == [], "no report takes the place of an earlier one"


def test_one_that_its_budget_stops_has_failed_and_says_how_it_goes_on(begun: Runs, store: Store) -> None:
    outcome = rehearsed(5.0)
    assert [row.name for row in begun[0].execution.spending.rows] == ["scenes"]
    assert not outcome.ok
    assert "of $5.00 are spent, and 1 node (scenes) would cost about" in outcome.summary()
    assert report.read(store, "7b", "wiring") == outcome


def test_an_approved_one_is_only_counted(begun: Runs) -> None:
    assert rehearsed(0.001, approve=True).faults == ()
    assert begun[0].execution.spending.budget == 0.001


def test_the_deployment_takes_a_budget_as_that_of_a_run_does() -> None:
    run, rehearsal = (parameter_schema(flow).properties for flow in (rehearsing.run_flow.moxin, rehearsing.rehearse))
    for name in ("budget", "approve"):
        assert {key: value for key, value in run[name].items() if key != "position"} == {
            key: value for key, value in rehearsal[name].items() if key != "position"
        }
