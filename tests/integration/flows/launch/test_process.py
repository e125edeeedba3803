"""The process launcher: real processes, their environment, their events, and that nothing survives."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flows import profiles
from flows.execute import Execution, NodeFailed
from flows.launch import launcher as launcher_by_name
from flows.launch.base import Job
from flows.launch.process import ProcessHandle, ProcessLauncher
from flows.settings import Settings
from stages.collect.spec import Collect
from stages.core.errors import ConfigError, ExitClass, InfraError
from stages.core.graph import Pipeline
from stages.core.ledger import Ledger
from stages.core.processes import process_alive, process_identity
from stages.core.resources import Resources
from tests.support.limits import HANG
from tests.support.paths import ROOT
from tests.support.probe_pipeline import Recorder, python_with_probes, request_of, wait_for


@pytest.fixture
def launcher(settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ProcessLauncher:
    """A launcher whose stages find the probe stages."""
    monkeypatch.setattr(sys, "executable", python_with_probes(tmp_path))
    return ProcessLauncher(settings)


@pytest.fixture(autouse=True)
def no_survivors(settings: Settings) -> Iterator[None]:
    """No test may leave a stage behind."""
    yield
    left = of_scratch(str(settings.home / "scratch"))
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert left == []


def of_scratch(scratch: str) -> list[int]:
    """Processes that were started with this scratch folder, but zombies."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/environ"):
        try:
            if f"MOXIN_SCRATCH={scratch}\0".encode() in entry.read_bytes() + b"\0":
                found.append(int(entry.parent.name))
        except OSError:
            continue
    return found


def job_of(ledger: Ledger, number: int = 0, **config: Any) -> Job:
    return Job(request_of(ledger.store.address, ledger, f"{number:064x}", **config), Resources(cpus=2.5), "data")


def finish(handle: ProcessHandle) -> tuple[int, list[dict[str, Any]]]:
    events = list(handle.events())
    return handle.wait(), events


def until(handle: ProcessHandle, message: str) -> Iterator[dict[str, Any]]:
    """Read events up to a message; the rest of them."""
    events = handle.events()
    for event in events:
        if event.get("message") == message:
            return events
    raise AssertionError(f"the stage ended before it said {message!r}")


# --- a stage as a process ---------------------------------------------------------------------------------------------


def test_events_come_as_they_are_and_other_lines_as_debug_logs(
    launcher: ProcessLauncher, ledger: Ledger, settings: Settings
) -> None:
    code, events = finish(launcher.start(job_of(ledger, act="print")))
    assert code == 0
    assert [e["event"] for e in events if e["event"] != "log"] == ["begun", "metric", "metric", "done"]
    assert {(e["level"], e["message"]) for e in events if e["event"] == "log"} == {
        ("debug", "a line that a library prints"),
        ("debug", "a line of a child process"),
    }
    assert ledger.manifest(f"{0:064x}") is not None
    assert list((settings.home / "requests").iterdir()) == [], "the request is removed"
    assert list((settings.home / "scratch").iterdir()) == []
    assert list((settings.home / "cache").rglob("*")), "and what was made is cached"


def test_a_stage_that_asks_to_be_stopped_gets_a_term_signal_and_its_grace(
    launcher: ProcessLauncher, ledger: Ledger
) -> None:
    handle = launcher.start(job_of(ledger, act="wait"))
    rest = until(handle, "waiting")
    handle.stop(HANG)
    handle.stop(HANG)  # twice does no harm
    assert [e["event"] for e in rest] == ["done"]
    assert handle.wait() == ExitClass.PREEMPTED.code
    handle.stop(HANG)  # nor does it afterwards


def test_a_stage_that_will_not_stop_is_killed_after_its_grace(launcher: ProcessLauncher, ledger: Ledger) -> None:
    handle = launcher.start(job_of(ledger, act="stubborn"))
    rest = until(handle, "waiting")
    handle.stop(0.3)
    assert [e["message"] for e in rest] == ["not now", "waiting"]
    assert handle.wait() == -signal.SIGKILL
    assert ExitClass.from_code(-signal.SIGKILL) is ExitClass.PREEMPTED


