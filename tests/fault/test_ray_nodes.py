"""`dedup` as Ray tasks on two nodes, each with processes of its own; one is killed in the middle of a shard."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray

from tests.support.limits import HANG
from tests.support.paths import ROOT
from tests.support.probe_pipeline import wait_for
from tests.support.worker_pool import parts

pytestmark = pytest.mark.slow  # a Ray node takes some ten seconds to start

SCRIPT = """
import pathlib, sys
from tests.support.deduplication import dedup, planted
texts = planted(3, size=160, copies=120)
workers = sys.argv[2]
workers = workers if workers == "ray" else int(workers)
dedup(pathlib.Path(sys.argv[1]), *[texts[n::8] for n in range(8)], recipe="dclm", workers=workers)
"""
"""Eight shards, and the recipe with the most steps."""
ATTEMPTS = 5
"""Runs in which the second node may get no shard."""


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


class Cluster:
    """Ray nodes of one core on this machine."""

    def __init__(self, folder: Path) -> None:
        self.address = f"{ray.util.get_node_ip_address()}:{free_port()}"
        self.environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "RAY_ADDRESS": self.address}
        self.environment |= {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
        }  # its ports are open to the network
        self.environment |= {"RAY_health_check_period_ms": "500", "RAY_health_check_failure_threshold": "4"}
        self.log = open(folder / "ray.log", "wb")  # noqa: SIM115
        self.nodes: list[subprocess.Popen[bytes]] = []
        self.folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")  # a socket's path has 107 characters at most
        self.start("--head", f"--port={self.address.partition(':')[2]}", "--include-dashboard=false",
                   f"--temp-dir={self.folder}")  # fmt: skip

    def start(self, *arguments: str) -> subprocess.Popen[bytes]:
        """A node, in a session of its own."""
        command = [
            str(Path(sys.executable).with_name("ray")),
            "start",
            "--block",
            "--num-cpus=1",
            "--disable-usage-stats",
        ]
        command += ["--object-store-memory=100000000", *arguments]
        environment = {k: v for k, v in self.environment.items() if k != "RAY_ADDRESS"}
        self.nodes.append(
            subprocess.Popen(command, env=environment, start_new_session=True, stdout=self.log, stderr=self.log)
        )
        return self.nodes[-1]

    def join(self) -> subprocess.Popen[bytes]:
        """One more node, once the head listens."""
        host, port = self.address.split(":")
        wait_for(lambda: socket.socket().connect_ex((host, int(port))) == 0, "the head of the Ray cluster")
        node = self.start(f"--address={self.address}")
        wait_for(lambda: "raylet" in self.programs(node), "the raylet of the second node")
        return node

    def processes(self, node: subprocess.Popen[bytes]) -> list[int]:
        """All processes of a node's session."""
        found = []
        for path in Path("/proc").glob("[0-9]*"):
            try:
                if os.getsid(int(path.name)) == node.pid:
                    found.append(int(path.name))
            except (ProcessLookupError, PermissionError):
                continue
        return found

    def programs(self, node: subprocess.Popen[bytes]) -> set[str]:
        """Names of a node's programs."""
        return {
            path.read_text().strip() for pid in self.processes(node) if (path := Path(f"/proc/{pid}/comm")).exists()
        }

    def kill(self, node: subprocess.Popen[bytes]) -> None:
        """As when its machine loses power."""
        for pid in self.processes(node):
            os.kill(pid, signal.SIGKILL)
        node.wait()

    def stop(self) -> None:
        for node in self.nodes:
            self.kill(node)
        shutil.rmtree(self.folder, ignore_errors=True)
        self.log.close()


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    made = Cluster(tmp_path)
    try:
        yield made
    finally:
        made.stop()


def stage(cluster: Cluster, root: Path, workers: int | str = "ray") -> subprocess.Popen[bytes]:
    """The stage, in a process of its own."""
    root.mkdir()
    command = [sys.executable, "-c", SCRIPT, str(root), str(workers)]
    return subprocess.Popen(command, cwd=ROOT, env=cluster.environment, stdout=cluster.log, stderr=cluster.log)


def stopped_at_work(
    cluster: Cluster, node: subprocess.Popen[bytes], running: subprocess.Popen[bytes], sign: Path
) -> list[Path]:
    """Unfinished shards in the hands of a node whose processes are stopped; none if the stage ended before: on a busy
    machine the other node may have taken all.
    """
    torn: list[Path] = []

    def signalled(number: int) -> None:
        for pid in cluster.processes(node):
            os.kill(pid, number)

    def at_work() -> list[Path]:
        """Shards that processes of the node are at."""
        mine = set(cluster.processes(node))
        done = {path.stem for path in sign.glob("*.json")}
        torn = sign.with_name("sign.files").glob("??????.*")
        return [p for p in torn if int(p.suffix[1:]) in mine and p.name.partition(".")[0] not in done]

    def caught() -> bool:
        if not at_work():
            return running.poll() is not None
        signalled(signal.SIGSTOP)
        torn[:] = at_work()
        if not torn:  # it was finished between the look and the signal
            signalled(signal.SIGCONT)
        return bool(torn)

    wait_for(caught, "a shard in the hands of the second node")
    return torn


def test_two_nodes_and_a_killed_one_give_the_same_bytes(tmp_path: Path, cluster: Cluster) -> None:
    """The shard that the dead node was at is done again elsewhere; a new node joins, and all is run once more on
    both.
    """
    node = cluster.join()
    assert stage(cluster, tmp_path / "one", 1).wait(HANG) == 0
    expected = parts(tmp_path / "one")
    assert len(expected) == 8
    for number in range(ATTEMPTS):
        root = tmp_path / f"killed-{number}"
        killed = stage(cluster, root)
        sign = root / "tasks" / "sign"
        torn = stopped_at_work(cluster, node, killed, sign)
        if torn:
            break
        assert killed.wait(HANG) == 0, (tmp_path / "ray.log").read_text()[-3000:]
    cluster.kill(node)
    assert torn, f"the second node had no shard in any of {ATTEMPTS} runs"
    assert killed.wait(HANG) == 0, (tmp_path / "ray.log").read_text()[-3000:]
    assert parts(root) == expected
    assert all((sign / f"{number:06d}.json").exists() for number in range(8))

    cluster.join()
    assert stage(cluster, tmp_path / "both").wait(HANG) == 0, (tmp_path / "ray.log").read_text()[-3000:]
    assert parts(tmp_path / "both") == expected
    assert stage(cluster, tmp_path / "two", 2).wait(HANG) == 0
    assert parts(tmp_path / "two") == expected
