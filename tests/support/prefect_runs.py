"""A real Prefect server of a test's own, and runs of the small pipeline of probe stages as `moxin run` makes them."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from flows.local_services import lifecycle, prefect, processes, state_file
from flows.settings import Settings
from tests.support.limits import HANG
from tests.support.paths import ROOT

PROGRAM = """
import importlib, json, sys
from pathlib import Path
import tests.conftest
from flows.cli import running
running.configure_prefect()
from flows import console, flow, profiles
from flows.settings import Settings
from tests.support import probe_pipeline
folder, parameters, overrides = Path(sys.argv[1]), json.loads(sys.argv[2]), sys.argv[3:]
flow.PIPELINE = probe_pipeline.small_pipeline()
load = profiles.load
probe_pipeline.profile_of(flow.PIPELINE, folder)
profiles.load = lambda name, pipeline, overrides=(): load("test", pipeline, overrides, folder)
class Display(console.RunDisplay):
    def event(self, node, event):
        print(json.dumps([node, dict(event)]), flush=True)
console.RunDisplay = Display
sys.executable = probe_pipeline.python_with_probes(folder)
try:
    begin = importlib.import_module("flows.sweep").sweep if "name" in parameters else flow.moxin
    start = lambda: begin(profile=flow.ProfileName("tiny"), set=overrides, **parameters, return_state=True)
    state, outcomes, url, known = running.run_flow(start, Settings.load(), 6, True)
    end = {"type": state.type.value, "message": state.message, "url": url, "server_knows": known}
    print(json.dumps(["end", end]), flush=True)
    running.end(0, known)
except KeyboardInterrupt:
    print(json.dumps(["end", {"type": "CANCELLED"}]), flush=True)
"""


@contextmanager
def prefect_server(folder: Path, store: Settings) -> Iterator[Settings]:
    """A Prefect server in a folder, with a password; the settings of an installation that uses it and a store."""
    state: dict[str, Any] = {}
    keys = state_file.credentials(folder)
    lifecycle.start(folder, state, "prefect", prefect.server_command(folder, state, keys), lambda line: None)
    settings = dataclasses.replace(
        store,
        home=folder,
        prefect_api_url=f"http://127.0.0.1:{state['prefect_port']}/api",
        external_prefect=True,
        prefect_auth=keys["prefect_auth"],
    )
    try:
        lifecycle.wait(folder, state, "prefect", lambda: prefect.ready(settings))
        yield settings
    finally:
        processes.stop(state, "prefect", 5.0)


class Run:
    """A run in a process of its own. `events` are (node, event) in order; the last one is ("end", its final state)."""

    def __init__(
        self,
        settings: Settings,
        folder: Path,
        prefix: str,
        *overrides: str,
        api_port: int | None = None,
        **parameters: object,
    ) -> None:
        """parameters: of the flow, beside the overrides; with a `name` it is a sweep."""
        api = settings.prefect_api_url if api_port is None else f"http://127.0.0.1:{api_port}/api"
        clean = {
            name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "AWS_", "MOXIN_"))
        }
        env = clean | settings.environment() | {
            "PREFECT_API_URL": api,
            "PREFECT_HOME": str(folder / "prefect"),
            "MOXIN_HOME": str(folder),
            "MOXIN_S3_ENDPOINT": str(settings.store.endpoint),
            "MOXIN_S3_BUCKET": settings.store.bucket,
            "MOXIN_S3_PREFIX": prefix,
        }  # fmt: skip
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(folder), json.dumps(parameters), *overrides],
            cwd=ROOT, env=env, text=True, stdout=subprocess.PIPE,
            stderr=open(folder / "stderr", "w"), start_new_session=True,  # noqa: SIM115
        )  # fmt: skip
        self.folder = folder
        self.events: list[tuple[str, dict[str, Any]]] = []

    def until(self, node: str, state: str) -> None:
        """Read events until a node has come into a state."""
        assert self.process.stdout
        for line in self.process.stdout:
            if line.startswith("["):
                self.events.append(tuple(json.loads(line)))
                if self.events[-1][0] == node and self.events[-1][1].get("state") == state:
                    return
        errors = (self.folder / "stderr").read_text()[-3000:]
        raise AssertionError(f"the run ended before {node} was {state}: {self.events[-3:]}\n{errors}")

    def end(self) -> dict[str, Any]:
        """Wait for the end of the process; the run's final state, as its terminal has it."""
        assert self.process.stdout
        for line in self.process.stdout:
            if line.startswith("["):
                self.events.append(tuple(json.loads(line)))
        self.process.wait(HANG)
        assert self.events, "it said nothing"
        assert self.events[-1][0] == "end", self.events[-3:]
        return self.events[-1][1]

    def warnings(self) -> list[str]:
        """Log lines of level warning."""
        return [event["message"] for _, event in self.events if event.get("level") == "warning"]


def task_states(settings: Settings, run_id: str) -> dict[str, str]:
    """The names of the states of a flow run's tasks, as the server has them."""
    body = {"task_runs": {"flow_run_id": {"any_": [run_id]}}}
    rows = prefect.call_api(settings, "POST", "/task_runs/filter", body)
    return {row["name"]: row["state"]["name"] for row in rows}
