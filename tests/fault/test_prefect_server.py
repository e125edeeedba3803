"""A Prefect server that hangs, answers 503 or goes away in the middle of a run, and one that is under load: a real
server, and a gate before it.
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from flows.local_services import prefect
from flows.settings import Settings
from stages.core.store import Store
from tests.support.prefect_runs import Run, prefect_server
from tests.support.tcp_gate import gate_before

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server(store_server: Settings, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    with prefect_server(tmp_path_factory.mktemp("prefect"), store_server) as settings:
        yield settings


@pytest.mark.parametrize("mode", ["hang", "503", "gone"])
def test_a_run_ends_well_without_its_prefect_server(server: Settings, store: Store, tmp_path: Path, mode: str) -> None:
    """The stages that were to come run, results are published, and what the server was not told is said once. Each call
    is tried twice for at most 35 s (flows/cli/running.py), not six times for 60 s.
    """
    with gate_before(int(server.prefect_api_url.split(":")[2].partition("/")[0])) as gate:
        run = Run(
            server, tmp_path, store.address.prefix, "train_1.steps=4", "train_1.step_seconds=0.2", api_port=gate.port
        )
        run.until("vocabulary", "done")
        gate.close(mode)
        run.until("train_2", "done")
        done = time.monotonic()
        end = run.end()
        print(f"{mode}: {time.monotonic() - done:.1f} s from the last node's end to the program's")
        assert run.process.returncode == 0, (tmp_path / "stderr").read_text()[-2000:]
    assert (end["type"], end["server_knows"]) == ("COMPLETED", False), end
    assert end["message"] == "6 nodes ran, 0 answered from the ledger"
    assert any("the Prefect server could not be told how the run ended" in line for line in run.warnings())
    assert "Traceback" not in (tmp_path / "stderr").read_text()


def test_a_server_under_load_loses_no_state(server: Settings) -> None:
    """SQLite is locked now and then, and the server then answers 503: our calls come again, and every state arrives."""
    flow_id = prefect.call_api(server, "POST", "/flows/", {"name": "load"})["id"]

    def one_run(number: int) -> str:
        body = {"flow_id": flow_id, "name": f"run-{number}", "state": {"type": "PENDING"}}
        run_id = prefect.call_api(server, "POST", "/flow_runs/", body)["id"]
        for kind in ("RUNNING", "COMPLETED"):
            answer = prefect.call_api(server, "POST", f"/flow_runs/{run_id}/set_state", {"state": {"type": kind}})
            assert answer["status"] == "ACCEPT", answer
        return run_id

    with ThreadPoolExecutor(8) as pool:
        runs = list(pool.map(one_run, range(64)))
    for run_id in runs:
        states = prefect.call_api(server, "GET", f"/flow_run_states/?flow_run_id={run_id}")
        assert sorted(state["type"] for state in states) == ["COMPLETED", "PENDING", "RUNNING"]
    body = {"flows": {"id": {"any_": [flow_id]}}, "flow_runs": {"state": {"type": {"any_": ["COMPLETED"]}}}}
    assert prefect.call_api(server, "POST", "/flow_runs/count", body) == len(runs) == len(set(runs))
