"""Jobs and containers of the tests' Docker launcher."""

from __future__ import annotations

from typing import Any

from flows.launch.base import Job
from flows.launch.docker import DockerLauncher
from stages.core.ledger import Ledger
from stages.core.resources import Resources
from tests.support.probe_pipeline import request_of


def containers(client: Any, launcher: DockerLauncher, all: bool = True) -> list[Any]:
    """The containers of a launcher's installation."""
    label = f"moxin.home={launcher._labels()['moxin.home']}"
    return client.containers.list(all=all, filters={"label": label}, ignore_removed=True)


def job_of(ledger: Ledger, number: int = 0, resources: Resources | None = None, **config: Any) -> Job:
    """A job of `probe_source`."""
    limits = resources or Resources(cpus=1, memory_gib=0.25)
    return Job(request_of(ledger.store.address, ledger, f"{number:064x}", **config), limits, "data")
