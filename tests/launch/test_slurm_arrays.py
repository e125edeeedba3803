"""`dedup` with `workers = "slurm"` on a cluster of two virtual nodes: killed elements, a control plane that dies,
errors, a stop.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flows.launch import slurm
from flows.launch.base import Job
from flows.launch.slurm import Site, SlurmHandle, SlurmLauncher
from flows.settings import Settings
from stages.core.errors import ExitClass
from stages.core.files import ROOT
from stages.core.ledger import Ledger
from stages.core.messages import InputRef, StageResult
from stages.core.resources import Resources
from stages.core.task_objects import work_prefix
from tests.support.limits import HANG
from tests.support.probe_pipeline import wait_for
from tests.support.stored_dedup import SHARDS, Attempts, at_work, by_processes, corpus, request, same, sources

pytestmark = [pytest.mark.slow, pytest.mark.container, pytest.mark.usefixtures("slurm_cluster")]


@pytest.fixture
def launcher(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[SlurmLauncher]:
    """A launcher whose elements share memory with other tests; no job may be left afterwards."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    made = SlurmLauncher(settings, Site(poll_seconds=0.5))
    yield made
    try:
        wait_for(
            lambda: not slurm.queued_jobs(f"moxin:{made._installation}:"), "an empty queue"
        )  # what was cancelled takes a moment
    finally:
        for number in slurm.queued_jobs(f"moxin:{made._installation}:"):
            slurm.run("scancel", number)


KEY = "d" * 64


@pytest.fixture
def job(ledger: Ledger, tmp_path: Path) -> Job:
    return job_of(ledger, sources(ledger, tmp_path, corpus()))


def job_of(ledger: Ledger, inputs: tuple[InputRef, ...]) -> Job:
    asked = request(ledger, inputs, KEY, recipe="dclm", workers="slurm")
    return Job(asked, Resources(cpus=1, memory_gib=1), "data")


def expected(ledger: Ledger, job: Job, folder: Path, workers: int = 1) -> StageResult:
    return by_processes(ledger, job.request.inputs["sources"], folder, workers)


def finish(handle: SlurmHandle) -> tuple[int, list[dict[str, Any]]]:
    events = list(handle.events())
    return handle.wait(), events


def arrays(events: list[dict[str, Any]]) -> list[str]:
    """What was said of arrays: `Slurm array 7: 8 shards in 8 jobs (sign-...)`."""
    return [
        e["message"]
        for e in events
        if e["event"] == "log" and str(e["message"]).startswith("Slurm array") and "shards" in e["message"]
    ]


def kill_one(scratch: Path, attempts: Attempts, killed: list[str]) -> None:
    """Kill an element in the middle of a shard."""
    deadline = time.monotonic() + HANG
    while not killed and attempts.is_alive() and time.monotonic() < deadline:
        for number, process in at_work(scratch, "sign").items():
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
                time.sleep(0.05)
                if number not in attempts.receipts("sign"):
                    killed.append(number)
                    return
        time.sleep(0.001)


def test_a_killed_element_costs_one_shard_and_no_byte(
    launcher: SlurmLauncher, ledger: Ledger, job: Job, tmp_path: Path
) -> None:
    """Elements share nothing with the stage but the store."""
    wanted = expected(ledger, job, tmp_path, workers=2)
    killed: list[str] = []
    with Attempts(ledger, KEY) as attempts:
        thread = threading.Thread(target=kill_one, args=(launcher._folder / "scratch", attempts, killed))
        thread.start()
        code, events = finish(launcher.start(job))
    thread.join()
    assert code == 0, "\n".join(map(str, events))
    same(ledger, KEY, wanted)
    said = arrays(events)
    assert killed, "no element was killed in the middle of a shard"
    assert [f"{SHARDS} shards in {SHARDS} jobs (sign" in said[0], "1 shards in 1 jobs (sign" in said[1]] == [
        True,
        True,
    ], said
    assert [name.partition("(")[2].partition("-")[0] for name in said[2:]] == ["spill", "keep"]
    assert attempts.several() <= {f"sign/{killed[0]}"}
    assert not list(ledger.store.list(f"{work_prefix('dedup', KEY)}arrays/")), "what was for the arrays alone goes"


