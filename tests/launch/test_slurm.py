"""The Slurm launcher on a real cluster of two virtual nodes: how jobs end, requeueing, and a flow that comes back."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from flows.execute import NodeFailed
from flows.launch import slurm
from flows.launch.slurm import Site, SlurmHandle, SlurmLauncher
from flows.settings import Settings
from stages.core.errors import ExitClass
from stages.core.files import ROOT
from stages.core.ledger import Ledger
from stages.core.resources import Resources
from tests.support import probe_pipeline
from tests.support.docker_containers import job_of
from tests.support.limits import HANG
from tests.support.planted import CONTROL_PLANE, SOURCES, held, held_in_files, secrets_in
from tests.support.probe_pipeline import wait_for

pytestmark = [pytest.mark.slow, pytest.mark.container, pytest.mark.usefixtures("slurm_cluster")]
SITE = Site(poll_seconds=0.5)


@pytest.fixture
def slurm_launcher(settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SlurmLauncher]:
    """A launcher whose stages are the probes; no job may be left afterwards."""
    monkeypatch.setattr(sys, "executable", probe_pipeline.python_with_probes(tmp_path))
    launcher = SlurmLauncher(settings, SITE)
    yield launcher
    left = jobs(launcher)
    for number in left:
        slurm.run("scancel", number)
    assert left == []


def jobs(launcher: SlurmLauncher) -> list[str]:
    rows = (line.split() for line in slurm.run("squeue", "--noheader", "--format=%i %T %k").splitlines())
    return [
        row[0]
        for row in rows
        if len(row) > 2 and row[2].startswith(f"moxin:{launcher._installation}:") and row[1] != "COMPLETING"
    ]


def finish(handle: SlurmHandle) -> tuple[int, list[dict[str, Any]]]:
    events = list(handle.events())
    return handle.wait(), events


def until(handle: SlurmHandle, message: str) -> Iterator[dict[str, Any]]:
    events = handle.events()
    for event in events:
        if event.get("message") == message:
            return events
    raise AssertionError(f"the stage ended before it said {message!r}")


def test_a_job_runs_publishes_and_leaves_no_secret(
    slurm_launcher: SlurmLauncher, ledger: Ledger, settings: Settings
) -> None:
    code, events = finish(slurm_launcher.start(job_of(ledger, act="print")))
    assert code == 0, events
    assert [e["event"] for e in events if e["event"] != "log"] == ["begun", "metric", "metric", "done"]
    assert ledger.manifest(f"{0:064x}") is not None
    for path in (settings.home / "slurm").rglob("*"):
        assert path.is_dir() or settings.credentials["AWS_SECRET_ACCESS_KEY"] not in path.read_text()


def test_no_secret_is_shown_by_the_controller(
    slurm_launcher: SlurmLauncher, ledger: Ledger, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What every user of a cluster may see of a job: its record, its script, the command lines on its node."""
    for name, value in (SOURCES | CONTROL_PLANE).items():
        monkeypatch.setenv(name, value)
    resources = Resources(cpus=1, memory_gib=0.25, network="internet")
    handle = slurm_launcher.start(job_of(ledger, resources=resources, act="wait"))
    rest = until(handle, "waiting")
    shown = [slurm.run("scontrol", "show", "--details", "job", handle.id)]
    shown += [slurm.run("scontrol", "write", "batch_script", handle.id, "-"), slurm.run("squeue", "--format=%all")]
    shown += ["\0".join(process.info["cmdline"] or ()) for process in psutil.process_iter(["cmdline"])]
    (given,) = (settings.home / "slurm").glob("*.secrets.json")
    mode, text = stat.S_IMODE(given.stat().st_mode), given.read_text()
    handle.stop(HANG)
    list(rest)
    handle.wait()
    secrets = dict(settings.credentials) | secrets_in(SOURCES)
    assert held("\n".join(shown).encode(), secrets | secrets_in(CONTROL_PLANE)) == []
    assert mode == 0o600
    assert sorted(held(text.encode(), secrets | secrets_in(CONTROL_PLANE))) == sorted(secrets), "it was to be found"
    assert list(held_in_files(settings.home / "slurm", secrets)) == [], "nor is it left when the job is over"


