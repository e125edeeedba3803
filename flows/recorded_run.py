"""A flow run that the Prefect server is told of over its API, as Prefect's client would tell of it.

The client's imports take 1.5 s, more than all of a run with nothing to do. Its tasks are told of by the events that it
sends, all in one request; everything is as Prefect 3.8.8 has it (`spoken_by`).
"""

from __future__ import annotations

import importlib.metadata
import json
import logging
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

Call = Callable[[str, str, Any], Any]
"""A call of the Prefect API: method, path, body. Raises InfraError."""
Json = dict[str, Any]

FLOW = "moxin"
"""The flow's name, and what the keys of its tasks begin with."""


def spoken_by(call: Call) -> bool:
    """Whether the server is of the version whose client is installed here: of another one the events may differ."""
    return call("GET", "/admin/version", None) == importlib.metadata.version("prefect")


class RecordedRun:
    """One run in the state Running, until `end`."""

    def __init__(self, call: Call, name: str, parameters: Mapping[str, Any], tags: Sequence[str]) -> None:
        """name: of the run. Raises InfraError, as all methods do."""
        self._call, self._logs = call, list[Json]()
        flow_id = call("POST", "/flows/", {"name": FLOW})["id"]
        run = {"flow_id": flow_id, "name": name, "parameters": dict(parameters), "tags": list(tags)}
        self.id = str(call("POST", "/flow_runs/", run | {"state": {"type": "RUNNING", "name": "Running"}})["id"])
        self._tasks: dict[str, str] = {}
        self._events: list[Json] = []

    def log(self, message: str, level: int = logging.INFO, task: str | None = None) -> None:
        """A line of the run's log, or of a task's; sent with the others."""
        owner = "flow_runs" if task is None else "task_runs"
        row = {"name": f"prefect.{owner}", "level": level, "message": message, "timestamp": _iso(time.time())}
        self._logs.append(row | {"flow_run_id": self.id} | ({"task_run_id": self._tasks[task]} if task else {}))

    def task(self, name: str, parents: Sequence[str], state: str, message: str, began: float, ended: float) -> None:
        """A task that ended well, after those that it waited for; sent with the others.

        parents: names of tasks, all told of before; state: what its end is called; began, ended: seconds since 1970.
        """
        task = self._tasks[name] = str(uuid.uuid4())
        event, at = str(uuid.uuid4()), _iso(ended)
        inputs = [{"input_type": "task_run", "id": self._tasks[parent]} for parent in parents]
        self._events.append(
            {
                "id": event, "occurred": at, "event": f"prefect.task-run.{state}",
                "resource": {
                    "prefect.resource.id": f"prefect.task-run.{task}", "prefect.resource.name": name,
                    "prefect.run-count": "1", "prefect.state-message": message, "prefect.state-name": state,
                    "prefect.state-timestamp": at, "prefect.state-type": "COMPLETED", "prefect.orchestration": "client",
                },
                "related": [
                    {"prefect.resource.id": f"prefect.flow-run.{self.id}", "prefect.resource.role": "flow-run"}
                ],
                "payload": {
                    "intended": {"from": "RUNNING", "to": "COMPLETED"}, "initial_state": None,
                    "validated_state": {"type": "COMPLETED", "name": state, "message": message, "state_details": {}},
                    "task_run": {
                        "name": name, "task_key": FLOW, "dynamic_key": name, "tags": [], "run_count": 1,
                        "flow_run_run_count": 1, "task_inputs": {"wait_for": inputs} if inputs else {},
                        "expected_start_time": _iso(began), "start_time": _iso(began), "end_time": at,
                        "total_run_time": ended - began,
                    },
                },
            }
        )  # fmt: skip

    def table(self, key: str, rows: Sequence[Mapping[str, str]], about: str) -> None:
        """A table on the run's page."""
        self._artifact("table", key, json.dumps(list(rows)), about)

    def markdown(self, key: str, text: str, about: str) -> None:
        """A text on the run's page."""
        self._artifact("markdown", key, text, about)

    def _artifact(self, kind: str, key: str, data: str, about: str) -> None:
        body = {"type": kind, "key": key, "description": about, "data": data, "flow_run_id": self.id}
        self._call("POST", "/artifacts/", body)

    def send(self) -> None:
        """Send what was told of tasks and logs so far."""
        for path, rows in (("/events", self._events), ("/logs/", self._logs)):
            if rows:
                self._call("POST", path, rows)
                rows.clear()

    def end(self, kind: str, message: str) -> None:
        """End the run. kind: of Prefect's state, such as COMPLETED."""
        state = {"type": kind, "name": kind.capitalize(), "message": message}
        self._call("POST", f"/flow_runs/{self.id}/set_state", {"state": state})


def _iso(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat()
