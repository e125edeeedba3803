"""A rehearsal around its nodes: its budget, which is held before any of them is started and while they run, and what it
says of faults that only show when a node runs.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
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
from stages.core import selfcheck
from stages.core.errors import ConfigError
from stages.core.store import Store
from stages.lib.engines.open_instruct import POSITION, StepCheckpoints

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
    monkeypatch.setattr(rehearsing.source_checks, "check", lambda *given: ([], []))
    monkeypatch.setattr(rehearsing, "launchers_of", lambda *given: {})
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


def _image_without_a_module(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The engine's own Python is there, and what it imports first is not."""
    monkeypatch.setenv("MOXIN_COLOSSALAI_PYTHON", sys.executable)
    monkeypatch.setitem(selfcheck.ENGINES, "colossalai", selfcheck.Engine(("no_such_module",), (), compiles=False))
    monkeypatch.setattr(selfcheck, "driver", list)
    selfcheck.require("scenes", SimpleNamespace(device="cuda", engine="colossalai"))


def _checkpoint_of_another_layout(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """DeepSpeed's of eight GPUs, for an attempt that has four."""
    (tmp_path / POSITION).write_text('{"gpus": 8}')
    ctx: Any = SimpleNamespace(node="scenes", nproc_per_node=4)
    follower: Any = None
    StepCheckpoints(ctx, tmp_path / "output", follower).restore((2, tmp_path))


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (_image_without_a_module, ("engine = 'colossalai' cannot run here", "no_such_module cannot be imported")),
        (_checkpoint_of_another_layout, ("its checkpoint of step 2 is DeepSpeed's of 8 GPUs", "set resources.scenes.")),
    ],
)
def test_a_fault_that_shows_when_a_node_runs_is_told_with_node_cause_and_remedy(
    fault: Any, words: tuple[str, ...], begun: Runs, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The stage's own words, as a failed node of the report."""

    def walk(run_id: str, run: Any) -> State[Any]:
        run.api_calls.close()
        with pytest.raises(ConfigError) as raised:
            fault(monkeypatch, tmp_path)
        run.failures["scenes"] = f"scenes failed {raised.value}"
        return State(type=StateType.FAILED)

    monkeypatch.setattr(rehearsing.run_flow, "walk", walk)
    (node,) = rehearsed(5.0).failed
    assert node.node == "scenes"
    assert all(word in node.why for word in words), node.why
    assert node.remedy
    assert node.log


def test_the_deployment_takes_a_budget_as_that_of_a_run_does() -> None:
    run, rehearsal = (parameter_schema(flow).properties for flow in (rehearsing.run_flow.moxin, rehearsing.rehearse))
    for name in ("budget", "approve"):
        assert {key: value for key, value in run[name].items() if key != "position"} == {
            key: value for key, value in rehearsal[name].items() if key != "position"
        }