def test_a_home_of_any_name_works(
    settings: Settings, ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """sbatch itself takes the script, and writes where it says."""
    monkeypatch.setattr(sys, "executable", probe_pipeline.python_with_probes(tmp_path))
    home = tmp_path / 'it\'s "my" home #1 100%j'
    launcher = SlurmLauncher(replace(settings, home=home), SITE)
    code, events = finish(launcher.start(job_of(ledger, act="print")))
    assert code == 0, events
    assert [e["event"] for e in events if e["event"] != "log"] == ["begun", "metric", "metric", "done"]
    assert list((home / "slurm").glob("*.out"))


def test_a_job_that_is_asked_to_stop_ends_in_order(slurm_launcher: SlurmLauncher, ledger: Ledger) -> None:
    handle = slurm_launcher.start(job_of(ledger, act="wait"))
    rest = until(handle, "waiting")
    handle.stop(HANG)
    handle.stop(HANG)
    assert [e["message"] for e in rest if e["event"] == "done"] == ["stopped on request"]
    assert handle.wait() == ExitClass.PREEMPTED.code


def test_scancel_by_a_person_is_a_preemption(slurm_launcher: SlurmLauncher, ledger: Ledger) -> None:
    handle = slurm_launcher.start(job_of(ledger, act="wait"))
    rest = until(handle, "waiting")
    slurm.run("scancel", handle.id)
    list(rest)
    assert ExitClass.from_code(handle.wait()) is ExitClass.PREEMPTED


def test_a_users_mistake_keeps_its_class_and_line(slurm_launcher: SlurmLauncher, ledger: Ledger) -> None:
    code, events = finish(slurm_launcher.start(job_of(ledger, act="input")))
    assert ExitClass.from_code(code) is ExitClass.INPUT
    assert [e["message"] for e in events if e["event"] == "done"] == ["asked for input"]


def test_reap_cancels_a_runs_jobs(slurm_launcher: SlurmLauncher, ledger: Ledger) -> None:
    handle = slurm_launcher.start(job_of(ledger, act="wait"))
    rest = until(handle, "waiting")
    assert slurm_launcher.reap("another run") == []
    assert slurm_launcher.reap("run-1") == [handle.id]
    list(rest)
    assert ExitClass.from_code(handle.wait()) is ExitClass.PREEMPTED


@pytest.fixture
def prepared(finished_run: Ledger, ledger: Ledger) -> Ledger:
    """A ledger with everything before the training."""
    probe_pipeline.copy_ledger(finished_run, ledger)
    return ledger


def training(launcher: SlurmLauncher, ledger: Ledger, folder: Path, *overrides: str) -> Any:
    """An execution of the small pipeline's first training as a job."""
    pipeline = probe_pipeline.small_pipeline()
    profile = probe_pipeline.profile_of(
        pipeline, folder, "train_1.steps=60", "train_1.step_seconds=0.2", "train_1.save_every=5", *overrides
    )
    return pipeline, probe_pipeline.execution(pipeline, profile, ledger, folder, launcher, select="train_1")


def after_a_checkpoint(run: Any, act: Callable[[], object]) -> threading.Thread:
    """Do something once the training has saved a checkpoint."""

    def wait_and_act() -> None:
        wait_for(lambda: any(e["event"] == "checkpoint" for _, e in run.observers[0].events), "a checkpoint")
        act()

    thread = threading.Thread(target=wait_and_act)
    thread.start()
    return thread


def test_a_requeued_job_resumes_under_the_same_number(
    slurm_launcher: SlurmLauncher, prepared: Ledger, tmp_path: Path
) -> None:
    pipeline, run = training(slurm_launcher, prepared, tmp_path)
    requeue = after_a_checkpoint(run, lambda: slurm.run("scontrol", "requeue", jobs(slurm_launcher)[0]))
    result = probe_pipeline.run_nodes(run, pipeline, until="train_1")["train_1"]
    requeue.join()
    assert result.attempt.resumed_from is not None
    assert result.attempt.epoch == 1, "one attempt, one job"


def test_a_stopped_run_leaves_no_job(slurm_launcher: SlurmLauncher, prepared: Ledger, tmp_path: Path) -> None:
    pipeline, run = training(slurm_launcher, prepared, tmp_path)
    stopping = after_a_checkpoint(run, run.stop)
    with pytest.raises(NodeFailed, match=r"train_1 failed \(preempted\)"):
        probe_pipeline.run_nodes(run, pipeline, until="train_1")
    stopping.join()
    assert jobs(slurm_launcher) == []


CONTROL = """
import sys
sys.path.insert(0, {root!r})
import stages
stages.__path__.append({probes!r})
from pathlib import Path
from flows.launch.slurm import Site, SlurmLauncher
from flows.settings import Settings
from stages.core.messages import StoreAddress
from stages.core.ledger import Ledger
from stages.core.store import Store
from tests.support import probe_pipeline
store = StoreAddress.model_validate_json({store!r})
settings = Settings(Path({home!r}), store, "http://127.0.0.1:9/api", True, False, {credentials!r})
pipeline = probe_pipeline.small_pipeline()
sets = ["train_1.steps=100", "train_1.step_seconds=0.2", "train_1.save_every=5"]
profile = probe_pipeline.profile_of(pipeline, Path({folder!r}), *sets)
sys.executable = {python!r}
launcher = SlurmLauncher(settings, Site(poll_seconds=0.5))
run = probe_pipeline.execution(pipeline, profile, Ledger(Store(store)), Path({folder!r}), launcher, select="train_1")
class Say:
    def event(self, node, event):
        if event["event"] == "checkpoint":
            print("checkpoint", flush=True)
run.observers.append(Say())
probe_pipeline.run_nodes(run, pipeline, until="train_1")
"""


def test_a_flow_that_comes_back_follows_the_same_job(
    slurm_launcher: SlurmLauncher, prepared: Ledger, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control plane is killed; its job goes on; the next run finds the number in the ledger and does not start
    another.
    """
    python, folder = sys.executable, tmp_path / "first"
    folder.mkdir()
    program = CONTROL.format(
        root=str(ROOT),
        probes=str(ROOT / "tests/probes"),
        store=prepared.store.address.model_dump_json(),
        home=str(settings.home),
        credentials=dict(settings.credentials),
        folder=str(folder),
        python=python,
    )
    env = {"PATH": os.environ["PATH"], "SLURM_CONF": os.environ["SLURM_CONF"], **settings.store_environment()}
    real = str(Path(sys.prefix) / "bin" / "python")
    control = subprocess.Popen([real, "-c", program], stdout=subprocess.PIPE, env=env, cwd=ROOT)
    assert control.stdout is not None
    assert control.stdout.readline() == b"checkpoint\n"
    (number,) = jobs(slurm_launcher)
    control.send_signal(signal.SIGKILL)
    control.wait()
    control.stdout.close()
    pipeline, run = training(slurm_launcher, prepared, tmp_path, "train_1.steps=100")
    result = probe_pipeline.run_nodes(run, pipeline, until="train_1")["train_1"]
    assert f"following job {number} of an earlier run that was lost" in run.observers[0].messages("info")
    assert (result.attempt.epoch, result.attempt.resumed_from) == (1, None), "it was never interrupted"
    (record,) = prepared.attempts(result.key)[-1:]
    assert (record.job, record.exit_class) == (number, "ok")
