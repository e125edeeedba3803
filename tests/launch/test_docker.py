"""The Docker launcher on a real engine: what a stage may do there, how it ends, what is left. Probe stages, seconds
each.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from flows.environments import Image
from flows.execute import NodeFailed
from flows.launch import scoped
from flows.launch.docker import PIDS, DockerHandle, DockerLauncher
from flows.settings import Settings
from stages.core.errors import ConfigError, ExitClass
from stages.core.files import ROOT
from stages.core.ledger import Ledger
from stages.core.messages import StageRequest
from stages.core.resources import Resources
from tests.support import probe_pipeline
from tests.support.docker_containers import containers, job_of
from tests.support.limits import HANG
from tests.support.planted import CONTROL_PLANE, SOURCES, held, secrets_in
from tests.support.probe_pipeline import wait_for

pytestmark = [pytest.mark.slow, pytest.mark.container]


def finish(handle: DockerHandle) -> tuple[int, list[dict[str, Any]]]:
    events = list(handle.events())
    return handle.wait(), events


def until(handle: DockerHandle, message: str) -> Iterator[dict[str, Any]]:
    events = handle.events()
    for event in events:
        if event.get("message") == message:
            return events
    raise AssertionError(f"the stage ended before it said {message!r}")


def volumes(client: Any, launcher: DockerLauncher) -> list[Any]:
    return client.volumes.list(filters={"label": f"moxin.home={launcher._labels()['moxin.home']}"})


def test_a_stage_runs_and_nothing_of_it_is_left(
    docker_launcher: DockerLauncher, docker_client: Any, ledger: Ledger
) -> None:
    code, events = finish(docker_launcher.start(job_of(ledger, act="print")))
    assert code == 0, events
    assert [e["event"] for e in events if e["event"] != "log"] == ["begun", "metric", "metric", "done"]
    assert {e["message"] for e in events if e["event"] == "log"} >= {
        "a line that a library prints",
        "a line of a child process",
    }
    found = ledger.manifest(f"{0:064x}")
    assert found is not None
    assert found[0].code.image_digest
    assert found[0].code.image_digest.startswith("sha256:")
    assert containers(docker_client, docker_launcher) == []
    assert volumes(docker_client, docker_launcher) == []


def test_a_stage_may_write_to_its_scratch_alone_and_reach_the_store_alone(
    docker_launcher: DockerLauncher, ledger: Ledger
) -> None:
    code, events = finish(docker_launcher.start(job_of(ledger, act="reach")))
    assert code == 0, events
    seen = next(json.loads(e["message"]) for e in events if str(e.get("message", "")).startswith('{"Uid"'))
    forbidden = {
        "/", "/app", "/etc", "/opt/venv/bin", "/usr/bin", "/dev", "/proc/sys/kernel", "outside", "loopback",
        "become root", "give a file away", "make a device", "change the root", "name the machine", "run a file of /tmp",
    }  # fmt: skip
    assert seen == {
        "Uid": "65532", "CapEff": "0" * 16, "CapBnd": "0" * 16, "CapPrm": "0" * 16, "CapAmb": "0" * 16,
        "NoNewPrivs": "1", "Seccomp": "2", "/scratch": True, "/tmp": True,
    } | dict.fromkeys(forbidden, False)  # fmt: skip


@pytest.mark.parametrize("network", ["store", "internet"])
def test_no_secret_is_shown_by_the_engine(
    docker_launcher: DockerLauncher,
    docker_client: Any,
    ledger: Ledger,
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
    network: str,
) -> None:
    """A stage that may reach the internet has the sources' credentials too. Of the image its history and settings."""
    for name, value in (SOURCES | CONTROL_PLANE).items():
        monkeypatch.setenv(name, value)
    resources = Resources.model_validate({"cpus": 1, "memory_gib": 0.25, "network": network})
    handle = docker_launcher.start(job_of(ledger, resources=resources, act="wait"))
    rest = until(handle, "waiting")
    container = docker_client.containers.get(handle.id)
    volume = docker_client.volumes.get(container.name)
    image = docker_client.images.get(container.attrs["Image"])
    shown = [container.attrs, container.top(), volume.attrs, image.attrs, image.history(), container.diff()]
    shown += [container.logs().decode()]
    environment = container.exec_run(["python", "-c", ENVIRONMENT]).output.decode()
    handle.stop(HANG)
    list(rest)
    handle.wait()
    secrets = dict(settings.credentials) | secrets_in(SOURCES | CONTROL_PLANE) | {"password": "not-for-stages"}
    assert held(json.dumps(shown).encode(), secrets) == []
    given = json.loads(environment)
    assert given.keys() >= settings.credentials.keys()
    assert held(json.dumps(given).encode(), secrets_in(CONTROL_PLANE)) == []
    assert (given.keys() >= SOURCES.keys()) is (network == "internet")


