"""A run with nothing to do, which Prefect's client has no part in: its page is that of the flow, by a real server."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from prefect.logging import disable_run_logger

from flows import flow as flow_module
from flows import profiles, recorded_run, unchanged_run
from flows.execute import Execution
from flows.local_services import prefect
from flows.plan import make_plan
from flows.settings import Settings
from stages.core.errors import ConfigError, InfraError
from stages.core.ledger import Ledger
from stages.core.store import Store
from tests.support.bench import PIPE
from tests.support.prefect_runs import Run, prefect_server
from tests.support.probe_pipeline import Recorder, copy_ledger, profile_of, wait_for

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server(store_server: Settings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    with prefect_server(tmp_path_factory.mktemp("prefect"), store_server) as settings:
        yield settings


@pytest.fixture
def done(
    server: Settings, finished_run: Ledger, ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Settings:
    """Settings of a control plane with every result of the small pipeline."""
    copy_ledger(finished_run, ledger)
    load = profiles.load
    profile_of(PIPE, tmp_path)
    monkeypatch.setattr(
        profiles, "load", lambda name, pipeline, overrides=(): load("test", pipeline, overrides, tmp_path)
    )
    return dataclasses.replace(server, store=ledger.store.address, home=tmp_path)


def page_of(settings: Settings, run_id: str) -> dict[str, Any]:
    """What the server shows of a run, without what differs from run to run."""
    call = functools.partial(prefect.call_api, settings)
    tasks: dict[str, Any] = {}

    def all_ended() -> bool:  # the server takes events from a queue
        rows = call("POST", "/task_runs/filter", {"task_runs": {"flow_run_id": {"any_": [run_id]}}})
        tasks.update({row["id"]: row for row in rows})
        return len(rows) == len(PIPE.nodes) and all(row["state_type"] == "COMPLETED" for row in rows)

    wait_for(all_ended, "the end of all tasks")
    run = call("GET", f"/flow_runs/{run_id}")
    graph = dict(call("GET", f"/flow_runs/{run_id}/graph-v2")["nodes"])
    artifacts = call("POST", "/artifacts/filter", {"flow_runs": {"id": {"any_": [run_id]}}})
    logs = call("POST", "/logs/filter", {"logs": {"flow_run_id": {"any_": [run_id]}}, "limit": 200})
    return {
        "name": run["name"],
        "parameters": run["parameters"],
        "tags": sorted(tag.partition(":")[0] for tag in run["tags"]),
        "state": {name: run["state"][name] for name in ("type", "name", "message")},
        "times": run["start_time"] <= run["end_time"],
        "tasks": {
            row["name"]: (row["state_name"], row["state"]["message"], row["run_count"]) for row in tasks.values()
        },
        "edges": {
            tasks[one]["name"]: sorted({tasks[parent["id"]]["name"] for parent in node["parents"]})
            for one, node in graph.items()
        },
        "artifacts": {
            row["key"]: (
                row["type"],
                row["description"],
                sorted(re.sub(r"\d+\.\d+", "", str(row["data"])).splitlines()),
            )
            for row in artifacts  # the flow's nodes stand as they ended
        },
        "lines of the plan": sorted(row["message"] for row in logs if " cached   made " in row["message"]),
        "lines of tasks": sorted(
            tasks[row["task_run_id"]]["name"] for row in logs if row["message"] == "cached: cached"
        ),
    }


def test_its_page_is_that_of_the_flow(server: Settings, done: Settings, tmp_path: Path) -> None:
    given = {"select": "full", "why": "to see"}
    by_flow = Run(server, tmp_path, done.store.prefix, **given).end()
    assert by_flow["type"] == "COMPLETED", by_flow

    run, plans = unchanged_run.planned(done, PIPE, {"profile": "tiny", **given})
    assert run is not None
    assert [plan.node.name for plan in plans] == list(PIPE.nodes)
    watching, ledger = Recorder(), Ledger(Store(done.store))
    ended = run.carry_out([watching])
    assert (ended.ok, ended.trouble) == (True, "")
    assert ended.message == by_flow["message"] == "0 nodes ran, 6 answered from the ledger"
    assert {name: watching.states(name) for name in PIPE.nodes} == {name: ["cached"] for name in PIPE.nodes}
    run_id = ended.url.rpartition("/")[2]
    assert {record.run_id for record in ledger.nodes("test").values()} == {run_id}, "names move as in any run"

    shown, expected = page_of(server, run_id), page_of(server, by_flow["url"].rpartition("/")[2])
    for name, value in expected.items():
        assert shown[name] == value, name
    assert len(shown["lines of the plan"]) == len(shown["lines of tasks"]) == 6
    assert shown["edges"]["train_2"] == ["shards", "train_1", "vocabulary"]
    assert shown["artifacts"].keys() == {"plan", "run-summary"}


def test_what_is_not_done_and_what_cannot_be_planned_is_left_to_the_flow(
    done: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, plans = unchanged_run.planned(done, PIPE, {"set": ["train_1.learning_rate=0.3"]})
    assert run is None
    assert [plan.node.name for plan in plans if plan.will_run] == ["train_1", "train_2"]
    for given in ({"experiment": "nobody-began-it"}, {"force": True}, {"budget": 1.0}):
        assert unchanged_run.planned(done, PIPE, given) == (None, [])
    monkeypatch.setattr(unchanged_run, "make_plan", raising(ConfigError("facets disagree")))
    assert unchanged_run.planned(done, PIPE, {}) == (None, [])


def test_so_is_a_server_of_another_version(done: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorded_run.importlib.metadata, "version", lambda name: "3.0.0")
    run, plans = unchanged_run.planned(done, PIPE, {})
    assert run is None
    assert len(plans) == 6


def raising(error: BaseException) -> Callable[..., Any]:
    def act(*given: Any, **options: Any) -> Any:
        raise error

    return act


@pytest.mark.parametrize(
    ("error", "state"), [(KeyboardInterrupt(), "CANCELLED"), (InfraError("the store is away"), "FAILED")]
)
def test_a_run_that_breaks_off_is_closed(
    done: Settings, monkeypatch: pytest.MonkeyPatch, error: BaseException, state: str
) -> None:
    run, _ = unchanged_run.planned(done, PIPE, {})
    assert run is not None
    monkeypatch.setattr(Execution, "node", raising(error))
    if isinstance(error, KeyboardInterrupt):
        with pytest.raises(KeyboardInterrupt):
            run.carry_out([])
    else:
        ended = run.carry_out([])
        assert (ended.ok, ended.message) == (False, "the store is away")
    newest = {"sort": "START_TIME_DESC", "limit": 1}
    assert prefect.call_api(done, "POST", "/flow_runs/filter", newest)[0]["state"]["type"] == state


def test_a_server_that_goes_away_spoils_nothing(done: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    run, _ = unchanged_run.planned(done, PIPE, {})
    assert run is not None
    monkeypatch.setattr(recorded_run.RecordedRun, "send", raising(InfraError("it does not answer")))
    ended = run.carry_out([])
    assert ended.ok
    assert ended.message == "0 nodes ran, 6 answered from the ledger"
    assert ended.trouble == "the Prefect server could not be told how the run ended (it does not answer)"


def test_the_flow_goes_on_with_a_plan_that_was_made_for_it(done: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once: the next run of the process makes its own."""
    ledger, shown = Ledger(Store(done.store)), list[Any]()
    plans = make_plan(PIPE, profiles.load("tiny", PIPE), ledger)
    monkeypatch.setattr(flow_module, "PIPELINE", PIPE)
    monkeypatch.setattr(flow_module.Settings, "load", lambda: done)
    monkeypatch.setattr(flow_module.prefect_artifacts, "plan_table", shown.append)
    monkeypatch.setattr(flow_module, "make_plan", raising(ConfigError("another plan")))
    monkeypatch.setattr(flow_module, "PLANNED", [*plans])
    with disable_run_logger():
        first = flow_module.moxin.fn(plan_only=True)
        assert (first.type.value, shown) == ("COMPLETED", [plans])
        assert flow_module.moxin.fn(plan_only=True).message == "another plan"
