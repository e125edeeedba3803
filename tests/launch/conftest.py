"""Real engines: a Docker engine and a Slurm cluster of this machine, started by infra/dev where they are not there yet.

These are the only tests that may be skipped, and only where an engine cannot be had; the reason is printed.
"""

from __future__ import annotations

import os
import subprocess
import uuid
from collections.abc import Iterator
from typing import Any

import pytest

from benchmarks import launchers
from flows import environments, images
from flows.environments import ROOT, Image
from flows.launch.base import Job
from flows.launch.docker import DockerLauncher
from flows.settings import Settings, home
from stages.core.contracts import InfraError, Resources
from stages.core.ledger import Ledger
from tests.support import request_of

PROBES = ROOT / "tests" / "probes"


def engine_or_skip(script: str) -> None:
    """Run a script of infra/dev; skip, and say why, where it cannot give an engine."""
    if os.environ.get("MOXIN_ENGINES") == "none":
        pytest.skip(f"{script}: MOXIN_ENGINES=none")
    if os.geteuid() != 0:
        pytest.skip(f"{script} needs root to start an engine, and none is running")
    done = subprocess.run([str(ROOT / "infra" / "dev" / script)], capture_output=True, text=True, timeout=400, check=False)
    if done.returncode:
        reason = " | ".join((done.stderr or done.stdout).strip().splitlines()[-3:])
        print(f"SKIPPED: {script} gave no engine: {reason}")
        pytest.skip(f"{script} gave no engine: {reason}")


@pytest.fixture(scope="session")
def docker_engine() -> Any:
    """The engine's client."""
    try:
        return images.engine()
    except InfraError:
        engine_or_skip("docker.sh")
        return images.engine()


@pytest.fixture(scope="session")
def built(docker_engine: Any) -> Any:
    """Build the images of some stages, once a session each."""

    def build(*stages: str) -> list[Image]:
        from flows import derived

        chosen = images.select(derived.stages(), stages)
        images.build(docker_engine, chosen, home() / "wheels", print)
        return chosen

    return build


@pytest.fixture(scope="session")
def probe_image(docker_engine: Any, built: Any) -> Iterator[Image]:
    """An image of the probe stages, in the real environment "data"."""
    (real,) = built("collect")
    reference = f"moxin/probe:{uuid.uuid4().hex[:12]}"
    yield launchers.probe_image(docker_engine, real.environment, PROBES, reference, {"moxin.test": "1"})
    docker_engine.images.remove(reference, force=True)


@pytest.fixture
def docker_launcher(settings: Settings, probe_image: Image, docker_engine: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[DockerLauncher]:
    """A launcher whose stages are the probes; nothing of it may be left afterwards."""
    monkeypatch.setattr(environments, "stage_image", lambda stage, env: probe_image)
    launcher = DockerLauncher(settings)
    yield launcher
    for relay in launcher._relays.values():
        relay.close()
    left = containers(docker_engine, launcher)
    for container in left:
        container.remove(force=True, v=True)
    assert left == [], "a container was left behind"


def containers(client: Any, launcher: DockerLauncher, all: bool = True) -> list[Any]:
    """The containers of a launcher's installation."""
    label = f"moxin.home={launcher._marks()['moxin.home']}"
    return client.containers.list(all=all, filters={"label": label}, ignore_removed=True)


def job_of(ledger: Ledger, number: int = 0, resources: Resources | None = None, **config: Any) -> Job:
    """A job of `probe_source`."""
    limits = resources or Resources(cpus=1, memory_gib=0.25)
    return Job(request_of(ledger.store.address, ledger, f"{number:064x}", **config), limits, "data")


@pytest.fixture(scope="session")
def slurm_cluster() -> None:
    """The two virtual nodes of infra/dev/slurm.sh."""
    engine_or_skip("slurm.sh")
    os.environ["SLURM_CONF"] = "/var/lib/moxin-slurm/slurm.conf"
