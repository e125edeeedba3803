"""Which runs nobody works on any more: never one that its worker has just claimed, nor one that ends while it is looked
at.
"""

from __future__ import annotations

import os
import socket
import time
from datetime import UTC, datetime
from typing import Any

import pytest

from flows import lost_runs
from flows.local_services.prefect import POOL
from stages.core.processes import process_identity

DEAD = 2**22 + 1
"""No process has this number (Linux's limit is 2^22)."""


def run_of(kind: str, pid: int | None, age: float = 0.0, host: str = "", pool: str = POOL) -> dict[str, Any]:
    """A flow run as the Prefect API shows it. age: seconds since its state was set. host: how its process is written
    down, without (Prefect 3.8) or after the machine's name.
    """
    since = datetime.fromtimestamp(time.time() - age, UTC).isoformat()
    mark = f"{host}{pid}" if pid else None
    return {
        "id": "1",
        "name": "x",
        "tags": [],
        "work_pool_name": pool,
        "infrastructure_pid": mark,
        "state": {"type": kind, "name": kind, "timestamp": since},
    }


@pytest.mark.parametrize(
    ("kind", "pid", "age", "why"),
    [
        ("RUNNING", DEAD, 5, "its process is gone"),
        (
            "PENDING",
            DEAD,
            -5,
            None,
        ),  # retried: the worker, which lives, has claimed it, and its new process has no number yet
        ("PENDING", DEAD, 10**6, "its process is gone"),
        ("PENDING", None, -5, None),
        ("PENDING", None, 10**6, "its worker ended before the run began"),
        ("RUNNING", None, 10**6, None),
        ("CANCELLING", None, 10**6, "its worker ended before the run began"),
        ("CANCELLING", DEAD, -5, "its process is gone"),
    ],
)
@pytest.mark.parametrize("host", ["", f"{socket.gethostname()}:"])
def test_whether_a_run_is_lost(kind: str, pid: int | None, age: float, why: str | None, host: str) -> None:
    assert lost_runs.lost(run_of(kind, pid, age, host), POOL, process_identity(os.getpid())) == why


@pytest.mark.parametrize(("host", "pool"), [("another-machine:", POOL), ("", "another-pool")])
def test_a_process_of_another_machine_may_live(host: str, pool: str) -> None:
    run = run_of("RUNNING", DEAD, 10**6, host, pool)
    assert lost_runs.lost(run, POOL, process_identity(os.getpid())) is None


@pytest.mark.parametrize(("then", "closed"), [("COMPLETED", []), ("RUNNING", ["CRASHED"]), (None, [])])
def test_a_run_that_ended_since_it_was_listed_keeps_its_end(then: str | None, closed: list[str]) -> None:
    told = []

    def call(method: str, path: str, body: Any) -> Any:
        if path.endswith("/set_state"):
            told.append(body["state"]["type"])
            return None
        if "id" in body["flow_runs"]:
            return [run_of(then, DEAD)] if then else []
        return [run_of("RUNNING", DEAD)]

    lines = lost_runs.close(call, POOL, process_identity(os.getpid()))
    assert (told, len(lines)) == (closed, len(closed))