def test_a_child_that_outlives_its_stage_is_ended_and_holds_nothing_up(
    launcher: ProcessLauncher, ledger: Ledger
) -> None:
    """The stage is killed; a child of its holds the pipes open. Without the sweep, `events` would never end."""
    handle = launcher.start(job_of(ledger, act="orphan"))
    done = threading.Event()
    events: list[dict[str, Any]] = []

    def read() -> None:
        events.extend(handle.events())
        done.set()

    threading.Thread(target=read, daemon=True).start()
    try:
        assert done.wait(HANG), "the child kept the pipes open"
    finally:
        if not done.is_set():
            os.killpg(int(handle.id), signal.SIGKILL)
    assert handle.wait() == -signal.SIGKILL
    child = int(events[1]["message"].removeprefix("child "))
    wait_for(
        lambda: not Path(f"/proc/{child}").exists() or "Z" in Path(f"/proc/{child}/stat").read_text(), "the child's end"
    )


# --- what a stage sees ------------------------------------------------------------------------------------------------


def test_a_stage_sees_the_stores_keys_and_none_of_the_control_planes(
    launcher: ProcessLauncher, ledger: Ledger, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    secrets = {
        "PREFECT_API_AUTH_STRING": "moxin:not-for-stages",
        "PREFECT_API_KEY": "not-for-stages",
        "GITHUB_TOKEN": "not-for-stages",
        "HF_TOKEN": "not-for-stages",
        "AWS_SESSION_TOKEN": "not-for-stages",
        "SOME_PASSWORD": "not-for-stages",
    }
    for name, value in secrets.items():
        monkeypatch.setenv(name, value)
    handle = launcher.start(job_of(ledger, act="wait"))
    rest = until(handle, "waiting")
    raw = Path(f"/proc/{handle.id}/environ").read_bytes().decode()
    seen = dict(pair.split("=", 1) for pair in raw.split("\0") if pair)
    handle.stop(HANG)
    list(rest)
    handle.wait()
    assert "not-for-stages" not in raw
    assert not [name for name in seen if name.startswith("PREFECT")]
    assert seen["AWS_ACCESS_KEY_ID"] == settings.credentials["AWS_ACCESS_KEY_ID"]
    assert seen["OMP_NUM_THREADS"] == "2"
    assert seen["PYTHONHASHSEED"] == "0"
    assert seen["MOXIN_CACHE"] == str(settings.home / "cache")
    assert seen["MOXIN_LAUNCHER"] == process_identity()
    assert seen["MOXIN_RUN"] == "run-1"


def test_no_secret_is_in_the_request_or_on_the_command_line(
    launcher: ProcessLauncher, ledger: Ledger, settings: Settings
) -> None:
    handle = launcher.start(job_of(ledger, act="wait"))
    rest = until(handle, "waiting")
    command = Path(f"/proc/{handle.id}/cmdline").read_text()
    (request,) = (settings.home / "requests").iterdir()
    text = request.read_text()
    handle.stop(HANG)
    list(rest)
    handle.wait()
    for secret in (
        settings.credentials["AWS_SECRET_ACCESS_KEY"],
        settings.credentials["AWS_ACCESS_KEY_ID"],
        "not-for-stages",
    ):
        assert secret not in text + command


# --- a control plane that died ----------------------------------------------------------------------------------------


ORPHAN = """
import os, sys
sys.path.insert(0, {root!r})
import stages
stages.__path__.append({probes!r})
from flows.launch.process import ProcessLauncher
from flows.launch.base import Job
from flows.settings import Settings
from stages.core.messages import StageRequest, StoreAddress
from stages.core.resources import Resources
from pathlib import Path
request = StageRequest.model_validate_json(Path({request!r}).read_bytes())
credentials = {{k: os.environ[k] for k in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")}}
settings = Settings(Path({home!r}), request.store, "http://127.0.0.1:9/api", True, False, credentials)
sys.executable = {python!r}
handle = ProcessLauncher(settings).start(Job(request, Resources(), "data"))
for event in handle.events():
    if event.get("message") == "waiting":
        print(handle.id, flush=True)
"""


def control_plane(settings: Settings, ledger: Ledger, folder: Path, act: str) -> tuple[subprocess.Popen[bytes], int]:
    """Another control plane, in a process of its own, with one waiting stage: the process and the stage's number."""
    request = folder / "foreign-request.json"
    request.write_text(job_of(ledger, act=act).request.model_dump_json())
    program = ORPHAN.format(
        root=str(ROOT),
        probes=str(ROOT / "tests/probes"),
        request=str(request),
        home=str(settings.home),
        python=python_with_probes(folder),
    )
    env = {"PATH": os.environ["PATH"], **settings.store_environment()}
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, env=env)
    assert process.stdout is not None
    return process, int(process.stdout.readline())


