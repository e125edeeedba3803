"""Real services: this machine's Docker daemon and Slurm cluster, started by infra/dev where they do not run yet.

These are the only tests that may be skipped, and only where one cannot be started; the reason is printed.
"""

from __future__ import annotations

import fcntl
import os
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks import launchers
from flows import environments, images
from flows.environments import Image
from flows.launch.docker import DockerLauncher
from flows.settings import Settings, home
from stages.core.errors import InfraError
from stages.core.files import ROOT
from tests.support.docker_containers import containers
from tests.support.limits import HANG

PROBES = ROOT / "tests" / "probes"


def start_or_skip(script: str) -> None:
    """Run a script of infra/dev; skip, and say why, where it cannot start its service."""
    if os.environ.get("MOXIN_ENGINES") == "none":
        pytest.skip(f"{script}: MOXIN_ENGINES=none")
    if os.geteuid() != 0:
        pytest.skip(f"{script} needs root to start its service, and none runs")
    done = subprocess.run(
        [str(ROOT / "infra" / "dev" / script)], capture_output=True, text=True, timeout=HANG, check=False
    )
    if done.returncode:
        reason = " | ".join((done.stderr or done.stdout).strip().splitlines()[-3:])
        print(f"SKIPPED: {script} started no service: {reason}")
        pytest.skip(f"{script} started no service: {reason}")


@pytest.fixture(scope="module", autouse=True)
def engine(request: pytest.FixtureRequest) -> Iterator[None]:
    """`test_docker.py` restarts the engine: no other file, in another process, uses it meanwhile."""
    alone = request.module.__name__.endswith("test_docker")
    with open(Path(tempfile.gettempdir()) / "moxin-tests-engine.lock", "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        yield


@pytest.fixture(scope="session")
def docker_client() -> Any:
    """The Docker client."""
    try:
        return images.docker_client()
    except InfraError:
        start_or_skip("docker.sh")
        return images.docker_client()


@pytest.fixture(scope="session")
def built(docker_client: Any) -> Any:
    """Build the images of some stages, once a session each."""

    def build(*stages: str) -> list[Image]:
        from flows import generated_files

        chosen = images.select(generated_files.stages(), stages)
        images.build(docker_client, chosen, home() / "wheels", print)
        return chosen

    return build


@pytest.fixture(scope="session")
def probe_image(docker_client: Any, built: Any) -> Iterator[Image]:
    """An image of the probe stages, in the real environment "data"."""
    (real,) = built("collect")
    reference = f"moxin/probe:{uuid.uuid4().hex[:12]}"
    yield launchers.probe_image(docker_client, real.environment, PROBES, reference, {"moxin.test": "1"})
    docker_client.images.remove(reference, force=True)


@pytest.fixture
def docker_launcher(
    settings: Settings, probe_image: Image, docker_client: Any, monkeypatch: pytest.MonkeyPatch
) -> Iterator[DockerLauncher]:
    """A launcher whose stages are the probes; nothing of it may be left afterwards."""
    monkeypatch.setattr(environments, "stage_image", lambda stage, env: probe_image)
    launcher = DockerLauncher(settings)
    yield launcher
    for relay in launcher._relays.values():
        relay.close()
    left = containers(docker_client, launcher)
    for container in left:
        container.remove(force=True, v=True)
    assert left == [], "a container was left behind"


@pytest.fixture(scope="session")
def slurm_cluster() -> None:
    """The two virtual nodes of infra/dev/slurm.sh."""
    start_or_skip("slurm.sh")
    os.environ["SLURM_CONF"] = "/var/lib/moxin-slurm/slurm.conf"
