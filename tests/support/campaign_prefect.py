"""A Prefect server and a worker of a test's own that may be killed, and runs of a deployment by them."""

from __future__ import annotations

import dataclasses
import functools
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from flows import lost_runs
from flows.local_services import lifecycle, prefect, processes, state_file
from flows.settings import Settings
from stages.core.errors import InfraError
from stages.core.messages import StoreAddress
from tests.support.limits import HANG
from tests.support.paths import ROOT

MARK = "MOXIN_CAMPAIGN"
"""Set in the process of the flow alone: the worker reads `campaign_flow`, too, for what it does after a crash."""
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "CRASHED")


class OwnPrefect:
    """They are started again as `moxin up` starts them."""

    def __init__(self, folder: Path, store: Settings) -> None:
        self.folder, self.state = folder, dict[str, Any]()
        self.keys = state_file.credentials(folder)
        self._start("prefect")
        self.settings = dataclasses.replace(
            store,
            home=folder,
            prefect_api_url=f"http://127.0.0.1:{self.state['prefect_port']}/api",
            external_prefect=False,
            prefect_auth=self.keys["prefect_auth"],
        )
        self._ready()
        self.call = functools.partial(prefect.call_api, self.settings)
        prefect.configure(self.settings)
        named = {"automations": {"name": {"any_": [prefect.restart_automation()["name"]]}}}
        (automation,) = self.call("POST", "/automations/filter", named)
        self.call("PATCH", f"/automations/{automation['id']}", {"enabled": False})  # the campaign starts the next run
        self._start("worker")
        self._deployment = self.call("POST", "/deployments/", self._declared())["id"]

    def _declared(self) -> dict[str, Any]:
        step = {"prefect.deployments.steps.set_working_directory": {"directory": str(ROOT)}}
        return {
            "name": "campaign", "flow_id": self.call("POST", "/flows/", {"name": "moxin"})["id"],
            "entrypoint": "tests/support/campaign_flow.py:moxin", "path": str(ROOT), "pull_steps": [step],
            "work_pool_name": prefect.POOL,
        }  # fmt: skip

    def _start(self, name: str) -> None:
        if name == "prefect":
            launch = prefect.server_command(self.folder, self.state, self.keys)
        else:
            launch = prefect.worker_command(self.settings)
            launch[1]["PYTHONPATH"] = str(ROOT)
        lifecycle.start(self.folder, self.state, name, launch, lambda line: None)

    def _ready(self) -> None:
        lifecycle.wait(self.folder, self.state, "prefect", lambda: prefect.ready(self.settings))

    def pid(self, name: str) -> int:
        """Of "prefect" or "worker"."""
        return int(str(self.state[name]).partition(":")[0])

    def revive(self) -> None:
        """As `moxin up` does it at the next command."""
        for name in ("prefect", "worker"):
            if not processes.alive(self.state, name):
                self._start(name)
                self._ready()
        lost_runs.close(self.call, prefect.POOL, self.state["worker"])

    def begin(self, home: Path, address: StoreAddress, credentials: dict[str, str], overrides: list[str]) -> FlowRun:
        """A run of the deployment, over a home and a store of its own."""
        env = credentials | {
            "MOXIN_HOME": str(home), "MOXIN_S3_ENDPOINT": str(address.endpoint), "MOXIN_S3_BUCKET": address.bucket,
            "MOXIN_S3_PREFIX": address.prefix, MARK: str(home), "PYTHONPATH": str(ROOT),
        }  # fmt: skip
        body = {"parameters": {"set": overrides}, "job_variables": {"env": env}, "state": {"type": "SCHEDULED"}}
        run = self.call("POST", f"/deployments/{self._deployment}/create_flow_run", body)
        return FlowRun(self, run["id"], home)

    def open_runs(self) -> list[str]:
        """Runs that Prefect shows as if somebody worked on them."""
        query = {"flow_runs": {"state": {"type": {"any_": list(lost_runs.OPEN)}}}}
        return [f"{run['name']} is {run['state']['name']}" for run in self.call("POST", "/flow_runs/filter", query)]


class FlowRun:
    """One run of the deployment."""

    def __init__(self, services: OwnPrefect, id: str, home: Path) -> None:
        self._services, self._id, self._home = services, id, home
        self._pid, self._asked = 0, 0.0
        self.returncode: int | None = None

    @property
    def pid(self) -> int:
        """The flow's process; 0: there is none yet."""
        if not self._pid:
            for one in psutil.process_iter():
                with suppress(psutil.Error):
                    if one.environ().get(MARK) == str(self._home):  # what it starts has not
                        self._pid = one.pid
                        break
        return self._pid

    def poll(self) -> int | None:
        """As of a process: None while it goes on, 0 when it has ended well."""
        if self.returncode is None and time.monotonic() - self._asked > 1.0:
            self._asked = time.monotonic()
            with suppress(InfraError):  # the server is away
                state = self._services.call("GET", f"/flow_runs/{self._id}")["state"]["type"]
                self.returncode = None if state not in ENDED else int(state != "COMPLETED")
        return self.returncode

    def wait(self) -> int:
        """Until it has ended. Where its process is gone, and the server shows it as running, `moxin up` closes it."""
        deadline = time.monotonic() + HANG
        while self.poll() is None:
            assert time.monotonic() < deadline, "the run does not end"
            if self._pid and not psutil.pid_exists(self._pid):
                self._services.revive()
            time.sleep(0.5)
        assert self.returncode is not None
        return self.returncode


@contextmanager
def own_prefect(folder: Path, store: Settings) -> Iterator[OwnPrefect]:
    """A server and a worker for as long as the block lasts."""
    environment = dict(os.environ)
    services = OwnPrefect(folder, store)
    try:
        yield services
    finally:
        for name in ("worker", "prefect"):
            processes.stop(services.state, name, 5.0)
        os.environ.clear()
        os.environ.update(environment)
