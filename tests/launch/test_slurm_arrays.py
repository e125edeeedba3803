"""`dedup` with `workers = "slurm"` on a cluster of two virtual nodes: killed elements, a control plane that dies,
errors, a stop.
"""

from __future__ import annotations

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
from stages.core.artifacts import ArtifactManifest, FileEntry
from stages.core.errors import ExitClass
from stages.core.files import ROOT
from stages.core.keys import sha256
from stages.core.ledger import Ledger
from stages.core.messages import CodeRef, InputRef, StageRequest
from stages.core.resources import Resources
from stages.dedup.spec import DedupConfig
from stages.lib.formats.documents import write_documents
from tests.support.deduplication import dedup, planted
from tests.support.limits import HANG
from tests.support.probe_pipeline import wait_for
from tests.support.worker_pool import parts

pytestmark = [pytest.mark.slow, pytest.mark.container, pytest.mark.usefixtures("slurm_cluster")]
SHARDS = 8


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


def corpus() -> list[list[str]]:
    texts = planted(3, size=160, copies=120)
    return [texts[n::SHARDS] for n in range(SHARDS)]


def source(ledger: Ledger, folder: Path, number: int, texts: list[str], damage: bool = False) -> InputRef:
    """An input of `dedup` in the store, with the ids that `tests.unit.stages.dedup.test_run.dedup` gives."""
    folder.mkdir(parents=True)
    write_documents(folder, ({"id": f"{number}-{i}", "text": t, "source": f"s{number}"} for i, t in enumerate(texts)))
    data = bytearray((folder / "part-00000.parquet").read_bytes())
    if damage:
        data[4:2004] = bytes(2000)
    ledger.store.put(f"objects/up/{number}", bytes(data))
    files = (
        FileEntry(path="part-00000.parquet", size=len(data), sha256=sha256(bytes(data)), object=f"objects/up/{number}"),
    )
    return InputRef(
        node="up",
        key="k",
        port="documents",
        manifest=ArtifactManifest(type="Documents", digest=f"{number:064x}", facets={}, files=files),
    )


def job_of(ledger: Ledger, folder: Path, damage: int | None = None) -> Job:
    config = DedupConfig(recipe="dclm", workers="slurm", work=str(folder / "work"))
    inputs = tuple(source(ledger, folder / "up" / str(n), n, texts, n == damage) for n, texts in enumerate(corpus()))
    key = "d" * 64
    request = StageRequest(
        run_id="run-1", node="dedup_text", stage="dedup", revision=3, key=key, lease=ledger.acquire(key, "tester"),
        config=config.model_dump(mode="json"), inputs={"sources": inputs}, outputs={"documents": "Documents"},
        code=CodeRef(source_digest="0" * 64), store=ledger.store.address,
    )  # fmt: skip
    return Job(request, Resources(cpus=1, memory_gib=1), "data")


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


def output(ledger: Ledger) -> dict[str, bytes]:
    found = ledger.manifest("d" * 64)
    assert found is not None
    return {f.path: ledger.store.get(f.object)[0] for f in found[0].outputs["documents"].files}


def kill_one(work: Path, killed: list[str]) -> None:
    """Kill an element in the middle of a shard: its process number is at the end of its folder's name."""
    deadline = time.monotonic() + HANG
    while not killed and time.monotonic() < deadline:
        for path in work.glob("*/sign.files/??????.*.*"):
            try:
                os.kill(int(path.suffix[1:]), signal.SIGKILL)
            except ProcessLookupError:
                continue
            time.sleep(0.05)
            number = path.name.partition(".")[0]
            if not (path.parents[1] / "sign" / f"{number}.json").exists():
                killed.append(number)
                return
        time.sleep(0.001)


