"""What the Docker launcher asks the engine for, and the relay to the store. The engine itself: tests/launch."""

from __future__ import annotations

import io
import json
import os
import socket
import tarfile
import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from flows.launch import docker as module
from flows.launch import launcher, reaper
from flows.launch.base import Job, secrets_of
from flows.launch.docker import DockerHandle, DockerLauncher
from flows.launch.relay import Relay
from flows.settings import Settings
from stages.core.errors import ExitClass, InfraError
from stages.core.messages import CodeRef, Lease, StageRequest, StoreAddress, on_loopback
from stages.core.resources import Processes, Resources
from tests.support.limits import HANG
from tests.support.probe_pipeline import wait_for

CREDENTIALS = {"AWS_ACCESS_KEY_ID": "the-id", "AWS_SECRET_ACCESS_KEY": "the-secret"}


def job(**resources: Any) -> Job:
    request = StageRequest(
        run_id="run-1",
        node="dedup_web",
        stage="dedup",
        revision=1,
        key="a" * 64,
        lease=Lease(key="a" * 64, epoch=3, holder="h"),
        config={},
        inputs={},
        outputs={},
        code=CodeRef(source_digest="0" * 64),
        store=StoreAddress(bucket="b", endpoint="http://127.0.0.1:1"),
    )
    return Job(request, Resources(**resources), "data")


@pytest.fixture
def docker_launcher(tmp_path: Path) -> DockerLauncher:
    store = StoreAddress(bucket="b", endpoint="http://127.0.0.1:1")
    found = launcher("docker", Settings(tmp_path, store, "http://127.0.0.1:9/api", True, False, CREDENTIALS))
    assert isinstance(found, DockerLauncher)
    return found


ENGINE = SimpleNamespace(info=lambda: {"NCPU": 2})


def test_a_container_may_do_nothing_but_compute(docker_launcher: DockerLauncher) -> None:
    limits = docker_launcher._limits(ENGINE, job(cpus=1.5, memory_gib=3))
    assert limits["cap_drop"] == ["ALL"]
    assert limits["security_opt"] == ["no-new-privileges"]
    assert limits["read_only"] is True
    assert limits["init"] is True
    assert limits["pids_limit"] == 1024
    assert docker_launcher._limits(ENGINE, job(cpus=64))["pids_limit"] == 8192, (
        "Ray's processes alone are 1,472 threads"
    )
    assert limits["mem_limit"] == limits["memswap_limit"] == 3 * 2**30
    assert limits["nano_cpus"] == 1_500_000_000
    assert "device_requests" not in limits
    assert not {"privileged", "cap_add", "pid_mode", "ipc_mode", "devices"} & limits.keys()


def test_no_more_cores_are_asked_for_than_there_are(docker_launcher: DockerLauncher) -> None:
    """The engine would refuse the container."""
    assert docker_launcher._limits(ENGINE, job(cpus=64))["nano_cpus"] == 2_000_000_000


def test_gpus_are_asked_for_and_their_processes_started_by_torchrun_or_by_an_engine(
    docker_launcher: DockerLauncher,
) -> None:
    (request,) = docker_launcher._limits(ENGINE, job(gpus=4, memory_gib=64))["device_requests"]
    assert request == {"Driver": "", "Count": 4, "DeviceIDs": [], "Capabilities": [["gpu"]], "Options": {}}
    spread, driven = (replace(job(gpus=4), processes=kind) for kind in (Processes.TORCHRUN, Processes.ENGINE))
    assert "--nproc-per-node=4" in module.command(spread)
    assert "torch.distributed.run" not in module.command(driven), "the engine starts four; four of it would be sixteen"
    assert docker_launcher._environment(driven)["MOXIN_NPROC_PER_NODE"] == "4"
    assert "torch.distributed.run" not in module.command(replace(job(gpus=1), processes=Processes.TORCHRUN))
    assert module.command(job())[-4:] == [
        "stages.core.runtime",
        "/scratch/request.json",
        "--secrets",
        "/scratch/secrets.json",
    ]


def test_only_a_stage_that_reads_material_sees_this_machine(docker_launcher: DockerLauncher) -> None:
    assert [m["Target"] for m in docker_launcher._mounts(job(), "v")] == ["/scratch"]
    mounts = docker_launcher._mounts(job(material=True), "v")
    assert [(m["Target"], m["ReadOnly"]) for m in mounts[1:]] == [
        ("/material/stdlib", True),
        ("/material/packages", True),
    ]
    assert docker_launcher._environment(job(material=True))["MOXIN_MATERIAL"] == "/material"


def test_secrets_are_in_a_file_and_nowhere_else(docker_launcher: DockerLauncher) -> None:
    with tarfile.open(fileobj=io.BytesIO(module._archive(job(), CREDENTIALS))) as archive:
        members = {m.name: m for m in archive}
        secrets = json.loads(archive.extractfile("secrets.json").read())  # type: ignore[union-attr]
    assert all((m.mode, m.uid, m.gid) == (0o400, module.UID, module.UID) for m in members.values())
    assert secrets == {"environment": CREDENTIALS, "files": {}}
    told = json.dumps(
        [docker_launcher._environment(job()), job().labels, docker_launcher._labels(), module.command(job())]
    )
    assert "the-secret" not in told
    assert "the-id" not in told
    assert "the-secret" not in job().request.model_dump_json()