def test_a_stage_stops_by_itself_when_its_control_plane_is_killed(
    settings: Settings, ledger: Ledger, tmp_path: Path
) -> None:
    process, stage = control_plane(settings, ledger, tmp_path, "wait")
    identity = process_identity(stage)
    process.kill()
    process.wait()
    process.stdout.close()  # type: ignore[union-attr]
    wait_for(lambda: not process_alive(identity), "the stage's end")
    assert list((settings.home / "scratch").iterdir()) == [], "an orderly end: its folder is removed"


def test_reap_kills_what_a_dead_control_plane_left_and_nothing_else(
    settings: Settings, ledger: Ledger, launcher: ProcessLauncher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = launcher.start(job_of(ledger, 1, act="wait"))
    rest = until(mine, "waiting")
    monkeypatch.undo()
    process, stage = control_plane(settings, ledger, tmp_path, "stubborn")
    identity = process_identity(stage)
    assert launcher.reap() == [], "both control planes live"
    process.kill()
    process.wait()
    process.stdout.close()  # type: ignore[union-attr]
    assert launcher.reap() == [str(stage)], "it swallows the request to stop, and would have 25 s left"
    wait_for(lambda: not process_alive(identity), "the stage's end")
    assert process_alive(process_identity(int(mine.id)))
    mine.stop(HANG)
    list(rest)
    mine.wait()


def test_reap_of_a_run_asks_its_stages_to_stop(launcher: ProcessLauncher, ledger: Ledger) -> None:
    handle = launcher.start(job_of(ledger, act="wait"))
    rest = until(handle, "waiting")
    assert launcher.reap("another run") == []
    assert launcher.reap("run-1") == [handle.id]
    assert [e["message"] for e in rest] == ["stopped on request"]
    assert handle.wait() == ExitClass.PREEMPTED.code


# --- trouble at the start, and the whole way --------------------------------------------------------------------------


def test_a_program_that_cannot_be_started_is_an_infrastructure_failure(
    launcher: ProcessLauncher, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(
        InfraError, match=r"cannot start stage probe_source: No such file or directory \(/nowhere/python\)"
    ):
        launcher.start(job_of(ledger))


def test_launchers_have_names(settings: Settings) -> None:
    assert isinstance(launcher_by_name("process", settings), ProcessLauncher)
    with pytest.raises(
        ConfigError, match="launcher 'doker' is not known; there are: process, docker, slurm, kubernetes"
    ):
        launcher_by_name("doker", settings)


def test_a_real_stage_runs_through_the_real_launcher(settings: Settings, ledger: Ledger, tmp_path: Path) -> None:
    """`collect` with a listing, in the unchanged interpreter: nothing of the tests is in its way."""
    pipeline = Pipeline([Collect(name="collect")])
    rows = "".join(
        f'[[node.collect.{port}]]\nuri = "file:///{port}"\nformat = "jsonl"\nsource = "{port}"\n'
        for port in ("text", "web")
    )
    (tmp_path / "test.toml").write_text(rows)

    def attempt(*overrides: str) -> tuple[Execution, Any]:
        profile = profiles.load("test", pipeline, overrides, tmp_path)
        run = Execution(
            "run-1",
            profile,
            ledger,
            ProcessLauncher(settings),
            settings.home,
            frozenset({"collect"}),
            False,
            [Recorder()],
        )
        return run, lambda: run.node(pipeline["collect"], {}).result

    _, broken = attempt()
    with pytest.raises(NodeFailed, match=r"collect failed \(config\): collect\.code is empty: list at least one file"):
        broken()
    code = 'collect.code=[{uri = "file:///code", format = "code", source = "code"}]'
    _, good = attempt(code)
    result = good()
    assert [f.path for f in result.outputs["code"].files] == ["listing.jsonl"]
    _, again = attempt(code)
    assert again() == result
