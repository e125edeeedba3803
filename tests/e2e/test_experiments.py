"""Experiments as a person starts them: one begins with weights of the hub, a sweep is a run of its deployment."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support import outside_model
from tests.support.installation import Installation, wait_for
from tests.support.limits import DAG
from tests.support.loopback_hub import Hub, Repository

pytestmark = pytest.mark.e2e


def test_a_run_begins_with_a_model_of_the_hub(
    installation: Installation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = outside_model.write(tmp_path / "base")
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    adopt = ("--experiment", "from-hub", "--select", "pretrain_3", "--adopt", "pretrain_3=hf://owner/base@main")
    with Hub({"owner/base": Repository("c" * 40, files)}) as hub:
        hub.enter(monkeypatch, tmp_path / "hf")
        found = installation.json("run", *adopt)
        assert found["ok"], found["message"]
        assert hub.strange == []
    assert [(row["name"], row["state"]) for row in found["nodes"]] == [("pretrain_3", "cached")]
    shown = installation.json("show", "pretrain_3", "--experiment", "from-hub")
    assert shown["config"]["place"] == f"hf://owner/base@{'c' * 40}"
    (row,) = installation.json("plan", "--select", "pretrain_3", "--experiment", "from-hub")["nodes"]
    assert (row["state"], row["key"]) == ("cached", shown["key"])
    error = installation.moxin("run", "--select", "pretrain_3", "--adopt", "pretrain_3", status=2)
    assert error.startswith("error: --adopt pretrain_3: write NODE=PLACE")


def test_a_sweep_is_a_run_of_its_deployment(installation: Installation) -> None:
    deployment = installation.prefect("GET", "/deployments/name/moxin/sweep")
    given = {"name": "few", "select": "problems", "points": ["problems.rows=40", "problems.rows=60"]}
    body = {"parameters": given, "state": {"type": "SCHEDULED"}}
    run_id = installation.prefect("POST", f"/deployments/{deployment['id']}/create_flow_run", body)["id"]

    def ended() -> object:
        state = installation.prefect("GET", f"/flow_runs/{run_id}")["state"]
        return state if state["type"] in ("COMPLETED", "FAILED", "CRASHED") else None

    state = wait_for(ended, "the sweep did not end", DAG)
    assert (state["type"], state["message"]) == ("COMPLETED", "2 points: compare them with 'moxin compare'")
    rows = {row["name"]: row for row in installation.json("experiments")["experiments"]}
    assert [rows[f"few.{count}"]["results"] for count in (40, 60)] == [1, 1]
    shown = installation.json("show", "problems", "--experiment", "few.60")
    assert shown["config"]["rows"] == 60
    assert installation.prefect("GET", f"/flow_runs/{run_id}")["name"] == "sweep few tiny problems"