def test_files_that_credentials_name_go_along_as_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "ca.pem").write_text("certificate")
    monkeypatch.delenv("REQUESTS_CA_BUNDLE", raising=False)
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    given = CREDENTIALS | {"AWS_CA_BUNDLE": str(tmp_path / "ca.pem"), "AWS_CONFIG_FILE": str(tmp_path / "absent")}
    assert secrets_of(job(), given).files == {"AWS_CA_BUNDLE": "certificate"}
    assert secrets_of(job(), given).environment == CREDENTIALS
    assert secrets_of(job(network="internet"), given).files.keys() == {"AWS_CA_BUNDLE", "SSL_CERT_FILE"}


# --- how a container ends ---------------------------------------------------------------------------------------------


class Engine:
    """The engine's API as one container's end shows it."""

    def __init__(self, **state: Any) -> None:
        self.state = {"Status": "exited", "OOMKilled": False, "ExitCode": 0} | state
        self.removed: list[str] = []

    def inspect_container(self, name: str) -> dict[str, Any]:
        return {"State": self.state}

    def remove_container(self, name: str, **_: Any) -> None:
        self.removed.append(name)

    def remove_volume(self, name: str) -> None:
        self.removed.append(name)


def frames(*rows: tuple[int, bytes]) -> socket.socket:
    """What the engine sends on an attached connection."""
    near, far = socket.socketpair()
    for stream, data in rows:
        far.sendall(bytes([stream, 0, 0, 0]) + len(data).to_bytes(4, "big") + data)
    far.close()
    return near


def handle(engine: Engine, *rows: tuple[int, bytes]) -> DockerHandle:
    return DockerHandle(SimpleNamespace(api=engine), "container", "volume", frames(*rows), job(memory_gib=3))


def test_events_are_put_together_from_the_engines_frames() -> None:
    found = handle(
        Engine(),
        (1, b'{"event": "progress", "done"'),
        (2, b"a warn"),
        (1, b': 1}\nplain\n{"event": '),
        (2, b"ing\n"),
        (1, b'"done", "exit": "ok", "message": ""}'),
    )
    assert list(found.events()) == [
        {"event": "progress", "done": 1},
        {"event": "log", "level": "debug", "message": "plain"},
        {"event": "log", "level": "debug", "message": "a warning"},
        {"event": "done", "exit": "ok", "message": ""},
    ]
    assert found.wait() == 0


def test_the_kernels_out_of_memory_kill_is_told_with_the_setting_to_raise() -> None:
    engine = Engine(OOMKilled=True, ExitCode=137)
    found = handle(engine)
    (event,) = found.events()
    assert event["message"] == "out of memory: it used all of its 3 GiB; raise resources.dedup_web.memory_gib"
    assert ExitClass.from_code(found.wait()) is ExitClass.OOM
    assert engine.removed == ["container", "volume"]


@pytest.mark.parametrize(
    ("code", "expected"),
    [(137, "preempted"), (143, "preempted"), (75, "preempted"), (64, "config"), (1, "bug"), (0, "ok")],
)
def test_an_exit_status_keeps_its_class(code: int, expected: str) -> None:
    found = handle(Engine(ExitCode=code))
    list(found.events())
    assert ExitClass.from_code(found.wait()) == expected


def test_a_container_that_vanished_was_preempted(monkeypatch: pytest.MonkeyPatch) -> None:
    class Gone(Engine):
        def inspect_container(self, name: str) -> dict[str, Any]:
            raise module.NotFound("no such container")

    found = handle(Gone())
    (event,) = found.events()
    assert event == {"event": "done", "exit": "preempted", "message": "the Docker daemon went away"}
    assert ExitClass.from_code(found.wait()) is ExitClass.PREEMPTED


def test_an_engine_that_restarts_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    class Restarting(Engine):
        asked = 0

        def inspect_container(self, name: str) -> dict[str, Any]:
            self.asked += 1
            if self.asked < 3:
                raise ConnectionRefusedError("engine")
            return {"State": self.state | {"ExitCode": 255}}

    monkeypatch.setattr(module.time, "sleep", lambda seconds: None)
    found = handle(Restarting())
    assert [e["exit"] for e in found.events()] == ["preempted"]
    assert ExitClass.from_code(found.wait()) is ExitClass.PREEMPTED, "255 says nothing of the stage"


def test_a_container_that_cannot_be_removed_changes_nothing_about_its_end() -> None:
    """It was told as a fault of the program, although the stage had published. The next start removes what is left."""
    for error in (module.DockerException("removal is in progress"), ConnectionResetError("the engine restarts")):

        class Stuck(Engine):
            def remove_container(self, name: str, **_: Any) -> None:
                raise error  # noqa: B023

        found = handle(Stuck(), (1, b'{"event": "done", "exit": "ok", "message": ""}\n'))
        assert [event["exit"] for event in found.events()] == ["ok"]
        assert found.wait() == 0