def test_a_killed_element_costs_one_shard_and_no_byte(launcher: SlurmLauncher, ledger: Ledger, tmp_path: Path) -> None:
    expected = dedup(tmp_path / "one", *corpus(), recipe="dclm")
    killed: list[str] = []
    thread = threading.Thread(target=kill_one, args=(tmp_path / "work", killed))
    thread.start()
    code, events = finish(launcher.start(job_of(ledger, tmp_path)))
    thread.join()
    assert code == 0, "\n".join(map(str, events))
    assert output(ledger) == parts(tmp_path / "one")
    assert ledger.manifest("d" * 64)[0].stats["funnel"] == expected.stats["funnel"]  # type: ignore[index]
    said = arrays(events)
    assert killed, "no element was killed in the middle of a shard"
    assert [f"{SHARDS} shards in {SHARDS} jobs (sign" in said[0], "1 shards in 1 jobs (sign" in said[1]] == [
        True,
        True,
    ], said
    assert [name.partition("(")[2].partition("-")[0] for name in said[2:]] == ["spill", "keep"]
    assert not list((tmp_path / "work").glob("*/arrays/*/*")), "what was for the arrays alone goes"


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
    launcher: SlurmLauncher, ledger: Ledger, settings: Settings, tmp_path: Path
) -> None:
    dedup(tmp_path / "one", *corpus(), recipe="dclm")
    job = job_of(ledger, tmp_path)
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
    wait_for(lambda: len(list((tmp_path / "work").glob("*/sign/??????.json"))) > 2, "an array that goes on by itself")
    adopted = SlurmLauncher(settings, Site(poll_seconds=0.5)).adopt(number, job)
    assert adopted is not None
    code, events_after = finish(adopted)
    assert code == 0, events_after
    assert output(ledger) == parts(tmp_path / "one")
    said = arrays(before) + arrays(events_after)
    signing = {message for message in said if "(sign-" in message}
    assert len(signing) == 1, f"one array, however often it was followed: {said}"


def test_what_a_shard_raises_is_the_stages_error(launcher: SlurmLauncher, ledger: Ledger, tmp_path: Path) -> None:
    code, events = finish(launcher.start(job_of(ledger, tmp_path, damage=5)))
    assert ExitClass.from_code(code) is ExitClass.INFRA, "\n".join(map(str, events))
    (done,) = [e for e in events if e["event"] == "done"]
    assert "objects/up/5 is whole in the store, but came here as what is no file of its kind" in done["message"]
    assert len(arrays(events)) == 1, "it is not tried again"


def test_a_stopped_stage_leaves_no_array(launcher: SlurmLauncher, ledger: Ledger, tmp_path: Path) -> None:
    handle = launcher.start(job_of(ledger, tmp_path))
    seen: list[dict[str, Any]] = []
    for event in handle.events():
        seen.append(event)
        if arrays(seen):
            handle.stop(HANG)
    assert ExitClass.from_code(handle.wait()) is ExitClass.PREEMPTED


def test_a_requeued_stage_does_no_shard_again(launcher: SlurmLauncher, ledger: Ledger, tmp_path: Path) -> None:
    """It begins anew in another folder; the array that it left has lost its inputs, and ends without harm."""
    dedup(tmp_path / "one", *corpus(), recipe="dclm")
    handle = launcher.start(job_of(ledger, tmp_path))
    done: dict[Path, int] = {}

    def requeue() -> None:
        wait_for(lambda: len(list((tmp_path / "work").glob("*/sign/??????.json"))) > 1, "two shards")
        slurm.run("scontrol", "requeue", handle.id)
        done.update({path: path.stat().st_mtime_ns for path in (tmp_path / "work").glob("*/sign/??????.json")})

    thread = threading.Thread(target=requeue)
    thread.start()
    code, events = finish(handle)
    thread.join()
    assert code == 0, "\n".join(map(str, events))
    assert output(ledger) == parts(tmp_path / "one")
    assert len(done) >= 2
    assert all(path.stat().st_mtime_ns == when for path, when in done.items()), "a finished shard was done again"
