"""Stay behind a control plane that runs containers, and remove what it leaves when it dies.

    python -m flows.launch.reaper PROCESS       # the Docker launcher starts it, once in each control plane

The control plane holds this process's standard input. When it dies, however it dies, the stages see the same end, save
a checkpoint and stop; here they are waited for, cut off after their grace, and removed with their volumes, the
credentials in them included. After an orderly end there is nothing to remove. What even this one left, the next run's
`reap` removes.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

import docker
from docker.errors import APIError, DockerException, NotFound

from stages.core.files import ROOT
from stages.core.processes import host_identity, process_identity

DAEMON_SECONDS = 60.0
"""How long a daemon that restarts is waited for."""
LATE_SECONDS = 3.0
"""A request that the dead control plane sent last may reach the daemon after its first listing."""
_INHERITED = ("PATH", "HOME", "LANG", "DOCKER_HOST", "DOCKER_TLS_VERIFY", "DOCKER_CERT_PATH", "SSL_CERT_FILE")
_running: list[subprocess.Popen[bytes]] = []


def start_reaper() -> None:
    """Start this process's reaper, if it has none that runs. Nothing secret goes along."""
    if _running and _running[-1].poll() is None:
        return
    command = [sys.executable, "-m", "flows.launch.reaper", process_identity()]
    env = {name: os.environ[name] for name in _INHERITED if name in os.environ}
    devnull = subprocess.DEVNULL
    _running.append(
        subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=devnull, stderr=devnull, cwd=ROOT, env=env, start_new_session=True
        )
    )


def owner_labels() -> dict[str, str]:
    """Labels of what this process starts: a dead process can be told from a live one on its own machine alone."""
    return {"moxin.control": process_identity(), "moxin.host": host_identity()}


def remove_containers(client: Any, containers: Iterable[Mapping[str, Any]]) -> None:
    """Stop containers (rows of the daemon's listing), all at the same time, and remove them with their volumes."""
    rows = list(containers)

    def remove(row: Mapping[str, Any]) -> None:
        _remove(client, row["Id"], row["Names"][0].lstrip("/"))

    with ThreadPoolExecutor(max(1, len(rows))) as pool:
        list(pool.map(remove, rows))


def remove_volumes(client: Any, volumes: Iterable[Any]) -> None:
    """Remove volumes whose container was never made, or went without them."""
    for volume in volumes:
        with contextlib.suppress(DockerException, OSError):
            volume.remove()


def _remove(client: Any, container: str, volume: str) -> None:
    with contextlib.suppress(DockerException, OSError):
        # asked for, since a request that leaves it to the daemon is given up after two minutes
        stop(client, container, client.api.inspect_container(container)["Config"].get("StopTimeout") or 0)
        remove(client, container, volume)


def stop(client: Any, container: str, grace: float) -> bool:
    """Ask a container to stop, and kill it after its grace; False where the daemon does not answer, or cannot."""
    try:
        client.api.stop(container, timeout=int(grace))
    except NotFound:
        return True
    except (DockerException, OSError):
        return False
    return True


def remove(client: Any, container: str, volume: str) -> None:
    """Remove a container and its volume, if they are there."""
    with contextlib.suppress(NotFound):
        client.api.remove_container(container, force=True, v=True)
    with contextlib.suppress(APIError):  # NotFound; or in use by a container that is on its way out: reap has it next
        client.api.remove_volume(volume)


def _remove_all_of(control: str) -> None:
    """Remove all that a process left, once the daemon answers."""
    deadline = time.monotonic() + DAEMON_SECONDS
    labels = {"label": [f"moxin.control={control}", f"moxin.host={host_identity()}"]}
    while True:
        try:
            client = cast("Any", docker.from_env(timeout=120))
            remove_containers(client, client.api.containers(all=True, filters=labels))
            remove_volumes(client, client.volumes.list(filters=labels | {"dangling": True}))
            return
        except (DockerException, OSError):
            if time.monotonic() > deadline:
                return
            time.sleep(1)


def main() -> None:
    """Wait for the end of the standard input, then sweep."""
    while os.read(0, 4096):
        pass
    for _ in range(2):
        _remove_all_of(sys.argv[1])
        time.sleep(LATE_SECONDS)


if __name__ == "__main__":
    main()