CONTROL = """
import json, sys
from pathlib import Path
from flows.launch.base import Job
from flows.launch.slurm import Site, SlurmLauncher
from flows.settings import Settings
from stages.core.messages import StageRequest, StoreAddress
from stages.core.resources import Resources
address = StoreAddress.model_validate_json({store!r})
settings = Settings(Path({home!r}), address, "http://127.0.0.1:9/api", True, False, {credentials!r})
job = Job(StageRequest.model_validate_json(sys.stdin.read()), Resources(cpus=1, memory_gib=1), "data")
handle = SlurmLauncher(settings, Site(poll_seconds=0.5)).start(job)
print(handle.id, flush=True)
for event in handle.events():
    print(json.dumps(event), flush=True)
"""


def test_a_control_plane_that_comes_back_follows_the_same_array(
    launcher: SlurmLauncher, ledger: Ledger, job: Job, settings: Settings, tmp_path: Path
) -> None:
    wanted, attempts = expected(ledger, job, tmp_path), Attempts(ledger, KEY)
    program = CONTROL.format(
        home=str(settings.home), store=settings.store.model_dump_json(), credentials=dict(settings.credentials)
    )
    control = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    assert control.stdin is not None
    assert control.stdout is not None
    control.stdin.write(job.request.model_dump_json())
    control.stdin.close()
    number = control.stdout.readline().strip()
    before: list[dict[str, Any]] = []
    while not arrays(before):
        before.append(json.loads(control.stdout.readline()))
    control.kill()
    control.wait()
    control.stdout.close()
    wait_for(lambda: len(attempts.receipts("sign")) > 2, "an array that goes on by itself")
    taken_over = SlurmLauncher(settings, Site(poll_seconds=0.5)).take_over(number, job)
    assert taken_over is not None
    code, events_after = finish(taken_over)
    assert code == 0, events_after
    same(ledger, KEY, wanted)
    said = arrays(before) + arrays(events_after)
    signing = {message for message in said if "(sign-" in message}
    assert len(signing) == 1, f"one array, however often it was followed: {said}"


def test_what_a_shard_raises_is_the_stages_error(launcher: SlurmLauncher, ledger: Ledger, tmp_path: Path) -> None:
    code, events = finish(launcher.start(job_of(ledger, sources(ledger, tmp_path, corpus(), damage=5))))
    assert ExitClass.from_code(code) is ExitClass.INFRA, "\n".join(map(str, events))
    (done,) = [e for e in events if e["event"] == "done"]
    assert "objects/up/5 is whole in the store, but came here as what is no file of its kind" in done["message"]
    assert len(arrays(events)) == 1, "it is not tried again"


def test_a_stopped_stage_leaves_no_array(launcher: SlurmLauncher, job: Job) -> None:
    handle = launcher.start(job)
    seen: list[dict[str, Any]] = []
    for event in handle.events():
        seen.append(event)
        if arrays(seen):
            handle.stop(HANG)
    assert ExitClass.from_code(handle.wait()) is ExitClass.PREEMPTED


def test_a_requeued_stage_does_no_shard_again(
    launcher: SlurmLauncher, ledger: Ledger, job: Job, tmp_path: Path
) -> None:
    """It begins anew in another folder; the array that it left has lost its inputs, and ends without harm."""
    wanted = expected(ledger, job, tmp_path)
    done: set[str] = set()
    with Attempts(ledger, KEY) as attempts:
        handle = launcher.start(job)

        def requeue() -> None:
            wait_for(lambda: len(attempts.receipts("sign")) > 1, "two shards")
            slurm.run("scontrol", "requeue", handle.id)
            done.update(f"sign/{number}" for number in attempts.receipts("sign"))

        thread = threading.Thread(target=requeue)
        thread.start()
        code, events = finish(handle)
        thread.join()
    assert code == 0, "\n".join(map(str, events))
    same(ledger, KEY, wanted)
    assert len(done) >= 2
    assert not done & attempts.several(), "a finished shard was done again"
