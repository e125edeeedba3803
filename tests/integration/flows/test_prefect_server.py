"""Prefect's own server behind the guard, in a process of its own: it raises what it answers with 503, and no client
hears of it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.support.limits import HANG
from tests.support.paths import ROOT

PROGRAM = """
import sqlite3
from prefect.server import models
from prefect.server.api import server
from sqlalchemy.exc import OperationalError
from starlette.testclient import TestClient
from flows.prefect_server import guarding

make, tries = models.flow_runs.create_flow_run, []

async def locked(*arguments, **options):
    tries.append(1)
    if len(tries) <= 2:
        raise OperationalError("INSERT", {}, sqlite3.OperationalError("database is locked"))
    return await make(*arguments, **options)

models.flow_runs.create_flow_run = locked
with TestClient(guarding(server.create_app)(ephemeral=True)) as client:
    flow = client.post("/api/flows/", json={"name": "x"}).json()["id"]
    answer = client.post("/api/flow_runs/", json={"flow_id": flow, "state": {"type": "PENDING"}})
    runs = client.post("/api/flow_runs/filter", json={}).json()
    print(answer.status_code, len(tries), len(runs))
"""


def test_a_run_is_made_once_though_its_transaction_was_refused_twice(tmp_path: Path) -> None:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    environment = kept | {
        "PREFECT_HOME": str(tmp_path),
        "PYTHONPATH": str(ROOT),
        "PREFECT_SERVER_EPHEMERAL_ENABLED": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, timeout=HANG, check=False
    )
    assert done.stdout.split() == ["201", "3", "1"], done.stderr[-2000:]
