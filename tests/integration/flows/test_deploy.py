"""Deployments on a real Prefect server: registered again, they replace those of older code."""

from __future__ import annotations

from pathlib import Path

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.settings import PREFECT_API_URL
from prefect.testing.utilities import prefect_test_harness

from flows import deploy
from flows.settings import Settings
from stages.core.files import ROOT
from stages.core.messages import StoreAddress


@pytest.mark.slow
def test_deployments_of_older_code_are_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The flow's file had another name once: a server that ran through the change must not start that file."""
    rows = deploy.deployments()[:3]
    monkeypatch.setattr(deploy, "deployments", lambda: rows)
    with prefect_test_harness(server_startup_timeout=600), get_client(sync_client=True) as client:
        settings = Settings(tmp_path, StoreAddress(bucket="b"), PREFECT_API_URL.value(), False, False)
        client.create_work_pool(WorkPoolCreate(name=deploy.POOL, type="process"))
        for entrypoint in ("flows/moxin.py:moxin", deploy.ENTRYPOINT):
            rows[:] = [row | {"entrypoint": entrypoint} for row in rows]
            deploy.register(settings)
            stored = client.read_deployments()
            assert {row.name: row.entrypoint for row in stored} == {row["name"]: entrypoint for row in rows}
        for one in stored:
            assert (one.work_pool_name, one.tags, one.path) == (deploy.POOL, ["moxin"], str(ROOT))
            assert one.parameters == {"select": one.name}
            assert one.parameter_openapi_schema is not None
            assert {"select", "profile", "set"} <= one.parameter_openapi_schema["properties"].keys()
