"""What the Prefect server shows of runs that did not end well, and of runs that were lost: a real server."""

from __future__ import annotations

import functools
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from flows import lost_runs
from flows.local_services import lifecycle, prefect, state_file
from flows.settings import Settings
from stages.core.processes import process_identity
from stages.core.store import Store
from tests.support.limits import HANG
from tests.support.prefect_runs import Run, prefect_server, task_states
from tests.support.probe_pipeline import wait_for

pytestmark = pytest.mark.slow

GIVEN = {
    "profile": "small",
    "select": "pretrain_1+",
    "set": ['pretrain_1.run_name=it\'s "mine" <&>', "a.b=1"],
    "experiment": "warmer",
    "why": 'to see whether it\'s "better"',
    "budget": 12.5,
    "approve": True,
}


@pytest.fixture(scope="module")
def server(store_server: Settings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    with prefect_server(tmp_path_factory.mktemp("prefect"), store_server) as settings:
        yield settings


def newest_run(server: Settings) -> dict:
    body = {"sort": "START_TIME_DESC", "limit": 1}
    return prefect.call_api(server, "POST", "/flow_runs/filter", body)[0]


def test_what_follows_a_failed_node_is_skipped(server: Settings, store: Store, tmp_path: Path) -> None:
    run = Run(server, tmp_path, store.address.prefix, "source_a.act=input")
    end = run.end()
    assert (end["type"], end["message"]) == ("FAILED", "source_a failed (input): asked for input"), end
    shown = newest_run(server)
    assert (shown["state"]["type"], shown["state"]["message"]) == ("FAILED", end["message"])
    states = task_states(server, shown["id"])
    assert states == {"source_a": "Failed", "source_b": "Completed"} | dict.fromkeys(
        ("vocabulary", "shards", "train_1", "train_2"), "Skipped"
    )


def test_a_budget_is_held_before_a_run_and_within_it(server: Settings, store: Store, tmp_path: Path) -> None:
    """The trainings are estimated at $0.93 each. An attempt fails that held a thousand million cores: nothing more is
    begun, not even its second attempt, and what runs beside it finishes. Approved, the next run goes on with the rest.
    """
    dear = "resources.source_a.cpus=1e9", "source_a.act=preempted", f"source_a.sentinel={tmp_path / 'failed'}"
    end = Run(server, tmp_path, store.address.prefix, budget=1.5).end()
    assert end["type"] == "FAILED"
    assert end["message"].startswith("this run would cost about $1.85, above its budget of $1.50; most of it: train_1")

    end = Run(server, tmp_path, store.address.prefix, *dear, budget=2.0).end()
    shown = newest_run(server)
    assert (shown["state"]["type"], shown["state"]["name"]) == ("FAILED", "Over budget"), end
    assert " of $2.00 are spent, and " in end["message"]
    assert "go on with --budget 1.86 or more, or with --approve" in end["message"]
    states = task_states(server, shown["id"])
    assert states.pop("source_b") in {"Completed", "Over budget"}, "as it had begun or not"
    assert states == {"source_a": "Over budget"} | dict.fromkeys(
        ("vocabulary", "shards", "train_1", "train_2"), "Skipped"
    )

    end = Run(server, tmp_path, store.address.prefix, *dear, budget=0.5, approve=True).end()
    assert end["type"] == "COMPLETED", end
    assert end["message"].endswith("of $0.50 spent")


def test_an_interrupted_run_is_cancelled_and_so_is_what_had_not_begun(
    server: Settings, store: Store, tmp_path: Path
) -> None:
    run = Run(server, tmp_path, store.address.prefix, "train_1.steps=10000", "train_1.step_seconds=0.2")
    run.until("train_1", "running")
    os.kill(run.process.pid, signal.SIGINT)
    assert run.end()["type"] == "CANCELLED", (tmp_path / "stderr").read_text()[-2000:]
    shown = newest_run(server)
    assert shown["state"]["type"] == "CANCELLED"
    states = task_states(server, shown["id"])
    assert {states[name] for name in ("source_a", "source_b", "vocabulary", "shards")} == {"Completed"}
    assert states["train_1"] == "Cancelled"
    # NotReady is Prefect's word for a task whose parent was cancelled; one that it lets begin all the same ends at once
    assert states["train_2"] in {"NotReady", "Cancelled"}


def test_a_run_whose_terminal_was_killed_is_closed(server: Settings, store: Store, tmp_path: Path) -> None:
    """By `moxin status`, as by the next start."""
    run = Run(server, tmp_path, store.address.prefix, "train_1.steps=10000", "train_1.step_seconds=0.2")
    run.until("train_1", "running")
    call = functools.partial(prefect.call_api, server)
    name = newest_run(server)["name"]
    assert lost_runs.close(call, "moxin", process_identity()) == [], "it lives"
    os.killpg(run.process.pid, signal.SIGKILL)
    run.process.wait(HANG)
    port = int(server.prefect_api_url.split(":")[2].partition("/")[0])
    services = {"prefect": process_identity(), "worker": process_identity(), "prefect_port": port, "s3_port": 1}
    state_file.save(server.home, services)
    (line,) = lifecycle.close_lost_runs(server.home)
    assert line == f"run {name} (running) is closed as crashed: the terminal that it ran in is gone"
    assert newest_run(server)["state"]["type"] == "CRASHED"
    assert lost_runs.close(call, "moxin", process_identity()) == []


def test_a_deployments_run_that_crashed_is_started_again_by_itself(server: Settings) -> None:
    """With what it was given, and one more on the count. Not one that was cancelled or forced, nor one that was started
    so often before: these end first, and the automation takes events in order.
    """
    from prefect.utilities.callables import parameter_schema

    from flows.flow import moxin

    prefect.configure(server)
    call = functools.partial(prefect.call_api, server)
    flow = call("POST", "/flows/", {"name": "moxin"})
    schema = parameter_schema(moxin).model_dump_for_openapi()
    deployment = call(
        "POST",
        "/deployments/",
        {"name": "full", "flow_id": flow["id"], "parameter_openapi_schema": schema, "enforce_parameter_schema": True}
        | {"parameters": {"select": "full"}},
    )

    def ends(state: str, **parameters: object) -> None:
        run = call("POST", f"/deployments/{deployment['id']}/create_flow_run", {"parameters": parameters})
        call("POST", f"/flow_runs/{run['id']}/set_state", {"state": {"type": state}, "force": True})

    def waiting() -> list[dict]:
        query = {
            "flow_runs": {"state": {"type": {"any_": ["SCHEDULED"]}}, "deployment_id": {"any_": [deployment["id"]]}}
        }
        return [run["parameters"] for run in call("POST", "/flow_runs/filter", query)]

    ends("CANCELLED", **GIVEN)
    ends("CRASHED", **GIVEN, force=True)
    ends("CRASHED", **GIVEN, restarts=lost_runs.RESTARTS)
    ends("CRASHED", **GIVEN, restarts=2)
    ends("CRASHED")
    wait_for(lambda: len(waiting()) >= 2, "no run was started again")
    again = {**GIVEN, "restarts": 3}, {"select": "full", "restarts": 1}
    assert sorted(waiting(), key=lambda parameters: -parameters["restarts"]) == list(again)
