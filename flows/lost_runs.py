"""Flow runs that nobody works on any more, and that Prefect still shows as pending, running or cancelling: found and
closed.

Prefect's own automation ends runs whose heartbeats stop. It never sees one that was claimed and did not come to its
first heartbeat, because its worker or its terminal was killed in between.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

import psutil

from stages.core.keys import sha256
from stages.core.processes import host_identity, process_alive, process_identity

TAG = "moxin-process:"
"""Tag of a run that was started in a terminal: the machine (a digest) and the process."""

RESTARTS = 10
"""How often a deployment's run that crashed is started again by itself, one after the other."""
OPEN = ("PENDING", "RUNNING", "CANCELLING")
"""Types of states that somebody has to work on."""

Call = Callable[[str, str, Any], Any]
"""A call of the Prefect API: method, path, body."""


def tag() -> str:
    """The tag of runs of this process."""
    return f"{TAG}{_host()}:{process_identity()}"


def close(call: Call, pool: str, worker: str) -> list[str]:
    """Close the runs that are lost; one line for each.

    pool: the work pool of the embedded worker. worker: the identity of its process, which works on this pool alone.
    """
    query = {"flow_runs": {"state": {"type": {"any_": list(OPEN)}}}, "limit": 200}
    lines: list[str] = []
    for run in call("POST", "/flow_runs/filter", query) or ():
        if lost(run, pool, worker) is None:
            continue
        again = call(
            "POST", "/flow_runs/filter", {"flow_runs": {"id": {"any_": [run["id"]]}}}
        )  # it may have ended by itself since it was listed
        if not again or again[0]["state"]["type"] not in OPEN or (why := lost(again[0], pool, worker)) is None:
            continue
        run = again[0]
        cancelled = run["state"]["type"] == "CANCELLING"
        state = {"type": "CANCELLED", "name": "Cancelled"} if cancelled else {"type": "CRASHED", "name": "Crashed"}
        call("POST", f"/flow_runs/{run['id']}/set_state", {"state": state | {"message": why}, "force": True})
        lines.append(f"run {run['name']} ({run['state']['name'].lower()}) is closed as {state['name'].lower()}: {why}")
    return lines


def lost(run: Mapping[str, Any], pool: str, worker: str) -> str | None:
    """Why nobody works on a run any more; None when somebody may."""
    marks = [tag.removeprefix(TAG).partition(":") for tag in run.get("tags") or () if tag.startswith(TAG)]
    for host, _, process in marks:
        if host == _host():
            return None if process_alive(process) else "the terminal that it ran in is gone"
    ours = run.get("work_pool_name") == pool
    host, _, pid = str(run.get("infrastructure_pid") or "").rpartition(":")
    # a worker of Prefect 3.8 writes the number alone; those before it, the machine's name as well
    here = pid.isdigit() and (host == socket.gethostname() or (ours and not host))
    if here and _is_prefect(int(pid)):
        return None
    kind, since = (
        run["state"]["type"],
        datetime.fromisoformat(str(run["state"]["timestamp"]).replace("Z", "+00:00")).timestamp(),
    )
    before = ours and since < _started(worker)
    if here:  # a run that is retried has its last attempt's process until the worker has started another
        return None if kind == "PENDING" and not before else "its process is gone"
    return "its worker ended before the run began" if before and not host and kind != "RUNNING" else None


def _host() -> str:
    return sha256(host_identity().encode())[:12]


def _is_prefect(pid: int) -> bool:
    """Whether a process is one of Prefect's: a number alone may have been given to another since."""
    try:
        return any("prefect" in word for word in psutil.Process(pid).cmdline())
    except psutil.Error:
        return False


def _started(identity: str) -> float:
    """When a process of this machine began, seconds since 1970; 0 when that cannot be said."""
    try:
        return psutil.boot_time() + int(identity.partition(":")[2]) / os.sysconf("SC_CLK_TCK")
    except (psutil.Error, OSError, ValueError):
        return 0.0