ENVIRONMENT = """
import json, pathlib
secrets = json.loads(pathlib.Path("/scratch/secrets.json").read_text())
print(json.dumps(secrets["environment"]))
"""
"""What a stage was given, told from inside by the one user that may read it."""


def test_credentials_that_end_are_written_anew_into_the_running_container(
    docker_launcher: DockerLauncher,
    docker_client: Any,
    ledger: Ledger,
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    numbers = itertools.count()

    def session(of: Settings, request: StageRequest) -> scoped.Session:
        return scoped.Session({**of.store_environment(), "AWS_NUMBER": str(next(numbers))}, time.time() + 6)

    monkeypatch.setattr(scoped, "session", session)
    monkeypatch.setenv("MOXIN_STS_ROLE", "arn:aws:iam::123456789012:role/stages")
    handle = docker_launcher.start(job_of(ledger, act="wait"))
    rest = until(handle, "waiting")
    container = docker_client.containers.get(handle.id)

    def number() -> int:
        return int(json.loads(container.exec_run(["python", "-c", ENVIRONMENT]).output)["AWS_NUMBER"])

    wait_for(lambda: number() >= 2, "a second renewal")
    told = container.exec_run(["stat", "-c", "%a %u", "/scratch/secrets.json"]).output.decode().strip()
    handle.stop(HANG)
    list(rest)
    assert handle.wait() == ExitClass.PREEMPTED.code
    assert told == "400 65532"


def test_how_a_container_is_told_from_others_and_what_it_may_reach(
    docker_launcher: DockerLauncher, docker_client: Any, ledger: Ledger
) -> None:
    handle = docker_launcher.start(job_of(ledger, act="wait"))
    rest = until(handle, "waiting")
    container = docker_client.containers.get(handle.id)
    handle.stop(HANG)
    list(rest)
    handle.wait()
    assert container.labels["moxin.node"] == "source"
    assert container.labels["moxin.epoch"] == "1"
    assert container.attrs["HostConfig"]["NetworkMode"] == "moxin-store"
    assert container.attrs["Config"]["StopTimeout"] == 30, "`docker stop` gives it resources.<node>.grace_seconds, too"
    assert docker_client.networks.get("moxin-store").attrs["Internal"] is True


def test_a_stage_that_is_asked_to_stop_ends_in_order(docker_launcher: DockerLauncher, ledger: Ledger) -> None:
    handle = docker_launcher.start(job_of(ledger, act="wait"))
    rest = until(handle, "waiting")
    handle.stop(HANG)
    handle.stop(HANG)
    assert [e["message"] for e in rest if e["event"] == "done"] == ["stopped on request"]
    assert handle.wait() == ExitClass.PREEMPTED.code
    handle.stop(HANG)


def test_a_stage_that_will_not_stop_is_killed_after_its_grace(docker_launcher: DockerLauncher, ledger: Ledger) -> None:
    handle = docker_launcher.start(job_of(ledger, act="stubborn"))
    rest = until(handle, "waiting")
    handle.stop(1)
    list(rest)
    assert ExitClass.from_code(handle.wait()) is ExitClass.PREEMPTED


def test_more_memory_than_it_may_have_is_out_of_memory(docker_launcher: DockerLauncher, ledger: Ledger) -> None:
    code, events = finish(docker_launcher.start(job_of(ledger, act="allocate")))
    assert ExitClass.from_code(code) is ExitClass.OOM
    assert events[-1]["message"] == "out of memory: it used all of its 0.25 GiB; raise resources.source.memory_gib"


def test_docker_kill_is_a_preemption(docker_launcher: DockerLauncher, docker_client: Any, ledger: Ledger) -> None:
    handle = docker_launcher.start(job_of(ledger, act="wait"))
    rest = until(handle, "waiting")
    docker_client.containers.get(handle.id).kill()
    list(rest)
    assert ExitClass.from_code(handle.wait()) is ExitClass.PREEMPTED


def test_reap_of_a_run_stops_it_and_leaves_others(docker_launcher: DockerLauncher, ledger: Ledger) -> None:
    handle = docker_launcher.start(job_of(ledger, act="wait"))
    rest = until(handle, "waiting")
    assert docker_launcher.reap() == [], "its control plane lives"
    assert docker_launcher.reap("another run") == []
    reading = threading.Thread(target=lambda: list(rest))
    reading.start()
    assert docker_launcher.reap("run-1") == [handle.id]
    reading.join(HANG)
    assert ExitClass.from_code(handle.wait()) is ExitClass.PREEMPTED


CONTROL = """
import sys
sys.path.insert(0, {root!r})
from pathlib import Path
from flows import environments
from flows.launch.base import Job
from flows.launch.docker import DockerLauncher
from flows.settings import Settings
from stages.core.messages import StageRequest
from stages.core.resources import Resources
environments.stage_image = lambda stage, env: environments.Image(stage, env, {image!r}, "", {{}})
request = StageRequest.model_validate_json(Path({request!r}).read_bytes())
settings = Settings(Path({home!r}), request.store, "http://127.0.0.1:9/api", True, False, {credentials!r})
handle = DockerLauncher(settings).start(Job(request, Resources(memory_gib=0.25), "data"))
for event in handle.events():
    if event.get("message") == "waiting":
        print(handle.id, flush=True)
"""


@pytest.fixture
def control(
    settings: Settings, ledger: Ledger, probe_image: Image, tmp_path: Path
) -> Iterator[Callable[[str], tuple[subprocess.Popen[bytes], str]]]:
    """Start a control plane of its own that runs a stage; the process and the container, once the stage is at work."""
    started: list[subprocess.Popen[bytes]] = []

    def begin(act: str) -> tuple[subprocess.Popen[bytes], str]:
        request = tmp_path / "request.json"
        request.write_text(job_of(ledger, act=act).request.model_dump_json())
        program = CONTROL.format(
            root=str(ROOT),
            image=probe_image.reference,
            request=str(request),
            home=str(settings.home),
            credentials=dict(settings.credentials),
        )
        process = subprocess.Popen(
            [sys.executable, "-c", program], stdout=subprocess.PIPE, env={"PATH": os.environ["PATH"]}
        )
        started.append(process)
        assert process.stdout is not None
        return process, process.stdout.readline().decode().strip()

    yield begin
    for process in started:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


@pytest.mark.parametrize("act", ["wait", "stubborn"])
def test_a_killed_control_plane_leaves_nothing_after_a_minute(
    docker_launcher: DockerLauncher,
    docker_client: Any,
    control: Callable[[str], tuple[subprocess.Popen[bytes], str]],
    act: str,
) -> None:
    """The engine closes the container's standard input, and the stage stops or is cut off; the reaper removes it and
    its volume.
    """
    process, container = control(act)
    assert docker_client.containers.get(container).status == "running"
    process.kill()
    wait_for(lambda: not containers(docker_client, docker_launcher), "the container's removal")
    wait_for(lambda: not volumes(docker_client, docker_launcher), "the removal of the volume, which holds credentials")
    assert docker_launcher.reap() == []


def test_what_a_control_plane_and_its_reaper_leave_stops_and_the_next_run_removes_it(
    docker_launcher: DockerLauncher, docker_client: Any, control: Callable[[str], tuple[subprocess.Popen[bytes], str]]
) -> None:
    process, container = control("wait")
    (watch,) = reapers(process.pid)
    os.kill(watch, signal.SIGKILL)
    process.kill()
    wait_for(lambda: not containers(docker_client, docker_launcher, all=False), "the container's end")
    assert docker_launcher.reap() == [container]
    assert containers(docker_client, docker_launcher) == []
    assert volumes(docker_client, docker_launcher) == []


def reapers(pid: int) -> list[int]:
    """Process numbers of the reapers that stay behind a process."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            words = entry.read_bytes().split(b"\0")
            if b"flows.launch.reaper" in words and any(word.startswith(b"%d:" % pid) for word in words):
                found.append(int(entry.parent.name))
    return found


def test_a_missing_image_says_how_to_build_it(
    docker_launcher: DockerLauncher, ledger: Ledger, monkeypatch: pytest.MonkeyPatch, probe_image: Image
) -> None:
    from flows import environments

    monkeypatch.setattr(environments, "stage_image", lambda stage, env: Image(stage, env, "moxin/nowhere:0", "", {}))
    with pytest.raises(
        ConfigError, match="no image moxin/nowhere:0 of the code that lies here: run 'moxin images build probe_source'"
    ):
        docker_launcher.start(job_of(ledger))


def training(docker_launcher: DockerLauncher, ledger: Ledger, folder: Path, *overrides: str) -> Any:
    """An execution of the small pipeline in containers."""
    pipeline = probe_pipeline.small_pipeline()
    text = probe_pipeline.PROFILE + "[resources.probe_train]\nmemory_gib = 0.25\n"
    profile = probe_pipeline.profile_of(
        pipeline, folder, "train_1.steps=60", "train_1.step_seconds=0.2", "train_1.save_every=5", *overrides, text=text
    )
    return pipeline, probe_pipeline.execution(pipeline, profile, ledger, folder, docker_launcher, select="train_1")


@pytest.fixture
def prepared(finished_run: Ledger, ledger: Ledger) -> Ledger:
    """A ledger with everything before the training."""
    probe_pipeline.copy_ledger(finished_run, ledger)
    return ledger


def test_a_training_whose_container_is_killed_resumes_within_the_run(
    docker_launcher: DockerLauncher, docker_client: Any, prepared: Ledger, tmp_path: Path
) -> None:
    pipeline, run = training(docker_launcher, prepared, tmp_path)
    killed = threading.Thread(target=kill_after_a_checkpoint, args=(run, docker_client, docker_launcher))
    killed.start()
    result = probe_pipeline.run_nodes(run, pipeline, until="train_1")["train_1"]
    killed.join()
    assert result.attempt.resumed_from is not None
    assert result.attempt.resumed_from >= 5
    assert result.attempt.epoch == 2


def kill_after_a_checkpoint(run: Any, client: Any, launcher: DockerLauncher) -> None:
    recorder = run.observers[0]
    wait_for(lambda: any(e["event"] == "checkpoint" for _, e in recorder.events), "a checkpoint")
    containers(client, launcher, all=False)[0].kill()


@pytest.mark.parametrize("how", ["restarted", "killed"])
def test_a_training_goes_on_after_the_engine_was_restarted(
    docker_launcher: DockerLauncher, docker_client: Any, prepared: Ledger, tmp_path: Path, how: str
) -> None:
    number = Path("/var/lib/moxin-docker/dockerd.pid")
    if not number.is_file():
        print("SKIPPED: the engine is not one that infra/dev/docker.sh started, so it is not restarted")
        pytest.skip("the engine is not one that infra/dev/docker.sh started, so it is not restarted")
    pipeline, run = training(docker_launcher, prepared, tmp_path)

    def restart() -> None:
        wait_for(lambda: any(e["event"] == "checkpoint" for _, e in run.observers[0].events), "a checkpoint")
        if how == "killed":
            os.kill(int(number.read_text()), signal.SIGKILL)
        subprocess.run([str(ROOT / "infra/dev/docker.sh"), "restart"], check=True, capture_output=True)

    restarting = threading.Thread(target=restart)
    restarting.start()
    result = probe_pipeline.run_nodes(run, pipeline, until="train_1")["train_1"]
    restarting.join()
    assert result.attempt.resumed_from is not None
    assert containers(docker_client, docker_launcher) == []


def test_a_stopped_run_leaves_no_container_and_the_next_one_resumes(
    docker_launcher: DockerLauncher, docker_client: Any, prepared: Ledger, tmp_path: Path
) -> None:
    pipeline, run = training(docker_launcher, prepared, tmp_path)

    def stop() -> None:
        wait_for(lambda: any(e["event"] == "checkpoint" for _, e in run.observers[0].events), "a checkpoint")
        run.stop()

    stopping = threading.Thread(target=stop)
    stopping.start()
    with pytest.raises(NodeFailed, match=r"train_1 failed \(preempted\)"):
        probe_pipeline.run_nodes(run, pipeline, until="train_1")
    stopping.join()
    assert containers(docker_client, docker_launcher) == []
    pipeline, again = training(docker_launcher, prepared, tmp_path, "train_1.step_seconds=0")
    assert probe_pipeline.run_nodes(again, pipeline, until="train_1")["train_1"].attempt.resumed_from


def test_a_fork_bomb_ends_at_the_limit_and_leaves_nothing(
    docker_launcher: DockerLauncher, docker_client: Any, ledger: Ledger
) -> None:
    resources = Resources(cpus=1, memory_gib=1)
    code, events = finish(docker_launcher.start(job_of(ledger, resources=resources, act="fork")))
    assert code == 0, events
    (started,) = [int(e["message"].split()[0]) for e in events if str(e.get("message", "")).endswith(" processes")]
    assert 64 < started < PIDS
    assert containers(docker_client, docker_launcher) == []


def test_a_container_never_gets_more_than_its_limit_of_processes(
    docker_launcher: DockerLauncher, docker_client: Any, ledger: Ledger
) -> None:
    handle = docker_launcher.start(job_of(ledger, act="wait", resources=Resources(cpus=0.5, memory_gib=0.25)))
    rest = until(handle, "waiting")
    limits = docker_client.containers.get(handle.id).attrs["HostConfig"]
    handle.stop(HANG)
    list(rest)
    handle.wait()
    assert (limits["PidsLimit"], limits["NanoCpus"], limits["Memory"], limits["ReadonlyRootfs"]) == (
        1024,
        500_000_000,
        2**28,
        True,
    )