def test_a_container_is_stopped_once_an_engine_that_is_away_is_back() -> None:
    """It was asked once: the container then went on to its end, and a second stop did nothing."""
    asked = list[tuple[str, int]]()

    class Restarting(Engine):
        def stop(self, name: str, timeout: int) -> None:
            asked.append((name, timeout))
            if len(asked) < 3:
                raise ConnectionRefusedError("engine")

    handle(Restarting(Status="running")).stop(25)
    wait_for(lambda: len(asked) == 3, "the third try")
    assert set(asked) == {("container", 25)}


def test_no_engine_is_one_clear_line(
    docker_launcher: DockerLauncher, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/nothing.sock")
    with pytest.raises(InfraError, match=r"no Docker daemon answers \(.*\): start it, or set DOCKER_HOST"):
        docker_launcher.start(job())


# --- leftovers --------------------------------------------------------------------------------------------------------


def test_containers_are_stopped_at_the_same_time_and_removed_with_their_volumes() -> None:
    """One after the other, two that will not stop would take more than a minute."""
    meeting = threading.Barrier(3)
    said: list[tuple[str, str]] = []
    graces: set[int] = set()
    api = SimpleNamespace(
        inspect_container=lambda container: {"Config": {"StopTimeout": 100 + int(container)}},
        stop=lambda container, timeout: (meeting.wait(HANG), graces.add(timeout), said.append(("stop", container))),
        remove_container=lambda container, force, v: said.append(("remove", container)),
        remove_volume=lambda volume: said.append(("volume", volume)),
    )
    reaper.remove_containers(SimpleNamespace(api=api), [{"Id": str(i), "Names": [f"/moxin-{i}"]} for i in range(3)])
    for i in range(3):
        assert [act for act in said if act[1] in (str(i), f"moxin-{i}")] == [
            ("stop", str(i)),
            ("remove", str(i)),
            ("volume", f"moxin-{i}"),
        ]
    assert graces == {100, 101, 102}, "each gets what it was started with"


def test_what_is_left_over_is_told_by_its_control_plane() -> None:
    mine = reaper.owner_labels()
    assert not module._is_orphan(mine, "running")
    assert not module._is_orphan(mine, "exited"), "its control plane is about to read how it ended"
    assert module._is_orphan(mine | {"moxin.control": "1:1"}, "running")
    elsewhere = {"moxin.control": "1:1", "moxin.host": "another worker's container"}
    assert not module._is_orphan(elsewhere, "running"), "nobody here can say whether its control plane lives"
    assert module._is_orphan(elsewhere, "exited")


def test_one_reaper_stays_behind_a_process_and_is_told_no_secret(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "the-secret")
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/nothing.sock")
    monkeypatch.setattr(reaper, "_running", [])
    reaper.start_reaper()
    reaper.start_reaper()
    (process,) = reaper._running
    wait_for(lambda: b"DOCKER_HOST" in Path(f"/proc/{process.pid}/environ").read_bytes(), "the reaper's start")
    assert b"the-secret" not in Path(f"/proc/{process.pid}/environ").read_bytes()
    assert os.getsid(process.pid) == process.pid, "what ends this process's group leaves it alone"
    assert process.stdin is not None
    process.kill()
    process.wait()
    process.stdin.close()


# --- the relay --------------------------------------------------------------------------------------------------------


def echo_server() -> tuple[socket.socket, str]:
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                while data := connection.recv(65536):
                    connection.sendall(data)

    threading.Thread(target=serve, daemon=True).start()
    return listener, f"http://127.0.0.1:{listener.getsockname()[1]}"


def test_the_relay_passes_both_ways_whole_and_ends_with_either_side() -> None:
    listener, endpoint = echo_server()
    relay = Relay("127.0.0.1", endpoint)
    port = int(relay.endpoint.rpartition(":")[2])
    sent = bytes(range(256)) * 4096
    with socket.create_connection(("127.0.0.1", port), timeout=HANG) as client:
        threading.Thread(target=lambda: (client.sendall(sent), client.shutdown(socket.SHUT_WR)), daemon=True).start()
        received = b""
        while data := client.recv(65536):
            received += data
    assert received == sent
    listener.close()
    relay.close()


def test_the_relay_closes_a_connection_when_the_store_is_away() -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        endpoint = f"http://127.0.0.1:{closed.getsockname()[1]}"
    relay = Relay("127.0.0.1", endpoint)
    with socket.create_connection(("127.0.0.1", int(relay.endpoint.rpartition(":")[2])), timeout=HANG) as client:
        assert client.recv(1) == b""
    relay.close()


def test_an_address_of_another_machine_is_an_error_that_says_what_to_do() -> None:
    with pytest.raises(InfraError, match=r"cannot listen on 192\.0\.2\.1 .*MOXIN_S3_ENDPOINT"):
        Relay("192.0.2.1", "http://127.0.0.1:1")


def test_loopback() -> None:
    assert on_loopback("http://127.0.0.1:8333")
    assert on_loopback("http://localhost:8333")
    assert not on_loopback("https://s3.example.org")
    assert not on_loopback(None)
