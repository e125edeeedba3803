"""`dedup` as Ray tasks on two nodes that share the store alone, each with processes and disks of its own; one is killed
in the middle of a shard.
"""

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

from stages.core.ledger import Ledger
from stages.core.messages import StageRequest
from tests.support.limits import HANG
from tests.support.paths import ROOT
from tests.support.probe_pipeline import wait_for
from tests.support.stored_dedup import Attempts, at_work, by_processes, corpus, machine, request, same, sources

pytestmark = pytest.mark.slow  # a Ray node takes some ten seconds to start

RUNS = 5
"""In which the second node may get no shard."""
STARTED = b"Ray runtime started."
CREDENTIALS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


class Cluster:
    """Ray nodes of one core on this machine; each has a folder of its own, and no credentials."""

    def __init__(self, folder: Path) -> None:
        self.address = f"{ray.util.get_node_ip_address()}:{free_port()}"
        self.common = {
            "PYTHONPATH": str(ROOT),
            "RAY_AUTH_MODE": "token",  # its ports are open to the network
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "RAY_health_check_period_ms": "500",
            "RAY_health_check_failure_threshold": "4",
        }
        self.log_path, self.root = folder / "ray.log", folder
        self.log = open(self.log_path, "wb")  # noqa: SIM115
        self.nodes: list[subprocess.Popen[bytes]] = []
        self.folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")  # a socket's path has 107 characters at most
        self.start("--head", f"--port={self.address.partition(':')[2]}", "--include-dashboard=false",
                   f"--temp-dir={self.folder}")  # fmt: skip

    def scratch(self, number: int) -> Path:
        """Where the tasks on a node have their folders."""
        return self.root / f"node-{number}" / "scratch"

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
        folder = self.root / f"node-{len(self.nodes)}"
        environment, log = machine(folder, **self.common), self.log
        self.nodes.append(
            subprocess.Popen(command, env=environment, cwd=folder, start_new_session=True, stdout=log, stderr=log)
        )
        return self.nodes[-1]

    def join(self) -> subprocess.Popen[bytes]:
        """One more node, once the head is up. Ray gives up on a node that comes up slowly: then another one."""
        wait_for(lambda: self.log_path.read_bytes().count(STARTED) == 1, "the head of the Ray cluster")
        for _ in range(RUNS):
            node = self.start(f"--address={self.address}")
            wait_for(
                lambda node=node: self.log_path.read_bytes().count(STARTED) == 2 or node.poll() is not None,
                "the second node",
            )
            if node.poll() is None:
                return node
        raise AssertionError(f"no second node in {RUNS} tries")

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


def stage(cluster: Cluster, asked: StageRequest) -> subprocess.Popen[bytes]:
    """The stage, in a process and with disks of its own."""
    folder = cluster.root / f"stage-{asked.key[:4]}"
    credentials = {name: os.environ[name] for name in CREDENTIALS}
    environment = machine(folder, **cluster.common, **credentials, RAY_ADDRESS=cluster.address)
    (folder / "request.json").write_text(asked.model_dump_json())
    command = [sys.executable, "-m", "stages.core.runtime", "request.json"]
    return subprocess.Popen(
        command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=cluster.log, stderr=cluster.log
    )


def stopped_at_work(cluster: Cluster, running: subprocess.Popen[bytes], attempts: Attempts) -> set[str]:
    """Unfinished shards in the hands of the second node, whose processes are stopped; none if the stage ended before:
    on a busy machine the other node may have taken all.
    """
    torn: set[str] = set()

    def signalled(number: int) -> None:
        for pid in cluster.processes(cluster.nodes[-1]):
            os.kill(pid, number)

    def caught() -> bool:
        if not at_work(cluster.scratch(len(cluster.nodes) - 1), "sign"):
            return running.poll() is not None
        signalled(signal.SIGSTOP)
        torn.update(at_work(cluster.scratch(len(cluster.nodes) - 1), "sign").keys() - attempts.receipts("sign"))
        if not torn:  # it was finished between the look and the signal
            signalled(signal.SIGCONT)
        return bool(torn)

    wait_for(caught, "a shard in the hands of the second node")
    return torn


def test_two_nodes_and_a_killed_one_give_the_same_digest(ledger: Ledger, tmp_path: Path, cluster: Cluster) -> None:
    """The shard that the dead node was at is done again elsewhere, and no other."""
    node = cluster.join()
    inputs = sources(ledger, tmp_path, corpus())
    expected = by_processes(ledger, inputs, tmp_path)
    for number in range(RUNS):
        key = f"{number}d" * 32
        with Attempts(ledger, key) as attempts:
            running = stage(cluster, request(ledger, inputs, key, recipe="dclm", workers="ray"))
            if torn := stopped_at_work(cluster, running, attempts):
                cluster.kill(node)
            code = running.wait(HANG)
        assert code == 0, cluster.log_path.read_text(errors="replace")[-3000:]
        same(ledger, key, expected)
        if torn:
            break
    assert torn, f"the second node had no shard in any of {RUNS} runs"
    assert attempts.several() <= {f"sign/{shard}" for shard in torn}
